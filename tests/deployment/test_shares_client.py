"""Secure aggregation at the client: what it refuses, whatever a server sends to whom, and that nothing else opens."""

import dataclasses
import shutil
from pathlib import Path

from helpers.layouts import image
from helpers.secure_clients import HandServer, changed, refused, values_with_shares
from hushprompt.data.readers.folder import Folder
from hushprompt.deployment import roster
from hushprompt.deployment.config import OwnerConfig
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.store import MOST_IDLE


def test_the_sum_over_all_participants_opens_by_itself_and_no_smaller_one(serve_by_hand):
    server = serve_by_hand(4, max_dropouts=1)
    for round_index, names in enumerate(("abcd", "abd")):
        request = server.request(round_index, participants=names)
        answers = server.turns(request)
        assert (server.opened(request, answers) == server.clear(request, names)).all()
        assert all(set(answer.tensors) == {"masked"} for answer in answers.values())
        assert all(answer.meta["context"] == request.digest for answer in answers.values())
        assert server.is_closed({name: answers[name] for name in names[1:]})


def test_with_rescue_a_sum_opens_without_those_who_were_lost(serve_by_hand):
    server = serve_by_hand(5, max_dropouts=1, rescue=True)
    for round_index, (lost, silent) in enumerate((("", "b"), ("c", ""))):
        request = server.request(round_index)
        answers = server.turns(request, [name for name in server.names if name != lost])
        unmasks = server.unmasks(request, answers, [name for name in answers if name != silent])
        assert (server.opened(request, answers, unmasks) == server.clear(request, answers)).all()
        assert server.is_closed(answers)


# ---- 1. a plan


def joined(toy_values, tmp_path, monkeypatch, num_clients=4, owner=None, **privacy):
    server = HandServer(values_with_shares(toy_values, num_clients, **privacy), tmp_path, monkeypatch, owner)
    return server, server.agreed()


def test_a_plan_is_taken_only_with_keys_that_pinned_clients_signed_for_this_run(toy_values, tmp_path, monkeypatch):
    server, agreement = joined(toy_values, tmp_path, monkeypatch)
    other = roster.public_half(roster.new_run_key())

    def signed(name, key, offer=agreement, size=None):
        size = agreement.sizes[server.names.index(name)] if size is None else size
        identity = roster.read_identity(Path(server.links[name].key))
        return roster.sign(identity, roster.claim(offer, name, size, key)).hex()

    own = bytes.fromhex(agreement.keys[0])
    same = bytes([*own[:31], own[31] ^ 128])  # X25519 does not look at the highest bit
    later = dataclasses.replace(agreement, run="run-2")
    cases = {
        "has not pinned: eve": dataclasses.replace(agreement, clients=("a", "b", "c", "eve")),
        "run key of d was not signed by the key of d": changed(agreement, 3, keys=other.hex()),
        "run key of b was not signed": changed(agreement, 1, signatures=signed("a", bytes.fromhex(agreement.keys[1]))),
        "run key of c was not signed": changed(
            agreement, 2, signatures=signed("c", bytes.fromhex(agreement.keys[2]), later)
        ),
        "Two clients of the plan have one run key": changed(agreement, 3, keys=own.hex(), signatures=signed("d", own)),
        "Two clients of the plan have one run key.": changed(
            agreement, 3, keys=same.hex(), signatures=signed("d", same)
        ),
        "The run key of d is none": changed(agreement, 3, keys="00" * 32, signatures=signed("d", bytes(32))),
        "another run key of a than its own": changed(agreement, 0, keys=other.hex(), signatures=signed("a", other)),
        "counts 9 training examples of a": changed(agreement, 0, sizes=9, signatures=signed("a", own, size=9)),
        "has no run keys": dataclasses.replace(agreement, keys=(), signatures=()),
        "must have a run key and a signature in hex": changed(agreement, 3, keys="x" * 64),
    }
    for why, plan in cases.items():
        assert why in refused(server.propose("a", plan))
        assert why in server.log("a")
        assert refused(server.ask("a", Envelope("turn", server.about(plan)))).startswith(
            "This client agreed to no such"
        )
    assert not server.propose("a", agreement).is_refusal


