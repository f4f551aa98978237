"""The membership attack of the DP-FPL paper's code: one small network per class, trained on shadow models.

Source: Shokri et al. 2017 (arXiv:1610.05820), as used by Tran et al. 2025 (arXiv:2501.13904): softmax vector of
c classes -> 32 -> 2, ReLU between, a sigmoid on the outputs followed by cross-entropy, Adam with rate 0.01. What
differs: members are examples that were trained on (the released code takes images that its truncation had removed),
members and non-members are exchangeable, batches hold 64 examples instead of one, the number of steps is fixed, and the
score is the difference of the two outputs, so that the whole ROC curve can be read, not its accuracy alone.
"""

from __future__ import annotations

import numpy as np
import torch
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
    """Give scores of all candidates under all models; no model is attacked by networks that have seen it.

    Args:
        log_probs: [s, m, c] what each model says of each candidate.
        labels: [m] the candidates' classes.
        is_in: [s, m] which model trained on which candidate.
        rng: stream of starts and batches.
    """
    probabilities = torch.from_numpy(np.exp(log_probs)).float()
    scores = np.zeros(is_in.shape)
    fold = np.arange(len(is_in)) % NUM_FOLDS
    for held_out in range(NUM_FOLDS):
        train, test = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
        for label in np.unique(labels):
            mine = np.flatnonzero(labels == label)
            inputs = probabilities[train][:, mine].flatten(0, 1)
            targets = torch.from_numpy(is_in[np.ix_(train, mine)].astype(np.int64)).flatten()
            network = _fit(inputs, targets, rng)
            scores[np.ix_(test, mine)] = _score(network, probabilities[test][:, mine]).numpy()
    return scores


def _fit(
    inputs: Float[Tensor, "n c"], targets: Int[Tensor, " n"], rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train one class's network."""
    parameters = [_uniform(rng, shape, fan_in) for shape, fan_in in _shapes(inputs.shape[1])]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    with torch.enable_grad():
        for _ in range(NUM_STEPS):
            batch = torch.from_numpy(rng.integers(len(targets), size=BATCH))
            outputs = _forward(parameters, inputs[batch]).sigmoid()
            loss = torch.nn.functional.cross_entropy(outputs, targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    first, first_bias, second, second_bias = (parameter.detach() for parameter in parameters)
    return first, first_bias, second, second_bias


def _score(network: tuple[Tensor, ...], inputs: Float[Tensor, "s m c"]) -> Float[Tensor, "s m"]:
    """Give the output for "member" minus the one for "not a member"."""
    outputs = _forward(list(network), inputs)
    return outputs[..., 1] - outputs[..., 0]


def _forward(parameters: list[Tensor], inputs: Float[Tensor, "*n c"]) -> Float[Tensor, "*n 2"]:
    """Two layers."""
    first, first_bias, second, second_bias = parameters
    return (inputs @ first + first_bias).relu() @ second + second_bias


def _shapes(num_classes: int) -> list[tuple[tuple[int, ...], int]]:
    """Give shape and fan-in of weights and biases."""
    return [((num_classes, HIDDEN), num_classes), ((HIDDEN,), num_classes), ((HIDDEN, 2), HIDDEN), ((2,), HIDDEN)]


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Tensor:
    """Draw a start as torch's linear layers do."""
    bound = fan_in**-0.5
    return torch.from_numpy(rng.uniform(-bound, bound, size=shape)).float().requires_grad_()
