"""An arm of a run: one line of its result table, trained and accounted for on its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hushprompt.methods.base import Method
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

    @property
    def num_rounds(self) -> int:
        """Rounds of training; 0 for a method that learns nothing."""
        return len(self.cohorts)

    def spent(self, ledger: Ledger) -> Arm:
        """Return the arm as claiming what its worst client was charged for, over the rounds that were charged."""
        cohorts = Cohorts(self.cohorts.members[: ledger.num_rounds], self.cohorts.num_clients)
        return dataclasses.replace(self, plan=self.plan.after(ledger.most_rounds), cohorts=cohorts)
