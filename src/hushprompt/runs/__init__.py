"""The reader and writer of a run folder."""
