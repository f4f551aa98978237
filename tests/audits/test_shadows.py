import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from helpers.commands import is_worker
from hushprompt.audits.audit import AuditSettings, audit, budget_arms, measure
from hushprompt.audits.canaries import canary_audits, with_canaries
from hushprompt.audits.shadows import ShadowTrainer, coins, job_path, load, load_shadows, run_shadows
from hushprompt.config import parse as configs
from hushprompt.config.schema import TrainingConfig
from hushprompt.deployment.operate.process_lifetime import descendants
from hushprompt.errors import ConfigError, ResumeError
from hushprompt.federation.setup import client_sizes, make_partition
from hushprompt.privacy.config import Audience


@pytest.fixture
def config(toy_values, tmp_path):
    values = {**toy_values, "references": [], "runtime": {"cache_dir": str(tmp_path / "cache")}}
    return configs.parse(values)


@pytest.fixture
def arms(config):
    sizes = client_sizes(make_partition(config, config.data.load()))
    return budget_arms(config, (2.0, float("inf")), sizes)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def trained(config, arms, folder, workers=1, num_shadows=3):
    seen = []
    run_shadows(config, arms, 1, num_shadows, 12, folder, lambda done, total: seen.append((done, total)), workers)
    return seen


def test_an_audit_goes_on_where_it_was_stopped_to_the_same_bytes(config, arms, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert trained(config, arms, whole) == [(done, 8) for done in range(9)]

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_shadows(config, arms, 1, 3, 12, stopped, stop, 1)
    assert len(files(stopped)) == 3
    assert trained(config, arms, stopped)[0] == (3, 8)
    assert files(stopped) == files(whole)
    assert trained(config, arms, whole) == [(8, 8)], "nothing is trained twice"


@pytest.mark.slow
def test_two_processes_leave_the_bytes_of_one(config, arms, tmp_path):
    trained(config, arms, tmp_path / "one", num_shadows=1)
    trained(config, arms, tmp_path / "two", workers=2, num_shadows=1)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_more_federations_can_be_added_later(config, arms, tmp_path):
    trained(config, arms, tmp_path, num_shadows=2)
    before = files(tmp_path)
    trained(config, arms, tmp_path, num_shadows=3)
    after = files(tmp_path)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2


def test_files_of_another_audit_or_damaged_ones_are_refused(config, arms, tmp_path):
    trained(config, arms, tmp_path, num_shadows=1)
    with pytest.raises(ResumeError, match="another config or client"):
        trained(dataclasses.replace(config, seed=99), arms, tmp_path)
    job_path(tmp_path, arms[0], 0, 12).write_bytes(b"half")
    with pytest.raises(ResumeError, match="is damaged"):
        trained(config, arms, tmp_path)


def test_coins_are_fair_independent_and_the_same_for_every_budget(config):
    drawn = np.stack([coins(config, index, 400) for index in range(60)])
    assert abs(drawn.mean() - 0.5) < 4 * 0.5 / np.sqrt(drawn.size)
    correlations = np.corrcoef(drawn.astype(float)) - np.eye(60)
    assert np.abs(correlations).max() < 5 / np.sqrt(400)
    assert np.array_equal(coins(config, 3, 400), drawn[3])


def test_what_is_kept_is_what_the_attacks_read(config, arms, tmp_path):
    trained(config, arms, tmp_path)
    shadows = load_shadows([job_path(tmp_path, arms[0], index, 12) for index in range(3)])
    assert shadows.is_in.shape == (3, 24)
    assert set(shadows.log_probs) == {Audience.PUBLIC, Audience.PERSONAL}
    for audience in shadows.log_probs:
        assert shadows.log_probs[audience].shape == (3, 24, 6)
        assert shadows.population[audience].shape == (3, 6, 6)
        np.testing.assert_allclose(np.exp(shadows.log_probs[audience]).sum(axis=-1), 1, rtol=1e-5)
    assert shadows.transcript.shape == (3, 24)
    kept = load(job_path(tmp_path, arms[0], 0, 12))
    assert kept["prompt.public.context"].shape == kept["prompt.personal.context"].shape == (4, 8)
    assert np.array_equal(shadows.is_in[0], coins(config, 0, 24))


def test_canaries_are_the_clients_own_images_with_wrong_labels(config, arms):
    world = ShadowTrainer(config, arms, 1, 0).world
    audited = with_canaries(world, 12)
    own = dict(zip(world.candidates.indices.tolist(), world.candidates.labels.tolist(), strict=True))
    for index, label in zip(audited.candidates.indices.tolist(), audited.candidates.labels.tolist(), strict=True):
        assert label != own[index]
        assert 0 <= label < 6
    assert len(set(audited.candidates.indices.tolist())) == 12
    with pytest.raises(ConfigError, match="at most the 24 examples of client 1, got 25"):
        with_canaries(world, 25)


def test_an_audience_guesses_from_what_it_sees_and_pays_for_looking_twice():
    import torch

    is_in = torch.from_numpy(np.random.default_rng(0).random(400) < 0.5)
    noise = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 400)))
    kept = {
        "is_in": is_in,
        "public": noise[0],
        "public.releases": noise[1],
        "personal": 3.0 * is_in + noise[2],
        "personal.releases": noise[3],
    }
    public = canary_audits(kept, Audience.PUBLIC, 1e-5)
    personal = canary_audits(kept, Audience.PERSONAL, 1e-5)
    assert [one.sees for one in public] == ["all releases", "global prompt"]
    assert [one.sees for one in personal] == ["all releases", "personal prompt"]
    assert canary_audits(kept, Audience.SERVER, 1e-5) == []
    assert max(one.result.epsilon_lower_bound for one in public) == 0
    assert personal[1].result.epsilon_lower_bound > 1
    assert personal[1].mean_gap > 2.5
    alone = canary_audits({"is_in": is_in, "personal": kept["personal"]}, Audience.PERSONAL, 1e-5)
    assert alone[0].result.epsilon_lower_bound > personal[1].result.epsilon_lower_bound


