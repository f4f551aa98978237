"""Runs on questions and answers: from a JSONL file to measures of answers, on a tiny SmolVLM."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import hushprompt as hp
from helpers import tiny_generative
from helpers.runs import files, killed_and_resumed, run_with
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError, UnfitError
from hushprompt.features.cache import cached, image_features
from hushprompt.federation.questions import Quiz
from hushprompt.federation.rounding import LONGEST, measure
from hushprompt.federation.setup import assemble, load_model, make_partition
from hushprompt.models.generative import GenerativeBackbone
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.reporting.result_table import result_table
from hushprompt.runs.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return tiny_generative.write("smolvlm", tmp_path_factory.mktemp("hub") / "smolvlm")


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Twenty pictures, one question each, and a second list with three questions on each picture."""
    folder, rng = tmp_path_factory.mktemp("list"), np.random.default_rng(0)
    lines = []
    for at in range(20):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{at}.png")
        answers = ["dog"] * 3 + ["the cat"] if at % 2 else ["ox"]
        asked = ["what is the picture", "is it the ox or the dog"][at // 2 % 2]
        lines.append(
            {"image": f"{at}.png", "question": asked, "answers": answers, "client": f"c{at % 2}", "kind": at % 3}
        )
    several = [{**line, "question": f"{line['question']} {more}"} for line in lines for more in ("cat", "dog", "ox")]
    captions = [{key: value for key, value in line.items() if key != "question"} for line in lines]
    for name, rows in (("one", lines), ("several", several), ("captions", captions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def values(repository, listed, method="dp_fpl", data="one", **more):
    wanted = {"num_ctx": 4, "rank": 2} if method == "dp_fpl" else {} if method == "zero_shot" else {"num_ctx": 4}
    return {
        "seed": 3,
        "backbone": {"name": "smolvlm", "model": str(repository), **more.pop("backbone", {})},
        "data": {"name": "questions", "file": str(listed / f"{data}.jsonl"), **more.pop("given", {})},
        "partition": {"name": "by_client"},
        "sampling": {"name": "poisson", "sampling_prob": 0.5},
        "method": {"name": method, **wanted},
        "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_source": "seeded"},
        "training": {"num_rounds": 2},
        "evaluation": {"max_answer_tokens": 3},
        "references": [],
        **more,
    }


def test_a_run_trains_on_answers_and_reports_their_measures(repository, listed, tmp_path):
    config = values(repository, listed, references=["zero_shot"], runtime={"num_threads": 1})
    folder, (written, learned), rounds = run_with(config, tmp_path)
    assert rounds[-1].anls == learned.anls
    for arm in (written, learned):
        assert arm.is_open
        assert arm.loss > 0
        assert arm.neighbor_loss > 0
        assert 0 <= arm.local <= 1
        assert (arm.per_class, arm.base) == ([], None)
        assert "anls" in arm.per_client[0]
        assert arm.vqa_accuracy is not None
    assert learned.epsilon > 0
    assert written.loss != learned.loss
    assert not (folder / "confusion").exists()
    text = repr(result_table([written, learned], json.loads((folder / "privacy.json").read_text())))
    assert "ANLS" in text
    assert f"{learned.loss:.3f}" in text
    assert "shares of answers that are one of the true ones" in text
    header = hp.load_prompt(folder / "prompts" / "client-001.safetensors").header
    assert (header.task, header.class_names) == ("answers", ())
    assert "[question][context]" in header.prompt
    # What is reported is the mean over the client's own questions of the loss of its own prompt.
    parsed = configs.parse({**config, "runtime": {"cache_dir": str(tmp_path / "cache")}})
    dataset = parsed.data.load()
    model = GenerativeModel(parsed.backbone.load(), ())
    test = dataset.splits["test"]
    own = np.flatnonzero(test.clients == 1)
    context = hp.load_prompt(folder / "prompts" / "client-001.safetensors").tensors["context"]
    tokens = model.backbone.encode_tokens(test.read(own)).half().float()
    texts = model.texts([test.questions[at] for at in own], [test.answers[at][0] for at in own])
    ((_, losses),) = model.answers_and_losses([context], tokens, texts, 1)
    torch.testing.assert_close(learned.per_client[1]["loss"], float(losses.mean()))


@pytest.mark.parametrize("method", ["promptfl", "local_only", "dp_fpl_released", "random_prompt"])
def test_each_method_with_a_context_runs(repository, listed, tmp_path, method):
    data = "captions" if method == "promptfl" else "one"
    iid = {"name": "iid", "num_clients": 2}
    config = values(repository, listed, method, data, training={"num_rounds": 1}, partition=iid)
    if method == "dp_fpl_released":
        config["method"] |= {"rank": 2}
    _, (arm,), _ = run_with(config, tmp_path)
    assert arm.loss > 0


def test_a_killed_run_resumes_to_the_same_bits(repository, listed, tmp_path, monkeypatch):
    wanted = values(repository, listed, runtime={"num_threads": 1, "prefix_cache_mb": 8})
    whole, _, _ = run_with(wanted, tmp_path, "whole")
    monkeypatch.setattr(GenerativeBackbone, "encode_tokens", None)
    again = killed_and_resumed(wanted, tmp_path, monkeypatch, Checkpoints, "save", {1})
    assert files(again) == files(whole)


NOISY = {"metrics_epsilon": 1.0, "metrics_delta": 1e-3}


@pytest.mark.parametrize("more", [{}, NOISY], ids=["measures", "matches"])
def test_all_clients_answer_behind_one_reading_and_as_each_alone(repository, listed, tmp_path, monkeypatch, more):
    evaluation = {"max_answer_tokens": 3, "split": "test", **more}
    config = values(
        repository, listed, training={"num_rounds": 1}, evaluation=evaluation, runtime={"num_threads": 1}
    )  # fmt: skip
    name = "matches" if more else "measures"
    ask, read, reads, counts = getattr(Quiz, name), GenerativeModel._read_prefix, [], []

    def alone(self, contexts, media):
        return [ask(self, [context], media)[0] for context in contexts]

    def counted(self, contexts, media):
        reads.clear()
        found = ask(self, contexts, media)
        counts.append((len(contexts), len(media), [*reads]))
        return found

    monkeypatch.setattr(GenerativeModel, "_read_prefix", lambda *given: reads.append(len(given[1])) or read(*given))
    monkeypatch.setattr(Quiz, name, alone)
    apart, _, _ = run_with(config, tmp_path, "apart")
    monkeypatch.setattr(Quiz, name, counted)
    if more:
        monkeypatch.setattr(GenerativeModel, "answers_and_losses", None)
    together, (arm,), _ = run_with(config, tmp_path, "together")
    assert files(together) == files(apart)
    ((num_prompts, num, parts),) = counts
    assert num_prompts == 2
    # With noise each question is asked alone, and exact matches are all that is counted.
    assert parts == ([1] * num if more else [num])
    assert 0 <= arm.local <= 1
    assert arm.is_open
    assert ((arm.loss, arm.anls, arm.vqa_accuracy) == (None, None, None)) is bool(more)


def test_several_questions_on_one_image_need_a_group(repository, listed, tmp_path, monkeypatch):
    monkeypatch.setattr(GenerativeBackbone, "encode_tokens", None)
    given = {"test_fraction": 0.2, "validation_fraction": 0.0}
    split = [json.loads(line) for line in (listed / "several.jsonl").read_text().splitlines()]
    split = [{**line, "split": "test" if int(line["image"][:-4]) > 15 else "train"} for line in split]
    (listed / "split.jsonl").write_text("".join(json.dumps(line) + "\n" for line in split))
    with pytest.raises(ConfigError, match=r'16 image\(s\) .* several questions at one client.*privacy_unit = "group"'):
        run_with(values(repository, listed, data="split"), tmp_path)
    monkeypatch.undo()
    grouped = values(
        repository, listed, data="several", given={**given, "duplicates": "group"}, training={"num_rounds": 1},
        privacy={"epsilon": 8.0, "delta": 1e-3, "privacy_unit": "group"},
    )  # fmt: skip
    _, (arm,), _ = run_with(grouped, tmp_path)
    assert arm.loss > 0
    # Three questions share the tokens of their image.
    assert sorted(each.num_examples for each in cached(tmp_path / "cache")) == [4, 16]
    config = configs.parse({**grouped, "runtime": {"cache_dir": str(tmp_path / "cache")}})
    dataset, backbone = config.data.load(), config.backbone.load()
    test = dataset.splits["test"]
    stored = image_features(backbone, dataset, "test", config.runtime.cache_path, config.features)
    expected = backbone.encode_tokens(test.read(np.arange(len(test)))).half().float()
    assert len(stored) == len(test) == 12
    torch.testing.assert_close(stored.tensor(), expected, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(stored.rows(np.array([7]), np.array([0])), stored.tensor()[7:8])


def test_what_is_about_classes_is_refused_before_anything_is_encoded(repository, listed, tmp_path, monkeypatch):
    monkeypatch.setattr(GenerativeBackbone, "encode_tokens", None)
    dirichlet = {"partition": {"name": "dirichlet", "num_clients": 2, "alpha": 5.0}}
    for wrong, told, error in (
        (dirichlet, "partition deals out classes.*data.category_field", ConfigError),
        ({"evaluation": {"base_classes": 0.5}}, "evaluation.base_classes keeps classes", ConfigError),
        ({"evaluation": {"max_answer_tokens": 500}}, "500 of the answer, but the model takes 512", ConfigError),
        ({"backbone": {"loss": "classes"}}, 'Use backbone.loss = "answer"', ConfigError),
    ):
        with pytest.raises(error, match=told):
            run_with(values(repository, listed, **wrong), tmp_path)
    toy = {**values(repository, listed), "backbone": {"name": "toy"}}
    with pytest.raises(UnfitError, match="Use a generative model"):
        run_with(toy, tmp_path)
    parsed = configs.parse(values(repository, listed, given={"category_field": "kind"}, **dirichlet))
    assert len(make_partition(parsed, parsed.data.load()).clients) == 2


def test_rounding_is_measured_with_questions_of_many_lengths(repository, listed, tmp_path, monkeypatch):
    from hushprompt.federation.planning import plan_arms

    config = configs.parse({**values(repository, listed), "runtime": {"cache_dir": str(tmp_path)}})
    dataset = config.data.load()
    partition = make_partition(config, dataset)
    arms = plan_arms(config, [client.size for client in partition.clients], None)
    model = load_model(config, dataset, arms)
    assert 0 <= measure(arms[-1], model) < 1e-5
    federation = assemble(config, model, dataset, partition, lambda *_: None)
    assert federation.train_texts.questions.shape[0] == len(dataset.splits["train"])
    true = GenerativeModel.losses

    def leaks(self, contexts, media, labels, texts):  # a longer question of somebody else
        return true(self, contexts.flip(1) if texts.questions.shape[1] > LONGEST else contexts, media, labels, texts)

    monkeypatch.setattr(GenerativeModel, "losses", leaks)
    assert measure(arms[-1], model) > 1e-3
