"""Secret sharing (Shamir 1979) over GF(256): any `threshold` shares give the secret, fewer give nothing of it.

Each byte of a secret is the value at 0 of a random polynomial of its own; a share is the polynomial's values at the
place of its holder, 1 to 255. Products are looked up in tables, which takes a time that depends on secrets: whoever can
measure the caches of this machine is outside of what is claimed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from hushprompt.privacy.system_random import ByteSource

MAX_HOLDERS = 255
"""Places other than 0, which is the secret's."""


def _tables() -> tuple[UInt8[np.ndarray, "256 256"], UInt8[np.ndarray, " 256"]]:
    """Return all products and inverses modulo x^8 + x^4 + x^3 + x + 1 (FIPS 197, section 4.2); 3 generates all."""
    powers, logs, value = np.zeros(510, np.uint8), np.zeros(256, np.int64), 1
    for power in range(255):
        powers[power] = powers[power + 255] = value
        logs[value] = power
        value ^= (value << 1) ^ (0x11B if value & 0x80 else 0)
    products, inverses = powers[logs[:, None] + logs[None, :]], powers[255 - logs]
    products[0, :] = products[:, 0] = inverses[0] = 0
    return products, inverses


PRODUCTS, INVERSES = _tables()


def split(
    secret: UInt8[np.ndarray, " b"], threshold: int, places: Sequence[int], read: ByteSource = os.urandom
) -> UInt8[np.ndarray, "p b"]:
    """Return one share for each place; any `threshold` of them give the secret.

    Args:
        secret: bytes, each shared on its own.
        threshold: at least 1; coefficients are drawn for all above the constant one.
        places: of the holders, different ones from 1 to 255.
        read: source of uniform bytes; tests give another one.
    """
    _check(threshold, places)
    drawn = np.frombuffer(read((threshold - 1) * secret.size), np.uint8).reshape(threshold - 1, secret.size)
    shares = np.empty((len(places), secret.size), np.uint8)
    for row, place in enumerate(places):  # Horner's scheme
        value = np.zeros_like(secret)
        for coefficient in drawn:
            value = PRODUCTS[place][value ^ coefficient]
        shares[row] = value ^ secret
    return shares


def combine(shares: UInt8[np.ndarray, "t *b"], places: Sequence[int]) -> UInt8[np.ndarray, "*b"]:
    """Return the secret of as many shares as the threshold says; with fewer it is any other value.

    Args:
        shares: one a holder.
        places: of the same holders.
    """
    _check(len(shares), places)
    secret = np.zeros(shares.shape[1:], np.uint8)
    for share, weight in zip(shares, _weights(tuple(places)), strict=True):
        secret ^= PRODUCTS[weight][share]
    return secret


@functools.lru_cache(maxsize=256)
def _weights(places: tuple[int, ...]) -> tuple[int, ...]:
    """Return Lagrange's weights for the value at 0; minus is plus in this field."""
    weights = []
    for place in places:
        weight = 1
        for other in places:
            if other != place:
                weight = int(PRODUCTS[weight, PRODUCTS[other, INVERSES[other ^ place]]])
        weights.append(weight)
    return tuple(weights)


def _check(threshold: int, places: Sequence[int]) -> None:
    """Refuse what is no sharing: a place at 0 would be the secret itself."""
    if not 1 <= threshold <= len(places) or len(set(places)) < len(places):
        raise ValueError(f"a secret is shared among {len(places)} different holders, {threshold} of them give it")
    if not all(1 <= place <= MAX_HOLDERS for place in places):
        raise ValueError(f"a holder's place is a number from 1 to {MAX_HOLDERS}")
