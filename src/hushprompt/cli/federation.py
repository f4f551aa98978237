"""The commands of a federation on separate machines: what its operator and its clients' owners type."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import hushprompt as hp
from hushprompt.cli.console import INTERRUPTED, console, sentence
from hushprompt.privacy import statements
from hushprompt.user_text import read_lines
from hushprompt.words import counted

if TYPE_CHECKING:
    from hushprompt.deployment.flower.control import FlowerRun
    from hushprompt.deployment.operate.status import ClientStatus, ServerStatus

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
    keys: Annotated[bool, typer.Option(help="Make the clients' keys too; else each client makes its own.")] = True,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override in the run config.")] = None,
) -> None:
    """Write configs, certificates, keys, systemd units and a compose file; nothing is overwritten."""
    from hushprompt.config import parse as configs

    values = configs.read(configs.locate(run))
    for setting in set_ or []:
        values = configs.override(values, setting)
    readme = hp.federation.init(
        folder,
        [part.strip() for part in clients.split(",") if part.strip()],
        name=name,
        address=address,
        run=values,
        classes=() if classes is None else read_lines(classes, "--classes"),
        with_keys=keys,
        say=_say,
    )
    console.print(f"  {readme} says what goes where", soft_wrap=True)


def key(file: Annotated[Path, typer.Argument(metavar="FILE", help="Private key to make; FILE.pub is public.")]) -> None:
    """Make a client's key pair: the private half stays, the public half goes to the server's operator."""
    public = hp.federation.key(file)
    console.print(f"  {file}: keep it here, and nowhere else", soft_wrap=True)
    console.print(f"  {public}: for the server's operator, as node_keys/NAME.pub", soft_wrap=True)


def fingerprint(
    place: Annotated[
        Path, typer.Argument(metavar="DIR|CLIENT.toml", help="Public keys of all clients, or a client's config.")
    ],
) -> None:
    """Print one fingerprint of all clients' public keys, which owners compare by another way than the server's."""
    roster = hp.federation.fingerprint(place)
    sentence(f"{counted(len(roster.clients), 'client')}: {', '.join(roster.clients)}")
    console.print(f"  {roster.fingerprint}", soft_wrap=True)


def renew(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `init` made, with its authority.")],
) -> None:
    """Make a new server certificate for the same names; clients keep what they have."""
    certificate, validity = hp.federation.renew(folder)
    console.print(
        f"  {certificate} for {', '.join(validity.names)}, until {validity.ends:%Y-%m-%d} UTC", soft_wrap=True
    )
    console.print("Copy it and its key to the server, and restart the server.")


def server(file: ServerFile, insecure: Insecure = False) -> None:
    """Run the server: clients connect to it, and `run` trains on them. Ctrl-C or SIGTERM ends it."""
    hp.federation.serve(file, insecure=insecure, say=_say)


def client(file: ClientFile, insecure: Insecure = False) -> None:
    """Run a client: it answers the server as its owner allows. Ctrl-C or SIGTERM ends it."""
    hp.federation.join(file, insecure=insecure, say=_say)


def run(
    file: ServerFile,
    leave_step: Annotated[
        bool, typer.Option("--leave-step", help="Go on without the step that waits for a client; it stays charged.")
    ] = False,
    insecure: Insecure = False,
) -> None:
    """Train, from the server's machine, and show it; the exit status is 0 if the run was completed.

    In the folder of a run that stopped, it goes on.
    """
    try:
        done = hp.federation.run(file, leave_step=leave_step, insecure=insecure, say=_say)
    except KeyboardInterrupt:
        console.print("The run goes on without this command. Look at it, or end it:")
        console.print(f"  hushprompt federation status {file}", soft_wrap=True)
        console.print(f"  hushprompt federation stop {file}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    _show_meaning(done.guarantees)
    for line in done.gains:
        sentence(line)
    assert done.state is not None
    sentence(_outcome(done.state))
    console.print(f"  {done.folder}", soft_wrap=True)
    if not done.state.is_completed:
        console.print("The same command goes on after its last round.")
        raise typer.Exit(1)


def check(file: ServerFile, insecure: Insecure = False) -> None:
    """Ask the clients whether they accept the plan, from the server's machine; nothing is trained or charged.

    The exit status is 0 if all do.
    """
    found = hp.federation.check(file, insecure=insecure, say=_say)
    for name, size in found.sizes.items():
        answer = f"no. {found.refusals[name]}" if name in found.refusals else "yes"
        sentence(f"{name}, {counted(size, _unit(found.guarantees))}: {answer}")
    for name in sorted(found.refusals.keys() - found.sizes):
        sentence(f"{name}: not there. {found.refusals[name]}")
    _show_meaning(found.guarantees)
    if found.problem:
        sentence(found.problem)
    console.print("All accept the plan." if found.is_accepted else "Not all accept the plan.")
    if not found.is_accepted:
        raise typer.Exit(1)


def simulate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `init` made.")],
) -> None:
    """Train a federation that `init` wrote in Flower's simulation (Ray): all on this machine, no server, no keys.

    It writes where the real one would: run folder, stores and their ledgers.
    """
    from hushprompt.deployment.operate.status import round_line

    done = hp.federation.simulate_deployment(folder)
    for record in done.rounds:
        sentence(round_line(record, done.num_rounds, done.noise_source))
    _show_meaning(done.guarantees)
    for line in done.gains:
        sentence(line)
    console.print(f"  {done.folder}", soft_wrap=True)


def stop(file: ServerFile, insecure: Insecure = False) -> None:
    """Stop the run that is going on, from the server's machine; `run` goes on with it."""
    number = hp.federation.stop(file, insecure=insecure)
    console.print(f"{number} stopped." if number else "No run is going on.")


