"""Processes that end between any two writes, disks that are full, answers that are lost: nothing is released twice."""

import contextlib
import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from helpers.deployments import NAMES, Deployment, Killed, break_nth_write
from helpers.in_process import InProcess
from helpers.runs import run_with
from hushprompt.deployment.config import ShareConfig
from hushprompt.deployment.envelope import Envelope
from hushprompt.errors import ProtocolError
from hushprompt.runs import identity as identities

SECURE = {"epsilon": 8.0, "delta": 1e-3, "noise_at": "client", "audience": "public", "noise_source": "secure"}


class Watching(InProcess):
    """A carrier that checks what leaves a client, starts new processes for those that end, and can lose answers."""

    def __init__(self, nodes):
        super().__init__(nodes)
        self.left, self.lose, self.after = {}, set(), lambda node, turn: None
        self.is_new_every_time = False

    def deliver(self, node, data):
        request = Envelope.from_bytes(data, 10**9)
        turn = (node, request.meta.get("round"), request.meta.get("step"))
        if self.is_new_every_time:
            self.restart(node)
        try:
            answer = super().deliver(node, data)
        except Killed:
            self.restart(node)
            raise RuntimeError("the process ended") from None
        if request.kind == "turn" and not Envelope.from_bytes(answer, 10**9).is_refusal:
            store = self.nodes[node].store / request.meta["federation"] / request.meta["run"]
            charged = [json.loads(line)["round"] for line in (store / "ledger.jsonl").read_text().splitlines()]
            assert turn[1] + 1 in charged, "a round is charged before anything of it leaves"
            self.left.setdefault(turn, set()).add(answer)
        self.after(node, turn)
        if turn in self.lose:
            self.lose.remove(turn)
            raise TimeoutError
        return answer

    def restart(self, node):
        self.nodes[node] = type(self.nodes[node])(self.nodes[node].config)


@pytest.fixture
def values(toy_values):
    sampling = {"name": "disjoint", "steps_per_round": 2}
    return {**toy_values, "references": [], "training": {"num_rounds": 2}, "sampling": sampling}


@pytest.fixture
def break_write(monkeypatch):
    """Give a function that makes the n-th write below a folder fail, and the list of what was broken."""
    broken = []

    def break_nth(folder, number, error):
        break_nth_write(monkeypatch, folder, number, error, broken)

    yield break_nth, broken
    monkeypatch.undo()


