"""Clipping, noise, sampling and accounting, joined in one plan."""