def test_an_audit_puts_claim_measurement_and_attacks_side_by_side(config, tmp_path):
    settings = AuditSettings(
        client_id=1,
        epsilons=(2.0, float("inf")),
        attacks=("lira", "rmia", "loss", "shadow_mlp", "gradient_cosine"),
        num_shadows=4,
        num_canaries=12,
        num_gradient_canaries=1000,
    )
    record = measure(config, settings, tmp_path, lambda done, total: None, 1)
    assert [budget.epsilon for budget in record.budgets] == [2.0, float("inf")]
    for budget in record.budgets:
        assert [one.audience for one in budget.audiences] == ["public", "personal"]
        for one in budget.audiences:
            assert "delta = 0.001" in one.claimed["statement"]
            assert len(one.attacks) == 6
            assert one.lower_bound <= float(one.claimed["epsilon"])
            assert not one.is_contradicted
    private, plain = (budget.audiences[1] for budget in record.budgets)
    assert plain.mechanism[0].epsilon_lower_bound > private.mechanism[0].epsilon_lower_bound
    assert set(record.power) == {"public", "personal"}
    for one in record.budgets[1].audiences:
        found = record.power[one.audience]
        assert found.has_power["mechanism"]
        assert found.auc.low == max(attack.auc.low for attack in one.attacks)
    assert record.num_candidates == 24


def test_python_audits_a_config_as_the_command_does(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"epsilons": (2.0,), "attacks": (), "num_canaries": 0, "num_gradient_canaries": 100}
    record = audit(config, **settings, audiences=("personal",))
    assert [one.audience for one in record.budgets[0].audiences] == ["personal"]
    assert json.loads((tmp_path / "audit" / "dp_fpl" / "audit.json").read_text())["method"] == "dp_fpl"
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.toml").write_text(config.to_toml())
    of_run = audit("r", overrides=["seed=5"], **settings)
    assert (of_run.seed, (tmp_path / "r" / "audit" / "audit.json").exists()) == (5, True)
    audit(config, out="here", **settings)
    assert (tmp_path / "here" / "audit.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attacks": ("lyra",)}, "Did you mean 'lira'"),
        ({"num_shadows": 3}, "at least 4, got 3"),
        ({"num_canaries": 5}, "0 or at least 10, got 5"),
        ({"epsilons": (2.0, -1.0)}, "epsilon must be > 0, got -1.0"),
        ({"audiences": ("pubic",)}, "Did you mean 'public'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        AuditSettings(**settings)


def test_a_method_that_trains_nothing_or_a_client_that_is_not_there_is_refused(config, tmp_path, toy_values):
    nothing = configs.parse({**toy_values, "references": [], "method": {"name": "zero_shot"}})
    with pytest.raises(ConfigError, match="nothing to audit"):
        measure(nothing, AuditSettings(), tmp_path, lambda done, total: None, 1)
    with pytest.raises(ConfigError, match="--client must lie in 0 to 2, got 7"):
        measure(config, AuditSettings(client_id=7), tmp_path, lambda done, total: None, 1)
    with pytest.raises(ConfigError, match="--canaries must be at most the 24"):
        measure(config, AuditSettings(num_canaries=200), tmp_path, lambda done, total: None, 1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_end_when_the_audit_is_killed(config, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(dataclasses.replace(config, training=TrainingConfig(num_rounds=2_000)).to_toml())
    command = [sys.executable, "-m", "hushprompt", "audit", str(path), "--out", str(tmp_path / "out")]
    options = ["--workers=2", "--num-shadows=4", "--canaries=0", "--gradient-canaries=0"]
    with subprocess.Popen([*command, *options]) as audit:
        wait_for(lambda: len(workers_below(audit.pid)) == 2)
        workers = workers_below(audit.pid)
        audit.kill()
    wait_for(lambda: not any(map(is_worker, workers)))


def workers_below(process_id):
    return {one for one in descendants(process_id) if is_worker(one)}


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this takes too long"
        time.sleep(0.1)
