"""Where plain values, the numbers of a sentence, or charges are not what they must be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hushprompt.privacy.guarantee import Guarantee
from hushprompt.privacy.ledger import Ledger
from hushprompt.runs import records
from hushprompt.runs.arm import Arm

RELATIVE = 1e-5
"""What rounding explains between a number and the same number computed again."""


def against_sentence(where: str, sentence: str, held: Mapping[str, Any]) -> Iterator[str]:
    """Say which numbers of a statement are not those of the guarantee."""
    due = {"epsilon": _written(held["epsilon"], ".4g"), "delta": _written(held["delta"], "g")}
    for name, number in due.items():
        found = re.search(rf"\b{name} = ([0-9a-z.+-]*[0-9a-z])", sentence)
        if found is None or found[1] != number:
            yield f"{where} says {name} = {found[1] if found else 'nothing'}, computed: {number}"
    steps = re.search(r"\b(\d+) releases?\b", sentence)
    if steps is None or int(steps[1]) != held["releases"]["num_steps"]:
        yield f"{where} says {steps[1] if steps else 'no'} releases, computed: {held['releases']['num_steps']}"


def differing(where: str, said: Any, due: Any) -> Iterator[str]:
    """Say where two trees of plain values differ; numbers may differ by rounding."""
    if isinstance(said, Mapping) and isinstance(due, Mapping):
        for key in dict.fromkeys([*due, *said]):
            if key not in said or key not in due:
                yield f"{where}: {key} is {'missing' if key in due else 'not expected'}"
            else:
                yield from differing(f"{where}, {key}" if where else key, said[key], due[key])
    elif isinstance(said, list) and isinstance(due, list) and len(said) == len(due):
        for at, (one, other) in enumerate(zip(said, due, strict=True)):
            yield from differing(f"{where} {at + 1}", one, other)
    elif not _is_same(said, due):
        yield f"{where} is {said}, computed: {due}"


def _is_same(said: Any, due: Any) -> bool:
    """Tell whether two plain values are the same up to rounding."""
    if any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in (said, due)):
        return bool(said == due)
    return math.isclose(said, due, rel_tol=RELATIVE, abs_tol=1e-12)


def part(values: Mapping[str, Any], keys: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Return some entries, as far as they are there: sentences among them are left out."""
    found = {key: values[key] for key in keys if key in values}
    if isinstance(found.get("participation"), Mapping):
        found["participation"] = {key: value for key, value in found["participation"].items() if key != "statement"}
    return found


def _written(value: Any, form: str) -> str:
    """Write a number as a statement does."""
    return value if isinstance(value, str) else format(value, form)


def against_server(where: str, said: str | None, held: Guarantee | None) -> Iterator[str]:
    """Say where a prompt file claims what is not proven against the server; older versions claimed nothing there."""
    if said is not None and held is None:
        yield f"{where} claims a guarantee, and there is none"
    elif said is not None and held is not None:
        yield from against_sentence(where, said, records.to_json(held.to_json()))


def against_schedule(arm: Arm, ledger: Ledger, own: str | None) -> Iterator[str]:
    """Say where charges are not those of the public schedule; `own`: that of one client alone is in the ledger."""
    for round_index, charged in sorted(ledger.made.items()):
        if round_index >= arm.num_rounds:
            yield f"{arm.label}: ledger.jsonl charges round {round_index + 1} of {arm.num_rounds}"
            continue
        due = set(arm.cohorts[round_index].tolist())
        if charged - due or (own is None and due - charged):
            yield f"{arm.label}: ledger.jsonl charges other clients in round {round_index + 1} than take part in it"
