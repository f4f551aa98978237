"""Prompts of generative models as adapters of peft, read by peft itself: what is right, and the traps that are told.

A test of a trap fails once peft mends it: then the README of an export has to stop telling it.
"""

import dataclasses
import json
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("peft")
pytest.importorskip("transformers")

import peft
import transformers

import hushprompt as hp
from helpers import tiny_generative
from helpers.prompt_files import written
from hushprompt.errors import ConfigError
from hushprompt.serving.export import peft_adapter
from hushprompt.serving.export.formats import FORMATS

pytestmark = [  # of peft and transformers, about themselves
    pytest.mark.filterwarnings(f"ignore:{words}") for words in ("`is_gradient_checkpointing`", "Position ids are not")
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


def prompt_of(kind, hub, **settings):
    """Client 1's prompt for a tiny model, with a context that matters."""
    folder = hub / kind
    if not folder.exists():
        tiny_generative.write(kind, folder)
    size = {"image_size": 32} if kind.startswith("qwen") and kind.endswith("vl") else {}
    backbone = {"name": kind, "model": str(folder), "prompt_position": "front", **size, **settings}
    place = hub / f"{kind} {len(list(hub.iterdir()))}"
    written({"name": "dp_fpl", "num_ctx": 3, "rank": 1}, place, backbone=backbone)
    prompt = hp.load_prompt(place, client=1, backbone=backbone)
    context = 0.3 * torch.randn(prompt.tensors["context"].shape, generator=torch.Generator().manual_seed(1))
    return dataclasses.replace(prompt, tensors={"context": context})


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture of another size than the models take."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(40, 50, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "one.png"
    Image.fromarray(pixels).save(path)
    return path


def by_hand(prompt, picture, num):
    """Log-probabilities of the next token, and the most probable next tokens, one after the other."""
    model, backbone = prompt.model, prompt.model.backbone
    _, trunk = model._start(prompt.tensors["context"][None], prompt.image_features([picture]))
    embedded, positions, rows = trunk.embedded, trunk.positions, []
    for _ in range(num):
        length = embedded.shape[1]
        sees = torch.ones(1, length, length, dtype=torch.bool).tril()
        rows.append(backbone.log_probs(backbone.read(embedded, positions, sees)[0][:, -1]))
        embedded = torch.cat([embedded, backbone.embed(rows[-1].argmax(1))[:, None]], dim=1)
        positions = torch.cat([positions, positions[:, :, -1:] + 1], dim=2)
    return rows[0], [int(row.argmax()) for row in rows]


@pytest.mark.parametrize("kind", peft_adapter.FAMILIES)
def test_peft_answers_alike_and_its_cache_is_a_trap(kind, hub, picture, tmp_path, monkeypatch, capsys):
    prompt = prompt_of(kind, hub)
    folder = hp.export(prompt, to="peft", out=tmp_path / "out")
    model = str(hub / kind)
    monkeypatch.setattr(sys, "argv", ["ask.py", model, str(picture)])
    with torch.no_grad():
        found = runpy.run_path(str(folder / "ask.py"))
        log_probs, tokens = by_hand(prompt, picture, 32)
        theirs = found["model"](**found["inputs"]).logits[:, -1].log_softmax(-1)
        torch.testing.assert_close(theirs, log_probs, rtol=1e-5, atol=1e-5)
        ends = prompt.model.backbone.stop_ids
        kept = tokens[: next((at + 1 for at, token in enumerate(tokens) if token in ends), 32)]
        width = found["ids"].shape[1]
        assert found["answer"][0, width:].tolist() == kept
        assert capsys.readouterr().out.endswith(f"{prompt.answer(picture)}\n")
        cached = found["model"].generate(
            **found["inputs"], max_new_tokens=32, do_sample=False, eos_token_id=sorted(ends)
        )
        assert cached[0, width:].tolist() != kept, "peft's cache is right now: the README must not warn of it"
    assert load_file(folder / "adapter_model.safetensors").keys() == {"prompt_embeddings"}
    again = hp.load_prompt(folder, backbone=prompt.backbone)
    torch.testing.assert_close(again.tensors["context"], prompt.tensors["context"], rtol=0, atol=0)
    assert str(hub) not in "".join(path.read_bytes().decode("latin-1") for path in folder.iterdir())


def test_the_program_says_in_a_sentence_what_it_lacks(hub, picture, tmp_path, monkeypatch, capsys):
    folder, model = hp.export(prompt_of("smolvlm", hub), to="peft", out=tmp_path / "out"), str(hub / "smolvlm")
    for given, words in (
        ([], "the following arguments are required: MODEL, photo"),
        ([model, str(picture), "what", "more"], "unrecognized arguments: more"),
        ([model, "no.jpg"], "No such file or directory: 'no.jpg'"),
        ([model, str(folder / "input.json")], "cannot identify image file"),
        (["/no/model", str(picture)], "/no/model"),
    ):
        monkeypatch.setattr(sys, "argv", ["ask.py", *given])
        with pytest.raises(SystemExit):
            runpy.run_path(str(folder / "ask.py"))
        usage, told = capsys.readouterr().err.splitlines()[-2:]
        assert usage.strip().endswith("photo [question]")
        assert words in told


def test_the_readme_has_the_traps_and_the_promise(hub, tmp_path):
    prompt = prompt_of("smolvlm", hub)
    header = dataclasses.replace(prompt.header, backbone={**prompt.header.backbone, "model": "org/name"})
    folder = hp.export(dataclasses.replace(prompt, header=header), to="peft", out=tmp_path / "out")
    text = (folder / "README.md").read_text()
    for words in (
        "library_name: \"peft\"", "base_model: \"org/name\"", "pipeline_tag: \"image-text-to-text\"",
        "`use_cache=False`", "On Qwen2-VL and Qwen2.5-VL peft counts positions in one dimension", prompt.privacy,
        f"seen in peft {peft.__version__}", "python ask.py photo.jpg", "answer a question about it in words",
    ):  # fmt: skip
        assert words in text
    config = peft.PeftConfig.from_pretrained(folder)
    assert (config.base_model_name_or_path, config.num_virtual_tokens, config.token_dim) == ("org/name", 3, 32)
    assert '"org/name"' in (folder / "ask.py").read_text()


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_peft_counts_positions_in_one_dimension(kind, hub, picture, tmp_path):
    prompt = prompt_of(kind, hub)
    backbone = prompt.model.backbone
    config = peft_adapter._config(backbone, 3, "")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"prompt_embeddings": prompt.tensors["context"]}, tmp_path / "adapter_model.safetensors")
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForImageTextToText.from_pretrained(hub / kind), tmp_path
    ).eval()
    how = peft_adapter._input(backbone, prompt.model.how_asked[0])
    text = backbone.tokenize(how["between"] + how["question"]) + backbone.tokenize(how["header"])
    ids = torch.tensor([how["first_ids"] + text])
    processor = transformers.AutoImageProcessor.from_pretrained(hub / kind, backend="pil")
    image = Image.open(picture).resize((32, 32), Image.Resampling[how["resample"]])
    pixels = processor(image, return_tensors="pt", do_resize=False)
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels).logits[:, -1].log_softmax(-1)
        ours, _ = by_hand(prompt, picture, 1)
    assert (theirs - ours).abs().max() > 0.1, "peft counts as the model does now: an adapter can be written"


