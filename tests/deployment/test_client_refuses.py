"""What a client refuses, whatever the server asks: before training, and at every turn."""

import dataclasses
import json
import tomllib

import pytest
import tomli_w
import torch

from helpers.deployments import Deployment
from hushprompt.config import parse as configs
from hushprompt.config.schema import RuntimeConfig
from hushprompt.data.sets.toy import ToyData
from hushprompt.deployment import client_node, policy, store
from hushprompt.deployment.agreement import Agreement, make_offer, open_model, version
from hushprompt.deployment.client_features import MOST_KEPT
from hushprompt.deployment.client_node import open_client_node
from hushprompt.deployment.config import OwnerConfig, ShareConfig
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.examples import open_examples
from hushprompt.deployment.store import MOST_IDLE
from hushprompt.errors import ConfigError, ProtocolError
from hushprompt.features.cache import cached
from hushprompt.features.store import key_of
from hushprompt.federation import rounding
from hushprompt.privacy.config import Audience
from hushprompt.runs import records


class Asking:
    """A server's side by hand, which may ask for anything."""

    def __init__(self, values, tmp_path, sizes=(24, 24, 24), run="run-1", **client):
        deployed = Deployment(values, tmp_path)
        config = deployed.config
        self.site = deployed.site("ann", **client)
        self.backbone = config.run.backbone.load().fingerprint
        self.offer = make_offer("trial", run, config.run, config.class_names(), self.backbone)
        self.agreement = Agreement(**self.offer.to_json(), clients=("ann", "bob", "cyd"), sizes=sizes)
        self.folder = deployed.root / "ann" / "trial" / run

    def join(self, said=None, **offer):
        said = {**version(), "offer": {**self.offer.to_json(), **offer}, **(said or {})}
        return self.site.answer(Envelope("join", said))

    def plan(self, **changes):
        agreement = dataclasses.replace(self.agreement, **changes)
        return self.site.answer(Envelope("plan", {**version(), "agreement": agreement.to_json()}))

    def turn(self, round_index=0, step=0, context=None, **meta):
        said = {"federation": "trial", "run": self.folder.name, "agreement": self.agreement.digest}
        said |= {"round": round_index, "step": step, **meta}
        context = torch.zeros(4, 8) if context is None else context
        return self.site.answer(Envelope("turn", said, {"context": context}))

    @property
    def charged(self):
        path = self.folder / "ledger.jsonl"
        return [json.loads(line)["round"] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def log(self):
        return (self.site.store / "refusals.jsonl").read_text()


def two_steps(toy_values):
    return {**toy_values, "references": [], "sampling": {"name": "disjoint", "steps_per_round": 2}}


@pytest.fixture
def values(toy_values):
    return two_steps(toy_values)


@pytest.fixture
def asking(values, tmp_path):
    return Asking(values, tmp_path)


def reason(answer):
    assert answer.is_refusal
    assert not answer.tensors
    return answer.meta["reason"]


@pytest.mark.parametrize(
    ("said", "offer", "message"),
    [
        ({"package": "0.0.1"}, {}, "package version"),
        ({"protocol": 99}, {}, "protocol version"),
        ({}, {"backbone": "f" * 64}, "fingerprint"),
        ({}, {"class_names": ("cat", "dog")}, "the federation has 2, cat, dog"),
        ({}, {"federation": "../trial"}, "name of the federation must begin"),
        ({}, {"run": "a/b"}, "name of the run must begin"),
        ({}, {"config": "seed = 1"}, "section backbone is missing"),
        ({"offer": 3}, {}, "not what this version agrees on"),
        ({}, {"class_names": [1]}, "wrong type"),
    ],
)
def test_an_offer_that_does_not_fit_is_refused_before_anything(asking, said, offer, message):
    assert message in reason(asking.join(said, **offer))
    assert message in asking.log
    assert not asking.folder.exists()


def test_joining_tells_name_size_versions_and_backbone_and_nothing_else(asking):
    answer = asking.join()
    keys = {"key": "", "signature": ""}  # without noise shares there are none
    assert answer.meta == {"client": "ann", "num_examples": 24, "backbone": asking.backbone, **version(), **keys}
    assert not answer.tensors


def test_a_share_that_does_not_exist_and_an_unknown_message_are_refused(values, tmp_path):
    asking = Asking(values, tmp_path, share=ShareConfig(client=3))
    assert "share.client must be below 3" in reason(asking.join())
    assert "does not know the message 'weights'" in reason(asking.site.answer(Envelope("weights")))


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ({"max_epsilon": 7.9}, "epsilon of all runs here to 8, above 7.9"),
        ({"max_delta": 1e-4}, "delta of all runs here to 0.001, above 0.0001"),
        ({"min_noise_multiplier_local": 50.0}, "local noise multiplier"),
        ({"min_noise_multiplier_global": 50.0}, "global noise multiplier"),
        ({"max_clip_norm_local": 0.5}, "local clip norm 1 is above 0.5"),
        ({"max_clip_norm_global": 0.5}, "global clip norm 1 is above 0.5"),
        ({"require_noise_at": "client"}, "reach the server without noise"),
        ({"require_noise_at": "shares"}, "reach the server without noise"),
        ({"require_noise_source": "secure"}, "a seed that the server knows"),
        ({"require_unit": "group"}, 'protected is one example, and the owner asks for privacy_unit = "group"'),
    ],
)
def test_a_plan_that_the_owner_does_not_allow_is_refused(values, tmp_path, owner, message):
    allowed = {"max_epsilon": 8.0, "max_delta": 1e-3}
    assert not Asking(values, tmp_path, owner=OwnerConfig(**allowed)).plan().is_refusal
    asking = Asking(values, tmp_path, run="run-2", owner=OwnerConfig(**{**allowed, **owner}))
    told = reason(asking.plan())
    assert message in told
    assert "owner" in told
    assert "no such run" in reason(asking.turn())
    assert not asking.folder.exists()


