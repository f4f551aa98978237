"""Mechanisms: how contributions are clipped, and how a sum of them is released; one file each."""
