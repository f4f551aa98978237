import dataclasses

import pytest
import torch

import hushprompt as hp
from helpers.prompt_files import written
from helpers.served import toy_prompt


@pytest.fixture(scope="package")
def served_prompt(tmp_path_factory):
    """A toy prompt with the guarantee of a simulation."""
    return toy_prompt(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="package")
def generative_prompt(tmp_path_factory):
    """Client 1's prompt for a tiny SmolVLM, with a context that matters."""
    pytest.importorskip("transformers")
    from helpers import tiny_generative

    folder = tmp_path_factory.mktemp("hub")
    backbone = {"name": "smolvlm", "model": str(tiny_generative.write("smolvlm", folder / "smolvlm"))}
    written({"name": "dp_fpl", "num_ctx": 3, "rank": 1}, folder / "prompts", backbone=backbone)
    prompt = hp.load_prompt(folder / "prompts", client=1, backbone=backbone)
    context = 0.3 * torch.randn(prompt.tensors["context"].shape, generator=torch.Generator().manual_seed(1))
    return dataclasses.replace(prompt, tensors={"context": context}, backbone=prompt.load_backbone())
