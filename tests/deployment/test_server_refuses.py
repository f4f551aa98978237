"""What the server leaves out of a sum, and that the sum is then divided and noised as if it had expected it."""

import json
import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import hushprompt as hp
from helpers.deployments import Deployment
from helpers.in_process import InProcess
from helpers.runs import run_with
from hushprompt.cli import main as cli
from hushprompt.deployment.coordinator import check
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.server_record import CheckOutcome
from hushprompt.errors import ProtocolError, ResumeError
from hushprompt.federation import training as rounds
from hushprompt.runs import identity, records


class Tampering(InProcess):
    """Brings bob's turns to the server changed."""

    def __init__(self, sites):
        super().__init__(sites)
        self.change, self.turns = None, []

    def ask(self, requests, deadline_s, max_bytes):
        for node, answer in super().ask(requests, deadline_s, max_bytes):
            is_turn = node == "bob" and isinstance(answer, Envelope) and answer.kind == "turn"
            if is_turn:
                self.turns.append(answer)
            yield from self.change(self, node, answer) if is_turn else [(node, answer)]

    def deliver(self, node, data):
        answer = super().deliver(node, data)
        is_turn = node == "bob" and b'"kind\\":\\"turn' in data
        return self.bytes_of(answer) if is_turn else answer

    def bytes_of(self, data):
        return data


def with_tensor(answer, tensor, name="sum"):
    return [("bob", Envelope("turn", answer.meta, {name: tensor}))]


def said(answer, **meta):
    return [("bob", Envelope("turn", {**answer.meta, **meta}, answer.tensors))]


CHANGES = {
    "shape": (lambda self, node, a: with_tensor(a, torch.zeros(4, 9)), "expected torch.float32"),
    "dtype": (lambda self, node, a: with_tensor(a, a.tensors["sum"].double()), "is torch.float64"),
    "name": (lambda self, node, a: with_tensor(a, a.tensors["sum"], "sums"), "has the tensors"),
    "nan": (lambda self, node, a: with_tensor(a, a.tensors["sum"] / 0), "NaN or infinite"),
    "nothing": (lambda self, node, a: [(node, Envelope("turn", a.meta))], "has the tensors"),
    "kind": (lambda self, node, a: [(node, Envelope("join", a.meta, a.tensors))], "answered with 'join'"),
    "other round": (lambda self, node, a: said(a, round=7), "round differ"),
    "other plan": (lambda self, node, a: said(a, agreement="x"), "agreement differ"),
    "other client": (lambda self, node, a: said(a, client="ann"), "client differ"),
    "silence": (lambda self, node, a: [], "no answer by the deadline"),
}


@pytest.fixture(scope="module")
def without_bob(tmp_path_factory):
    """Give the shared prompt of a simulation in which bob always fails, made once."""
    made = {}

    def simulated(values):
        if not made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(rounds, "survivors", lambda cohort, rate, rng: cohort[np.asarray(cohort) != 1])
                folder = run_with(values, tmp_path_factory.mktemp("without"), "simulated")[0]
            made["context"] = load_file(folder / "prompts" / "global.safetensors")["context"]
        return made["context"]

    return simulated


def two_rounds(toy_values):
    return {**toy_values, "references": [], "training": {"num_rounds": 2}}


@pytest.fixture
def values(toy_values):
    return two_rounds(toy_values)


def tampered_with(change, values, tmp_path, **federation):
    deployed = Deployment(values, tmp_path, Tampering, **{"min_clients": 2, **federation})
    deployed.carrier.change = change
    return deployed


@pytest.fixture
def tampered(values, tmp_path):
    return lambda change, **federation: tampered_with(change, values, tmp_path, **federation)


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_update_is_left_out_and_divisor_and_noise_stay(values, tampered, without_bob, change):
    wrong, why = CHANGES[change]
    deployed = tampered(wrong)
    seen = deployed.serve()
    assert torch.allclose(deployed.prompts()["global.safetensors"]["context"], without_bob(values), atol=1e-6)
    assert len(deployed.reasons()) == 2
    assert all(why in reason for reason in deployed.reasons())
    for record in seen:
        assert (record.asked, record.took_part) == (["ann", "bob", "cyd"], ["ann", "cyd"])
        assert why in record.failures["bob"]
        assert record.bytes_up == 2 * 4 * 8 * 4
        assert record.bytes_down == 3 * 4 * 8 * 4