def test_plans_of_ever_new_runs_fill_no_disk(asking):
    for number in range(MOST_IDLE + 2):
        assert not asking.plan(run=f"new-{number}").is_refusal
    kept = {path.name for path in asking.folder.parent.iterdir()}
    assert kept == {f"new-{number}" for number in range(2, MOST_IDLE + 2)}


def with_features(asking, **section):
    """The config of a plan, as a server may write it."""
    return tomli_w.dumps({**tomllib.loads(asking.offer.config), "features": section})


def test_plans_of_ever_new_features_fill_no_disk(values, tmp_path):
    cache = tmp_path / "somewhere else"
    asking = Asking(values, tmp_path, runtime=RuntimeConfig(cache_dir=str(cache)))
    examples, run = open_examples(asking.site.config, asking.offer), configs.parse(values)
    model = open_model(run, asking.offer.class_names)
    examples.features(model, dataclasses.replace(run, runtime=asking.site.config.runtime), "train", "pooled")
    kept = []
    for seed in range(MOST_KEPT + 2):
        assert not asking.plan(config=with_features(asking, num_views=2, view_seed=seed)).is_refusal
        kept.append({key_of(path).view_seed for path in cache.glob("features/*/*")} - {None})
    assert kept[-1] == set(range(3, MOST_KEPT + 2))
    assert len(kept[0]) == 1
    assert any(entry.split == "train" and entry.num_views == 1 for entry in cached(cache)), "the owner's own"
    told = reason(asking.plan(config=with_features(asking, num_views=100_000)))
    assert "owner allows 2,048 (owner.max_image_kb in client.toml" in told
    assert len(list(cache.glob("features/*/*"))) == MOST_KEPT + 1


