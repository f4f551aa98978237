"""The privacy ledger of a run on disk: a file that only grows, written before anything it charges for can leave.

`ledger.jsonl` holds one line a charge. A line is on the disk before the round runs, so a crash at any moment leaves a
ledger that counts at least what was released. A torn last line is a charge whose round did not start.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hushprompt import files
from hushprompt.errors import ResumeError
from hushprompt.privacy.ledger import Account, Charge, Ledger, accounts, why_not
from hushprompt.runs.arm import Arm
from hushprompt.runs.records import from_json

FILE = "ledger.jsonl"


@dataclass(frozen=True, kw_only=True)
class _ChargeLine:
    """One charge."""

    arm: str
    round: int
    """From 1."""
    clients: list[tuple[int, int]]
    """Ranges of ids, both ends included."""


class LedgerFile:
    """The ledgers of all arms of a run folder, and the one door through which a round is charged."""

    def __init__(self, folder: Path) -> None:
        """Read what was charged so far; cut off a torn last line.

        Raises:
            ResumeError: the file is damaged, so nobody knows what was spent.
        """
        self._path = folder / FILE
        self._ledgers = read_ledgers(self._path, files.whole_lines(self._path))

    def of(self, arm_label: str) -> Ledger:
        """Return the ledger of an arm."""
        return self._ledgers.get(arm_label, Ledger())

    def spent(self, arm: Arm) -> Arm:
        """Return an arm that claims what was spent, see `Arm.spent`."""
        return arm.spent(self.of(arm.label))

    def outcome(self, arms: Iterable[Arm]) -> tuple[list[Arm], dict[str, list[Account]]]:
        """Return all arms as `spent` does, and by arm each distinct guarantee and its clients."""
        spent = [self.spent(arm) for arm in arms]
        return spent, {arm.label: accounts(arm.plan, self.of(arm.label)) for arm in spent}

    def check(self, arm: Arm, num_rounds_done: int) -> None:
        """Refuse to go on where the checkpoint knows of rounds that were never charged.

        Raises:
            ResumeError: the ledger was lost or cut.
        """
        charged = {charge.round_index for charge in self.of(arm.label).charges}
        if not charged.issuperset(range(num_rounds_done)):
            raise ResumeError(
                f"{self._path} lacks rounds that the checkpoint counts as done: what was spent is not known. "
                "Start a new run."
            )

    def charge(self, arm: Arm, round_index: int, clients: Iterable[int]) -> str | None:
        """Charge a round, on disk before this returns; or say why the budget forbids it, and charge nothing."""
        ledger = self.of(arm.label)
        charge = ledger.due(round_index, clients, is_replay_exact=arm.plan.release_plan.is_replay_exact)
        if charge is None:
            return None
        reason = why_not(arm.plan, ledger, charge)
        if reason is not None:
            return reason
        entry = _ChargeLine(arm=arm.label, round=round_index + 1, clients=_fold(charge.clients))
        files.append_line(self._path, json.dumps(dataclasses.asdict(entry)))
        self._ledgers[arm.label] = ledger.with_charge(charge)
        return None


def read_ledgers(path: Path, lines: Iterable[bytes]) -> dict[str, Ledger]:
    """Read the whole lines of a ledger file, by arm; `path` is what errors name.

    Raises:
        ResumeError: the file is damaged, so nobody knows what was spent.
    """
    ledgers: dict[str, Ledger] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = from_json(_ChargeLine, json.loads(line))
            charge = Charge(entry.round - 1, tuple(_unfold(entry.clients)))
            ledgers[entry.arm] = ledgers.get(entry.arm, Ledger()).with_charge(charge)
        except ValueError as error:
            raise ResumeError(
                f"Line {number} of {path} is damaged ({error}): what was spent is not known. Start a new run."
            ) from error
    return ledgers


def _fold(clients: Sequence[int]) -> list[tuple[int, int]]:
    """Write sorted ids as ranges, both ends included."""
    ranges: list[tuple[int, int]] = []
    for client_id in clients:
        if ranges and client_id == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], client_id)
        else:
            ranges.append((client_id, client_id))
    return ranges


def _unfold(ranges: Iterable[tuple[int, int]]) -> list[int]:
    """Read ranges back."""
    return [client_id for first, last in ranges for client_id in range(first, last + 1)]
