import json
import math

import numpy as np
import pytest

from helpers.fake_runs import with_settings, write_run
from hushprompt.errors import DataError
from hushprompt.runs import reader, records
from hushprompt.runs.records import RoundRecord


@pytest.fixture
def folder(toy_values, tmp_path):
    """A finished run of one arm with a round, class counts and predictions."""
    folder = write_run(tmp_path / "run", with_settings(toy_values, "dp_fpl", seed=5), [(0.5, 0.25)])
    record = RoundRecord(
        arm="dp_fpl", round_index=1, seconds=0.1, loss=math.nan, local=0.5, neighbor=0.25, harmonic_mean=0.33,
        worst_client=0.1, bytes_up=8, bytes_down=8, epsilon={"public": 1.0, "personal": math.inf},
    )  # fmt: skip
    records.append_record(folder / "records.jsonl", record)
    counts = {"class_names": ["a", "b"], "client_names": ["one"], "train": [{"1": 3}], "test": [{"0": 2}]}
    records.write_json(folder / "partition.json", {"note": "Not private.", "dataset": "toy", **counts})
    records.write_json(
        folder / "confusion" / "arm-000.json", {"arm": "dp_fpl", "local": [{"1": 2}], "neighbor": [{"0": 4}]}
    )
    return folder


def edit(path, change):
    """Change a JSON file."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_finished_run_is_read_whole(folder):
    run = reader.read(folder)
    assert run.is_finished
    assert run.seed == run.config["seed"] == 5
    (arm,) = run.arms
    assert (arm.local, arm.epsilon, arm.title) == (0.5, 8.0, "DP-FPL")
    (record,) = run.rounds["dp_fpl"]
    assert record["epsilon"]["personal"] == "inf"
    assert run.holdings.train.tolist() == [[0, 3]]
    assert run.confusion["dp_fpl"]["local"].tolist() == [[0, 2], [0, 0]], "classes that nobody trained on count too"
    assert run.privacy["arms"][0]["audiences"]["personal"]["accountant"] == "PLD"


def test_an_unfinished_run_has_no_result_table(folder):
    for name in ("summary.json", "privacy.json", "partition.json"):
        (folder / name).unlink()
    run = reader.read(folder)
    assert not run.is_finished
    assert (run.arms, run.privacy, run.holdings, run.confusion, run.audit) == ([], None, None, {}, None)
    assert len(run.rounds["dp_fpl"]) == 1


def test_a_run_of_an_older_version_reads_the_same(folder):
    new = reader.read(folder)
    for name in ("summary.json", "privacy.json", "confusion/arm-000.json", "records.jsonl"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"arms"', '"rows"').replace('"arm"', '"row"'))
    (folder / "confusion" / "arm-000.json").rename(folder / "confusion" / "row-000.json")
    old = reader.read(folder)
    assert old.arms == new.arms
    assert old.rounds == new.rounds
    assert old.privacy == new.privacy
    assert np.array_equal(old.confusion["dp_fpl"]["local"], new.confusion["dp_fpl"]["local"])


def test_what_an_old_summary_lacks_is_unknown(folder):
    edit(folder / "summary.json", lambda values: values.update(arms=[{"arm": "a", "method": "dp_fpl", "local": None}]))
    edit(folder / "summary.json", lambda values: values.pop("provenance"))
    run = reader.read(folder)
    (arm,) = run.arms
    assert math.isnan(arm.local)
    assert math.isnan(arm.seconds)
    assert (arm.title, arm.epsilon, arm.num_rounds, arm.seed, arm.per_client) == ("dp_fpl", None, 0, 5, [])
    assert run.provenance == {}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("summary.json", '{"arms": [{"arm": "a"}]}', r"summary\.json is damaged: an arm lacks something .*method"),
        ("summary.json", '{"arms": [{"arm": "a", "method": 3}]}', r"summary\.json is damaged"),
        ("records.jsonl", '{"arm": ', r"records\.jsonl is damaged in line 1"),
        ("records.jsonl", '{"loss": 1.0}', r"records\.jsonl is damaged in line 1"),
        ("config.toml", "seed = ", r"config\.toml is damaged"),
        ("privacy.json", "{", r"privacy\.json is damaged"),
    ],
)
def test_a_damaged_file_is_named(folder, name, text, says):
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=says):
        reader.read(folder)


def test_a_config_that_this_version_does_not_understand_stays_as_it_is(folder):
    (folder / "config.toml").write_text('seed = 4\nmethod = { name = "of another version" }\n')
    run = reader.read(folder)
    assert run.config == {"seed": 4, "method": {"name": "of another version"}}


def test_finished_runs_are_found_once_in_the_order_of_their_numbers(folder, toy_values, tmp_path):
    for name in ("sweep/rank10", "sweep/rank2", "other/rank2"):
        write_run(tmp_path / name, with_settings(toy_values, "dp_fpl"), [(0.5, 0.25)])
    (tmp_path / "other" / "begun").mkdir()
    (tmp_path / "other" / "begun" / "config.toml").write_text("seed = 1")
    found = reader.find([tmp_path / "sweep", tmp_path / "sweep" / "rank2", tmp_path / "other"])
    assert [run.name for run in found.runs] == ["sweep/rank2", "sweep/rank10", "other/rank2"]
    assert found.unfinished == ["begun"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no run"):
        reader.find([tmp_path / "empty"])
