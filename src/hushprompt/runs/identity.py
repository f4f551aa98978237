"""What a run is: by its content, not by where its files lie or when they were written.

`identity.json` is written at the first start, before anything is charged, and `summary.json` holds it too. Whoever goes
on with a run, pools runs, or looks at one again compares. Each line of the ledger names the digest.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hushprompt.config.overrides import flat
from hushprompt.config.schema import RunConfig
from hushprompt.config.values import CHOICES, to_plain
from hushprompt.data.base import Dataset, Split
from hushprompt.data.content import content_of
from hushprompt.data.groups import in_order
from hushprompt.errors import DataError, ResumeError
from hushprompt.extras import version_of
from hushprompt.registry import PACKAGE
from hushprompt.runs import records
from hushprompt.words import counted, first_of

LOG = logging.getLogger(__name__)
FILE = "identity.json"
LOCATIONS = (
    "data.root", "data.file", "data.validation_file", "data.test_file", "data.classes_file", "data.download",
    "backbone.checkpoint", "backbone.model", "backbone.text_features",
)  # fmt: skip
"""Settings that say where content lies; it is known by its fingerprint instead."""
NOT_RECORDED = "identity not recorded"
"""What is said of a run of an older version."""
LETTERS = 12
"""Of a fingerprint, in a message."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """One fingerprint of a run; two runs of one digest train on the same data with the same settings and model."""

    settings: dict[str, Any]
    """The resolved config by dotted key, without the runtime and without paths."""
    class_names: tuple[str, ...]
    """In label order."""
    clients: tuple[tuple[str, int], ...]
    """Name and training examples of each client, or groups where these are the unit, in the order of the run."""
    split: str = ""
    """Checksum of which example is in which split; empty at a federation's server, as `data` is."""
    data: dict[str, str] = field(default_factory=dict)
    """SHA-256 of what each split holds: bytes, labels, order; see `data/content.py`."""
    is_whole: bool = True
    """Whether every byte counts in `data`; if not, `features` must agree too."""
    backbone: str = ""
    """Fingerprint of weights, tokenizer and preprocessing."""
    features: dict[str, str] = field(default_factory=dict)
    """Checksum of the features of each split and kind, by the feature cache."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of hushprompt, torch and the packages that other classes of the config come from; no part of the digest."""

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of settings, classes, clients, data and backbone."""
        values = dataclasses.asdict(self)
        for name in ("features", "versions", "is_whole"):
            del values[name]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    @property
    def data_digest(self) -> str:
        """SHA-256 of the data alone: bytes, split and class names; empty at a federation's server."""
        if not self.data:
            return ""
        values = [self.data, self.split, self.class_names]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def differences(self, now: RunIdentity) -> list[str]:
        """Say in sentences what differs between this identity and that of `now`; what either does not know is equal."""
        found = [
            f"{key} was {self.settings[key]!r} and is {now.settings[key]!r}"
            for key in self.settings
            if key in now.settings and self.settings[key] != now.settings[key]
        ]
        found += _class_differences(self.class_names, now.class_names)
        found += _client_differences(self.clients, now.clients, self._counted)
        if self.split != now.split:
            found.append("other examples are in the splits, or examples have other names or labels")
        found += [
            f"the {name} data are not those of the start (fingerprint {was[:LETTERS]}, now {now.data[name][:LETTERS]})"
            for name, was in self.data.items()
            if now.data.get(name, was) != was
        ]
        if self.backbone and now.backbone and self.backbone != now.backbone:
            found.append(
                f"the backbone is another one (fingerprint {self.backbone[:LETTERS]}, now {now.backbone[:LETTERS]}): "
                "other weights, tokenizer or preprocessing"
            )
        if not found and not (self.is_whole and now.is_whole):
            found += [
                f"the features of {name} are not those of the start: examples changed in bytes that are not sampled, "
                "or another machine encoded them"
                for name, was in self.features.items()
                if now.features.get(name, was) != was
            ]
        return found

    @property
    def _counted(self) -> str:
        """What clients' sizes count."""
        is_group = self.settings.get("privacy.privacy_unit") == "group"
        return "training group" if is_group else "training example"

    def other_versions(self, now: RunIdentity) -> list[str]:
        """Say which packages have another version than at the start."""
        names = dict.fromkeys([*self.versions, *now.versions])
        pairs = [(name, self.versions.get(name, "none"), now.versions.get(name, "none")) for name in names]
        return [f"{name} {was}, now {here}" for name, was, here in pairs if was != here]


def identity_of(
    config: RunConfig,
    dataset: Dataset,
    clients: Iterable[tuple[str, int]],
    index: Mapping[str, np.ndarray] | None = None,
) -> RunIdentity:
    """Return the identity of a run before its model is loaded; reads examples, see `content_of`.

    Args:
        config: of the run.
        dataset: whose splits it uses.
        clients: name and public size of each, in order.
        index: examples of each split that count; None: all.
    """
    used = [name for name in dict.fromkeys(["train", config.evaluation.split]) if name in dataset.splits]
    contents = {name: content_of(dataset.splits[name], index[name] if index else None) for name in used}
    data = {name: content.digest for name, content in contents.items()}
    if config.privacy.privacy_unit == "group":
        data["group"] = _group_digest(dataset.splits["train"], index["train"] if index else None)
    return RunIdentity(
        settings=settings_of(config),
        class_names=dataset.class_names,
        clients=tuple(clients),
        split=dataset.split_checksum,
        data=data,
        is_whole=all(content.is_whole for content in contents.values()),
        versions=versions_of(config),
    )


