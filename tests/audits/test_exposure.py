"""Secrets in answers: a prompt that is trained without noise tells them, and one with noise does not."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import hushprompt as hp
from helpers import tiny_generative
from helpers.runs import TOY
from hushprompt.audits.exposure import exposure
from hushprompt.errors import ConfigError
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.registry import BACKBONES


def test_exposure_is_the_rank_in_bits():
    likelihoods = torch.tensor([-3.0, -1.0, -2.0, -4.0])
    assert [exposure(likelihoods, secret) for secret in range(4)] == pytest.approx([2 - math.log2(3), 2.0, 1.0, 0.0])
    assert exposure(torch.zeros(8), 3) == 0  # a model for which all are alike tells nothing


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("list"), np.random.default_rng(0)
    repository = tiny_generative.write("smolvlm", folder / "smolvlm")
    lines = []
    for at in range(24):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{at}.png")
        lines.append({"image": f"{at}.png", "question": "what is it", "answers": ["ox"], "client": f"c{at % 2}"})
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "seed": 3,
        "backbone": {"name": "smolvlm", "model": str(repository)},
        "data": {"name": "questions", "file": str(folder / "list.jsonl")},
        "partition": {"name": "by_client"},
        "sampling": {"name": "poisson", "sampling_prob": 1.0},
        "method": {"name": "promptfl", "num_ctx": 8, "optimizer": {"name": "sgd", "learning_rate": 1.0}},
        "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_source": "seeded"},
        "training": {"num_rounds": 30},
        "references": [],
        "runtime": {"cache_dir": str(folder / "cache")},
    }


def test_noise_hides_what_a_prompt_without_it_tells(values):
    settings = {"num_secrets": 1, "num_repeats": 3, "num_digits": 2}
    found = {}
    for epsilon in (math.inf, 8.0):
        config = {**values, "privacy": {**values["privacy"], "epsilon": epsilon}}
        (found[epsilon],) = hp.secret_exposures(config, **settings)
    told, hidden = found[math.inf], found[8.0]
    assert told.audience == hidden.audience == "public"
    assert told.before == hidden.before
    assert told.most == pytest.approx(math.log2(100))
    assert told.after[0] > 4
    assert hidden.after[0] < 3
    assert told.claim.startswith("No guarantee")
    assert hidden.claim.startswith("epsilon = 8 (simulation)")


def test_likelihoods_are_those_of_one_answer_at_a_time(values):
    backbone = BACKBONES.get("smolvlm")(model=values["backbone"]["model"]).load()
    model, context = GenerativeModel(backbone, ()), 0.1 * torch.ones(3, backbone.token_width)
    media = backbone.encode_tokens([np.zeros((32, 32, 3), dtype=np.uint8)])
    answers = ["the code is 1 2", "ox", "the dog"]
    found = model.likelihoods(context, media, "what is it", answers)
    texts = model.texts(["what is it"] * 3, answers)
    ((_, losses),) = model.answers_and_losses([context], media.expand(3, -1, -1), texts, 1)
    expected = -losses * (texts.answers >= 0).sum(dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_has_no_secret_is_refused(values):
    for wrong, told in (
        ({**TOY, "references": []}, "has classes"),
        ({**values, "method": {"name": "zero_shot"}}, "trains no context on private data"),
    ):
        with pytest.raises(ConfigError, match=told):
            hp.secret_exposures(wrong)
    with pytest.raises(ConfigError, match="need 40 training examples"):
        hp.secret_exposures(values, num_secrets=40)
    with pytest.raises(ConfigError, match="client_id must lie in 0 to 1"):
        hp.secret_exposures(values, client_id=2)
