"""Membership from prompts' text features alone: found where they keep members, and nowhere else."""

import numpy as np
import pytest

from hushprompt.audits import pipra as attack
from hushprompt.audits.metrics import auc
from hushprompt.audits.pipra import pipra

CLASSES = np.repeat(np.arange(3), 10)


def world_of(leak, num_models=40, width=8, seed=0):
    """Prompts whose text feature of a class moves by `leak` toward each member."""
    draws = np.random.default_rng(seed)
    means, noise = draws.standard_normal((3, width)), draws.standard_normal((num_models, 3, width))
    images = means[CLASSES] + 0.5 * draws.standard_normal((len(CLASSES), width))
    is_in = draws.random((num_models, len(CLASSES))) < 0.5
    of_class = np.eye(3)[:, CLASSES]  # [k, m]
    moved = (of_class * is_in[:, None, :]) @ images
    return means + 0.1 * noise + leak * moved, images, is_in


@pytest.mark.parametrize(("leak", "low", "high"), [(0.3, 0.65, 1.0), (0.0, 0.45, 0.55)])
def test_members_are_found_where_text_features_keep_them(leak, low, high):
    texts, images, is_in = world_of(leak)
    scores = pipra(texts, images, CLASSES, is_in, np.random.default_rng(1))
    assert low < auc(scores.ravel(), is_in.ravel()) < high


def test_a_prompt_is_attacked_without_its_own_coins(monkeypatch):
    monkeypatch.setattr(attack, "NUM_STEPS", 20)
    texts, images, is_in = world_of(0.3, num_models=8)
    other = is_in.copy()
    other[3] = ~other[3]
    first, second = (pipra(texts, images, CLASSES, coins, np.random.default_rng(1)) for coins in (is_in, other))
    assert np.array_equal(first[1::2], second[1::2]), "3 is in this half"
    assert not np.allclose(first[::2], second[::2])
