"""The process of a client: its command, environment and checks, such as whether its server can be trusted."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hushprompt.deployment.config import FLOWER, ClientConfig
from hushprompt.deployment.flower import clientapp, environment
from hushprompt.deployment.operate import certificates, node_keys
from hushprompt.deployment.operate.layout import is_loopback, split_address
from hushprompt.deployment.operate.supervise import ManagedProcess
from hushprompt.errors import ConfigError

LOOPBACK = "127.0.0.1"
NOT_ADMITTED = "[code: 2004]"
"""What SuperNode says when the server knows its key not, or takes its last connection for alive."""
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
TIMEOUT_S = 10.0
EXPIRED, NOT_YET, WRONG_NAME = 10, 9, (62, 64)
"""OpenSSL's codes: a certificate that is over, that has not begun, and that is for other names or addresses."""


def managed_process(
    path: Path, config: ClientConfig, say: Callable[[str], None], *, is_insecure: bool
) -> ManagedProcess:
    """Return the process to run.

    Args:
        path: of `client.toml`.
        config: what is in it.
        say: gets a line for what happens.
        is_insecure: without TLS and keys; for loopback only.

    Raises:
        ConfigError: it would speak to another machine without TLS.
    """
    link, folder = config.link, flower_folder(config)
    host, port = split_address(link.superlink)
    if is_insecure and not is_loopback(host):
        raise ConfigError(f"--insecure is for trials on one machine: link.superlink must be on 127.0.0.1, got {host}.")
    command = [
        sys.executable, "-P", "-m", "hushprompt.deployment.flower.supernode",
        "--superlink", link.superlink, "--host", LOOPBACK, "--port", str(free_port()),
    ]  # fmt: skip
    if is_insecure:
        command += ["--insecure"]
    else:
        command += ["--root-certificates", link.ca, "--auth-supernode-private-key", link.key]
    variables = environment.environment(folder, {environment.CLIENT_CONFIG: path})
    # Comes before Flower's own commands: a client runs what is installed there, not what a server sends.
    variables["PATH"] = os.pathsep.join([str(folder / clientapp.COMMANDS), variables["PATH"]])

    def check() -> None:
        clientapp.install(folder / clientapp.COMMANDS)
        if is_insecure:
            return
        for warning in check_link(config):
            say(warning)
        if config.owner.require_noise_at == "shares":
            say(pinned_line(config))
        if problem := check_trust(host, port, Path(link.ca)):
            say(f"{problem} The client keeps retrying.")

    return ManagedProcess(f"The client {config.client.name}", command, variables, check, explain=explain)


def check_link(config: ClientConfig) -> list[str]:
    """Refuse what no connection could be made with; give warnings.

    Raises:
        ConfigError: a setting, certificate or key is missing or not good.
    """
    for name in ("ca", "key"):
        if not getattr(config.link, name):
            raise ConfigError(f"link.{name} is missing in client.toml. `hushprompt federation init` shows a whole one.")
    node_keys.load_private(Path(config.link.key))
    return certificates.check(Path(config.link.ca), datetime.datetime.now(datetime.UTC))


def pinned_line(config: ClientConfig) -> str:
    """Say whose public keys are pinned here, or why no run can have noise shares yet."""
    from hushprompt.deployment import roster  # with torch, which keeping a process running does not need

    try:
        keys = roster.pinned_keys(config)
    except ConfigError as error:
        return (
            f"Until other clients' public keys are pinned, this client takes part in no run with noise shares: {error}"
        )
    return f"Keys pinned of {', '.join(sorted(keys))}; their fingerprint: {roster.fingerprint(keys)}"


def explain(lines: Sequence[str]) -> str:
    """Say why a SuperNode ended, if its last lines tell."""
    text = "\n".join(lines)
    if NOT_ADMITTED in text:
        return (
            "The server did not let it in. Either its key is not known there (NAME.pub in the server's node_keys), or "
            "the server still waits for its last connection, which takes up to a minute after a crash."
        )
    if UNTRUSTED in text:
        return "The server's certificate is not one that this client trusts."
    return ""


def free_port() -> int:
    """Return a port of this machine that nobody uses: for what the client's own processes say to each other."""
    with socket.socket() as probe_socket:
        probe_socket.bind((LOOPBACK, 0))
        return int(probe_socket.getsockname()[1])


def flower_folder(config: ClientConfig) -> Path:
    """Return the folder in which Flower keeps what it needs."""
    return config.store / FLOWER


def check_trust(host: str, port: int, ca: Path) -> str:
    """Shake hands with a server.

    Args:
        host: name or address.
        port: of the server.
        ca: certificate of the authority that must have signed the server's.

    Returns:
        What keeps the server from being reached just now; empty if nothing does.

    Raises:
        ConfigError: something answers that cannot be trusted.
    """
    context = ssl.create_default_context(cafile=str(ca))
    where = f"The server at {host}:{port}"
    try:
        with (
            socket.create_connection((host, port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == EXPIRED:
            reason = "shows a certificate that has expired. Whoever runs the federation must renew it and restart it."
        elif error.verify_code == NOT_YET:
            reason = "shows a certificate that is not good yet. Is this machine's clock right?"
        elif error.verify_code in WRONG_NAME:
            reason = "shows a certificate for another name or address. Use the name that the certificate is for."
        else:
            reason = f"shows a certificate that {ca} did not sign: another server, or another authority's file."
        raise ConfigError(f"{where} {reason}") from error
    except ssl.SSLError as error:
        raise ConfigError(f"{where} does not speak TLS ({error.reason}). Is this the right port?") from error
    except OSError as error:
        return f"{where} cannot be reached ({error.strerror or error})."
