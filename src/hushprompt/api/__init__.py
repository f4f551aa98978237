"""What can be done from Python: the functions behind `import hushprompt as hp`, and behind the commands."""
