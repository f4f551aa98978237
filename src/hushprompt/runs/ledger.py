"""The privacy ledger of a run on disk: a file that only grows, written before anything it charges for can leave.

`ledger.jsonl` holds one line a charge: the round, the clients by name, and for whose data it is. A line is on the disk
before the round runs, so a crash at any moment leaves a ledger that counts at least what was released. A torn last line
is a charge whose round did not start.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hushprompt import files
from hushprompt.errors import ResumeError
from hushprompt.privacy.ledger import Account, Charge, Ledger, accounts, why_not
from hushprompt.runs.arm import Arm
from hushprompt.runs.records import from_json, to_json

FILE = "ledger.jsonl"
LETTERS = 16
"""Of a digest, in a line."""


@dataclass(frozen=True, kw_only=True)
class _ChargeLine:
    """One charge."""

    arm: str
    round: int
    """From 1."""
    clients: list[str | tuple[int, int]]
    """Names; older versions wrote ranges of ids, both ends included."""
    identity: str | None = None
    """First letters of the digest of what is charged for, where that is known."""
    spent: Mapping[str, float] | None = None
    """Epsilon and delta of all charges so far, where somebody's budget goes beyond this run."""
    noise_source: str | None = None
    """Where noise comes from, beside `spent`; None in older lines."""
    turn: str | None = None
    """What the first turn of the round was made from, where the same again gives the same draws; see `secure_turn`."""


class LedgerFile:
    """The ledgers of all arms of a run folder, and the one door through which a round is charged."""

    def __init__(self, folder: Path, client_names: Sequence[str], identity: str = "") -> None:
        """Read what was charged so far; cut off a torn last line.

        Args:
            folder: of the run.
            client_names: of the clients, by id.
            identity: digest of what is charged for, which every line names; empty: none may.

        Raises:
            ResumeError: the file is damaged, or charges other clients or data, so nobody knows what was spent.
        """
        self._path, self._names, self._identity = folder / FILE, client_names, identity[:LETTERS]
        lines = files.whole_lines(self._path)
        self._ledgers = read_ledgers(self._path, lines, client_names, self._identity)
        self.last_turn: str = (json.loads(lines[-1]).get("turn") if lines else None) or ""
        """What the last line says that it was charged for; "" where that cannot be had again."""

    def of(self, arm_label: str) -> Ledger:
        """Return the ledger of an arm."""
        return self._ledgers.get(arm_label, Ledger())

    def spent(self, arm: Arm) -> Arm:
        """Return an arm that claims what was spent, see `Arm.spent`."""
        return arm.spent(self._ledgers)

    def begun(self, arm: Arm) -> Arm:
        """Return an arm with its start counted as often as it was charged, see `Arm.begun`."""
        return arm.begun(self._ledgers)

    def outcome(self, arms: Iterable[Arm]) -> tuple[list[Arm], dict[str, list[Account]]]:
        """Return all arms as `spent` does, and by arm each distinct guarantee and its clients."""
        spent = [self.spent(arm) for arm in arms]
        return spent, {each.label: accounts(each.plan, self.of(each.label)) for arm in spent for each in arm.stages}

    def check(self, arm: Arm, num_rounds_done: int) -> None:
        """Refuse to go on where the checkpoint knows of rounds that were never charged.

        Raises:
            ResumeError: the ledger was lost or cut.
        """
        if not self.of(arm.label).made.keys() >= {*range(num_rounds_done)}:
            raise ResumeError(
                f"{self._path} lacks rounds that the checkpoint counts as done: what was spent is not known. "
                "Start a new run."
            )

    def charge(
        self,
        arm: Arm,
        round_index: int,
        clients: Iterable[int],
        spent: Mapping[str, float] | None = None,
        turn: str = "",
    ) -> str | None:
        """Charge a round, on disk before this returns; or say why the budget forbids it, and charge nothing.

        Args:
            arm: whose round it is.
            round_index: from 0.
            clients: who is charged.
            spent: what the line says of all charges so far, this one included; see `deployment.policy`.
            turn: what is charged for, where the same again gives the same draws.
        """
        ledger = self.of(arm.label)
        charge = ledger.due(round_index, clients, is_replay_exact=arm.plan.release_plan.is_replay_exact)
        if charge is None:
            return None
        reason = why_not(self.begun(arm).plan, ledger, charge)
        if reason is not None:
            return reason
        names: list[str | tuple[int, int]] = [self._names[client_id] for client_id in charge.clients]
        line = {
            "arm": arm.label,
            "round": round_index + 1,
            "clients": names,
            "identity": self._identity or None,
            **({"spent": spent, "noise_source": arm.plan.release_plan.noise_source} if spent else {}),
            **({"turn": turn} if turn else {}),
        }
        files.append_line(self._path, json.dumps(to_json(line)))
        self._ledgers[arm.label] = ledger.with_charge(charge)
        return None


def read_ledgers(
    path: Path, lines: Iterable[bytes], client_names: Sequence[str], identity: str | None = None
) -> dict[str, Ledger]:
    """Read the whole lines of a ledger file, by arm.

    Args:
        path: what errors name.
        lines: of the file.
        client_names: of the clients, by id.
        identity: first letters of the digest that lines name if they name one; empty: they may not; None: any.

    Raises:
        ResumeError: the file is damaged, or charges other clients or data, so nobody knows what was spent.
    """
    ledgers: dict[str, Ledger] = {}
    ids = {name: client_id for client_id, name in enumerate(client_names)}
    for number, line in enumerate(lines, start=1):
        try:
            entry = from_json(_ChargeLine, json.loads(line))
            if identity is not None and entry.identity not in (None, identity):
                here = f"this run has {identity}" if identity else "and identity.json is gone"
                raise ValueError(f"it charges for the identity {entry.identity}, {here}")
            charge = Charge(entry.round - 1, tuple(_ids(entry.clients, ids)))
            ledgers[entry.arm] = ledgers.get(entry.arm, Ledger()).with_charge(charge)
        except ValueError as error:
            raise ResumeError(
                f"Line {number} of {path} is damaged ({error}): what was spent is not known. Start a new run."
            ) from error
    return ledgers


def stated(lines: Iterable[bytes]) -> tuple[int, tuple[float, float] | None]:
    """Return how many rounds a ledger charges, whoever is charged, and the epsilon and delta that its last line states.

    Raises:
        ResumeError: a line is damaged, so nobody knows what was spent.
    """
    try:
        entries = [from_json(_ChargeLine, json.loads(line)) for line in lines]
    except ValueError as error:
        raise ResumeError(f"A ledger is damaged ({error}): what was spent is not known.") from error
    spent = entries[-1].spent if entries else {"epsilon": 0.0, "delta": 0.0}
    rounds = {(entry.arm, entry.round) for entry in entries}
    return len(rounds), None if spent is None else (spent["epsilon"], spent["delta"])


def _ids(clients: Iterable[str | tuple[int, int]], ids: Mapping[str, int]) -> Iterator[int]:
    """Return the ids of clients; ValueError for one that the run does not have."""
    for one in clients:
        if not isinstance(one, str):
            yield from range(one[0], one[1] + 1)
        elif one in ids:
            yield ids[one]
        else:
            raise ValueError(f"it charges {one!r}, who is no client of this run")
