"""Which rounds are scored, which scores are reported, and classes that nobody trains on."""

import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from helpers.runs import files, run_with
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError
from hushprompt.federation.simulate import Trainer
from hushprompt.methods.dp_fpl import DPFPL
from hushprompt.methods.promptfl import PromptFL
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.reporting.result_table import result_table
from hushprompt.reporting.tables import captions, has_new_classes
from hushprompt.runs import records

NO_PRIVACY = {"arms": [{"arm": "x", "audiences": {}}], "server": "", "several_arms": ""}
FULL = {"name": "disjoint", "steps_per_round": 1}


def quick(toy_values, num_rounds=5, **evaluation):
    return {**toy_values, "sampling": FULL, "training": {"num_rounds": num_rounds}, "evaluation": evaluation}


def scored(rounds, arm):
    return [record.round_index for record in rounds if record.arm.startswith(arm) and record.is_evaluated]


def test_every_mth_round_and_the_last_are_scored_and_nothing_else_changes(toy_values, tmp_path):
    often, arms, all_rounds = run_with(quick(toy_values), tmp_path, "often")
    rarely, rare_arms, rounds = run_with(quick(toy_values, every=2), tmp_path, "rarely")
    assert scored(all_rounds, "dp_fpl") == [1, 2, 3, 4, 5]
    assert scored(rounds, "dp_fpl") == [2, 4, 5]
    assert math.isnan(rounds[0].harmonic_mean)
    line = json.loads((rarely / "records.jsonl").read_text().splitlines()[0])
    assert [line[name] for name in ("local", "neighbor", "harmonic_mean", "worst_client")] == [None] * 4
    assert not records.from_json(records.RoundRecord, line).is_evaluated
    for left, right in zip(
        files(often)["summary.json"][0]["arms"], files(rarely)["summary.json"][0]["arms"], strict=True
    ):
        assert left == right
    kept = [record for record in all_rounds if record.round_index in (2, 4, 5)]
    assert [r.local for r in kept] == [r.local for r in rounds if r.is_evaluated]
    assert arms[-1].num_last_rounds == rare_arms[-1].num_last_rounds == 1


def test_the_mean_of_the_last_rounds_is_reported_and_never_the_best(toy_values, tmp_path):
    _, arms, rounds = run_with(quick(toy_values, every=4, last_rounds=3), tmp_path)
    assert scored(rounds, "dp_fpl") == [3, 4, 5]
    for arm in arms[1:]:
        last = [record for record in rounds if record.arm == arm.arm and record.round_index >= 3]
        for name in ("local", "neighbor", "harmonic_mean", "worst_client"):
            assert getattr(arm, name) == pytest.approx(np.mean([getattr(record, name) for record in last]))
        assert arm.num_last_rounds == 3
    assert arms[0].num_last_rounds == 1, "zero-shot has no rounds"
    text = "\n".join(captions(arms, NO_PRIVACY))
    assert "mean of the last 3 rounds" in text


def test_more_last_rounds_than_rounds_are_all_rounds(toy_values, tmp_path):
    _, arms, rounds = run_with(quick(toy_values, 2, last_rounds=9), tmp_path)
    assert scored(rounds, "dp_fpl") == [1, 2]
    assert arms[-1].num_last_rounds == 2


def test_a_trained_arm_is_scored_once_at_its_end(toy_values, tmp_path, monkeypatch):
    calls = []
    true_evaluate = Trainer.evaluate
    monkeypatch.setattr(
        Trainer, "evaluate", lambda self, *args, **kw: calls.append(args[0].label) or true_evaluate(self, *args, **kw)
    )
    run_with(quick(toy_values, every=5), tmp_path)
    assert calls == ["zero_shot", "promptfl, epsilon 8", "dp_fpl, epsilon 8"]


def test_clients_with_one_and_the_same_state_are_scored_with_one_set_of_logits(toy_values, tmp_path, monkeypatch):
    calls = []
    for method in (DPFPL, PromptFL):
        true_logits = method.logits
        monkeypatch.setattr(
            method, "logits", lambda self, *args, true=true_logits: calls.append(self.title) or true(self, *args)
        )
    monkeypatch.setattr(Trainer, "_write_confusion", lambda *_: None)  # once an arm, at its end
    values = quick(toy_values, 1)
    values["training"]["cohort_size"] = 1
    values["partition"] = {"name": "disjoint_classes", "num_clients": 6}
    run_with(values, tmp_path)
    assert calls.count("PromptFL") == 1
    assert calls.count("DP-FPL") == 2, "the client that took part, and the five that did not"


@pytest.fixture
def base_to_new(toy_values, tmp_path):
    """A run on the first four of six classes."""
    values = {**quick(toy_values, 2, base_classes=4), "partition": {"name": "disjoint_classes", "num_clients": 2}}
    return values, *run_with(values, tmp_path)


def test_prompts_are_scored_on_classes_that_nobody_trained_on(base_to_new):
    values, folder, arms, _ = base_to_new
    config = configs.parse(values)
    dataset, backbone = config.data.load(), config.backbone.load()
    test = dataset.splits["test"]
    features = backbone.encode_images(test.read(np.arange(len(test.labels))))
    labels = torch.from_numpy(test.labels)
    for client in arms[-1].per_client:
        context = load_file(folder / "prompts" / f"client-{client['client_id']:03d}.safetensors")["context"]
        for name, names, chosen, first in (
            ("base", dataset.class_names[:4], labels < 4, 0),
            ("new", dataset.class_names[4:], labels >= 4, 4),
        ):
            model = PromptModel(backbone, names)
            logits = model.logits(features[chosen], model.text_features(context))
            right = float((logits.argmax(dim=1) == labels[chosen] - first).double().mean())
            assert client[name] == pytest.approx(right)
    last = arms[-1]
    assert last.base_new_harmonic_mean == pytest.approx(2 * last.base * last.new / (last.base + last.new))
    assert len(last.per_class) == 4
    assert all(arm.new is not None for arm in arms), "untrained arms too"


def test_new_classes_have_a_table_where_they_are_asked_for(base_to_new, toy_values, tmp_path):
    arms = base_to_new[2]
    assert has_new_classes(arms)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(result_table(arms, NO_PRIVACY).grids[1])
    text = console.export_text()
    for score in (arms[-1].base, arms[-1].new, arms[-1].base_new_harmonic_mean):
        assert f"{100 * score:.1f}" in text
    assert "…" not in text
    caption = captions(arms, NO_PRIVACY)
    assert "all base classes compete" in caption[0]
    assert "nobody trained on" in caption[1]
    plain = run_with(quick(toy_values, 1), tmp_path, "plain")[1]
    assert not has_new_classes(plain)
    assert set(plain[-1].per_client[0]) == {"client_id", "local", "neighbor", "calibration_error"}


def test_a_context_for_each_class_has_none_for_new_classes(toy_values, tmp_path):
    method = {**toy_values["method"], "is_class_specific": True}
    values = {**quick(toy_values, 1, base_classes=0.5), "method": method}
    with pytest.raises(ConfigError, match="has no context for classes that nobody trains on"):
        run_with(values, tmp_path)
