"""Keys of clients: each makes its own, keeps the private half, and gives the server's operator the public one."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hushprompt import files
from hushprompt.deployment.operate import secrets
from hushprompt.errors import ConfigError

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
    files.write_text(public, f"{_line(private.public_key())} {name}\n")
    return public


def check_private(path: Path) -> None:
    """Refuse what is no client's key.

    Raises:
        ConfigError: it is missing, damaged, of another kind, or others can read it.
    """
    load_private(path)


def load_private(path: Path) -> ec.EllipticCurvePrivateKey:
    """Load a client's private key.

    Raises:
        ConfigError: it is missing, damaged, of another kind, or others can read it.
    """
    try:
        key = serialization.load_ssh_private_key(secrets.read(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is no private key in OpenSSH form without a password: {error}.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not an ECDSA key. Make one with `hushprompt federation key`.")
    return key


def load_public(path: Path) -> ec.EllipticCurvePublicKey:
    """Load a client's public key.

    Raises:
        ConfigError: it is missing, damaged or of another kind.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"The public key {path} cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is no public key in OpenSSH form: {error}.") from error
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


def _line(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
