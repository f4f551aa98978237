"""The loop for one process, its checkpoints, and what it publishes."""
