"""A federation of separate ends on a generative model: each owner names the model, and numbers are a simulation's."""

import pytest

pytest.importorskip("transformers")

from helpers import tiny_generative
from helpers.deployments import NAMES, Deployment
from helpers.runs import TOY, run_with
from hushprompt import load_prompt
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    folder = tiny_generative.write("smolvlm", tmp_path_factory.mktemp("hub") / "smolvlm")
    backbone = {"name": "smolvlm", "model": str(folder)}
    return {**TOY, "backbone": backbone, "training": {"num_rounds": 1}, "references": []}


def test_it_gives_the_numbers_of_a_simulation(tmp_path, values):
    deployed = Deployment(values, tmp_path)
    for name in NAMES:
        deployed.restart(name, backbone=configs.parse(values).backbone)
    deployed.serve()
    assert deployed.reasons() == []
    folder, _, _ = run_with(values, tmp_path)
    left, right = deployed.prompts(), sorted((folder / "prompts").glob("*"))
    assert sorted(left) == [path.name for path in right]
    assert len(right) == 4
    for path in right:
        assert (left[path.name]["context"] - load_prompt(path).tensors["context"]).abs().max() < 1e-5


def test_a_method_of_two_towers_is_refused_before_anybody_is_asked(tmp_path, values):
    deployed = Deployment({**values, "method": {"name": "fedclip"}}, tmp_path)
    with pytest.raises(ConfigError, match="FedCLIP adapter needs two towers"):
        deployed.serve()
    assert deployed.lines("server", "ledger.jsonl") == []
