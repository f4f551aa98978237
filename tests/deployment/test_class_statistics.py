"""One release of class statistics from separate machines: two turns, resumable, classes declared by the plan."""

import dataclasses
import json

import pytest
import torch

from helpers.deployments import NAMES, Deployment, Killed, declared
from helpers.runs import TOY
from helpers.toy_metric import toy_metric
from hushprompt.audits.verify import verify
from hushprompt.deployment import coordinator
from hushprompt.deployment.agreement import read_agreement
from hushprompt.errors import ConfigError, ProtocolError, ResumeError
from hushprompt.runs import records

VALUES = {
    **TOY,
    "method": {"name": "class_statistics", "metric": toy_metric(), "class_prior": 4.0},
    "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "client", "audience": "server"},
}


def deployment(tmp_path, **federation):
    return Deployment(VALUES, tmp_path, **{"client_classes": declared(VALUES), **federation})


@pytest.mark.parametrize("noise_at", ["client", "server"])
def test_a_server_that_was_killed_between_the_messages_goes_on_to_the_same_prompts(tmp_path, monkeypatch, noise_at):
    privacy = {**VALUES["privacy"], "noise_at": noise_at, "audience": "public"}
    ends = {
        name: Deployment({**VALUES, "privacy": privacy}, tmp_path / name, client_classes=declared(VALUES))
        for name in ("whole", "killed")
    }
    ends["whole"].serve()
    save, count = coordinator.save_state, iter(range(9))

    def killed(folder, state):
        if state.step == 1 and next(count) == 0:
            save(folder, state)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "save_state", killed)
        with pytest.raises(Killed):
            ends["killed"].serve()
    asked = [len(ends["killed"].lines(name, "ledger.jsonl")) for name in NAMES]
    ends["killed"].serve()
    assert asked == [len(ends["killed"].lines(name, "ledger.jsonl")) for name in NAMES] == [1, 1, 1]
    prompts = [one.prompts() for one in ends.values()]
    assert prompts[0].keys() == prompts[1].keys() >= {"global.safetensors", "client-000.safetensors"}
    for name, tensors in prompts[0].items():
        assert all(torch.equal(tensors[key], prompts[1][name][key]) for key in tensors), name
    for name in ("server", *NAMES):
        assert not verify(ends["killed"].folder(name)).differences


def test_a_client_with_an_image_of_an_undeclared_class_refuses_before_anything_is_charged(tmp_path):
    classes = declared(VALUES)
    moved = {**classes, "bob": classes["bob"][1:], "ann": classes["ann"] + classes["bob"][:1]}
    deployed = deployment(tmp_path, client_classes=moved, min_clients=3)
    with pytest.raises(ProtocolError, match="2 clients accept the plan"):
        deployed.serve()
    (line,) = deployed.lines("bob", "refusals.jsonl")
    assert f"no training example of {classes['bob'][0]}, and it has some" in line["reason"]
    assert classes["bob"][0] not in " ".join(deployed.reasons()), "which one is not the server's business"
    assert not list(deployed.root.glob("**/ledger.jsonl"))


def test_what_is_declared_is_agreed_on_and_cannot_change(tmp_path):
    classes = declared(VALUES)
    deployed = deployment(tmp_path, client_classes=dict(reversed([(k, v[::-1]) for k, v in classes.items()])))
    deployed.serve()
    agreement = read_agreement(json.loads((deployed.folder("server") / "agreement.json").read_text()))
    names = agreement.class_names
    assert [tuple(names[label] for label in own) for own in agreement.client_classes] == list(classes.values())
    assert agreement == read_agreement(records.read_json(deployed.folder("bob") / "agreement.json"))
    with pytest.raises(ResumeError, match="belongs to another config"):
        deployed.serve(client_classes={})
    plain = dataclasses.replace(agreement, client_classes=())
    assert plain.digest != agreement.digest
    assert "client_classes" not in plain.to_json(), "agreements of earlier versions keep their digest"


WRONG = [[[1, 0], None, None], [[0, 0], None, None], [[9], None, None], [[]] * 3, [None] * 3, [[0], None], [[-1]] * 3]


@pytest.mark.parametrize("sets", WRONG)
def test_an_agreement_declares_classes_in_one_way_only(sets):
    values = {
        "federation": "f", "run": "r", "config": "", "class_names": ["a", "b", "c"], "backbone": "x",
        "clients": ["k", "l", "m"], "sizes": [1, 2, 3],
    }  # fmt: skip
    assert read_agreement({**values, "client_classes": [[0, 2], None, [1]]}).client_classes == ((0, 2), None, (1,))
    assert read_agreement(values).client_classes == ()
    with pytest.raises(ProtocolError, match="must be a sorted list of labels"):
        read_agreement({**values, "client_classes": sets})


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"ann": ("ant", "auk")}, "client_classes.ann must name classes of the federation, at least one, got auk"),
        ({"ann": ()}, "client_classes.ann must name classes of the federation, at least one, got none"),
        ({"eve": ("ant",)}, "client_classes names eve, not in federation.clients"),
    ],
)
def test_impossible_declarations_are_refused_when_the_server_starts(tmp_path, classes, message):
    with pytest.raises(ConfigError, match=message):
        deployment(tmp_path, client_classes=classes).serve()


def test_a_class_prior_needs_classes_of_every_client(tmp_path):
    classes = declared(VALUES)
    with pytest.raises(ConfigError, match="nobody declared them, so they are private"):
        deployment(tmp_path, client_classes={"ann": classes["ann"]}).serve()
