"""What the command `hushprompt` and `python -m hushprompt` call."""

from hushprompt.cli.main import main

if __name__ == "__main__":
    main()
