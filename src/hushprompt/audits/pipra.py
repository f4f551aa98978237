"""Membership from a prompt's vectors alone: networks that learn from shadow prompts what a member looks like.

Source: Bian et al. 2026, "Your Prompts Are Not Safe: Output-Free Membership Inference via Prompt Vectors in
Vision-Language Tuning" (PIPRA; AAAI 40(42), doi 10.1609/aaai.v40i42.40839). From its abstract: the public model turns
prompt and sample into features of one space, a projector that is trained by a contrastive loss improves both, and a
discriminator tells members by them; no output of the prompted model is asked for. What a prompt makes of a sample's
class is its text feature of that class; of a linear head it is the published row.

Sizes and steps are our own, as no code of the authors is public. What also differs: shadow prompts are those of the
audit's federations, which have trained on the same candidates, each in or out by a coin; and features are taken as
differences from the mean of their class, of texts over shadow prompts and of images over candidates: without that,
classes drown what one example leaves.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hushprompt.audits.shadow_mlp import NUM_FOLDS

WIDTH = 64
"""Width of the projector's layers and of the discriminator's hidden one."""
TEMPERATURE = 0.1
LEARNING_RATE = 0.003
NUM_STEPS = 500
"""Of one shadow prompt and up to `BATCH` examples each."""
BATCH = 256


def pipra(
    texts: Float[np.ndarray, "s k d"],
    images: Float[np.ndarray, "m d"],
    classes: Int[np.ndarray, " m"],
    is_in: Bool[np.ndarray, "s m"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "s m"]:
    """Return scores of all candidates under all prompts; no prompt is attacked by networks that have seen it.

    Args:
        texts: [s, k, d] what each prompt makes of the candidates' classes.
        images: [m, d] image features of the candidates.
        classes: [m] their places among the k classes.
        is_in: [s, m] which prompt was trained on which candidate.
        rng: stream of starts and batches.
    """
    fold = np.arange(len(is_in)) % NUM_FOLDS
    centered = images - np.stack([images[classes == one].mean(axis=0) for one in range(texts.shape[1])])[classes]
    x = torch.from_numpy(_scaled(centered)).float()
    scores = np.zeros(is_in.shape)
    for held_out in range(NUM_FOLDS):
        train, test = fold != held_out, fold == held_out
        moved = torch.from_numpy(_scaled(texts - texts[train].mean(axis=0))).float()[:, classes]
        networks = _fit(moved[train], x, torch.from_numpy(is_in[train]), rng)
        with torch.no_grad():
            scores[test] = torch.stack([_logits(networks, *_projected(networks, p, x)) for p in moved[test]]).numpy()
    return scores


def _scaled(values: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Return values of mean square 1."""
    return values / max(float(np.sqrt(np.mean(values**2))), 1e-12)


def _fit(
    texts: Float[Tensor, "s m d"], images: Float[Tensor, "m d"], is_in: Bool[Tensor, "s m"], rng: np.random.Generator
) -> list[Tensor]:
    """Train projector and discriminator together, on one shadow prompt after the other."""
    width = images.shape[1]
    sizes = [(width, WIDTH), (WIDTH, WIDTH), (4 * WIDTH + 1, WIDTH), (WIDTH, 1)]
    draws = [rng.uniform(-1, 1, size=size) / math.sqrt(size[0]) for size in sizes]
    networks = [torch.from_numpy(draw).float().requires_grad_(True) for draw in draws]
    optimizer = torch.optim.Adam(networks, lr=LEARNING_RATE)
    for _ in range(NUM_STEPS):
        model = int(rng.integers(len(texts)))
        batch = torch.from_numpy(rng.permutation(len(images))[:BATCH])
        p, x = _projected(networks, texts[model, batch], images[batch])
        members = is_in[model, batch]
        loss = F.binary_cross_entropy_with_logits(_logits(networks, p, x), members.float())
        optimizer.zero_grad()
        (loss + _contrast((p * x).sum(dim=1) / TEMPERATURE, members)).backward()
        optimizer.step()
    return [weights.detach() for weights in networks]


def _projected(
    networks: list[Tensor], texts: Float[Tensor, "m d"], images: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "m w"], Float[Tensor, "m w"]]:
    """Project texts and images, by the same layers, to unit length."""
    first = (rows @ networks[0] for rows in (texts, images))
    p, x = (F.normalize(rows + rows.relu() @ networks[1], dim=1) for rows in first)
    return p, x


def _logits(networks: list[Tensor], p: Float[Tensor, "m w"], x: Float[Tensor, "m w"]) -> Float[Tensor, " m"]:
    """Return the discriminator's logits of pairs."""
    pairs = torch.cat([p, x, (p - x).abs(), p * x, (p * x).sum(dim=1, keepdim=True) / TEMPERATURE], dim=1)
    return ((pairs @ networks[2]).relu() @ networks[3])[:, 0]


def _contrast(similarities: Float[Tensor, " m"], members: Bool[Tensor, " m"]) -> Float[Tensor, ""]:
    """Return the InfoNCE loss of a prompt: each member against all non-members; 0 where a side is empty."""
    inside, outside = similarities[members], similarities[~members]
    if not len(inside) or not len(outside):
        return similarities.new_zeros(())
    return (torch.logaddexp(inside, torch.logsumexp(outside, dim=0)) - inside).mean()
