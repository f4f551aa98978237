"""Text towers on a GPU, recorded once for each shape and replayed.

A tower is a thousand small kernels, and starting them one by one takes longer than running them. A CUDA graph starts
them all at once. It has its inputs and its output at fixed places, so replays take turns, and what comes out is copied.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hushprompt.prompts.text_pass import AutogradPass, Encode

LOG = logging.getLogger(__name__)
NUM_KEPT = 32
"""Recordings that are kept: one for each shape of a context, and for each size of a batch."""
NUM_WARM_UPS = 2
"""Plain runs before a recording: libraries choose their kernels and make their workspaces then."""
MULTIPLE = 8
"""Examples are filled up to a multiple of it, so that batches of random size need few recordings."""


class Recording:
    """A function of tensors that always does the same kernels."""

    def __init__(self, work: Callable[..., Tensor], inputs: tuple[Tensor, ...], pool: Any) -> None:
        """Record it for inputs of these shapes.

        Raises:
            RuntimeError: the function waits for the GPU, or decides by values.
        """
        self._inputs = tuple(each.detach().clone() for each in inputs)
        stream, here = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                work(*self._inputs)
        here.wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = work(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Replay it on other values."""
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._output.clone()


class Recorder:
    """The recordings of one model, which share their memory; safe to call from several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Recording | None] = OrderedDict()
        self._lock = threading.Lock()

    @functools.cached_property
    def _pool(self) -> Any:
        """Memory of all recordings; one is over before the next begins."""
        return torch.cuda.graph_pool_handle()

    def run(self, name: Hashable, work: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Do `work`, by a recording where it can be recorded.

        Args:
            name: with the shapes of the inputs, decides which recording it is.
            work: a function of the inputs and of constants.
            inputs: tensors on the GPU.
        """
        key = (name, *((each.shape, each.dtype) for each in inputs))
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._record(work, inputs)
            self._kept.move_to_end(key)
            while len(self._kept) > NUM_KEPT:
                self._kept.popitem(last=False)
            recording = self._kept[key]
            return work(*inputs) if recording is None else recording(*inputs)

    def _record(self, work: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Recording | None:
        """Record, or return None for a tower that must be run as it is."""
        try:
            return Recording(work, inputs, self._pool)
        except RuntimeError as error:
            torch.cuda.synchronize()
            work(*inputs)  # raises what is no matter of recording
            LOG.warning("this text tower cannot be recorded, so its kernels are started one by one: %s", error)
            return None


class RecordedPass:
    """A tower by recordings: forward for the features; forward and backward for gradients, so that none is held."""

    def __init__(self, recorder: Recorder, name: Hashable, encode: Encode, context: Float[Tensor, "*c t e"]) -> None:
        """Run the tower on a context.

        Args:
            recorder: of the model.
            name: says which function `encode` is.
            encode: from a context to unit-norm text features.
            context: on the GPU.
        """
        self._recorder, self._name, self._encode = recorder, name, encode
        self._context = context.detach()
        self.features = recorder.run(("features", name), encode, self._context)

    def pull_back(self, cotangents: Float[Tensor, "b c d"]) -> Float[Tensor, "b *c t e"]:
        """Multiply each cotangent with the Jacobian of the text features."""

        def both_ways(context: Tensor, filled: Tensor) -> Tensor:
            return AutogradPass(self._encode, context).pull_back(filled)

        filled = F.pad(cotangents, (0, 0, 0, 0, 0, -len(cotangents) % MULTIPLE))
        return self._recorder.run(("gradients", self._name), both_ways, self._context, filled)[: len(cotangents)]
