"""Audits of questions and answers: membership, made-up answers as canaries, and secrets that a prompt tells."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import hushprompt as hp
from helpers import made_runs, tiny_generative
from helpers.runs import TOY
from hushprompt.audits import crafted_prompts
from hushprompt.audits.audit import AuditSettings, budget_arms, measure
from hushprompt.audits.canaries import with_canaries
from hushprompt.audits.client_canaries import ClientWatch
from hushprompt.audits.crafted_prompts import craft
from hushprompt.audits.exposure import exposure, p_value
from hushprompt.audits.scores import answer_log_probs
from hushprompt.audits.shadows import ShadowTrainer
from hushprompt.audits.world import start, train_watched
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError
from hushprompt.federation.setup import client_sizes, make_partition
from hushprompt.privacy.config import Audience
from hushprompt.privacy.mechanisms import gaussian as mechanisms
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.registry import BACKBONES
from hushprompt.reporting.audits import audit_blocks
from hushprompt.reporting.blocks import Words

SGD = {"name": "sgd", "learning_rate": 1.0}
PROMPTFL = {"name": "promptfl", "num_ctx": 8, "optimizer": SGD}
DP_FPL = {"name": "dp_fpl", "num_ctx": 8, "rank": 4, "global_optimizer": SGD, "local_optimizer": SGD}
QUICK = {"attacks": (), "num_canaries": 0, "num_gradient_canaries": 0, "num_secrets": 0}


def values_in(folder):
    """A client of 24 pictures with a question and an answer of its own each, and one of 6; shorter lists of 6 each."""
    rng = np.random.default_rng(0)
    repository = tiny_generative.write("smolvlm", folder / "smolvlm")
    lines = []
    for at in range(34):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{at}.png")
        client, split = (int(at >= 24), "train") if at < 30 else (at % 2, "test")
        answer = " ".join(map(str, rng.integers(10, size=3)))
        lines.append({
            "image": f"{at}.png", "question": ["what is it", "is it the ox"][at % 2], "answers": [answer],
            "client": f"c{client}", "group": f"g{at // 2}", "split": split,
        })  # fmt: skip
    oxen = [{**line, "question": "what is it", "answers": ["ox"]} for line in lines[18:]]
    for name, chosen in (("list", lines), ("few", lines[18:]), ("oxen", oxen)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in chosen))
    return {
        "seed": 3,
        "backbone": {"name": "smolvlm", "model": str(repository)},
        "data": {"name": "questions", "file": str(folder / "list.jsonl")},
        "partition": {"name": "by_client"},
        "sampling": {"name": "poisson", "sampling_prob": 1.0},
        "method": DP_FPL,
        "privacy": {"epsilon": 8.0, "delta": 1e-5, "noise_source": "seeded"},
        "training": {"num_rounds": 4},
        "references": [],
        "runtime": {"cache_dir": str(folder / "cache")},
    }


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return values_in(tmp_path_factory.mktemp("list"))


def few(values, num_rounds, name="few", **more):
    """Six examples a client."""
    data = {**values["data"], "file": values["data"]["file"].replace("list.jsonl", f"{name}.jsonl")}
    return {**values, "data": data, "training": {"num_rounds": num_rounds}, **more}


def config_of(values, **privacy):
    return configs.parse({**values, "privacy": {**values["privacy"], **privacy}})


def audited(config, folder, **settings):
    """Audit a config's own budget, and give what the record says of each audience."""
    record = measure(config, AuditSettings(**{**QUICK, **settings}), folder, lambda done, total: None, 1)
    return record, {one.audience: one for one in record.budgets[0].audiences}


def world_of(config):
    arms = budget_arms(config, (), client_sizes(make_partition(config, config.data.load())))
    return ShadowTrainer(config, arms, 0, 0).world, arms[0]


@pytest.mark.parametrize("unit", ["example", "group"])
def test_made_up_answers_are_found_without_noise_and_with_it_no_more_than_is_claimed(tmp_path, unit):
    values = values_in(tmp_path)
    count, least = {"example": (24, 1.0), "group": (12, 0.4)}[unit]
    record, found = audited(
        config_of(values, epsilon=math.inf, privacy_unit=unit), tmp_path / "clear", num_canaries=count
    )
    assert (record.num_candidates, record.has_questions) == (count, True)
    assert found["personal"].canaries[0].sees == "all releases"
    assert found["personal"].lower_bound > least
    assert record.power["personal"].has_power["end_to_end"]
    _, found = audited(config_of(values, epsilon=0.5, privacy_unit=unit), tmp_path / "noisy", num_canaries=count)
    assert found["personal"].claimed["epsilon"] == pytest.approx(0.5, rel=1e-2)
    assert not any(one.is_contradicted for one in found.values())


