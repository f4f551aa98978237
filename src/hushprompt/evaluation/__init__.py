"""Whose images are scored, and how."""
