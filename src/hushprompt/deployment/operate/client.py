"""The process of a client: its command, environment and checks."""

from __future__ import annotations

import datetime
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hushprompt.deployment import roster
from hushprompt.deployment.config import FLOWER, ClientConfig
from hushprompt.deployment.flower import clientapp, environment
from hushprompt.deployment.operate import certificates, node_keys, probe
from hushprompt.deployment.operate.layout import is_loopback, split_address
from hushprompt.deployment.operate.supervise import ManagedProcess
from hushprompt.errors import ConfigError

LOOPBACK = "127.0.0.1"
NOT_ADMITTED = "[code: 2004]"
"""What SuperNode says when the server knows its key not, or takes its last connection for alive."""
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"


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
        if problem := probe.check_trust(host, port, Path(link.ca)):
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
    node_keys.check_private(Path(config.link.key))
    return certificates.check(Path(config.link.ca), datetime.datetime.now(datetime.UTC))


def pinned_line(config: ClientConfig) -> str:
    """Say whose public keys are pinned here, or why no run can have noise shares yet."""
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
