"""TensorBoard and MLflow, read back with their own readers; no point twice and none lost, however a run was stopped."""

import dataclasses
import json
import sys

import pytest

from helpers.runs import Silent
from hushprompt.errors import ConfigError
from hushprompt.federation.simulate import run
from hushprompt.runs import records
from hushprompt.runs.tracking import scalars, tracking_uri


def with_runtime(config, **settings):
    return dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, **settings))


def expected(folder):
    """Every value of the records, by arm, name and round."""
    return {
        (record.arm, name, record.round_index): pytest.approx(value, rel=1e-6)
        for record in records.recorded(folder)
        for name, value in scalars(record).items()
    }


def run_in_pieces(config, folder, stops):
    """Run, stopped after some rounds as often as said, then to the end."""
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run(config, folder, Silent(stop))
    run(config, folder, Silent())


def events(folder):
    """Every scalar of the event files, by arm, name and round; each may be there once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    labels = {record.arm.replace(", ", "_").replace(" ", "_"): record.arm for record in records.recorded(folder)}
    found = {}
    for below in sorted((folder / "tensorboard").iterdir()):
        read = EventAccumulator(str(below))
        read.Reload()
        for name in read.Tags()["scalars"]:
            for event in read.Scalars(name):
                key = (labels[below.name], name, event.step)
                assert key not in found, key
                found[key] = event.value
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("stops", [[], [2], [1, 3]], ids=["whole", "stopped", "stopped twice"])
def test_tensorboard_has_every_round_once(toy_config, tmp_path, stops):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"
    folder.mkdir()
    run_in_pieces(with_runtime(toy_config, tensorboard=True), folder, stops)
    found = events(folder)
    assert found == expected(folder)
    assert {name for _, name, _ in found} >= {
        "accuracy/local",
        "privacy/simulation_epsilon_personal",
        "not_private/loss",
    }


def logged(folder, place):
    """Every metric of the MLflow runs, by arm, name and round; each may be there once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri(str(place)))
    found = {}
    for label, run_id in json.loads((folder / "mlflow.json").read_text()).items():
        kept = client.get_run(run_id)
        assert kept.info.status == "FINISHED"
        assert kept.data.tags["hushprompt.arm"] == label
        for name in kept.data.metrics:
            for metric in client.get_metric_history(run_id, name):
                key = (label, name, metric.step)
                assert key not in found, key
                found[key] = metric.value
    runs = client.search_runs([client.get_experiment_by_name("hushprompt").experiment_id])
    assert len(runs) == len(json.loads((folder / "mlflow.json").read_text()))
    return found


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_every_round_once(toy_config, tmp_path):
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package)
    folder, place = tmp_path / "run", tmp_path / "experiments"
    folder.mkdir()
    run_in_pieces(with_runtime(toy_config, mlflow=str(place)), folder, stops=[1, 3])
    found = logged(folder, place)
    assert found == expected(folder)
    assert len({arm for arm, _, _ in found}) == 2


def test_what_no_guarantee_covers_is_named_so_and_infinite_values_are_left_out(toy_config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    run(toy_config, folder, Silent())
    record = records.recorded(folder)[-1]
    assert {name for name in scalars(record) if "loss" in name} == {"not_private/loss"}
    without = dataclasses.replace(record, epsilon={"public": float("inf")}, loss=float("nan"), local=float("nan"))
    assert not {"privacy/simulation_epsilon_public", "not_private/loss", "accuracy/local"} & set(scalars(without))


@pytest.mark.parametrize(
    ("settings", "module", "extra"),
    [({"tensorboard": True}, "torch.utils.tensorboard", "tensorboard"), ({"mlflow": "x"}, "mlflow", "mlflow")],
)
def test_a_missing_package_is_named_before_anything_is_trained(
    toy_config, tmp_path, monkeypatch, settings, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install '.*\[{extra}\]'"):
        run(with_runtime(toy_config, **settings), tmp_path, Silent())
    assert not (tmp_path / "records.jsonl").exists()


def test_tracking_changes_no_result_and_no_identity(toy_config, tmp_path):
    pytest.importorskip("tensorboard")
    left = []
    for name, settings in (("with", {"tensorboard": True}), ("without", {})):
        folder = tmp_path / name
        folder.mkdir()
        config = with_runtime(toy_config, **settings)
        run(config, folder, Silent())
        lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        left.append((config.identity(), [{**line, "seconds": 0} for line in lines]))
    assert left[0] == left[1]
