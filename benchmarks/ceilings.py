"""What the embedded task's features hold without privacy: `python -m benchmarks ceilings`.

Tip-Adapter in its training-free form (Zhang et al., ECCV 2022, arXiv:2207.09930) keeps every training image's feature
and label in a cache. It is no method of the training loop: there only sums leave a client, to which an example adds
whatever row it likes of its own, but no row of its own place, and a cache is nothing but such rows.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hushprompt.config import parse as configs
from hushprompt.features.cache import image_features
from hushprompt.prompts.prompt_model import PromptModel

ALPHAS, BETAS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0), (2.75, 5.5, 11.0, 22.0, 44.0)
"""Weight of the cache against text, and its sharpness: 1 and 5.5 are the paper's before a search."""


class Scored(NamedTuple):
    """The best setting on validation images, and percentages of right answers."""

    alpha: float
    beta: float
    validation: float
    test: float


@dataclass(frozen=True)
class Cache:
    """All clients' training images, pooled: nothing protects them."""

    features: Tensor
    """[n, d] unit norm."""
    labels: Tensor
    """[n]."""
    text_features: Tensor
    """[c, d] unit norm."""
    logit_scale: float

    def logits(self, images: Tensor, alpha: float, beta: float) -> Tensor:
        """Return scale x . e_c + alpha sum over cached f of class c of exp(-beta (1 - x . f)) for unit-norm [m, d]."""
        nearness = (-beta * (1 - images @ self.features.T)).exp()
        votes = nearness @ F.one_hot(self.labels, len(self.text_features)).to(nearness)
        return self.logit_scale * images @ self.text_features.T + alpha * votes


def main() -> None:
    """Choose both settings on validation images, score test images once, print."""
    config = configs.load(configs.locate(None))
    dataset, backbone = config.data.load(), config.backbone.load()
    model = PromptModel(backbone, dataset.class_names)
    images, labels = {}, {}
    for split in ("train", "validation", "test"):
        stored = image_features(backbone, dataset, split, config.runtime.cache_path, config.features)
        images[split], labels[split] = stored.tensor(), torch.from_numpy(dataset.splits[split].labels)
    cache = Cache(images["train"], labels["train"], model.template_features, model.logit_scale)

    def accuracy(split: str, alpha: float, beta: float) -> float:
        right = cache.logits(images[split], alpha, beta).argmax(dim=1) == labels[split]
        return 100 * float(right.double().mean())

    grid = [(accuracy("validation", *pair), *pair) for pair in itertools.product(ALPHAS, BETAS)]
    for validation, alpha, beta in (max(grid), (accuracy("validation", 1.0, 5.5), 1.0, 5.5)):
        print(Scored(alpha, beta, validation, accuracy("test", alpha, beta)))  # noqa: T201
