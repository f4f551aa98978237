"""A federation whose server need not be trusted: what goes wrong on the way, and what a server that lies gets."""

import dataclasses
import html
import itertools
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import hushprompt as hp
from helpers.deployments import NAMES, Deployment, Killed, break_nth_write
from helpers.in_process import InProcess
from helpers.runs import run_with
from hushprompt.cli import main as cli
from hushprompt.deployment import roster, secure_step
from hushprompt.deployment.coordinator import check
from hushprompt.deployment.envelope import Envelope, refusal
from hushprompt.deployment.operate import status
from hushprompt.errors import ConfigError, ProtocolError
from hushprompt.privacy import statements

FIVE = (*NAMES, "dan", "eve")
SHARES = {"epsilon": 8.0, "delta": 1e-3, "noise_at": "shares"}
RESCUE = {**SHARES, "max_dropouts": 1, "rescue": True}
NOISY = 2.0**55
"""Entries of one masked vector, or of several whose masks do not cancel, are larger by far: uniform below 2^63."""


class Lying(InProcess):
    """Lies to clients and to the server: `ask_for` changes what a client is asked, `bring` what it answered."""

    def __init__(self, nodes):
        super().__init__(nodes)
        self.said, self.down = [], set()
        self.ask_for = self.bring = lambda node, envelope: envelope

    def online(self):
        return [node for node in super().online() if node not in self.down]

    def deliver(self, node, data):
        request = self.ask_for(node, Envelope.from_bytes(data, 10**9))
        answer = self.nodes[node].answer(request)
        self.said.append((node, request, answer))
        return self.bring(node, answer).to_bytes()

    def of(self, kind, node=None):
        """What clients answered to messages of a kind."""
        return [answer for who, request, answer in self.said if request.kind == kind and node in (None, who)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Whoever did not answer is asked again at once."""
    monkeypatch.setattr(secure_step, "AGAIN_S", 0.01)


def values_of(toy_values, privacy=SHARES, num_rounds=1, **sections):
    partition = {"name": "iid", "num_clients": 5 if privacy.get("rescue") else 3}
    own = {"privacy": privacy, "training": {"num_rounds": num_rounds}, "partition": partition}
    return {**toy_values, "references": [], **own, **sections}


@pytest.fixture
def deployed(toy_values, tmp_path):
    """Give a federation with noise shares, and a carrier that may lie."""

    def make(privacy=SHARES, num_rounds=1, names=(), **federation):
        names = names or (FIVE if privacy.get("rescue") else NAMES)
        partition = {"name": "iid", "num_clients": len(names)}
        values = values_of(toy_values, privacy, num_rounds, partition=partition)
        federation = {"round_deadline_s": 0.2, **federation}
        return Deployment(values, tmp_path, Lying, names=names, **federation)

    return make


def only(kind, change, node="bob"):
    """Change what one client is asked, or answered, in messages of one kind."""
    return lambda who, envelope: change(envelope) if (who, envelope.kind) == (node, kind) else envelope


def with_meta(envelope, **meta):
    return dataclasses.replace(envelope, meta={**envelope.meta, **meta})


def with_tensors(envelope, change):
    return dataclasses.replace(envelope, tensors={name: change(each) for name, each in envelope.tensors.items()})


def check_nothing_opens(answers):
    """No sum of any of these masked vectors is in the range of a sum."""
    masked = [answer.tensors["masked"].numpy().view(np.uint64) for answer in answers if "masked" in answer.tensors]
    for number in range(1, len(masked) + 1):
        for some in itertools.combinations(masked, number):
            assert np.abs(np.sum(some, axis=0, dtype=np.uint64).view(np.int64)).max() > NOISY


def fails(deployed, match, **how):
    """The run ends as failed, and nothing of its step is in the shared state or the record."""
    with pytest.raises(ProtocolError, match=match):
        deployed.serve(**how)
    assert deployed.lines("server", "records.jsonl") == []
    assert not (deployed.folder("server") / "checkpoint" / "state.safetensors").exists()


# ------------------------------------------------------------------------------------------------ a server that lies


def test_clients_that_were_shown_two_models_are_never_added_up(deployed):
    run = deployed()
    run.carrier.ask_for = only("turn", lambda request: with_tensors(request, lambda tensor: tensor + 1))
    fails(run, "2 of the 3 clients of this step answered")
    assert any("context differ" in reason for reason in run.reasons())
    (shown,) = {request.digest for who, request, _ in run.carrier.said if (who, request.kind) == ("ann", "turn")}
    run.carrier.bring = only("turn", lambda answer: with_meta(answer, context=shown))  # and hides that from itself
    fails(run, "out of range")
    check_nothing_opens([run.carrier.of("turn", name)[-1] for name in NAMES])


def test_keys_that_a_server_swaps_are_refused_by_who_pinned_the_true_ones(deployed):
    own = roster.public_half(roster.new_run_key()).hex()
    for place, who in ((1, "ann"), (0, "ann")):
        run = deployed()

        def swap(request, place=place):
            keys = list(request.meta["agreement"]["keys"])
            keys[place] = own
            return with_meta(request, agreement={**request.meta["agreement"], "keys": keys})

        run.carrier.ask_for = only("plan", swap, who)
        with pytest.raises(ProtocolError, match="accept"):
            run.serve()
        assert any("was not signed by" in reason or "another run key" in reason for reason in run.reasons(who))
        assert not run.carrier.of("turn")
        shutil.rmtree(run.root)


def test_a_stranger_is_in_nobodys_sum(deployed):
    run = deployed()
    few = shutil.copytree(run.root / "peers", run.root / "few")
    (few / "cyd.pub").unlink()
    run.restart("ann", link=dataclasses.replace(run.link["ann"], peers=str(few)))
    with pytest.raises(ProtocolError, match="2 clients accept the plan"):
        run.serve()
    assert any("has not pinned: cyd" in reason for reason in run.reasons("ann"))
    assert not run.carrier.of("turn")


def test_small_and_false_lists_are_refused(deployed):
    run, wrong = deployed(), "a sum of fewer hides nobody"
    for participants in ("ann bob", "bob ann cyd", "ann bob cyd zoe"):
        listed = participants.split()
        run.carrier.ask_for = only("turn", lambda request, listed=listed: with_meta(request, participants=listed))
        fails(run, f"1 of the 3 clients of this step answered.*bob: participants of a message.*{wrong}")
        wrong = "each once, in order"
    assert len(run.reasons("bob")) == 3
    check_nothing_opens(run.carrier.of("turn"))


def test_what_was_answered_before_is_neither_answered_anew_nor_taken_again(deployed):
    run = deployed(num_rounds=2)
    first = []

    def replayed(who, answer):
        if (who, answer.kind) == ("bob", "turn"):
            first.append(answer)
            return first[0]
        return answer

    run.carrier.bring = replayed
    with pytest.raises(ProtocolError, match="2 of the 3 clients"):
        run.serve()
    assert any("Is it a replay?" in reason for reason in run.reasons())
    asked = next(request for who, request, _ in run.carrier.said if who == "bob" and request.meta.get("round") == 0)
    changed = with_tensors(asked, lambda tensor: tensor + 1)
    assert "computed once" in run.carrier.nodes["bob"].answer(changed).meta["reason"]


def test_a_second_list_of_who_answered_is_refused(deployed):
    run = deployed(RESCUE)

    def two_lists(request):
        smaller = [name for name in request.meta["answered"] if name != "eve"]
        rows = [at for at, name in enumerate(request.meta["answered"]) if name != "eve"]
        other = with_tensors(with_meta(request, answered=smaller), lambda sealed: sealed[rows])
        run.carrier.said.append(("bob", other, run.carrier.nodes["bob"].answer(other)))
        return request

    run.carrier.ask_for = only("unmask", two_lists)
    assert [record.took_part for record in run.serve()] == [list(FIVE)], "four others open it"
    given, refused = run.carrier.of("unmask", "bob")[:2]
    assert not given.is_refusal
    assert "another list" in refused.meta["reason"]


def test_boxes_that_were_tampered_with_are_left_out_and_too_few_open_nothing(deployed):
    run = deployed(RESCUE)
    flip = lambda rows: torch.cat([rows[:1] ^ 1, rows[1:]])  # noqa: E731 - the box that ann made
    run.carrier.ask_for = lambda who, request: (
        with_tensors(request, flip) if request.kind == "unmask" and who in ("cyd", "dan") else request
    )
    fails(run, "unmasks the sum of this step")
    run.carrier.ask_for = lambda who, request: request
    fails(run, "unmasks the sum of this step")  # who answered once says nothing else
    assert any("another list" in reason for reason in run.reasons("cyd"))


def test_a_store_that_is_brought_back_gives_the_same_turn_or_one_that_opens_nothing(deployed):
    run = deployed({**SHARES, "noise_source": "secure"})
    stop = only("turn", lambda request: refusal("not now"), "cyd")
    run.carrier.bring = stop
    fails(run, "2 of the 3")
    (asked,) = [request for who, request, _ in run.carrier.said if (who, request.kind) == ("bob", "turn")]
    (given,) = run.carrier.of("turn", "bob")
    store, kept = run.folder("bob"), run.root / "kept"
    (store / "state.safetensors").replace(kept)
    state = run.carrier.nodes["bob"].answer(asked)
    assert state.is_refusal, "without its state it does nothing"
    shutil.copy(kept, store / "state.safetensors")
    assert run.carrier.nodes["bob"].answer(asked).to_bytes() == given.to_bytes()


# -------------------------------------------------------------------------------------------------- what goes wrong


def test_a_client_that_is_killed_in_a_step_is_asked_again_and_gives_what_it_kept(deployed):
    run = deployed(num_rounds=2, round_deadline_s=5.0)
    lost = iter([True, False, True])

    def lose(answer):
        if next(lost, False):
            raise OSError("killed")
        return answer

    run.carrier.bring = only("turn", lose)
    assert [record.took_part for record in run.serve()] == [list(NAMES)] * 2
    assert len({answer.to_bytes() for answer in run.carrier.of("turn", "bob")}) == 2
    assert [line["round"] for line in run.lines("bob", "ledger.jsonl")] == [1, 2]


def test_a_step_that_a_client_does_not_answer_waits_and_can_be_left_out(deployed, toy_values, tmp_path):
    run = deployed(num_rounds=2)
    with pytest.raises(ConfigError, match="No step of this run waits"):
        run.serve(leave_step=True)

    def gone(request):
        raise OSError("gone")

    run.carrier.ask_for = only("turn", gone)
    fails(run, r"2 of the 3 clients of this step answered.*bob: error at the client.*--leave-step")
    run.carrier.ask_for = lambda who, request: request
    first, second = run.serve(leave_step=True)
    assert (first.took_part, first.left_out_steps) == ([], [1])
    assert "nobody took part; without step 1, which stays charged" in status.round_line(first, 2, "seeded")
    assert (second.took_part, second.left_out_steps) == (list(NAMES), [])
    assert [line["round"] for line in run.lines("server", "ledger.jsonl")] == [1, 2]
    assert [line["round"] for line in run.lines("ann", "ledger.jsonl")] == [1, 2], "it stays charged"


def test_who_may_be_with_the_server_is_told_at_both_ends_and_verified(deployed, tmp_path):
    run, words = deployed(), "with up to 1 client on the server's side and at least 2 others in every sum"
    run.serve()
    folder = run.folder("server")
    assert hp.verify(folder).is_consistent
    hp.report([hp.load(folder)], tmp_path / "page.html")
    told = [CliRunner().invoke(cli.app, ["privacy", str(folder)]).output, (tmp_path / "page.html").read_text()]
    for name in ("server", "ann"):
        (arm,) = status.guarantees(run.folder(name), "" if name == "server" else name)
        told.append(" ".join(statements.statement_lines(arm)))
    assert [words in html.unescape(" ".join(text.split())) for text in told] == [True] * 4


def test_a_look_at_a_plan_leaves_no_key_behind_and_a_finished_run_neither(deployed):
    run = deployed()
    found = check(run.config, run.carrier)
    assert found.is_accepted, found
    assert found.guarantees[0]["audiences"]["server"]["terms"]["honest"] == 2
    assert not list(run.root.rglob("run.key"))
    run.serve()
    assert not list(run.root.rglob("run.key")), "whoever breaks in later opens nothing that was recorded"
    run.serve()  # who missed the end is told again


def test_a_client_that_refuses_ends_the_wait_at_once(deployed):
    run = deployed(round_deadline_s=100.0)
    run.carrier.bring = only("turn", lambda answer: refusal("its budget is spent"))
    fails(run, "bob: its budget is spent")


PROMPTS = {}
"""Shared prompts of simulations, by whether the plan has a rescue."""


def simulated(toy_values, privacy, tmp_path):
    """The shared prompt of a simulation, made once."""
    key = bool(privacy.get("rescue"))
    if key not in PROMPTS:
        folder = run_with(values_of(toy_values, privacy), tmp_path, "simulated")[0]
        PROMPTS[key] = load_file(folder / "prompts" / "global.safetensors")["context"]
    return PROMPTS[key]


def test_over_flowers_messages_the_same_comes_out(toy_values, tmp_path, monkeypatch):
    pytest.importorskip("flwr")
    from helpers.transports import CARRIERS
    from hushprompt.deployment.flower import client_app

    monkeypatch.setattr(client_app, "client_node", client_app.client_node)  # the helper puts its own there
    run = Deployment(values_of(toy_values), tmp_path, CARRIERS["flower"])
    (record,) = run.serve()
    assert record.took_part == list(NAMES)
    context = run.prompts()["global.safetensors"]["context"]
    assert torch.allclose(context, simulated(toy_values, SHARES, tmp_path), atol=1e-6)


@pytest.mark.parametrize(("privacy", "number"), [(SHARES, 5), (SHARES, 7), (RESCUE, 6), (RESCUE, 7)])
def test_a_server_killed_in_any_phase_of_a_step_opens_the_same_sum(
    deployed, toy_values, tmp_path, monkeypatch, privacy, number
):
    """Before who takes part is written; with a rescue, who answered; then the record and the state."""
    run = deployed(privacy)
    broken = []
    break_nth_write(monkeypatch, run.folder("server"), number, Killed(), broken)
    with pytest.raises(Killed):
        run.serve()
    assert len(broken) == 1
    (record,) = run.serve()
    assert record.took_part == list(run.names)
    for kind in ("turn", "unmask"):
        for name in run.names:
            assert len({answer.to_bytes() for answer in run.carrier.of(kind, name)}) <= 1, "one answer, ever"
    context = run.prompts()["global.safetensors"]["context"]
    assert torch.allclose(context, simulated(toy_values, privacy, tmp_path), atol=1e-6)
    assert [line["round"] for line in run.lines("server", "ledger.jsonl")] == [1]


def test_who_was_lost_in_a_step_is_never_in_its_sum(deployed):
    run = deployed(RESCUE, round_deadline_s=5.0)

    def lost(answer):
        run.carrier.down.add("eve")
        raise OSError("the connection is lost")

    def killed(who, request):
        if request.kind == "unmask" and len(run.carrier.of("unmask")) == 2:
            raise Killed
        return request

    run.carrier.bring, run.carrier.ask_for = only("turn", lost, "eve"), killed
    with pytest.raises(Killed):
        run.serve()
    run.carrier.bring = run.carrier.ask_for = lambda who, envelope: envelope
    run.carrier.down.clear()
    (record,) = run.serve()
    assert record.took_part == list(FIVE[:4])
    assert set(record.failures) == {"eve"}
    assert not run.carrier.of("unmask", "eve")
    assert all(len({answer.to_bytes() for answer in run.carrier.of("unmask", name)}) <= 1 for name in FIVE)


def test_who_is_not_there_is_left_out_of_the_next_step_and_too_few_are_waited_for(deployed):
    run = deployed({**SHARES, "max_dropouts": 1}, num_rounds=3, names=(*NAMES, "dan"))
    gone = {0: set(), 1: {"dan"}, 2: {"cyd", "dan"}}

    def leave(who, answer):
        run.carrier.down |= gone[min(answer.meta["round"] + 1, 2)] if answer.kind == "turn" else set()
        return answer

    run.carrier.bring = leave
    with pytest.raises(ProtocolError, match="2 of 4 clients are there, and a step needs 3"):
        run.serve()
    assert [line["took_part"] for line in run.lines("server", "records.jsonl")] == [[*NAMES, "dan"], [*NAMES]]


def test_a_client_whose_store_was_lost_is_out_of_the_run(deployed):
    run = deployed(num_rounds=2)
    run.carrier.bring = only("turn", lambda answer: refusal("not now"))
    fails(run, "not now")
    shutil.rmtree(run.root / "bob")
    run.restart("bob")
    with pytest.raises(ProtocolError, match="2 of 3 clients joined"):
        run.serve()
    assert any("bob has another run key than the one that it agreed with" in reason for reason in run.reasons())
