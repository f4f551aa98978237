"""The head: zero-shot without information, better with it, and its unit-norm form."""

import pytest
import torch

from hushprompt.errors import ConfigError
from hushprompt.privacy.clipping import clipped_class_sums
from hushprompt.statistics.head import make_head, prompt_embeddings
from hushprompt.statistics.metric import make_metrics
from hushprompt.statistics.posterior import ClassPosterior, SharedMean, class_posterior, shared_mean
from hushprompt.statistics.sums import MEAN_SHARE, mean_rows, residual_rows, text_guess
from tests.helpers.class_worlds import NUM_CLASSES, class_world


@pytest.fixture(scope="module")
def world():
    return class_world()


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted(world, noise_multiplier, seed=0, texts=True):
    """Both releases of one client with all classes, and the head."""
    metric, count = world.metric, len(world.labels)
    total = clipped_class_sums(mean_rows(world.features, metric), torch.zeros(count).long(), 1, metric.clip_mean).value
    std = noise_multiplier / MEAN_SHARE**0.5 * metric.clip_mean
    shared = shared_mean(total[0] + std * normal(seed, metric.rank), count, std, metric)
    guess, directions = (text_guess(world.texts, metric), metric.texts(world.texts)) if texts else (None, None)
    rows = residual_rows(world.features, world.labels, metric, shared.value, guess)
    sums = clipped_class_sums(rows, world.labels, NUM_CLASSES, metric.clip_residual).value
    std = noise_multiplier / (1 - MEAN_SHARE) ** 0.5 * metric.clip_residual
    counts = torch.full((NUM_CLASSES,), count / NUM_CLASSES).double()
    posterior = class_posterior(
        sums + std * normal(seed + 1, *sums.shape), torch.full_like(counts, std), counts, metric, shared, directions
    )
    return make_head(metric, shared, posterior, world.texts if texts else None, 20.0), shared


def accuracy(world, logits):
    return float((logits.argmax(dim=1) == world.labels).double().mean())


def test_without_information_the_head_is_exactly_zero_shot(world):
    metric = world.metric
    nothing = ClassPosterior(torch.zeros(NUM_CLASSES, metric.rank).double(), 1.0, 1.0)
    for g in (torch.zeros(metric.rank).double(), 3 * normal(5, metric.rank)):
        head = make_head(metric, SharedMean(g, 0.1), nothing, world.texts, 20.0)
        zero_shot = 20.0 * world.features @ world.texts.T
        torch.testing.assert_close(head.logits(world.features), zero_shot, rtol=0, atol=1e-6)
        assert torch.equal(head.logits(world.features).argmax(1), zero_shot.argmax(1))


def test_a_release_that_drowns_in_noise_is_zero_shot(world):
    zero_shot = world.features @ world.texts.T
    for seed in range(5):
        head, _ = fitted(world, 1e7, seed)
        assert torch.equal(head.logits(world.features).argmax(1), zero_shot.argmax(1))


def test_never_below_zero_shot_on_average_and_above_it_with_little_noise(world):
    zero_shot = accuracy(world, world.features @ world.texts.T)
    for noise_multiplier in (1000.0, 100.0, 20.0):
        scores = [accuracy(world, fitted(world, noise_multiplier, s)[0].logits(world.features)) for s in range(15)]
        assert sum(scores) / 15 > zero_shot - 0.001
    assert accuracy(world, fitted(world, 0.5)[0].logits(world.features)) > zero_shot + 0.05


def test_without_noise_it_works_as_well_as_class_means(world):
    rows = mean_rows(world.features, world.metric)
    nearest = -torch.cdist(rows, torch.stack([rows[world.labels == c].mean(dim=0) for c in range(NUM_CLASSES)]))
    for texts in (True, False):
        assert (
            accuracy(world, fitted(world, 0.0, texts=texts)[0].logits(world.features)) > accuracy(world, nearest) - 0.03
        )


def test_without_text_and_information_all_classes_score_alike(world):
    nothing = ClassPosterior(torch.zeros(NUM_CLASSES, world.metric.rank).double(), 1.0, 1.0)
    head = make_head(world.metric, SharedMean(normal(1, world.metric.rank), 0.1), nothing, None, 20.0)
    assert not head.logits(world.features).any()


def test_a_text_prior_needs_a_metric_with_texts(world):
    metric = make_metrics(normal(3, 300, 24), torch.arange(100).repeat(3), "x", "f").at(128)
    nothing = ClassPosterior(torch.zeros(NUM_CLASSES, metric.rank).double(), 1.0, 1.0)
    with pytest.raises(ConfigError, match="without class texts"):
        make_head(metric, SharedMean(torch.zeros(metric.rank).double(), 0.1), nothing, world.texts, 20.0)


def test_unit_norm_embeddings_nearly_score_as_the_head_does(world):
    head, shared = fitted(world, 1.0)
    unit = head.unit_norm(world.metric, shared)
    torch.testing.assert_close(unit.text_features.norm(dim=1), torch.ones(NUM_CLASSES).double())
    assert unit.bias is None
    agree = (unit.logits(world.features).argmax(1) == head.logits(world.features).argmax(1)).double().mean()
    assert agree > 0.85


def test_embeddings_for_prompts_are_the_texts_without_information(world):
    nothing = ClassPosterior(torch.zeros(NUM_CLASSES, world.metric.rank).double(), 1.0, 1.0)
    shared = SharedMean(torch.zeros(world.metric.rank).double(), 0.1)
    head = make_head(world.metric, shared, nothing, world.texts, 20.0)
    embeddings = prompt_embeddings(world.metric, shared, nothing, world.texts, head)
    assert (embeddings * world.texts).sum(dim=1).min() > 0.97, "but for a common direction that images do not use"
    logits = world.features @ embeddings.T
    assert accuracy(world, logits) == pytest.approx(accuracy(world, world.features @ world.texts.T), abs=0.03)
