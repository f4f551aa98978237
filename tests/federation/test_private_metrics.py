"""Runs whose accuracies leave: what is released, how often, and what the records then say and leave out."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

import hushprompt as hp
from helpers.runs import files, run_with
from hushprompt.cli import console as cli_console
from hushprompt.cli import show as cli_show
from hushprompt.config import parse as configs
from hushprompt.config.schema import EvaluationConfig
from hushprompt.errors import PrivacyError, ResumeError
from hushprompt.evaluation.private import BATCH_SIZE
from hushprompt.federation.setup import make_partition
from hushprompt.federation.simulate import Trainer
from hushprompt.privacy.metrics import MetricsPlan
from hushprompt.reporting.tables import captions
from hushprompt.runs import records

FULL = {"name": "disjoint", "steps_per_round": 1}


def quick(toy_values, num_rounds=5, privacy=(), **evaluation):
    return {
        **toy_values,
        "references": [{"method": {"name": "zero_shot"}}],
        "sampling": FULL,
        "training": {"num_rounds": num_rounds},
        "privacy": {**toy_values["privacy"], **dict(privacy)},
        "evaluation": {"metrics_epsilon": 2.0, "metrics_delta": 1e-3, **evaluation},
    }


def released(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def spy(monkeypatch):
    """Collect true and released counts of every release."""
    seen, true_release = [], MetricsPlan.release

    def release(self, answers, rng):
        noisy = true_release(self, answers, rng)
        seen.append((self, answers, noisy))
        return noisy

    monkeypatch.setattr(MetricsPlan, "release", release)
    return seen


def test_every_accuracy_on_record_comes_from_a_counted_release_with_noise(toy_values, tmp_path, monkeypatch):
    seen = spy(monkeypatch)
    folder, arms, rounds = run_with(quick(toy_values, every=2), tmp_path)
    assert len(seen) == 1 + 3, "zero-shot once; DP-FPL after rounds 2, 4 and 5"
    plan = seen[0][0]
    assert plan.num_releases == 4
    privacy = records.read_json(folder / "privacy.json")
    assert privacy["evaluation"]["guarantee"]["releases"]["num_steps"] == 4
    assert privacy["evaluation"]["guarantee"]["epsilon"] == plan.guarantee().epsilon <= 2.0
    assert len({noisy.local[0] for _, _, noisy in seen}) == 4, "fresh noise in every release"
    for _, answers, noisy in seen:
        for name, std in (("local", plan.std_local), ("neighbor", plan.std_neighbor)):
            noise = getattr(noisy, name) - getattr(answers, name)
            assert noise.all()
            assert np.abs(noise).max() < 6 * std
    lines = released(folder)
    assert [line["local"] for line in lines] == [noisy.local.tolist() for _, _, noisy in seen]
    config = configs.parse(quick(toy_values))
    sizes = np.array([len(client.indices["test"]) for client in make_partition(config, config.data.load()).clients])
    scored = [record for record in rounds if record.is_evaluated]
    for record, (_, _, noisy) in zip(scored, seen[1:], strict=True):
        assert record.local == pytest.approx(np.clip(np.mean(noisy.local / sizes), 0, 1))
        assert record.neighbor == pytest.approx(np.clip(np.mean(noisy.neighbor / (sizes.sum() - sizes)), 0, 1))
    assert (arms[-1].local, arms[-1].neighbor) == (scored[-1].local, scored[-1].neighbor)


def test_no_other_figure_of_evaluation_images_is_on_record(toy_values, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "evaluate", lambda *_, **__: pytest.fail("an exact evaluation"))
    folder, arms, _ = run_with(quick(toy_values, 2), tmp_path)
    assert not (folder / "confusion").exists()
    for arm in records.read_json(folder / "summary.json")["arms"]:
        assert arm["per_class"] == []
        assert arm["calibration_error"] is None
        assert [client["calibration_error"] for client in arm["per_client"]] == [None] * 3
        values = [arm[name] for name in ("local", "neighbor", "harmonic_mean", "worst_client")]
        assert all(0 <= value <= 1 for value in values)
    assert math.isnan(arms[-1].calibration_error)


def test_training_is_the_same_and_without_the_option_nothing_is_added(toy_values, tmp_path):
    noisy, _, _ = run_with(quick(toy_values, 2), tmp_path, "noisy")
    plain, _, rounds = run_with({**quick(toy_values, 2), "evaluation": {}}, tmp_path, "plain")
    for name, written in files(plain).items():
        if name.startswith("prompts/"):
            assert files(noisy)[name] == written
    assert not (plain / "metrics.jsonl").exists()
    assert (plain / "confusion").exists()
    privacy = records.read_json(plain / "privacy.json")
    assert not {"evaluation", "evaluation_images"} & set(privacy)
    assert "which this guarantee does not cover" in privacy["not_private"]
    assert [r.loss for r in rounds] == [line["loss"] for line in files(noisy)["records.jsonl"]]
    assert records.read_json(noisy / "privacy.json")["arms"] == privacy["arms"], "apart from training's guarantees"


def test_a_run_that_was_killed_goes_on_to_the_same_files(toy_values, tmp_path):
    values = quick(toy_values, 3, last_rounds=2)
    whole, _, _ = run_with(values, tmp_path, "whole")
    with pytest.raises(KeyboardInterrupt):
        run_with(values, tmp_path, "parts", stop_after=2)
    parts, _, _ = run_with(values, tmp_path, "parts")
    assert files(parts) == files(whole)


@pytest.mark.parametrize("source", ["seeded", "secure"])
def test_a_retry_releases_nothing_more(toy_values, tmp_path, monkeypatch, source):
    """Killed after the release and before the checkpoint, the round runs again; its counts are the first attempt's."""
    values = {**quick(toy_values, 2, privacy={"noise_source": source}), "references": []}
    true_scores, crashes = Trainer.released_scores, [2]

    def broken(self, arm, state, num_done, metrics):
        scores = true_scores(self, arm, state, num_done, metrics)
        if num_done in crashes:
            crashes.remove(num_done)
            raise KeyboardInterrupt
        return scores

    seen = spy(monkeypatch)
    monkeypatch.setattr(Trainer, "released_scores", broken)
    with pytest.raises(KeyboardInterrupt):
        run_with(values, tmp_path)
    before = released(tmp_path / "run")
    folder, _, _ = run_with(values, tmp_path)
    assert len(seen) == 2
    assert released(folder) == before
    assert records.read_json(folder / "privacy.json")["evaluation"]["guarantee"]["releases"]["num_steps"] == 2


