"""A server and three clients as processes of their own, with TLS and keys: what goes well, and what goes wrong.

One story on processes that are started once, since each costs seconds; every test looks at what it left.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("flwr")

from helpers.deployments import NAMES, Deployment
from helpers.in_process import InProcess
from helpers.other_package import other_package
from helpers.real_federation import RealFederation, edit, free_port
from helpers.runs import TOY, run_with
from hushprompt.deployment.config import load_client
from hushprompt.deployment.envelope import MAGIC
from hushprompt.deployment.flower import environment
from hushprompt.deployment.operate import node_keys
from hushprompt.deployment.transport import Failure
from hushprompt.runs import records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]
DEADLINE_S = float(os.environ.get("ROUND_DEADLINE_S", "12"))
"""Of a round in which somebody is too slow; a machine with much other work needs more."""
RUN = {**TOY, "method": {"name": "smoothed", "num_ctx": 4, "rank": 2}}
"""Three rounds of a method of another package, which all processes must find."""
SHARES, SERVER = ({**TOY["privacy"], "noise_at": noise_at} for noise_at in ("shares", "server"))


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """All that happens: a run with noise shares, and one in which everything fails once."""
    with other_package(tmp_path_factory.mktemp("site")):
        federation = RealFederation(tmp_path_factory.mktemp("real"), RUN, NAMES)
        told = SimpleNamespace(federation=federation)
        try:
            federation.start("server", *NAMES)
            told.stranger, told.stopped, told.shares = shares(federation)
            edit(federation.server.with_name("run.toml"), privacy={"noise_at": "server"})
            told.killed, told.resumed = failures(federation)
        finally:
            federation.stop()
        yield told


def stranger(federation):
    """A process that trusts the server, with a key that the server does not know."""
    key = federation.root / "stranger.key"
    node_keys.make(key, "stranger")
    link = load_client(federation.client("ann")).link
    words = [
        Path(sys.executable).parent / "flower-supernode", "--superlink", link.superlink, "--root-certificates", link.ca,
        "--auth-supernode-private-key", key, "--host", "127.0.0.1", "--port", str(free_port()),
    ]  # fmt: skip
    variables = environment.environment(federation.root / "stranger", {}, federation.environment)
    with (federation.root / "stranger.log").open("w") as log:
        federation.processes["stranger"] = subprocess.Popen(words, env=variables, stdout=log, stderr=log)
    federation.until(lambda: "2004" in federation.log("stranger"))
    federation.kill("stranger")
    return federation.log("stranger")


def shares(federation):
    """Three rounds with noise shares, which all clients' owners ask for: bob is killed in a turn, and the server."""
    federation.set_faults(bob=[("turn", 1, "slow", 3)], ann=[("turn", 2, "slow", 60)])
    run = federation.begin(folder="shares", round_deadline_s=300.0)
    told = stranger(federation)  # while the clients join
    federation.until(lambda: federation.has_begun("bob"))
    federation.kill("bob")
    federation.start("bob")
    federation.until(lambda: federation.has_begun("ann"))
    federation.kill("server")
    shown, _ = run.communicate()
    federation.set_faults(ann=[], bob=[])
    federation.start("server")
    federation.until(lambda: {*NAMES} <= federation.online())
    return told, (run.returncode, shown), federation.train()


def failures(federation):
    """Three rounds: cyd's answer is damaged; bob is killed and cyd too slow; cyd's disk is full and the server killed.

    Bob and the server come back, and the run is started again. Cyd is gone for good.
    """
    federation.set_faults(
        ann=[("turn", 2, "slow", DEADLINE_S + 5)],  # till the server is gone
        bob=[("turn", 1, "slow", DEADLINE_S + 5)],
        cyd=[("turn", 0, "damaged"), ("turn", 1, "slow", DEADLINE_S + 5), ("turn", 2, "full disk")],
    )
    run = federation.begin(folder="failing", min_clients=1, round_deadline_s=DEADLINE_S, join_deadline_s=120.0)
    federation.until(lambda: federation.has_begun("bob"))
    federation.kill("bob")
    federation.until(lambda: federation.has_begun("ann") and "No space left" in federation.log("cyd"))
    federation.kill("server")
    federation.kill("cyd")
    shown, _ = run.communicate()
    federation.set_faults(ann=[], bob=[], cyd=[])
    federation.start("server", "bob")
    federation.until(lambda: {"ann", "bob"} <= federation.online())
    return (run.returncode, shown), federation.train(
        round_deadline_s=300.0,
        join_deadline_s=2 * DEADLINE_S,  # bob loads all anew
    )


class Losing(InProcess):
    """Loses in one process what the story loses between processes."""

    num_turns = 0

    def ask(self, requests, deadline_s, max_bytes):
        self.round_index = next(iter(requests.values())).meta.get("round")
        for node, answer in super().ask(requests, deadline_s, max_bytes):
            is_lost = node == "cyd" and self.round_index is not None
            yield node, Failure("lost") if is_lost or isinstance(answer, Failure) else answer

    def deliver(self, node, data):
        if node == "bob" and self.round_index == 1:
            raise OSError("killed")
        return super().deliver(node, data)


