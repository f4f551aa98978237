"""Features as files: images of any data set, encoded by any backbone, for whoever has no image tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hushprompt import files
from hushprompt.api.progress import watching
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.data.base import Dataset
from hushprompt.data.partitions.base import Partition
from hushprompt.errors import ConfigError
from hushprompt.features.cache import Progress, check_fit, image_features
from hushprompt.federation.setup import make_partition
from hushprompt.models.placing import place
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.runs.observer import Observer

Columns = dict[str, np.ndarray]
"""By name, as `data.name = "features"` reads them."""


def export_features(
    config: RunConfig | Mapping[str, object] | str | Path | None = None,
    *,
    out: str | Path = "features.npz",
    progress: bool | Observer = True,
    **sections: object,
) -> Path:
    """Write the features of a config's images with all that a run needs of them, as an .npz file.

    It holds `features` [n, d] (unit norm) and `labels` [n] of all splits, `split`, `client` (by the config's partition)
    and, where there are several, `domain` [n]; `class_names` [c], and of the backbone `text_features` [c, d] (those of
    its hand template), `logit_scale`, `template` and `fingerprint`. `data.name = "features"` reads it, and
    `backbone.name = "features"` takes its text features. It is as private as the images are.

    Args:
        config: as for `run`; data, backbone, partition, features and seed count.
        out: the file; an old one is replaced.
        progress: as for `run`.
        sections: as for `run`.

    Returns:
        `out`.

    Raises:
        ConfigError: `out` does not end in .npz, or the config is impossible for this data.
        DataError: an image cannot be read, or has no finite features.
    """
    path = Path(out)
    if path.suffix != ".npz":
        raise ConfigError(f"Features are written as .npz, got {path}. Give the file that ending.")
    resolved = whole(configs.resolve(config, sections))
    dataset = resolved.data.load()
    partition = make_partition(resolved, dataset)
    backbone = resolved.backbone.load()
    check_fit(backbone, dataset, resolved.features)
    model = PromptModel(backbone, dataset.class_names, device=place(backbone, resolved.runtime.device))
    model.check_scores()
    with watching(progress) as observer:
        arrays = examples_of(resolved, model, dataset, partition, observer.on_setup)
    files.write_arrays(path, {**arrays, **texts_of(model, dataset)})
    return path


def whole(config: RunConfig) -> RunConfig:
    """Return a config in which each image counts once, as it is, and clients train on all classes."""
    features = dataclasses.replace(config.features, num_views=1)
    evaluation = dataclasses.replace(config.evaluation, split="test", base_classes=None)
    return dataclasses.replace(config, features=features, evaluation=evaluation)


def examples_of(
    config: RunConfig, model: PromptModel, dataset: Dataset, partition: Partition, on_progress: Progress
) -> Columns:
    """Return features, labels, splits, clients and domains of the examples that clients hold, in the data's order."""
    found: dict[str, list[np.ndarray]] = {}
    for name, split in dataset.splits.items():
        where = config.runtime.cache_path
        stored = image_features(model.backbone, dataset, name, where, config.features, on_progress)
        holder = np.full(len(split), -1)
        for client in partition.clients:
            holder[client.indices[name]] = client.client_id
        own = np.flatnonzero(holder >= 0)
        columns: Columns = {
            "features": stored.array[own, 0],
            "labels": split.labels[own],
            "split": np.full(len(own), name),
            "client": np.array(partition.client_names)[holder[own]],
            "domain": np.array(dataset.domain_names)[split.domains[own]],
        }
        for column, values in columns.items():
            found.setdefault(column, []).append(values)
    arrays = {column: np.concatenate(parts) for column, parts in found.items()}
    return {column: values for column, values in arrays.items() if column != "domain" or len(dataset.domain_names) > 1}


def texts_of(model: PromptModel, dataset: Dataset) -> Columns:
    """Return class names, and what the backbone knows of them."""
    backbone = model.backbone
    arrays: Columns = {
        "class_names": np.array(dataset.class_names),
        "fingerprint": np.array(backbone.encoder or dataset.encoder or backbone.fingerprint),
        "logit_scale": np.array(backbone.logit_scale),
        "template": np.array(backbone.template),
    }
    if backbone.capabilities.text != "none":
        arrays["text_features"] = model.template_features.detach().cpu().numpy()
    return arrays
