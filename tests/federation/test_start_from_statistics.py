"""A prompt that starts from class statistics: one release of every example, then sampled rounds, in one budget."""

import dataclasses
import json
import math

import dp_accounting
import pytest
import torch
from dp_accounting import pld
from scipy.stats import norm

from helpers.runs import TOY, files, kill_at, killed_and_resumed, run_with
from helpers.toy_metric import toy_metric
from hushprompt.api.training import plan
from hushprompt.audits.audit import audit
from hushprompt.audits.verify import verify
from hushprompt.config import parse as configs
from hushprompt.data.sets.toy import NAMES
from hushprompt.deployment.agreement import Agreement, make_offer
from hushprompt.errors import ConfigError, PrivacyError, ResumeError
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.server import Server
from hushprompt.federation.setup import declared_classes
from hushprompt.federation.simulate import Trainer
from hushprompt.methods.class_statistics import ClassStatistics
from hushprompt.privacy.accounting import FINE
from hushprompt.privacy.mechanisms.class_sums import ClassSumsMechanism
from hushprompt.runs import checkpoint
from hushprompt.runs.ledger import LedgerFile
from hushprompt.statistics import contexts

DELTA = 1e-3
SIZES = [24, 24, 24]
pytestmark = [pytest.mark.usefixtures("short_fits")]


def values_of(name="dp_fpl", **changes):
    """Plain values of a toy run that starts from statistics."""
    method = {"name": name, "num_ctx": 4, "start": "class_statistics", "start_metric": toy_metric()}
    if name == "dp_fpl":
        method["rank"] = 2
    values = {**TOY, "method": {**method, **changes.pop("method", {})}}
    values = {key: {**part, **changes.pop(key, {})} if isinstance(part, dict) else part for key, part in values.items()}
    return {**values, **changes}


def arm_of(**changes):
    """The planned arm of these values."""
    config = configs.parse(values_of(**changes))
    return plan_arms(config, SIZES, declared_classes(config, NAMES[:6]))[-1]


def verified(values, folder):
    """What `verify` says of a run folder; the config is written by whoever starts a run."""
    (folder / "config.toml").write_text(configs.parse(values).to_toml())
    return verify(folder)


def lines_of(folder, name="ledger.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------ accounting


@pytest.mark.parametrize("noise_at", ["server", "client", "shares"])
@pytest.mark.parametrize("share", [0.2, 0.8])
@pytest.mark.parametrize("name", ["dp_fpl", "promptfl"])
def test_a_budget_pays_for_the_start_and_the_rounds_as_dp_accounting_composes_them(name, share, noise_at):
    arm = arm_of(name=name, method={"start_share": share}, privacy={"epsilon": 4.0, "noise_at": noise_at})
    noise = arm.plan.release_plan.noise_multipliers.values()
    z, first = sum(one**-2 for one in noise) ** -0.5, arm.start.plan.release_plan.noise_multipliers["global"]
    rounds = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.5, dp_accounting.GaussianDpEvent(z)), 3
    )
    once = dp_accounting.GaussianDpEvent(first)

    def epsilon(*events):
        accountant = pld.PLDAccountant(value_discretization_interval=FINE)
        for event in events:
            accountant.compose(event)
        return accountant.get_epsilon(DELTA)

    both = epsilon(rounds, once)
    assert 4.0 * 0.995 < both <= 4.0
    assert both > 1.02 * max(epsilon(rounds), epsilon(once))
    for audience in arm.plan.audiences:
        assert arm.plan.epsilon(audience) == pytest.approx(both, rel=1e-6)
        assert arm.plan.epsilon(audience, 0) == pytest.approx(epsilon(once), rel=1e-2)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_the_start_has_its_share_of_one_gaussian_release_of_the_whole_budget(share):
    arm = arm_of(method={"start_share": share}, privacy={"epsilon": 4.0})
    z = arm.start.plan.release_plan.noise_multipliers["global"] * math.sqrt(share)  # with all of the budget
    delta = norm.cdf(-4 * z + 1 / (2 * z)) - math.exp(4) * norm.cdf(-4 * z - 1 / (2 * z))  # Balle & Wang 2018
    assert DELTA * 0.999 < delta <= DELTA
    assert arm.start.plan.sampler.description == "every example, once, no sampling"


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
def test_beside_rounds_without_sampling_all_releases_are_one_gaussian(relation):
    sampling = {"sampling": {"name": "disjoint", "steps_per_round": 2}}
    half = {"method": {"start_share": 0.5}, "privacy": {"epsilon": 4.0, "neighboring_relation": relation}}
    values = {**values_of("promptfl", **half), **sampling}
    arm = plan_arms(configs.parse(values), SIZES)[-1]
    precision = [one.plan.release_plan.noise_multipliers["global"] ** -2 for one in arm.stages]
    mu = math.sqrt(precision[0] + 3 * precision[1]) * (1 if relation == "add_remove" else 2)
    delta = norm.cdf(-4 / mu + mu / 2) - math.exp(4) * norm.cdf(-4 / mu - mu / 2)
    assert DELTA * 0.999 < delta <= DELTA
    assert precision[0] == pytest.approx(3 * precision[1], rel=1e-4), "half of the budget each"


