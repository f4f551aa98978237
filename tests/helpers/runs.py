"""What several tests of runs share: a silent observer, and all files that a run leaves."""

import json

import pytest

from hushprompt.config import parse as configs
from hushprompt.federation.simulate import run

TOY = {
    "seed": 3,
    "backbone": {"name": "toy"},
    "data": {"name": "toy"},
    "partition": {"name": "disjoint_classes", "num_clients": 3},
    "sampling": {"name": "poisson", "sampling_prob": 0.5},
    "method": {"name": "dp_fpl", "num_ctx": 4, "rank": 2},
    "privacy": {"epsilon": 8.0, "delta": 1e-3},
    "training": {"num_rounds": 3},
}
"""A config of plain values that trains in a blink."""


class Silent:
    """An observer that keeps what it is told, and may stop the run after some rounds, as a kill would."""

    def __init__(self, stop_after=None):
        self.rounds, self.encoded, self.stop_after = [], set(), stop_after

    def on_setup(self, what, done, total):
        self.encoded.add(what)

    def on_arm(self, arm, index, num_arms, num_rounds_done):
        pass

    def on_round(self, record):
        self.rounds.append(record)
        if self.stop_after is not None and len(self.rounds) == self.stop_after:
            raise KeyboardInterrupt


def files(folder):
    """Everything a run leaves, without the clock, hashes of files that have it, and the checkpoint."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.parent.name != "checkpoint" and path.name != "manifest.json":
            text = path.read_bytes()
            if path.suffix in (".json", ".jsonl"):
                text = [json.loads(line, object_hook=without_clock) for line in json_lines(path)]
            found[str(path.relative_to(folder))] = text
    return found


def json_lines(path):
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def without_clock(values):
    return {key: value for key, value in values.items() if key not in ("seconds", "config_identity")}


def fresh(tmp_path, name="run"):
    folder = tmp_path / name
    folder.mkdir()
    return folder


def run_with(values, tmp_path, name="run", stop_after=None):
    """Run plain values in a folder of their own; give the folder, the arms and the records."""
    config = configs.parse({**values, "runtime": {"cache_dir": str(tmp_path / "cache"), **values.get("runtime", {})}})
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    watcher = Silent(stop_after)
    return folder, run(config, folder, watcher), watcher.rounds


def kill_at(monkeypatch, owner, name, calls):
    """End the process before a call of a function, counted from 0 over all processes."""
    original, count = getattr(owner, name), iter(range(100))

    def killed(self, *given, **named):
        if next(count) in calls:
            raise KeyboardInterrupt
        return original(self, *given, **named)

    monkeypatch.setattr(owner, name, killed)


def killed_and_resumed(values, tmp_path, monkeypatch, owner, name, calls):
    """Run plain values, killed before each of these calls of a function and begun again; give the folder."""
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, calls)
        for _ in calls:
            with pytest.raises(KeyboardInterrupt):
                run_with(values, tmp_path, "stopped")
    return run_with(values, tmp_path, "stopped")[0]
