"""The server's certificate and the authority that signs it: made, looked at, renewed.

Clients trust the authority and nothing else: whoever has its key can pretend to be the server. It signs on the machine
of whoever runs the federation, and none of the running processes needs it.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from hushprompt import files
from hushprompt.deployment.operate import node_keys, secrets
from hushprompt.errors import ConfigError
from hushprompt.words import counted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
SOON_DAYS = 30
"""A certificate that ends within so many days is worth a warning."""
LOOPBACK = ("127.0.0.1", "localhost")
"""Names that every server certificate has: the server's own processes reach it by them."""
CLOCKS = datetime.timedelta(hours=1)
"""A certificate begins so long before it is made: clocks differ."""


@dataclass(frozen=True)
class Validity:
    """What a certificate says."""

    names: tuple[str, ...]
    """Host names and addresses that it is for."""
    begins: datetime.datetime
    ends: datetime.datetime
    """Both UTC."""

    def days_left(self, now: datetime.datetime) -> int:
        """Whole days until it ends; negative when it has."""
        return (self.ends - now) // datetime.timedelta(days=1)


def make_authority(certificate: Path, key: Path, name: str, now: datetime.datetime) -> None:
    """Make an authority: its certificate, for everybody, and its key.

    Raises:
        ConfigError: the key exists.
    """
    private = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"hushprompt federation {name}"[:64])])
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    made = (
        _builder(subject, private.public_key(), now, AUTHORITY_DAYS)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA384())
    )
    secrets.write_new(key, _pem(private))
    files.write_text(certificate, _text(made))


def make_server(
    certificate: Path,
    key: Path,
    authority: tuple[Path, Path],
    names: Sequence[str],
    now: datetime.datetime,
    days: int = SERVER_DAYS,
) -> None:
    """Make a server's certificate and key.

    Args:
        certificate: file to write.
        key: file to write; a new one.
        authority: its certificate and its key.
        names: host names and IP addresses by which clients reach the server.
        now: UTC.
        days: that it is good for; negative ones make an expired certificate, for tests.

    Raises:
        ConfigError: the key exists, or the authority's cannot be read.
    """
    issuer = _certificate(authority[0])
    issuer_key = _private_key(authority[1])
    if issuer.public_key() != issuer_key.public_key():
        raise ConfigError(f"The key {authority[1]} does not belong to the certificate {authority[0]}.")
    private = ec.generate_private_key(ec.SECP384R1())
    wanted = list(dict.fromkeys([*names, *LOOPBACK]))
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, wanted[0][:64])])
    made = (
        _builder(subject, private.public_key(), now, days)
        .issuer_name(issuer.subject)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in wanted]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA384())
    )
    secrets.write_new(key, _pem(private))
    files.write_text(certificate, _text(made))


def renew_server(
    certificate: Path, key: Path, authority: tuple[Path, Path], now: datetime.datetime, days: int = SERVER_DAYS
) -> None:
    """Replace a server's certificate and key by new ones for the same names; the server reads them when it starts."""
    names = read(certificate).names
    new_certificate, new_key = (path.with_name(f".{path.name}.new") for path in (certificate, key))
    new_key.unlink(missing_ok=True)  # of a renewal that was interrupted
    make_server(new_certificate, new_key, authority, names, now, days)
    os.replace(new_key, key)
    os.replace(new_certificate, certificate)


def read(path: Path) -> Validity:
    """Read what a certificate says.

    Raises:
        ConfigError: it is missing or damaged.
    """
    certificate = _certificate(path)
    try:
        general = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(name.value) for name in general)
    except x509.ExtensionNotFound:
        names = ()
    return Validity(names, certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def check(path: Path, now: datetime.datetime) -> list[str]:
    """Refuse a certificate that is not good now, and give a warning for one that soon will not be.

    Raises:
        ConfigError: it is missing, damaged, expired or from the future.
    """
    validity = read(path)
    if now >= validity.ends:
        raise ConfigError(
            f"The certificate {path} expired on {validity.ends:%Y-%m-%d %H:%M} UTC. "
            "Renew it with `hushprompt federation renew`, or ask whoever runs the federation for a new one."
        )
    if now < validity.begins:
        raise ConfigError(
            f"The certificate {path} is good from {validity.begins:%Y-%m-%d %H:%M} UTC only. "
            "Is this machine's clock right?"
        )
    left = validity.days_left(now)
    if left < SOON_DAYS:
        return [
            f"The certificate {path} expires in {counted(left, 'day')}, on {validity.ends:%Y-%m-%d} UTC. Renew it soon."
        ]
    return []


def check_server(certificate: Path, key: Path, ca: Path, now: datetime.datetime) -> list[str]:
    """Refuse what no client could trust, before one tries; give warnings.

    Raises:
        ConfigError: a file is missing or damaged, a certificate is not good now, the key belongs to another one or can
            be read by others, or the authority did not sign.
    """
    warnings = [*check(ca, now), *check(certificate, now)]
    own = _certificate(certificate)
    if own.public_key() != _private_key(key).public_key():
        raise ConfigError(f"The key {key} does not belong to the certificate {certificate}.")
    try:
        own.verify_directly_issued_by(_certificate(ca))
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ConfigError(f"The certificate {certificate} was not signed by {ca}: no client would trust it.") from error
    return warnings


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    ends = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, ends) - CLOCKS)
        .not_valid_after(ends)
    )


def _general(name: str) -> x509.GeneralName:
    """Return a host name or an IP address as certificates have it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _certificate(path: Path) -> x509.Certificate:
    return node_keys.load(path, x509.load_pem_x509_certificate, "certificate", "PEM form", is_secret=False)


def _private_key(path: Path) -> CertificateIssuerPrivateKeyTypes:
    form = "PEM form without a password"
    key = node_keys.load(path, lambda data: load_pem_private_key(data, None), "private key", form, is_secret=True)
    return cast("CertificateIssuerPrivateKeyTypes", key)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
