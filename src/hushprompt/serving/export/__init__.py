"""A trained prompt as files for other programs: one function for each format, all in the table of `formats.py`."""