def test_a_store_holds_no_more_than_so_many_runs_and_refusals(asking, monkeypatch):
    monkeypatch.setattr(store, "MOST_RUNS", 2)
    for number in range(2):
        assert not asking.plan(run=f"run-{number}").is_refusal
        (asking.folder.with_name(f"run-{number}") / "records.jsonl").write_text("{}\n")
    assert "holds 2 runs, as many as it takes" in reason(asking.plan(run="run-9"))
    assert not asking.plan(run="run-1").is_refusal, "one of them goes on"
    monkeypatch.setattr(client_node, "MOST_REFUSALS", 2000)
    for number in range(40):
        asking.site.refuse("turn", f"for the reason {number}")
    lines = asking.log.splitlines()
    assert len(asking.log) <= 2000
    assert "for the reason 39" in lines[-1]
    assert 5 < len(lines) < 40
    assert all(json.loads(line)["kind"] == "turn" for line in lines)


def test_noise_that_leaves_out_rounding_is_refused_unless_the_owner_allows_it(values, tmp_path):
    values["privacy"] = {"epsilon": 8.0, "delta": 1e-3, "rounding": 0.0}
    assert "does not account for rounding of the model" in reason(Asking(values, tmp_path).plan())
    owner = OwnerConfig(max_epsilon=8.0, max_delta=1e-3, require_rounding=False)
    assert not Asking(values, tmp_path, owner=owner).plan().is_refusal


def test_which_splits_a_client_has_is_told_to_its_owner_alone(values, tmp_path, monkeypatch):
    asking, load = Asking({**values, "evaluation": {"split": "validation"}}, tmp_path), ToyData.load

    def without_validation(section):
        dataset = load(section)
        splits = {name: split for name, split in dataset.splits.items() if name != "validation"}
        return dataclasses.replace(dataset, splits=splits)

    monkeypatch.setattr(ToyData, "load", without_validation)
    for answer in (asking.join(), asking.plan()):
        assert reason(answer) == "This client cannot do that now; its owner can see why."
    assert "evaluation.split" in asking.log


def test_noise_that_is_missing_is_an_infinite_epsilon(values, tmp_path):
    values["privacy"] = {"epsilon": float("inf"), "delta": 1e-3}
    assert "to inf, above 8" in reason(Asking(values, tmp_path, owner=OwnerConfig(max_epsilon=8, max_delta=1)).plan())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (23, 24, 24)}, "counts 23 training examples of ann, which has 24"),
        ({"clients": ("eve", "bob", "cyd")}, "no client 'ann'"),
        ({"clients": ("ann", "ann", "cyd")}, "each client once"),
        ({"sizes": (24, 24)}, "each client once"),
    ],
)
def test_a_plan_with_other_clients_is_refused(asking, changes, message):
    assert message in reason(asking.plan(**changes))


def test_a_plan_can_change_until_training_begins_and_not_after(asking):
    smaller = {"clients": ("ann", "bob"), "sizes": (24, 24)}
    for changes in ({}, smaller, {}, {}):
        assert not asking.plan(**changes).is_refusal
    assert not asking.turn().is_refusal
    assert "Training began under another plan" in reason(asking.plan(**smaller))
    assert not asking.plan().is_refusal
    assert not asking.turn(step=1).is_refusal


@pytest.mark.parametrize(
    ("request_changes", "message"),
    [
        ({"agreement": "0" * 64}, "another plan"),
        ({"run": "run-9"}, "no such run"),
        ({"federation": None}, "must name its federation"),
        ({"round_index": 3}, "round of a message must be a whole number from 0 to 2"),
        ({"round_index": -1}, "round of a message"),
        ({"round_index": True}, "round of a message"),
        ({"step": 2}, "step of a message must be a whole number from 0 to 1"),
        ({"context": torch.zeros(4, 9)}, r"context is torch.float32 [4, 9], expected torch.float32 [4, 8]"),
        ({"context": torch.zeros(4, 8).double()}, "expected torch.float32"),
        ({"context": torch.full((4, 8), float("nan"))}, "NaN or infinite"),
    ],
)
def test_a_turn_outside_the_plan_is_refused_and_not_charged(asking, request_changes, message):
    asking.plan()
    assert message in reason(asking.turn(**request_changes))
    assert asking.charged == []


