"""A server that lies, and clients whose processes end: nothing opens but one sum a step, and it is exact."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from helpers.deployments import Killed, break_nth_write
from helpers.secure_clients import HandServer, changed, refused, values_with_shares
from hushprompt.deployment import masks, roster
from hushprompt.deployment.envelope import Envelope, fingerprint
from hushprompt.deployment.secure_turn import SecureTurn, turn_id
from hushprompt.deployment.store import RunStore

# ---- other models for others


@pytest.mark.parametrize("victims", ["d", "cd"])
def test_clients_that_were_shown_other_models_are_in_no_sum(serve_by_hand, victims):
    server = serve_by_hand(4)
    requests = {name: server.request(model=float(name in victims)) for name in server.names}
    answers = {name: server.ask(name, request) for name, request in requests.items()}
    assert len({answer.meta["context"] for answer in answers.values()}) == 2
    assert server.is_closed(answers), "of 15 sums none is one"
    for name, request in requests.items():
        assert "An update is computed once" in refused(server.ask(name, requests["a" if name in victims else "d"]))
        assert server.ask(name, request).to_bytes() == answers[name].to_bytes()


def test_what_a_client_masked_in_two_steps_has_nothing_in_common(serve_by_hand):
    server = serve_by_hand(3)
    first, second = (server.turns(server.request(*place)) for place in ((0, 0), (0, 1)))
    for name in server.names:
        second[name].tensors["masked"].neg_()
        assert server.is_closed({"first": first[name], "second": second[name]})


def test_with_rescue_clients_of_two_models_give_nothing_and_one_victim_is_left_out(serve_by_hand):
    server = serve_by_hand(5, max_dropouts=1, rescue=True)
    split = {name: server.request(0, 0, model=float(name in "cde")) for name in server.names}
    answers = {name: server.ask(name, request) for name, request in split.items()}
    for name, request in split.items():
        assert "boxes for this client can be opened, 4 are needed" in refused(
            server.ask(name, server.unmask_request(request, answers, name))
        )
    model, other = server.request(0, 1), server.request(0, 1, model=1.0)
    answers = {name: server.ask(name, other if name == "e" else model) for name in server.names}
    unmasks = server.unmasks(model, answers, "abcd")  # they are told that the victim answered, too
    assert server.opens_nothing(model, answers, unmasks)
    others = {name: answers[name] for name in "abcd"}
    shorter = server.unmask_request(model, others, "a")
    assert "for another list" in refused(server.ask("a", shorter))
    assert server.is_closed(answers)


# ---- two lists of who answered


def test_two_lists_of_who_answered_open_nothing(serve_by_hand):
    server = serve_by_hand(5, max_dropouts=1, rescue=True)
    request = server.request()
    answers = server.turns(request)
    lists = {name: answers if name in "ab" else {one: answers[one] for one in "abcd"} for name in "abcd"}
    given = {name: server.ask(name, server.unmask_request(request, lists[name], name)) for name in "abcd"}
    assert server.opens_nothing(request, answers, {name: given[name] for name in "ab"})
    assert server.opens_nothing(request, lists["c"], {name: given[name] for name in "cd"})
    for name in "abcd":
        server.restart(name)
        second = lists["c"] if name in "ab" else answers
        assert "for another list" in refused(server.ask(name, server.unmask_request(request, second, name)))


# ---- other keys for others


def test_a_client_that_signs_two_keys_for_two_plans_learns_no_smaller_sum(serve_by_hand):
    """d works with the server, which shows a another run key of d than it shows b and c."""
    server = serve_by_hand(4)
    other_key = roster.new_run_key()
    public = roster.public_half(other_key)
    identity = roster.read_identity(Path(server.links["d"].key))
    signature = roster.sign(identity, roster.claim(server.offer, "d", server.agreement.sizes[3], public)).hex()
    other = changed(server.agreement, 3, keys=public.hex(), signatures=signature)
    assert not server.propose("a", other).is_refusal, "its key is its own affair"
    request = server.request()
    told = dataclasses.replace(request, meta={**request.meta, "agreement": other.digest})
    assert "another plan" in refused(server.ask("a", request))
    asked = {"a": told, "b": request, "c": request}
    answers = {name: server.ask(name, one) for name, one in asked.items()}
    keys = {"a": other_key, "b": (server.folder("d") / "run.key").read_bytes()}
    keys["c"] = keys["b"]
    for place, (name, one) in enumerate(asked.items()):  # what d knows of is taken away
        pair = masks.pair_secret(keys[name], bytes.fromhex(server.agreement.keys[place]))
        seed = masks.pair_seed(pair, fingerprint(one), place, 3)
        masked = answers[name].tensors["masked"].numpy()
        masked[:] = masks.unmask_sum(masked, {place: {3: seed}})
    assert server.is_closed(answers)


# ---- damage


def test_a_tampered_box_is_left_out_and_a_tampered_share_is_seen(serve_by_hand):
    server = serve_by_hand(5, max_dropouts=1, rescue=True)
    request = server.request()
    answers = server.turns(request)
    sealed = answers["b"].tensors["sealed"].numpy()
    sealed[0, 40] ^= 1  # of b for a
    unmasks = server.unmasks(request, answers)
    assert not unmasks["a"].tensors["shares"][1].any()
    assert (server.opened(request, answers, unmasks) == server.clear(request, server.names)).all()
    unmasks["c"].tensors["shares"].numpy()[2, 0, 3] ^= 1
    assert server.opens_nothing(request, answers, {name: unmasks[name] for name in "abcd"})


# ---- stores that are brought back


def put_back(server, name, kept):
    shutil.rmtree(server.root / name)
    shutil.copytree(kept, server.root / name)
    server.restart(name)
    server.vectors.clear()


def test_a_store_that_is_brought_back_takes_the_same_turn_again_to_the_bit(serve_by_hand, tmp_path):
    server = serve_by_hand(4)
    kept = shutil.copytree(server.root / "a", tmp_path / "kept")
    request = server.request()
    answers = server.turns(request)
    first = server.vectors["a", request.digest][0]
    put_back(server, "a", kept)
    assert server.ask("a", request).to_bytes() == answers["a"].to_bytes(), "the difference of both tells nothing"
    assert (first == server.vectors["a", request.digest][0]).all()
    put_back(server, "a", kept)
    other = server.ask("a", server.request(model=1.0))
    others = {name: answers[name] for name in "bcd"}
    assert server.is_closed({**others, "again": other}, {"first": answers["a"], "again": other})


def test_with_rescue_a_store_that_is_brought_back_masks_anew(serve_by_hand, tmp_path):
    server = serve_by_hand(4, max_dropouts=1, rescue=True)
    kept = shutil.copytree(server.root / "a", tmp_path / "kept")
    request = server.request()
    first, vector = server.ask("a", request), server.vectors["a", request.digest][0]
    put_back(server, "a", kept)
    second = server.ask("a", request)
    assert (server.vectors["a", request.digest][0] == vector).all()
    assert (first.tensors["masked"] != second.tensors["masked"]).any()
    assert server.is_closed({"first": first, "second": second})


def test_draws_follow_from_the_run_key_the_whole_message_and_the_state(serve_by_hand):
    server = serve_by_hand(3)
    store = RunStore(server.root / "a", "trial", "run-1")

    def drawn(request, state, name="a"):
        store = RunStore(server.root / name, "trial", "run-1")
        return SecureTurn.of(server.agreement, name, store, server.terms).draws(turn_id(request, state))(64)

    request, state = server.request(), store.state_digest()
    assert drawn(request, state) == drawn(server.request(), state)
    others = [server.request(0, 1), server.request(model=1.0), dataclasses.replace(request, kind="again")]
    seen = {drawn(request, state), *(drawn(one, state) for one in others)}
    seen |= {drawn(request, bytes(32)), drawn(request, state, "b")}
    assert len(seen) == 6


# ---- processes that end


def until_answered(server, name, request):
    """Ask as often as the client's process ends; then once more, as a server that was killed itself."""
    for _ in range(3):
        try:
            answer = server.ask(name, request)
        except Killed:
            server.restart(name)
            continue
        assert server.ask(name, request).to_bytes() == answer.to_bytes()
        return answer
    raise AssertionError(request.kind)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the other clients said in a run, and a client's store as it was before the first turn."""
    patch = pytest.MonkeyPatch()
    from conftest import TOY

    server = HandServer(
        values_with_shares(dict(TOY), 4, max_dropouts=1, rescue=True), tmp_path_factory.mktemp("told"), patch
    )
    server.enroll()
    kept = shutil.copytree(server.root / "a", server.root / "kept")
    steps = []
    for place in ((0, 0), (1, 0)):
        request = server.request(*place)
        answers = server.turns(request)
        server.unmasks(request, answers)
        steps.append((request, answers))
    yield server, kept, steps
    patch.undo()


