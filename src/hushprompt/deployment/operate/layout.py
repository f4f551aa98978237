"""What an operator needs, as files: one folder for the server, one for each client, one for the authority.

server/        to the server's machine: server.toml, run.toml, certificates, public keys, a systemd unit
clients/NAME/  to that client's machine: client.toml, the authority's certificate, its key, a systemd unit
authority/     stays with whoever runs the federation, off the server: it signs certificates
compose.yaml   all of it on one machine, in containers
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import math
import os
import string
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from hushprompt import checks, files
from hushprompt.config import parse as configs
from hushprompt.deployment.config import PATHS, check_name, load_server
from hushprompt.deployment.operate import certificates, node_keys
from hushprompt.errors import ConfigError
from hushprompt.privacy.config import Channel

LISTEN_ALL = "0.0.0.0"
PEERS = "peers"
"""Folder beside a `client.toml` with the public key of every client, as its owner got them."""
KEYS_MADE = """\
The clients' keys were made here, for a trial: whoever made them could be any client. In production each client makes
its own (`hushprompt federation key node.key`) and sends the public half, `node.key.pub`, to be
`server/node_keys/NAME.pub` at the server and `peers/NAME.pub` at every client. Owners then compare
what `hushprompt federation fingerprint client.toml` prints, by a way that is not the server's."""
KEYS_LEFT = """\
Each client makes its key on its own machine, beside its `client.toml`: `hushprompt federation key node.key`. It sends
the public half, `node.key.pub`, to the server's operator, who puts it at `server/node_keys/NAME.pub` and restarts the
server; and to the owner of every other client, who puts it at `peers/NAME.pub`. Owners then compare what `hushprompt
federation fingerprint client.toml` prints, by a way that is not the server's."""
SAYS_SERVER = "By privacy.noise_at the server adds the noise, and sees each client's clipped sum without it."
TRUSTED = 'Each client.toml allows that, by require_noise_at = "any": "shares" or "client" there would refuse it.'
OWN_DATA = """[data]
name = "folder"
root = "images"                       # CLASS/any.jpg, or train/CLASS/any.jpg and test/CLASS/any.jpg
classes_file = "classes.txt"          # the federation's classes, one a line: no other list is tried on these data"""
OWN_QUESTIONS = "questions.jsonl"
"""Beside `client.toml`: a line for each question."""
SHARE = """[share]                               # a trial: one part of the run's own data set
client = {index}"""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `init` is asked for."""

    name: str
    """Of the federation."""
    clients: tuple[str, ...]
    address: str
    """HOST:PORT by which clients reach the server."""
    run: dict[str, Any]
    """Run config, as read from TOML."""
    classes: tuple[str, ...] = ()
    """Class names of the clients' own images; empty: each client takes its part of the run's data set, for a trial."""
    with_keys: bool = True
    """Whether the clients' keys are made here too, for a trial; else each client makes its own."""

    @property
    def has_own_questions(self) -> bool:
        """Whether each client brings a list of questions of its own: it is no trial, and there are no classes."""
        return not self.with_keys and not getattr(configs.choose("data", dict(self.run["data"])), "needs_classes", True)


def write(folder: Path, wanted: Wanted, now: datetime.datetime) -> str:
    """Write everything, or nothing; what exists is not touched. The folder is for its owner alone.

    Returns:
        What is to be said of it: that clients will trust the server, if they will; else "".

    Raises:
        ConfigError: the folder is not empty, or what is wanted is impossible.
    """
    split_address(wanted.address)
    check_name("the federation's name", wanted.name)
    for client in wanted.clients:
        check_name("a client's name", client)
    if len(set(wanted.clients)) < len(wanted.clients) or not wanted.clients:
        raise ConfigError(f"Name at least one client, each once, got {', '.join(wanted.clients) or 'none'}.")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty, and nothing in it is overwritten. Use another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        made = Path(temporary) / folder.name
        made.mkdir(mode=0o700)
        told = _write(made, wanted, now)
        os.replace(made, folder)
    return told


def _write(folder: Path, wanted: Wanted, now: datetime.datetime) -> str:
    """Write all files into a new folder; return what is to be said."""
    host, _ = split_address(wanted.address)
    authority = (folder / "authority" / "ca.crt", folder / "authority" / "ca.key")
    server = folder / "server"
    certificates.make_authority(*authority, wanted.name, now)
    certificates.make_server(server / "server.crt", server / "server.key", authority, [host], now)
    words = _words(wanted) | {"ends": f"{certificates.read(server / 'server.crt').ends:%Y-%m-%d} UTC"}
    _write_server(server, wanted, words)
    config = load_server(server / "server.toml")  # refuses a run that no federation could train
    is_trusted = config.run.privacy.noise_at == "server"
    words["require_noise_at"] = _toml("any" if is_trusted else "shares")
    unit = config.run.privacy.privacy_unit
    words["require_unit"] = _toml("any" if unit == "example" else unit)
    for index, client in enumerate(wanted.clients):
        _write_client(folder / "clients" / client, wanted, words, client, index)
        if wanted.with_keys:
            _write_key(folder, wanted, client)
    for place in (server, *(folder / "clients" / client for client in wanted.clients)):
        files.write_text(place / "ca.crt", authority[0].read_text(encoding="utf-8"))
    services = "".join(_filled("client-service.yaml", {"client": client}) for client in wanted.clients)
    files.write_text(folder / "compose.yaml", _filled("compose.yaml", words | {"client_services": services}))
    files.write_text(folder / "README.md", _filled("README.md", words))
    files.write_text(folder / ".gitignore", "# Private keys and what is learned belong in no repository.\n*\n")
    if not is_trusted or Channel.GLOBAL not in config.run.method.channels:
        return ""
    return f"{config.why_not_shares or SAYS_SERVER} {TRUSTED}"