def damaged(self, data):
    return data[:-3] + b"xyz"


def oversized(self, data):
    return Envelope("turn", {"text": "x" * 10**6}).to_bytes()


@pytest.mark.parametrize(("way", "why"), [(damaged, "checksum"), (oversized, "are read")])
def test_damaged_and_oversized_answers_are_left_out(tampered, monkeypatch, way, why):
    monkeypatch.setattr(Tampering, "bytes_of", way)
    deployed = tampered(lambda self, node, answer: [(node, answer)])
    assert [record.took_part for record in deployed.serve()] == [["ann", "cyd"]] * 2
    assert all(why in reason for reason in deployed.reasons())
    assert len(deployed.reasons()) == 2


def test_a_replayed_answer_is_not_used_again(toy_values, tmp_path):
    def first_again(self, node, answer):
        return [(node, self.turns[0])]

    deployed = tampered_with(first_again, two_rounds(toy_values), tmp_path)
    assert [record.took_part for record in deployed.serve()] == [["ann", "bob", "cyd"], ["ann", "cyd"]]
    assert ["Is it a replay?" in reason for reason in deployed.reasons()] == [True]


def test_a_second_answer_and_one_of_a_stranger_change_nothing(values, tampered, tmp_path):
    def twice(self, node, answer):
        other = Envelope("turn", answer.meta, {"sum": answer.tensors["sum"] + 1})
        return [(node, answer), (node, other), ("eve", answer)]

    deployed = tampered(twice)
    seen = deployed.serve()
    simulated = load_file(run_with(values, tmp_path, "simulated")[0] / "prompts" / "global.safetensors")["context"]
    assert torch.allclose(deployed.prompts()["global.safetensors"]["context"], simulated, atol=1e-6)
    assert all(record.took_part == ["ann", "bob", "cyd"] and not record.failures for record in seen)
    second, stranger = deployed.reasons()[:2]
    assert "A second answer" in second
    assert "was not asked" in stranger


def test_too_few_answers_stop_the_run_and_nothing_of_the_step_is_used(tampered):
    deployed = tampered(CHANGES["silence"][0], min_clients=3)
    with pytest.raises(ProtocolError, match="2 of 3 clients answered, min_clients asks for 3"):
        deployed.serve()
    assert deployed.lines("server", "records.jsonl") == []
    assert [record.took_part for record in deployed.serve(min_clients=2)] == [["ann", "cyd"]] * 2


def test_too_few_clients_do_not_start(values, tmp_path):
    deployed = Deployment(values, tmp_path)
    del deployed.carrier.nodes["bob"]
    with pytest.raises(ProtocolError, match=r"2 of 3 clients joined.*Missing: bob"):
        deployed.serve()
    assert not (deployed.folder("server") / "agreement.json").exists()
    assert not (deployed.folder("server") / "ledger.jsonl").exists()
    seen = deployed.serve(min_clients=2)
    assert all(record.asked == ["ann", "cyd"] for record in seen), "the plan is that of two clients"


def test_a_client_that_refuses_the_plan_stays_out_and_the_rest_get_another(values, tmp_path):
    deployed = Deployment(values, tmp_path, min_clients=2)
    deployed.restart("bob", owner=type(deployed.owner)(max_epsilon=1.0))
    assert all(record.asked == ["ann", "cyd"] for record in deployed.serve())
    assert any("does not allow this plan" in reason for reason in deployed.reasons())


def test_a_name_is_taken_once_and_strangers_do_not_join(values, tmp_path):
    deployed = Deployment(values, tmp_path)
    deployed.carrier.nodes |= {"zoe": deployed.carrier.nodes["ann"]}
    deployed.serve()
    assert any("ann joined already, from another node" in reason for reason in deployed.reasons())


def test_a_folder_of_another_config_is_not_gone_on_with(values, tmp_path):
    Deployment(values, tmp_path).serve()
    with pytest.raises(ResumeError, match="belongs to another config"):
        Deployment({**values, "seed": 4}, tmp_path).serve()


