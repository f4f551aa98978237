"""Many runs from one file: what they are, which are done, and the processes that make the rest."""
