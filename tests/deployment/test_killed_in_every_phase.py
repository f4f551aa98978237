"""A federation with a rescue as real processes: a client and the server are killed in every phase of it."""

import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("flwr")

from helpers.deployments import Deployment
from helpers.in_process import InProcess
from helpers.real_federation import RealFederation
from helpers.runs import TOY
from hushprompt.deployment.envelope import Envelope
from hushprompt.runs import records

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]
NAMES = ("ann", "bob", "cyd", "dan")
HELD_S = 200.0
"""Seconds that a message is held at most: the story lets it go."""
RUN = {
    **TOY,
    "references": [],
    "partition": {"name": "iid", "num_clients": len(NAMES)},
    "sampling": {"name": "poisson", "sampling_prob": 0.5, "steps_per_round": 1},
    "privacy": {**TOY["privacy"], "noise_at": "shares", "max_dropouts": 1, "rescue": True},
    "training": {"num_rounds": 2},
}


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """All that happens, in the order of the phases; the server's run ends with each kill of the server."""
    federation = RealFederation(tmp_path_factory.mktemp("killed"), RUN, NAMES)
    told = SimpleNamespace(federation=federation, ended={})
    try:
        federation.start("server", *NAMES)
        told.ended["clients in join and plan"] = kill_clients_before_training(federation)
        told.ended["server in join"] = kill_server(federation, ann=[held("join")])
        told.ended["server in plan"] = kill_server(federation, ann=[held("plan")])
        told.ended["clients in turn and unmask, server in turn"] = kill_all_in_training(federation)
        told.ended["server in unmask"] = kill_server(federation, ann=[held("unmask", 1)])
        told.finished = federation.train()
    finally:
        federation.stop()
    return told


def held(kind, round_index=None):
    return kind, round_index, "slow", HELD_S


def kill_clients_before_training(federation):
    """Bob is killed as he joins and comes back; cyd is killed as she looks at the plan, which needs all four."""
    federation.set_faults(bob=[held("join")], cyd=[held("plan")])
    run = federation.begin(round_deadline_s=HELD_S, join_deadline_s=HELD_S)
    kill_client(federation, "bob")
    comes_back(federation, "bob")
    kill_client(federation, "cyd")
    shown, _ = run.communicate()
    comes_back(federation, "cyd")
    return run.returncode, shown


def kill_all_in_training(federation):
    """Bob is killed in the turn of round 1 and cyd as she unmasks it, the server in the turn of round 2."""
    federation.set_faults(bob=[held("turn", 0)], cyd=[held("unmask", 0)], dan=[held("unmask", 0)])
    run = federation.begin()
    kill_client(federation, "bob")
    kill_client(federation, "cyd")
    comes_back(federation, "bob", "cyd")
    federation.set_faults(dan=[held("turn", 1)])  # which lets the unmasking go
    return end_server(federation, run, "dan")


def kill_client(federation, name):
    """Kill a client while it holds a message, and wait until the server has noticed."""
    federation.until(lambda: federation.has_begun(name))
    federation.kill(name)
    federation.until(lambda: name not in federation.online())
    time.sleep(2)  # it looks for answers twice a second, and for who has joined once


def comes_back(federation, *names):
    federation.set_faults(**{name: [] for name in names})
    federation.start(*names)
    federation.until(lambda: {*names} <= federation.online())


def kill_server(federation, **faults):
    """Begin to train, and kill the server while a client holds a message."""
    federation.set_faults(**faults)
    return end_server(federation, federation.begin(), *faults)


def end_server(federation, run, holder):
    federation.until(lambda: federation.has_begun(holder))
    federation.kill("server")
    shown, _ = run.communicate()
    federation.set_faults(**{holder: []})
    federation.start("server")
    federation.until(lambda: {*NAMES} <= federation.online())
    return run.returncode, shown


class WithoutBob(InProcess):
    """Loses in one process what the story loses for good: bob in the first turn, until its sum is opened."""

    is_gone = False

    def online(self):
        return [node for node in super().online() if node != "bob" or not self.is_gone]

    def deliver(self, node, data):
        request = Envelope.from_bytes(data, 10**9)
        if (node, request.kind, request.meta.get("round")) == ("bob", "turn", 0):
            self.is_gone = True
            raise OSError("killed")
        self.is_gone &= request.kind != "unmask"
        return super().deliver(node, data)


def server_lines(story, file):
    return [json.loads(line) for line in (story.federation.server.parent / "run" / file).read_text().splitlines()]


def runs_of(story, name):
    """Folders in a client's store by whether they are of the run that was finished."""
    agreed = records.read_json(story.federation.server.parent / "run" / "agreement.json")["run"]
    folders = list((story.federation.store(name) / "trial").iterdir())
    return [folder for folder in folders if folder.name == agreed], [f for f in folders if f.name != agreed]


def charged(folder):
    return [json.loads(line)["round"] for line in (folder / "ledger.jsonl").read_text().splitlines()]


def test_each_kill_of_the_server_ends_a_run_and_the_same_command_goes_on_to_the_end(story):
    assert all(status != 0 for status, _ in story.ended.values()), story.ended
    assert story.finished[0] == 0, story.finished[1]


def test_a_client_that_was_killed_as_it_joined_joins_and_one_that_did_not_accept_the_plan_stops_it(story):
    _, shown = story.ended["clients in join and plan"]
    assert "3 clients accept the plan, min_clients asks for 4" in " ".join(shown.split())


def test_a_step_goes_on_without_who_is_lost_in_it_and_every_list_is_kept(story):
    rounds = server_lines(story, "records.jsonl")
    assert [line["took_part"] for line in rounds] == [["ann", "cyd", "dan"], [*NAMES]]
    assert [set(line["failures"]) for line in rounds] == [{"bob"}, set()]
    assert charged(story.federation.server.parent / "run") == [1, 2]


def test_clients_are_charged_once_for_a_turn_and_never_before_training(story):
    for name in NAMES:
        ((run,), others) = runs_of(story, name)
        assert charged(run) == ([2] if name == "bob" else [1, 2])
        assert not (run / "run.key").exists(), "whoever breaks in later opens nothing"
        assert not any((other / "ledger.jsonl").exists() for other in others)


def test_what_comes_out_is_what_comes_out_where_bobs_first_answer_alone_is_lost(story, tmp_path):
    expected = Deployment(RUN, tmp_path, carrier=WithoutBob, names=NAMES)
    expected.serve()
    run = story.federation.server.parent / "run"
    found = {"global.safetensors": run / "prompts" / "global.safetensors"}
    for name in NAMES:
        found |= {path.name: path for path in runs_of(story, name)[0][0].glob("prompts/client-*")}
    for file, tensors in expected.prompts().items():
        for key, tensor in load_file(found.pop(file)).items():
            assert torch.allclose(tensors[key], tensor, atol=1e-6), (file, key)
    assert not found
    mine, theirs = (records.read_json(folder / "privacy.json")["arms"] for folder in (run, expected.folder("server")))
    assert mine == theirs
