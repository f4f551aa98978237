"""Answers have the declared fields, and a length that depends on public values alone."""

import dataclasses

import pytest

from helpers.deployments import Deployment
from hushprompt.config import parse as configs
from hushprompt.deployment import wire
from hushprompt.deployment.agreement import Agreement, make_offer, version
from hushprompt.deployment.config import OwnerConfig, ShareConfig
from hushprompt.deployment.envelope import Envelope
from hushprompt.federation.client import Client
from hushprompt.seeding import stream

ADAPTIVE = {"privacy": {"epsilon": 8.0, "delta": 1e-3, "adaptive_quantile": 0.5}}
AT_CLIENT = {"privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "client", "audience": "server"}}
COPIES = {
    "method": {"name": "promptfl", "num_ctx": 4},
    "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "client", "audience": "public"},
    "sampling": {"name": "poisson", "sampling_prob": 0.5, "steps_per_round": 4},
    "training": {"num_rounds": 2, "local_steps": 2},
}
COUNTS = {"evaluation": {"metrics_epsilon": 4.0, "metrics_delta": 1e-3}}
OWNER = {"max_metrics_epsilon": 4.0}
ALONE = {"method": {"name": "local_only", "num_ctx": 4}}


class Conversation:
    """All messages of a run to a client that calls itself ann, whichever part of the data it has."""

    def __init__(self, values, tmp_path, share=0, **client):
        deployed = Deployment(
            {**values, "references": []}, tmp_path / str(share), owner={"max_epsilon": float("inf"), **OWNER}
        )
        config = deployed.config
        self.site = deployed.site("ann", share=ShareConfig(client=share), **client)
        self.offer = make_offer(
            "trial", "run-1", config.run, config.class_names(), config.run.backbone.load().fingerprint
        )
        self.agreement = Agreement(**self.offer.to_json(), clients=("ann", "bob", "cyd"), sizes=(24, 24, 24))

    def answers(self):
        """By what was asked."""
        agreement, arm = self.agreement, self.agreement.arm
        names = {"federation": "trial", "run": "run-1", "agreement": agreement.digest}
        proposal = {**version(), "agreement": agreement.to_json()}
        found = {
            "join": self.site.answer(Envelope("join", {**version(), "offer": self.offer.to_json()})),
            "check": self.site.answer(Envelope("check", proposal)),
            "plan": self.site.answer(Envelope("plan", proposal)),
        }
        is_shared = "global" in arm.plan.channels
        shared = self.shared(arm) if is_shared else {}
        training = agreement.run_config.training
        for index in range(arm.num_rounds if is_shared else 0):
            for step in range(0, arm.plan.sampler.steps_per_round, training.local_steps):
                norm = {} if arm.plan.release_plan.first_norms(3) is None else {"clip_norm": 1.0}
                asked = Envelope("turn", {**names, "round": index, "step": step, **norm}, shared)
                found[f"turn {index} {step}"] = self.site.answer(asked)
        if not is_shared:
            found["alone"] = self.site.answer(Envelope("alone", {**names, "until": arm.num_rounds}))
        finish = Envelope("finish", {**names, "rounds": arm.num_rounds}, shared)
        return {**found, "finish": self.site.answer(finish)}

    def shared(self, arm):
        """What a request carries, as it was before training."""
        kind = wire.payload_kind_of(arm, self.agreement.run_config.training.local_steps)
        start, _ = arm.method.init(self.site._current.model, stream(3, "init"))
        return wire.request_tensors(arm.method, start, kind)


def forms(answer):
    """Names, shapes and types of an answer's tensors."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in answer.tensors.items()}


@pytest.mark.parametrize(
    "case", [ADAPTIVE, AT_CLIENT, COPIES, ALONE, COUNTS], ids=["sums", "gradients", "copies", "alone", "counts"]
)
def test_every_answer_has_its_declared_fields_and_a_length_that_no_data_change(toy_values, tmp_path, case):
    values = {**toy_values, **case}
    told = [Conversation(values, tmp_path, share).answers() for share in (0, 1)]
    assert told[0].keys() == told[1].keys()
    for name in told[0]:
        one, other = told[0][name], told[1][name]
        assert one.kind == name.split()[0], one.meta
        assert set(one.meta) == wire.DECLARED[one.kind], name
        assert one.meta == other.meta, name
        assert forms(one) == forms(other), name
        assert len(one.to_bytes()) == len(other.to_bytes()), name
    turns = [name for name in told[0] if name.startswith("turn")]
    assert all(told[0][name].digest != told[1][name].digest for name in turns), "else this test shows nothing"


def test_refusals_for_what_the_data_are_like_are_all_the_same(toy_values, tmp_path):
    told = []
    for at, data in enumerate(({"name": "folder", "root": "nowhere"}, {"name": "table", "file": "nowhere.csv"})):
        site = Conversation(toy_values, tmp_path / str(at), share=0)
        site.site.config = dataclasses.replace(site.site.config, data=configs.choose("data", data), share=None)
        told.append(site.site.answer(Envelope("join", {**version(), "offer": site.offer.to_json()})))
    for num_classes in (3, 5):
        site = Conversation(toy_values, tmp_path / f"c{num_classes}", share=0)
        other = configs.choose("data", {"name": "toy", "num_classes": num_classes})
        site.site.config = dataclasses.replace(site.site.config, data=other, share=None)
        told.append(site.site.answer(Envelope("join", {**version(), "offer": site.offer.to_json()})))
    assert all(answer.is_refusal and set(answer.meta) == wire.DECLARED["refusal"] for answer in told)
    assert told[0] == told[1]
    assert told[2] == told[3]


def test_a_local_clip_norm_stops_at_the_owners_limit_and_the_server_hears_nothing_of_it(
    toy_values, tmp_path, monkeypatch
):
    owner = OwnerConfig(max_epsilon=float("inf"), max_delta=1.0, max_clip_norm_local=1.05)
    seen, true = [], Client.update

    def update(self, arm, shared, norms, personal, batches, *rest):
        seen.append(norms["local"])
        return dataclasses.replace(true(self, arm, shared, norms, personal, batches, *rest), norm=2.0)

    monkeypatch.setattr(Client, "update", update)
    answers = Conversation({**toy_values, **ADAPTIVE}, tmp_path, owner=owner).answers()
    assert not any(answer.is_refusal for answer in answers.values())
    assert seen[0] <= 1.05
    assert set(seen[1:]) == {1.05}


def test_batches_of_a_round_are_drawn_once_whatever_the_number_of_turns_and_processes(
    toy_values, tmp_path, monkeypatch
):
    secure = {"epsilon": 8.0, "delta": 1e-3, "noise_source": "secure"}
    values = {**toy_values, "privacy": secure, "sampling": {"name": "poisson", "sampling_prob": 0.5}}
    values["sampling"] |= {"steps_per_round": 3}
    talk = Conversation(values, tmp_path)
    drawn, used, true_batches, true_update = [], [], Client.batches, Client.update

    def batches(self, arm, round_index):
        drawn.append(true_batches(self, arm, round_index))
        return drawn[-1]

    def update(self, arm, shared, norms, personal, batches, *rest):
        used.extend(batches)
        talk.site._current = None  # the next message meets a new process
        return true_update(self, arm, shared, norms, personal, batches, *rest)

    monkeypatch.setattr(Client, "batches", batches)
    monkeypatch.setattr(Client, "update", update)
    answers = talk.answers()
    assert not any(answer.is_refusal for answer in answers.values())
    assert len(drawn) == 3
    assert [list(batch) for batch in used] == [list(batch) for of_round in drawn for batch in of_round]
