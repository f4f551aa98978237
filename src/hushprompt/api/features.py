"""Features as files: images of any data set, encoded by any backbone, and the public metric that is made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hushprompt import files
from hushprompt.api.progress import watching
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.config.values import to_plain
from hushprompt.data.arrays import read_arrays
from hushprompt.data.base import Dataset
from hushprompt.data.partitions.base import Partition
from hushprompt.data.readers.features import FeatureFile
from hushprompt.errors import ConfigError
from hushprompt.features.cache import Progress, check_fit, image_features
from hushprompt.federation.setup import make_partition
from hushprompt.models.base import Model, no_towers
from hushprompt.models.placing import place
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import DATASETS
from hushprompt.runs.observer import Observer
from hushprompt.statistics.metric import SHIPPED, cached_path, check_classes, fingerprint_of, make_metrics

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
    and, where there are several, `domain` [n], or `group` [n] where the data name them; `class_names` [c], and of the
    backbone `text_features` [c, d] (those of its hand template), `logit_scale`, `template` and `fingerprint`.
    `data.name = "features"` reads it, and `backbone.name = "features"` takes its text features. It is as private as the
    images are.

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
    _check_towers(backbone, "A file of features")
    check_fit(backbone, dataset, resolved.features)
    model = PromptModel(backbone, dataset.class_names, device=place(backbone, resolved.runtime.device))
    model.check_scores()
    with watching(progress) as observer:
        arrays = examples_of(resolved, model, dataset, partition, observer.on_setup)
    files.write_arrays(path, {**arrays, **texts_of(model, dataset)})
    return path


def make_metric(
    images: str | Path | None = None,
    *,
    features_file: str | Path | None = None,
    config: RunConfig | Mapping[str, object] | str | Path | None = None,
    out: str | Path | None = None,
    progress: bool | Observer = True,
    **sections: object,
) -> Path:
    """Make a backbone's public metric, which class statistics need, from labeled public images of any classes.

    The images must be public: nothing protects them, and a metric holds means of their features. Those of all splits
    count. Where the backbone has text, the features of its hand template on these classes say how far text is to be
    trusted; a metric made without text serves tasks without text alone.

    Args:
        images: a folder with a subfolder for each class, or the name of a data set, whose settings stand in `data`.
        features_file: instead of images, their features and labels, as `data.name = "features"` reads them; the file's
            own `text_features` and `fingerprint` are used, or, where a backbone is given, its text tower.
        config: as for `run`; its backbone, features, runtime and, if `images` is left out, data count.
        out: the .safetensors file; None: the cache, where `method.metric = "auto"` finds it.
        progress: as for `run`.
        sections: as for `run`.

    Returns:
        Where the metric is.

    Raises:
        ConfigError: images and features are both given; there is no such data set; or `out` is left out, and "auto"
            would not find the metric.
        DataError: fewer than 100 classes have two images or more, or an image cannot be read.
    """
    resolved = whole(_of_public(images, features_file, config, sections))
    dataset = resolved.data.load()
    labels = np.concatenate([split.labels for split in dataset.splits.values()])
    check_classes(torch.from_numpy(labels))
    backbone = resolved.backbone.load()
    _check_towers(backbone, "A metric")
    check_fit(backbone, dataset, resolved.features)
    fingerprint, path = _metric_of(backbone, dataset, out)
    model = PromptModel(backbone, dataset.class_names, device=place(backbone, resolved.runtime.device))
    model.check_scores()
    texts = () if backbone.capabilities.text == "none" else model.template_features.detach().cpu()
    where = resolved.runtime.cache_path
    with watching(progress) as observer:
        stored = [image_features(backbone, dataset, name, where, resolved.features, observer.on_setup)
                  for name in dataset.splits]  # fmt: skip
    features = np.concatenate([split.array[:, 0] for split in stored]).astype(np.float32)
    make_metrics(
        torch.from_numpy(features), torch.from_numpy(labels), f"{len(labels)} examples of {dataset.name}",
        fingerprint, dict(enumerate(texts)),
    ).write(path)  # fmt: skip
    return path


def _check_towers(backbone: Model, what: str) -> None:
    """Raise UnfitError of a generative model, which has no features of unit norm."""
    if backbone.capabilities.num_tokens is not None:
        raise no_towers(what)


def _of_public(
    images: str | Path | None,
    features_file: str | Path | None,
    config: RunConfig | Mapping[str, object] | str | Path | None,
    sections: Mapping[str, object],
) -> RunConfig:
    """Return the config whose data are the public examples, and whose backbone is the one that the metric is for."""
    if images is not None and features_file is not None:
        raise ConfigError("A metric is made from images or from a file of their features: give one of them.")
    if features_file is not None:
        tower = None
        if config is not None or "backbone" in sections:
            tower = to_plain(configs.resolve(config, sections).backbone)
        data = {"name": "features", "file": str(features_file)}
        sections = {**sections, "data": data, "backbone": _of_features(Path(features_file).expanduser(), tower)}
    elif images is not None:
        name, given = str(images), sections.get("data", {})
        if name not in DATASETS.names() and not Path(name).expanduser().is_dir():
            raise ConfigError(f"{name} is neither a folder nor a data set; `hushprompt list datasets` names these.")
        data = {"name": name} if name in DATASETS.names() else {"name": "folder", "root": name}
        sections = {**sections, "data": {**data, **(given if isinstance(given, Mapping) else {})}}
    return configs.resolve(config, sections)


def _of_features(path: Path, tower: Any) -> dict[str, Any]:
    """Return the backbone section for a file of features; `tower` is the one that was asked for, if any."""
    if tower is not None:
        return dict(tower) if tower["name"] == "features" else {"name": "features", "text_tower": tower}
    if "text_features" in read_arrays(path):
        return {"name": "features", "text_features": str(path)}
    return {"name": "features", "feature_dim": FeatureFile(file=str(path)).load().feature_dim}


def _metric_of(backbone: Model, dataset: Dataset, out: str | Path | None) -> tuple[str, Path]:
    """Return the fingerprint that a metric belongs to, and its file; ConfigError where nothing would find it."""
    fingerprint = backbone.encoder or dataset.encoder
    is_named = bool(fingerprint) or backbone.capabilities.modality != "features"
    if not is_named and (out is None or backbone.capabilities.text != "none"):
        raise ConfigError(
            f"{dataset.name} does not say which model made its features, so no run would find the metric. Add the "
            "array fingerprint, a word that names the model, to this file and to those that runs use, or give the "
            "backbone."
        )
    fingerprint = fingerprint or backbone.fingerprint
    if out is None and fingerprint == fingerprint_of(SHIPPED):
        raise ConfigError("The package has a metric for this model, and a run would take that one. Give a file: out.")
    return fingerprint, cached_path(fingerprint) if out is None else Path(out)


def whole(config: RunConfig) -> RunConfig:
    """Return a config in which each image counts once, as it is, and clients train on all classes."""
    features = dataclasses.replace(config.features, num_views=1)
    evaluation = dataclasses.replace(config.evaluation, split="test", base_classes=None)
    return dataclasses.replace(config, features=features, evaluation=evaluation)


def examples_of(
    config: RunConfig, model: PromptModel, dataset: Dataset, partition: Partition, on_progress: Progress
) -> Columns:
    """Return features, labels, splits, clients, domains and groups of the examples that clients hold, in order."""
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
        if split.groups is not None:
            groups = split.groups[own]
            columns["group"] = np.array(dataset.group_names)[groups] if dataset.group_names else groups
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
