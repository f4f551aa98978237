"""A federation on separate machines, from Python: what its operator and its clients' owners do.

Each function does what the command `hushprompt federation` of its name does (`serve` is `server`, `join` is `client`)
and returns what that prints. `say` gets a line for each thing that happens; left out, nothing is said.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hushprompt import checks, extras, files
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.deployment.config import REFUSALS, load_client, load_server, load_server_process
from hushprompt.deployment.operate import status as records_of
from hushprompt.deployment.operate.status import ClientStatus, Connection, FederationOutcome, ServerStatus
from hushprompt.deployment.server_record import AGREEMENT, CHECKED, CheckOutcome, rounds
from hushprompt.errors import ConfigError, HushpromptError, files_told
from hushprompt.runs import records

if TYPE_CHECKING:
    from hushprompt.deployment.config import ServerConfig, ServerProcessConfig
    from hushprompt.deployment.flower.control import Control, FlowerRun
    from hushprompt.deployment.operate.certificates import Validity
    from hushprompt.deployment.operate.supervise import ManagedProcess

POLL_S = 2.0
"""Seconds between two looks at a run."""
DEAD_S = 8.0
"""Seconds after which a run that no process works on is taken for dead."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Roster:
    """Who may take part in secure aggregation."""

    clients: tuple[str, ...]
    """Names, in order."""
    fingerprint: str
    """SHA-256 of all names and public keys, in groups of four digits."""


def _silent(line: str) -> None:
    """Say nothing."""


@files_told()
def init(
    folder: str | Path,
    clients: Sequence[str],
    *,
    name: str = "trial",
    address: str = "127.0.0.1:8000",
    run: RunConfig | Mapping[str, Any] | str | Path | None = None,
    classes: Sequence[str] = (),
    with_keys: bool = True,
    say: Say = _silent,
) -> Path:
    """Write configs, certificates, keys, systemd units and a compose file; nothing is overwritten.

    Args:
        folder: new or empty.
        clients: names of the clients.
        name: of the federation.
        address: HOST:PORT by which clients reach the server.
        run: method, privacy, backbone and rounds: a config, its plain values, a file, or the name of a preset.
        classes: class names where clients bring their own images; empty: a trial with the run's data.
        with_keys: make the clients' keys too; else each client makes its own.
        say: gets one line where clients will trust the server with their sums.

    Returns:
        The README in the folder, which says what goes where.

    Raises:
        ConfigError: the folder is not empty, or no federation could train such a run.
    """
    _require()
    checks.several(clients=clients, classes=classes)
    from hushprompt.deployment.operate import layout

    wanted = layout.Wanted(
        name=name,
        clients=tuple(clients),
        address=address,
        run=_values(run),
        classes=tuple(classes),
        with_keys=with_keys,
    )
    if told := layout.write(Path(folder), wanted, _now()):
        say(told)
    return Path(folder) / "README.md"


@files_told()
def key(file: str | Path) -> Path:
    """Make a client's key pair, and return the file of the public half, for the server's operator.

    Raises:
        ConfigError: the file exists.
    """
    _require()
    from hushprompt.deployment.operate import node_keys

    path = Path(file)
    return node_keys.make(path, path.resolve().parent.name)


@files_told()
def fingerprint(place: str | Path) -> Roster:
    """Return who may take part in secure aggregation, by the public keys that an owner pinned, as one short text.

    Owners compare it by a way that is not the server's, such as a telephone: where it is the same at all of them, no
    server can stand for one of them.

    Args:
        place: the folder of public keys, NAME.pub for every client; or `client.toml`, with the folder that it names
            and its own key.

    Raises:
        ConfigError: a key is missing, damaged, of another kind, or that of two clients.
    """
    _require()
    from hushprompt.deployment import roster

    path = Path(place)
    keys = roster.read_peers(path) if path.is_dir() else roster.pinned_keys(load_client(path))
    return Roster(clients=tuple(sorted(keys)), fingerprint=roster.fingerprint(keys))


@files_told()
def renew(folder: str | Path) -> tuple[Path, Validity]:
    """Make a new server certificate for the same names, in a folder that `init` made with its authority.

    Returns:
        The certificate's file, and what it says. The server reads it when it starts.
    """
    _require()
    from hushprompt.deployment.operate import certificates

    server, authority = Path(folder) / "server", Path(folder) / "authority"
    certificate = server / "server.crt"
    certificates.renew_server(certificate, server / "server.key", (authority / "ca.crt", authority / "ca.key"), _now())
    return certificate, certificates.read(certificate)


