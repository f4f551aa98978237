"""Who takes part in secure aggregation: run keys, signed by the keys that owners pinned.

A client's identity is its `node.key` (ECDSA, P-384), by which the server knows it too. Its owner pins the public halves
of all other clients (`link.peers`) and compares one fingerprint of them with the other owners, by a way that is not the
server's. For each run a client makes an X25519 key, and its identity signs that this run key is its own, in this run,
with so many examples. A server can neither put in a client of its own nor exchange a key.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hushprompt.deployment.agreement import Agreement, Offer
from hushprompt.deployment.config import ClientConfig, ClientLinkConfig
from hushprompt.deployment.envelope import canonical
from hushprompt.deployment.masks import pair_secret
from hushprompt.deployment.operate import node_keys
from hushprompt.errors import ConfigError, ProtocolError

CLAIM = b"hushprompt run key 1\0"
"""Begins what is signed; Flower signs bare times with the same key, so neither can stand for the other."""
HASH = ec.ECDSA(hashes.SHA384())


def new_run_key() -> bytes:
    """Return a new private run key (X25519), 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_half(run_key: bytes) -> bytes:
    """Return what others know of a run key, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(run_key).public_key().public_bytes_raw()


def claim(offer: Offer, name: str, num_examples: int, key: bytes) -> bytes:
    """Return what an identity signs: in the run that is offered, this public run key is mine, with so many examples."""
    offered = {field.name: getattr(offer, field.name) for field in dataclasses.fields(Offer)}
    digest = hashlib.sha256(canonical(offered)).hexdigest()
    return CLAIM + canonical([digest, name, num_examples, key.hex()])


def sign(identity: ec.EllipticCurvePrivateKey, claimed: bytes) -> bytes:
    """Sign a claim."""
    return identity.sign(claimed, HASH)


def check_claim(public: ec.EllipticCurvePublicKey, claimed: bytes, signature: bytes, name: str) -> None:
    """Raise ProtocolError unless a claim was signed by the identity with this public key."""
    try:
        public.verify(signature, claimed, HASH)
    except InvalidSignature:
        raise ProtocolError(
            f"The run key of {name} was not signed by the key of {name} that is pinned here. Either somebody exchanged "
            "it, or the pinned file is not that client's."
        ) from None


def check_members(agreement: Agreement, pinned: Mapping[str, ec.EllipticCurvePublicKey]) -> None:
    """Check that all clients of a plan are pinned, and have run keys of their own, which they signed for this run.

    Args:
        agreement: with the keys and signatures of its clients.
        pinned: public keys of all clients that may take part, by name.

    Raises:
        ProtocolError: a client is not pinned; a run key was not signed; two clients have one.
    """
    if not agreement.keys:
        raise ProtocolError("The plan has no run keys, which noise shares are hidden under.")
    if unknown := [name for name in agreement.clients if name not in pinned]:
        raise ProtocolError(
            f"The plan has clients whose public keys this client's owner has not pinned: {', '.join(unknown)}."
        )
    points = {int.from_bytes(bytes.fromhex(key), "little") % 2**255 % (2**255 - 19) for key in agreement.keys}
    if len(points) < len(agreement.keys):  # bytes of two keys may differ where the keys do not (RFC 7748, section 5)
        raise ProtocolError("Two clients of the plan have one run key.")
    members = zip(agreement.clients, agreement.sizes, agreement.keys, agreement.signatures, strict=True)
    for name, size, key, signature in members:
        claimed = claim(agreement, name, size, bytes.fromhex(key))
        check_claim(pinned[name], claimed, bytes.fromhex(signature), name)


def pair_secrets(agreement: Agreement, run_key: bytes, names: Sequence[str]) -> dict[str, bytes]:
    """Return what this client has in common with others of the plan, by name, in the order asked for.

    Args:
        agreement: with the keys of its clients.
        run_key: the own private one.
        names: of clients; the own one gives a secret of this client alone.

    Raises:
        ProtocolError: a run key is of low order, so that anybody would know the secret.
    """
    keys, pairs = dict(zip(agreement.clients, agreement.keys, strict=True)), {}
    for name in names:
        try:
            pairs[name] = pair_secret(run_key, bytes.fromhex(keys[name]))
        except ValueError:
            raise ProtocolError(f"The run key of {name} is none: everybody would know what it hides.") from None
    return pairs


def read_identity(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a client's own key.

    Raises:
        ConfigError: it is missing, damaged, of another kind, or others can read it.
    """
    key = node_keys.load_private(path)
    _check_curve(path, key.curve)
    return key


def read_peers(folder: Path) -> dict[str, ec.EllipticCurvePublicKey]:
    """Read the public keys of a folder, NAME.pub each, by name.

    Raises:
        ConfigError: there are none; one is damaged or of another kind; or two names have one key, so that one client
            would count as two.
    """
    found: dict[str, ec.EllipticCurvePublicKey] = {}
    for path in sorted(folder.glob(f"*{node_keys.SUFFIX}")):
        key = node_keys.load_public(path)
        _check_curve(path, key.curve)
        if key in found.values():
            raise ConfigError(f"{path} is the public key of another name in this folder too. Each client has its own.")
        found[path.name.removesuffix(node_keys.SUFFIX)] = key
    if not found:
        raise ConfigError(f"{folder} has no public keys, NAME{node_keys.SUFFIX} each. Check the path.")
    return found


def check_link(link: ClientLinkConfig) -> None:
    """Raise ConfigError where a client's settings name no keys."""
    if not link.key or not link.peers:
        raise ConfigError(
            "Noise shares need link.key and link.peers in client.toml: this client's key, and the public keys of the "
            "other clients, which its owner got from their owners."
        )


def pinned_keys(config: ClientConfig) -> dict[str, ec.EllipticCurvePublicKey]:
    """Return the public keys that a client's owner pinned, and the client's own, by name.

    Raises:
        ConfigError: none are pinned; a key is missing or damaged; or the folder has another key under the own name.
    """
    name, link = config.client.name, config.link
    check_link(link)
    own, found = read_identity(Path(link.key)).public_key(), read_peers(Path(link.peers))
    if found.get(name, own) != own:
        raise ConfigError(f"{link.peers}/{name}{node_keys.SUFFIX} is not the public half of this client's {link.key}.")
    if own in [key for other, key in found.items() if other != name]:
        raise ConfigError(f"{link.peers} has this client's own key under another name.")
    return {**found, name: own}


def fingerprint(keys: Mapping[str, ec.EllipticCurvePublicKey]) -> str:
    """Return the SHA-256 of names and keys, in groups of four digits: owners read it to each other.

    Args:
        keys: of all clients, this one's included, by name.
    """
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    listed = [[name, key.public_bytes(*form).hex()] for name, key in sorted(keys.items())]
    text = hashlib.sha256(b"hushprompt roster 1\0" + canonical(listed)).hexdigest()
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))


def _check_curve(path: Path, curve: ec.EllipticCurve) -> None:
    """Refuse keys that what is claimed of signatures does not cover."""
    if not isinstance(curve, ec.SECP384R1):
        raise ConfigError(f"{path} is a key on {curve.name}, not on P-384. Make one with `hushprompt federation key`.")
