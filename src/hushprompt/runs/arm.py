"""An arm of a run: one line of its result table, trained and accounted for on its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from hushprompt.methods.base import Method
from hushprompt.privacy.config import Audience
from hushprompt.privacy.ledger import Ledger
from hushprompt.privacy.plan import PrivacyPlan
from hushprompt.privacy.schedule import Cohorts


@dataclass(frozen=True)
class Arm:
    """One line of the table: a method under a privacy plan."""

    label: str
    """Unique in its run; also keys the arm's batches and noise."""
    method_name: str
    method: Method
    plan: PrivacyPlan
    cohorts: Cohorts
    """Who takes part in which round."""
    start: Arm | None = None
    """The release that the method starts from, before its rounds: an arm of one round, for all clients. `plan` counts
    it beside the rounds."""

    @property
    def stages(self) -> tuple[Arm, ...]:
        """What is released, in order: the start, where there is one, and the rounds."""
        return (self,) if self.start is None else (self.start, self)

    def labeled(self, label: str) -> Arm:
        """Return the arm under a label, and its start under one that follows from it."""
        start = None if self.start is None else self.start.labeled(f"{label}, start")
        return dataclasses.replace(self, label=label, start=start)

    @property
    def num_rounds(self) -> int:
        """Rounds of training; 0 for a method that learns nothing."""
        return len(self.cohorts)

    def spent(self, ledgers: Mapping[str, Ledger]) -> Arm:
        """Return the arm as claiming what its worst client was charged for, over the rounds that were charged.

        Args:
            ledgers: by label of an arm.
        """
        begun, ledger = self.begun(ledgers), ledgers.get(self.label, Ledger())
        cohorts = Cohorts(self.cohorts.members[: ledger.num_rounds], self.cohorts.num_clients)
        return dataclasses.replace(begun, plan=begun.plan.after(ledger.most_rounds), cohorts=cohorts)

    def begun(self, ledgers: Mapping[str, Ledger]) -> Arm:
        """Return the arm with its start counted as often as it was charged: with secure noise, each time it was made.

        Args:
            ledgers: by label of an arm.
        """
        if self.start is None:
            return self
        start = self.start.spent(ledgers)
        plan = dataclasses.replace(self.plan, beside=start.plan.composed(Audience.PUBLIC))
        return dataclasses.replace(self, plan=plan, start=start)
