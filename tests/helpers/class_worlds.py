"""A small world for class statistics: public images of many classes, and a private task of others, with texts."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from hushprompt.statistics.metric import Metrics, make_metrics

NUM_PUBLIC, NUM_CLASSES, WIDTH = 120, 12, 24


@dataclass(frozen=True)
class ClassWorld:
    """Public metric and private task."""

    metrics: Metrics
    features: torch.Tensor
    labels: torch.Tensor
    texts: torch.Tensor

    @property
    def metric(self):
        return self.metrics.at(128)


def class_world(images_per_class=30, seed=0):
    """Classes are Gaussian clouds around centers that texts tell with an error."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    modality, common = normal(WIDTH) * 0.5, normal(WIDTH)
    centers = normal(NUM_PUBLIC + NUM_CLASSES, WIDTH)
    texts = F.normalize(centers + 0.9 * normal(*centers.shape) + modality, dim=1)

    def images(classes):
        return F.normalize(centers[classes] + common + 1.2 * normal(len(classes), WIDTH), dim=1)

    public = torch.arange(NUM_PUBLIC).repeat(8)
    private = torch.arange(NUM_PUBLIC, NUM_PUBLIC + NUM_CLASSES).repeat(images_per_class)
    metrics = make_metrics(images(public), public, "clouds", "f" * 64, dict(enumerate(texts[:NUM_PUBLIC])))
    return ClassWorld(metrics, images(private), private - NUM_PUBLIC, texts[NUM_PUBLIC:])
