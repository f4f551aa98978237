"""A score over nothing is no number: a dash in tables, null in files; and a mean says over how many clients it is."""

import json
import math
import re

import pytest
from torch import eye, tensor

import hushprompt as hp
from helpers.made_runs import result, run, train
from hushprompt.evaluation.evaluate import evaluate
from hushprompt.evaluation.metrics import harmonic_mean
from hushprompt.evaluation.splits import ClientSplit
from hushprompt.reporting import tables
from hushprompt.reporting.page import page_of
from hushprompt.runs.records import ArmSummary, from_json, to_json

ALONE = {"partition": {"name": "iid", "num_clients": 1}, "references": [{"method": {"name": "zero_shot"}}],
         "training": {"num_rounds": 2}}  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one client: it has no neighbors."""
    base = tmp_path_factory.mktemp("alone")
    return hp.load(train(base / "run", base / "cache", **ALONE))


def some_without_images(**changes):
    clients = [{"local": 0.5, "neighbor": 0.4}, {"local": None, "neighbor": 0.4}, {"local": math.nan, "neighbor": 0.4}]
    return result(per_client=clients, **changes)


@pytest.mark.parametrize("pair", [(0.5, math.nan), (math.nan, 0.5), (0.0, math.nan), (math.nan, math.nan)])
def test_the_harmonic_mean_with_nothing_is_no_number(pair):
    assert math.isnan(harmonic_mean(*pair))


def test_one_client_has_a_dash_for_its_neighbors(alone):
    (zero_shot, own) = alone.table().grids[0].rows
    for row in (zero_shot, own):
        assert row[2:4] == ("-", "-")
        assert row[1] != "-"
    assert "neighbor -: no client has such images." in alone.table().notes
    summary = json.loads((alone.folder / "summary.json").read_text())["arms"][-1]
    assert summary["neighbor"] is summary["harmonic_mean"] is summary["per_client"][0]["neighbor"] is None
    rounds = [json.loads(line) for line in (alone.folder / "records.jsonl").read_text().splitlines()]
    assert {record["harmonic_mean"] for record in rounds} == {None}


def test_one_client_has_a_dash_in_every_view(alone, tmp_path):
    compared = hp.compare(alone)
    assert "| - | - |" in compared.text("markdown")
    assert " & - & - & " in compared.text("latex")
    for text in (compared.text("markdown"), compared.text("latex"), compared.text("csv"), repr(alone.table())):
        assert not re.search(r"\bnan\b", text.lower())
    hp.report(alone, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"\bnan\b", page.lower())
    assert "rounds-neighbor-0" not in page  # an empty panel


def test_the_bar_shows_a_dash(hush):
    said = hush("run", "--set=backbone.name=toy", "--set=data.name=toy", "--set=partition={name='iid', num_clients=1}",
                "--set=sampling.sampling_prob=1.0", "--set=references=[]", "--set=training.num_rounds=1",
                "--set=privacy.delta=1e-3", "--set=method={name='dp_fpl', num_ctx=4, rank=2}").out  # fmt: skip
    assert "neighbor - epsilon" in " ".join(said.split())
    assert "nan" not in said


def test_a_mean_says_over_how_many_clients_it_is_where_that_is_not_all():
    words = "local: mean over 1 of 3 clients, as the others have no such images"
    assert tables.means_over_some([("A", some_without_images())]) == [f"{words}."]
    assert tables.means_over_some([("A", some_without_images()), ("B", result())]) == [f"{words} (A)."]
    assert tables.means_over_some([("B", result()), ("old", result(per_client=[]))]) == []


def test_every_view_says_it():
    made = run(results=[some_without_images()], privacy={"arms": [{"arm": "dp_fpl, epsilon 2", "audiences": {}}]})
    assert "local: mean over 1 of 3 clients" in page_of([made])


def test_an_old_record_is_corrected_when_it_is_read():
    old = {**to_json(result(neighbor=math.nan)), "harmonic_mean": 0.0}
    assert math.isnan(from_json(ArmSummary, old).harmonic_mean)


def test_clients_and_classes_without_images_are_no_numbers():
    nobody = tensor([], dtype=int).numpy()
    everyone = tensor([0, 1]).numpy()
    splits = (ClientSplit(0, everyone, everyone), ClientSplit(1, nobody, everyone))
    scores = evaluate(lambda _: eye(3)[:2], tensor([0, 1]), splits)
    assert scores.per_class == (1.0, 1.0, None)
    assert math.isnan(scores.clients[1].local)
    assert math.isnan(scores.clients[1].calibration_error)
    assert math.isnan(scores.clients[0].neighbor)
    assert (scores.local, scores.worst_client) == (1.0, 1.0)
