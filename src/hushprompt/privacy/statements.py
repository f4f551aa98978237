"""Every sentence that a privacy statement is made of: who sees what, at which epsilon, and what no guarantee covers.

The command line, the report, the records and the deployment say these words and no others. Epsilon never stands
without delta, privacy unit, neighboring relation, sampling and accountant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hushprompt.words import counted

if TYPE_CHECKING:
    from hushprompt.privacy.guarantee import Guarantee
    from hushprompt.privacy.shares import ShareTerms

AUDIENCES = {
    "public": "the public (sees the global prompt after every round; other clients see the same)",
    "personal": "the holder of a client's personal prompt (who also sees all the public sees)",
    "server": "the server (receives all that clients send)",
}
"""Who sees what."""
UNITS = {
    "example": ("one example", "one example of one client"),
    "client": ("one client's whole data", "one client with all of its examples"),
    "evaluation image": ("one evaluation image", "one evaluation image of one client"),
}
"""Privacy units but groups: what neighbors differ by, and who is protected."""
GROUPS = (
    "Groups are each client's own. Who has examples at two clients is a group at each: for both together group privacy "
    "holds, at 2 epsilon and (1 + e^epsilon) delta, and nothing smaller is claimed. Of a group with more than "
    "{most} examples a step takes {most}, drawn anew."
)
"""Where groups are the unit."""
CLASSES_DECLARED = "Which classes the client has was declared public and is not protected."
"""Of a client's own prompt that is made for its classes."""
OTHER_CLIENT = "Sees what the public sees, and has the same guarantee as the public."
SERVER = {
    "server": (
        "The server is trusted: it sees each client's clipped sum before noise, so nothing here protects a client from "
        "the server."
    ),
    "client": (
        "The server need not be trusted with the data: every client adds the noise itself, in full, before anything "
        "leaves it. The server has the guarantee of the audience named server, from what it receives of each client "
        "alone."
    ),
    "shares": (
        "The server need not be trusted with the data. Its guarantee holds against whoever runs it, or breaks into it, "
        "whatever it sends to whom, together with up to {colluding}: in a step it learns of a client one noisy sum at "
        "most, over at least {honest} clients that are not with it. Clients add the noise. Computational: it rests on "
        "AES-128, X25519 and on the public keys that owners compared. Not hidden: names and numbers of images, who "
        "takes part and when. Clients are not kept from sending wrong sums."
    ),
}
"""What the server sees, by who adds the noise."""
NOTHING_SHARED = "Nothing that derives from private data reaches the server."
"""Where clients would add shares of the noise, and a method shares nothing."""
SHARES_SEEDED = "A simulation: who knows the seed takes the noise away."
SHARES_IN_ONE_PROCESS = (
    "This is said of a federation with these settings; here one process simulated it, which adds up the same numbers "
    "without masks. Whoever runs that process holds all data."
)
WITH_SERVER = ", with up to {colluding} on the server's side and at least {honest} others in every sum"
"""What a guarantee against the server rests on, where clients add shares of the noise."""
LOSSES_NOT_PRIVATE = (
    "Not private, simulation only: training losses in records.jsonl, and the checkpoint, which belongs to the "
    "simulation. Not private either: fingerprints of the data in identity.json, summary.json and ledger.jsonl, by "
    "which whoever knows all other images can tell whether a certain one was there."
)
NOT_PRIVATE = f"{LOSSES_NOT_PRIVATE} Accuracies are read from evaluation images, which this guarantee does not cover."
EVALUATION_IMAGES = (
    "{statement} It covers all accuracies of all arms of this run, which come from noisy counts: at each evaluation, "
    "noise of standard deviation {local:.4g} {counted} on each client's local count and {neighbor:.4g} on its neighbor "
    "count. "
    "Whoever evaluates is trusted: it sees the counts before noise. The budget, limit and ledger of training, and the "
    "guarantees of its examples, are apart from this."
)
GAINS = (
    "{statement} It covers what a client tells of its own evaluation images: how many of them were right before and "
    "after, each with noise of standard deviation {std:.4g} {counted} that the client adds itself, once a run; and "
    "their number becomes public. The budget, limit and ledger of training, and the guarantees of its examples, are "
    "apart from this."
)
"""What leaves a client of evaluation images, where the run asks for it."""
STAYS_AT_HOME = (
    "A federation of separate machines: losses, scores, personal prompts, features and fingerprints of the data "
    "stay with each client. The server knows who takes part, when, and each client's number of training examples, or "
    "of groups where these are the privacy unit."
)
NOISE_SOURCE = {
    "seeded": "Noise comes from the run's seed: a repeatable simulation. Whoever knows the seed can remove the noise.",
    "secure": (
        "Noise comes from the operating system's cryptographic generator, as exact discrete Gaussians on a grid, and "
        "so do batches: with no pseudo-random stream in between, but in a federation with noise shares through AES-256 "
        "under a key from that generator that stays with each client. The run's seed says nothing about either, so the "
        "run cannot be repeated. It can be resumed; a round that draws anew is charged again."
    ),
}
SIMULATION = "simulation"
"""What a run with seeded noise is. The word stands beside every epsilon of such a run."""
SOURCE_UNKNOWN = (
    "This file is from a version that did not write down where noise came from: read its epsilon as that of a "
    f"{SIMULATION}."
)
COUNTS_NOT_PRIVATE = (
    "Not private, simulation only: counts of a client's examples by class are not covered by any guarantee."
)
COPIES = (
    "for an image that stands {times} one client's training set, all its copies together, "
    "epsilon = {epsilon:.4g}{simulated}, not {once:.4g}, at delta = {delta:g} towards {audience}, {relation}, "
    "{sampling}; accountant: {accountant}"
)
"""What a guarantee is worth to an example that stands several times in a training set."""
SEVERAL_ARMS = "Each arm is accounted for on its own; publishing several arms of one run adds up their privacy losses."
PARTICIPATION = (
    "{cohort_size} of {num_clients} clients {take} part in a round, by a public schedule from which no amplification "
    "is claimed: the guarantees are those of a client with the most rounds, {most} of {num_rounds}. A client that "
    "fails in a round is charged for it."
)
START = (
    "The shared context starts from one release of class statistics ({sampling}, noise multiplier "
    "{noise_multiplier:.4g}), which has {share:.0%} of the budget. It is charged before the rounds, to every audience: "
    "each epsilon above is that of this release and of the rounds together."
)
ONE_RELEASE = (
    "Each client releases once, and a client that leaves takes nothing back: its sums are in what was released."
)
LATE = (
    "{clients} joined after that and released the last part alone, with noise multiplier {multiplier:.4g} where the "
    "others have {whole:.4g}: epsilon = {epsilon:.4g}{simulated} at delta = {delta:g} for one {unit} of such a "
    "client, {sampling}, 1 release, {relation}, towards {audience}; accountant: {accountant}."
)
"""Of clients that make the last part of the one release alone."""
ADAPTIVE_CLIPPING = "clip_norms are those of the first step; noise_multipliers are those of sum and count together."
ROUNDING = (
    "The model computes examples of a batch together, so last bits of one gradient depend on the others. Noise is made "
    "larger by {margin:.2g} of itself for that: {rows} examples of the largest client, each moved by at most "
    "{rounding:g} of the clip norm, which was checked on the model before training."
)
ROUNDING_LEFT_OUT = (
    "Rounding is not accounted for: the model computes examples of a batch together, so last bits of one gradient "
    "depend on the others."
)
FALSE_ALARMS = 0.01
"""Rate of false accusations at which a guarantee is put into plain words."""


