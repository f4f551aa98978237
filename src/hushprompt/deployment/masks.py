"""Pairwise masks: what makes one client's vector uniform noise, and cancels in the sum over all who take part.

Each two participants i < j of a step share a seed that nobody else can compute. i adds the mask that the seed expands
to, j subtracts it, modulo 2^64, so the sum over all participants is exact and that of fewer is uniform.

    pair secret = X25519(own run key, the other's), the same at both
    seed        = HKDF-SHA256(pair secret, salt = context, info = "mask i j"), an AES-128 key
    mask        = its AES-128-CTR stream as uint64, little-endian; a seed makes one mask and nothing else

The context is the hash of the whole message that asked (`envelope.fingerprint`): agreement, place, clip norm,
participants and shared state. Clients that were asked anything different have other seeds, and nothing cancels.
Source: Bonawitz et al. 2017, with long-lived pair secrets as in Flamingo (Ma et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jaxtyping import Int64, UInt64

from hushprompt.privacy.system_random import ByteSource

SEED = 16
"""Bytes of a seed: a key of AES-128."""
LABEL = b"hushprompt 1 "
"""Begins every use that a key is derived for."""


def pair_secret(run_key: bytes, other: bytes) -> bytes:
    """Return what two run keys have in common, 32 bytes.

    Args:
        run_key: the own private one.
        other: the other client's public one.

    Raises:
        ValueError: the other one is none: of low order, so that anybody knows the secret, or of another length.
    """
    return X25519PrivateKey.from_private_bytes(run_key).exchange(X25519PublicKey.from_public_bytes(other))


def derive(secret: bytes, context: bytes, use: str, length: int) -> bytes:
    """Return a key for one use in one context (HKDF-SHA256, RFC 5869)."""
    return HKDF(hashes.SHA256(), length, salt=context, info=LABEL + use.encode()).derive(secret)


def pair_seed(pair: bytes, context: bytes, place: int, other: int) -> bytes:
    """Return the seed that two participants share, whichever of them asks; places are those among participants."""
    return derive(pair, context, f"mask {min(place, other)} {max(place, other)}", SEED)


def expand(seed: bytes, size: int) -> UInt64[np.ndarray, " l"]:
    """Return the mask of a seed: so many uniform numbers. The counter begins at 0, as a seed is used once."""
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(8 * size))
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)


def keyed_bytes(secret: bytes, context: bytes, use: str) -> ByteSource:
    """Return a source of bytes that nobody without the secret can tell from random ones, and that can be had again.

    It is AES-256 in counter mode under a key of its own for this context and use.
    """
    key = derive(secret, context, use, 32)
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return lambda size: stream.update(bytes(size))


def mask(vector: Int64[np.ndarray, " l"], own: int, seeds: Mapping[int, bytes]) -> Int64[np.ndarray, " l"]:
    """Hide a vector.

    Args:
        vector: whole numbers, any.
        own: place of this client among the participants.
        seeds: by place: one for each other participant, and of the own place a self mask, where there is one.
    """
    return (vector.view(np.uint64) + _of_client(vector.size, own, seeds)).view(np.int64)


def unmask_sum(total: Int64[np.ndarray, " l"], left: Mapping[int, Mapping[int, bytes]]) -> Int64[np.ndarray, " l"]:
    """Take out of a sum of masked vectors what did not cancel.

    Args:
        total: modulo 2^64.
        left: by place of each client in the sum, its seeds as `mask` took them, of masks that are in the sum once.
    """
    rest = total.view(np.uint64)
    for own, seeds in left.items():
        rest = rest - _of_client(total.size, own, seeds)
    return rest.view(np.int64)


def _of_client(size: int, own: int, seeds: Mapping[int, bytes]) -> UInt64[np.ndarray, " l"]:
    """Return all that one client adds to its vector."""
    total = np.zeros(size, np.uint64)
    for other, seed in seeds.items():
        total = total - expand(seed, size) if other < own else total + expand(seed, size)
    return total
