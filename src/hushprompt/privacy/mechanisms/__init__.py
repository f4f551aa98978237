"""Mechanisms: how a contribution is clipped, and how a sum of them is released; one file each."""

from hushprompt.privacy.mechanisms import batch_clipping, gaussian

__all__ = ["batch_clipping", "gaussian"]