@pytest.mark.parametrize("source", ["seeded", "secure"])
def test_a_server_with_other_versions_goes_on_where_noise_is_secure_alone(
    toy_values, tmp_path, monkeypatch, caplog, source
):
    privacy = {**toy_values["privacy"], "noise_source": source}
    deployed = Deployment({**two_rounds(toy_values), "privacy": privacy}, tmp_path)
    deployed.serve()
    folder = deployed.folder("server")
    assert records.read_json(folder / "summary.json")["identity"] == records.read_json(folder / "identity.json")
    found = hp.verify(folder)
    assert found.is_consistent, found.differences
    assert identity.NOT_RECORDED not in found.not_recorded
    monkeypatch.setattr(identity, "versions_of", lambda config: {"hushprompt": "9.9"})
    told = "was begun with other versions: hushprompt .*, now 9.9; torch .*, now none"
    if source == "seeded":
        for ask in (deployed.serve, lambda: check(deployed.config, deployed.carrier)):
            with pytest.raises(ResumeError, match=f"is a seeded run and {told}"):
                ask()
    else:
        deployed.carrier.nodes.clear()  # so that it is the server that tells
        with pytest.raises(ProtocolError, match="0 of 3 clients joined"):
            deployed.serve()
        assert len(re.findall(told, caplog.text)) == 1


def test_a_server_folder_of_an_older_version_goes_on(values, tmp_path, caplog):
    deployed = Deployment(values, tmp_path)
    deployed.serve()
    folder = deployed.folder("server")
    (folder / "identity.json").unlink()
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    lines = [json.dumps({key: value for key, value in line.items() if key != "identity"}) for line in ledger]
    (folder / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    deployed.serve()
    assert identity.NOT_RECORDED in caplog.text
    assert records.read_json(folder / "summary.json")["identity"] is None


def test_a_check_asks_everyone_and_nothing_of_it_is_kept_or_charged(values, tmp_path):
    deployed = Deployment(values, tmp_path)
    deployed.carrier.name_of = lambda node: node
    deployed.restart("bob", owner=type(deployed.owner)(max_epsilon=1.0))
    del deployed.carrier.nodes["cyd"]
    found = check(deployed.config, deployed.carrier)
    assert found.sizes == {"ann": 24, "bob": 24}
    assert "does not allow this plan" in found.refusals["bob"]
    assert found.refusals["cyd"] == "It did not join."
    assert not found.is_accepted
    deployed.restart("bob")
    deployed.restart("cyd")
    found = check(deployed.config, deployed.carrier)
    assert found.is_accepted
    assert found.guarantees[0]["audiences"]["public"]["epsilon"] > 0
    for name in ("ann", "bob", "cyd"):
        assert not list((deployed.root / name).rglob("ledger.jsonl"))
        assert not (deployed.root / name / "trial").exists()
    assert {path.name for path in deployed.folder("server").iterdir()} == {"check.json", "refusals.jsonl"}
    written = records.from_json(CheckOutcome, records.read_json(deployed.folder("server") / "check.json"))
    assert (written.sizes, written.refusals, written.problem) == (found.sizes, found.refusals, found.problem)
    assert len(deployed.serve()) == 2, "the run begins as if nobody had looked"
    assert check(deployed.config, deployed.carrier).is_accepted, "also of a run that has begun"


def test_a_refusal_is_told_while_the_others_still_train(values, tmp_path):
    told_before = []

    def slow(self, node, answer):
        yield node, Envelope("refusal", {"reason": "not now"})

    class Telling(Tampering):
        def deliver(self, node, data):
            if node == "cyd" and b'"kind\\":\\"turn' in data:
                told_before.append(len(deployed.reasons()))
            return super().deliver(node, data)

    deployed = Deployment(values, tmp_path, Telling, min_clients=2)
    deployed.carrier.change = slow
    deployed.carrier._num_threads = 1
    deployed.serve()
    assert len(deployed.reasons()) == 2
    assert told_before[-1] >= 1


def test_a_finished_federation_is_a_run_like_any_other(values, tmp_path):
    deployed = Deployment(values, tmp_path)
    deployed.serve()
    run = hp.load(deployed.folder("server"))
    assert run.is_finished
    assert run.config == deployed.config.run
    assert run.arms[-1].num_rounds == 2
    assert math.isnan(run.arms[-1].local), "clients keep their scores"
    assert run.guarantees["public"].epsilon > 0
    assert "DP-FPL" in str(run.table())
    shown = CliRunner().invoke(cli.app, ["show", str(run.folder)])
    assert shown.exit_code == 0, shown.output
    page = tmp_path / "page.html"
    hp.report([run], page)
    assert "DP-FPL" in page.read_text()
