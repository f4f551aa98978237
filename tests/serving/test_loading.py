"""Where a prompt may lie, and whose it is."""

import shutil

import pytest
import torch

import hushprompt as hp
from helpers.prompt_files import written
from helpers.runs import TOY
from hushprompt.errors import ConfigError, DataError
from hushprompt.runs import records


@pytest.fixture
def store(tmp_path):
    """What a client of a federation keeps of one run."""
    run = tmp_path / "store" / "clinics" / "first"
    written(TOY["method"], run / "prompts")
    records.write_json(run / "agreement.json", {})
    return tmp_path / "store"


def test_a_store_has_its_own_prompt_by_default_and_by_the_name_of_the_site(store):
    assert hp.load_prompt(store).header.client_name == "client 1"
    assert hp.load_prompt(store, client="client 1").path == hp.load_prompt(store).path
    assert hp.load_prompt(store / "clinics").path == hp.load_prompt(store / "clinics" / "first").path
    with pytest.raises(DataError, match="There is no client 'south'; known: client 1"):
        hp.load_prompt(store, client="south")


def test_of_several_runs_one_has_to_be_named(store):
    shutil.copytree(store / "clinics" / "first", store / "clinics" / "second")
    with pytest.raises(DataError, match=r"prompts of several runs\. Give one: .*first, .*second"):
        hp.load_prompt(store)


def test_what_has_no_prompt_says_what_there_is(tmp_path, store):
    with pytest.raises(DataError, match="There is no file or folder"):
        hp.load_prompt(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no prompt client-007 in .*; there are: client-001, global"):
        hp.load_prompt(store / "clinics" / "first", client=7)
    file = hp.load_prompt(store).path
    with pytest.raises(ConfigError, match="the prompt of one already"):
        hp.load_prompt(file, client=1)


def test_a_backbone_is_given_by_file_section_name_or_itself(tmp_path, store):
    (tmp_path / "toy.toml").write_text('[backbone]\nname = "toy"\n')
    (tmp_path / "none.toml").write_text("seed = 1\n")
    itself = hp.load_prompt(store).load_backbone()
    for backbone in (tmp_path / "toy.toml", str(tmp_path / "toy.toml"), {"name": "toy"}, "toy", itself):
        assert hp.load_prompt(store, backbone=backbone).load_backbone().fingerprint == itself.fingerprint
    with pytest.raises(ConfigError, match=r"has no section \[backbone\]"):
        hp.load_prompt(store, backbone=tmp_path / "none.toml")


def test_format_1_scores_with_the_place_that_its_sentence_names(tmp_path):
    for place in ("end", "middle", "front"):
        method = {"name": "local_only", "num_ctx": 4, "name_position": place}
        arm, model, shared, personal = written(method, tmp_path / place)
        prompt = hp.load_prompt(tmp_path / place, client=1)
        context = {"context": prompt.tensors["context"]}
        old = hp.Prompt(path=prompt.path, tensors=context, header=prompt.header, backbone=model.backbone)
        images = torch.nn.functional.normalize(torch.randn(5, 6), dim=1)
        torch.testing.assert_close(old.logits(images), arm.method.logits(model, shared, personal, images))