def test_without_a_start_nothing_is_beside_the_rounds():
    plain, started = arm_of(method={"start": "public"}), arm_of()
    assert plain.start is None
    assert plain.plan.beside == ()
    for channel, z in plain.plan.release_plan.noise_multipliers.items():
        assert z < started.plan.release_plan.noise_multipliers[channel]


def test_each_arm_has_a_start_of_its_own():
    config = configs.parse({**values_of(), "references": [{"epsilon": 2.0}, {"epsilon": 8.0}]})
    arms = plan_arms(config, SIZES, declared_classes(config, NAMES[:6]))
    assert [arm.start.label for arm in arms] == [
        "dp_fpl, epsilon 2, start", "dp_fpl, epsilon 8, start", "dp_fpl, epsilon 8 #2, start"
    ]  # fmt: skip
    first, second, third = (arm.start.plan.release_plan.noise_multipliers["global"] for arm in arms)
    assert first > second == third


def test_a_class_set_that_nobody_declared_is_not_used():
    for partition, declared in (("disjoint_classes", True), ("iid", False)):
        task = arm_of(partition={"name": partition}).start.method._of
        assert all((own is not None) == declared for own in task.client_classes)


REFUSED = {
    "start_share must lie in (0, 1), got 0": {"method": {"start_share": 0.0}},
    "start_share must lie in (0, 1), got 1": {"method": {"start_share": 1.0}},
    "leaves nothing of 8": {"method": {"start_share": 0.99999}},
    "here the noise itself is given": {
        "privacy": {"epsilon": "none", "noise_multiplier_local": 1.0, "noise_multiplier_global": 1.0}
    },
    "and there are none": {"training": {"num_rounds": 0}},
    "One release of class statistics has no local steps": {
        "training": {"local_steps": 2}, "privacy": {"noise_at": "client"}, "sampling": {"steps_per_round": 2}
    },
    'privacy.privacy_unit = "example"': {"privacy": {"privacy_unit": "client", "audience": "public"}},
    "leave privacy.adaptive_quantile out": {"privacy": {"adaptive_quantile": 0.5}},
    "Leave evaluation.base_classes out": {"evaluation": {"base_classes": 0.5}},
    "beside no other release": {"name": "dp_fpl_released", "privacy": {"noise_source": "seeded"}},
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_a_start_cannot_have_is_refused_in_a_sentence(sentence):
    with pytest.raises((ConfigError, PrivacyError)) as refusal:
        arm_of(**REFUSED[sentence])
    assert sentence in str(refusal.value)


def test_audits_and_federations_on_separate_machines_refuse_a_start(tmp_path):
    config = configs.parse(values_of())
    with pytest.raises(ConfigError, match="counts the release that it starts from"):
        audit(config, out=tmp_path)
    names = tuple("abcdef")
    with pytest.raises(ConfigError, match="is for simulations"):
        make_offer("trial", "0", config, names, "")
    offered = {"federation": "trial", "run": "0", "config": config.to_toml(), "class_names": names, "backbone": ""}
    agreement = Agreement(**offered, clients=("a", "b"), sizes=(24, 24))
    with pytest.raises(ConfigError, match="is for simulations"):
        _ = agreement.arm


# ------------------------------------------------------------------------------------------------------ whole runs


def hear(monkeypatch):
    """Return what a run releases of statistics, as (step, noise over clip norm), and the states that are fitted to."""
    heard, fitted, release, fit = [], [], ClassSumsMechanism.release, ClassStatistics.fitted

    def release_heard(self, channel, summed):
        released = release(self, channel, summed)
        heard.append((self.step, released.value.double() * self.expected_count - summed.value.double()))
        return released

    def fit_heard(self, model, shared, *given, **named):
        fitted.append((shared, fit(self, model, shared, *given, **named)))
        return fitted[-1][1]

    monkeypatch.setattr(ClassSumsMechanism, "release", release_heard)
    monkeypatch.setattr(ClassStatistics, "fitted", fit_heard)
    return heard, fitted


@pytest.mark.parametrize(
    ("name", "is_class_specific"),
    [("dp_fpl", False), ("dp_fpl", True), ("promptfl", True), ("fedpgp", True), ("promptfolio", False)],
)
def test_rounds_begin_at_the_context_that_noisy_statistics_give(tmp_path, monkeypatch, name, is_class_specific):
    heard, fitted = hear(monkeypatch)
    settings = {"is_class_specific": is_class_specific, **({"rank": 2} if name == "fedpgp" else {})}
    values = values_of(name, method=settings)
    begun, aggregate = [], Server.aggregate

    def look(self, arm, shared, norms, *given):
        begun.append(shared)
        return aggregate(self, arm, shared, norms, *given)

    monkeypatch.setattr(Server, "aggregate", look)
    folder, (arm,), _ = run_with(values, tmp_path)
    z = arm_of(name=name, method=settings).start.plan.release_plan.noise_multipliers["global"]
    assert [step for step, _ in heard] == [0, 1]
    noise = torch.cat([noise for _, noise in heard])
    assert 0.6 < float(noise.std()) / z < 1.4
    assert len(set(noise.flatten().tolist())) == noise.numel()
    ((released, context),) = fitted
    assert int(released.stage) == 2
    assert torch.equal(begun[2].context, context), "the first round's state, behind two messages of the start"
    assert context.ndim == 3 if is_class_specific else 2
    assert arm.num_rounds == 3
    assert not verified(values, folder).differences


def test_the_start_is_charged_before_it_is_made_and_all_say_so(tmp_path, monkeypatch):
    seen, aggregate, ledger = [], Server.aggregate, tmp_path / "run" / "ledger.jsonl"

    def look(self, *given):
        seen.append(len(ledger.read_text().splitlines()) if ledger.exists() else 0)
        return aggregate(self, *given)

    monkeypatch.setattr(Server, "aggregate", look)
    values = values_of()
    folder, _, rounds = run_with(values, tmp_path)
    assert seen == [1, 1, 2, 3, 4]
    first, *others = lines_of(folder)
    assert first["arm"] == "dp_fpl, epsilon 8, start"
    assert first["clients"] == ["client 0", "client 1", "client 2"]
    assert {line["arm"] for line in others} == {"dp_fpl, epsilon 8"}
    entry = json.loads((folder / "privacy.json").read_text())["arms"][-1]
    beside = "3 releases and 1 more of every example, without sampling, with noise multiplier"
    for who, held in entry["audiences"].items():
        assert beside in held["statement"]
        assert "Poisson sampling with probability 0.5" in held["statement"]
        assert entry["start"]["audiences"][who]["epsilon"] < rounds[0].epsilon[who] < held["epsilon"] <= 8.0
    assert entry["start"]["share"] == 0.8
    assert entry["start"]["clients"][0]["num_rounds"] == 1
    record, *_ = lines_of(folder, "records.jsonl")
    assert (record["arm"], record["local"]) == (first["arm"], None)
    assert record["bytes_up"] > 0
    shown = plan(values).statement()
    assert beside in shown
    assert "starts from one release of class statistics (every example, once, no sampling" in shown


def test_without_noise_it_says_so(tmp_path):
    values = values_of(privacy={"epsilon": math.inf})
    folder, (arm,), _ = run_with(values, tmp_path)
    assert arm.epsilon == math.inf
    assert not verified(values, folder).differences


TAMPERED = {
    "share": lambda entry: {**entry, "start": {**entry["start"], "share": 0.1}},
    "start": lambda entry: {key: value for key, value in entry.items() if key != "start"},
    "beside": lambda entry: {
        **entry, "audiences": {who: {**held, "beside": []} for who, held in entry["audiences"].items()}
    },
}  # fmt: skip


def test_verify_notices_a_start_that_was_not_charged_or_is_not_told(tmp_path):
    values = values_of()
    folder, _, _ = run_with(values, tmp_path)
    whole, charges = (folder / "privacy.json").read_text(), (folder / "ledger.jsonl").read_text()
    for name, change in TAMPERED.items():
        record = json.loads(whole)
        record["arms"] = [change(entry) for entry in record["arms"]]
        (folder / "privacy.json").write_text(json.dumps(record))
        assert any("privacy.json, dp_fpl" in text for text in verified(values, folder).differences), name
    (folder / "privacy.json").write_text(whole)
    (folder / "ledger.jsonl").write_text("".join(charges.splitlines(keepends=True)[1:]))
    assert any("epsilon" in text for text in verified(values, folder).differences)


TWO_ARMS = {**values_of(privacy={"noise_at": "client"}), "references": [{"epsilon": 4.0}]}
PLACES = [
    (Server, "aggregate", {0, 2, 4}),  # before a message of the start is used, then in the first round
    (ClassStatistics, "fitted", {0}),
    (checkpoint.Checkpoints, "save", {0}),
    (LedgerFile, "charge", {1}),
    (Trainer, "record", {1}),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two arms that start from statistics, which nobody stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts, "SHARED_STEPS", 3)
        return run_with(TWO_ARMS, tmp_path_factory.mktemp("whole"))[0]


@pytest.mark.parametrize(("owner", "name", "calls"), PLACES)
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, whole, owner, name, calls):
    stopped = killed_and_resumed(TWO_ARMS, tmp_path, monkeypatch, owner, name, calls)
    assert files(stopped) == files(whole)