def _group_digest(train: Split, index: np.ndarray | None) -> str:
    """Return a digest of which training examples belong together; of their names nothing."""
    if train.groups is None:
        return ""
    groups = in_order(train.groups if index is None else train.groups[index])
    return hashlib.sha256(groups.astype("<i8").tobytes()).hexdigest()


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return the resolved config by dotted key, without the runtime and without paths."""
    plain: dict[str, Any] = records.to_json(flat(config.meant()))
    return {key: value for key, value in plain.items() if not is_location(key, value)}


def is_location(key: str, value: Any = None) -> bool:
    """Tell whether a setting says where something lies, or how fast, and not what it is.

    >>> is_location("data.root"), is_location("backbone.weights", "/models/b.pt"), is_location("method.rank", 8)
    (True, True, False)
    """
    is_path = key.startswith(("data.", "backbone.")) and isinstance(value, str) and "/" in value
    return key in LOCATIONS or key.startswith("runtime.") or is_path


def versions_of(config: RunConfig) -> dict[str, str]:
    """Return the versions of hushprompt, torch, and the packages that other classes of the config come from."""
    plain = to_plain(config)
    tables = {name: [plain[name]] for name in CHOICES}
    tables["method"] += [reference["method"] for reference in plain["references"]]
    chosen = {name: {table["name"] for table in found} for name, found in tables.items()}
    packages = {
        entry.package for name, names in chosen.items() for entry in CHOICES[name].entries() if entry.name in names
    }
    others = sorted(packages - {"", PACKAGE})
    return {name: version_of(name) for name in (PACKAGE, "torch", *others)}


def read(folder: Path) -> RunIdentity | None:
    """Read the identity of a run folder; None in one of an older version, or that has not begun.

    Raises:
        DataError: the file is damaged.
    """
    return from_json(records.read_json(folder / FILE), folder / FILE) if (folder / FILE).exists() else None


def from_json(values: Any, where: Path | str) -> RunIdentity:
    """Read an identity from plain values; `where` is what errors name.

    Raises:
        DataError: they are damaged.
    """
    try:
        return msgspec.convert(values, type=RunIdentity)
    except msgspec.ValidationError as error:
        raise DataError(f"{where} is damaged: {error}.") from error


class IdentityFile:
    """The identity of one run folder, checked piece by piece as data, model and features are loaded."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        """Read what the run was begun with, if it was begun.

        Raises:
            DataError: the file is damaged.
        """
        self._folder, self._is_seeded = folder, config.privacy.noise_source == "seeded"
        self.recorded = read(folder)
        """None in a folder of an older version, and before `keep`."""
        self._now: RunIdentity

    @property
    def digest(self) -> str:
        """Of what the run was begun with; empty where that is not recorded."""
        return "" if self.recorded is None else self.recorded.digest

    def check(self, now: RunIdentity | None = None, **more: Any) -> None:
        """Refuse to go on with other data, another model, or with other settings than the run was begun with.

        Other versions refuse a seeded run, and are told of a secure one.

        Args:
            now: what is there today; None: what the last call was given.
            more: fields that are known by now.

        Raises:
            ResumeError: something differs, or a seeded run, which promises the same numbers, has other versions.
        """
        self._now = dataclasses.replace(now or self._now, **more)
        if self.recorded is None:
            return
        if found := self.recorded.differences(self._now):
            raise ResumeError(
                f"{self._folder} was begun with something else: {'; '.join(found)}. Put back what it was begun with, "
                "or start a new run: what was spent so far was spent on that."
            )
        other = "; ".join(self.recorded.other_versions(self._now))
        if other and self._is_seeded:
            raise ResumeError(
                f"{self._folder} is a seeded run and was begun with other versions: {other}. They may give other "
                "numbers. Install those versions, or start a new run."
            )
        if other and now is not None:  # not again where pieces are added
            LOG.warning("%s was begun with other versions: %s. Its guarantee stays the same.", self._folder, other)

    def keep(self, *, has_begun: bool) -> None:
        """Write the identity at the first start, when all of it is known.

        Args:
            has_begun: whether anything was charged or trained already.
        """
        if self.recorded is None and not has_begun:
            self.recorded = self._now
            records.write_json(self._folder / FILE, self.recorded)
        elif self.recorded is None:
            LOG.warning(
                "%s: %s. An older version began it, so nothing tells whether its data and backbone are the same.",
                self._folder, NOT_RECORDED,
            )  # fmt: skip


def _class_differences(was: Sequence[str], now: Sequence[str]) -> list[str]:
    if was == now:
        return []
    if sorted(was) == sorted(now):
        return ["the classes stand in another order"]
    return [f"classes: {_changes(was, now)}"]


def _client_differences(was: Sequence[tuple[str, int]], now: Sequence[tuple[str, int]], unit: str) -> list[str]:
    names, here = [name for name, _ in was], [name for name, _ in now]
    if set(names) != set(here):
        return [f"clients: {_changes(names, here)}"]
    sizes = dict(now)
    found = [f"{name} had {counted(size, unit)} and has {sizes[name]}" for name, size in was if sizes[name] != size]
    return found if found or names == here else ["the clients stand in another order"]


def _changes(was: Sequence[str], now: Sequence[str]) -> str:
    """Name some of what is gone and what is new."""
    gone, new = [name for name in was if name not in set(now)], [name for name in now if name not in set(was)]
    return " and ".join(f"{first_of(names, 3)} {verb}" for names, verb in ((gone, "gone"), (new, "new")) if names)