@files_told()
def serve(file: str | Path, *, insecure: bool = False, say: Say = _silent) -> None:
    """Run the server of a `server.toml` until SIGTERM or Ctrl-C; clients connect to it, and `run` trains on them.

    Args:
        file: `server.toml`.
        insecure: no TLS, no keys: for trials over loopback only.
        say: gets a line for each thing that happens.

    Raises:
        ConfigError: something must be put right before it can start.
        ResumeError: it runs already.
    """
    _require()
    from hushprompt.deployment.operate import server as ends

    config = load_server_process(Path(file))
    _keep_running(ends.managed_process(Path(file), config, say, is_insecure=insecure), ends.flower_folder(config), say)


@files_told()
def join(file: str | Path, *, insecure: bool = False, say: Say = _silent) -> None:
    """Run the client of a `client.toml` until SIGTERM or Ctrl-C; it answers the server as its owner allows.

    Args:
        file: `client.toml`.
        insecure: no TLS, no keys: for trials over loopback only.
        say: gets a line for each thing that happens.

    Raises:
        ConfigError: something must be put right before it can start.
        ResumeError: it runs already.
    """
    _require()
    from hushprompt.deployment.operate import client as ends

    config = load_client(Path(file))
    files.own_folder(config.store)
    _keep_running(ends.managed_process(Path(file), config, say, is_insecure=insecure), ends.flower_folder(config), say)


@files_told()
def run(file: str | Path, *, leave_step: bool = False, insecure: bool = False, say: Say = _silent) -> FederationOutcome:
    """Train, from the server's machine, until the run is over; in the folder of a run that stopped, it goes on.

    An exception, Ctrl-C among them, ends this function and not the run: `stop` does that.

    Args:
        file: `server.toml`.
        leave_step: go on without the step of noise shares that waits for a client; it stays charged, is not used, and
            stands in the record.
        insecure: no TLS, no keys: for trials over loopback only.
        say: gets a line for each thing that happens.

    Raises:
        ConfigError: a run is going on already.
        LinkError: the server's process does not answer.
    """
    _require()
    from hushprompt.deployment.operate import server as ends

    process = load_server_process(Path(file))
    control = ends.control(process, is_insecure=insecure)
    _end_dead_runs(control, process, file, say)
    num_before = len(rounds(process.folder))
    state = _trained(control, Path(file), {"leave-step": True} if leave_step else {}, say)
    return records_of.outcome(load_server(Path(file)), num_before, state)


@files_told()
def check(file: str | Path, *, insecure: bool = False, say: Say = _silent) -> CheckOutcome:
    """Ask the clients to join and to look at the plan, from the server's machine; nothing is trained or charged.

    Each client checks data, model, versions and its owner's limits, as before training, and stores nothing of it.

    Raises:
        ConfigError: a run is going on.
        LinkError: the server's process does not answer.
    """
    _require()
    from hushprompt.deployment.operate import server as ends

    process = load_server_process(Path(file))
    control = ends.control(process, is_insecure=insecure)
    _end_dead_runs(control, process, file, say)
    checked = process.folder / CHECKED
    checked.unlink(missing_ok=True)
    state = _trained(control, Path(file), {"only-check": True}, say)
    found = records.from_json(CheckOutcome, records.read_json(checked)) if checked.exists() else CheckOutcome()
    return dataclasses.replace(found, state=state)


@files_told()
def simulate(folder: str | Path) -> FederationOutcome:
    """Train a federation that `init` wrote in Flower's simulation (Ray): all on this machine, no server, no keys.

    It writes where the real one would: run folder, stores and their ledgers.
    """
    extras.require("simulation", "Flower's simulation", "flwr", "ray")
    from hushprompt.deployment.flower import simulation

    file = Path(folder) / "server" / "server.toml"
    config = load_server(file)
    clients = [Path(folder) / "clients" / name / "client.toml" for name in config.federation.clients]
    for client_file in clients:
        load_client(client_file)
    num_before = len(rounds(config.folder))
    simulation.simulate(file, clients)
    return records_of.outcome(config, num_before)


@files_told()
def stop(file: str | Path, *, insecure: bool = False) -> int:
    """Stop the run that is going on, from the server's machine, and return how many that were; `run` goes on with it.

    Raises:
        LinkError: the server's process does not answer.
    """
    _require()
    from hushprompt.deployment.operate import server as ends

    control = ends.control(load_server_process(Path(file)), is_insecure=insecure)
    active = [state for state in control.runs() if not state.is_over]
    for state in active:
        control.stop(state.run_id)
    return len(active)