def test_a_arm_that_is_stopped_is_scored_where_it_stops_and_claims_what_was_released(toy_values, tmp_path):
    noise = {"epsilon": "none", "noise_multiplier_local": 2.0, "noise_multiplier_global": 2.0, "max_epsilon": 3.0}
    values = {**quick(toy_values, 30, privacy=noise, every=15), "references": []}
    folder, arms, _ = run_with(values, tmp_path)
    assert arms[-1].stopped is not None
    assert 0 < arms[-1].num_rounds < 15
    assert [line["num_rounds"] for line in released(folder)] == [arms[-1].num_rounds]
    evaluation = records.read_json(folder / "privacy.json")["evaluation"]
    assert evaluation["num_planned"] == 2
    assert evaluation["guarantee"]["releases"]["num_steps"] == 1
    assert evaluation["guarantee"]["epsilon"] < 2.0


@pytest.mark.parametrize("num_kept", [0, 1])
def test_a_lost_or_damaged_file_of_releases_stops_a_resume(toy_values, tmp_path, num_kept):
    values = {**quick(toy_values, 3), "references": []}
    with pytest.raises(KeyboardInterrupt):
        run_with(values, tmp_path, stop_after=2)
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:num_kept]))
    with pytest.raises(ResumeError, match="lacks releases"):
        run_with(values, tmp_path)
    path.write_text("{}\n")
    with pytest.raises(ResumeError, match="is damaged"):
        run_with(values, tmp_path)


def test_a_torn_last_line_is_released_again(toy_values, tmp_path):
    values = {**quick(toy_values, 3), "references": []}
    whole, _, _ = run_with(values, tmp_path, "whole")
    with pytest.raises(KeyboardInterrupt):
        run_with(values, tmp_path, "parts", stop_after=2)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"arm": "dp_fpl, eps')
    parts, _, _ = run_with(values, tmp_path, "parts")
    assert files(parts) == files(whole)


def test_the_statement_stands_apart_from_trainings_and_under_the_table(toy_values, tmp_path, monkeypatch):
    folder, arms, _ = run_with(quick(toy_values, 2), tmp_path)
    (folder / "config.toml").write_text(configs.parse(quick(toy_values, 2)).to_toml())
    console = Console(width=80, record=True, file=io.StringIO())
    monkeypatch.setattr(cli_console, "console", console)
    cli_show.privacy(folder)
    privacy = records.read_json(folder / "privacy.json")
    for text in (console.export_text(), "\n".join(captions(arms, privacy))):
        assert "evaluation images: epsilon = " in text
        assert "one evaluation image of one client" in text
        assert "at delta = 0.001" in text
        assert "3 releases" in text
        assert "which this guarantee does not cover" not in text
    planned = hp.plan(configs.parse(quick(toy_values, 2))).privacy
    assert planned["evaluation_images"] == privacy["evaluation_images"]


def test_the_number_of_releases_is_counted_as_rounds_are_scored():
    every = EvaluationConfig(every=3, last_rounds=2)
    assert [every.num_due(rounds) for rounds in (0, 1, 2, 3, 5, 6, 10)] == [1, 1, 2, 2, 3, 3, 4]
    for rounds in range(1, 12):
        assert every.num_due(rounds) == sum(every.is_due(done, rounds) for done in range(1, rounds + 1))


def test_what_is_not_accounted_for_is_refused(toy_values):
    for evaluation, match in (
        ({"base_classes": 4}, "does not account for scores on new classes"),
        ({"metrics_epsilon": math.inf}, "would be no guarantee"),
        ({"metrics_delta": 0.0}, "metrics_delta must be"),
    ):
        with pytest.raises(PrivacyError, match=match):
            configs.parse(quick(toy_values, **evaluation))
    values = quick(toy_values, metrics_delta=0.099)  # one client has more than ten images
    alone = configs.parse({**values, "partition": {"name": "disjoint_classes", "num_clients": 1}})
    with pytest.raises(PrivacyError, match="evaluation images of the largest client"):
        hp.plan(alone)


@pytest.mark.parametrize("metrics_epsilon", [2.0, "none"])
def test_answers_that_are_counted_under_noise_are_scored_always_as_many_at_a_time(
    toy_values, tmp_path, monkeypatch, metrics_epsilon
):
    from hushprompt.methods.dp_fpl import DPFPL

    sizes, true_logits = set(), DPFPL.logits

    def spy_logits(self, model, shared, personal, image_features):
        sizes.add(len(image_features))
        return true_logits(self, model, shared, personal, image_features)

    monkeypatch.setattr(DPFPL, "logits", spy_logits)
    run_with(quick(toy_values, num_rounds=1, metrics_epsilon=metrics_epsilon), tmp_path)
    assert (sizes == {BATCH_SIZE}) == (metrics_epsilon == 2.0)
