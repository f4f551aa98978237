"""Runs for the report: made by hand, for figures whose every position is known, or trained on the toy model."""

import math

import numpy as np

from helpers.runs import Silent
from hushprompt import files
from hushprompt.config import parse as configs
from hushprompt.federation import simulate
from hushprompt.runs.reader import FinishedRun, Holdings
from hushprompt.runs.records import ArmSummary

TRAINED = {"name": "dp_fpl", "rank": 8}


def result(label="dp_fpl, epsilon 2", epsilon=2.0, local=0.5, neighbor=0.4, **changes):
    method = label.partition(",")[0]
    values = {
        "arm": label,
        "method": method,
        "title": {"dp_fpl": "DP-FPL", "zero_shot": "zero-shot template"}.get(method, label),
        "epsilon": epsilon,
        "delta": 1e-5,
        "audience": "personal",
        "local": local,
        "neighbor": neighbor,
        "harmonic_mean": 0.45,
        "worst_client": 0.3,
        "calibration_error": 0.1,
        "seconds": 1.0,
        "seed": 1,
        "num_rounds": 3,
        "per_client": [{"local": local, "neighbor": neighbor}],
        "per_class": [],
    }
    return ArmSummary(**{**values, **changes})


def run(seed=1, results=None, *, name="run", rounds=None, config=None, holdings=None, confusion=None, privacy=None,
        audit=None):  # fmt: skip
    results = [result()] if results is None else results
    values = {
        "seed": seed,
        "data": {"name": "toy"},
        "method": TRAINED,
        "privacy": {"epsilon": 2.0, "delta": 1e-5},
        "training": {"num_rounds": 3},
        "references": [{"method": {"name": "zero_shot"}}] * (len(results) - 1),
        "runtime": {"num_threads": seed},
        **(config or {}),
    }
    return FinishedRun(
        name=name,
        config=values,
        config_text="",
        arms=results,
        provenance={},
        rounds=rounds or {},
        privacy=privacy,
        audit=audit,
        holdings=holdings,
        confusion=confusion or {},
    )


def records(locals_, neighbors=None, epsilons=None):
    """Records of one arm from its course; None where a round was not scored."""
    neighbors = locals_ if neighbors is None else neighbors
    epsilons = [math.nan] * len(locals_) if epsilons is None else epsilons
    return [
        {"round_index": at + 1, "local": local, "neighbor": neighbor, "epsilon": {"public": epsilon}}
        for at, (local, neighbor, epsilon) in enumerate(zip(locals_, neighbors, epsilons, strict=True))
    ]


def holdings(train):
    train = np.array(train)
    return Holdings(
        class_names=[f"class {label}" for label in range(train.shape[1])],
        client_names=[f"client {client}" for client in range(train.shape[0])],
        train=train,
    )


VALUES = {
    "backbone": {"name": "toy"},
    "data": {"name": "toy"},
    "partition": {"name": "disjoint_classes", "num_clients": 3},
    "sampling": {"name": "disjoint", "steps_per_round": 2},
    "method": {"name": "dp_fpl", "num_ctx": 4, "rank": 2},
    "privacy": {"epsilon": 8.0, "delta": 1e-3},
    "training": {"num_rounds": 3},
    "references": [
        {"method": {"name": "zero_shot"}},
        {"method": {"name": "promptfl", "num_ctx": 4}},
        {"epsilon": float("inf")},
    ],
}


def train(folder, cache, **changes):
    """Leave a finished run in a new folder."""
    config = configs.parse({**VALUES, **changes, "runtime": {"cache_dir": str(cache)}})
    files.write_text(folder / "config.toml", config.to_toml())
    simulate.run(config, folder, Silent())
    return folder
