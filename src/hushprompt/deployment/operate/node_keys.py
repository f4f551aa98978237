"""Keys of clients: each makes its own, keeps the private half, and gives the server's operator the public one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from hushprompt import files
from hushprompt.deployment.operate import secrets
from hushprompt.errors import ConfigError

T = TypeVar("T")
SUFFIX = ".pub"


def make(path: Path, name: str) -> Path:
    """Make a key pair (ECDSA, P-384), in OpenSSH form, and return the public half's file, `path` with `.pub`.

    Raises:
        ConfigError: the key exists.
    """
    private = ec.generate_private_key(ec.SECP384R1())
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    secrets.write_new(path, secret)
    public = path.with_name(path.name + SUFFIX)
    line = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    files.write_text(public, f"{line.decode()} {name}\n")
    return public


def load(path: Path, parse: Callable[[bytes], T], what: str, form: str, *, is_secret: bool) -> T:
    """Read a key or a certificate.

    Raises:
        ConfigError: it is missing, or is none of this form; or it is secret, and others can read it.
    """
    try:
        data = secrets.read(path, what) if is_secret else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"The {what} {path} cannot be read ({error.strerror}). Check the path.") from error
    try:
        return parse(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is no {what} in {form}: {error}.") from error


def load_private(path: Path) -> ec.EllipticCurvePrivateKey:
    """Load a client's private key.

    Raises:
        ConfigError: it is missing, damaged, of another kind, or others can read it.
    """
    form = "OpenSSH form without a password"
    key = load(path, lambda data: load_ssh_private_key(data, None), "private key", form, is_secret=True)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not an ECDSA key. Make one with `hushprompt federation key`.")
    return key


def load_public(path: Path) -> ec.EllipticCurvePublicKey:
    """Load a client's public key.

    Raises:
        ConfigError: it is missing, damaged or of another kind.
    """
    key = load(path, load_ssh_public_key, "public key", "OpenSSH form", is_secret=False)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path} is not an ECDSA key. Make one with `hushprompt federation key`.")
    return key


def read_public(path: Path) -> bytes:
    """Read a public key, as the bytes by which the server knows a client (PEM).

    Raises:
        ConfigError: it is missing, damaged or of another kind.
    """
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return load_public(path).public_bytes(encoding, form)
