"""Rows to compare with that cannot run: they are left out with a line, and the run's own method is refused."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

import hushprompt as hp
from helpers.runs import Silent, fresh, run_with
from helpers.toy_metric import toy_metric
from hushprompt.config import parse as configs
from hushprompt.config.values import to_plain
from hushprompt.errors import UnfitError
from hushprompt.models.toy import Toy
from hushprompt.statistics.metric import Metrics, cached_path, read_metrics

STATISTICS = {"name": "class_statistics"}
LEFT_OUT = "The table has no row Class statistics"


@pytest.fixture
def config(toy_values, tmp_path, monkeypatch):
    """Class statistics beside DP-FPL, on a backbone for which nobody made a metric yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    values = {**toy_values, "references": [{"method": {"name": "zero_shot"}}, {"method": STATISTICS}]}
    return configs.parse({**values, "runtime": {"num_threads": 1}})


def make_metric():
    """Put a metric of the toy backbone where `hushprompt features metric` puts it."""
    path = cached_path(Toy().load().fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(toy_metric(), path)


def test_without_a_metric_the_row_is_left_out_with_the_command_that_makes_one_and_stays_so(config, tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        hp.run(config, out=tmp_path / "run", progress=Silent(stop_after=1))
    (line,) = [record.message for record in caplog.records if LEFT_OUT in record.message]
    assert "`hushprompt features metric`" in line
    make_metric()  # a run that was begun without it goes on without it
    run = hp.resume(tmp_path / "run", progress=False)
    assert [arm.method for arm in run.arms] == ["zero_shot", "dp_fpl"]
    assert "class_statistics" not in (run.folder / "config.toml").read_text()
    assert hp.verify(run).is_consistent
    again = hp.run(config, out=tmp_path / "again", progress=False)
    assert [arm.method for arm in again.arms] == ["zero_shot", "class_statistics", "dp_fpl"]
    assert hp.verify(again).is_consistent
    told = "\n".join(again.table().notes)
    assert "class_statistics, epsilon 8: for " in told
    assert "no sampling" in told  # its epsilon does not mean what that of DP-FPL does
    both = hp.compare([run, again])
    assert sorted(group.title for table in both.groups for group in table.groups) == [
        "Class statistics",
        "DP-FPL",
        "zero-shot template",
    ]


def test_the_runs_own_method_and_rows_of_a_sweep_are_refused(config, tmp_path):
    with pytest.raises(UnfitError, match="features metric"):
        hp.run(config, out=tmp_path / "run", method="class_statistics", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UnfitError, match="features metric"):
        run_with(to_plain(config), fresh(tmp_path))


def test_a_metric_without_texts_leaves_out_the_row_of_a_task_with_texts(config, tmp_path, caplog):
    metrics = read_metrics(Path(toy_metric()), Toy().load().fingerprint)
    of_rank = {rank: dataclasses.replace(metric, kappa=None) for rank, metric in metrics.of_rank.items()}
    Metrics(of_rank, metrics.origin).write(tmp_path / "blind.safetensors")
    method = {**STATISTICS, "metric": str(tmp_path / "blind.safetensors")}
    run = hp.run(config, out=tmp_path / "run", references=[{"method": method}], progress=False)
    assert [arm.method for arm in run.arms] == ["dp_fpl"]
    assert "was made without class texts" in caplog.text
    with pytest.raises(UnfitError, match="was made without class texts"):
        hp.run(config, out=tmp_path / "own", references=[], method=method, progress=False)


SETTINGS = {
    "local steps": {
        "training": {"local_steps": 2}, "sampling": {"steps_per_round": 2}, "privacy": {"noise_at": "client"}
    },
    "equal weights": {"training": {"weighting": "equal"}, "privacy": {"noise_at": "client"}},
    "adaptive clipping": {"privacy": {"adaptive_quantile": 0.5}},
    "new classes": {"evaluation": {"base_classes": 0.5}},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_row_that_cannot_have_the_runs_settings_is_left_out(config, name, caplog):
    plan = hp.plan(config, **SETTINGS[name])
    assert [arm["method"] for arm in plan.privacy["arms"]] == ["zero_shot", "dp_fpl"]
    assert caplog.text.count(LEFT_OUT) == 1
    with pytest.raises(UnfitError):
        hp.plan(config, method="class_statistics", **SETTINGS[name])


def test_a_row_that_is_the_runs_own_again_is_no_second_one(config, caplog):
    plan = hp.plan(config, references=["zero_shot", {"method": config.method}, {"epsilon": 1.0}])
    assert [arm["arm"] for arm in plan.privacy["arms"]] == ["zero_shot", "dp_fpl, epsilon 1", "dp_fpl, epsilon 8"]
    assert not caplog.records


def test_rows_that_need_a_text_tower_are_left_out_where_there_are_features_alone(config, tmp_path, caplog):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", features=rng.normal(size=(60, 6)), labels=np.arange(60) % 3)
    run = hp.run(
        config, out=tmp_path / "run", data={"name": "features", "file": str(tmp_path / "mine.npz")},
        backbone={"name": "features", "feature_dim": 6}, partition={"name": "iid", "num_clients": 2},
        method="class_means", references=["promptfl", "zero_shot", "least_squares"], progress=False,
    )  # fmt: skip
    assert [arm.method for arm in run.arms] == ["least_squares", "class_means"]
    assert [record.message.count("The table has no row") for record in caplog.records if "row" in record.message] == [
        1, 1,
    ]  # fmt: skip
