"""The privacy ledger of a run on disk: a file that only grows, written before anything it charges for can leave.

`ledger.jsonl` holds one line a charge. A line is on the disk before the round runs, so a crash at any moment leaves a
ledger that counts at least what was released. A torn last line is a charge whose round did not start.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from hushprompt import files
from hushprompt.errors import ResumeError
from hushprompt.federation.schedule import Cohorts
from hushprompt.federation.setup import Row
from hushprompt.privacy.ledger import Account, Charge, Ledger, accounts, why_not

FILE = "ledger.jsonl"


class LedgerFile:
    """The ledgers of all rows of a run folder, and the one door through which a round is charged."""

    def __init__(self, folder: Path) -> None:
        """Read what was charged so far; cut off a torn last line.

        Raises:
            ResumeError: the file is damaged, so nobody knows what was spent.
        """
        self._path = folder / FILE
        self._ledgers = read_ledgers(self._path, files.whole_lines(self._path))

    def of(self, row_label: str) -> Ledger:
        """Return the ledger of a row."""
        return self._ledgers.get(row_label, Ledger())

    def spent(self, row: Row) -> Row:
        """Return a row that claims what was spent, see `spent`."""
        return spent(row, self.of(row.label))

    def outcome(self, rows: Iterable[Row]) -> tuple[list[Row], dict[str, list[Account]]]:
        """Return all rows as `spent` does, and by row each distinct guarantee and its clients."""
        spent = [self.spent(row) for row in rows]
        return spent, {row.label: accounts(row.plan, self.of(row.label)) for row in spent}

    def check(self, row: Row, num_rounds_done: int) -> None:
        """Refuse to go on where the checkpoint knows of rounds that were never charged.

        Raises:
            ResumeError: the ledger was lost or cut.
        """
        charged = {charge.round_index for charge in self.of(row.label).charges}
        if not charged.issuperset(range(num_rounds_done)):
            raise ResumeError(
                f"{self._path} lacks rounds that the checkpoint counts as done: what was spent is not known. "
                "Start a new run."
            )

    def charge(self, row: Row, round_index: int, clients: Iterable[int]) -> str | None:
        """Charge a round, on disk before this returns; or say why the budget forbids it, and charge nothing."""
        ledger = self.of(row.label)
        charge = ledger.due(round_index, clients, is_replay_exact=row.plan.is_replay_exact)
        if charge is None:
            return None
        reason = why_not(row.plan, ledger, charge)
        if reason is not None:
            return reason
        entry = {"row": row.label, "round": round_index + 1, "clients": _fold(charge.clients)}
        files.append_line(self._path, json.dumps(entry))
        self._ledgers[row.label] = ledger.with_charge(charge)
        return None


def read_ledgers(path: Path, lines: Iterable[bytes]) -> dict[str, Ledger]:
    """Read the whole lines of a ledger file, by row; `path` is what errors name.

    Raises:
        ResumeError: the file is damaged, so nobody knows what was spent.
    """
    ledgers: dict[str, Ledger] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            charge = Charge(int(entry["round"]) - 1, tuple(_unfold(entry["clients"])))
            ledgers[entry["row"]] = ledgers.get(entry["row"], Ledger()).with_charge(charge)
        except (ValueError, TypeError, KeyError) as error:
            raise ResumeError(
                f"Line {number} of {path} is damaged ({error}): what was spent is not known. Start a new run."
            ) from error
    return ledgers


def spent(row: Row, ledger: Ledger) -> Row:
    """Return a row that claims what its worst client was charged for, over the rounds that were charged."""
    cohorts = Cohorts(row.cohorts.members[: ledger.num_rounds], row.cohorts.num_clients)
    return dataclasses.replace(row, plan=row.plan.after(ledger.most_rounds), cohorts=cohorts)


def _fold(clients: Sequence[int]) -> list[list[int]]:
    """Write sorted ids as ranges, both ends included."""
    ranges: list[list[int]] = []
    for client_id in clients:
        if ranges and client_id == ranges[-1][1] + 1:
            ranges[-1][1] = client_id
        else:
            ranges.append([client_id, client_id])
    return ranges


def _unfold(ranges: Iterable[Sequence[int]]) -> list[int]:
    """Read ranges back."""
    return [client_id for first, last in ranges for client_id in range(first, last + 1)]
