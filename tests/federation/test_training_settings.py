"""Partial participation, dropout, local steps and client-side noise: what they do, and what the claim must count."""

import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.reference import slow_gradients
from helpers.runs import files, run_with
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError, PrivacyError
from hushprompt.federation import client as turn
from hushprompt.federation import payload
from hushprompt.federation import server as meeting
from hushprompt.federation import training as rounds
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import assemble, client_sizes, load_model, make_partition
from hushprompt.federation.simulate import Trainer
from hushprompt.methods.base import Batch, OneRelease
from hushprompt.privacy.config import Audience, Channel
from hushprompt.privacy.mechanisms.gaussian import GaussianMechanism
from hushprompt.privacy.plan import PrivacyPlan
from hushprompt.registry import METHODS
from hushprompt.runs import records
from hushprompt.runs.state import flatten
from hushprompt.seeding import stream

UNEVEN = {"name": "dirichlet", "num_clients": 3, "alpha": 0.5}
PLAIN_PROMPTFL = {"name": "promptfl", "num_ctx": 4, "optimizer": {"learning_rate": 0.1, "momentum": 0.0}}
NO_NOISE = {"epsilon": math.inf, "delta": 1e-3, "clip_norm_global": 1e6, "clip_norm_local": 1e6}


def small(toy_values, training=None, privacy=None, num_clients=6, **sections):
    """A run of DP-FPL alone over six clients with full batches, whose noise is set in no time."""
    return {
        **toy_values,
        "sampling": {"name": "disjoint", "steps_per_round": 1},
        "partition": {"name": "disjoint_classes", "num_clients": num_clients},
        "references": [],
        **sections,
        "training": {"num_rounds": 4, **(training or {})},
        "privacy": {**toy_values["privacy"], **(privacy or {})},
    }


def arms_of(values):
    config = configs.parse(values)
    return plan_arms(config, client_sizes(make_partition(config, config.data.load())))


def asked_streams(monkeypatch):
    asked = []

    def spy(seed, purpose, *place):
        asked.append((purpose, *place))
        return stream(seed, purpose, *place)

    for side in (rounds, turn, meeting):
        monkeypatch.setattr(side, "stream", spy)
    return asked


def federation_of(values, tmp_path):
    config = configs.parse({**values, "runtime": {"cache_dir": str(tmp_path / "cache")}})
    dataset = config.data.load()
    return config, assemble(
        config, load_model(config, dataset, []), dataset, make_partition(config, dataset), lambda *_: None
    )


def test_a_cohort_of_all_clients_is_everyone(toy_values, tmp_path):
    everyone = run_with(small(toy_values), tmp_path, "everyone")[0]
    cohort = run_with(small(toy_values, {"cohort_size": 6}), tmp_path, "cohort")[0]
    first, second = files(everyone), files(cohort)
    for found in (first, second):  # the settings differ, and with them the identity
        del found["identity.json"]
        for entry in (*found["ledger.jsonl"], *found["summary.json"]):
            del entry["identity"]
    assert first == second


def test_only_the_cohort_steps_sends_and_draws(toy_values, tmp_path, monkeypatch):
    values = small(toy_values, {"cohort_size": 2, "num_rounds": 5})
    asked, states = asked_streams(monkeypatch), []
    true_score = Trainer.score

    def spy(self, arm, state, info):
        states.append((state, info))
        return true_score(self, arm, state, info)

    monkeypatch.setattr(Trainer, "score", spy)
    _, _, seen = run_with(values, tmp_path)
    cohorts = arms_of(values)[0].cohorts
    stranger, *_ = set(range(6)) - set(cohorts[0])
    before = [states[0][0].personal[stranger]] * 6  # all start with one and the same object
    for index, (after, info) in enumerate(states):
        assert info.clients == tuple(cohorts[index])
        for client_id, (old, new) in enumerate(zip(before, after.personal, strict=True)):
            assert (old is new) == (client_id not in cohorts[index]), "others are the same objects"
        before = after.personal
    drew = {(place[2], place[-1]) for place in asked if place[0] in ("batch", "view", "method")}
    assert drew == {(index, client_id) for index in range(5) for client_id in cohorts[index]}
    assert [(record.cohort_size, record.num_clients, record.bytes_up) for record in seen] == [(2, 2, 2 * 4 * 8 * 4)] * 5