def test_a_secret_start_is_kept_and_not_made_again(tmp_path, monkeypatch):
    heard, fitted = hear(monkeypatch)
    values = values_of(privacy={"noise_source": "secure"})
    with monkeypatch.context() as patch:
        kill_at(patch, LedgerFile, "charge", {1})
        with pytest.raises(KeyboardInterrupt):
            run_with(values, tmp_path)
    folder, (arm,), _ = run_with(values, tmp_path)
    assert (len(heard), len(fitted), arm.stopped) == (2, 1, None)
    assert [line["arm"] for line in lines_of(folder)].count("dp_fpl, epsilon 8, start") == 1
    assert not verified(values, folder).differences


def test_a_secret_start_that_was_lost_and_had_most_of_the_budget_ends_the_run(tmp_path, monkeypatch):
    values = values_of(privacy={"noise_source": "secure"})
    with monkeypatch.context() as patch:
        kill_at(patch, ClassStatistics, "fitted", {0})
        with pytest.raises(KeyboardInterrupt):
            run_with(values, tmp_path)
    with pytest.raises(ResumeError, match="Nothing of dp_fpl, epsilon 8, start was published"):
        run_with(values, tmp_path)


def test_a_secret_start_that_was_lost_is_made_again_charged_again_and_told(tmp_path, monkeypatch):
    values = values_of(privacy={"noise_source": "secure"}, method={"start_share": 0.4})
    with monkeypatch.context() as patch:
        kill_at(patch, ClassStatistics, "fitted", {0})
        with pytest.raises(KeyboardInterrupt):
            run_with(values, tmp_path)
    folder, (arm,), _ = run_with(values, tmp_path)
    assert arm.stopped is not None
    assert "privacy budget" in arm.stopped
    assert arm.num_rounds < 3
    held = json.loads((folder / "privacy.json").read_text())["arms"][-1]["audiences"]["personal"]
    assert "and 2 more of every example" in held["statement"]
    assert held["epsilon"] <= 8.0
    assert not verified(values, folder).differences


def test_a_checkpoint_that_knows_of_a_start_which_nobody_was_charged_for_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_with(values_of(), tmp_path, stop_after=1)
    path = tmp_path / "run" / "ledger.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ResumeError, match="lacks rounds that the checkpoint counts as done"):
        run_with(values_of(), tmp_path)


def test_what_an_old_checkpoint_says_is_read():
    old = checkpoint.Progress(
        config_identity="", arm_index=0, num_rounds_done=2, arm_seconds=0.0, records_size=0, finished_arms=[]
    )
    assert old.is_under_way
    assert not dataclasses.replace(old, num_rounds_done=0).is_under_way
