"""The membership attack of the DP-FPL paper's code: one small network per class, trained on shadow models.

Source: Shokri et al. 2017 (arXiv:1610.05820), as used by Tran et al. 2025 (arXiv:2501.13904): softmax vector of
c classes -> 32 -> 2, ReLU between, a sigmoid on the outputs followed by cross-entropy, Adam with rate 0.01. What
differs: members are examples that were trained on (the released code takes images that its truncation had removed),
members and non-members are exchangeable, batches hold 64 examples instead of one, the number of steps is fixed, and the
score is the difference of the two outputs, so that the whole ROC curve can be read, not its accuracy alone.

The networks of all classes are trained side by side, each on batches of its own.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

HIDDEN = 32
LEARNING_RATE = 0.01
BATCH = 64
NUM_STEPS = 400
"""Batches of each class; with 64 shadow models and 40 candidates a class, about twenty passes."""
NUM_FOLDS = 2
"""Shadow models are cut in two, and each half is attacked by networks that were trained on the other half."""


def shadow_mlp(
    log_probs: Float[np.ndarray, "s m c"],
    labels: Int[np.ndarray, " m"],
    is_in: Bool[np.ndarray, "s m"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "s m"]:
    """Return scores of all candidates under all models; no model is attacked by networks that have seen it.

    Args:
        log_probs: [s, m, c] what each model says of each candidate.
        labels: [m] the candidates' classes.
        is_in: [s, m] which model trained on which candidate.
        rng: stream of starts and batches.
    """
    probabilities = np.exp(log_probs)
    scores = np.zeros(is_in.shape)
    fold = np.arange(len(is_in)) % NUM_FOLDS
    mine = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for held_out in range(NUM_FOLDS):
        train, test = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
        inputs = [torch.from_numpy(probabilities[np.ix_(train, own)]).flatten(0, 1) for own in mine]
        members = [torch.from_numpy(is_in[np.ix_(train, own)]).flatten() for own in mine]
        networks = _fit(inputs, members, rng)
        for index, own in enumerate(mine):
            each = [weights[index : index + 1] for weights in networks]
            outputs = _outputs(each, torch.from_numpy(probabilities[np.ix_(test, own)]).flatten(0, 1)[None])[0]
            scores[np.ix_(test, own)] = (outputs[:, 1] - outputs[:, 0]).view(len(test), len(own)).numpy()
    return scores


def _fit(inputs: list[Float[Tensor, "_ c"]], is_in: list[Bool[Tensor, " _"]], rng: np.random.Generator) -> list[Tensor]:
    """Train one network a class, on [n, c] inputs each, by Adam, which moves each weight by its own gradient alone."""
    starts, batches, first = [], [], 0
    for members in is_in:
        starts.append(_start(inputs[0].shape[1], rng))
        batches.append(first + rng.integers(len(members), size=(NUM_STEPS, BATCH)))
        first += len(members)
    weights = [torch.stack(same).requires_grad_() for same in zip(*starts, strict=True)]
    rows, targets = torch.cat(inputs), torch.cat(is_in).long()
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE)
    for batch in torch.from_numpy(np.stack(batches, axis=1)):  # [k, b] places in `rows`
        squashed = _outputs(weights, rows[batch]).sigmoid()
        # A mean over each class's batch, summed over classes, so that each network has the gradient of its own loss.
        loss = F.cross_entropy(squashed.flatten(0, 1), targets[batch].flatten(), reduction="sum") / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [values.detach() for values in weights]


def _outputs(weights: list[Tensor], inputs: Float[Tensor, "k n c"]) -> Float[Tensor, "k n 2"]:
    """Return the two outputs of k networks before their sigmoid."""
    first, first_bias, second, second_bias = weights  # [k, c, h], [k, 1, h], [k, h, 2], [k, 1, 2]
    hidden = torch.baddbmm(first_bias, inputs, first).relu()
    return torch.baddbmm(second_bias, hidden, second)


def _start(num_classes: int, rng: np.random.Generator) -> list[Tensor]:
    """Draw weights as torch's linear layers do: uniform up to 1 / sqrt(fan-in)."""
    first, second = num_classes**-0.5, HIDDEN**-0.5
    shapes = [((num_classes, HIDDEN), first), ((1, HIDDEN), first), ((HIDDEN, 2), second), ((1, 2), second)]
    return [torch.from_numpy(rng.uniform(-bound, bound, size=shape)) for shape, bound in shapes]
