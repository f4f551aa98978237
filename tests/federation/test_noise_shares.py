"""Noise shares in simulated runs: the training of a trusted server under another guarantee, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hushprompt as hp
from helpers.runs import Silent, run_with
from helpers.toy_metric import toy_metric
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError, PrivacyError
from hushprompt.federation import payload
from hushprompt.federation.planning import plan_arms
from hushprompt.methods.base import ClipsBatches
from hushprompt.privacy.config import SHARES_ONLY, Channel
from hushprompt.privacy.mechanisms.base import StepMechanism
from hushprompt.registry import METHODS
from hushprompt.runs import records
from hushprompt.runs.identity import settings_of
from hushprompt.runs.prompt_file import read_prompt
from hushprompt.statistics import contexts


def sharing(toy_values, method="promptfl", training=None, num_clients=4, **privacy):
    """A short run whose clients add shares of the noise."""
    fields = METHODS.get(method).__dataclass_fields__
    known = {"num_ctx": 4, "rank": 2, "metric": toy_metric() if method == "class_statistics" else None}
    return {
        **toy_values,
        "sampling": {"name": "disjoint", "steps_per_round": 1},
        "method": {"name": method, **{key: value for key, value in known.items() if key in fields and value}},
        "partition": {"name": "disjoint_classes", "num_clients": num_clients},
        "references": [],
        "training": {"num_rounds": 2, **(training or {})},
        "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "shares", **privacy},
    }


def global_of(folder):
    return load_file(folder / "prompts" / "global.safetensors")


def shares_something(name):
    return Channel.GLOBAL in METHODS.get(name).channels and not isinstance(METHODS.get(name)(), ClipsBatches)


@pytest.mark.parametrize("name", list(filter(shares_something, METHODS.names())))
def test_every_method_learns_from_shares_what_it_learns_from_clear_sums(toy_values, tmp_path, name):
    found = []
    for noise_at in ("server", "shares"):
        values = sharing(toy_values, name, epsilon=math.inf, noise_at=noise_at)
        folder, _, rounds = run_with(values, tmp_path, noise_at)
        found.append((global_of(folder), rounds[-1].bytes_up))
    (clear, bytes_clear), (shared, bytes_shared) = found
    for key, tensor in clear.items():
        torch.testing.assert_close(shared[key], tensor, atol=1e-4, rtol=1e-3)
    assert bytes_clear < bytes_shared <= 2 * bytes_clear  # whole numbers of eight bytes, mostly for floats of four


SETTINGS = {
    "adaptive norms": ({}, {"adaptive_quantile": 0.5}),
    "whole clients": ({}, {"privacy_unit": "client", "audience": "public"}),
    "cohorts and dropout": (
        {"cohort_size": 5, "dropout_rate": 0.1, "num_rounds": 3},
        {"max_dropouts": 2, "adaptive_quantile": 0.5},
    ),
    "equal weights": ({"weighting": "equal"}, {}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_gives_without_noise_what_a_trusted_server_makes(toy_values, tmp_path, name):
    training, privacy = SETTINGS[name]
    found = []
    for noise_at in ("server", "shares"):
        own = {key: value for key, value in privacy.items() if noise_at == "shares" or key not in SHARES_ONLY}
        values = sharing(toy_values, "dp_fpl", training, 6, **{**own, "epsilon": math.inf, "noise_at": noise_at})
        folder, _, rounds = run_with(values, tmp_path, noise_at)
        found.append((global_of(folder)["context"], rounds))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-3)
    assert [one.num_clients for one in found[0][1]] == [one.num_clients for one in found[1][1]]


def test_the_sum_of_a_step_has_the_planned_noise_of_all_but_those_on_the_servers_side(
    toy_values, tmp_path, monkeypatch
):
    """Against the sums themselves, with what all four clients add."""
    sums, totals = [], []
    share, add = StepMechanism.share, payload.add_shares

    def spy(self, channel, summed, count):
        sums.append((summed.value.double().numpy().ravel(), self.plan.share_grid(1.0, 0, summed.value.numel(), count)))
        return share(self, channel, summed, count)

    monkeypatch.setattr(StepMechanism, "share", spy)
    monkeypatch.setattr(payload, "add_shares", lambda vectors: totals.append(add(vectors)) or totals[-1])
    values = sharing(toy_values, method="promptfl", training={"num_rounds": 1}, epsilon="none",
                     noise_multiplier_local=2.0, noise_multiplier_global=2.0, rounding=0.0)  # fmt: skip
    values |= {"backbone": {"name": "toy", "token_width": 2048}}
    run_with(values, tmp_path)
    noise = totals[0] * sums[0][1].step - sum(value for value, _ in sums)
    assert noise.std() == pytest.approx(2.0 * math.sqrt(4 / 3), rel=0.05)
    assert abs(noise.mean()) < 5 * noise.std() / math.sqrt(noise.size)


def test_rounds_with_too_few_clients_move_nothing_and_are_charged(toy_values, tmp_path):
    training = {"num_rounds": 6, "dropout_rate": 0.4}
    values = sharing(toy_values, "promptfl", training, num_clients=4)
    start = global_of(run_with({**values, "training": {"num_rounds": 0}}, tmp_path, "start")[0])["context"]
    folder, (arm,), rounds = run_with(values, tmp_path, "run")
    assert {one.num_clients for one in rounds} <= {0, 4}
    assert any(one.num_clients == 0 for one in rounds)
    assert all((one.bytes_up > 0) == (one.num_clients == 4) for one in rounds)
    held = records.read_json(folder / "privacy.json")["arms"][0]
    assert held["audiences"]["server"]["releases"]["num_steps"] == arm.num_rounds == 6
    if not any(one.num_clients for one in rounds):
        assert torch.equal(global_of(folder)["context"], start)


def test_a_run_says_what_the_server_may_learn_and_verifies(toy_values, tmp_path, hush):
    values = sharing(toy_values, "class_statistics", num_clients=5, max_dropouts=1, audience="server", rounding=0.0)
    run = hp.run({**values, "runtime": {"cache_dir": str(tmp_path / "c")}}, out=tmp_path / "run", progress=Silent())
    told = records.read_json(tmp_path / "run" / "privacy.json")
    assert "together with up to 1 client: in a step it learns of a client one noisy sum at most" in told["server"]
    assert "over at least 3 clients that are not with it" in told["server"]
    assert "A simulation: who knows the seed takes the noise away." in told["server"]
    assert "one process simulated it" in told["server"]
    server, public = run.guarantees["server"], run.guarantees["public"]
    assert server.epsilon == public.epsilon
    assert "with up to 1 client on the server's side and at least 3 others in every sum" in server.statement()
    header, _ = read_prompt(tmp_path / "run" / "prompts" / "global.safetensors")
    assert header.server == server.statement()
    checked = hp.verify(run)
    assert not checked.differences, str(checked)
    for command in ("privacy", "show"):
        shown = " ".join(hush(command, tmp_path / "run").out.split())
        assert "on the server's side and at least 3 others in every sum" in shown
        assert told["server"] in shown
    page = hp.report([run], tmp_path / "report.html")
    assert "at least 3 others in every sum" in page.read_text(encoding="utf-8")
    told["arms"][0]["audiences"]["server"]["terms"]["honest"] = 4
    records.write_json(tmp_path / "run" / "privacy.json", told)
    assert any("honest is 4, computed: 3" in each for each in hp.verify(run).differences)


def test_a_start_and_its_rounds_are_each_hidden_among_their_own_clients(toy_values, tmp_path, monkeypatch):
    """The release that a prompt starts from is of all clients, a round of its cohort."""
    monkeypatch.setattr(contexts, "CLASS_STEPS", 2)
    monkeypatch.setattr(contexts, "SHARED_STEPS", 2)
    values = sharing(toy_values, "promptfl", {"cohort_size": 4, "num_rounds": 1}, 6, audience="server")
    values["method"] |= {"start": "class_statistics", "start_metric": toy_metric()}
    arm = records.read_json(run_with(values, tmp_path)[0] / "privacy.json")["arms"][0]
    assert arm["audiences"]["server"]["terms"]["honest"] == 3
    assert arm["start"]["audiences"]["server"]["terms"]["honest"] == 5
    assert 7.9 < arm["audiences"]["server"]["epsilon"] <= 8


def test_a_run_that_shares_nothing_says_so(toy_values, tmp_path):
    folder = run_with(sharing(toy_values, "local_only", num_clients=2), tmp_path)[0]
    assert records.read_json(folder / "privacy.json")["server"].startswith("Nothing that derives from private data")


REFUSED = {
    "two clients": ({"num_clients": 2}, "at least 3 clients a round"),
    "a small cohort": ({"training": {"cohort_size": 2}}, "at least 3 clients a round"),
    "local steps": ({"training": {"local_steps": 2}}, "needs the full noise of each client in every step"),
    "clipped batches": ({"method": "dp_fpl_released"}, "have no noise shares"),
    "colluders in a simulation that trusts": ({"noise_at": "auto", "max_colluding": 2}, "max_colluding needs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_theorem_covers_is_refused(toy_values, name):
    settings, message = REFUSED[name]
    values = sharing(toy_values, **settings) | {"sampling": {"name": "disjoint", "steps_per_round": 2}}
    with pytest.raises(PrivacyError, match=message):
        plan_arms(configs.parse(values), [10] * settings.get("num_clients", 4))


def test_nobody_joins_after_a_release_of_shares(toy_values):
    config = configs.parse(sharing(toy_values, "class_statistics"))
    plan_arms(config, [10] * 4)
    with pytest.raises(PrivacyError, match="no client can join after the release"):
        plan_arms(config, [10] * 4, num_late=1)


def test_one_release_knows_the_noise_that_those_on_the_servers_side_add_too(toy_values):
    (arm,) = plan_arms(configs.parse(sharing(toy_values, "class_statistics", max_colluding=2)), [10] * 5)
    assert arm.method._of.num_draws == 5 / 3
    assert arm.method._of.noise_at == "server"


def test_a_config_without_the_setting_is_the_run_that_it_was(toy_values):
    """Settings and identity of versions that had no shares: nothing of them may change."""
    values = {**toy_values, "privacy": {"epsilon": 8.0, "delta": 1e-3}}
    left_out, said = (
        configs.parse(values),
        configs.parse({**values, "privacy": {**values["privacy"], "noise_at": "server"}}),
    )
    assert left_out == said
    assert left_out.privacy.noise_at == "server"
    assert not {f"privacy.{name}" for name in SHARES_ONLY} & settings_of(left_out).keys()
    other = configs.parse(sharing(toy_values))
    assert settings_of(other)["privacy.max_colluding"] == 1
    assert configs.parse(json.loads(json.dumps(other.to_values()))) == other
    with pytest.raises(ConfigError, match="noise_at"):
        configs.parse({**values, "privacy": {**values["privacy"], "noise_at": "nobody"}})


def test_noise_for_whom_is_calibrated_alike(toy_values):
    noise = {at: hp.calibrate(8.0, rounds=5, noise_at=at, clients=5).multipliers for at in ("server", "shares")}
    assert noise["server"] == noise["shares"]
    with pytest.raises(PrivacyError, match="at least 3 clients"):
        hp.calibrate(8.0, rounds=5, noise_at="shares")
    assert np.isclose(
        hp.epsilon(noise["shares"], rounds=5, noise_at="shares", clients=5, audience="server").epsilon, 8.0, rtol=1e-2
    )


def test_a_rescue_has_places_for_255_clients_in_all_whatever_the_cohort(toy_values):
    values = sharing(toy_values, training={"cohort_size": 5}, num_clients=4, rescue=True)
    (arm,) = plan_arms(configs.parse(values), [20] * 255)
    assert arm.plan.terms().rescue
    with pytest.raises(PrivacyError, match="rescue is for at most 255 clients in all, got 256"):
        plan_arms(configs.parse(values), [20] * 256)
