import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import hushprompt as hp
from helpers.prompt_files import written
from helpers.runs import TOY, Silent, fresh
from helpers.toy_metric import toy_metric
from hushprompt.errors import ConfigError, DataError
from hushprompt.federation.simulate import run
from hushprompt.privacy.statements import CLASSES_DECLARED
from hushprompt.runs.prompt_file import read_prompt
from hushprompt.runs.prompts import portable

LINEAR = {
    "dp_fpl": {"num_ctx": 4, "rank": 2},
    "local_only": {"num_ctx": 4, "is_class_specific": True, "name_position": "middle"},
    "promptfolio": {"num_ctx": 4},
    "class_statistics": {"class_prior": 3.0},
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_file_scores_as_the_method_does_without_a_text_tower(tmp_path, name):
    method = {"name": name, **LINEAR[name]}
    if name == "class_statistics":
        method["metric"] = toy_metric()
    arm, model, shared, personal = written(method, tmp_path / "prompts")
    images = torch.nn.functional.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    prompt = hp.load_prompt(tmp_path / "prompts", client=1)
    torch.testing.assert_close(prompt.logits(images), arm.method.logits(model, shared, personal, images))
    assert "model" not in vars(prompt), "the file was enough"
    assert ("bias" in prompt.tensors, "log_prior" in prompt.tensors) == (name == "class_statistics",) * 2
    assert (CLASSES_DECLARED in prompt.privacy) == (name == "class_statistics")
    if name != "local_only":
        everybodys = hp.load_prompt(tmp_path / "prompts")
        assert "log_prior" not in everybodys.tensors
        assert CLASSES_DECLARED not in everybodys.privacy
        scores = model.logits(images, everybodys.tensors["text_features"]) + everybodys.tensors.get("bias", 0)
        torch.testing.assert_close(everybodys.logits(images), scores)


def test_fitted_contexts_are_published_with_what_they_score(tmp_path):
    method = {"name": "class_statistics", "metric": toy_metric(), "form": "contexts", "class_prior": 3.0}
    arm, model, shared, personal = written(method, tmp_path / "prompts")
    prompt = hp.load_prompt(tmp_path / "prompts", client=1)
    images = torch.nn.functional.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    torch.testing.assert_close(prompt.logits(images), arm.method.logits(model, shared, personal, images))
    torch.testing.assert_close(model.text_features(prompt.tensors["context"]), prompt.tensors["text_features"])


def test_scores_that_are_not_linear_have_tensors_of_their_own(tmp_path):
    written({"name": "fedotp", "num_ctx": 4}, tmp_path / "fedotp")
    assert list(hp.load_prompt(tmp_path / "fedotp").tensors) == ["context"]
    assert sorted(hp.load_prompt(tmp_path / "fedotp", client=1).tensors) == ["global_context", "local_context"]
    tmp_path = tmp_path / "fedclip"
    written({"name": "fedclip"}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global.safetensors"]
    prompt = hp.load_prompt(tmp_path)
    assert "text_features" not in prompt.tensors
    with pytest.raises(DataError, match=r"No linear scores follow from .*\. The file says: hand template 'a {}'; the"):
        prompt.classifier()


def test_without_a_prior_or_a_local_release_no_client_has_a_file(tmp_path):
    written({"name": "class_statistics", "metric": toy_metric()}, tmp_path / "statistics")
    written({"name": "promptfl", "num_ctx": 4}, tmp_path / "promptfl")
    for folder in ("statistics", "promptfl"):
        assert [path.name for path in (tmp_path / folder).iterdir()] == ["global.safetensors"]


def test_a_file_says_which_backbone_it_is_for_and_names_no_path(tmp_path):
    written({"name": "class_statistics", "metric": toy_metric(), "class_prior": 3.0}, tmp_path / "prompts")
    prompt = hp.load_prompt(tmp_path / "prompts", client=1)
    header = prompt.header
    assert prompt.load_backbone().fingerprint == header.backbone_fingerprint
    assert (header.client_name, header.modality, header.template) == ("client 1", "image", "a {}")
    assert (header.arm, header.logit_scale) == ("class_statistics, epsilon 8", 10.0)
    assert header.settings.items() >= {"name": "class_statistics", "form": "head", "class_prior": 3.0}.items()
    assert "metric" not in header.settings
    assert str(tmp_path) not in (tmp_path / "prompts" / "client-001.safetensors").read_bytes().decode("latin-1")
    other = dataclasses.replace(prompt, header=dataclasses.replace(header, backbone={"name": "toy", "token_width": 4}))
    with pytest.raises(ConfigError, match="was trained with another backbone"):
        other.load_backbone()


def test_names_on_a_hub_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "clip").mkdir(parents=True)
    values = {"model": "openai/clip", "template": "a w/o {}", "text_tower": {"checkpoint": "b.pt", "architecture": "B"}}
    assert portable(values) == {**values, "text_tower": {"architecture": "B"}}
    for model in ("models/clip", "/models/clip", "~/clip", "clip"):
        assert portable({"model": model, "name": "transformers"}) == {"name": "transformers"}
    for architecture in ("local-dir:/models/clip", "local-dir:models/clip"):
        assert portable({"architecture": architecture, "name": "open_clip"}) == {"name": "open_clip"}


def test_files_of_format_1_are_still_read(tmp_path):
    written(TOY["method"], tmp_path)
    path = tmp_path / "client-001.safetensors"
    header, tensors = read_prompt(path)
    old = {"format": "hushprompt prompt 1"}
    names = ("prompt", "method", "backbone_fingerprint", "class_names", "privacy", "client_id", "rank", "noise_source")
    old |= {name: getattr(header, name) for name in names}
    save_file({"context": tensors["context"]}, path, {"hushprompt": json.dumps(old)})
    prompt = hp.load_prompt(tmp_path, client=1)
    assert (prompt.header.backbone, prompt.privacy) == (None, header.privacy)
    with pytest.raises(ConfigError, match="was loaded without a backbone"):
        prompt.load_backbone()
    assert hp.load_prompt(path, backbone="toy").load_backbone().fingerprint == header.backbone_fingerprint


def test_the_same_states_give_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        written({"name": "promptfolio", "num_ctx": 4}, tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert set(load_file(path)) >= {"text_features", "logit_scale"}


def test_a_prompt_file_is_read_back_with_what_it_says_of_itself(toy_config, tmp_path):
    folder = fresh(tmp_path)
    run(toy_config, folder, Silent())
    (everybodys, _), (own, tensors) = (
        read_prompt(folder / "prompts" / f"{name}.safetensors") for name in ("global", "client-001")
    )
    assert everybodys.method == own.method == "dp_fpl"
    assert (everybodys.client_id, own.client_id) == (None, 1)
    assert own.rank == toy_config.method.rank
    assert len(own.class_names) == toy_config.data.num_classes
    assert "epsilon = " in own.privacy
    assert "accountant" in own.privacy
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize("metadata", [{}, {"hushprompt": "{}"}, {"hushprompt": '{"format": "hushprompt prompt 99"}'}])
def test_what_is_no_prompt_of_this_version_is_refused(tmp_path, metadata):
    save_file({"context": torch.zeros(2)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(DataError, match=r"a\.safetensors (is no prompt file|has the format 'hushprompt prompt 99')"):
        read_prompt(tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="is no prompt file"):
        read_prompt(tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    "wrong",
    [{"epsilon": "nan"}, {"epsilon": -1.0}, {"delta": "nan"}, {"class_names": ["a"]}, {"class_names": ["a"] * 6}],
    ids=str,
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, wrong):
    written(TOY["method"], tmp_path)
    path = tmp_path / "client-001.safetensors"
    header, tensors = read_prompt(path)
    told = {**dataclasses.asdict(header), **wrong}
    save_file(
        tensors, path, {"hushprompt": json.dumps({name: value for name, value in told.items() if value is not None})}
    )
    with pytest.raises(DataError, match="contradicts itself"):
        read_prompt(path)
