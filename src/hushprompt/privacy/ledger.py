"""What every client has been charged for, and whether one round more would overspend the budget.

A charge stands for all releases of one client in one round. It is made **before** the round runs: whatever happens
after it, the releases that left are among the charged ones. A round that runs again with noise drawn anew makes new
releases and is charged again. A round that runs again from the same seed makes the same releases bit for bit, which
tells nothing new (a function of what was released before), so it is charged once; so is a turn under secure aggregation
that a client takes again from the same secret (`deployment/secure_turn.py`).

Clients may take part in different numbers of rounds, or join late: each has its own count and its own epsilon. That is
sound because a round in which a client takes no part is a function of other clients' data and of earlier releases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hushprompt.errors import PrivacyError
from hushprompt.privacy.plan import PrivacyPlan
from hushprompt.privacy.statements import beside_epsilon

LOST = (
    ". That round was charged before, but what it released was lost: noise that is secure cannot be drawn again, and "
    "a second release would be another one"
)
"""Why a round that runs again may be over a budget that its first try was within."""


@dataclass(frozen=True)
class Charge:
    """One round of some clients, charged before it runs."""

    round_index: int
    """From 0."""
    clients: tuple[int, ...]
    """Ids of the clients that are asked to take part."""


@dataclass(frozen=True)
class Ledger:
    """The charges of one training run, in order; adding one gives a new ledger."""

    charges: tuple[Charge, ...] = ()
    _rounds: Mapping[int, int] = field(default_factory=dict)
    """Rounds charged by client; follows from `charges`."""
    made: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """Clients charged by round index; follows from `charges`."""

    def rounds(self, client_id: int) -> int:
        """Return how many rounds a client was charged for; 0 for one that has not joined yet."""
        return self._rounds.get(client_id, 0)

    @property
    def num_rounds(self) -> int:
        """Different rounds that were charged to anyone."""
        return len(self.made)

    @property
    def most_rounds(self) -> int:
        """Rounds charged to the client that took part the most."""
        return max(self._rounds.values(), default=0)

    def before(self, round_index: int) -> Ledger:
        """Return the ledger without charges of a round and of those after it."""
        kept = Ledger()
        for charge in self.charges:
            kept = kept.with_charge(charge) if charge.round_index < round_index else kept
        return kept

    def due(self, round_index: int, clients: Iterable[int], *, is_replay_exact: bool) -> Charge | None:
        """Return the charge that a round needs before it may run; None if it was made and the replay is bit for bit."""
        made = self.made.get(round_index, frozenset()) if is_replay_exact else frozenset()
        owed = tuple(sorted(set(clients) - made))
        return Charge(round_index, owed) if owed else None

    def with_charge(self, charge: Charge) -> Ledger:
        """Return the ledger after a charge.

        Raises:
            PrivacyError: the charge names a client twice.
        """
        if len(set(charge.clients)) != len(charge.clients):
            raise PrivacyError(f"A charge names a client twice: {charge.clients}. Charge each client once.")
        rounds = Counter(self._rounds)
        rounds.update(charge.clients)
        made = self.made.get(charge.round_index, frozenset()) | frozenset(charge.clients)
        return Ledger((*self.charges, charge), rounds, {**self.made, charge.round_index: made})


def why_not(plan: PrivacyPlan, ledger: Ledger, charge: Charge) -> str | None:
    """Say why a charge would overspend the budget of the plan, or give None where it fits.

    The budget is `privacy.max_epsilon`, or the target epsilon where only that is set, for the audience of the target.
    """
    limit = plan.limit
    if limit is None or not plan.channels:
        return None
    audience, simulated = plan.config.audience, beside_epsilon(plan.release_plan.noise_source)
    for client_id in _one_of_each_kind(plan, ledger, charge.clients):
        num_rounds = ledger.rounds(client_id) + 1
        if num_rounds <= plan.num_rounds and plan.epsilon(audience, plan.num_rounds, client_id) <= limit:
            continue  # the plan's rounds fit all together, so its first ones do; accounting for each takes long
        spent = plan.epsilon(audience, num_rounds - 1, client_id)
        after = plan.epsilon(audience, num_rounds, client_id)
        if after > limit:
            lost = charge.round_index in ledger.made
            return (
                f"privacy budget: round {charge.round_index + 1} would bring client {client_id} from epsilon "
                f"{spent:.4g} to {after:.4g}{simulated} at delta {plan.config.delta:g} for the {audience} audience, "
                f"above {limit:g}{LOST if lost else ''}"
            )
    return None


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one group of clients has spent: all that took part in as many rounds and are sampled alike."""

    clients: tuple[int, ...]
    num_rounds: int
    """Rounds charged, wasted ones included."""
    num_releases: int
    """Releases charged to one example (or client, where that is the unit)."""
    sampling_prob: float
    """Amplification that is claimed for them; 1 claims none."""
    epsilon: dict[str, float]
    """By audience, at the plan's delta."""


def accounts(plan: PrivacyPlan, ledger: Ledger) -> list[Account]:
    """Return every distinct guarantee with its clients, the worst for the budget's audience first."""
    found = []
    for clients in _kinds(plan, ledger, range(len(plan.client_sizes))).values():
        first, count = clients[0], ledger.rounds(clients[0])
        found.append(
            Account(
                clients=tuple(clients),
                num_rounds=count,
                num_releases=max(plan.releases(audience, count).num_steps for audience in plan.audiences),
                sampling_prob=plan.releases(plan.config.audience, count, first).sampling_prob,
                epsilon={str(audience): plan.epsilon(audience, count, first) for audience in plan.audiences},
            )
        )
    return sorted(found, key=lambda account: -account.epsilon[str(plan.config.audience)])


def _kinds(plan: PrivacyPlan, ledger: Ledger, clients: Iterable[int]) -> dict[tuple[int, float, float], list[int]]:
    """Group clients that ledger, sampler and noise treat alike: their guarantees are the same."""
    groups: dict[tuple[int, float, float], list[int]] = {}
    for client_id in clients:
        one = plan.releases(plan.config.audience, 0, client_id)
        kind = (ledger.rounds(client_id), one.sampling_prob, one.noise_multiplier)
        groups.setdefault(kind, []).append(client_id)
    return groups


def _one_of_each_kind(plan: PrivacyPlan, ledger: Ledger, clients: Iterable[int]) -> list[int]:
    """Return one client of each kind, most rounds first."""
    groups = _kinds(plan, ledger, clients)
    return [groups[kind][0] for kind in sorted(groups, reverse=True)]
