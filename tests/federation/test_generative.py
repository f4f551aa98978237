"""Runs on a generative model: every method that trains a context alone, from images to scores, on a tiny SmolVLM."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import hushprompt as hp
from helpers import tiny_generative
from helpers.runs import TOY, files, killed_and_resumed, run_with
from hushprompt.config import parse as configs
from hushprompt.config import presets
from hushprompt.data.sets import emoji100
from hushprompt.data.sets.toy import ToyData
from hushprompt.errors import DataError, UnfitError
from hushprompt.features.cache import cached
from hushprompt.methods.base import check_needs
from hushprompt.models.generative import GenerativeBackbone
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.registry import METHODS
from hushprompt.runs.checkpoint import Checkpoints

FIT = {"dp_fpl", "dp_fpl_released", "local_only", "promptfl", "random_prompt", "zero_shot"}
"""Methods that need no two towers."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return tiny_generative.write("smolvlm", tmp_path_factory.mktemp("hub") / "smolvlm")


def values(repository, method, **more):
    wanted = {"num_ctx": 4, "rank": 2}
    fields = METHODS.get(method).__dataclass_fields__
    return {
        **TOY,
        "backbone": {"name": "smolvlm", "model": str(repository), **more.pop("backbone", {})},
        "method": {"name": method, **{key: value for key, value in wanted.items() if key in fields}},
        "training": {"num_rounds": 2},
        "references": [],
        **more,
    }


@pytest.mark.parametrize("method", METHODS.names())
def test_each_method_runs_or_is_refused_before_anything_is_encoded(repository, method, tmp_path, monkeypatch):
    backbone = configs.parse(values(repository, method)).backbone.load()
    if method not in FIT:
        monkeypatch.setattr(GenerativeBackbone, "encode_tokens", None)
        with pytest.raises(UnfitError, match=r"two towers.*this backbone is one generative model"):
            run_with(values(repository, method), tmp_path)
        return
    check_needs(configs.parse(values(repository, method)).method, backbone)
    folder, arms, records = run_with(values(repository, method), tmp_path)
    assert len(records) == (2 if METHODS.get(method).channels else 0)
    assert 0 <= arms[-1].local <= 1
    if METHODS.get(method).channels:
        assert arms[-1].epsilon > 0
        prompts = sorted((folder / "prompts").glob("*.safetensors"))
        assert prompts
        assert "[4 tokens of the image or sound]" in hp.load_prompt(prompts[0]).header.prompt


def test_fedprox_pulls_and_dp_fpl_steps_change_the_scores(repository, tmp_path):
    config = values(
        repository, "promptfl", training={"num_rounds": 1, "local_steps": 2},
        sampling={"name": "poisson", "sampling_prob": 0.5, "steps_per_round": 2},
        privacy={"epsilon": 8.0, "delta": 1e-3, "noise_at": "client"},
    )  # fmt: skip
    contexts = []
    for weight in (0.0, 5.0):
        folder, _, _ = run_with(
            {**config, "method": {**config["method"], "proximal_weight": weight}}, tmp_path, f"{weight}"
        )
        contexts.append(hp.load_prompt(folder / "prompts" / "global.safetensors").tensors["context"])
    assert not torch.equal(*contexts)


def test_a_killed_run_resumes_to_the_same_bits_and_tokens_are_cached_once(repository, tmp_path, monkeypatch):
    wanted = values(repository, "dp_fpl", runtime={"num_threads": 1})
    whole, _, _ = run_with(wanted, tmp_path, "whole")
    train, _ = sorted(cached(tmp_path / "cache"), key=lambda each: -each.num_examples)
    assert (train.dtype, train.path.name.count("-tokens-"), train.num_examples) == ("float16", 1, 72)
    monkeypatch.setattr(GenerativeBackbone, "encode_tokens", None)
    again = killed_and_resumed(wanted, tmp_path, monkeypatch, Checkpoints, "save", {1})
    assert files(again) == files(whole)


@pytest.mark.parametrize("evaluation", [{}, {"metrics_epsilon": 1.0, "metrics_delta": 1e-3}], ids=["exact", "noisy"])
def test_all_clients_prompts_are_scored_behind_one_reading_and_as_each_alone(
    repository, tmp_path, monkeypatch, evaluation
):
    wanted = values(repository, "dp_fpl", training={"num_rounds": 1}, evaluation=evaluation)
    together, _, _ = run_with(wanted, tmp_path, "together")
    reads = []
    plain = GenerativeModel.scores_of_each
    monkeypatch.setattr(
        GenerativeModel, "scores_of_each", lambda self, contexts, features: reads.append(features) or [
            plain(self, [context], features)[0] for context in contexts
        ],
    )  # fmt: skip
    alone, _, _ = run_with(wanted, tmp_path, "alone")
    assert files(alone) == files(together)
    tokens = [features for features in reads if len(features) > 1]
    assert len(tokens) <= 2, "once a worker"
    assert all(features.dtype == torch.float16 for features in tokens), "left in their file"


