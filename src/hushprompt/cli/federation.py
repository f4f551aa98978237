"""The commands of a federation on separate machines: what its operator and its clients' owners type."""

from __future__ import annotations

import datetime
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hushprompt.cli.console import INTERRUPTED, console
from hushprompt.config import parse as configs
from hushprompt.deployment.config import load_client, load_server
from hushprompt.deployment.operate import status as records_of
from hushprompt.errors import ConfigError, HushpromptError
from hushprompt.reporting import tables
from hushprompt.runs import records

if TYPE_CHECKING:
    from hushprompt.deployment.config import ClientConfig, ServerConfig
    from hushprompt.deployment.flower.control import RunState

POLL_S = 2.0
"""Seconds between two looks at a run."""
ServerFile = Annotated[Path, typer.Argument(metavar="SERVER.toml", help="Config of the server.")]
ClientFile = Annotated[Path, typer.Argument(metavar="CLIENT.toml", help="Config of a client.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="No TLS, no keys: for trials over loopback only.")]


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty folder.")],
    clients: Annotated[str, typer.Option(help="Names of the clients, with commas.")],
    name: Annotated[str, typer.Option(help="Name of the federation.")] = "trial",
    address: Annotated[str, typer.Option(help="HOST:PORT by which clients reach the server.")] = "127.0.0.1:8000",
    run: Annotated[Path | None, typer.Option(help="Run config or preset: method, privacy, backbone, rounds.")] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="File with one class name a line: clients bring their own images. None: a trial."),
    ] = None,
    keys: Annotated[bool, typer.Option(help="Make the clients' keys too; else each site makes its own.")] = True,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override in the run config.")] = None,
) -> None:
    """Write configs, certificates, keys, systemd units and a compose file; nothing is overwritten."""
    _needs_extra()
    from hushprompt.deployment.operate import layout

    values = configs.read(configs.locate(run))
    for setting in set_ or []:
        values = configs.override(values, setting)
    wanted = layout.Wanted(
        name=name,
        clients=tuple(part.strip() for part in clients.split(",") if part.strip()),
        address=address,
        run=values,
        classes=() if classes is None else _lines(classes),
        with_keys=keys,
    )
    layout.write(folder, wanted, _now())
    console.print(f"  {folder / 'README.md'} says what goes where", soft_wrap=True)


def key(file: Annotated[Path, typer.Argument(metavar="FILE", help="Private key to make; FILE.pub is public.")]) -> None:
    """Make a client's key pair: the private half stays, the public half goes to the server's operator."""
    _needs_extra()
    from hushprompt.deployment.operate import node_keys

    public = node_keys.make(file, file.resolve().parent.name)
    console.print(f"  {file}: keep it here, and nowhere else", soft_wrap=True)
    console.print(f"  {public}: for the server's operator, as node_keys/NAME.pub", soft_wrap=True)


def renew(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `init` made, with its authority.")],
) -> None:
    """Make a new server certificate for the same names; clients keep what they have."""
    _needs_extra()
    from hushprompt.deployment.operate import certificates

    certificate, private = folder / "server" / "server.crt", folder / "server" / "server.key"
    authority = (folder / "authority" / "ca.crt", folder / "authority" / "ca.key")
    certificates.renew_server(certificate, private, authority, _now())
    validity = certificates.read(certificate)
    console.print(
        f"  {certificate} for {', '.join(validity.names)}, until {validity.ends:%Y-%m-%d} UTC", soft_wrap=True
    )
    console.print("Copy it and its key to the server, and restart the server.")


def server(file: ServerFile, insecure: Insecure = False) -> None:
    """Run the server: clients connect to it, and `run` trains on them. Ctrl-C or SIGTERM ends it."""
    _needs_extra()
    from hushprompt.deployment.operate import server as ends
    from hushprompt.deployment.operate.supervise import Supervisor

    config = load_server(file)
    job = ends.job(file, config, _say, is_insecure=insecure)
    ends.place(config).mkdir(parents=True, exist_ok=True)
    with records.locked(ends.place(config)):
        Supervisor(job, _say).run()


