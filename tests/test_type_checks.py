"""What the checks of types and shapes, under which the tests run the package, notice and let through."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from helpers.typecheck import KNOWN, checked
from hushprompt.privacy.clipping import clip_factors
from hushprompt.prompts.layout import PromptLayout
from hushprompt.runs.records import RoundRecord

if TYPE_CHECKING:
    from nowhere import Unknown

Late = TypeVar("Late", bound="Pair")
ROWS, OTHERS = torch.ones(2, 3), torch.ones(4, 3)


@checked
@dataclasses.dataclass(frozen=True)
class Pair:
    first: Float[Tensor, "n d"]
    second: Float[Tensor, "n d"] | None = None


@checked
def scaled(rows: Float[Tensor, "n d"], by: float, *more: int, rest: str = "", **others: bool) -> Float[Tensor, " n"]:
    return rows.sum(dim=1) if by else rows


@checked
def same(pair: Late, unknown: Unknown = None, untold=None, of: type[Late] = Pair) -> Late:
    return unknown or pair


def made(result):
    @checked
    def nested(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        scaled(OTHERS, 1)  # the axes of another call are its own
        return result

    return nested


@pytest.mark.parametrize(
    "right",
    [
        lambda: scaled(ROWS, 2, 1, 2, rest="x", more_of_it=True),
        lambda: scaled(rows=ROWS, by=2.0),
        lambda: Pair(ROWS, second=ROWS),
        lambda: same(Pair(ROWS), untold="anything", of=Pair),
        lambda: made(ROWS)(ROWS),
    ],
)
def test_what_is_annotated_passes(right):
    right()


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (lambda: scaled(ROWS[0], 1.0), "scaled, rows"),
        (lambda: scaled(by=1.0, rows=ROWS.long()), "scaled, rows"),
        (lambda: scaled(ROWS, "1"), "scaled, by"),
        (lambda: scaled(ROWS, 1.0, "x"), r"scaled, \*"),
        (lambda: scaled(ROWS, 1.0, rest=1), "scaled, rest"),
        (lambda: scaled(ROWS, 1.0, more_of_it="x"), "scaled, more_of_it"),
        (lambda: scaled(ROWS, 0.0), "scaled, the result"),
        (lambda: Pair(ROWS, OTHERS), "Pair.__init__, second"),
        (lambda: same(ROWS), "same, pair"),
        (lambda: same(Pair(ROWS), of=int), "same, of"),
        (lambda: same(Pair(ROWS), 1), "same, the result"),
        (lambda: made(OTHERS)(ROWS), "nested, the result"),
        (lambda: made(ROWS)(ROWS[0]), "nested, rows"),
    ],
)
def test_what_is_not_is_refused_by_name(wrong, name):
    with pytest.raises(TypeCheckError, match=rf"{name}: "):
        wrong()


def test_the_package_is_under_them():
    with pytest.raises(TypeCheckError, match=r"(?i)hushprompt\.privacy\.clipping\.clip_factors, grads: "):
        clip_factors(torch.ones(3, dtype=torch.int64), 1.0)
    assert all(hasattr(one.__init__, "__wrapped__") for one in (RoundRecord, PromptLayout))
    assert made(ROWS) is not made(ROWS)
    assert sum((code.co_name, code.co_filename) == ("nested", __file__) for code in KNOWN) == 1, "it is looked at once"
