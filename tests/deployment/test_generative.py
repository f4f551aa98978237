"""A federation of separate ends on a generative model: each owner names it; with noise shares as in a simulation."""

import pytest

pytest.importorskip("transformers")

from helpers import tiny_generative
from helpers.deployments import NAMES, Deployment, assert_gives_the_contexts_of_a_simulation
from helpers.runs import TOY
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    folder = tiny_generative.write("smolvlm", tmp_path_factory.mktemp("hub") / "smolvlm")
    backbone = {"name": "smolvlm", "model": str(folder)}
    privacy = {**TOY["privacy"], "noise_at": "shares"}
    return {**TOY, "backbone": backbone, "privacy": privacy, "training": {"num_rounds": 1}, "references": []}


def test_it_gives_the_numbers_of_a_simulation(tmp_path, values):
    deployed = Deployment(values, tmp_path)
    for name in NAMES:
        deployed.restart(name, backbone=configs.parse(values).backbone)
    assert_gives_the_contexts_of_a_simulation(deployed, values, tmp_path)


def test_a_method_of_two_towers_is_refused_before_anybody_is_asked(tmp_path, values):
    deployed = Deployment({**values, "privacy": TOY["privacy"], "method": {"name": "fedclip"}}, tmp_path)
    with pytest.raises(ConfigError, match="FedCLIP adapter needs two towers"):
        deployed.serve()
    assert deployed.lines("server", "ledger.jsonl") == []