def client(file: ClientFile, insecure: Insecure = False) -> None:
    """Run a client: it answers the server as its owner allows. Ctrl-C or SIGTERM ends it."""
    _needs_extra()
    from hushprompt.deployment.operate import client as ends
    from hushprompt.deployment.operate.supervise import Supervisor

    config = load_client(file)
    job = ends.job(file, config, _say, is_insecure=insecure)
    ends.place(config).mkdir(parents=True, exist_ok=True)
    with records.locked(ends.place(config)):
        Supervisor(job, _say).run()


def run(file: ServerFile, insecure: Insecure = False) -> None:
    """Train, from the server's machine, and show it; the exit status is 0 if the run was completed.

    In the folder of a run that stopped, it goes on.
    """
    _needs_extra()
    from hushprompt.deployment.flower.environment import BUNDLE
    from hushprompt.deployment.operate import server as ends

    config = load_server(file)
    control = ends.control(config, is_insecure=insecure)
    if active := [state for state in control.runs() if not state.is_over]:
        raise ConfigError(
            f"A run is {active[0].status} already. Look at it with `hushprompt federation status {file}`, or end it "
            f"with `hushprompt federation stop {file}`."
        )
    run_id = control.start(BUNDLE)
    _say("Training begins when enough clients have joined.")
    try:
        state = _watch(config, lambda: next(state for state in control.runs() if state.run_id == run_id))
    except KeyboardInterrupt:
        console.print("The run goes on without this command. Look at it, or end it:")
        console.print(f"  hushprompt federation status {file}", soft_wrap=True)
        console.print(f"  hushprompt federation stop {file}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    _show_meaning(config.folder)
    console.print(_outcome(state), markup=False, soft_wrap=True)
    console.print(f"  {config.folder}", soft_wrap=True)
    if not state.is_completed:
        console.print("The same command goes on after its last round.")
        raise typer.Exit(1)


def simulate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `init` made.")],
) -> None:
    """Train a federation that `init` wrote in Flower's simulation (Ray): all on this machine, no server, no keys.

    It writes where the real one would: run folder, stores and their ledgers.
    """
    _needs_extra("flwr", "ray")
    from hushprompt.deployment.flower import simulation

    file = folder / "server" / "server.toml"
    config = load_server(file)
    clients = [folder / "clients" / name / "client.toml" for name in config.federation.clients]
    for client_file in clients:
        load_client(client_file)
    num_shown = len(records_of.rounds(config.folder))
    simulation.simulate(file, clients)
    for record in records_of.rounds(config.folder)[num_shown:]:
        console.print(records_of.round_line(record, config.run.training.num_rounds), markup=False, soft_wrap=True)
    _show_meaning(config.folder)
    console.print(f"  {config.folder}", soft_wrap=True)


def stop(file: ServerFile, insecure: Insecure = False) -> None:
    """Stop the run that is going on, from the server's machine; `run` goes on with it."""
    _needs_extra()
    from hushprompt.deployment.operate import server as ends

    control = ends.control(load_server(file), is_insecure=insecure)
    active = [state for state in control.runs() if not state.is_over]
    for state in active:
        control.stop(state.run_id)
    console.print(f"{len(active)} stopped." if active else "No run is going on.")


def status(
    file: Annotated[Path, typer.Argument(metavar="SERVER.toml|CLIENT.toml", help="Config of this end.")],
    insecure: Insecure = False,
) -> None:
    """Print what happened at this end: rounds, who took part, what was refused, what was spent."""
    if "client" in configs.read(file):
        _show_client(load_client(file))
    else:
        _show_server(load_server(file), is_insecure=insecure)


def _show_server(config: ServerConfig, *, is_insecure: bool) -> None:
    """Print the server's records, and what its process says if it runs."""
    folder, num_rounds = config.folder, config.run.training.num_rounds
    console.print(_process_line(config, is_insecure=is_insecure), soft_wrap=True)
    sizes = records_of.members(folder)
    if sizes is None:
        console.print("No run has begun: no client has joined yet.")
    else:
        who = ", ".join(f"{name} ({size} training examples)" for name, size in sizes.items())
        console.print(f"Agreed on the run: {who}", soft_wrap=True)
    for record in records_of.rounds(folder):
        console.print(records_of.round_line(record, num_rounds), markup=False, soft_wrap=True)
    _show_meaning(folder)
    _show_refusals(folder / "refusals.jsonl")
    if (folder / "privacy.json").exists():
        console.print("The run has finished.")
        console.print(f"  {folder / 'prompts'}", soft_wrap=True)
        console.print(f"  hushprompt privacy {folder}", soft_wrap=True)