def status(
    file: Annotated[Path, typer.Argument(metavar="SERVER.toml|CLIENT.toml", help="Config of this end.")],
    insecure: Insecure = False,
) -> None:
    """Print what happened at this end: rounds, who took part, what was refused, what was spent."""
    from hushprompt.deployment.operate.status import ClientStatus

    found = hp.federation.status(file, insecure=insecure)
    if isinstance(found, ClientStatus):
        _show_client(found)
    else:
        _show_server(found)


def _unit(arms: list[dict[str, Any]]) -> str:
    """Return what the size of a client counts, by the arms of a privacy record."""
    noun = statements.unit_noun(next((one for arm in arms for one in arm["audiences"].values()), {}))
    return f"training {'example' if noun == 'client' else noun}"


def _show_server(found: ServerStatus) -> None:
    """Print the server's records, and what its process says if it runs."""
    from hushprompt.deployment.operate.status import round_line

    sentence(_process_line(found))
    if found.clients is None:
        console.print("No run has begun: no client has joined yet.")
    else:
        unit = _unit(found.guarantees)
        who = ", ".join(f"{name} ({counted(size, unit)})" for name, size in found.clients.items())
        sentence(f"Agreed on the run: {who}")
    for record in found.rounds:
        sentence(round_line(record, found.num_rounds, found.noise_source))
    _show_meaning(found.guarantees)
    for line in found.gains:
        sentence(line)
    _show_refusals(found)
    if found.is_finished:
        console.print("The run has finished.")
        console.print(f"  {found.folder / 'prompts'}", soft_wrap=True)
        console.print(f"  hushprompt privacy {found.folder}", soft_wrap=True)


def _show_client(found: ClientStatus) -> None:
    """Print what a client's store holds."""
    for run in found.runs:
        scored = "not scored yet"
        if run.accuracy is not None:
            scored = f"{100 * run.accuracy:.1f} % of the own images right after round {run.num_rounds}"
            scored += "" if run.zero_shot is None else f" (zero-shot {100 * run.zero_shot:.1f} %)"
        sentence(
            f"{run.federation}, run {run.run}: {counted(run.num_charged, 'round')} charged, "
            f"epsilon {run.epsilon:.3g}{statements.beside_epsilon(run.noise_source)} and delta {run.delta:.3g} set "
            f"aside; {scored}",
        )
        _show_meaning(run.guarantees)
        for path in run.prompts:
            console.print(f"  {path}", soft_wrap=True)
    if not found.runs:
        console.print("This client has agreed to no run yet.")
    (epsilon, delta), owner = found.spent, found.owner
    simulated = " (with simulations)" if any(run.noise_source == "seeded" for run in found.runs) else ""
    sentence(
        f"All runs: epsilon {epsilon:.3g}{simulated} of {owner.max_epsilon:g}, delta {delta:.3g} of "
        f"{owner.max_delta:g} that the owner allows.",
    )
    _show_refusals(found)


def _show_meaning(guarantees: list[dict[str, Any]]) -> None:
    """Print what the epsilons of a run mean."""
    for arm in guarantees:
        for line in statements.statement_lines(arm):
            sentence(line)


def _show_refusals(found: ServerStatus | ClientStatus) -> None:
    """Print what was refused last."""
    if lines := found.refusals:
        sentence(f"Refused or failed, the last {len(lines)} (all: {found.refusals_file}):")
        for line in lines:
            sentence(f"  {line}")


def _process_line(found: ServerStatus) -> str:
    """Say who is connected, and how the newest run is, if the server's process runs on this machine."""
    if isinstance(found.connection, str):
        return f"Of the server's process nothing is known: {found.connection}"
    who = ", ".join(found.connection.clients) or "nobody"
    newest = found.connection.newest_run
    return f"Connected: {who}. {'No run was asked for yet.' if newest is None else _outcome(newest)}"


def _outcome(state: FlowerRun) -> str:
    """Say how a run is, and what went over the wire for it."""
    words = {"completed": "The run is complete", "failed": "The run failed", "stopped": "The run was stopped"}
    how = words.get(state.outcome, f"The run is {state.outcome or state.status}")
    details = f": {state.details.rstrip('.')}" if state.details else ""
    traffic = f"{state.bytes_in:,} bytes came in for it and {state.bytes_out:,} went out, Flower's own included."
    return f"{how}{details}. {traffic}"


def _say(line: str) -> None:
    """Print what happens, with the time."""
    sentence(f"{datetime.datetime.now():%H:%M:%S} {line}")