def split_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT.

    >>> split_address("server.example.org:8000")
    ('server.example.org', 8000)

    Raises:
        ConfigError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ConfigError(f"An address is HOST:PORT, such as server.example.org:8000, got {address!r}.")
    checks.in_range(1, 65535, port=int(port))
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, and can be reached by it alone.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "server.example.org")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_address(host: str) -> bool:
    """Whether a host is an IP address, or this machine by its name."""
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return host == "localhost"


def _words(wanted: Wanted) -> dict[str, str]:
    """Return what templates are filled with."""
    host, port = split_address(wanted.address)
    privacy = wanted.run.get("privacy", {})
    epsilon, delta = float(privacy.get("epsilon", math.inf)), float(privacy.get("delta", 1e-5))
    of_metrics = wanted.run.get("evaluation", {}).get("metrics_epsilon", "none")
    return {
        "name": wanted.name,
        "name_toml": _toml(wanted.name),
        "clients_toml": _toml(list(wanted.clients)),
        "user": f"{os.getuid()}:{os.getgid()}",
        "published_port": "" if is_loopback(host) else f'\n    ports: ["{port}:{port}"]',
        "own_name": "" if is_address(host) else f'\n    extra_hosts: ["{host}:127.0.0.1"]',
        "classes_line": 'classes_file = "classes.txt"          # class names in label order, one a line'
        if wanted.classes
        else "# classes: those of the run's data set",
        "listen_toml": _toml(host if is_loopback(host) else LISTEN_ALL),
        "port": str(port),
        "host": host,
        "address": wanted.address,
        "address_toml": _toml(wanted.address),
        "max_epsilon": f"{epsilon:g}",
        "max_delta": f"{delta:g}",
        "max_metrics_epsilon": f"{0.0 if of_metrics == 'none' else of_metrics}",
        "keys_text": KEYS_MADE if wanted.with_keys else KEYS_LEFT,
        "client_commands": "\n".join(
            f"hushprompt federation client clients/{client}/client.toml" for client in wanted.clients
        ),
    }


def _write_server(folder: Path, wanted: Wanted, words: Mapping[str, str]) -> None:
    left_out = {"references", "runtime"}
    if wanted.classes:
        left_out |= {"data", "partition"}
        files.write_text(folder / "classes.txt", "".join(f"{name}\n" for name in wanted.classes))
    run = {key: value for key, value in wanted.run.items() if key not in left_out}
    run["privacy"] = {"noise_source": "secure", **run.get("privacy", {})}
    if "num_clients" in run.get("partition", {}):
        run["partition"] = {**run["partition"], "num_clients": len(wanted.clients)}
    files.write_text(folder / "run.toml", tomli_w.dumps(run))
    files.write_text(folder / "server.toml", _filled("server.toml", words))
    files.write_text(folder / "hushprompt-server.service", _filled("server.service", words))
    (folder / "node_keys").mkdir()


def _write_client(folder: Path, wanted: Wanted, words: Mapping[str, str], client: str, index: int) -> None:
    own = {"client": client, "client_toml": _toml(client)}
    own["data_section"] = _data_section(wanted, index)
    own["chosen_sections"] = _chosen_sections(wanted)
    files.write_text(folder / "client.toml", _filled("client.toml", {**words, **own}))
    if wanted.classes:
        files.write_text(folder / "classes.txt", "".join(f"{name}\n" for name in wanted.classes))
    (folder / PEERS).mkdir(exist_ok=True)
    files.write_text(folder / "hushprompt-client.service", _filled("client.service", {**words, **own}))


def _data_section(wanted: Wanted, index: int) -> str:
    """Return the data of a client: its own, or for a trial its part of the run's."""
    if wanted.classes:
        return OWN_DATA
    if wanted.has_own_questions:
        return tomli_w.dumps({"data": {**wanted.run["data"], "file": OWN_QUESTIONS}})
    return SHARE.format(index=index)


def _write_key(folder: Path, wanted: Wanted, client: str) -> None:
    """Make a client's key, and give its public half to the server and to every client, as its owner would."""
    public = node_keys.make(folder / "clients" / client / "node.key", client).read_text(encoding="utf-8")
    for place in (folder / "server" / "node_keys", *(folder / "clients" / other / PEERS for other in wanted.clients)):
        files.write_text(place / f"{client}{node_keys.SUFFIX}", public)


def _chosen_sections(wanted: Wanted) -> str:
    """Return the run's backbone and data as sections of `client.toml`, where they are files or have to be fetched."""
    chosen = {}
    is_own = wanted.classes or wanted.has_own_questions
    for name in ("backbone",) if is_own else ("backbone", "data"):
        values = dict(wanted.run[name])
        if not getattr(configs.choose(name, values), "is_embedded", False):
            placed = {key: str(Path(values[key]).resolve()) for key in PATHS if values.get(key)}
            chosen[name] = values | placed
    return f"\n{tomli_w.dumps(chosen)}" if chosen else ""


def _filled(name: str, words: Mapping[str, str]) -> str:
    text = (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")
    return string.Template(text).substitute(words)


def _toml(value: Any) -> str:
    """Write a TOML value on one line."""
    return json.dumps(value)