def _show_client(config: ClientConfig) -> None:
    """Print what a client's store holds."""
    runs = records_of.client_runs(config.store)
    for run in runs:
        scored = "not scored yet"
        if run.accuracy is not None:
            scored = f"{100 * run.accuracy:.1f} % of the own images right after round {run.num_rounds}"
        console.print(
            f"{run.federation}, run {run.run}: {run.num_charged} rounds charged, epsilon {run.epsilon:.3g} and delta "
            f"{run.delta:.3g} set aside; {scored}",
            markup=False,
            soft_wrap=True,
        )
        _show_meaning(config.store / run.federation / run.run)
        for path in run.prompts:
            console.print(f"  {path}", soft_wrap=True)
    if not runs:
        console.print("This client has agreed to no run yet.")
    total, delta = sum(run.epsilon for run in runs), sum(run.delta for run in runs)
    owner = config.owner
    console.print(
        f"All runs: epsilon {total:.3g} of {owner.max_epsilon:g}, delta {delta:.3g} of {owner.max_delta:g} that the "
        "owner allows.",
        soft_wrap=True,
    )
    _show_refusals(config.store / "refusals.jsonl")


def _show_meaning(folder: Path) -> None:
    """Print what the epsilons of a run mean."""
    for arm in records_of.guarantees(folder):
        for line in tables.statement_lines(arm):
            console.print(line, markup=False, soft_wrap=True)


def _show_refusals(path: Path) -> None:
    """Print what was refused last."""
    if lines := records_of.refusals(path):
        console.print(f"Refused or failed, the last {len(lines)} (all: {path}):", soft_wrap=True)
        for line in lines:
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _process_line(config: ServerConfig, *, is_insecure: bool) -> str:
    """Say who is connected, and how the newest run is, if the server's process runs on this machine."""
    try:
        _needs_extra()
        from hushprompt.deployment.operate import server as ends

        control = ends.control(config, is_insecure=is_insecure)
        online = [node.node_id for node in control.nodes() if node.is_online]
        states = control.runs()
    except HushpromptError as error:
        return f"Of the server's process nothing is known: {error}"
    file = ends.names_file(config)
    names = records.read_json(file) if file.exists() else {}
    who = ", ".join(sorted(names.get(node, f"node {node}") for node in online)) or "nobody"
    if not states:
        return f"Connected: {who}. No run was asked for yet."
    return f"Connected: {who}. {_outcome(states[0])}"


def _outcome(state: RunState) -> str:
    """Say how a run is, and what went over the wire for it."""
    words = {"completed": "The run is complete", "failed": "The run failed", "stopped": "The run was stopped"}
    how = words.get(state.outcome, f"The run is {state.outcome or state.status}")
    details = f": {state.details.rstrip('.')}" if state.details else ""
    traffic = f"{state.bytes_in:,} bytes came in for it and {state.bytes_out:,} went out, Flower's own included."
    return f"{how}{details}. {traffic}"


def _watch(config: ServerConfig, look: Callable[[], RunState]) -> RunState:
    """Print each round as it is done, until the run is over, and give how it ended."""
    num_shown = len(records_of.rounds(config.folder))
    while True:
        state = look()
        for record in records_of.rounds(config.folder)[num_shown:]:
            _say(records_of.round_line(record, config.run.training.num_rounds))
            num_shown += 1
        if state.is_over:
            return state
        time.sleep(POLL_S)


def _lines(path: Path) -> tuple[str, ...]:
    """Read the lines of a file that are not empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Check the path.") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _say(line: str) -> None:
    """Print what happens, with the time."""
    console.print(f"{datetime.datetime.now():%H:%M:%S} {line}", markup=False, soft_wrap=True)


def _now() -> datetime.datetime:
    """Return the time in UTC."""
    return datetime.datetime.now(datetime.UTC)


def _needs_extra(*packages: str) -> None:
    """Raise ConfigError unless what a federation needs is installed; by default what its separate processes need."""
    for package in packages or ("flwr", "cryptography"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"A federation needs the package {package}: pip install 'hushprompt[flower]'.")