def test_a_prompt_file_answers_as_the_run_did(repository, tmp_path):
    backbone = {"prompt_position": "front", "loss": "classes"}
    config = values(repository, "promptfl", backbone=backbone, evaluation={"split": "test"})
    config["runtime"] = {"cache_dir": str(tmp_path / "cache")}
    folder = hp.run(config, out=tmp_path / "run", progress=False).folder
    backbone = configs.parse(config).backbone
    prompt = hp.load_prompt(folder / "prompts" / "global.safetensors", backbone=backbone)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    scores = prompt.logits(prompt.image_features(list(images)))
    frozen = prompt.model
    with torch.no_grad():
        expected = frozen.scores(prompt.tensors["context"], frozen.backbone.encode_tokens(list(images)), "end")
    torch.testing.assert_close(scores, expected)
    assert len(prompt.predict(list(images), top=2)[0].top) == 2
    written = prompt.zero_shot()
    torch.testing.assert_close(
        written.logits(written.image_features(list(images))),
        frozen.template_scores(frozen.backbone.encode_tokens(list(images))),
    )
    assert "What is shown in this picture?" in written.header.prompt
    rows = list(hp.predict(folder, split="test", top=1))
    taken = Counter((prompt.classes.index(row.truth), prompt.classes.index(row.label)) for row in rows)
    confused = json.loads((folder / "confusion" / "arm-000.json").read_text())["local"]
    assert taken == {(true, int(label)): num for true, row in enumerate(confused) for label, num in row.items()}
    data = ToyData().load()
    for index, image in enumerate(data.splits["test"].read(np.arange(8))):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    for row, held in zip(hp.predict(folder, tmp_path), rows, strict=False):  # tokens in float16 are those of the split
        assert (row.label, row.probability) == (held.label, pytest.approx(held.probability, abs=2e-3))


def test_a_start_from_class_statistics_is_refused(repository, tmp_path):
    config = values(repository, "promptfl")
    config["method"]["start"] = "class_statistics"
    with pytest.raises(UnfitError, match="Class statistics needs two towers"):
        run_with(config, tmp_path)


def test_a_file_of_features_or_a_metric_is_refused(repository, tmp_path):
    given = {**TOY, "backbone": {"name": "smolvlm", "model": str(repository)}}
    with pytest.raises(UnfitError, match="A file of features needs two towers"):
        hp.export_features(given, out=tmp_path / "x.npz", progress=False)


def test_without_internet_all_that_is_missing_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    data = {"root": str(tmp_path / "data"), "download": False}
    told = r"(?s)Oxford-IIIT Pets.*Nor is the model there\. The config\.json of HuggingFaceTB/SmolVLM-256M.*--local-dir"
    with pytest.raises(DataError, match=told):
        hp.run(Path(__file__).parents[2] / "configs" / "smolvlm.toml", out=tmp_path / "run", data=data, progress=False)


def few(dataset, each):
    """The first examples of each class in each split."""
    splits = {}
    for name, split in dataset.splits.items():
        at = np.sort(
            np.concatenate([np.flatnonzero(split.labels == label)[:each] for label in np.unique(split.labels)])
        )
        splits[name] = dataclasses.replace(
            split, labels=split.labels[at], domains=split.domains[at], fingerprint=f"{each} of {split.fingerprint}",
            read=lambda indices, at=at, read=split.read: read(at[indices]),
        )  # fmt: skip
    return dataclasses.replace(dataset, splits=splits)


def test_the_preset_of_drawings_runs_offline_and_words_change_what_its_model_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dataset = few(emoji100.Emoji100().load(), 1)
    monkeypatch.setattr(emoji100, "read_npz", lambda path: dataset)
    wanted = presets.read(presets.locate(Path("drawings-mllm")))
    short = {"training": {"num_rounds": 1}, "evaluation": {}, "references": [{"method": {"name": "zero_shot"}}]}
    wanted |= {**short, "partition": {**wanted["partition"], "num_clients": 2}}
    folder, arms, _ = run_with(wanted, tmp_path)
    assert (folder / "prompts" / "global.safetensors").exists()
    assert [arm.local > 0.03 for arm in arms] == [True, True], "chance is 0.01"
    test, scores = dataset.splits["test"], []
    for words in ("", " exact name"):
        question = f"What is shown in this picture?{words}"
        backbone = configs.parse({**wanted, "backbone": {**wanted["backbone"], "question": question}}).backbone.load()
        model = GenerativeModel(backbone, dataset.class_names)
        found = model.template_scores(backbone.encode_tokens(test.read(np.arange(100)))).argmax(dim=1)
        scores.append(float((found == torch.from_numpy(test.labels)).float().mean()))
    assert scores[1] > scores[0] + 0.03