def test_the_claim_counts_the_rounds_of_the_client_with_the_most(toy_values, tmp_path, monkeypatch):
    values = small(toy_values, {"cohort_size": 4, "num_rounds": 5})
    asked = asked_streams(monkeypatch)
    folder, (summary,), seen = run_with(values, tmp_path)
    (arm,) = arms_of(values)
    released = Counter(place[-1] for place in asked if place[:2] == ("noise", "local"))
    assert max(released.values()) == arm.plan.releases(Audience.PERSONAL).num_steps == 4, "of 5 rounds"
    assert min(released.values()) == 3
    so_far = np.zeros(6, dtype=int)
    for index, record in enumerate(seen):
        so_far[arm.cohorts[index]] += 1
        assert record.epsilon["personal"] == arm.plan.epsilon(Audience.PERSONAL, int(so_far.max()))
    assert seen[-1].epsilon["personal"] == summary.epsilon
    assert 7.9 < summary.epsilon <= 8.0, "the noise is set for four rounds, not five"
    noted = records.read_json(folder / "privacy.json")["arms"][0]["participation"]
    assert [(each["rounds"], each["num_clients"]) for each in noted["clients_by_rounds"]] == [(3, 4), (4, 2)]
    for each in noted["clients_by_rounds"]:
        assert each["epsilon"]["personal"] == arm.plan.epsilon(Audience.PERSONAL, each["rounds"])
    assert "no amplification is claimed" in noted["statement"]


def test_a_failed_client_is_charged_and_the_divisor_stays(toy_values, tmp_path, monkeypatch):
    values = small(toy_values, {"cohort_size": 4, "num_rounds": 8, "dropout_rate": 0.4})
    counts = set()
    true_mechanism = PrivacyPlan.mechanism

    def spy(self, *, allowed, expected_count, **others):
        counts.add((allowed, expected_count))
        return true_mechanism(self, allowed=allowed, expected_count=expected_count, **others)

    monkeypatch.setattr(PrivacyPlan, "mechanism", spy)
    _, _, seen = run_with(values, tmp_path)
    assert counts == {(Channel.LOCAL, 12), (Channel.GLOBAL, 48)}
    assert all(record.cohort_size == 4 for record in seen)
    assert min(record.num_clients for record in seen) < 3
    assert max(record.num_clients for record in seen) == 4
    (arm,) = arms_of(values)
    assert seen[-1].epsilon["personal"] == arm.plan.epsilon(Audience.PERSONAL, int(arm.cohorts.most_rounds[8]))


def test_who_fails_does_not_depend_on_the_data(toy_values, tmp_path):
    other = {**small(toy_values, {"dropout_rate": 0.5}), "data": {"name": "toy", "num_train": 20}}
    num_clients = [
        [record.num_clients for record in run_with(values, tmp_path, str(at))[2]]
        for at, values in enumerate((small(toy_values, {"dropout_rate": 0.5}), other))
    ]
    assert num_clients[0] == num_clients[1]


@pytest.mark.parametrize(
    "extra", [{}, {"noise_at": "client"}, {"noise_at": "client", "local": 2}], ids=["sums", "gradients", "copies"]
)
def test_a_round_in_which_everybody_fails_changes_nothing_but_the_budget(toy_values, tmp_path, extra):
    training = {"dropout_rate": 1.0, "local_steps": extra.get("local", 1)}
    privacy = {"noise_at": extra.get("noise_at", "server")}
    sampling = {"name": "disjoint", "steps_per_round": 2}
    values = small(toy_values, training, privacy, sampling=sampling)
    folder, (arm,), seen = run_with(values, tmp_path)
    config, federation = federation_of(values, tmp_path)
    shared, personal = config.method.init(federation.model, stream(3, "init"))
    assert torch.equal(load_file(folder / "prompts" / "global.safetensors")["context"], shared.context)
    client = load_file(folder / "prompts" / "client-000.safetensors")["context"]
    assert torch.equal(client, shared.context + personal.context)
    assert [(r.num_clients, r.bytes_up, r.bytes_down) for r in seen] == [(0, 0, 0)] * 4
    assert seen[-1].epsilon["personal"] == arm.epsilon > 7.9


def test_local_steps_need_noise_on_the_client_or_none(toy_values):
    sampling = {"name": "disjoint", "steps_per_round": 4}
    with pytest.raises(PrivacyError, match='noise_at = "client"'):
        arms_of(small(toy_values, {"local_steps": 2}, sampling=sampling))
    assert arms_of(small(toy_values, {"local_steps": 2}, {"noise_at": "client"}, sampling=sampling))
    assert arms_of(small(toy_values, {"local_steps": 2}, {"epsilon": math.inf}, sampling=sampling))
    alone = {"name": "local_only", "num_ctx": 4}
    assert arms_of(small(toy_values, {"local_steps": 2}, sampling=sampling, method=alone)), "nothing is shared"
    with pytest.raises(ConfigError, match=r"must divide sampling\.steps_per_round = 4"):
        arms_of(small(toy_values, {"local_steps": 3}, {"noise_at": "client"}, sampling=sampling))
    with pytest.raises(ConfigError, match="at most the number of clients, 6, got 7"):
        arms_of(small(toy_values, {"cohort_size": 7}))


