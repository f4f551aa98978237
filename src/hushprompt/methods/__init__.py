"""One file per algorithm: what a client learns and what it sends."""