def serve_until_done(deployed, tries=4):
    """Start the server again and again, as a supervisor would."""
    for _ in range(tries):
        try:
            deployed.serve()
        except (Killed, ProtocolError):
            continue
        return
    raise AssertionError(deployed.reasons())


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Give a check that a federation went as a simulation does, which is made once."""
    made = {}

    def as_if_nothing_happened(deployed, values):
        if not made:
            folder = run_with(values, tmp_path_factory.mktemp("simulated"))[0]
            made["prompts"] = {path.name: load_file(path) for path in (folder / "prompts").glob("*")}
        check_prompts(deployed, made["prompts"])
        check_files(deployed)

    return as_if_nothing_happened


def check_prompts(deployed, simulated):
    prompts = deployed.prompts()
    assert set(prompts) == set(simulated)
    for name, tensors in simulated.items():
        assert torch.allclose(prompts[name]["context"], tensors["context"], atol=1e-6), name


def check_files(deployed):
    assert all(len(answers) == 1 for answers in deployed.carrier.left.values()), "one release a turn, ever"
    assert len(deployed.carrier.left) == 3 * 2 * 2
    assert [line["round"] for line in deployed.lines("server", "ledger.jsonl")] == [1, 2]
    assert [line["round_index"] for line in deployed.lines("server", "records.jsonl")] == [1, 2]
    for name in NAMES:
        assert [line["round"] for line in deployed.lines(name, "ledger.jsonl")] == [1, 2]
        assert [line["num_rounds"] for line in deployed.lines(name, "records.jsonl")] == [1, 2]


@pytest.mark.parametrize("number", range(1, 15))
def test_a_server_killed_between_any_two_writes_goes_on_as_the_same_run(values, tmp_path, break_write, check, number):
    """Config and agreement; twice a charge, checkpoint, record and checkpoint; prompt, statement, manifest, summary."""
    break_nth, broken = break_write
    deployed = Deployment(values, tmp_path, Watching)
    break_nth(deployed.folder("server"), number, Killed())
    serve_until_done(deployed)
    assert len(broken) == 1
    check(deployed, values)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("number", "error"),
    [(number, Killed()) for number in range(4, 17)] + [(number, FULL) for number in (4, 5, 6, 16)],
)
def test_a_client_that_fails_at_any_write_comes_back_and_goes_on(values, tmp_path, break_write, check, number, error):
    """Twice a charge, and a state for each turn, scores between them; at the end all there is."""
    break_nth, broken = break_write
    deployed = Deployment(values, tmp_path, Watching)
    break_nth(deployed.root / "ann", number, error)
    serve_until_done(deployed)
    deployed.serve()  # who missed the end is told again; to all others nothing happens
    assert len(broken) == 1
    if isinstance(error, OSError):
        assert any("No space left on device" in reason for reason in deployed.reasons())
    check(deployed, values)


def test_a_client_that_starts_again_on_other_data_refuses_and_charges_nothing(values, tmp_path, break_write):
    break_nth, _ = break_write
    deployed = Deployment(values, tmp_path, Watching)
    break_nth(deployed.folder("server"), 7, Killed())
    with pytest.raises(Killed):
        deployed.serve()
    before = deployed.lines("ann", "ledger.jsonl")
    assert before[0]["clients"] == ["ann"]
    deployed.restart("ann", share=ShareConfig(client=1))  # as many examples, and not those
    with contextlib.suppress(ProtocolError):
        deployed.serve()
    assert deployed.lines("ann", "ledger.jsonl") == before
    assert any("the train data are not those of the start" in reason for reason in deployed.reasons("ann"))
    assert not any("train data" in reason for reason in deployed.reasons()), "which is the owner's business alone"


def test_a_lost_answer_is_asked_for_again_and_comes_bit_for_bit(values, tmp_path, check):
    deployed = Deployment(values, tmp_path, Watching)
    deployed.carrier.is_new_every_time = True
    deployed.carrier.lose = {("bob", 0, 1), ("cyd", 1, 0)}
    serve_until_done(deployed)
    check(deployed, values)


def test_secure_noise_is_drawn_once_a_turn_whatever_is_lost(toy_values, tmp_path, break_write):
    values = {**toy_values, "privacy": SECURE, "training": {"num_rounds": 2}}
    deployed = Deployment(values, tmp_path, Watching)
    deployed.carrier.lose = {("bob", 0, 0), ("cyd", 1, 0)}
    break_write[0](deployed.folder("server"), 5, Killed())
    serve_until_done(deployed, tries=5)
    assert all(len(answers) == 1 for answers in deployed.carrier.left.values())
    assert [line["round"] for line in deployed.lines("server", "ledger.jsonl")] == [1, 2]
    assert all([line["round"] for line in deployed.lines(name, "ledger.jsonl")] == [1, 2] for name in NAMES)


def test_secure_noise_drawn_anew_after_a_crash_is_charged_again(toy_values, tmp_path, break_write):
    values = {**toy_values, "privacy": {**SECURE, "max_epsilon": 20.0}, "training": {"num_rounds": 2}}
    deployed = Deployment(values, tmp_path, Watching, owner={"max_epsilon": 20.0})
    break_write[0](deployed.root / "ann", 5, Killed())
    serve_until_done(deployed)
    assert break_write[1][0].endswith("state.safetensors"), "after the charge, before the answer"
    assert [line["round"] for line in deployed.lines("ann", "ledger.jsonl")] == [1, 1, 2]
    assert all(len(answers) == 1 for answers in deployed.carrier.left.values())


def test_a_client_that_goes_for_good_is_left_out_and_one_that_comes_back_takes_part_again(values, tmp_path):
    values["training"] = {"num_rounds": 3}
    deployed = Deployment(values, tmp_path, Watching, min_clients=2)
    gone = {}

    def after(node, turn):
        if turn == ("ann", 0, 1):
            gone["bob"] = deployed.carrier.nodes.pop("bob")
        if turn == ("cyd", 1, 1):
            deployed.carrier.nodes.update(gone)

    deployed.carrier.after = after
    seen = deployed.serve()
    assert [record.took_part for record in seen] == [["ann", "bob", "cyd"], ["ann", "cyd"], ["ann", "bob", "cyd"]]
    assert "bob" in seen[1].failures
    assert [line["round"] for line in deployed.lines("bob", "ledger.jsonl")] == [1, 3]
    assert [line["clients"] for line in deployed.lines("server", "ledger.jsonl")] == [list(NAMES)] * 3, (
        "charged all the same"
    )


def test_nothing_of_a_client_lies_with_the_server_but_name_size_and_shared_things(values, tmp_path):
    deployed = Deployment(values, tmp_path, Watching)
    deployed.serve()
    found = {str(path.relative_to(deployed.folder("server"))) for path in deployed.folder("server").rglob("*.*")}
    assert found == {
        "agreement.json", "config.toml", "ledger.jsonl", "manifest.json", "records.jsonl", "privacy.json",
        "summary.json", "checkpoint/state.safetensors", "prompts/global.safetensors", "identity.json",
    }  # fmt: skip
    known = identities.read(deployed.folder("server"))
    assert not known.data
    assert not known.split
    assert not known.features
    kept = load_file(deployed.folder("server") / "checkpoint" / "state.safetensors")
    assert all(key.startswith("shared.") for key in kept)
    for answers in deployed.carrier.left.values():
        for data in answers:
            answer = Envelope.from_bytes(data, 10**6)
            assert set(answer.meta) == {"client", "agreement", "round", "step"}
            assert {name: tensor.shape for name, tensor in answer.tensors.items()} == {"sum": (4, 8)}