def test_a_plan_is_taken_only_with_as_many_clients_as_the_owner_wants(toy_values, tmp_path, monkeypatch):
    server, agreement = joined(toy_values, tmp_path, monkeypatch, max_dropouts=1)
    wanted = {
        "a sum may be over 3 clients, fewer than min_clients = 4": {"min_clients": 4},
        "max_colluding = 1 is below min_colluding = 2": {"min_colluding": 2},
        "with a share of the noise alone": {"require_noise_at": "client"},
    }
    for why, owner in wanted.items():
        server.owner = OwnerConfig(max_epsilon=20, max_delta=1, **owner)
        server.restart("a")
        assert why in refused(server.propose("a", agreement))
    server.owner = OwnerConfig(
        max_epsilon=20, max_delta=1, min_clients=3, require_noise_at="shares", require_rounding=False
    )
    server.restart("a")
    assert not server.propose("a", agreement).is_refusal


def test_who_wants_shares_takes_none_from_a_seed(toy_values, tmp_path, monkeypatch):
    """The server knows the seed of a run: it would take all of the noise out of the sum."""
    server, agreement = joined(toy_values, tmp_path, monkeypatch, noise_source="seeded")
    assert not server.propose("b", agreement).is_refusal
    for where in ("shares", "client"):
        server.owner = OwnerConfig(max_epsilon=20, max_delta=1, require_noise_at=where)
        server.restart("a")
        assert "noise would come from a seed that the server knows" in refused(server.propose("a", agreement))


def test_a_clip_norm_at_which_floating_point_numbers_end_is_refused(serve_by_hand):
    """At 1e-316 the step of the noise's grid would be 0, and a sum's signs would stand far above the noise."""
    server = serve_by_hand(4, adaptive_quantile=0.5)
    for norm in (1e-316, 1e-31, 1e31):
        reason = refused(server.ask("a", server.request(clip_norm=norm)))
        assert f"needs a clip norm from 1e-30 to 1e+30, got {norm}" in reason
    assert not server.vectors
    request = server.request(clip_norm=1e-30)
    assert (server.opened(request, server.turns(request)) == server.clear(request, server.names)).all()
    assert max(abs(server.clear(request, server.names).astype(float))) < 2.0**36, "noise, and not what is held at 2^52"


def test_no_list_of_the_servers_classes_is_tried_on_the_data_of_who_does_not_trust_it(
    toy_values, tmp_path, monkeypatch
):
    """Else an offer without one class would be refused exactly where the client has it."""
    for place in ("train/ant", "train/bee", "test/ant", "test/bee"):
        for index in range(4):
            image(tmp_path / "own" / place / f"{index}.png", 10 * len(place) + ord(place[-1]) + index)
    owner = {"require_noise_at": "shares"}
    server = HandServer(values_with_shares(toy_values, 3), tmp_path, monkeypatch, owner)

    def told(data, names):
        server.changes = {"share": None, "data": data}
        server.offer = dataclasses.replace(server.offer, class_names=names)
        server.restart("a")
        return server.join("a")

    has_both, has_all = ("ant", "bee"), ("ant", "bee", "cat")
    lists = (has_both, has_all, ("ant", "cat"))
    unnamed = Folder(root=str(tmp_path / "own"))
    reasons = {refused(told(unnamed, names)) for names in lists}
    assert len(reasons) == 1
    assert "has to name the classes of its data" in reasons.pop()
    named = dataclasses.replace(unnamed, classes=has_all)
    assert [told(named, names).is_refusal for names in lists] == [True, False, True]


def test_without_pinned_keys_or_with_wrong_ones_a_client_takes_no_part(toy_values, tmp_path, monkeypatch):
    server, agreement = joined(toy_values, tmp_path, monkeypatch, 3)
    server.links["a"] = dataclasses.replace(server.links["a"], peers="")
    server.restart("a")
    assert "Noise shares need link.key and link.peers" in refused(server.join("a"))
    server.links["a"] = dataclasses.replace(server.links["a"], peers=str(tmp_path / "nowhere"))
    server.restart("a")
    assert "owner can see why" in refused(server.join("a"))
    assert "nowhere has no public keys" in server.log("a")
    (tmp_path / "mine").mkdir()
    for mine, whose in (("b", "b"), ("c", "a")):  # the owner pinned a wrong file for c
        (tmp_path / "mine" / f"{mine}.pub").write_bytes((tmp_path / "peers" / f"{whose}.pub").read_bytes())
    server.links["a"] = dataclasses.replace(server.links["a"], peers=str(tmp_path / "mine"))
    server.restart("a")
    assert "owner can see why" in refused(server.propose("a", agreement))
    assert "own key under another name" in server.log("a")