def test_a_turn_is_taken_once_and_asked_again_gives_the_same_bytes(toy_values, tmp_path):
    asking = Asking(two_steps(toy_values), tmp_path)
    asking.plan()
    first = asking.turn()
    assert asking.turn().to_bytes() == first.to_bytes()
    other = torch.ones(4, 8)
    assert "An update is computed once" in reason(asking.turn(context=other))
    second = asking.turn(step=1)
    assert "An update is computed once" in reason(asking.turn())
    assert asking.turn(step=1).to_bytes() == second.to_bytes()
    assert not asking.turn(1).is_refusal
    assert "An update is computed once" in reason(asking.turn(0, 1))
    assert asking.charged == [1, 2], "a round is charged once, whatever its steps"


def test_the_owners_budget_holds_at_every_turn_even_where_the_plan_was_not_looked_at(toy_values, tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "check_plan", lambda *_: None)
    asking = Asking(two_steps(toy_values), tmp_path, owner=OwnerConfig(max_epsilon=6.5, max_delta=1.0))
    asking.plan()
    plan = asking.agreement.arm.plan
    allowed = [rounds for rounds in (1, 2, 3) if plan.epsilon(Audience.PERSONAL, rounds) <= 6.5]
    assert allowed == [1, 2], "else this test shows nothing"
    answers = [asking.turn(index) for index in range(3)]
    assert [answer.is_refusal for answer in answers] == [False, False, True]
    assert "The owner's privacy budget forbids this round" in reason(answers[2])
    assert asking.charged == [1, 2]
    assert policy.spent(asking.folder) == (plan.epsilon(Audience.PERSONAL, 2), 1e-3)


def test_runs_add_up_against_the_owners_limits(toy_values, tmp_path):
    values = two_steps(toy_values)
    first = Asking(values, tmp_path, owner=OwnerConfig(max_epsilon=10, max_delta=1))
    first.plan()
    first.turn()
    spent = first.agreement.arm.plan.epsilon(Audience.PERSONAL, 1)
    second = Asking(values, tmp_path, run="run-2", owner=OwnerConfig(max_epsilon=10, max_delta=1))
    assert f"to {spent + 8:.4g}, above 10" in reason(second.plan())
    enough = OwnerConfig(max_epsilon=spent + 8 + 1e-6, max_delta=2e-3)
    assert not Asking(values, tmp_path, run="run-2", owner=enough).plan().is_refusal
    tight = OwnerConfig(max_epsilon=100, max_delta=1.5e-3)
    assert "delta of all runs" in reason(Asking(values, tmp_path, run="run-3", owner=tight).plan())


def test_a_lost_ledger_or_state_stops_a_client_and_the_server_is_told_no_path(asking):
    asking.plan()
    asking.turn()
    ledger = asking.folder / "ledger.jsonl"
    kept = ledger.read_bytes()
    ledger.unlink()
    told = reason(asking.turn(1))
    assert told == "This client cannot do that now; its owner can see why."
    assert "what was spent is not known" in asking.log
    ledger.write_bytes(kept)
    (asking.folder / "state.safetensors").write_bytes(b"damaged")
    assert reason(asking.turn(1)) == told
    assert "what left is not known" in asking.log


def test_one_process_at_a_time_writes_to_a_store(asking):
    asking.plan()
    with records.locked(asking.site.store):
        assert asking.turn().is_refusal
    assert "Another process" in asking.log
    assert asking.charged == []
    assert not asking.turn().is_refusal


def test_a_client_whose_model_rounds_by_more_than_the_noise_is_for_refuses_the_plan(values, tmp_path, monkeypatch):
    asking = Asking(values, tmp_path)
    asking.join()
    monkeypatch.setattr(rounding, "measure", lambda *args: 1.0)
    answer = asking.plan()
    assert answer.kind == "refusal"
    assert "clipped gradients of this model move" in asking.log
    assert not asking.charged
    assert not (asking.folder / "agreement.json").exists()


