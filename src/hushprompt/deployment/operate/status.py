"""What the records of both ends say, in words: rounds, who took part, what was refused, what was spent."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hushprompt import files
from hushprompt.deployment.config import REFUSALS, ClientConfig, OwnerConfig, ServerConfig
from hushprompt.deployment.server_record import AGREEMENT, ServerRecord, rounds
from hushprompt.privacy.statements import beside_epsilon
from hushprompt.runs import records

if TYPE_CHECKING:
    from hushprompt.config.schema import RunConfig
    from hushprompt.deployment.flower.control import FlowerRun

NUM_REFUSALS = 10
"""Refusals that are shown: the newest."""


@dataclass(frozen=True)
class ClientRunStatus:
    """What a client's store holds of one run."""

    federation: str
    run: str
    num_charged: int
    """Rounds charged to its ledger."""
    num_rounds: int | None
    """Rounds after which its prompts were last scored; None: not yet."""
    accuracy: float | None
    """Of its own images then."""
    zero_shot: float | None
    """Of its own images before; None where that was not scored."""
    epsilon: float
    delta: float
    """Set aside for this run, at most spent."""
    prompts: tuple[Path, ...]
    """Personal prompts, once the run has finished."""
    guarantees: list[dict[str, Any]]
    """What its epsilons mean: arms of its privacy record."""

    @property
    def noise_source(self) -> str | None:
        """Where its noise comes from; None where its guarantees do not say it."""
        held = [guarantee for arm in self.guarantees for guarantee in arm["audiences"].values()]
        return held[0].get("noise_source") if held else None


@dataclass(frozen=True, kw_only=True)
class ClientStatus:
    """What a client's store holds."""

    runs: tuple[ClientRunStatus, ...]
    owner: OwnerConfig
    """What the owner allows."""
    refusals: list[str]
    """The newest, a line each."""
    refusals_file: Path

    @property
    def spent(self) -> tuple[float, float]:
        """Epsilon and delta set aside for all runs together."""
        return sum(run.epsilon for run in self.runs), sum(run.delta for run in self.runs)


@dataclass(frozen=True)
class Connection:
    """What the server's process says."""

    clients: tuple[str, ...]
    """Names of those that are connected."""
    newest_run: FlowerRun | None
    """None: none was asked for yet."""


@dataclass(frozen=True, kw_only=True)
class FederationOutcome:
    """What a call trained."""

    folder: Path
    """The server's run folder."""
    rounds: list[ServerRecord]
    """Done by this call; earlier ones are in the folder."""
    num_rounds: int
    """Rounds of the whole run."""
    noise_source: str
    """Where its noise comes from."""
    guarantees: list[dict[str, Any]]
    """What its epsilons mean: arms of its privacy record."""
    gains: list[str]
    """What clients told, with noise, of what they gained, in words; empty where they do not."""
    state: FlowerRun | None = None
    """How the run ended, where separate processes trained it."""


@dataclass(frozen=True, kw_only=True)
class ServerStatus(FederationOutcome):
    """What is known at the server: all rounds, and what is beside them."""

    connection: Connection | str
    """What its process says; or why that is not known."""
    clients: dict[str, int] | None
    """Public training sizes by name of the clients that agreed on the run; None before."""
    refusals: list[str]
    """The newest, a line each."""
    refusals_file: Path
    is_finished: bool


def outcome(config: ServerConfig, num_before: int, state: FlowerRun | None = None) -> FederationOutcome:
    """Read what was trained after the first `num_before` rounds in a server's run folder."""
    return FederationOutcome(
        folder=config.folder,
        rounds=rounds(config.folder)[num_before:],
        num_rounds=num_rounds(config.run),
        noise_source=config.run.privacy.noise_source,
        guarantees=guarantees(config.folder),
        gains=gained(config),
        state=state,
    )


def server_status(config: ServerConfig, connection: Connection | str) -> ServerStatus:
    """Read what a server's run folder holds."""
    folder = config.folder
    return ServerStatus(
        **vars(outcome(config, 0)),
        connection=connection,
        clients=members(folder),
        refusals=refusals(folder / REFUSALS),
        refusals_file=folder / REFUSALS,
        is_finished=(folder / "privacy.json").exists(),
    )


def client_status(config: ClientConfig) -> ClientStatus:
    """Read what a client's store holds."""
    file = config.store / REFUSALS
    runs = tuple(client_runs(config.store, config.client.name))
    return ClientStatus(runs=runs, owner=config.owner, refusals=refusals(file), refusals_file=file)


