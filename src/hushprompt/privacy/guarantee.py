"""An epsilon with all that gives it meaning, by every accountant that applies, in one sentence.

`accounting.py` computes; here its accountants are held against each other, and what they show is said.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hushprompt.extras import version_of
from hushprompt.privacy import accounting, statements
from hushprompt.privacy.losses import FINE
from hushprompt.privacy.releases import GaussianReleases
from hushprompt.privacy.shares import ShareTerms

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""What rounding alone explains where an accountant shows relatively less than theory allows."""
LOOSENESS = 1e-2
"""What discretization explains where "pld" shows relatively more than the exact curve, beside one grid step."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Guarantee:
    """An epsilon with all that gives it meaning."""

    audience: str
    epsilon: float
    delta: float
    privacy_unit: str
    neighboring_relation: accounting.Relation
    sampling: str
    accountant: str
    releases: GaussianReleases
    event: str
    """The composed event, as dp_accounting spells it."""
    cross_checks: dict[str, float]
    """Epsilon by every accountant that applies."""
    warnings: tuple[str, ...] = ()
    """Contradictions between accountants, see `contradictions`; epsilon is then the largest of all."""
    why_unbounded: str = "no noise"
    """Where epsilon is infinite: the reason, in the words of a statement."""
    beside: tuple[GaussianReleases, ...] = ()
    """Releases of other mechanisms on the same data, which epsilon counts too."""
    group_word: str = ""
    """Where the unit is a group: the config's word for one."""
    noise_source: Literal["seeded", "secure"] | None = None
    """Where the noise comes from: "seeded" makes all of it a simulation. None: not known, or none is drawn yet."""
    terms: ShareTerms | None = None
    """Of a server that sees sums with noise shares: who may be with it, and who is behind each sum."""

    def statement(self) -> str:
        """Say the guarantee in one sentence; epsilon never stands alone."""
        return statements.guarantee_statement(self)

    @property
    def parts(self) -> tuple[GaussianReleases, ...]:
        """All releases that epsilon counts, in few parts; empty where nothing is released."""
        return accounting.compose((self.releases, *self.beside))

    def __repr__(self) -> str:
        return f"Guarantee for {self.audience}: {self.statement()}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `terms` only where there are some."""
        values = asdict(self)
        terms = values.pop("terms")
        return values if self.terms is None else {**values, "terms": {**terms, "honest": self.terms.honest}}


def guarantee(
    *,
    audience: str,
    releases: GaussianReleases,
    delta: float,
    relation: accounting.Relation,
    unit: str,
    sampling_description: str,
    why_unbounded: str = "no noise",
    beside: tuple[GaussianReleases, ...] = (),
) -> Guarantee:
    """Account for the releases and cross-check by every other accountant that applies.

    Where one of them contradicts theory, a warning goes into the guarantee and the largest epsilon is claimed.
    """
    parts = (releases, *beside)
    claim, values, least = accounting.claim(parts, delta=delta, relation=relation)
    found = contradictions(values, least, is_exact=all(p.sampling_prob == 1 for p in accounting.compose(parts)))
    claimed = max(values, key=lambda name: values[name]) if found else claim.accountant
    for text in found:
        logger.warning("%s Please report this with the event %r.", text, accounting.event(parts))
    return Guarantee(
        audience=audience,
        epsilon=values[claimed],
        delta=delta,
        privacy_unit=unit,
        neighboring_relation=relation,
        sampling=sampling_description,
        accountant=_accountant_name(claimed, is_sampled=any(p.sampling_prob < 1 for p in accounting.compose(parts))),
        releases=releases,
        event=repr(accounting.event(parts)),
        cross_checks={str(name): value for name, value in values.items()},
        warnings=found,
        why_unbounded=why_unbounded,
        beside=beside,
    )


def contradictions(values: Mapping[accounting.Accountant, float], least: float, *, is_exact: bool) -> tuple[str, ...]:
    """Say which accountants show what theory rules out.

    All accountants show upper bounds, each with its own rounding, so which one shows less proves nothing. None may show
    less than the truth; and without sampling "pld" may not show more than the truth plus its discretization:
    `TOLERANCE` and `LOOSENESS`. "rdp" may be any amount looser.

    Args:
        values: epsilon by accountant.
        least: what the true epsilon cannot be below: itself where it is known, else what an attack proves.
        is_exact: True where `least` is the true epsilon.

    >>> contradictions({"gdp": 1.0, "pld": 1.0001, "rdp": 0.9}, 1.0, is_exact=True)
    ('The rdp accountant shows epsilon 0.9, and the true one is at least 1, which theory rules out.',)
    """
    found = []
    if math.isinf(least):
        return ()
    for name, value in values.items():
        is_too_large = is_exact and name == "pld" and value > least * (1 + LOOSENESS) + FINE
        if is_too_large or value < least * (1 - TOLERANCE) - 1e-6:
            found.append(
                f"The {name} accountant shows epsilon {value:.6g}, and the true one is "
                f"{'' if is_too_large else 'at least '}{least:.6g}, which theory rules out."
            )
    return tuple(found)


def _accountant_name(accountant: accounting.Accountant, *, is_sampled: bool) -> str:
    if accountant == "gdp":
        return "exact Gaussian (GDP)" + (", sampling not counted" if is_sampled else "")
    return f"dp_accounting {version_of('dp-accounting')} {accountant.upper()}"