def test_what_peft_cannot_hold_is_refused_with_the_remedy(hub, tmp_path):
    for kind, settings, words in [
        ("smolvlm", {"prompt_position": "tail"}, 'Train with backbone.prompt_position = "front" for peft'),
        ("smolvlm", {"media_tokens": 1}, 'Train with backbone.media_tokens = "none" for peft'),
        ("qwen2_vl", {}, "it counts positions in one dimension, where the model has three. Use hushprompt predict"),
        ("qwen2_5_vl", {}, "it counts positions in one dimension"),
        ("llava_onevision", {}, "which cuts a single one into tiles"),
        ("qwen2_audio", {}, "it does not hand the sound to the model"),
        ("voxtral", {}, "train with one of smolvlm, idefics3, llava, internvl."),
    ]:
        with pytest.raises(ConfigError, match=re.escape(words)):
            hp.export(prompt_of_file(kind, hub, **settings), to="peft", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def prompt_of_file(kind, hub, **settings):
    """A prompt whose file alone is there: its model is not."""
    prompt = prompt_of("smolvlm", hub)
    said = {**prompt.header.backbone, "name": kind, **settings}
    modality = "audio" if kind in ("qwen2_audio", "voxtral") else "image"
    header = dataclasses.replace(prompt.header, backbone=said, modality=modality)
    return dataclasses.replace(prompt, header=header, backbone=None)


@pytest.mark.parametrize("to", [to for to in FORMATS if to not in ("peft", "card")])
def test_no_other_program_is_named_for_a_generative_prompt(to, hub, tmp_path):
    for position in ("front", "tail"):
        with pytest.raises(ConfigError, match=rf"answers in words, and {to} holds.*Use --to peft.*--to card"):
            hp.export(prompt_of_file("smolvlm", hub, prompt_position=position), to=to, out=tmp_path / "out")


def test_a_card_needs_no_model(hub, tmp_path):
    text = (hp.export(prompt_of_file("voxtral", hub), to="card", out=tmp_path / "card") / "README.md").read_text()
    assert 'pipeline_tag: "audio-text-to-text"' in text
    assert "which of its classes a sound is of, or to answer a question about it in words" in text
    assert "Answers in words are the frozen model's" in text