def test_a_config_in_which_nobody_is_with_the_server_is_refused(toy_values, tmp_path, monkeypatch):
    server, agreement = joined(toy_values, tmp_path, monkeypatch)
    config = agreement.config.replace("max_colluding = 1", "max_colluding = 0")
    assert config != agreement.config
    assert "max_colluding must be at least 1" in refused(
        server.propose("a", dataclasses.replace(agreement, config=config))
    )


def test_a_run_key_is_the_owners_alone_and_lasts_from_the_first_invitation_to_the_end(serve_by_hand):
    server = serve_by_hand(3)
    path = server.folder("a") / "run.key"
    assert path.stat().st_mode & 0o777 == 0o600
    key = path.read_bytes()
    assert server.join("a").meta["key"] == server.agreement.keys[0] == roster.public_half(key).hex()
    server.turns(server.request())
    finish = Envelope("finish", {**server.about(), "rounds": 1}, server.request().tensors)
    told = server.ask("a", finish)
    assert not told.is_refusal
    assert not path.exists()
    assert all(key not in file.read_bytes() for file in server.folder("a").rglob("*") if file.is_file())
    assert "run key of a is gone" in refused(server.ask("a", server.request(1)))
    again = server.join("a").meta
    assert (again["key"], again["signature"]) == (server.agreement.keys[0], server.agreement.signatures[0])
    assert not path.exists(), "a run that was finished gets no new key"
    assert server.ask("a", finish).to_bytes() == told.to_bytes()


def test_invitations_to_ever_new_runs_fill_no_disk(serve_by_hand):
    server = serve_by_hand(3)
    server.turns(server.request(), ["a"])
    trained, store = server.folder("a"), server.root / "a"
    shutil.copytree(trained, trained.with_name("damaged"))
    (trained.with_name("damaged") / "ledger.jsonl").unlink()  # what was spent there nobody knows
    for number in range(20):
        server.offer = dataclasses.replace(server.offer, federation=f"fed-{number % 3}", run=f"new-{number}")
        assert not server.join("a").is_refusal
    newest = {f"new-{number}" for number in range(20 - MOST_IDLE, 20)}
    assert {path.parent.name for path in store.glob("*/*/run.key")} == {trained.name, "damaged", *newest}


def test_a_look_at_a_plan_leaves_no_key(toy_values, tmp_path, monkeypatch):
    server, agreement = joined(toy_values, tmp_path, monkeypatch, 3)
    assert not server.propose("a", agreement, "check").is_refusal
    assert not (server.folder("a") / "run.key").exists()


# ---- 2. a turn


def test_a_turn_is_taken_once_with_enough_clients_of_the_round_in_order(serve_by_hand):
    server = serve_by_hand(5, max_dropouts=1)
    wrong = "participants of a message must be clients of this round, each once, in order, with a"
    few = "are 3 clients, and the plan needs 4: a sum of fewer hides nobody"
    lists = [[*"bcde"], [*"abdce"], [*"aabcde"], [*"edcba"], ["a", "b", "c", "eve"], ["a", "b", "c", 4], [], 3, "abcde"]
    for names in (*lists, [*"abc"]):
        request = server.request()
        request = dataclasses.replace(request, meta={**request.meta, "participants": names})
        assert (few if names == [*"abc"] else wrong) in refused(server.ask("a", request))
    assert not (server.folder("a") / "ledger.jsonl").exists(), "nothing was charged for it"
    request = server.request(participants="abde")
    first = server.ask("a", request)
    assert server.ask("a", request).to_bytes() == first.to_bytes(), "the same again: the same bytes"
    for other in (server.request(), server.request(participants="abde", model=1.0)):
        assert "An update is computed once" in refused(server.ask("a", other))
    assert not server.ask("a", server.request(0, 1)).is_refusal
    assert "An update is computed once" in refused(server.ask("a", request))