def beside_epsilon(noise_source: str | None) -> str:
    """Return what must stand behind an epsilon, with the space before it: that it is one of a simulation, or nothing.

    >>> beside_epsilon("seeded"), beside_epsilon("secure")
    (' (simulation)', '')
    """
    return f" ({SIMULATION})" if noise_source == "seeded" else ""


def of_a_simulation(whose: str) -> str:
    """Say that an epsilon, or several, are those of a simulation; a sentence.

    >>> of_a_simulation("Every epsilon here")
    "Every epsilon here is that of a simulation: noise came from the run's seed."
    """
    return f"{whose} is that of a {SIMULATION}: noise came from the run's seed."


def noise_source_of(record: Mapping[str, Any]) -> str:
    """Return the noise source that a `privacy.json` tells in a sentence; before there was a choice, all was seeded."""
    return "secure" if "cryptographic generator" in str(record.get("noise_source")) else "seeded"


def with_noise_source(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `privacy.json` whose every guarantee tells its noise source; older versions told it once for the run."""
    source = noise_source_of(record)
    return {**record, "arms": [_told(arm, source) for arm in record.get("arms", [])]}


def _told(arm: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return one arm of a privacy record with the noise source in its guarantees."""
    return {**arm, "audiences": {who: told(held, source) for who, held in arm.get("audiences", {}).items()}}


def told(guarantee: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Return a recorded guarantee that tells its noise source, in its statement too; one that does stays as it is."""
    if guarantee.get("noise_source"):
        return guarantee
    statement = str(guarantee.get("statement", ""))
    marked = re.sub(r"^(epsilon = \S+) at ", rf"\1{beside_epsilon(source)} at ", statement)
    return {**guarantee, "noise_source": source, "statement": marked}


def copies_statement(guarantee: Guarantee, epsilon: float, num_copies: int, noise_source: str) -> str:
    """Say what a guarantee is worth to an example with copies in the same training set.

    Args:
        guarantee: of an example that stands there once.
        epsilon: of all copies together.
        num_copies: how often it stands there.
        noise_source: "seeded" or "secure".
    """
    return COPIES.format(
        times=f"in {num_copies} groups of" if guarantee.privacy_unit == "group" else f"{num_copies} times in",
        epsilon=epsilon,
        simulated=beside_epsilon(noise_source),
        once=guarantee.epsilon,
        delta=guarantee.delta,
        audience=AUDIENCES[guarantee.audience],
        relation=guarantee.neighboring_relation,
        sampling=guarantee.sampling,
        accountant=guarantee.accountant,
    )


def server_statement(noise_at: str, terms: ShareTerms | None, noise_source: str, *, in_one_process: bool) -> str:
    """Say what the server sees.

    Args:
        noise_at: who adds the noise.
        terms: with noise shares, who may be with the server; None where nothing is shared.
        noise_source: "seeded" or "secure".
        in_one_process: whether clients and server are simulated.
    """
    if noise_at != "shares":
        return SERVER[noise_at]
    if terms is None:
        return NOTHING_SHARED
    told = SERVER["shares"].format(colluding=counted(terms.max_colluding, "client"), honest=terms.honest)
    more = [SHARES_SEEDED] * (noise_source == "seeded") + [SHARES_IN_ONE_PROCESS] * in_one_process
    return " ".join([told, *more])


def units(privacy_unit: str, group_word: str = "") -> tuple[str, str]:
    """Return what neighbors differ by, and who is protected.

    >>> units("group", "patient's images")
    ("one patient's images", "all of one patient's images at one client (a patient at two clients counts twice)")
    """
    if privacy_unit in UNITS:
        return UNITS[privacy_unit]
    whose = group_word if "'s " in group_word else f"{group_word or 'group'}'s examples"
    noun = whose.partition("'s ")[0]
    whose += " for evaluation" * (privacy_unit == "evaluation group")
    return f"one {whose}", f"all of one {whose} at one client (a {noun} at two clients counts twice)"


def unit_noun(guarantee: Mapping[str, Any]) -> str:
    """Return the noun of who is protected by a recorded guarantee: "example", "client", or the word for a group."""
    unit = str(guarantee.get("privacy_unit", "example"))
    return str(guarantee.get("group_word") or unit).partition("'s ")[0] if unit not in UNITS else unit


def in_units(description: str, word: str, instead_of: str = "example") -> str:
    """Return the description of a sampling in the word for what is drawn.

    >>> in_units("Poisson sampling of 8 examples of each client", "family")
    'Poisson sampling of 8 families of each client'
    """
    plural = counted(2, word).removeprefix("2 ")
    return description.replace(f"{instead_of}s", plural).replace(instead_of, word)


def guarantee_statement(guarantee: Guarantee) -> str:
    """Return a guarantee in one sentence."""
    one, unit = units(guarantee.privacy_unit, guarantee.group_word)
    noun = unit_noun({"privacy_unit": guarantee.privacy_unit, "group_word": guarantee.group_word})
    noun = "example" if noun == "client" else noun
    beside = "".join(
        f" and {part.num_steps} more "
        + (f"of every {noun}, without sampling," if part.sampling_prob == 1 else f"sampled with {part.sampling_prob:g}")
        + f" with noise multiplier {part.noise_multiplier:.4g}"
        for part in guarantee.beside
        if not part.is_empty
    )
    differ = f"{one} more or less" if guarantee.neighboring_relation == "add_remove" else f"{one} exchanged"
    releases = counted(guarantee.releases.num_steps, "release")
    context = (
        f"at delta = {guarantee.delta:g} for {unit}, neighbors differing by {differ} "
        f"({guarantee.neighboring_relation}), {guarantee.sampling}, {releases}{beside}{_with_server(guarantee.terms)}"
    )
    if math.isinf(guarantee.epsilon):
        return f"No guarantee (epsilon = inf, {guarantee.why_unbounded}) {context}."
    if not guarantee.parts:
        return f"Nothing derived from private data is released (epsilon = 0) {context}."
    warned = "".join(f" WARNING: {text}" for text in guarantee.warnings)
    simulated = beside_epsilon(guarantee.noise_source)
    return f"epsilon = {guarantee.epsilon:.4g}{simulated} {context}; accountant: {guarantee.accountant}.{warned}"


def _with_server(terms: ShareTerms | None) -> str:
    """Say what noise shares take for granted; "" where there are none."""
    if terms is None:
        return ""
    return WITH_SERVER.format(colluding=counted(terms.max_colluding, "client"), honest=terms.honest)


def in_plain_words(guarantee: Mapping[str, Any]) -> str:
    """Say what the best possible test for a single example could find out.

    A test on an (epsilon, delta)-DP output with false alarm rate a finds what it looks for with probability at most
    min(e^eps a + delta, 1 - e^-eps (1 - delta - a)).

    Source: Kairouz, Oh, Viswanath 2015 (arXiv:1311.0776), Theorem 2.1.
    """
    epsilon, delta = number(guarantee.get("epsilon")), number(guarantee.get("delta"))
    unit = unit_noun(guarantee)
    if math.isnan(epsilon) or math.isnan(delta):
        return ""
    if math.isinf(epsilon):
        return f"In plain words: nothing limits what can be learned about a single {unit}."
    releases = guarantee.get("releases") or {}
    is_empty = releases.get("num_steps") == 0 or releases.get("noise_multiplier") == "inf"
    if is_empty and not guarantee.get("beside"):
        return f"In plain words: this audience sees nothing that depends on any {unit}."
    power = detection_rate(epsilon, delta, FALSE_ALARMS)
    little = " That is next to no protection by this bound alone." if power > 0.95 else ""
    return (
        f'In plain words: a test that wrongly says "it was used" in {FALSE_ALARMS:.0%} of cases notices the use of a '
        f"single {unit} in at most {power:.1%} of cases, whatever else the tester knows.{little}"
    )


def detection_rate(epsilon: float, delta: float, false_alarms: float) -> float:
    """Return the highest detection rate that (epsilon, delta) leaves to a test with a rate of false alarms.

    >>> round(detection_rate(1.0, 0.0, 0.01), 4), detection_rate(1000.0, 0.0, 0.01)
    (0.0272, 1.0)
    """
    first = math.exp(min(epsilon, 700.0)) * false_alarms + delta
    second = 1 - math.exp(-epsilon) * (1 - delta - false_alarms)
    return max(0.0, min(first, second, 1.0))


def cross_check_lines(arm: dict[str, Any]) -> list[str]:
    """Return for each audience of one arm of `privacy.json` its epsilon by every accountant that applies."""
    lines = []
    for audience, guarantee in arm["audiences"].items():
        values = ", ".join(
            f"{name} {value if isinstance(value, str) else f'{value:.4g}'}"
            for name, value in guarantee["cross_checks"].items()
        )
        warnings = guarantee.get("warnings") or ["no contradiction"]
        claimed = guarantee["accountant"]
        simulated = beside_epsilon(guarantee.get("noise_source"))
        lines.append(
            f"  {audience}: epsilon{simulated} by accountant: {values}; claimed: {claimed}; {' '.join(warnings)}."
        )
    return lines


def account_lines(arm: dict[str, Any]) -> list[str]:
    """Return each distinct guarantee of one arm of `privacy.json` and its clients, the worst first."""
    lines = []
    simulated = next((beside_epsilon(held.get("noise_source")) for held in arm["audiences"].values()), "")
    for account in arm.get("clients", []):
        clients = ", ".join(map(str, account["clients"][:10])) + (", ..." if len(account["clients"]) > 10 else "")
        spent = ", ".join(
            f"{audience} {value if isinstance(value, str) else f'{value:.4g}'}"
            for audience, value in account["epsilon"].items()
        )
        lines.append(
            f"  {counted(len(account['clients']), 'client')} ({clients}): "
            f"{counted(account['num_rounds'], 'round')} charged, "
            f"sampling probability {account['sampling_prob']:.4g}; epsilon so far{simulated}: {spent}."
        )
    return lines


def rounding_statement(num_rounded: int, rounding: float, *, is_most: bool = False) -> str:
    """Say how rounding is accounted for; "" where no contribution is computed together with others.

    Args:
        num_rounded: rows that rounding may move; see `ReleasePlan`.
        rounding: largest move of a row, over the clip norm.
        is_most: whether there may be fewer rows.
    """
    if not num_rounded:
        return ""
    if not rounding:
        return ROUNDING_LEFT_OUT
    rows = f"at most {num_rounded}" if is_most else num_rounded
    return ROUNDING.format(margin=num_rounded * rounding, rows=rows, rounding=rounding)


def start_statement(start: Mapping[str, Any]) -> str:
    """Say what an arm starts from, of which `start` is the entry in `privacy.json`."""
    held = next(iter(start["audiences"].values()))
    return START.format(share=start["share"], noise_multiplier=start["noise_multipliers"]["global"], **held)


def statement_lines(arm: Mapping[str, Any]) -> list[str]:
    """Return each audience's guarantee of one arm of `privacy.json`, and who takes part where not all do.

    Older records lack some of it.
    """
    lines = [
        f"{arm['arm']}: for {AUDIENCES[audience]}: {guarantee['statement']}"
        for audience, guarantee in arm["audiences"].items()
    ]
    more = [  # missing in records of version 0.1
        start_statement(arm["start"]) if "start" in arm else None,
        arm.get("participation", {}).get("statement"),
        arm.get("rounding"),
        arm.get("one_release"),
        arm.get("groups"),
    ]
    return lines + [f"{arm['arm']}: {statement}" for statement in more if statement]


def clauses(audience: str, guarantee: Mapping[str, Any]) -> list[str]:
    """Return everything that gives an epsilon its meaning but the epsilon itself, clause by clause.

    Args:
        audience: who looks, in words.
        guarantee: as `privacy.json` has it.
    """
    num_steps = (guarantee.get("releases") or {}).get("num_steps")
    terms = guarantee.get("terms")
    return [
        f"for {audience}",
        f"delta = {number(guarantee.get('delta')):g} for one {unit_noun(guarantee)} of one client",
        f"neighboring relation {guarantee.get('neighboring_relation')}",
        *str(guarantee.get("sampling")).split(", "),
        *([] if num_steps is None else [counted(num_steps, "release")]),
        f"accountant: {guarantee.get('accountant')}",
        *([] if not terms else [_told_terms(terms)]),
        *([f"{SIMULATION} with seeded noise"] if guarantee.get("noise_source") == "seeded" else []),
    ]


def _told_terms(terms: Mapping[str, Any]) -> str:
    """Return what a recorded guarantee against the server rests on."""
    colluding = counted(int(terms["max_colluding"]), "client")
    return WITH_SERVER.format(colluding=colluding, honest=terms["honest"]).removeprefix(", ")


def number(value: Any) -> float:
    """Read a number from JSON: "inf" is infinity; null, and anything else that is no number, is NaN.

    >>> number("inf"), number(None), number(3)
    (inf, nan, 3.0)
    """
    if value == "inf":
        return math.inf
    return float(value) if isinstance(value, (int, float)) else math.nan