def test_whole_clients_are_canaries_and_noise_that_is_left_out_is_caught(values, tmp_path, monkeypatch):
    unit = {"privacy_unit": "client", "audience": "public", "epsilon": 0.5}
    config = config_of(few(values, 1, method=PROMPTFL), **unit)
    _, found = audited(config, tmp_path / "noisy", num_canaries=24)
    assert not found["public"].is_contradicted
    monkeypatch.setattr(mechanisms, "add_gaussian", lambda value, std, rng: value)
    _, found = audited(config, tmp_path / "clear", num_canaries=24)
    assert found["public"].is_contradicted


def test_members_are_told_by_the_loss_of_their_answers(values, tmp_path):
    attacks = ("lira", "rmia", "loss")
    alone = few(values, 6, method={"name": "local_only", "num_ctx": 8, "optimizer": SGD})
    _, found = audited(config_of(alone, epsilon=math.inf), tmp_path, num_shadows=6, attacks=attacks)
    aucs = {attack.attack: attack.auc for attack in found["personal"].attacks}
    assert aucs.keys() == {"LiRA online", "LiRA offline", "RMIA offline", "loss"}
    assert aucs["LiRA offline"].low > 0.5


def test_an_answer_is_scored_as_one_of_two_classes():
    log_probs = answer_log_probs(torch.tensor([0.0, 0.5, 40.0]))
    torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert log_probs.isfinite().all()
    assert log_probs[1, 0] == -0.5


def test_what_is_said_of_an_example_is_its_own_loss_by_what_the_audience_holds(values):
    world, arm = world_of(config_of(values))
    state, _ = world.train(arm, np.ones(24, dtype=bool), 5)
    model, method, examples = world.federation.model, arm.method, world.examples
    held = {Audience.PUBLIC: state.shared.context, Audience.PERSONAL: method.context(state.shared, state.personal[0])}
    for audience, context in held.items():
        found = world.log_probs(arm, state, audience, examples)[:, 0]
        each = [examples.of(torch.tensor([row])) for row in range(24)]
        losses = torch.cat([model.losses(context[None], one.image_features, one.labels, one.texts) for one in each])
        torch.testing.assert_close(found.float(), -losses, rtol=1e-4, atol=1e-5)
    unseen = world.population
    assert len(unseen.labels) == len(unseen.texts.answers) == 2


def test_an_example_that_is_out_leaves_no_trace(values):
    world, arm = world_of(config_of(values))
    is_in = np.arange(24) % 2 == 0
    others = world.with_answers(np.arange(24), ["ox ox ox ox"] * 24).candidates.texts
    changed = world.candidates.texts.put(torch.arange(1, 24, 2), others.of(torch.arange(1, 24, 2)))
    again = dataclasses.replace(world, candidates=dataclasses.replace(world.candidates, texts=changed))
    states = [one.train(arm, who, 5)[0] for one, who in ((world, is_in), (again, is_in), (again, is_in | True))]
    contexts = [arm.method.context(state.shared, state.personal[0]) for state in states]
    torch.testing.assert_close(contexts[0], contexts[1], rtol=1e-5, atol=1e-6)  # longer answers are wider padding
    assert not torch.allclose(contexts[1], contexts[2], rtol=1e-3)


def test_a_group_has_one_made_up_answer_and_questions_stay(values):
    world, _ = world_of(config_of(values, privacy_unit="group"))
    found, own = with_canaries(world, 10).candidates, world.candidates
    assert np.bincount(found.groups).tolist() == [2] * 10
    answers = [tuple(row) for row in found.texts.answers.tolist()]
    assert [answers[0::2], len(set(answers))] == [answers[1::2], 10]
    rows = [own.indices.tolist().index(index) for index in found.indices.tolist()]
    assert torch.equal(found.texts.questions, own.texts.questions[rows])
    assert found.texts.answers.shape[1] > own.texts.answers.shape[1]  # six digits instead of three


def test_what_whole_clients_are_said_to_add_is_what_is_released(values):
    unit = {"privacy_unit": "client", "audience": "public", "epsilon": math.inf}
    config = config_of(few(values, 2, method=PROMPTFL), **unit)
    world, arm = world_of(config)
    state = start(config, world.federation, arm)
    watch = ClientWatch(world.federation, arm, state.personal, np.random.default_rng(0))
    train_watched(config, world.federation, arm, state, watch)
    for total, added in zip(watch.sums, watch.added, strict=True):
        torch.testing.assert_close(added.sum(dim=0), total, rtol=1e-4, atol=1e-5)


