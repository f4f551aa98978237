"""Evaluation: which images each client is scored on, and the scores."""