def test_without_noise_it_does_not_matter_where_it_is_added(toy_values, tmp_path):
    contexts = []
    for noise_at in ("server", "client"):
        privacy = {"noise_at": noise_at, "epsilon": math.inf}
        values = small(toy_values, {"cohort_size": 2, "dropout_rate": 0.3}, privacy, partition=UNEVEN)
        folder = run_with(values, tmp_path, noise_at)[0]
        contexts.append({p.name: load_file(p)["context"] for p in (folder / "prompts").iterdir()})
    for name, context in contexts[0].items():
        torch.testing.assert_close(context, contexts[1][name], rtol=1e-4, atol=1e-6)


def test_one_client_alone_may_take_any_number_of_local_steps(toy_values, tmp_path):
    contexts = []
    for local_steps in (1, 2, 4):
        sampling = {"name": "disjoint", "steps_per_round": 4}
        privacy = {"epsilon": None, "noise_multiplier_local": 0.1, "noise_multiplier_global": 0.1, "noise_at": "client"}
        values = small(toy_values, {"local_steps": local_steps}, num_clients=1, sampling=sampling)
        values["privacy"] = {**privacy, "epsilon": "none", "delta": 1e-3}
        folder = run_with(values, tmp_path, str(local_steps))[0]
        contexts.append(load_file(folder / "prompts" / "global.safetensors")["context"])
    torch.testing.assert_close(contexts[1], contexts[0])
    torch.testing.assert_close(contexts[2], contexts[0])


@pytest.mark.parametrize("weighting", ["size", "equal"])
def test_local_steps_are_federated_averaging_written_out(toy_values, tmp_path, weighting):
    training = {"num_rounds": 2, "local_steps": 2, "weighting": weighting, "cohort_size": 2}
    values = small(toy_values, training, NO_NOISE, method=PLAIN_PROMPTFL, partition=UNEVEN)
    values["sampling"] = {"name": "disjoint", "steps_per_round": 2}
    folder, _, seen = run_with(values, tmp_path)
    config, federation = federation_of(values, tmp_path)
    shared, _ = config.method.init(federation.model, stream(3, "init"))
    context, features = shared.context, federation.train_features["pooled"].tensor()
    (arm,) = arms_of(values)
    for index in range(2):
        copies, sizes = [], []
        for client_id in arm.cohorts[index]:
            mine, copy = federation.partition.clients[client_id].indices["train"], context
            for batch in config.sampling.batches(len(mine), stream(3, "batch", arm.label, index, int(client_id))):
                examples = torch.from_numpy(mine[batch])
                grads = slow_gradients(
                    federation.model, copy, Batch(features[examples], federation.train_labels[examples])
                )
                copy = copy - 0.1 * grads.sum(dim=0) / (len(mine) / 2)
            copies.append(copy)
            sizes.append(len(mine) if weighting == "size" else 1)
        context = sum(size * copy for size, copy in zip(sizes, copies, strict=True)) / sum(sizes)
    got = load_file(folder / "prompts" / "global.safetensors")["context"]
    torch.testing.assert_close(got, context, rtol=1e-4, atol=1e-6)
    copy_bytes = sum(tensor.element_size() * tensor.numel() for tensor in flatten(shared).values())
    assert [(record.bytes_up, record.bytes_down) for record in seen] == [(2 * copy_bytes, 2 * copy_bytes)] * 2


def messages_of(values, tmp_path, monkeypatch, name):
    """What the clients' gradients were when they arrived in the first round."""
    arrived = []
    true_average = payload.average_gradients

    def spy(messages, weights):
        arrived.append(messages)
        return true_average(messages, weights)

    with monkeypatch.context() as patch:
        patch.setattr(payload, "average_gradients", spy)
        run_with(values, tmp_path, name)
    return torch.stack(list(arrived[0]))


def test_the_noise_enters_on_the_client_in_full_and_independently(toy_values, tmp_path, monkeypatch):
    asked = asked_streams(monkeypatch)
    method = {"name": "promptfl", "num_ctx": 30}
    sent = []
    for noise in (0.0, 3.0):
        values = small(toy_values, {"num_rounds": 1}, method=method, backbone={"name": "toy", "token_width": 64})
        values["privacy"] = {
            "epsilon": "none", "delta": 1e-3, "noise_at": "client", "clip_norm_global": 0.5,
            "noise_multiplier_local": noise, "noise_multiplier_global": noise,
        }  # fmt: skip
        sent.append(messages_of(values, tmp_path, monkeypatch, str(noise)))
    noise = (sent[1] - sent[0]).flatten(1)  # [clients, t e]
    expected_std = 3.0 * 0.5 / 12  # noise multiplier x clip norm / the client's public expected batch
    for own in noise:
        assert float(own.std()) == pytest.approx(expected_std, rel=0.08)
        assert abs(float(own.mean())) < 5 * expected_std / len(own) ** 0.5
    correlations = torch.corrcoef(noise) - torch.eye(6)
    assert float(correlations.abs().max()) < 5 / noise.shape[1] ** 0.5
    drawn = [place for place in asked if place[:2] == ("noise", "global")]
    assert len(set(drawn[:6])) == 6
    assert all(len(place) == 6 for place in drawn), "every draw names a client: the server draws none"


