"""A run as an object: its table, its guarantees, its records and its prompts, read from its folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hushprompt.errors import DataError, files_told
from hushprompt.privacy import statements
from hushprompt.runs import manifest, records
from hushprompt.runs.manifest import CLAIMS
from hushprompt.runs.records import ArmSummary, RoundRecord
from hushprompt.words import counted

if TYPE_CHECKING:
    from hushprompt.api.many_runs import RunFigure
    from hushprompt.config.schema import RunConfig
    from hushprompt.privacy.guarantee import Guarantee
    from hushprompt.reporting.result_table import ResultTable
    from hushprompt.serving.prompt import Prompt


@dataclass(frozen=True, repr=False)
class Run:
    """A run folder. Wherever a path is wanted, a run stands for its folder."""

    folder: Path

    @functools.cached_property
    def config(self) -> RunConfig:
        """The run's resolved config."""
        from hushprompt.config import parse as configs

        return configs.load_stored(self.folder)

    @property
    def is_finished(self) -> bool:
        """Whether every arm is trained."""
        return (self.folder / "summary.json").exists()

    @functools.cached_property
    def arms(self) -> Sequence[ArmSummary]:
        """Results, one entry an arm: references first, the run's own method last."""
        summary = records.read_record(self._file("summary.json"))
        return [records.from_json(ArmSummary, arm) for arm in summary["arms"]]

    @functools.cached_property
    def privacy(self) -> Mapping[str, Any]:
        """The privacy record as it was written; what is computed again is said by `guarantees` and `statement()`.

        Of each arm the mechanisms, their composed event, and every audience's guarantee.
        """
        return statements.with_noise_source(records.read_record(self._file("privacy.json")))

    @property
    def guarantees(self) -> dict[str, Guarantee]:
        """The guarantee of the run's own method for each audience; `statement()` says one in a sentence.

        Computed again from config and ledger, as `hushprompt privacy` does, and only read where that is impossible.
        What does not agree in the folder is among the warnings.
        """
        record, differences = self._computed
        return {
            name: dataclasses.replace(held, warnings=(*held.warnings, *differences))
            for name, held in guarantees_of(record["arms"][-1]).items()
        }

    @property
    def records(self) -> list[RoundRecord]:
        """One record for each arm and round so far, in order. Losses are not private: simulation only."""
        return records.recorded(self.folder)

    def statement(self) -> str:
        """Say in sentences who sees what of each arm, at which epsilon, computed as `guarantees`; and what differs."""
        record, differences = self._computed
        lines = [line for arm in record["arms"] for line in statements.statement_lines(arm)]
        return "\n".join([*lines, *(f"DIFFERENCE: {text}." for text in differences)])

    def table(self) -> ResultTable:
        """Return the result table, one row an arm: it shows itself in a terminal and in a notebook."""
        from hushprompt.reporting.result_table import result_table

        table = result_table(self.arms, self.privacy)
        return dataclasses.replace(table, notes=(*self._edited, *table.notes))

    def prompt(self, client: int | str | None = None, *, backbone: Any = None) -> Prompt:
        """Return a trained prompt: a client's own, or without `client` the global one.

        Args:
            client: number or name, such as 0 or "client-0".
            backbone: as for `load_prompt`; None: the run's own, when it is needed.
        """
        from hushprompt.serving.loading import load_prompt

        return load_prompt(self.folder, client=client, backbone=backbone)

    def figure(self, kind: str = "curves", out: str | Path | None = None) -> RunFigure:
        """Draw a figure of this run: `hushprompt.figure` has the kinds."""
        from hushprompt.api.many_runs import figure

        return figure(self, out, kind=kind)

    @functools.cached_property
    def _computed(self) -> tuple[Mapping[str, Any], Sequence[str]]:
        """The privacy record computed again, or as it was written where that is impossible; and what does not agree."""
        from hushprompt.audits.verify import recomputed  # imported here: plans need torch

        written, (computed, differences) = self.privacy, recomputed(self.folder)
        return written if computed is None else computed, differences

    @property
    def _edited(self) -> list[str]:
        """Which files were changed after the run ended, a sentence each."""
        return [f"{text}; `hushprompt verify` says what differs." for text in manifest.changes(self.folder, CLAIMS)]

    def __fspath__(self) -> str:
        return str(self.folder)

    def _file(self, name: str) -> Path:
        if not (self.folder / name).exists():
            raise DataError(f"{self.folder} has no {name}: it is not a finished run. Go on with it, if it is a run.")
        return self.folder / name

    def __repr__(self) -> str:
        head = f"Run({str(self.folder)!r})"
        if not self.is_finished:
            return f"{head}, not finished"
        own = self.arms[-1]
        head += f": {own.title} after {counted(len(self.arms) - 1, 'reference')}, "
        head += f"{counted(own.num_rounds, 'round')}, seed {own.seed}"
        return "\n".join([head, *self._edited, *statements.statement_lines(self.privacy["arms"][-1])])

    def _repr_html_(self) -> str:
        from markupsafe import escape

        return self.table()._repr_html_() if self.is_finished else f"<pre>{escape(repr(self))}</pre>"


@files_told()
def load(folder: str | Path) -> Run:
    """Return the run of a folder, finished or not; nothing is read before it is asked for.

    Raises:
        DataError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a finished run: there is no such folder.")
    return Run(Path(folder))


def guarantees_of(arm: Mapping[str, Any]) -> dict[str, Guarantee]:
    """Return each audience's guarantee from an arm's privacy record."""
    from hushprompt.privacy.guarantee import Guarantee

    return {str(name): records.from_json(Guarantee, dict(values)) for name, values in arm["audiences"].items()}
