"""A generative model whose layers lie on several devices, or in another precision: what comes out, and what is refused.

There may be no GPU here: two of them are torch's fake tensors, which have shapes and devices and no numbers, and refuse
to compute with tensors of two devices.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import accelerate
import transformers
import transformers.integrations.accelerate as placing
from accelerate import hooks

from helpers import tiny_generative
from hushprompt.errors import ConfigError
from hushprompt.methods.base import Batch
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.registry import BACKBONES

NAMES = ("cat", "dog", "the ox")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("hub")
    return {kind: tiny_generative.write(kind, base / kind) for kind in ("smolvlm", "qwen2_vl")}


def load(folders, kind="smolvlm", **settings):
    return BACKBONES.get(kind)(model=str(folders[kind]), **settings).load()


def numbers(backbone):
    """Gradients, losses, scores and answers of two examples."""
    model, draw = GenerativeModel(backbone, NAMES), torch.Generator().manual_seed(0)
    media = torch.randn(2, backbone.capabilities.num_tokens, model.token_width, generator=draw)
    context = 0.1 * torch.randn(4, model.token_width, generator=draw)
    grads, losses = model.gradients(context, Batch(media, torch.tensor([0, 2])))
    answers = model.answers_of_each([context], media, ["", ""], max_tokens=3)
    return grads, losses, model.scores(context, media), answers


def blocks(network, devices):
    """Lay the parts of a model out on some devices in turn, down to its layers."""
    opened = {"", "model"}
    for name in ("model.text_model", "model.language_model"):
        opened |= {name, f"{name}.layers"}
    names = [name for name, _ in network.named_modules() if name not in opened]
    parts = [name for name in names if name.rpartition(".")[0] in opened]
    return {name: torch.device(devices[at % len(devices)]) for at, name in enumerate(parts)}


def test_laid_out_by_accelerate_the_bits_are_the_same(folders):
    expected = load(folders)
    divided = load(folders)
    skipped = divided._network._skip_keys_device_placement
    laid_out = blocks(divided._network, ["cpu"])
    accelerate.dispatch_model(divided._network, laid_out, force_hooks=True, skip_keys=skipped)
    assert hasattr(divided._language.layers[1], "_hf_hook")
    for found in (divided, load(folders, device_map="auto"), load(folders, device_map="cpu")):
        assert found.fingerprint == expected.fingerprint
        assert GenerativeModel(found, NAMES).how_asked[-1] == found.config.device_map, "rounding is measured for each"
        *tensors, answers = numbers(found)
        *wanted, true = numbers(expected)
        assert all(map(torch.equal, tensors, wanted))
        assert answers == true


def test_no_tensor_meets_one_of_another_device(folders, monkeypatch):
    backbone = load(folders, "qwen2_vl")  # whose positions have three parts
    network = backbone._network
    laid_out = blocks(network, ["cuda:1", "cuda:0"])
    monkeypatch.setattr(hooks, "set_module_tensor_to_device", lambda *_, **__: None)  # they are there already
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for name, device in laid_out.items():
            for module in network.get_submodule(name).modules():
                for tensors in (module._parameters, module._buffers):
                    tensors.update(
                        {key: fake.from_tensor(value).to(device) for key, value in tensors.items() if value is not None}
                    )
        hooks.attach_align_device_hook_on_blocks(
            network, execution_device=laid_out, skip_keys=network._skip_keys_device_placement
        )
        assert len({weight.device for weight in network.parameters()}) == 2
        for device in ("cpu", "cuda:0", "cuda:1"):
            model = GenerativeModel(backbone, NAMES, device=device)
            media = torch.zeros(2, backbone.capabilities.num_tokens, model.token_width)  # as from the cache
            context = torch.zeros(4, model.token_width, device=device)
            labels = torch.zeros(2, dtype=torch.long, device=device)
            found = model.losses(context.expand(2, -1, -1), media, labels), model.scores(context, media)
            assert {each.device for each in found} == {torch.device(device)}


def test_layers_that_fit_on_no_device_and_a_missing_package_are_refused(folders, monkeypatch):
    monkeypatch.setattr(placing, "get_max_memory", lambda *_: {"cpu": 100_000})
    with pytest.raises(ConfigError, match=r"not all layers of .* fit on the devices: some would be fetched"):
        load(folders, device_map="auto")
    monkeypatch.setattr(transformers.utils, "is_accelerate_available", lambda: False)
    with pytest.raises(ConfigError, match="needs the package accelerate: pip install"):
        load(folders, device_map="auto")


@pytest.mark.parametrize("wanted", ["nonsense", "disk", "cuda:9"])
def test_devices_that_there_are_not_are_refused(folders, wanted):
    with pytest.raises(ConfigError, match=r"backbone\.device_map"):
        load(folders, device_map=wanted)


@pytest.mark.parametrize(("precision", "nearness"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_in_a_lower_precision_gradients_are_near_float32_and_of_their_own_example(folders, precision, nearness):
    exact, losses, scores, _ = numbers(load(folders))
    backbone = load(folders, precision=precision)
    grads, low_losses, low_scores, _ = numbers(backbone)
    assert {each.dtype for each in (grads, low_losses, low_scores)} == {torch.float32}
    assert 0 < (grads - exact).norm() / exact.norm() < nearness
    torch.testing.assert_close(low_losses, losses, rtol=nearness, atol=0)
    torch.testing.assert_close(low_scores, scores, rtol=nearness, atol=0)
    assert len({backbone.fingerprint, load(folders).fingerprint}) == 2
    model, draw = GenerativeModel(backbone, NAMES), torch.Generator().manual_seed(1)
    media = torch.randn(5, backbone.capabilities.num_tokens, model.token_width, generator=draw)
    context, labels = 0.1 * torch.randn(4, model.token_width, generator=draw), torch.tensor([0, 1, 2, 0, 1])
    together = model.gradients(context, Batch(media, labels))[0]
    alone = [model.gradients(context, Batch(media[[at]], labels[[at]]))[0] for at in range(5)]
    assert (torch.cat(alone) - together).norm() / together.norm() < nearness
