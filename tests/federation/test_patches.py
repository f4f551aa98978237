"""Runs whose methods need patches, an adapter, or both beside pooled features."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from helpers.runs import Silent, fresh
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError
from hushprompt.features import cache
from hushprompt.federation.setup import assemble, load_model, make_partition
from hushprompt.federation.simulate import run
from hushprompt.models import toy
from hushprompt.models.base import Capabilities
from hushprompt.seeding import stream

FEDOTP = {"name": "fedotp", "num_ctx": 4}


def config_of(toy_values, tmp_path, method, references=(), **more):
    values = {**toy_values, "method": method, "references": list(references), **more}
    return configs.parse({**values, "runtime": {"cache_dir": str(tmp_path / "cache")}})


def read(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["hushprompt"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    ("method", "references", "expected"),
    [
        (FEDOTP, [], {"train, 4 patches an image, 0 MB", "test, 4 patches an image, 0 MB"}),
        ({"name": "fedclip"}, [{"method": {"name": "zero_shot"}}], {"train", "test"}),
        ({"name": "fedclip"}, [{"method": FEDOTP}], {"train", "test", "train, 4 patches an image, 0 MB",
                                                    "test, 4 patches an image, 0 MB"}),
    ],
)  # fmt: skip
def test_only_the_features_that_the_arms_need_are_encoded(toy_values, tmp_path, method, references, expected):
    watcher = Silent()
    run(config_of(toy_values, tmp_path, method, references), fresh(tmp_path), watcher)
    encoded = [what for what in watcher.encoded if what.startswith("encoding")]
    assert {what.removeprefix("encoding toy ") for what in encoded} == expected


@pytest.mark.parametrize("method", [FEDOTP, {"name": "fedclip"}])
def test_a_stopped_run_goes_on_to_the_same_files(toy_values, tmp_path, method):
    config = config_of(toy_values, tmp_path, method)
    whole, stopped = fresh(tmp_path, "whole"), fresh(tmp_path, "stopped")
    run(config, whole, Silent())
    with pytest.raises(KeyboardInterrupt):
        run(config, stopped, Silent(stop_after=2))
    run(config, stopped, Silent())
    names = [path.name for path in sorted((whole / "prompts").iterdir())]
    assert names
    for name in names:
        assert (whole / "prompts" / name).read_bytes() == (stopped / "prompts" / name).read_bytes()


def test_the_files_of_fedotp_give_its_scores(toy_values, tmp_path):
    config, folder = config_of(toy_values, tmp_path, FEDOTP), fresh(tmp_path)
    arms = run(config, folder, Silent())
    metadata, mine = read(folder / "prompts" / "client-001.safetensors")
    public_metadata, public = read(folder / "prompts" / "global.safetensors")
    assert set(public) == {"context"}
    assert torch.equal(public["context"], mine["global_context"])
    assert metadata["client_id"] == 1
    assert "epsilon = " in metadata["privacy"]
    assert public_metadata["prompt"] == "[start][context][class name][end]"
    assert re.search(r"once with each context; .* mass 0\.8 and entropy weight 0\.1", metadata["prompt"])
    dataset = config.data.load()
    model, partition = load_model(config, dataset, []), make_partition(config, dataset)
    federation = assemble(config, model, dataset, partition, lambda *_: None, {"patches"})
    shared, _ = config.method.init(model, stream(0, "init"))
    states = [type(shared)(mine[name], shared.optimizer) for name in ("global_context", "local_context")]
    logits = config.method.logits(model, *states, federation.eval_features["patches"])
    own = partition.clients[1].indices["test"]
    accuracy = float((logits[own].argmax(1) == federation.eval_labels[own]).double().mean())
    assert accuracy == pytest.approx(arms[-1].per_client[1]["local"])


def test_the_one_file_of_fedclip_is_the_adapter(toy_values, tmp_path):
    folder = fresh(tmp_path)
    run(config_of(toy_values, tmp_path, {"name": "fedclip"}), folder, Silent())
    assert [path.name for path in (folder / "prompts").iterdir()] == ["global.safetensors"]
    metadata, adapter = read(folder / "prompts" / "global.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.items()}
    assert shapes == {"hidden_weight": (6, 6), "hidden_bias": (6,), "attention_weight": (6, 6), "attention_bias": (6,)}
    assert metadata["method"] == "fedclip"
    assert "hand template 'a {}'" in metadata["prompt"]


def test_views_of_patches_are_drawn_as_those_of_images(toy_values, tmp_path):
    config = config_of(toy_values, tmp_path, FEDOTP, features={"num_views": 2})
    run(config, fresh(tmp_path), Silent())
    arrays = {tuple(entry.path.name.split("-")[1:3]): entry for entry in cache.cached(tmp_path / "cache")}
    assert arrays["train", "patches"].num_views == 2
    assert arrays["test", "patches"].num_views == 1


def test_a_backbone_without_patches_is_refused_before_anything_is_encoded(toy_values, tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "Capabilities", lambda **fields: Capabilities(**{**fields, "num_patches": None}))
    watcher = Silent()
    with pytest.raises(ConfigError, match=r"needs features of image patches, which this backbone does not have"):
        run(config_of(toy_values, tmp_path, {"name": "promptfl", "num_ctx": 4}, [{"method": FEDOTP}]),
            fresh(tmp_path), watcher)  # fmt: skip
    assert not watcher.encoded
