"""A public metric for the toy backbone, from made-up features of nobody."""

import functools
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from hushprompt.methods.base import PublicTask
from hushprompt.methods.class_statistics import ClassStatistics
from hushprompt.models.toy import Toy
from hushprompt.statistics.metric import make_metrics

NUM_PUBLIC = 120


@functools.cache
def toy_metric(fingerprint="", feature_dim=6, has_texts=True):
    """Return the file, as a config names it, of the toy backbone or another one: texts stand near their classes."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    texts = F.normalize(normal(NUM_PUBLIC, feature_dim), dim=1)
    labels = torch.arange(NUM_PUBLIC).repeat(4)
    images = F.normalize(
        (texts + 0.3 * normal(NUM_PUBLIC, feature_dim))[labels] + 0.3 * normal(len(labels), feature_dim)
    )
    path = Path(tempfile.mkdtemp()) / "toy.safetensors"
    known = dict(enumerate(texts)) if has_texts else None
    make_metrics(images, labels, "made up", fingerprint or Toy().load().fingerprint, known).write(path)
    return str(path)


def task_of(sizes=(7,), classes=None, *, noise=1.0, clip_norm=1.0, noise_at="server", num_late=0):
    """Return what is public of a federation."""
    return PublicTask(
        client_sizes=tuple(sizes),
        client_classes=(None,) * len(sizes) if classes is None else tuple(classes),
        noise_multiplier=noise,
        clip_norm=clip_norm,
        noise_at=noise_at,
        num_late=num_late,
    )


def statistics_of(sizes=(7,), classes=None, *, noise=1.0, clip_norm=1.0, noise_at="server", num_late=0, **settings):
    """Return the method as it runs on a task."""
    task = task_of(sizes, classes, noise=noise, clip_norm=clip_norm, noise_at=noise_at, num_late=num_late)
    return ClassStatistics(**{"metric": toy_metric(), **settings}).of_task(task)
