"""The result table of one run: in a terminal, in a notebook, or as a data frame; never without what epsilon means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from hushprompt.errors import ConfigError
from hushprompt.privacy.statements import SIMULATION, noise_source_of
from hushprompt.reporting import formats, tables
from hushprompt.reporting.formats import Grid
from hushprompt.reporting.pooling import LOSSES, MEASURES, NEW_SCORES, SCORES
from hushprompt.runs.records import ArmSummary


@dataclass(frozen=True, kw_only=True, repr=False)
class ResultTable:
    """The arms of one run; shows itself in a terminal (rich) and in a notebook."""

    rows: tuple[Mapping[str, Any], ...]
    """One entry an arm: numbers as fractions, epsilon None where no private data was used."""
    grids: tuple[Grid, ...]
    """The same as texts: scores, and those on new classes if there are any."""
    notes: tuple[str, ...]
    """Sentences that belong under the table: what its epsilon means, and what it does not cover."""

    def __rich__(self) -> RenderableType:
        return Group(*self.grids, *map(Text, self.notes))

    def __repr__(self) -> str:
        """Return what a terminal of any width would show."""
        return "\n".join([*map(formats.plain, self.grids), *self.notes])

    def _repr_html_(self) -> str:
        """Return the tables and their notes for a notebook."""
        from markupsafe import escape

        notes = "".join(f"<p><small>{escape(note)}</small></p>" for note in self.notes)
        return "".join(grid._repr_html_() for grid in self.grids) + notes

    def frame(self) -> Any:
        """Return the rows as a pandas data frame, with the notes in its `attrs`.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ConfigError(f"frame() needs pandas ({error}). Get it with: pip install pandas") from error
        frame = pd.DataFrame(list(self.rows))
        frame.attrs["notes"] = self.notes
        return frame


def result_table(arms: Sequence[ArmSummary], privacy: Mapping[str, Any]) -> ResultTable:
    """Return the table of a run.

    Args:
        arms: the result of each arm; the run's own method stands last.
        privacy: what `privacy.json` holds.
    """
    source = noise_source_of(privacy)
    grids = [_grid(arms, SCORES, source, with_seconds=True)]
    if tables.has_new_classes(arms):
        grids.append(_grid(arms, NEW_SCORES, source, with_seconds=False))
    if any(arm.loss is not None for arm in arms):
        grids.append(_grid(arms, MEASURES, source, with_seconds=False))
    return ResultTable(
        rows=tuple(_row(arm, source) for arm in arms),
        grids=tuple(grids),
        notes=tuple(tables.captions(arms, dict(privacy))),
    )


def _row(arm: ArmSummary, source: str) -> dict[str, Any]:
    """Return the numbers of an arm, and whether its epsilon is one of a simulation."""
    names = ("method", "title", "epsilon", "delta", "audience", *SCORES, *NEW_SCORES, *MEASURES, "calibration_error")
    row = {name: getattr(arm, name) for name in (*names, "seconds", "seed", "num_rounds", "stopped")}
    return {**row, SIMULATION: None if arm.epsilon is None else source == "seeded"}


def _grid(arms: Sequence[ArmSummary], scores: Mapping[str, str], source: str, *, with_seconds: bool) -> Grid:
    """Write some scores of all arms in percent."""
    title, epsilons = tables.epsilon_column([(arm.epsilon, source) for arm in arms])
    rows = []
    for arm, epsilon in zip(arms, epsilons, strict=True):
        seconds = ["-" if math.isnan(arm.seconds) else f"{arm.seconds:.0f}"] if with_seconds else []
        cells = [_written(score, getattr(arm, score)) for score in scores]
        title = f"{arm.title} without noise" if arm.epsilon == math.inf else arm.title
        rows.append((title, *cells, epsilon, *seconds))
    return Grid(
        title="",
        header=("method (accuracies in %)", *scores.values(), title, *(["seconds"] if with_seconds else [])),
        rows=tuple(rows),
        notes=(),
        num_names=1,
    )


def _written(score: str, value: float | None) -> str:
    """Write a loss as it is, and any other score in percent."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3f}" if score in LOSSES else f"{100 * value:.1f}"