@pytest.mark.parametrize("number", range(1, 13))
def test_a_client_killed_between_any_two_writes_gives_the_same_bytes_and_is_charged_once(told, number, monkeypatch):
    """Twice a charge, and a state for each turn and unmasking; scores; at the end prompts, statement and state."""
    server, kept, steps = told
    put_back(server, "a", kept)
    broken = []
    break_nth_write(monkeypatch, server.root / "a" / "trial", number, Killed(), broken)
    for request, others in steps:
        answers = {**others, "a": until_answered(server, "a", request)}
        until_answered(server, "a", server.unmask_request(request, answers, "a"))
        vectors = server.vectors["a", request.digest]
        assert all((vector == vectors[0]).all() for vector in vectors), "retaken, it is the same turn"
    finish = Envelope("finish", {**server.about(), "rounds": 2}, steps[0][0].tensors)
    until_answered(server, "a", finish)
    assert len(broken) == 1
    assert not (server.folder("a") / "run.key").exists()
    charges = (server.folder("a") / "ledger.jsonl").read_text().splitlines()
    assert [line.split('"round": ')[1][0] for line in charges] == ["1", "2"], "a turn that is the same is charged once"


@pytest.mark.parametrize("is_same", [True, False])
def test_a_turn_that_was_lost_is_charged_again_only_where_another_is_taken(serve_by_hand, monkeypatch, is_same):
    server, broken = serve_by_hand(3), []
    break_nth_write(monkeypatch, server.root / "a" / "trial", 2, Killed(), broken)
    with pytest.raises(Killed):
        server.ask("a", server.request())
    assert broken[0].endswith("state.safetensors"), "after the charge, before the answer"
    server.restart("a")
    assert not server.ask("a", server.request(model=0.0 if is_same else 1.0)).is_refusal
    assert len((server.folder("a") / "ledger.jsonl").read_text().splitlines()) == (1 if is_same else 2)


@pytest.mark.parametrize("number", range(1, 5))
def test_a_client_killed_while_it_joins_or_agrees_has_one_run_key(toy_values, tmp_path, monkeypatch, number):
    server = HandServer(values_with_shares(toy_values, 3), tmp_path, monkeypatch)
    broken = []
    break_nth_write(monkeypatch, server.root / "a" / "trial", number, Killed(), broken)
    agreement = None
    for _ in range(2):
        try:
            agreement = agreement or server.agreed()
            answer = server.propose("a", agreement)
        except Killed:
            server.restart("a")
    assert not answer.is_refusal
    assert len(broken) == 1
    assert server.join("a").meta["key"] == agreement.keys[0]
    assert not list(server.folder("a").glob(".run.key*"))
