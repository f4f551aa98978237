"""Class statistics from end to end: what each message can say of an image, and what follows from both."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from helpers.runs import TOY, files, killed_and_resumed, run_with
from helpers.toy_metric import statistics_of, toy_metric
from hushprompt.audits.audit import audit
from hushprompt.audits.verify import verify
from hushprompt.config import parse as configs
from hushprompt.data.sets.toy import NAMES
from hushprompt.errors import ConfigError, PrivacyError, ResumeError
from hushprompt.features.cache import image_features
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.server import Server
from hushprompt.federation.setup import declared_classes
from hushprompt.federation.simulate import Trainer
from hushprompt.methods import class_statistics
from hushprompt.methods.base import Batch
from hushprompt.methods.linear_head import ReleasedSums
from hushprompt.privacy.accounting import calibrate
from hushprompt.privacy.clipping import clipped_class_sums
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.class_sums import ClassSumsMechanism
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.statistics.sums import mean_rows, residual_rows

NOISE = 2.0
HOW = {"mechanism": "class_sums", "parts": statistics_of().parts}


def values_of(**changes):
    privacy = {"epsilon": "none", "noise_multiplier_local": NOISE, "noise_multiplier_global": NOISE}
    values = {
        "seed": 3,
        "backbone": {"name": "toy"},
        "data": {"name": "toy"},
        "partition": {"name": "disjoint_classes", "num_clients": 3},
        "sampling": {"name": "poisson", "sampling_prob": 0.1},
        "privacy": {**privacy, "delta": 1e-3, "audience": "public"},
        "evaluation": {"split": "test"},
    }
    values = {key: {**part, **changes.pop(key, {})} if isinstance(part, dict) else part for key, part in values.items()}
    return {
        **values,
        "method": {"name": "class_statistics", "metric": toy_metric(), **changes.pop("method", {})},
        **changes,
    }


SHARED = {"partition": {"name": "iid", "num_clients": 3}}


def verified(values, folder):
    """What `verify` says of a run folder; the config is written by whoever starts a run."""
    (folder / "config.toml").write_text(configs.parse(values).to_toml())
    return verify(folder)


def after_both(method, model, batch, make_mechanism, noise=0.0, **given):
    """The shared state after all messages, and what was uploaded."""
    shared, personal = method.init(model, np.random.default_rng(0))
    uploads, how = [], {**HOW, "parts": method.parts}
    for step in range(len(method.parts)):
        tools = [make_mechanism(method.channels, who, noise=noise, step=step, **how, **given) for who in Channel]
        local, server = tools[list(Channel).index(Channel.LOCAL)], tools[list(Channel).index(Channel.GLOBAL)]
        upload, personal, _ = method.client_step(model, shared, personal, batch, local, np.random.default_rng(1))
        uploads.append(upload.shared_grad)
        shared = method.server_step(shared, server.release(Channel.GLOBAL, upload.shared_grad).value)
    return shared, personal, uploads


# --------------------------------------------------------------------------------------------------- one client


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("clip_norm", [0.02, 3.0])
def test_one_example_more_moves_each_message_by_at_most_its_part_and_no_other_class(
    model, batch, make_mechanism, stage, clip_norm
):
    method = statistics_of(clip_norm=clip_norm)
    shared, personal = method.init(model, np.random.default_rng(0))
    if stage:
        shared = ReleasedSums(
            torch.randn(shared.sums.shape, generator=torch.Generator().manual_seed(1)), torch.tensor(1)
        )
    tool = make_mechanism(method.channels, Channel.LOCAL, clip_norm=clip_norm, step=stage, **HOW)
    bound = clip_norm * method.parts[stage] ** 0.5

    def sums(keep):
        some = Batch(batch.image_features[keep], batch.labels[keep])
        return method.client_step(model, shared, personal, some, tool, np.random.default_rng(1))[0].shared_grad

    whole = sums(torch.arange(7))
    assert whole.sensitivity == bound
    for left_out in range(7):
        moved = (whole.value - sums(torch.arange(7) != left_out).value).norm(dim=1)
        row = int(batch.labels[left_out]) + 1 if stage else 0
        assert 0 < moved[row] <= bound * (1 + 1e-5)
        assert moved.sum() == moved[row]


def test_the_squares_of_both_messages_moves_add_up_to_one_release_and_an_exchange_moves_twice_as_far(
    model, batch, make_mechanism
):
    far = dataclasses.replace(batch, image_features=20 * batch.image_features)  # so that clipping binds
    method = statistics_of()
    _, _, whole = after_both(method, model, far, make_mechanism)
    for labels in (far.labels, torch.cat([torch.tensor([3]), far.labels[1:]])):
        features = torch.cat([-far.image_features[:1], far.image_features[1:]])
        shared, personal = method.init(model, np.random.default_rng(0))
        squares = 0.0
        for step, state in enumerate((shared, None)):
            tool = make_mechanism(method.channels, Channel.LOCAL, step=step, **HOW)
            if state is None:  # the first release as it was
                total = make_mechanism(method.channels, Channel.GLOBAL, noise=0.0, **HOW).release(
                    Channel.GLOBAL, whole[0]
                )
                state = method.server_step(shared, total.value)
            other = method.client_step(model, state, personal, Batch(features, labels), tool, np.random.default_rng(1))
            squares += float((other[0].shared_grad.value - whole[step].value).norm()) ** 2
        assert 1 < squares**0.5 <= 2 * (1 + 1e-5)


def test_each_image_enters_each_message_once(model, batch, make_mechanism):
    """Two sums by hand, an image at a time."""
    method = statistics_of(clip_norm=0.7)
    _, _, (first, second) = after_both(method, model, batch, make_mechanism, clip_norm=0.7)
    shared, _ = method.init(model, np.random.default_rng(0))
    ground = method._ground(model)
    shared = method.server_step(shared, first.value / 7)
    g = method._mean(ground, shared).value
    by_hand = torch.zeros(2, *first.value.shape, dtype=torch.float64)
    for x, label in zip(batch.image_features, batch.labels, strict=True):
        rows = (
            mean_rows(x[None], ground.metric)[0],
            residual_rows(x[None], label[None], ground.metric, g, ground.guess)[0],
        )
        for stage, (row, place) in enumerate(zip(rows, (0, int(label) + 1), strict=True)):
            norm = 0.7 * method.parts[stage] ** 0.5
            row = row / ground.radii[stage] * norm
            by_hand[stage, place] += row * min(1.0, norm / float(row.norm()))
    torch.testing.assert_close(first.value.double(), by_hand[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second.value.double(), by_hand[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_an_image_moves_no_message_through_the_mean_of_others(model, batch, make_mechanism, stage):
    """Residuals are taken from what was released: other data behind the same release change no residual."""
    method = statistics_of(covariance_share=0.1)
    shared, personal = method.init(model, np.random.default_rng(0))
    released = ReleasedSums(torch.ones_like(shared.sums), torch.tensor(stage))
    tool = make_mechanism(method.channels, Channel.LOCAL, step=stage, **{**HOW, "parts": method.parts})
    one = Batch(batch.image_features[:1], batch.labels[:1])
    alone = method.client_step(model, released, personal, one, tool, np.random.default_rng(1))[0].shared_grad.value
    among = method.client_step(model, released, personal, batch, tool, np.random.default_rng(1))[0].shared_grad.value
    rest = Batch(batch.image_features[1:], batch.labels[1:])
    others = method.client_step(model, released, personal, rest, tool, np.random.default_rng(1))[0].shared_grad.value
    torch.testing.assert_close(alone, among - others, rtol=0, atol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.02, 3.0])
def test_the_squares_are_of_what_released_class_means_leave_and_one_example_moves_them_by_its_part(
    model, batch, make_mechanism, clip_norm
):
    """An image at a time, from a state that says something of every class."""
    method = statistics_of(clip_norm=clip_norm, covariance_share=0.3)
    shared, personal = method.init(model, np.random.default_rng(0))
    normal = torch.randn(shared.sums.shape, generator=torch.Generator().manual_seed(1))
    shared, ground = ReleasedSums(normal, torch.tensor(2)), method._ground(model)
    how = {**HOW, "parts": method.parts, "clip_norm": clip_norm}
    tool = make_mechanism(method.channels, Channel.LOCAL, step=2, **how)

    def gram(keep):
        some = Batch(batch.image_features[keep], batch.labels[keep])
        return method.client_step(model, shared, personal, some, tool, np.random.default_rng(1))[0].shared_grad

    whole, rank = gram(torch.arange(7)), ground.metric.rank
    assert whole.sensitivity == pytest.approx(clip_norm * 0.3**0.5)
    assert whole.rows_released.tolist() == [False] * 6 + [True] * rank
    means = ground.guess + method._found(model, shared).posterior.estimate + method._mean(ground, shared).value
    by_hand = torch.zeros(rank, rank, dtype=torch.float64)
    for place, (x, label) in enumerate(zip(batch.image_features, batch.labels, strict=True)):
        row = (mean_rows(x[None], ground.metric)[0] - means[label]) / ground.radii[2]
        row = row * min(1.0, 1 / float(row.norm()))
        by_hand += whole.sensitivity * torch.outer(row, row)
        moved = whole.value - gram(torch.arange(7) != place).value
        assert 0 < moved.norm() <= whole.sensitivity * (1 + 1e-9)
    torch.testing.assert_close(whole.value[6:].double(), by_hand, rtol=1e-4, atol=1e-6)
    assert not whole.value[:6].any()


@pytest.mark.parametrize("noise_at", ["server", "client"])
def test_three_messages_are_one_release_with_noise_in_every_part(tmp_path, monkeypatch, noise_at):
    releases = hear_releases(monkeypatch)
    values = values_of(privacy={"noise_at": noise_at}, method={"covariance_share": 0.1})
    folder = run_with(values, tmp_path)[0]
    assert {step for step, _ in releases} == {0, 1, 2}
    rank = releases[0][1].shape[1]
    assert all(bool((noise[-rank:] != 0).all()) == (step == 2) or noise_at == "server" for step, noise in releases)
    config = configs.parse(values)
    arm = plan_arms(config, [24, 24, 24], declared_classes(config, NAMES[:6]))[-1]
    plan = arm.plan
    assert not arm.method.takes_late, "what a late client sends last would be no sum of its classes"
    (part,) = plan.composed(config.privacy.audience)
    assert (part.num_steps, part.noise_multiplier, part.sampling_prob) == (1, NOISE, 1.0)
    statement = json.loads((folder / "privacy.json").read_text())["arms"][0]["audiences"]["public"]["statement"]
    assert "every example, once, no sampling, in 3 messages, 1 release" in statement
    steps = [plan.release_plan.exact_sensitivity(Channel.GLOBAL, step=step) for step in range(3)]
    assert sum(one**2 for one in steps) == pytest.approx(1.0)
    assert not verified(values, folder).differences


@pytest.mark.parametrize("covariance_share", [0.0, 0.1])
@pytest.mark.parametrize("form", ["head", "embeddings"])
@pytest.mark.parametrize("noise", [None, 1e7])
def test_without_information_it_is_zero_shot(model, batch, make_mechanism, form, noise, covariance_share):
    method = statistics_of(noise=noise or 1.0, form=form, covariance_share=covariance_share)
    shared, personal = method.init(model, np.random.default_rng(0))
    if noise is not None:
        shared, personal, _ = after_both(method, model, batch, make_mechanism, noise)
    found = method.logits(model, shared, personal, batch.image_features).double()
    expected = model.logits(batch.image_features, model.template_features).double()
    if form == "head":  # a shift of all classes alike means nothing
        torch.testing.assert_close(found.log_softmax(1), expected.log_softmax(1), rtol=1e-3, atol=2e-3)
    else:
        assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("form", ["head", "embeddings", "contexts", "shared_context"])
def test_a_prompt_file_scores_as_its_sentence_says(model, batch, make_mechanism, form):
    method = statistics_of(classes=[(0, 3)], form=form, class_prior=4.0)
    own = dataclasses.replace(batch, labels=torch.tensor([0, 3, 0, 3, 0, 3, 0]), classes=(0, 3))
    shared, personal, _ = after_both(method, model, own, make_mechanism)
    file = method.personal_file(model, shared, personal).tensors
    scores = file["logit_scale"] * batch.image_features @ file["text_features"].T
    scores = scores + file.get("bias", 0.0) + file["log_prior"]
    expected = method.logits(model, shared, personal, batch.image_features)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-3)
    assert file["log_prior"].tolist() == pytest.approx([np.log(4), 0, 0, np.log(4), 0])
    assert "log_prior" not in method.public_file(model, shared).tensors
    assert (
        file["context"].ndim == {"contexts": 3, "shared_context": 2}[form]
        if "context" in form
        else "context" not in file
    )
    if form != "head":
        torch.testing.assert_close(file["text_features"].norm(dim=1), torch.ones(5), rtol=1e-4, atol=1e-4)


def test_an_image_of_a_class_that_was_declared_absent_enters_the_mean_alone(model, batch, make_mechanism):
    method, declared = statistics_of(classes=[(0, 1, 2, 3)]), dataclasses.replace(batch, classes=(0, 1, 2, 3))
    assert 4 in batch.labels
    mean, classes = after_both(method, model, declared, make_mechanism)[2]
    assert classes.value[1:5].any()
    assert not classes.value[5].any()
    assert torch.equal(mean.value, after_both(statistics_of(), model, batch, make_mechanism)[2][0].value)
    kept = batch.labels != 4
    fewer = dataclasses.replace(declared, image_features=batch.image_features[kept], labels=batch.labels[kept])
    method = statistics_of(classes=[(0, 1, 2, 3)], covariance_share=0.1)
    known, personal, _ = after_both(method, model, declared, make_mechanism)
    known = dataclasses.replace(known, stage=torch.tensor(2))
    how = {**HOW, "parts": method.parts}
    mechanism = make_mechanism(method.channels, Channel.LOCAL, step=2, **how)
    squares = [
        method.client_step(model, known, personal, some, mechanism, np.random.default_rng(1))[0].shared_grad.value
        for some in (declared, fewer)
    ]
    assert torch.equal(*squares)
    assert squares[0].any()


@pytest.mark.parametrize("noise_at", ["client", "server"])
def test_what_the_release_fixed_stays_when_a_client_joins_late(model, noise_at):
    """Mean, rank and noise of the first message; of a class the late client adds images, and one draw of noise."""
    sizes, sets = (7, 9), [(0, 1), (1, 2)]
    before = statistics_of(sizes, sets, noise_at=noise_at)
    after = statistics_of((*sizes, 5000), [*sets, (2, 3)], noise_at=noise_at, num_late=1)
    state = ReleasedSums(torch.arange(18.0).reshape(6, 3) / 9, torch.tensor(2))
    grounds = [method._ground(model) for method in (before, after)]
    assert grounds[0].metric.rank == grounds[1].metric.rank
    means = [method._mean(ground, state) for method, ground in zip((before, after), grounds, strict=True)]
    assert torch.equal(means[0].value, means[1].value)
    assert means[0].variance == means[1].variance
    assert (grounds[1].expected.counts - grounds[0].expected.counts).tolist() == [0, 0, 2500, 2500, 0]
    released = torch.ones(6, 3)
    joined = after.with_late(state, released, 5000, (2, 3))
    moved = (joined.sums - state.sums)[:, 0] * 0.95**0.5
    assert moved.tolist() == pytest.approx([0, 0, 0, 5000, 5000, 0], rel=1e-4)
    assert int(joined.stage) == 2
    asked = after.before_last(state)
    assert torch.equal(asked.sums, after.before_last(joined).sums), "asked again, it is asked the same"
    assert (torch.equal(asked.sums[0], state.sums[0]), asked.sums[1:].any(), int(asked.stage)) == (True, False, 1)
    seen, true = [], class_statistics.class_posterior

    def posterior(sums, std, *more):
        seen.append(std)
        return true(sums, std, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_statistics, "class_posterior", posterior)
        after.head(model, joined)
    draws = (seen[0] / after._noise_std(grounds[1], 1)) ** 2
    held = [1, 2, 2, 1, 0] if noise_at == "client" else [1, 1, 2, 2, 1]
    assert draws.tolist() == pytest.approx(held)


def test_an_empty_client_sends_what_any_other_does(model, batch, make_mechanism):
    method = statistics_of()
    empty = Batch(batch.image_features[:0], batch.labels[:0])
    for one, other in zip(*(after_both(method, model, b, make_mechanism)[2] for b in (empty, batch)), strict=True):
        assert (one.value.shape, one.value.dtype, one.sensitivity) == (
            other.value.shape,
            other.value.dtype,
            other.sensitivity,
        )
        assert not one.value.any()


# ----------------------------------------------------------------------------------------------------- whole runs


def hear_releases(monkeypatch):
    """Return a list that takes every release of a run: the step, and its noise in units of the clip norm."""
    heard, release = [], ClassSumsMechanism.release

    def spy(self, channel, summed):
        released = release(self, channel, summed)
        heard.append((self.step, released.value.double() * self.expected_count - summed.value.double()))
        return released

    monkeypatch.setattr(ClassSumsMechanism, "release", spy)
    return heard


DECLARED = {"client_classes": [["ant", "bee", "cat", 3], [4, 5, 3], []]}


@pytest.mark.parametrize("partition", ["disjoint_classes", "iid", "overlapping_classes", "dirichlet", "declared"])
def test_every_row_that_is_not_publicly_empty_gets_its_noise_at_every_client(tmp_path, monkeypatch, partition):
    releases = hear_releases(monkeypatch)
    values = values_of(
        partition={"name": "dirichlet" if partition == "declared" else partition},
        data=DECLARED if partition == "declared" else {},
        privacy={"noise_at": "client", "clip_norm_global": 0.3},
        runtime={"num_threads": 1},
    )
    run_with(values, tmp_path)
    declared = declared_classes(configs.parse(values), NAMES[:6])
    assert (declared is None) == (partition in ("iid", "dirichlet"))
    expected = sorted(sorted(own or range(6)) for own in declared or [range(6)] * 3)
    means, classes = ([noise for step, noise in releases if step == wanted] for wanted in (0, 1))
    assert [noise.abs().sum(1).nonzero().flatten().tolist() for noise in means] == [[0]] * 3
    assert sorted((noise.abs().sum(1).nonzero().flatten() - 1).tolist() for noise in classes) == expected
    drawn = torch.cat([noise[noise != 0] for noise in means + classes]) / (0.3 * NOISE)
    assert 0.6 < float(drawn.std()) < 1.4
    assert len(set(drawn.tolist())) == len(drawn)


def test_what_is_declared_must_be_of_these_classes_and_clients_and_is_said_once():
    def sets(classes, partition="iid"):
        values = values_of(data={"client_classes": classes}, partition={"name": partition})
        config = configs.parse(values)
        return plan_arms(config, [9, 9, 9], declared_classes(config, NAMES[:6]))[-1].method._of.client_classes

    assert sets([["bee", 0, "ant"], [5], []]) == ((0, 1), (5,), None)
    for classes, message in (
        ([["auk"], [], []], "must name classes of the data, or their labels from 0 to 5, got 'auk'"),
        ([[6], [], []], "got 6"),
        ([[True], [], []], "got True"),
        ([[0], [1]], "data.client_classes has 2 lists for 3 clients"),
    ):
        with pytest.raises(ConfigError, match=message):
            sets(classes)
    with pytest.raises(ConfigError, match="declares each client's classes already"):
        sets([[0], [], []], "overlapping_classes")


def test_whoever_runs_it_is_told_of_images_that_no_class_sum_takes(tmp_path, caplog):
    values = values_of(data={"client_classes": [["ant"], [], []]}, partition={"name": "iid"})
    run_with(values, tmp_path)
    (line,) = [record.getMessage() for record in caplog.records if "Data set" in record.getMessage()]
    assert "declared not to have, and no class sum takes them (5: bee at client 0" in line


def test_noise_once_on_the_sum_is_drawn_by_the_server_for_all_rows(tmp_path, monkeypatch):
    releases = hear_releases(monkeypatch)
    for partition in ("disjoint_classes", "iid"):
        releases.clear()
        run_with(values_of(partition={"name": partition}), tmp_path, partition)
        assert [step for step, _ in releases] == [0, 1]
        assert all(bool((noise != 0).all()) for _, noise in releases)
        assert 0.6 < float(torch.cat([noise for _, noise in releases]).std()) / NOISE < 1.4


def test_with_secure_noise_it_runs_and_draws_anew(tmp_path):
    values = values_of(privacy={"noise_source": "secure"})
    public = [run_with(values, tmp_path, name)[0] / "prompts" / "global.safetensors" for name in ("one", "two")]
    one, two = map(load_file, public)
    assert one.keys() == two.keys()
    assert not torch.equal(one["text_features"], two["text_features"])


@pytest.mark.parametrize("method", [{"name": "promptfl", "num_ctx": 4}, values_of()["method"]])
def test_a_release_that_was_charged_and_lost_is_not_made_again(tmp_path, monkeypatch, method):
    """Secure noise cannot be drawn again, so a run that was killed in its only round says that its budget is spent."""
    privacy = {"epsilon": 8.0, "delta": 1e-3, "noise_source": "secure"}
    values = {**TOY, "method": method, "privacy": privacy, "training": {"num_rounds": 1}}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "score", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_with(values, tmp_path)
    charged = (tmp_path / "run" / "ledger.jsonl").read_text()
    for _ in range(2):
        with pytest.raises(ResumeError, match=r"charged before, but what it released was lost.*budget is spent. A new"):
            run_with(values, tmp_path)
    assert (tmp_path / "run" / "ledger.jsonl").read_text() == charged
    assert not (tmp_path / "run" / "prompts").exists()


def test_the_ledger_charges_one_release_before_the_first_message_and_the_statement_says_what_it_is(
    tmp_path, monkeypatch
):
    releases = hear_releases(monkeypatch)
    ledger, seen = tmp_path / "run" / "ledger.jsonl", []
    aggregate = Server.aggregate

    def look(self, *given):
        seen.append(ledger.read_text())
        return aggregate(self, *given)

    monkeypatch.setattr(Server, "aggregate", look)
    folder, (arm,), rounds = run_with(values_of(), tmp_path)
    assert (len(rounds), arm.num_rounds, len(releases)) == (1, 1, 2)
    assert seen == [ledger.read_text()] * 2
    (line,) = map(json.loads, ledger.read_text().splitlines())
    assert line["clients"] == ["client 0", "client 1", "client 2"]
    record = json.loads((folder / "privacy.json").read_text())["arms"][0]
    public = record["audiences"]["public"]
    assert "every example, once, no sampling, 1 release" in public["statement"]
    assert public["epsilon"] == pytest.approx(rounds[0].epsilon["public"])
    assert not verified(values_of(), folder).differences


def test_what_is_claimed_is_one_gaussian_of_the_planned_noise():
    for noise_at in ("server", "client"):
        config = configs.parse(values_of(privacy={"noise_at": noise_at}))
        plan = plan_arms(config, [24, 24, 24], declared_classes(config, NAMES[:6]))[-1].plan
        (part,) = plan.composed(config.privacy.audience)
        assert (part.num_steps, part.noise_multiplier, part.sampling_prob) == (1, NOISE, 1.0)
        steps = [plan.release_plan.exact_sensitivity(Channel.GLOBAL, step=step) for step in range(2)]
        assert sum(one**2 for one in steps) == pytest.approx(1.0)


@pytest.mark.parametrize("noise_at", ["server", "client", "shares"])
def test_the_audit_command_measures_the_release_and_attacks_what_is_published(tmp_path, noise_at):
    config = configs.parse(values_of(privacy={"noise_at": noise_at}, method={"class_prior": 4.0}))
    attacks = {"attacks": ("lira", "likelihood"), "num_shadows": 4, "num_canaries": 10, "num_gradient_canaries": 2000}
    record = audit(config, out=tmp_path, workers=1, **attacks)
    (budget,) = record.budgets
    assert [one.audience for one in budget.audiences] == ["public", "server"][: 1 + (noise_at != "server")]
    for one in budget.audiences:
        found = [result.epsilon_lower_bound for result in one.mechanism]
        assert 0 < max(found) <= one.claimed["epsilon"]
        assert one.attacks[-1].attack == "likelihood"
        assert one.canaries
        assert not one.is_contradicted
        assert "every example, once, no sampling" in one.claimed["statement"]


@pytest.mark.parametrize("form", ["head", "embeddings", "contexts"])
def test_a_run_gains_on_zero_shot_where_noise_is_small_and_its_files_score_alike(tmp_path, form):
    quiet = {"noise_multiplier_global": 0.05, "noise_at": "client"}
    references = [{"method": {"name": "zero_shot"}}]
    values = values_of(privacy=quiet, method={"form": form, "class_prior": 4.0}, references=references)
    folder, (zero_shot, arm), _ = run_with(values, tmp_path)
    assert form != "head" or arm.local > zero_shot.local
    files_of = {path.name: load_file(path) for path in (folder / "prompts").glob("*.safetensors")}
    assert len(files_of) == 4
    assert not verified(values, folder).differences


@pytest.mark.parametrize("form", ["head", "embeddings"])
def test_without_a_text_prior_a_metric_made_without_texts_serves_a_backbone_with_text(tmp_path, form):
    method = {"form": form, "text_prior": False, "metric": toy_metric(has_texts=False)}
    values = values_of(privacy={"noise_multiplier_global": 0.05}, method=method)
    _, (arm,), _ = run_with(values, tmp_path)
    assert arm.local > 1 / 6
    ground = statistics_of(**method)._ground(PromptModel(configs.parse(values).backbone.load(), ("ant", "bee")))
    assert (ground.texts, ground.guess) == (None, None)


def test_of_several_views_of_an_image_one_enters(tmp_path, monkeypatch):
    entered, clip = [], ClassSumsMechanism.clip_in_classes

    def spy(self, channel, rows):
        entered.append(len(rows.values))
        return clip(self, channel, rows)

    monkeypatch.setattr(ClassSumsMechanism, "clip_in_classes", spy)
    run_with(values_of(features={"num_views": 3}), tmp_path)
    assert entered == [24] * 6


@pytest.mark.parametrize("noise_at", ["server", "client"])
@pytest.mark.parametrize(
    ("owner", "name", "calls"), [(Server, "aggregate", {0, 2}), (Trainer, "score", {0}), (Trainer, "record", {0})]
)
def test_a_killed_run_goes_on_to_the_same_bytes_and_is_charged_once(
    tmp_path, monkeypatch, noise_at, owner, name, calls
):
    values = values_of(privacy={"noise_at": noise_at})
    whole = run_with(values, tmp_path, "whole")[0]
    stopped = killed_and_resumed(values, tmp_path, monkeypatch, owner, name, calls)
    assert files(stopped) == files(whole)


REFUSED = {
    "class_prior = 4 shows which classes a client has": {**SHARED, "method": {"class_prior": 4.0}},
    "Set training.local_steps = 1": {
        "training": {"local_steps": 2},
        "privacy": {"noise_at": "client"},
        "sampling": {"steps_per_round": 2},
    },
    'training.weighting = "size"': {"training": {"weighting": "equal"}},
    'privacy.privacy_unit = "example"': {"privacy": {"privacy_unit": "client"}},
    "leave privacy.adaptive_quantile out": {"privacy": {"adaptive_quantile": 0.5}},
    "Leave evaluation.base_classes out": {"evaluation": {"base_classes": 0.5}},
    'Without a text prior use method.form = "head"': {"method": {"form": "contexts", "text_prior": False}},
    "or run without a text prior: method.text_prior = false": {"method": {"metric": toy_metric(has_texts=False)}},
    "class_prior must be > 0": {"method": {"class_prior": 0.0}},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_one_release_cannot_have_is_refused_in_a_sentence(tmp_path, sentence):
    with pytest.raises((ConfigError, PrivacyError), match=sentence.replace(".", r"\.")):
        run_with(values_of(**REFUSED[sentence]), tmp_path)
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


@pytest.mark.parametrize("parts", [(0.6, 0.6), (0.0, 1.0), (1.5,)])
def test_parts_that_are_more_than_one_release_are_refused(make_mechanism, parts):
    with pytest.raises(PrivacyError, match="must be above 0 and sum to at most 1"):
        make_mechanism({Channel.GLOBAL}, Channel.GLOBAL, mechanism="class_sums", parts=parts)


def test_declared_classes_are_asked_of_the_rule_and_not_of_the_images():
    """A class of which a client lost its last image stays declared, so that one image decides about no row."""
    config = configs.parse(values_of())
    sets = declared_classes(config, NAMES[:6])
    assert sorted(label for own in sets for label in own) == list(range(6))
    partition = config.partition.partition(config.data.load(), np.random.default_rng(0))
    assert partition.clients[0].classes == config.partition.class_sets(6, np.random.default_rng(0))[0]
    dataset = config.data.load()
    train = dataset.splits["train"]
    few = dataclasses.replace(train, labels=np.where(train.labels == sets[0][0], sets[0][1], train.labels))
    fewer = dataclasses.replace(dataset, splits={**dataset.splits, "train": few})
    assert sets[0][0] not in config.partition.partition(fewer, np.random.default_rng(0)).clients[0].classes
    assert declared_classes(config, NAMES[:6]) == sets


# -------------------------------------------------------------------------------------------- the embedded model


def test_it_lies_on_average_not_below_zero_shot_at_any_epsilon(tmp_path):
    """Ten clients that add the noise, ten classes each; 15 draws of the noise."""
    config = configs.load(configs.locate(None))
    dataset, backbone = config.data.load(), config.backbone.load()
    model = PromptModel(backbone, dataset.class_names)
    sets = {
        split: image_features(backbone, dataset, split, tmp_path, config.features).tensor()
        for split in ("train", "test")
    }
    labels = {split: torch.from_numpy(dataset.splits[split].labels) for split in sets}
    classes = [tuple(range(start, start + 10)) for start in range(0, 100, 10)]
    sizes = [int(np.isin(labels["train"], own).sum()) for own in classes]

    def accuracy(logits):
        return 100 * float((logits.argmax(1) == labels["test"]).double().mean())

    zero_shot = accuracy(model.logits(sets["test"], model.template_features))
    for epsilon in (0.01, 0.1, 0.4):
        noise = calibrate(target_epsilon=epsilon, delta=1e-5, num_steps=1, sampling_prob=1.0, relation="add_remove")
        method = statistics_of(sizes, classes, noise=noise, noise_at="client", metric="auto")
        ground = method._ground(model)
        n, first, found = len(labels["train"]), torch.zeros(len(labels["train"]), dtype=torch.int64), []
        total = clipped_class_sums(mean_rows(sets["train"], ground.metric) / ground.radii[0], first, 1, 1.0).value
        for draw in range(15):
            rng = torch.Generator().manual_seed(draw)
            drawn = torch.randn(101, ground.metric.rank, generator=rng, dtype=torch.float64) * noise
            sums = torch.cat([total + drawn[:1] * (10 / method.parts[0]) ** 0.5, torch.zeros_like(drawn[1:])])
            mean = method._mean(ground, ReleasedSums(sums, torch.tensor(1))).value
            rows = residual_rows(sets["train"], labels["train"], ground.metric, mean, ground.guess) / ground.radii[1]
            sums[1:] = clipped_class_sums(rows, labels["train"], 100, 1.0).value + drawn[1:] / method.parts[1] ** 0.5
            state = ReleasedSums(sums, torch.tensor(2))
            found.append(accuracy(method.head(model, state).logits(F.normalize(sets["test"], dim=1))))
        assert n == 4000
        assert np.mean(found) >= zero_shot - 0.1, (epsilon, np.mean(found), zero_shot)
