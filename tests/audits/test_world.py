"""What is attacked is the real training: an example that is out leaves no trace, and nothing else differs."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from helpers.runs import Silent
from hushprompt.audits.metrics import auc
from hushprompt.audits.watch import ABSENT, Transcript, Watch, watched
from hushprompt.audits.world import World, audiences, candidates_of, context_method, start
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import assemble, client_sizes, load_model, make_partition
from hushprompt.federation.simulate import run
from hushprompt.methods.base import Batch
from hushprompt.privacy.config import Audience, Channel
from hushprompt.privacy.mechanisms.gaussian import GaussianMechanism
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.registry import METHODS


def world_of(values, tmp_path, client_id=1):
    config = configs.parse({**values, "references": [], "runtime": {"cache_dir": str(tmp_path / "cache")}})
    dataset = config.data.load()
    partition = make_partition(config, dataset)
    (arm,) = plan_arms(config, client_sizes(partition))
    federation = assemble(config, load_model(config, dataset, [arm]), dataset, partition, lambda *_: None)
    return World(config, federation, candidates_of(federation, client_id)), arm


@pytest.fixture
def world(toy_values, tmp_path):
    return world_of(toy_values, tmp_path)


def everyone(world):
    return np.ones(len(world.candidates.indices), dtype=bool)


def test_with_everyone_in_it_is_the_run_itself(world, tmp_path):
    from safetensors.torch import load_file

    world, arm = world
    folder = tmp_path / "run"
    folder.mkdir()
    run(world.config, folder, Silent())
    state, watch = world.train(arm, everyone(world), world.config.seed)
    published = load_file(folder / "prompts" / "client-001.safetensors")["context"]
    assert torch.equal(arm.method.context(state.shared, state.personal[1]), published)
    assert torch.equal(state.shared.context, load_file(folder / "prompts" / "global.safetensors")["context"])
    assert len(watch.public.releases) == arm.num_rounds


def test_an_absent_example_leaves_no_trace(world):
    world, arm = world
    is_in = everyone(world)
    is_in[::2] = False
    state, _ = world.train(arm, is_in, 5)
    stored = world.federation.train_features["pooled"]
    features = stored.array.copy()
    features[world.candidates.indices[~is_in]] *= -1  # whatever it was
    federation = dataclasses.replace(
        world.federation, train_features={"pooled": dataclasses.replace(stored, array=features)}
    )
    again, _ = dataclasses.replace(world, federation=federation).train(arm, is_in, 5)
    assert torch.equal(state.shared.context, again.shared.context)
    assert torch.equal(state.personal[1].context, again.personal[1].context)
    whole, _ = world.train(arm, everyone(world), 5)
    assert not torch.equal(state.personal[1].context, whole.personal[1].context)
    assert world.federation.train_labels.min() >= 0, "the world itself is untouched"


def test_the_divisor_stays_the_public_size_and_no_batch_shows_an_absent_example(world, monkeypatch):
    world, arm = world
    counts, seen = set(), []
    true_clip = GaussianMechanism.clip

    def spy(self, channel, grads):
        counts.add((channel, self.expected_count))
        if channel is Channel.GLOBAL:
            seen.append(len(grads))
        return true_clip(self, channel, grads)

    monkeypatch.setattr(GaussianMechanism, "clip", spy)
    world.train(arm, ~everyone(world), 5)
    assert counts == {(channel, 0.5 * 24) for channel in Channel}
    assert seen.count(0) == arm.num_rounds, "the audited client has empty batches, the others have not"


def test_other_seeds_give_other_batches_and_noise_from_the_same_start(world):
    world, arm = world
    first, watch = world.train(arm, everyone(world), 5)
    second, other = world.train(arm, everyone(world), 6)
    assert not torch.equal(first.shared.context, second.shared.context)
    assert torch.equal(watch.public.contexts[0], other.public.contexts[0])


def test_the_transcript_replays_the_global_prompt(world):
    world, arm = world
    state, watch = world.train(arm, everyone(world), 5)
    transcript = watch.public
    shared, _ = arm.method.init(world.federation.model, np.random.default_rng(0))
    shared = dataclasses.replace(shared, context=transcript.contexts[0])
    for release in transcript.releases:
        shared = arm.method.server_step(shared, release)
    assert torch.equal(shared.context, state.shared.context)


def test_projections_are_inner_products_with_exact_gradients(world):
    world, arm = world
    _, watch = world.train(arm, everyone(world), 5)
    transcript = watch.public
    batch = Batch(world.features, torch.from_numpy(world.candidates.labels))
    expected = []
    for context, release in zip(transcript.contexts, transcript.releases, strict=True):
        grads, _ = per_example_gradients(world.federation.model, context, batch.image_features, batch.labels)
        expected.append((grads * release).flatten(1).sum(dim=1) / release.norm())
    expected = torch.stack(expected).mean(dim=0).numpy()
    np.testing.assert_allclose(
        world.projections(arm, transcript), expected, rtol=0.02, atol=0.02 * np.abs(expected).max()
    )
    assert np.array_equal(world.projections(arm, Transcript([], [])), np.zeros(24))


def test_members_stand_out_in_the_transcript_of_a_federation_without_noise(toy_values, tmp_path):
    values = {**toy_values, "privacy": {"epsilon": math.inf, "delta": 1e-3}, "training": {"num_rounds": 6}}
    world, arm = world_of(values, tmp_path)
    is_in = np.random.default_rng(1).random(24) < 0.5
    gaps = []
    for seed in range(3):
        _, with_members = world.train(arm, is_in, seed)
        _, without = world.train(arm, ~is_in, seed)
        gaps.append(world.projections(arm, with_members.public) - world.projections(arm, without.public))
    gap = np.mean(gaps, axis=0)
    assert gap[is_in].mean() > 0 > gap[~is_in].mean()


def test_each_audience_sees_the_prompt_it_holds(world):
    world, arm = world
    state, _ = world.train(arm, everyone(world), 5)
    personal = world.log_probs(arm, state, Audience.PERSONAL, world.examples)
    public = world.log_probs(arm, state, Audience.PUBLIC, world.examples)
    model = world.federation.model
    for found, context in (
        (personal, arm.method.context(state.shared, state.personal[1])),
        (public, state.shared.context),
    ):
        torch.testing.assert_close(found, model.logits(world.features, model.text_features(context)).log_softmax(1))
    assert not torch.allclose(personal, public)
    unseen = world.population
    assert len(unseen.image_features) == len(unseen.labels) == 6
    assert set(unseen.labels.tolist()) <= set(world.candidates.labels.tolist())


def test_a_arm_has_the_audiences_of_its_releases(toy_values, tmp_path):
    _, both = world_of(toy_values, tmp_path)
    _, shared = world_of({**toy_values, "method": {"name": "promptfl", "num_ctx": 4}}, tmp_path)
    _, alone = world_of({**toy_values, "method": {"name": "local_only", "num_ctx": 4}}, tmp_path)
    assert audiences(both) == [Audience.PUBLIC, Audience.PERSONAL]
    assert audiences(shared) == [Audience.PUBLIC]
    assert audiences(alone) == [Audience.PERSONAL]
    at_client = {**toy_values, "privacy": {**toy_values["privacy"], "noise_at": "client"}}
    assert audiences(world_of(at_client, tmp_path)[1]) == list(Audience)


def test_a_watched_arm_is_the_row(world):
    world, arm = world
    twin = watched(arm, Watch(start(world.config, world.federation, arm).personal[1], None, is_public=True))
    assert twin.method.method is arm.method
    assert twin.method.channels == arm.method.channels
    assert twin.plan.guarantees() == arm.plan.guarantees()
    assert ABSENT < 0


@pytest.mark.parametrize(
    ("noise_at", "method", "seen"),
    [
        ("server", "dp_fpl", {Audience.PUBLIC, Audience.PERSONAL}),
        ("client", "dp_fpl", set(Audience)),
        ("client", "promptfl", {Audience.PUBLIC, Audience.SERVER}),
    ],
)
def test_a_judging_watch_changes_nothing_and_judges_each_audience_by_what_it_sees(
    toy_values, tmp_path, noise_at, method, seen
):
    values = {
        **toy_values,
        "method": {"name": method, "num_ctx": 8, **({"rank": 2} if method == "dp_fpl" else {})},
        "privacy": {"noise_at": noise_at, "epsilon": math.inf, "delta": 1e-3},
        "training": {"num_rounds": 6},
    }
    world, arm = world_of(values, tmp_path)
    is_in = np.random.default_rng(1).random(24) < 0.5
    plain, without = world.train(arm, is_in, 5)
    state, watch = world.train(arm, is_in, 5, judges=True)
    assert torch.equal(plain.shared.context, state.shared.context)
    assert without.scores(Audience.PUBLIC) is None
    assert {audience for audience in Audience if watch.scores(audience) is not None} == seen == set(audiences(arm))
    assert len(watch.uploads.releases) == (6 if noise_at == "client" else 0)
    # Nothing hides a gradient in one client's own sum without noise, where the auditor knows the gradients.
    own = Audience.PERSONAL if method == "dp_fpl" else Audience.SERVER
    assert auc(watch.scores(own), is_in) > 0.75


def test_what_cannot_be_audited_is_refused(world):
    world, _ = world
    with pytest.raises(ConfigError, match=r"--client must lie in 0 to 2, got 3"):
        candidates_of(world.federation, 3)
    with pytest.raises(ConfigError, match="has none"):
        context_method(METHODS.get("zero_shot")())
