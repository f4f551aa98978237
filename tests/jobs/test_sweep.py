import json
import tomllib

import pytest

from helpers.inline_pool import InlinePool
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError
from hushprompt.jobs import job, sweep
from hushprompt.jobs.sweep import QuietObserver
from hushprompt.jobs.sweep_folder import RunState


class Listening(QuietObserver):
    """Notes what a sweep tells."""

    def __init__(self):
        self.started, self.encoded, self.progress, self.ended = [], [], [], []

    def on_start(self, runs, num_workers):
        self.started.append([run.state for run in runs])

    def on_encoding(self, what, done, total):
        self.encoded.append(what)

    def on_progress(self, run, worker, done, total):
        self.progress.append((run.planned.name, done, total))

    def on_end(self, run):
        self.ended.append((run.planned.name, run.state, run.scores, run.error))


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    monkeypatch.setattr(sweep, "WorkerPool", InlinePool)


def test_a_sweep_makes_what_is_not_done_and_tells_how_it_gets_on(toy_sweep, tmp_path):
    first, second = Listening(), Listening()
    runs = sweep.sweep(toy_sweep(), out=tmp_path / "runs", observer=first)
    assert [run.state for run in runs] == [RunState.DONE] * 4
    assert first.started == [[RunState.WAITING] * 4]
    assert set(first.encoded) == {"encoding toy train", "encoding toy test"}
    assert first.progress[:5] == [
        ("dp_fpl-seed1", done, total) for done, total in [(0, 0), (0, 3), (1, 3), (2, 3), (3, 3)]
    ]
    assert all(scores.startswith("local ") for _, _, scores, _ in first.ended)
    assert sweep.sweep(toy_sweep(), out=tmp_path / "runs", observer=second) != []
    assert (second.started, second.ended) == ([[RunState.DONE] * 4], [])


def test_plain_values_and_a_config_are_a_sweep_too(toy_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"base": toy_config, "axes": {"seed": [1, 2]}}
    runs = sweep.sweep(values, overrides=["training.num_rounds=1"])
    assert [str(run.folder) for run in runs] == ["runs/sweep/seed1", "runs/sweep/seed2"]
    assert [configs.load(run.folder / "config.toml").seed for run in runs] == [1, 2]
    content = json.loads((tmp_path / "runs" / "sweep" / "sweep.json").read_text())["content"]
    assert tomllib.loads(content)["axes"] == {"seed": [1, 2]}
    _, again = sweep.plan_sweep(tomllib.loads(content), overrides=["training.num_rounds=1"])
    assert [run.state for run in again] == [RunState.DONE] * 2
    with pytest.raises(ConfigError, match="The sweep needs base ="):
        sweep.plan_sweep({"axes": {}})


def test_runs_whose_features_cannot_be_made_fail_without_being_tried(toy_sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "train_run", None)
    (tmp_path / "file").touch()
    listening = Listening()
    runs = sweep.sweep(
        toy_sweep(), out=tmp_path / "runs", overrides=[f"runtime.cache_dir={tmp_path / 'file'}"], observer=listening
    )
    assert [run.state for run in runs] == [RunState.FAILED] * 4
    assert all("cannot be written" in run.error for run in runs)
    assert len(listening.ended) == 4


def test_a_run_that_fails_stops_no_other_and_is_tried_again(toy_sweep, tmp_path, monkeypatch):
    path = toy_sweep()
    train = job.train_run

    def failing(tell, config, folder):
        if folder.name == "promptfl-seed1":
            raise ConfigError("No cheese.")
        return train(tell, config, folder)

    with monkeypatch.context() as patch:
        patch.setattr(job, "train_run", failing)
        runs = sweep.sweep(path, out=tmp_path / "runs")
    assert [(run.planned.name, run.error) for run in runs if run.state is RunState.FAILED] == [
        ("promptfl-seed1", "No cheese.")
    ]
    written = json.loads((tmp_path / "runs" / "sweep.json").read_text())["runs"]
    assert [run["error"] for run in written if run["state"] == "failed"] == ["No cheese."]
    listening = Listening()
    runs = sweep.sweep(path, out=tmp_path / "runs", observer=listening)
    assert [name for name, *_ in listening.ended] == ["promptfl-seed1"]
    assert {run.state for run in runs} == {RunState.DONE}
