"""The same product on a GPU: equal to the CPU up to rounding, for every method, from the towers to the audit.

Needs a GPU; without one these tests are skipped, and the same code runs on the CPU in all other tests.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import tiny_models
from helpers.runs import files, run_with
from helpers.toy_metric import toy_metric
from hushprompt.methods.base import Batch
from hushprompt.models import embedded as emoji_clip
from hushprompt.models.embedded import EmojiClip
from hushprompt.models.open_clip import OpenClip
from hushprompt.models.placing import place
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
NAMES = ("cat", "zebra kiwi", "ox", "a quick brown dog")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small CLIP of open_clip, as a `backbone` section."""
    pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("tiny")
    tiny_models.write_open_clip_configs(folder)
    __import__("open_clip").add_model_config(folder)
    save_file(tiny_models.open_clip_model("vit").state_dict(), folder / "vit.safetensors")
    checkpoint = str(folder / "vit.safetensors")
    return {"name": "open_clip", "architecture": "tiny-vit", "checkpoint": checkpoint, "template": "a {}"}


def section(tiny, **changes):
    return OpenClip(**{**{key: value for key, value in tiny.items() if key != "name"}, **changes})


def gradients(backbone, device):
    """Per-example gradients of five random examples."""
    model = PromptModel(backbone, NAMES, device=place(backbone, device))
    rng = np.random.default_rng(0)
    context = torch.from_numpy(rng.normal(0, 0.02, (4, model.token_width))).float()
    features = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(5, backbone.feature_dim))).float())
    batch = Batch(features.to(device), torch.tensor([0, 1, 2, 3, 0]).to(device))
    return per_example_gradients(model, context.to(device), batch.image_features, batch.labels)[0].cpu()


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("kind", ["embedded", "open_clip"])
def test_gradients_are_those_of_the_cpu(tiny, kind):
    def backbone():
        return EmojiClip().load() if kind == "embedded" else section(tiny).load()

    assert relative(gradients(backbone(), "cuda"), gradients(backbone(), "cpu")) < 1e-5


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_is_near_on_the_gpu_too(tiny, precision):
    exact = gradients(section(tiny).load(), "cpu")
    assert relative(gradients(section(tiny, precision=precision).load(), "cuda"), exact) < 0.15


@pytest.mark.parametrize("name", sorted(METHODS.names()))
def test_every_method_gives_the_prompts_of_the_cpu(toy_values, tiny, tmp_path, name):
    values = {**toy_values, "backbone": tiny, "references": [], "training": {"num_rounds": 2}, "method": {"name": name}}
    if name == "class_statistics":
        backbone = section(tiny).load()
        values["method"]["metric"] = toy_metric(backbone.fingerprint, backbone.feature_dim)
    elif name not in ("zero_shot", "fedclip"):
        values["method"]["num_ctx"] = 4
    if name in ("dp_fpl", "dp_fpl_released", "fedpgp"):
        values["method"]["rank"] = 2
    prompts = {}
    for device in ("cpu", "cuda"):
        folder, _, _ = run_with({**values, "runtime": {"device": device}}, tmp_path, device)
        prompts[device] = {path.name: load_file(path) for path in (folder / "prompts").glob("*.safetensors")}
    assert prompts["cpu"].keys() == prompts["cuda"].keys()
    for file, tensors in prompts["cpu"].items():
        for key, tensor in tensors.items():
            assert tensor.is_floating_point()
            torch.testing.assert_close(prompts["cuda"][file][key], tensor, rtol=1e-3, atol=1e-4)


def test_a_run_on_the_gpu_that_was_stopped_ends_in_the_same_files(toy_values, tiny, tmp_path):
    values = {**toy_values, "backbone": tiny, "runtime": {"device": "cuda"}}
    whole, _, _ = run_with(values, tmp_path, "whole")
    with pytest.raises(KeyboardInterrupt):
        run_with(values, tmp_path, "stopped", stop_after=2)
    resumed, _, _ = run_with(values, tmp_path, "stopped")
    assert files(resumed) == files(whole)


def test_drawings_are_encoded_as_on_the_cpu_and_one_part_after_the_other(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a thread of its own for every part")

    images = [np.full((48, 48, 3), 4 * index, dtype=np.uint8) for index in range(60)]
    expected, backbone = EmojiClip().load().encode_images(images), EmojiClip().load()
    place(backbone, "cuda")
    monkeypatch.setattr(emoji_clip, "ThreadPoolExecutor", refuse)
    torch.testing.assert_close(backbone.encode_images(images).cpu(), expected, rtol=1e-4, atol=1e-5)
