"""Weights that score nothing are noticed before anything is charged."""

import math
from types import SimpleNamespace

import pytest

from helpers.runs import run_with
from hushprompt.api.progress import LastScores
from hushprompt.errors import DataError
from hushprompt.federation.planning import plan_arms
from hushprompt.models import toy
from hushprompt.privacy.config import Audience

NAN = math.nan


def broken(change):
    """A toy model whose weights are changed after they are drawn; its tower is made again from them."""
    true = toy.Toy.load

    def load(self):
        model = true(self)
        change(model)
        if model.causal_tower is not None:
            model.causal_tower = model._causal_tower()
        return model

    return load


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model._text_projection.view(-1)[3:4].fill_(NAN), "no finite feature for"),
        (lambda model: model._text_projection.fill_(math.inf), "no finite feature for"),
        (lambda model: model._text_projection.zero_(), "no finite feature for"),
        (lambda model: model._embedding[2 + ord("a") - ord("a") :].fill_(NAN), "no finite feature for"),
        (lambda model: setattr(model, "logit_scale", math.exp(100.0)), "logit scale is 2.68"),
        (lambda model: setattr(model, "logit_scale", NAN), "logit scale is nan"),
        (lambda model: setattr(model, "logit_scale", -3.0), "logit scale is -3"),
        (lambda model: model._image_projection.view(-1)[:7].fill_(NAN), "finite"),
        (lambda model: model._image_projection.zero_(), "all zero"),
    ],
    ids=["nan in text", "inf in text", "zero text", "nan in embedding", "scale of exp(exp)", "nan scale",
         "negative scale", "nan in images", "zero images"],
)  # fmt: skip
def test_weights_that_score_nothing_are_refused_before_the_ledger_is_charged(
    toy_values, tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(toy.Toy, "load", broken(change))
    with pytest.raises(DataError, match=message):
        run_with(toy_values, tmp_path)
    assert not (tmp_path / "run" / "ledger.jsonl").exists()
    assert not (tmp_path / "run" / "prompts").exists()


def test_a_round_without_an_example_shows_no_number_as_its_loss(toy_config):
    arm = plan_arms(toy_config, [40, 40])[-1]
    record = SimpleNamespace(is_evaluated=False, loss=NAN, epsilon=dict.fromkeys(Audience, 0.5))
    assert LastScores(arm).after(record).startswith("loss - epsilon 0.50")
