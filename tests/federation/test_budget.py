"""The budget across crashes, resumes and retries of a real run."""

import json
import re

import pytest
from safetensors.torch import load_file

from helpers.runs import Silent, fresh
from hushprompt.config import parse as configs
from hushprompt.errors import ResumeError
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import client_sizes, make_partition
from hushprompt.federation.simulate import Trainer, run
from hushprompt.privacy.config import Audience
from hushprompt.privacy.mechanisms.gaussian import GaussianMechanism
from hushprompt.runs import records
from hushprompt.runs.ledger import LedgerFile


def config_of(toy_values, tmp_path, num_rounds=6, **privacy):
    return configs.parse(
        {
            **toy_values,
            "references": [],
            "training": {"num_rounds": num_rounds},
            "privacy": {"delta": 1e-3, **privacy},
            "runtime": {"cache_dir": str(tmp_path / "cache")},
        }
    )


NOISE = {"epsilon": "none", "noise_multiplier_local": 2.0, "noise_multiplier_global": 2.0}


def plan_of(config):
    return plan_arms(config, client_sizes(make_partition(config, config.data.load())))[-1].plan


def charges(folder):
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def crash_in_round(monkeypatch, *rounds):
    """Kill a round after it was charged and has released, before its checkpoint."""
    true_score, crashes = Trainer.score, list(rounds)

    def broken(self, arm, state, info):
        if crashes and info.num_done - 1 == crashes[0]:
            crashes.pop(0)
            raise KeyboardInterrupt
        return true_score(self, arm, state, info)

    monkeypatch.setattr(Trainer, "score", broken)


def run_through(config, folder):
    """Call again after every crash, as a supervisor would."""
    watcher = Silent()
    while True:
        try:
            return run(config, folder, watcher), watcher
        except KeyboardInterrupt:
            continue


def test_every_round_is_charged_on_disk_before_it_releases_anything(toy_values, tmp_path, monkeypatch):
    config, folder = config_of(toy_values, tmp_path, num_rounds=2, epsilon=8.0), fresh(tmp_path)
    true_release, seen = GaussianMechanism.release, []

    def spy(self, channel, summed):
        seen.append(len(charges(folder)))
        return true_release(self, channel, summed)

    monkeypatch.setattr(GaussianMechanism, "release", spy)
    run(config, folder, Silent())
    assert seen == [1] * 4 + [2] * 4
    identity = records.read_json(folder / "summary.json")["identity"]
    first = charges(folder)[0]
    assert len(first.pop("identity")) == 16
    assert first == {"arm": "dp_fpl, epsilon 8", "round": 1, "clients": ["client 0", "client 1", "client 2"]}
    assert identity["clients"] == [[name, 24] for name in first["clients"]]


def test_training_ends_before_the_limit_and_the_record_says_why(toy_values, tmp_path):
    config = config_of(toy_values, tmp_path, num_rounds=30, max_epsilon=6.0, **NOISE)
    folder = fresh(tmp_path)
    (arm,) = run(config, folder, Silent())
    plan = plan_of(config)
    assert 0 < arm.num_rounds < 30
    assert arm.epsilon == plan.epsilon(Audience.PERSONAL, arm.num_rounds) <= 6.0
    assert plan.epsilon(Audience.PERSONAL, arm.num_rounds + 1) > 6.0
    assert re.search(r"would bring client 0 from epsilon \S+ to \S+ \(simulation\)", arm.stopped)
    (record,) = records.read_json(folder / "privacy.json")["arms"]
    assert record["num_rounds"] == arm.num_rounds
    assert record["audiences"]["personal"]["epsilon"] == arm.epsilon
    assert record["clients"][0]["clients"] == [0, 1, 2]
    assert len(charges(folder)) == arm.num_rounds


