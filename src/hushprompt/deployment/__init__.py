"""A federation of separate machines: what travels, and the two ends that speak; `flower/` carries it."""