def round_line(record: ServerRecord, num_rounds: int, noise_source: str) -> str:
    """Say what a round was, of so many with noise from this source, which older records do not name."""
    place = "after the release" if record.is_late else f"round {record.round_index} of {num_rounds}"
    parts = [f"{place}: {', '.join(record.took_part) or 'nobody'} took part"]
    parts += [f"not {name} ({reason.rstrip('.')})" for name, reason in sorted(record.failures.items())]
    if record.left_out_steps:
        parts.append(f"without step {', '.join(map(str, record.left_out_steps))}, which stays charged")
    parts += [f"{record.bytes_up:,} bytes up, {record.bytes_down:,} down", f"{record.seconds:.1f} s"]
    epsilons = ", ".join(f"{who} {epsilon:.3g}" for who, epsilon in record.epsilon.items())
    delta = "" if record.delta is None else f" at delta {record.delta:g}"
    return "; ".join([*parts, f"epsilon{beside_epsilon(noise_source)}{delta} {epsilons}"])


def gained(config: ServerConfig) -> list[str]:
    """Say what the clients of a finished run told of what they gained."""
    summary = config.folder / "summary.json"
    if config.run.evaluation.metrics_epsilon is None or not summary.exists():
        return []
    from hushprompt.deployment.gains import lines  # needs torch, as the config's method does

    return lines(records.read_record(summary)["arms"][-1]["per_client"], config.run)


def members(folder: Path) -> dict[str, int] | None:
    """Return the public training sizes by name of the clients that agreed on the run; None before."""
    path = folder / AGREEMENT
    if not path.exists():
        return None
    agreement = records.read_json(path)
    return dict(zip(agreement["clients"], agreement["sizes"], strict=True))


def num_rounds(config: RunConfig) -> int:
    """Return the rounds of a run: one for a method that makes one release, whatever the config says."""
    from hushprompt.methods.base import OneRelease  # the config has loaded it, if it has a method

    return 1 if isinstance(config.method, OneRelease) else config.training.num_rounds


def guarantees(folder: Path, client: str = "") -> list[dict[str, Any]]:
    """Return the arms of a run's privacy record, at the server or a client: what its epsilons mean, for what was spent.

    They follow from what was agreed on and from the ledger; none before there is an agreement.

    Args:
        folder: of the run.
        client: whose folder it is; empty: the server's.

    Raises:
        HushpromptError: this version cannot read them.
    """
    agreed = folder / AGREEMENT
    if not agreed.exists():
        return []
    # Imported here: plans need torch, and most processes of a federation never look at one.
    from hushprompt.deployment.agreement import read_agreement
    from hushprompt.runs import ledger as ledger_file
    from hushprompt.runs.privacy_record import privacy_record

    charged = folder / ledger_file.FILE
    agreement = read_agreement(records.read_json(agreed))
    arm, lines = agreement.arm, files.whole_lines_of(charged)
    if client in agreement.clients:
        arm = dataclasses.replace(arm, plan=arm.plan.of_client(agreement.clients.index(client)))
    return list(privacy_record([arm.spent(ledger_file.read_ledgers(charged, lines, agreement.clients))])["arms"])


def refusals(file: Path, first: int = -NUM_REFUSALS) -> list[str]:
    """Say what was refused, at a server or a client, from a line on, the newest last; by default the last ones."""
    return [_refusal(line) for line in _lines(file)[first:]]


def num_refusals(file: Path) -> int:
    """Return how much was refused so far."""
    return len(_lines(file))


def client_runs(store: Path, client: str = "") -> list[ClientRunStatus]:
    """Return what a client's store holds, run by run."""
    return [_client_run(path.parent, client) for path in sorted(store.glob(f"*/*/{AGREEMENT}"))]


def _client_run(folder: Path, client: str) -> ClientRunStatus:
    # Imported here: plans need torch, and most processes of a federation never look at one.
    from hushprompt.deployment.policy import spent

    epsilon, delta = spent(folder)
    scores = _lines(folder / "records.jsonl")
    return ClientRunStatus(
        federation=folder.parent.name,
        run=folder.name,
        num_charged=len({line["round"] for line in _lines(folder / "ledger.jsonl")}),
        num_rounds=scores[-1]["num_rounds"] if scores else None,
        accuracy=scores[-1]["accuracy"] if scores else None,
        zero_shot=scores[-1].get("zero_shot") if scores else None,
        epsilon=epsilon,
        delta=delta,
        prompts=tuple(sorted((folder / "prompts").glob("client-*.safetensors"))),
        guarantees=guarantees(folder, client),
    )


def _refusal(line: dict[str, Any]) -> str:
    who = line.get("client") or line.get("kind") or f"node {line.get('node', '?')}"
    place = f" in round {line['round'] + 1}" if "round" in line else ""
    return f"{line['time']} {who}{place}: {line['reason']}"


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a file of records."""
    return [json.loads(line) for line in files.whole_lines_of(path)]
