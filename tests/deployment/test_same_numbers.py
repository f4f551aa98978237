"""A federation of separate ends gives what a simulation of the same config gives."""

import pytest
import torch
from safetensors.torch import load_file

from helpers.deployments import NAMES, Deployment, declared
from helpers.runs import run_with
from helpers.toy_metric import toy_metric
from hushprompt.data.sets.toy import ToyData
from hushprompt.deployment.agreement import read_agreement
from hushprompt.deployment.envelope import Envelope
from hushprompt.models.toy import Toy as ToyModel
from hushprompt.runs import records

MORE = (*NAMES, "dan", "eve")
CASES = {
    "dp_fpl": {"sampling": {"name": "disjoint", "steps_per_round": 2}},
    "promptfl": {"method": {"name": "promptfl", "num_ctx": 4, "optimizer": {"momentum": 0.9}}},
    "local_only": {"method": {"name": "local_only", "num_ctx": 4}},
    "zero_shot": {"method": {"name": "zero_shot"}},
    "fedpgp": {"method": {"name": "fedpgp", "num_ctx": 4, "rank": 2}},
    "dp_fpl_released": {  # at a nominal epsilon whose noise can be accounted for in no time
        "method": {"name": "dp_fpl_released", "num_ctx": 4, "rank": 2},
        "privacy": {"epsilon": 0.1, "delta": 1e-3},
    },
    "noise at the client": {"privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "client", "audience": "server"}},
    "copies": {
        "method": {"name": "promptfl", "num_ctx": 4, "proximal_weight": 0.1},
        "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "client", "audience": "public"},
        "sampling": {"name": "poisson", "sampling_prob": 0.5, "steps_per_round": 4},
        "training": {"num_rounds": 2, "local_steps": 2},
    },
    "class_statistics": {"method": {"name": "class_statistics"}, "privacy": {"epsilon": 8.0, "delta": 1e-3}},
    "class_statistics, classes not declared": {
        "method": {"name": "class_statistics"},
        "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "client", "audience": "server"},
        "partition": {"name": "iid", "num_clients": 3},
    },
    "class_statistics, noise at the client": {
        "method": {"name": "class_statistics", "class_prior": 4.0},
        "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "client", "audience": "server"},
    },
    "groups, adaptive norms": {
        "data": {"name": "toy", "group_size": 4},
        "partition": {"name": "iid", "num_clients": 3},
        "privacy": {
            "epsilon": 8.0,
            "delta": 1e-3,
            "privacy_unit": "group",
            "group_word": "patient's images",
            "max_group_examples": 3,
            "adaptive_quantile": 0.5,
        },
    },
    "class_statistics of groups, noise at the client": {
        "method": {"name": "class_statistics"},
        "data": {"name": "toy", "group_size": 4},
        "partition": {"name": "iid", "num_clients": 3},
        "privacy": {
            "epsilon": 8.0,
            "delta": 1e-3,
            "noise_at": "client",
            "audience": "server",
            "privacy_unit": "group",
        },
    },
    "noise shares": {"privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "shares", "audience": "server"}},
    "noise shares, adaptive norms, cohorts": {
        "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "shares", "adaptive_quantile": 0.5},
        "training": {"num_rounds": 3, "cohort_size": 3},
        "partition": {"name": "iid", "num_clients": 5},
    },
    "noise shares with a rescue": {
        "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "shares", "max_dropouts": 1, "rescue": True},
        "partition": {"name": "iid", "num_clients": 5},
        "training": {"num_rounds": 2},
    },
    "class_statistics, noise shares": {
        "method": {"name": "class_statistics"},
        "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "shares", "audience": "server"},
    },
    "adaptive norms, cohorts": {
        "privacy": {"epsilon": 8.0, "delta": 1e-3, "adaptive_quantile": 0.5},
        "training": {"num_rounds": 4, "cohort_size": 2},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_prompts_epsilon_bytes_and_scores_are_those_of_a_simulation(toy_values, tmp_path, case):
    values = {**toy_values, "references": [], **CASES[case]}
    federation = {}
    if case.startswith("class_statistics"):
        values["method"] = {"metric": toy_metric(), **values["method"]}
        federation["client_classes"] = declared(values)
    folder, (arm,), rounds = run_with(values, tmp_path, "simulated")
    names = MORE[: values["partition"]["num_clients"]]
    deployed = Deployment(values, tmp_path, owner={"max_epsilon": float("inf")}, names=names, **federation)
    seen = deployed.serve()
    simulated = {path.name: load_file(path) for path in sorted((folder / "prompts").glob("*"))}
    prompts = deployed.prompts()
    assert set(prompts) == set(simulated)
    for name, tensors in simulated.items():
        assert set(prompts[name]) == set(tensors)
        for key, tensor in tensors.items():
            assert torch.allclose(prompts[name][key], tensor, atol=1e-6), (name, key)
    assert deployed.reasons() == []
    if rounds and case != "local_only":  # which needs one message for all rounds
        assert [r.epsilon for r in seen] == [r.epsilon for r in rounds]
        assert [(r.bytes_up, r.bytes_down, r.num_clients) for r in seen] == [
            (r.bytes_up, r.bytes_down, r.num_clients) for r in rounds
        ]
    elif rounds:
        assert seen[-1].epsilon == rounds[-1].epsilon
        assert (seen[-1].bytes_up, seen[-1].bytes_down) == (0, 0)
    mine = records.read_json(folder / "privacy.json")["arms"][0]
    theirs = records.read_json(deployed.folder("server") / "privacy.json")["arms"][0]
    assert mine == theirs
    for client_id, name in enumerate(names):
        last = deployed.lines(name, "records.jsonl")[-1]
        assert last["num_rounds"] == arm.num_rounds
        assert last["accuracy"] == arm.per_client[client_id]["local"]
        spent = records.read_json(deployed.folder(name) / "privacy.json")["arms"][0]["clients"]
        assert [client_id in account["clients"] for account in spent] == [True] * len(spent)
        assert last["epsilon"] == pytest.approx(max([*spent[0]["epsilon"].values()], default=0))


def test_a_client_that_was_prepared_loads_nothing_for_a_message(toy_values, tmp_path, monkeypatch):
    values = {**toy_values, "references": [], "training": {"num_rounds": 1}}
    deployed = Deployment(values, tmp_path)
    deployed.carrier.nodes["bob"].prepare()  # there is nothing yet
    deployed.serve()
    agreement = read_agreement(records.read_json(deployed.folder("bob") / "agreement.json"))
    names = {"federation": "trial", "run": deployed.run_id, "agreement": agreement.digest}
    deployed.restart("bob")
    deployed.carrier.nodes["bob"].prepare()

    def nothing(*_):
        raise AssertionError("loaded again")

    for cls in (ToyModel, ToyData):
        monkeypatch.setattr(cls, "load", nothing)
    request = Envelope("finish", {**names, "rounds": 1}, {"context": torch.zeros(4, 8)})
    assert deployed.carrier.nodes["bob"].answer(request).kind == "finish"