@files_told()
def status(file: str | Path, *, insecure: bool = False) -> ServerStatus | ClientStatus:
    """Return what happened at the end that a `server.toml` or `client.toml` belongs to.

    Rounds, who took part, what was refused, what was spent.
    """
    if "client" in configs.read(Path(file)):
        return records_of.client_status(load_client(Path(file)))
    config = load_server(Path(file))
    try:
        connection: Connection | str = _connection(config, insecure=insecure)
    except HushpromptError as error:
        connection = str(error)
    return records_of.server_status(config, connection)


def _values(run: RunConfig | Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """Return the plain values of a run config, however it is given."""
    if isinstance(run, RunConfig):
        return tomllib.loads(run.to_toml())
    if isinstance(run, Mapping):
        return dict(run)
    return configs.read(configs.locate(None if run is None else Path(run)))


def _keep_running(managed: ManagedProcess, folder: Path, say: Say) -> None:
    """Keep the process of one end running, with its folder held for it alone."""
    from hushprompt.deployment.operate.supervise import Supervisor

    files.own_folder(folder)
    with records.locked(folder):
        Supervisor(managed, say).run()


def _end_dead_runs(control: Control, config: ServerProcessConfig, file: str | Path, say: Say) -> None:
    """Stop runs that the SuperLink takes for active though nothing works on them, as after a crash.

    Whatever works on a run holds its folder; a new one does so soon.

    Raises:
        ConfigError: a run is going on.
    """
    end = time.monotonic() + DEAD_S
    while active := [state for state in control.runs() if not state.is_over]:
        if records.is_locked(config.folder):
            raise ConfigError(
                f"A run is {active[0].status} already. Look at it with `hushprompt federation status {file}`, or end "
                f"it with `hushprompt federation stop {file}`."
            )
        if time.monotonic() >= end:
            say("A run that was going on has died: it is ended.")
            for state in active:
                control.stop(state.run_id)
        time.sleep(min(POLL_S, DEAD_S / 8))


def _trained(control: Control, file: Path, settings: Mapping[str, bool], say: Say) -> FlowerRun:
    """Start a run, say each round and refusal as it comes, and return how it ended."""
    from hushprompt.deployment.flower.environment import BUNDLE

    folder = load_server_process(file).folder
    refused = folder / REFUSALS
    num_rounds, num_refused = len(rounds(folder)), records_of.num_refusals(refused)
    run_id = control.start(BUNDLE, settings)
    say("It begins when enough clients have joined.")
    config = _server_config(control, run_id, file)
    if config.why_not_shares and not (folder / AGREEMENT).exists():
        say(config.why_not_shares)
    while True:
        state = next(state for state in control.runs() if state.run_id == run_id)
        for line in records_of.refusals(refused, num_refused):
            say(line)
            num_refused += 1
        for record in rounds(folder)[num_rounds:]:
            say(records_of.round_line(record, records_of.num_rounds(config.run), config.run.privacy.noise_source))
            num_rounds += 1
        if state.is_over:
            return state
        time.sleep(POLL_S)


def _server_config(control: Control, run_id: int, file: Path) -> ServerConfig:
    """Read the config of a run that was started: imports take seconds, and the run's own process needs them too.

    Raises:
        ConfigError: it cannot be read; the run is stopped.
    """
    try:
        return load_server(file)
    except HushpromptError:
        control.stop(run_id)
        raise


def _connection(config: ServerConfig, *, insecure: bool) -> Connection:
    """Return who is connected and how the newest run is, from the server's process on this machine."""
    _require()
    from hushprompt.deployment.operate import server as ends

    control = ends.control(config, is_insecure=insecure)
    file = ends.names_file(config)
    names = records.read_json(file) if file.exists() else {}
    online = [names.get(node.node_id, f"node {node.node_id}") for node in control.nodes() if node.is_online]
    return Connection(clients=tuple(sorted(online)), newest_run=next(iter(control.runs()), None))


def _now() -> datetime.datetime:
    """Return the time in UTC."""
    return datetime.datetime.now(datetime.UTC)


def _require() -> None:
    """Raise ConfigError unless what the processes of a federation need is installed."""
    extras.require("flower", "A federation", "flwr", "cryptography")