def test_a_seeded_round_that_crashed_is_replayed_for_its_first_charge(toy_values, tmp_path, monkeypatch):
    config = config_of(toy_values, tmp_path, epsilon=8.0)
    run(config, fresh(tmp_path, "whole"), Silent())
    crash_in_round(monkeypatch, 2, 2, 4)
    run_through(config, fresh(tmp_path, "crashed"))
    for name in ("ledger.jsonl", "prompts/global.safetensors", "privacy.json"):
        assert (tmp_path / "crashed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_secure_noise_charges_every_retry_and_ends_before_the_target_is_overspent(toy_values, tmp_path, monkeypatch):
    config, folder = config_of(toy_values, tmp_path, epsilon=8.0, noise_source="secure"), fresh(tmp_path)
    crash_in_round(monkeypatch, 2, 2, 4)
    (arm,), watcher = run_through(config, folder)
    assert [entry["round"] for entry in charges(folder)] == [1, 2, 3, 3, 3, 4]
    assert arm.num_rounds == 4
    assert arm.stopped.startswith("privacy budget: round 5 would bring client 0")
    assert arm.epsilon == watcher.rounds[-1].epsilon["personal"] == plan_of(config).epsilon(Audience.PERSONAL, 6) <= 8.0
    assert records.read_json(folder / "privacy.json")["arms"][0]["clients"][0]["num_rounds"] == 6


def test_a_stopped_run_stays_stopped_when_resumed(toy_values, tmp_path, monkeypatch):
    config = config_of(toy_values, tmp_path, num_rounds=30, max_epsilon=6.0, **NOISE)
    folder = fresh(tmp_path)
    true_close = Trainer.close_arm

    def killed(self, *args):
        monkeypatch.setattr(Trainer, "close_arm", true_close)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "close_arm", killed)
    (arm,), _ = run_through(config, folder)
    assert arm.stopped
    assert len(charges(folder)) == arm.num_rounds
    assert run(config, folder, Silent()) == [arm]


def test_secure_runs_never_repeat_and_the_record_says_so(toy_values, tmp_path):
    config = config_of(toy_values, tmp_path, num_rounds=1, epsilon=8.0, noise_source="secure")
    first, second = fresh(tmp_path, "a"), fresh(tmp_path, "b")
    for folder in (first, second):
        run(config, folder, Silent())
        assert "cannot be repeated" in records.read_json(folder / "privacy.json")["noise_source"]
    prompts = [(folder / "prompts" / "global.safetensors").read_bytes() for folder in (first, second)]
    assert prompts[0] != prompts[1]


def test_a_torn_line_is_a_charge_whose_round_did_not_start(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"arm": "a", "round": 1, "clients": [[0, 1], [4, 4]]}\n{"arm": "a", "rou')
    ledger = LedgerFile(tmp_path, [f"client {client_id}" for client_id in range(6)]).of("a")
    assert [ledger.rounds(client_id) for client_id in range(6)] == [1, 1, 0, 0, 1, 0]
    assert path.read_text().endswith("]}\n")


def test_a_damaged_or_lost_ledger_is_no_free_budget(toy_values, tmp_path):
    config, folder = config_of(toy_values, tmp_path, epsilon=8.0), fresh(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config, folder, Silent(stop_after=3))
    path = folder / "ledger.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace("clients", "klients", 1))
    with pytest.raises(ResumeError, match=r"Line 1 of .* is damaged"):
        run(config, folder, Silent())
    path.unlink()
    with pytest.raises(ResumeError, match="lacks rounds"):
        run(config, folder, Silent())
    path.write_text(whole)
    (arm,) = run(config, folder, Silent())
    assert arm.num_rounds == 6


@pytest.mark.parametrize("unit", ["example", "client"])
def test_adaptive_norms_are_state_and_a_stopped_run_goes_on_to_the_same_bits(toy_values, tmp_path, unit):
    config = config_of(
        toy_values, tmp_path, epsilon=8.0, adaptive_quantile=0.3, privacy_unit=unit, audience="public"
    )  # fmt: skip
    run(config, fresh(tmp_path, "whole"), Silent())
    with pytest.raises(KeyboardInterrupt):
        run(config, fresh(tmp_path, "stopped"), Silent(stop_after=3))
    run(config, tmp_path / "stopped", Silent())
    states = [load_file(tmp_path / name / "checkpoint" / "state.safetensors") for name in ("whole", "stopped")]
    for name, tensor in states[0].items():
        assert tensor.equal(states[1][name]), name
    assert states[0]["clip_norms.shared"] != 1.0
    assert (states[0]["clip_norms.local"] != 1.0).all()
    adaptive = records.read_json(tmp_path / "whole" / "privacy.json")["arms"][0]["adaptive_clipping"]
    assert adaptive["quantile"] == 0.3
    assert set(adaptive["count_noise_std"]) == {"local", "global"}