def test_only_clients_of_the_rounds_cohort_take_part(toy_values, tmp_path, monkeypatch):
    values = values_with_shares(toy_values, 5)
    values["training"] = {"num_rounds": 2, "cohort_size": 4}
    server = HandServer(values, tmp_path, monkeypatch).enroll()
    cohort = [server.names[client_id] for client_id in sorted(server.agreement.arm.cohorts[0].tolist())]
    (other,) = set(server.names) - set(cohort)
    mixed = sorted({*cohort[:3], other})
    assert "must be clients of this round" in refused(server.ask(cohort[0], server.request(participants=mixed)))
    assert "no update" in refused(server.ask(other, server.request(participants=mixed)))
    request = server.request(participants=cohort)
    assert (server.opened(request, server.turns(request)) == server.clear(request, cohort)).all()


# ---- 3 and 4. an unmasking


def test_only_the_last_turn_is_unmasked_for_one_list_of_enough_participants(serve_by_hand):
    server = serve_by_hand(5, max_dropouts=1, rescue=True)
    old = server.request(0, 0)
    old_answers = server.turns(old)
    request = server.request(0, 1)
    answers = server.turns(request)
    ask = server.unmask_request
    last = "not about the turn that this client took last"
    lists = "answered of a message must be participants of this step, each once, in order, with a"
    right = ask(request, answers, "a")
    cut = {"sealed": right.tensors["sealed"][:4]}
    cases = [
        (last, ask(old, old_answers, "a")),
        (last, ask(request, answers, "a", context=old.digest)),
        (last, ask(request, answers, "a", round=1)),
        (last, ask(request, answers, "a", context=None)),
        (lists, ask(request, answers, "a", answered=[*"bcde"])),
        (lists, ask(request, answers, "a", answered=[*"edcba"])),
        (lists, ask(request, answers, "a", answered=["a", "b", "c", "d", "eve"])),
        (lists, dataclasses.replace(right, meta={**right.meta, "answered": "abcde"})),
        ("are 3 clients, and the plan needs 4", ask(request, answers, "a", answered=[*"abc"])),
        ("0 of the 5 boxes for this client can be opened, 4 are needed", ask(request, old_answers, "a")),
        ("sealed is torch.uint8 [4, 108], expected torch.uint8 [5, 108]", dataclasses.replace(right, tensors=cut)),
    ]
    for why, asked in cases:
        assert why in refused(server.ask("a", asked))
        assert why in server.log("a")
    told = server.ask("a", right).to_bytes()
    assert server.ask("a", right).to_bytes() == told, "the same list again: the same bytes"
    server.restart("a")
    assert server.ask("a", right).to_bytes() == told
    shorter = ask(request, {name: answers[name] for name in "abcd"}, "a")
    assert "Shares of this turn were given for another list" in refused(server.ask("a", shorter))
    assert server.ask("a", request).to_bytes() == answers["a"].to_bytes(), "its answer is still there, too"


def test_where_a_step_opens_by_itself_nothing_is_ever_unmasked(serve_by_hand):
    server = serve_by_hand(3)
    request = server.request()
    server.turns(request)
    asked = Envelope(
        "unmask", {**server.about(), "round": 0, "step": 0, "context": request.digest, "answered": [*"abc"]}
    )
    assert "nothing is ever unmasked" in refused(server.ask("a", asked))


def test_a_federation_without_noise_shares_knows_no_masks(toy_values, tmp_path, monkeypatch):
    values = values_with_shares(toy_values, 3, noise_at="client")
    server = HandServer(values, tmp_path, monkeypatch)
    said = server.join("a").meta
    assert (said["key"], said["signature"]) == ("", "")
    assert not (server.folder("a")).exists()
    server.agreement = server.agreed(keys=(), signatures=())
    server.propose("a", server.agreement)
    answer = server.ask("a", server.request())
    assert set(answer.tensors) == {"gradient"}
    assert "context" not in answer.meta
    assert "nothing is masked" in refused(
        server.ask("a", Envelope("unmask", {**server.about(), "round": 0, "step": 0}))
    )
