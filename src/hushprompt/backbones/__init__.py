"""Frozen image-text models, their prompts, and cached image features."""
