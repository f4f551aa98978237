"""The membership attack of the DP-FPL paper's code: one small network per class, trained on shadow models.

Source: Shokri et al. 2017 (arXiv:1610.05820), as used by Tran et al. 2025 (arXiv:2501.13904): softmax vector of
c classes -> 32 -> 2, ReLU between, a sigmoid on the outputs followed by cross-entropy, Adam with rate 0.01. What
differs: members are examples that were trained on (the released code takes images that its truncation had removed),
members and non-members are exchangeable, batches hold 64 examples instead of one, the number of steps is fixed, and the
score is the difference of the two outputs, so that the whole ROC curve can be read, not its accuracy alone.

The network is so small that calling a framework would cost most of its time, so its gradient is written out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit, softmax

HIDDEN = 32
LEARNING_RATE = 0.01
MOMENTS = (0.9, 0.999)
BATCH = 64
NUM_STEPS = 400
"""Batches of each class; with 64 shadow models and 40 candidates a class, about twenty passes."""
NUM_FOLDS = 2
"""Shadow models are cut in two, and each half is attacked by networks that were trained on the other half."""


@dataclass(frozen=True)
class Network:
    """Weights and biases of two layers."""

    first: Float[np.ndarray, "c h"]
    first_bias: Float[np.ndarray, " h"]
    second: Float[np.ndarray, "h 2"]
    second_bias: Float[np.ndarray, " 2"]

    def hidden(self, inputs: Float[np.ndarray, "*n c"]) -> Float[np.ndarray, "*n h"]:
        """Return the first layer's activations."""
        return np.maximum(inputs @ self.first + self.first_bias, 0.0)

    def outputs(self, inputs: Float[np.ndarray, "*n c"]) -> Float[np.ndarray, "*n 2"]:
        """Return the two outputs before their sigmoid."""
        return self.hidden(inputs) @ self.second + self.second_bias


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
    for held_out in range(NUM_FOLDS):
        train, test = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
        for label in np.unique(labels):
            mine = np.flatnonzero(labels == label)
            inputs = probabilities[np.ix_(train, mine)].reshape(-1, probabilities.shape[-1])
            network = _fit(inputs, is_in[np.ix_(train, mine)].ravel(), rng)
            outputs = network.outputs(probabilities[np.ix_(test, mine)])
            scores[np.ix_(test, mine)] = outputs[..., 1] - outputs[..., 0]
    return scores


def _fit(inputs: Float[np.ndarray, "n c"], is_in: Bool[np.ndarray, " n"], rng: np.random.Generator) -> Network:
    """Train one class's network by Adam (Kingma & Ba 2015, arXiv:1412.6980)."""
    start = _start(inputs.shape[1], rng)
    values = [start.first, start.first_bias, start.second, start.second_bias]
    moments = [(np.zeros_like(value), np.zeros_like(value)) for value in values]
    one_hot = np.stack([~is_in, is_in], axis=1).astype(float)
    for step in range(1, NUM_STEPS + 1):
        batch = rng.integers(len(is_in), size=BATCH)
        grads = _gradients(Network(*values), inputs[batch], one_hot[batch])
        moments = [
            (MOMENTS[0] * first + (1 - MOMENTS[0]) * grad, MOMENTS[1] * second + (1 - MOMENTS[1]) * grad**2)
            for (first, second), grad in zip(moments, grads, strict=True)
        ]
        down = 1 - MOMENTS[0] ** step, 1 - MOMENTS[1] ** step
        values = [
            value - LEARNING_RATE * (first / down[0]) / (np.sqrt(second / down[1]) + 1e-8)
            for value, (first, second) in zip(values, moments, strict=True)
        ]
    return Network(*values)


def _gradients(
    network: Network, inputs: Float[np.ndarray, "b c"], one_hot: Float[np.ndarray, "b 2"]
) -> list[np.ndarray]:
    """Return the gradients of the mean cross-entropy of the sigmoids, in the order of the network's fields."""
    hidden = network.hidden(inputs)
    squashed = expit(hidden @ network.second + network.second_bias)
    of_outputs = (softmax(squashed, axis=1) - one_hot) / len(inputs) * squashed * (1 - squashed)  # [b, 2]
    of_hidden = of_outputs @ network.second.T * (hidden > 0)  # [b, h]
    return [inputs.T @ of_hidden, of_hidden.sum(axis=0), hidden.T @ of_outputs, of_outputs.sum(axis=0)]


def _start(num_classes: int, rng: np.random.Generator) -> Network:
    """Draw weights as torch's linear layers do: uniform up to 1 / sqrt(fan-in)."""
    first, second = num_classes**-0.5, HIDDEN**-0.5
    return Network(
        rng.uniform(-first, first, size=(num_classes, HIDDEN)),
        rng.uniform(-first, first, size=HIDDEN),
        rng.uniform(-second, second, size=(HIDDEN, 2)),
        rng.uniform(-second, second, size=2),
    )