def test_every_local_step_is_a_release_that_the_claim_counts(toy_values, tmp_path, monkeypatch):
    sampling = {"name": "poisson", "sampling_prob": 0.5, "steps_per_round": 4}
    values = small(toy_values, {"local_steps": 2, "cohort_size": 3}, {"noise_at": "client"}, sampling=sampling)
    asked, releases = asked_streams(monkeypatch), []
    true_release = GaussianMechanism.release
    monkeypatch.setattr(GaussianMechanism, "release", lambda s, c, x: releases.append(c) or true_release(s, c, x))
    folder, _, _ = run_with(values, tmp_path)
    (arm,) = arms_of(values)
    shared = Counter(place[-1] for place in asked if place[:2] == ("noise", "global"))
    assert max(shared.values()) == arm.plan.releases(Audience.SERVER).num_steps == 2 * 4
    assert releases.count(Channel.GLOBAL) == releases.count(Channel.LOCAL) == sum(shared.values()) == 4 * 3 * 4
    assert len({place for place in asked if place[0] == "noise"}) == 2 * 4 * 3 * 4
    noted = records.read_json(folder / "privacy.json")
    assert set(noted["arms"][0]["audiences"]) == {"public", "personal", "server"}
    assert "need not be trusted" in noted["server"]
    assert json.loads((folder / "records.jsonl").read_text().splitlines()[-1])["epsilon"].keys() == {
        "public", "personal", "server"
    }  # fmt: skip


KINDS = {
    "cohort and dropout": ({"cohort_size": 4, "dropout_rate": 0.3, "num_rounds": 7}, {}, {}),
    "local steps": ({"cohort_size": 3, "local_steps": 2, "num_rounds": 6}, {"noise_at": "client"}, {}),
    "client noise": ({"dropout_rate": 0.3, "num_rounds": 4}, {"noise_at": "client"}, {}),
    "rare evaluation": ({"num_rounds": 6, "cohort_size": 2}, {}, {"every": 4, "last_rounds": 3, "base_classes": 0.5}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_to_the_same_bits_with_every_setting(toy_values, tmp_path, kind):
    training, privacy, evaluation = KINDS[kind]
    sampling = {"name": "disjoint", "steps_per_round": 2}
    references = [{"method": {"name": "promptfl", "num_ctx": 4}}]
    num_clients = 3 if evaluation else 6
    values = small(
        toy_values, training, privacy, num_clients, sampling=sampling, references=references, evaluation=evaluation
    )
    whole = run_with(values, tmp_path, "whole")[0]
    for stop in (2, 1, 2):  # the last of them in the second arm, or close to the end of the first
        with pytest.raises(KeyboardInterrupt):
            run_with(values, tmp_path, "stopped", stop)
    stopped = run_with({**values, "runtime": {"num_threads": 2}}, tmp_path, "stopped")[0]
    assert files(stopped) == files(whole)


def trains_in_rounds(name):
    """Methods of one release refuse all this, as their own tests show."""
    return METHODS.get(name).channels and not isinstance(METHODS.get(name)(), OneRelease)


@pytest.mark.parametrize("name", list(filter(trains_in_rounds, METHODS.names())))
def test_every_method_takes_every_setting(toy_values, tmp_path, name):
    """Local steps on copies, a cohort, a client that fails, and classes that nobody trains on."""
    known = {"num_ctx": 4, "rank": 2}
    fields = {field.name for field in dataclasses.fields(METHODS.get(name))}
    method = {"name": name, **{key: value for key, value in known.items() if key in fields}}
    training = {"local_steps": 2, "cohort_size": 2, "dropout_rate": 0.3, "num_rounds": 3}
    values = small(toy_values, training, num_clients=3, method=method, evaluation={"base_classes": 0.5})
    values["sampling"] = {"name": "disjoint", "steps_per_round": 2}
    values["privacy"] = {
        "epsilon": "none", "delta": 1e-3, "noise_at": "client", "noise_multiplier_local": 1.0,
        "noise_multiplier_global": 1.0,
    }  # fmt: skip
    _, (arm,), seen = run_with(values, tmp_path)
    assert 0 <= arm.new <= 1
    assert 0 < arm.epsilon < math.inf
    assert (seen[0].bytes_up > 0) == (Channel.GLOBAL in METHODS.get(name).channels)
