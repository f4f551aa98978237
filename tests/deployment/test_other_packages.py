"""A method of another package federates: it says itself what of its shared state is sent."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.deployments import Deployment
from helpers.other_package import other_package
from helpers.runs import run_with
from hushprompt.deployment import wire
from hushprompt.errors import ConfigError
from hushprompt.federation.payload import PayloadKind
from hushprompt.methods.promptfl import PromptFL
from hushprompt.registry import METHODS


@pytest.fixture
def smoothed(tmp_path):
    with other_package(tmp_path / "site"):
        yield METHODS.get("smoothed")(num_ctx=4, rank=2)


def test_it_gives_the_prompts_and_epsilon_of_a_simulation(toy_values, tmp_path, smoothed):
    values = {**toy_values, "references": [], "method": {"name": "smoothed", "num_ctx": 4, "rank": 2}}
    folder, _, rounds = run_with(values, tmp_path, "simulated")
    deployed = Deployment(values, tmp_path)
    seen = deployed.serve()
    assert [record.epsilon for record in seen] == [record.epsilon for record in rounds]
    assert [(r.bytes_up, r.bytes_down) for r in seen] == [(r.bytes_up, r.bytes_down) for r in rounds]
    prompts = deployed.prompts()
    for path in sorted((folder / "prompts").glob("*")):
        for key, tensor in load_file(path).items():
            assert torch.allclose(prompts[path.name][key], tensor, atol=1e-6), (path.name, key)


def test_what_the_server_alone_reads_is_sent_only_where_clients_step_copies(model, smoothed):
    shared, _ = smoothed.init(model, np.random.default_rng(0))
    assert list(wire.request_tensors(smoothed, shared, PayloadKind.SUMS)) == ["context"]
    assert "velocity" in wire.request_tensors(smoothed, shared, PayloadKind.COPIES)
    sent = {"context": torch.ones_like(shared.context)}
    read = wire.read_shared(smoothed, shared, sent, PayloadKind.SUMS)
    assert torch.equal(read.context, sent["context"])
    assert torch.equal(read.velocity, shared.velocity)


def test_several_fields_may_be_sent_and_the_first_is_what_a_gradient_is_of(model):
    class Both(PromptFL):
        payload = ("anchor", "context")

    shared, _ = Both(num_ctx=4).init(model, np.random.default_rng(0))
    assert list(wire.request_tensors(Both(num_ctx=4), shared, PayloadKind.SUMS)) == ["anchor", "context"]


def test_a_payload_that_the_shared_state_lacks_is_refused(model):
    class Wrong(PromptFL):
        payload = ("context", "contxet")

    method = Wrong(num_ctx=4)
    with pytest.raises(ConfigError, match=r"payload names contxet.* has: anchor, context, opt"):
        wire.request_tensors(method, method.init(model, np.random.default_rng(0))[0], PayloadKind.SUMS)
