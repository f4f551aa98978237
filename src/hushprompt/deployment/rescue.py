"""What lets a step survive clients that are lost in it: self masks, and shares of every seed with all others.

With its masked vector a client sends a box to each participant, itself included: shares of its self mask and of the
seeds that it has in common with each other. Told once who answered, a holder gives, of each client that did, its share
of the self mask and of the seeds with those that did not: never both kinds for one client, which would open its vector
alone. Every seed is shared with the threshold `least` of the plan, so that few holders, or two lists of who answered,
open nothing. Source: Bonawitz et al. 2017.

Places are those among the participants P of a step, from 0; a holder's share is a polynomial's value at its place + 1.
A box is 12 bytes of nonce, one share of 16 bytes for each participant, and 16 bytes of ChaCha20-Poly1305's tag.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from jaxtyping import Int64, UInt8

from hushprompt.deployment import shamir
from hushprompt.deployment.masks import SEED, derive, unmask_sum
from hushprompt.errors import ProtocolError

NONCE, TAG, KEY = 12, 16, 32
"""Bytes of a box's nonce, tag and key."""


def box_size(num_participants: int) -> int:
    """Return the bytes of one box."""
    return NONCE + SEED * num_participants + TAG


def make_boxes(
    seeds: Mapping[int, bytes],
    pairs: Sequence[bytes],
    context: bytes,
    own: int,
    least: int,
) -> UInt8[np.ndarray, "p w"]:
    """Share a client's seeds among all participants, a box for each.

    Args:
        seeds: by place: the self mask at the client's own, the seed in common at every other.
        pairs: pair secrets with each participant, itself included.
        context: of the step.
        own: place of the client.
        least: shares that give a seed.
    """
    secrets = np.frombuffer(b"".join(seeds[place] for place in range(len(pairs))), np.uint8)
    shares = shamir.split(secrets, least, range(1, len(pairs) + 1))
    boxes = [
        _seal(_box_key(pair, context, own, place), shares[place].tobytes(), context) for place, pair in enumerate(pairs)
    ]
    return np.stack([np.frombuffer(box, np.uint8) for box in boxes])


def rows_for(sealed: Mapping[int, UInt8[np.ndarray, "p w"]], place: int) -> UInt8[np.ndarray, "u w"]:
    """Return the boxes that all who answered made for the participant at a place, in the order of their places."""
    return np.stack([sealed[sender][place] for sender in sorted(sealed)])


def give_shares(
    boxes: UInt8[np.ndarray, "u w"],
    pairs: Sequence[bytes],
    context: bytes,
    own: int,
    answered: Sequence[int],
    least: int,
) -> UInt8[np.ndarray, "u k 16"]:
    """Open the boxes of who answered, and return of each its share of the self mask and of its seeds with the missing.

    A box that cannot be opened leaves its row zero, which no share is but by a chance of 2^-128: to say less is always
    safe.

    Args:
        boxes: one of each who answered, made for this client.
        pairs: pair secrets with each participant.
        context: of the step.
        own: place of this client.
        answered: places of who answered, sorted.
        least: fewest boxes that must open.

    Raises:
        ProtocolError: fewer can be opened.
    """
    missing = [place for place in range(len(pairs)) if place not in answered]
    given = np.zeros((len(answered), 1 + len(missing), SEED), np.uint8)
    opened = 0
    for row, sender in enumerate(answered):
        data = _open(_box_key(pairs[sender], context, sender, own), boxes[row].tobytes(), context)
        if data is not None:
            given[row] = np.frombuffer(data, np.uint8).reshape(len(pairs), SEED)[[sender, *missing]]
            opened += 1
    if opened < least:
        raise ProtocolError(
            f"{opened} of the {len(answered)} boxes for this client can be opened, {least} are needed: they were made "
            "in another step or for another message, or are damaged. Nothing is given."
        )
    return given


def open_sum(
    total: Int64[np.ndarray, " l"],
    answered: Sequence[int],
    missing: Sequence[int],
    shares: Mapping[int, UInt8[np.ndarray, "u k 16"]],
    least: int,
) -> Int64[np.ndarray, " l"]:
    """Return the sum of the vectors of all who answered a step.

    Args:
        total: sum of their masked vectors, modulo 2^64.
        answered: their places, sorted.
        missing: places of the other participants, sorted.
        shares: what holders gave, by their place.
        least: shares that give a seed.

    Raises:
        ProtocolError: too few shares of what one of them masked with.
    """
    left: dict[int, dict[int, bytes]] = {}
    for row, sender in enumerate(answered):
        holders = [place for place in sorted(shares) if shares[place][row].any()][:least]
        if len(holders) < least:
            raise ProtocolError(
                f"Not enough shares of what participant {sender + 1} masked with: {len(holders)} of {least}. Nothing "
                "is opened."
            )
        given = np.stack([shares[place][row] for place in holders])
        seeds = shamir.combine(given, [place + 1 for place in holders])
        left[sender] = {place: seed.tobytes() for place, seed in zip((sender, *missing), seeds, strict=True)}
    return unmask_sum(total, left)


def _box_key(pair: bytes, context: bytes, sender: int, receiver: int) -> bytes:
    """Return the key of one box: of this direction, in this context."""
    return derive(pair, context, f"shares {sender} {receiver}", KEY)


def _seal(key: bytes, data: bytes, context: bytes) -> bytes:
    nonce = os.urandom(NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, data, context)


def _open(key: bytes, box: bytes, context: bytes) -> bytes | None:
    """Return what is in a box; None where it is not this one's."""
    try:
        return ChaCha20Poly1305(key).decrypt(box[:NONCE], box[NONCE:], context)
    except InvalidTag:
        return None