def test_a_crafted_prompt_is_sought_by_the_slope_of_all_losses(values, monkeypatch):
    world, arm = world_of(config_of({**values, "method": PROMPTFL}, epsilon=math.inf))
    known = crafted_prompts._known(world, arm)
    context = known.state.shared.context
    moved = context.clone().requires_grad_()
    losses = world.federation.model.losses(
        moved.expand(24, -1, -1), known.batch.image_features, known.batch.labels, known.batch.texts
    )
    (expected,) = torch.autograd.grad(losses[1:].mean() - 0.2 * losses[0] * (losses[0] < 2), moved)
    torch.testing.assert_close(known.slope(context, 0), expected, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(crafted_prompts, "NUM_STEPS", crafted_prompts.EVERY // 20)
    assert craft(world, arm, 0).test.distance(1.0) > 0


# ------------------------------------------------------------------------------------------ secrets


def test_exposure_is_the_rank_in_bits():
    likelihoods = torch.tensor([-3.0, -1.0, -2.0, -4.0])
    assert [exposure(likelihoods, secret) for secret in range(4)] == pytest.approx([2 - math.log2(3), 2.0, 1.0, 0.0])
    assert exposure(torch.zeros(8), 3) == 0  # a model for which all are alike tells nothing


def test_several_secrets_are_one_p_value():
    ranks = np.random.default_rng(0).integers(1, 101, size=(2000, 3))
    found = np.array([p_value(bits) for bits in np.log2(100 / ranks).tolist()])
    assert np.mean(found <= 0.1) == pytest.approx(0.1, abs=0.025)
    assert p_value([math.log2(100)] * 3) < 1e-3


def test_noise_hides_the_secret_that_a_prompt_without_it_tells(values):
    config = few(values, 15, "oxen", method=PROMPTFL)
    told, hidden = hp.secret_exposures(config, num_secrets=1, num_repeats=5, num_digits=2, epsilons=(math.inf, 8.0))
    assert told.audience == hidden.audience == "public"
    assert told.before == hidden.before
    assert told.most == pytest.approx(math.log2(100))
    assert told.after[0] > 4
    assert hidden.after[0] < 3
    assert told.p_value < 0.05 < hidden.p_value
    assert told.claim.startswith("No guarantee")
    assert hidden.claim.startswith("epsilon = 8 (simulation)")


def test_likelihoods_are_those_of_one_answer_at_a_time(values):
    backbone = BACKBONES.get("smolvlm")(model=values["backbone"]["model"]).load()
    model, context = GenerativeModel(backbone, ()), 0.1 * torch.ones(3, backbone.token_width)
    media = backbone.encode_tokens([np.zeros((32, 32, 3), dtype=np.uint8)])
    answers = ["the code is 1 2", "ox", "the dog"]
    texts = model.texts(["what is it"] * 3, answers)
    found = model.likelihoods(context, media, texts.questions[:1], answers)
    expected = -model.losses_at(context, media.expand(3, -1, -1), texts.questions[:, 0], texts) * (
        texts.answers >= 0
    ).sum(dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------ what is said


def test_the_command_audits_questions_and_the_report_says_what_it_found(values, hush, tmp_path):
    config = config_of({**values, "method": PROMPTFL, "training": {"num_rounds": 1}})
    (tmp_path / "vqa.toml").write_text(config.to_toml())
    quick = ["--num-shadows=4", "--canaries=12", "--gradient-canaries=100", "--workers=1", "--out=a"]
    attack = "--attack=loss,gradient_cosine"
    done = hush("audit", "vqa.toml", attack, *quick, "--secrets=2", "--repeats=2", "--digits=1")
    for part in (
        "Audit of promptfl: 24 candidates of client 0, 4 shadow federations a budget",
        "claimed: epsilon = 8 (simulation) at delta = 1e-05",
        "measured, mechanism alone: epsilon >= ",
        "12 made-up answers, ",
        "loss, global prompt",
        "gradient cosine, all releases",
        "measured, secrets in answers: exposure up to ",
        "of 3.3 bits, mean ",
        "2 secrets, each in 2 training examples; p = ",
        "Exposure is one attack, and no bound on epsilon.",
    ):
        assert part in " ".join(done.out.split()), part
    record = json.loads((tmp_path / "a" / "audit.json").read_text())
    (one,) = record["budgets"][0]["audiences"]
    assert {"audience", "before", "after", "most", "num_repeats", "p_value", "claim"} == set(one["secrets"])
    told = [block.text for block in audit_blocks([made_runs.run(1, audit=record)]) if isinstance(block, Words)]
    assert any("public: secrets in answers, exposure up to " in text for text in told)


def test_what_needs_classes_is_left_out_in_a_sentence_and_refused_by_name(values, tmp_path, monkeypatch):
    none = {"num_shadows": 4, "num_targets": 1}
    monkeypatch.setattr("hushprompt.audits.audit.run_shadows", lambda *_, **__: pytest.fail("nothing is trained"))
    for attack, why in (("shadow_mlp", "questions have none"), ("pipra", "a generative model has none")):
        with pytest.raises(ConfigError, match=f"{why}. Leave {attack} out of --attack"):
            audited(config_of(values), tmp_path, attacks=(attack,), **none)
    with pytest.raises(ConfigError, match="at most the 24 examples of client 0, got 25"):
        audited(config_of(values), tmp_path, num_canaries=25)
    with pytest.raises(ConfigError, match="need 40 training examples, and client 1 has 6"):
        hp.secret_exposures(values, num_secrets=40, client_id=1)
    with pytest.raises(ConfigError, match=r"A secret is hidden in an answer, and .* has classes"):
        hp.secret_exposures({**TOY, "references": []})
    with pytest.raises(ConfigError, match="trains nothing on private data"):
        hp.secret_exposures({**values, "method": {"name": "zero_shot"}})