def rounds_of(story, folder):
    lines = (story.federation.server.parent / folder / "records.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_store(story, folder, name):
    agreement = records.read_json(story.federation.server.parent / folder / "agreement.json")
    return story.federation.store(name) / "trial" / agreement["run"]


def charged(folder):
    return [line["round"] for line in lines_of(folder / "ledger.jsonl")]


def prompts(story, folder, names=NAMES):
    """All prompts that a run left, under the names that a simulation gives them."""
    found = {"global.safetensors": story.federation.server.parent / folder / "prompts" / "global.safetensors"}
    for at, name in enumerate(names):
        file = f"client-{at:03d}.safetensors"
        found[file] = run_store(story, folder, name) / "prompts" / file
    return {file: load_file(path) for file, path in found.items()}


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for file, tensors in expected.items():
        assert set(found[file]) == set(tensors)
        for key, tensor in tensors.items():
            assert torch.allclose(found[file][key], tensor, atol=1e-6), (file, key)


def test_separate_processes_with_noise_shares_give_what_a_simulation_does_though_a_client_and_the_server_are_killed(
    story, tmp_path
):
    assert story.stopped[0] != 0
    assert story.shares[0] == 0, story.shares[1]
    folder, _, simulated = run_with({**RUN, "references": [], "privacy": SHARES}, tmp_path)
    assert_equal(prompts(story, "shares"), {path.name: load_file(path) for path in (folder / "prompts").glob("*")})
    real = rounds_of(story, "shares")
    assert [line["epsilon"] for line in real] == [record.epsilon for record in simulated]
    assert [(line["bytes_up"], line["bytes_down"]) for line in real] == [(r.bytes_up, r.bytes_down) for r in simulated]
    assert all(line["took_part"] == list(NAMES) and not line["failures"] for line in real)
    assert all(charged(run_store(story, "shares", name)) == [1, 2, 3] for name in NAMES)
    assert not list(story.federation.store("bob").rglob("run.key")), "whoever breaks in later opens nothing"
    assert "server" in records.read_json(folder / "privacy.json")["arms"][0]["audiences"]


def test_an_unknown_key_does_not_get_in(story):
    assert "[code: 2004]" in story.stranger
    assert "Receiving" not in story.stranger


def test_rounds_go_on_with_the_survivors_and_the_record_says_who_they_were(story):
    rounds = rounds_of(story, "failing")
    assert [line["took_part"] for line in rounds] == [["ann", "bob"], ["ann"], ["ann", "bob"]]
    assert [set(line["failures"]) for line in rounds] == [{"cyd"}, {"bob", "cyd"}, {"cyd"}]


def test_what_failed_is_written_down(story):
    lines = lines_of(story.federation.server.parent / "failing" / "refusals.jsonl")
    reasons = {(line["client"], line["round"]): line["reason"] for line in lines if "round" in line}
    assert "checksum" in reasons["cyd", 0]
    assert ("bob", 1) in reasons
    assert "deadline" in reasons["cyd", 1]


def test_a_full_disk_at_a_client_is_its_refusal(story):
    assert "No space left" in story.federation.log("cyd")


def test_a_killed_server_fails_its_run_and_the_next_one_goes_on_with_the_same_budget(story):
    assert story.killed[0] != 0
    assert story.resumed[0] == 0, story.resumed[1]
    whole, failing = rounds_of(story, "shares"), rounds_of(story, "failing")
    assert [line["round_index"] for line in failing] == [1, 2, 3]
    assert failing[-1]["epsilon"]["public"] == whole[-1]["epsilon"]["public"]
    assert charged(story.federation.server.parent / "failing") == [1, 2, 3]


def test_a_client_is_charged_once_for_a_turn_that_is_asked_for_twice(story):
    assert charged(run_store(story, "failing", "ann")) == [1, 2, 3]


def test_a_run_ends_without_a_client_that_is_gone_for_good(story):
    assert story.resumed[0] == 0, story.resumed[1]
    gone = run_store(story, "failing", "cyd")
    assert not (gone / "prompts").exists()
    assert [line["failures"]["cyd"] for line in rounds_of(story, "failing")[2:]] == ["not online"]


def test_clients_are_charged_for_the_rounds_in_which_they_really_took_a_turn(story):
    ann, bob, cyd = (run_store(story, "failing", name) for name in NAMES)
    assert charged(bob) == [1, 3]
    assert charged(cyd) == [1, 2]
    spent = [lines_of(folder / "ledger.jsonl")[-1]["spent"]["epsilon"] for folder in (ann, bob)]
    assert spent[1] < spent[0]


def test_after_all_failures_the_prompts_are_those_of_a_simulation_that_lost_the_same_messages(story, tmp_path):
    expected = Deployment({**RUN, "references": [], "privacy": SERVER}, tmp_path, carrier=Losing, min_clients=1)
    expected.serve()
    left = expected.prompts()
    del left["client-002.safetensors"]  # there cyd was told the end
    assert_equal(prompts(story, "failing", NAMES[:2]), left)


def test_nothing_of_a_message_lies_on_the_servers_disk_and_logs_have_no_codes(story):
    kept = [path for path in story.federation.server.parent.rglob("superlink.db*") if path.is_file()]
    assert kept
    assert not [path for path in kept if MAGIC in path.read_bytes()]
    assert all("\x1b" not in story.federation.log(name) for name in ("server", "ann"))


def test_nothing_is_left_running(story):
    assert all(process.returncode == 0 for process in story.federation.processes.values())
