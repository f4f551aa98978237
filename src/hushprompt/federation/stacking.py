"""Which clients of a round go through the text tower together, by what they take of the memory.

Stacked, small kernels of several clients become one larger one, and clients who share a context make one batch;
docs/fast-path.md says where that pays. Results differ by rounding alone; every example's gradient is a function of that
example and its client's context, as ever.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from hushprompt.models.base import TextPass
from hushprompt.prompts.gradients import bytes_per_example
from hushprompt.prompts.prompt_model import NamePosition, PromptModel
from hushprompt.prompts.stack import run_stacked

T = TypeVar("T")
MOST_CLIENTS = 64
"""Of one stack: each has a thread."""
GAPS = 1.5
"""What a forward pass takes over what it keeps, as what it frees lies in between; measured with CLIP ViT-B/16: 1.35 to
1.53."""


@dataclass(frozen=True)
class Cost:
    """What a client takes in a stack, in MB."""

    held: float
    """For the forward pass of its contexts, until it has gone backward; 0 where all clients have the same."""
    example: float
    """For each example that goes backward at once."""

    def most(self, memory_mb: int) -> int:
        """Return how many clients, with an example each, may be stacked; at least 1, at most `MOST_CLIENTS`."""
        return min(MOST_CLIENTS, max(1, int(memory_mb / (self.held + self.example))))

    def left(self, memory_mb: int, num_clients: int) -> int:
        """Return the MB that are left for each client's examples; at least 1."""
        return max(1, int(memory_mb / num_clients - self.held))


class Stacking:
    """How a run stacks its clients."""

    def __init__(self, model: PromptModel, memory_mb: int = 0, num_workers: int = 1) -> None:
        """Hold the settings.

        Args:
            model: frozen backbone and class names.
            memory_mb: what the passes of all stacks that run at once may take; 0: every client goes by itself.
            num_workers: threads that have stacks to run; on a GPU one of them does it all.
        """
        self._model = model
        self._num_workers = num_workers if model.device == "cpu" else 1
        self._memory_mb = math.ceil(memory_mb / self._num_workers)
        """Of each stack."""
        self._costs: dict[str, Cost | None] = {}

    def cut(
        self, label: str, sizes: Sequence[int], one_example: Callable[[PromptModel], object], *, are_alike: bool
    ) -> list[list[int]]:
        """Put the clients of a round into stacks.

        Args:
            label: of the arm, whose clients take all about the same.
            sizes: examples of each client.
            one_example: a client's step with one example, which tells what a client takes, once for each label; its
                result is thrown away.
            are_alike: all clients have one and the same context.

        Returns:
            Places in `sizes`, the largest first.
        """
        if not self._memory_mb:
            return cut(sizes, most=1, num_workers=1)
        if label not in self._costs:
            self._costs[label] = cost(self._model, one_example, are_alike=are_alike)
        known = self._costs[label]
        return cut(sizes, 1 if known is None else known.most(self._memory_mb), self._num_workers)

    def run(self, label: str, works: Sequence[Callable[[PromptModel], T]]) -> list[T]:
        """Do the works of one stack, as `cut` made it, each with the model that it is given."""
        if len(works) == 1:
            return [works[0](self._model)]
        known = self._costs[label]
        assert known is not None, "such clients are not stacked"
        return run_stacked(self._model, works, known.left(self._memory_mb, len(works)))


def cost(model: PromptModel, step: Callable[[PromptModel], object], *, are_alike: bool) -> Cost | None:
    """Measure what one more client in a stack takes.

    Args:
        model: frozen backbone and class names.
        step: one client's step, whose result is thrown away.
        are_alike: all clients have one and the same context.

    Returns:
        The cost, or None where stacking is of no use: the step asks for no pass, or for some that cannot be stacked.
    """
    asked: list[tuple[Tensor, NamePosition]] = []

    def read(context: Float[Tensor, "*c t e"], name_position: NamePosition) -> TextPass:
        asked.append((context, name_position))
        return model.text_pass(context, name_position)

    step(model.asking(read, model.memory_mb))
    if not asked or not (are_alike or all(model.can_stack(*each) for each in asked)):
        return None
    held = 0 if are_alike else sum(model.held_bytes(*each) for each in asked)
    return Cost(GAPS * held / 2**20, max(bytes_per_example(model, *each) for each in asked) / 2**20)


def cut(sizes: Sequence[int], most: int, num_workers: int) -> list[list[int]]:
    """Cut clients into stacks of about one size, those with batches of like size together.

    Args:
        sizes: examples of each client.
        most: clients that a stack may have.
        num_workers: stacks that run side by side; there are at least as many, if there are as many clients.

    Returns:
        Places in `sizes`, the largest first, which evens out the end of a round.

    >>> cut([5, 30, 7, 20, 6], most=2, num_workers=1)
    [[1, 3], [2, 4], [0]]
    """
    by_size = sorted(range(len(sizes)), key=lambda place: -sizes[place])
    num_stacks = max(math.ceil(len(sizes) / most), min(num_workers, len(sizes)))
    bounds = [math.ceil(index * len(sizes) / max(1, num_stacks)) for index in range(num_stacks + 1)]
    return [by_size[first:last] for first, last in itertools.pairwise(bounds)]