def test_a_clip_norm_above_the_owners_is_refused(values, tmp_path):
    values["privacy"] = {"epsilon": 8.0, "delta": 1e-3, "adaptive_quantile": 0.5}
    owner = OwnerConfig(max_epsilon=8, max_delta=1, max_clip_norm_global=1.5)
    asking = Asking(values, tmp_path, owner=owner)
    asking.plan()
    assert "needs a clip norm from 1e-30 to 1e+30, got None" in reason(asking.turn())
    assert "came to 2, above 1.5" in reason(asking.turn(clip_norm=2.0))
    assert asking.charged == []
    answer = asking.turn(clip_norm=1.2)
    assert abs(answer.tensors["count"]) <= 12


def test_a_run_that_no_owner_allows_does_not_begin(values, tmp_path):
    deployed = Deployment(values, tmp_path, owner={"max_epsilon": 1.0})
    with pytest.raises(ProtocolError, match="0 clients accept the plan"):
        deployed.serve()
    assert len(deployed.reasons()) == 3
    assert all("does not allow this plan" in why for why in deployed.reasons())


def test_the_owners_limit_counts_every_audience(toy_values, tmp_path):
    """The target is the public's, who sees nothing here; whoever gets the personal prompt does, and it counts."""
    values = two_steps(toy_values)
    noise = {"noise_multiplier_local": 5.0, "noise_multiplier_global": 20.0}
    values["privacy"] = {"epsilon": "none", "delta": 1e-3, "audience": "public", **noise}
    values["method"] = {"name": "local_only", "num_ctx": 4}
    asking = Asking(values, tmp_path, owner=OwnerConfig(max_epsilon=0.5, max_delta=1.0))
    plan = asking.agreement.arm.plan
    assert plan.epsilon(Audience.PUBLIC, 3) == 0 < 0.5 < plan.epsilon(Audience.PERSONAL, 3), "else this shows nothing"
    assert "above 0.5" in reason(asking.plan())


def later(values, tmp_path):
    """A client that took one turn of a run, and the plan of a second run that just fits beside it."""
    owner = OwnerConfig(max_epsilon=12, max_delta=1)
    first = Asking(values, tmp_path, owner=owner)
    first.plan()
    first.turn()
    return first, Asking(values, tmp_path, run="run-2", owner=owner)


@pytest.mark.parametrize("lost", ["agreement.json", "state.safetensors"])
def test_what_was_spent_follows_from_the_ledger_whatever_else_is_lost(values, tmp_path, lost):
    first, second = later(values, tmp_path)
    (first.folder / lost).unlink()
    assert policy.spent(first.folder)[0] == first.agreement.arm.plan.epsilon(Audience.PERSONAL, 1)
    tight = OwnerConfig(max_epsilon=policy.spent(first.folder)[0] + 7.9, max_delta=1)
    second.site.config = dataclasses.replace(second.site.config, owner=tight)
    assert "of all runs here" in reason(second.plan())


def test_a_lost_ledger_of_another_run_stops_everything(toy_values, tmp_path):
    first, second = later(two_steps(toy_values), tmp_path)
    assert not second.plan().is_refusal
    (first.folder / "ledger.jsonl").unlink()
    assert reason(second.plan()) == "This client cannot do that now; its owner can see why."
    assert reason(second.turn()) == "This client cannot do that now; its owner can see why."
    assert second.charged == []
    assert "what was spent is not known" in second.log


def test_what_an_older_version_charged_follows_from_its_agreement(values, tmp_path):
    first, _ = later(values, tmp_path)
    path = first.folder / "ledger.jsonl"
    said = policy.spent(first.folder)
    line = json.loads(path.read_text())
    del line["spent"]
    path.write_text(json.dumps(line) + "\n")
    assert policy.spent(first.folder) == said


def test_a_store_is_its_owners_alone(toy_values, tmp_path):
    asking = Asking(two_steps(toy_values), tmp_path)
    store = asking.site.store
    assert store.stat().st_mode & 0o777 == 0o700
    store.chmod(0o750)
    with pytest.raises(ConfigError, match=f"chmod 700 {store}"):
        open_client_node(asking.site.config)
