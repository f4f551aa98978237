"""What a worker does for a sweep: encode the features that runs need, and train runs."""

from __future__ import annotations

import functools
import os
import tomllib
from pathlib import Path

import torch

from hushprompt import files
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.features.cache import image_features
from hushprompt.federation import simulate
from hushprompt.federation.setup import load_fresh
from hushprompt.jobs.pool import Tell
from hushprompt.models.base import FeatureKind
from hushprompt.models.placing import place
from hushprompt.runs.arm import Arm
from hushprompt.runs.identity import identity_of
from hushprompt.runs.observer import NoProgress
from hushprompt.runs.records import ArmSummary, RoundRecord

NUM_KEPT = 2
"""Things that stay in a worker's memory: the last data set and the last model."""
load_kept = functools.lru_cache(maxsize=NUM_KEPT)(load_fresh)


class RunTeller(NoProgress):
    """Tells how far a whole run is, in rounds of all its arms."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._num_rounds = 0
        self._num_before = 0

    def on_arm(self, arm: Arm, index: int, num_arms: int, num_rounds_done: int) -> None:
        """An arm begins, or goes on; each arm counts as long as this one."""
        self._num_before = index * arm.num_rounds
        self._num_rounds = num_arms * arm.num_rounds
        self._tell(arm.label, self._num_before + num_rounds_done, self._num_rounds)

    def on_round(self, record: RoundRecord) -> None:
        """A round is done."""
        self._tell(record.arm, self._num_before + record.round_index, self._num_rounds)


def encode_features(tell: Tell, config_toml: str) -> tuple[str, str]:
    """Put the features that a config needs into the cache, with as many threads as the config allows.

    Returns:
        Digests of the data and of the backbone, as in a run's identity.
    """
    config = configs.parse(tomllib.loads(config_toml))
    dataset, backbone = load_kept(config.data), load_kept(config.backbone)
    torch.set_num_threads(config.runtime.num_threads or len(os.sched_getaffinity(0)))
    try:
        place(backbone, config.runtime.device)
        for split in dataset.splits.keys() & {"train", config.evaluation.split}:
            for kind in kinds_of(config):
                image_features(backbone, dataset, split, config.runtime.cache_path, config.features, tell, kind)
    finally:
        torch.set_num_threads(1)
    return identity_of(config, dataset, ()).data_digest, backbone.fingerprint


def train_run(tell: Tell, config_toml: str, folder: Path) -> str:
    """Make a run, or finish one that was stopped; return its scores in a few words."""
    config = configs.parse(tomllib.loads(config_toml))
    tell("", 0, 0)
    if not (folder / "config.toml").exists():
        files.write_text(folder / "config.toml", config.to_toml())
    return scores(simulate.run(config, folder, RunTeller(tell), load_kept))


def kinds_of(config: RunConfig) -> frozenset[FeatureKind]:
    """Return the kinds of features that the arms of a config need."""
    methods = (config.method, *(reference.method for reference in config.references))
    return frozenset(method.feature_kind for method in methods)


def scores(arms: list[ArmSummary]) -> str:
    """Say in a few words what came out of a run."""
    return f"local {100 * arms[-1].local:.1f}, neighbor {100 * arms[-1].neighbor:.1f}"
