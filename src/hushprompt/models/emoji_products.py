"""Products of the embedded text tower's weights that pay where many examples share one context.

What an MLP does to a gradient at one token is a map of width x width. Multiplied out it costs what 64 examples cost on
their way through the MLP, and every example after that has an eighth of the work. The clients of a round who share one
context share these products, and their threads make them side by side.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence

import torch

from hushprompt.models.emoji_attention import AttentionBack
from hushprompt.models.emoji_block import ROWS, BlockPass, BlockProducts


class Products:
    """The products of all blocks of one pass."""

    def __init__(self, blocks: Sequence[BlockPass]) -> None:
        """Lay out the work."""
        self._blocks, width = blocks, blocks[0].normed_1.unit.shape[1]
        self.made = [
            BlockProducts(
                block.raised.new_empty(len(block.raised), width, width),
                AttentionBack(block, to_prefix=block is blocks[0]),
            )
            for block in blocks
        ]
        """Of each block; whole after `make`."""
        self.has_failed = False
        """Some part was not made, so none of this is of use."""
        self._parts: queue.Queue[tuple[int, slice]] = queue.Queue()
        for index, block in enumerate(blocks):
            step = max(1, ROWS // width)
            for start in range(0, len(block.raised), step):
                self._parts.put((index, slice(start, start + step)))

    @torch.inference_mode()
    def make(self) -> None:
        """Make what is still to be made, side by side with whoever else calls; come back when all of it is.

        Raises:
            RuntimeError: a part that another thread had in work was not made.
        """
        while True:
            try:
                index, tokens = self._parts.get_nowait()
            except queue.Empty:
                break
            try:
                self.made[index].mlp[tokens] = self._blocks[index].multiply_out(tokens)
            except BaseException:
                self.has_failed = True
                raise
            finally:
                self._parts.task_done()
        self._parts.join()
        if self.has_failed:
            raise RuntimeError("Products of the text tower could not be made; another thread says why.")
