"""The process of the server: its command, environment and checks, and which clients may connect."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hushprompt import files
from hushprompt.deployment.config import ServerProcessConfig
from hushprompt.deployment.flower import environment
from hushprompt.deployment.operate import certificates, node_keys
from hushprompt.deployment.operate.layout import is_loopback
from hushprompt.deployment.operate.supervise import ManagedProcess
from hushprompt.errors import ConfigError, HushpromptError, LinkError
from hushprompt.runs import records

if TYPE_CHECKING:
    from hushprompt.deployment.flower.control import Control

LOOPBACK, ALL_ADDRESSES = "127.0.0.1", ("0.0.0.0", "::")
"""This machine; and what listens at all its addresses."""
START_S = 180.0
"""Seconds that a SuperLink has to answer after its start."""
POLL_S = 1.0


def managed_process(
    path: Path, config: ServerProcessConfig, say: Callable[[str], None], *, is_insecure: bool
) -> ManagedProcess:
    """Return the process to run.

    Args:
        path: of `server.toml`.
        config: what is in it.
        say: gets a line for what happens.
        is_insecure: without TLS and keys; for loopback only.

    Raises:
        ConfigError: it would be reachable from elsewhere without TLS.
    """
    link = config.link
    if is_insecure and not is_loopback(link.host):
        raise ConfigError(f"--insecure is for trials on one machine: link.host must be 127.0.0.1, got {link.host}.")

    def check() -> None:
        files.own_folder(flower_folder(config))
        if is_insecure:
            return
        for warning in check_link(config):
            say(warning)
        public_keys(config)

    def on_start() -> None:
        since = datetime.datetime.now(datetime.UTC)
        try:
            for number in end_earlier_runs(config, since, is_insecure=is_insecure):
                say(f"Run {number} ended with the server's last process: `hushprompt federation run` goes on with it.")
        except HushpromptError as error:
            say(str(error))
        if is_insecure:
            say(f"The server listens at {link.host}:{link.port}, without TLS and without keys: for a trial only.")
            return
        try:
            names = admit(config)
        except HushpromptError as error:
            say(str(error))
            return
        records.write_json(names_file(config), names)
        say(f"The server listens at {link.host}:{link.port}. May connect: {', '.join(sorted(names.values()))}.")

    variables = _variables(path, config, is_insecure)
    return ManagedProcess("The server", _command(config, is_insecure), variables, check, on_start)


def _command(config: ServerProcessConfig, is_insecure: bool) -> list[str]:
    link = config.link
    command = [
        sys.executable, "-P", "-m", "hushprompt.deployment.flower.gate",
        "--host", link.host, "--port", str(link.port), "--database", str(database(config)),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    if is_insecure:
        return [*command, "--insecure"]
    tls = ["--ssl-certfile", link.certificate, "--ssl-keyfile", link.key, "--ssl-ca-certfile", link.ca]
    return [*command, *tls, "--enable-supernode-auth"]


def _variables(path: Path, config: ServerProcessConfig, is_insecure: bool) -> dict[str, str]:
    """Return the environment of the server's process."""
    configs = {environment.SERVER_CONFIG: path}
    if not is_insecure:
        configs[environment.NODE_NAMES] = names_file(config)
    variables = environment.environment(flower_folder(config) / "flwr", configs)
    variables.pop("FORWARDED_ALLOW_IPS", None)  # with it, a request could say itself where it comes from
    return variables


def control(config: ServerProcessConfig, *, is_insecure: bool = False) -> Control:
    """Return a connection to the server's process, which runs on this machine."""
    from hushprompt.deployment.flower.control import Control

    link = config.link
    host = LOOPBACK if link.host in ALL_ADDRESSES else link.host
    return Control(host, link.port, None if is_insecure or not link.ca else Path(link.ca))


def check_link(config: ServerProcessConfig) -> list[str]:
    """Refuse a server that nobody could trust, before it starts; give warnings.

    Raises:
        ConfigError: a setting, certificate or key is missing or not good.
    """
    link = config.link
    for name in ("ca", "certificate", "key", "node_keys"):
        if not getattr(link, name):
            raise ConfigError(f"link.{name} is missing in server.toml. `hushprompt federation init` shows a whole one.")
    now = datetime.datetime.now(datetime.UTC)
    warnings = certificates.check_server(Path(link.certificate), Path(link.key), Path(link.ca), now)
    names = certificates.read(Path(link.certificate)).names
    if link.host not in (*ALL_ADDRESSES, *names):
        raise ConfigError(
            f"The server's own processes reach it at link.host {link.host}, which its certificate is not for "
            f"({', '.join(names)}). Listen at 0.0.0.0, or make a certificate for that address."
        )
    return warnings


def public_keys(config: ServerProcessConfig) -> dict[str, bytes]:
    """Return the public keys (PEM) of the clients that have one, by name.

    Raises:
        ConfigError: a file is no key, or of nobody in federation.clients, or two clients have the same.
    """
    folder = Path(config.link.node_keys)
    found = {path.name.removesuffix(node_keys.SUFFIX): path for path in sorted(folder.glob(f"*{node_keys.SUFFIX}"))}
    if strangers := set(found) - set(config.federation.clients):
        raise ConfigError(
            f"{folder} has the key of {', '.join(sorted(strangers))}, who is not in federation.clients. "
            "Add the name there, or remove the file."
        )
    keys = {name: node_keys.read_public(path) for name, path in found.items()}
    for name, key in keys.items():
        for other in keys:
            if other < name and keys[other] == key:
                raise ConfigError(f"{other} and {name} have the same key in {folder}. Each needs its own.")
    return keys


def end_earlier_runs(config: ServerProcessConfig, since: datetime.datetime, *, is_insecure: bool) -> list[int]:
    """Wait for a SuperLink that started at `since`, and end the runs that it remembers as active: they died before it.

    Returns:
        Their ids.

    Raises:
        LinkError: the SuperLink does not answer in time.
    """
    connection = answering(config, is_insecure=is_insecure)
    active = [state for state in connection.runs() if not state.is_over]
    found = [state.run_id for state in active if datetime.datetime.fromisoformat(state.begun) < since]
    for run_id in found:
        connection.stop(run_id)
    return found


def answering(config: ServerProcessConfig, *, is_insecure: bool = False) -> Control:
    """Wait for the SuperLink, and return a connection to it; LinkError if it does not answer in time."""
    connection = control(config, is_insecure=is_insecure)
    deadline = time.monotonic() + START_S
    while True:
        try:
            connection.runs()
            return connection
        except LinkError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def admit(config: ServerProcessConfig) -> dict[str, str]:
    """Wait for the SuperLink, and let in exactly the clients whose keys are in `link.node_keys`.

    Returns:
        Client names by node id.

    Raises:
        ConfigError: the keys are not good.
        LinkError: the SuperLink does not answer in time, or refuses a key.
    """
    keys = public_keys(config)
    return answering(config).admit(keys)


def database(config: ServerProcessConfig) -> Path:
    """Return the file in which SuperLink keeps its clients and runs."""
    return Path(config.link.database or config.folder / "link" / "superlink.db")


def flower_folder(config: ServerProcessConfig) -> Path:
    """Return the folder of that file; what else the process keeps lies there too."""
    return database(config).parent


def names_file(config: ServerProcessConfig) -> Path:
    """Return the file with client names by node id."""
    return flower_folder(config) / "node_names.json"
