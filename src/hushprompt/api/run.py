"""A run as an object: its table, its guarantees, its records and its prompts, read from its folder."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hushprompt.api.prompt import Prompt, load_prompt
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.errors import DataError
from hushprompt.privacy.guarantee import Guarantee
from hushprompt.reporting import tables
from hushprompt.reporting.result_table import ResultTable, result_table
from hushprompt.runs import reader, records
from hushprompt.runs.records import ArmSummary, RoundRecord

if TYPE_CHECKING:
    from hushprompt.runs.reader import FinishedRun


@dataclass(frozen=True, repr=False)
class Run:
    """A run folder. Wherever a path is wanted, a run stands for its folder."""

    folder: Path

    @functools.cached_property
    def config(self) -> RunConfig:
        """The run's resolved config."""
        return configs.load(self.folder / "config.toml")

    @functools.cached_property
    def _found(self) -> FinishedRun:
        """What the folder holds."""
        return reader.read(self.folder)

    @property
    def is_finished(self) -> bool:
        """Whether every arm is trained."""
        return self._found.is_finished

    @property
    def arms(self) -> Sequence[ArmSummary]:
        """Results, one entry an arm: references first, the run's own method last; empty before a run has finished."""
        return self._found.arms

    @property
    def privacy(self) -> Mapping[str, Any]:
        """The privacy record: of each arm the mechanisms, their composed event, and every audience's guarantee."""
        if self._found.privacy is None:
            raise DataError(f"{self.folder} has no privacy.json: the run has not finished. Go on with resume().")
        return self._found.privacy

    @property
    def guarantees(self) -> dict[str, Guarantee]:
        """The guarantee of the run's own method for each audience; `statement()` says one in a sentence."""
        return guarantees_of(self.privacy["arms"][-1])

    @property
    def records(self) -> list[RoundRecord]:
        """One record for each arm and round, in order. Losses are not private: simulation only."""
        lines = (line for rounds in self._found.rounds.values() for line in rounds)
        return [records.from_json(RoundRecord, dict(line)) for line in lines]

    def statement(self) -> str:
        """Say in sentences who sees what of each arm, at which epsilon."""
        return "\n".join(line for arm in self.privacy["arms"] for line in tables.statement_lines(arm))

    def table(self) -> ResultTable:
        """Return the result table, one row an arm: it shows itself in a terminal and in a notebook."""
        if not self.is_finished:
            raise DataError(f"{self.folder} has no result table yet: the run has not finished. Go on with resume().")
        return result_table(self.arms, self.privacy)

    def prompt(self, client: int | str | None = None, *, backbone: Any = None) -> Prompt:
        """Return a trained prompt: a client's own, or without `client` the global one.

        Args:
            client: number or name, such as 0 or "client-0".
            backbone: as for `load_prompt`; None: the run's own, when it is needed.
        """
        return load_prompt(self.folder, client=client, backbone=self.config.backbone if backbone is None else backbone)

    def __fspath__(self) -> str:
        """Return the folder."""
        return str(self.folder)

    def __repr__(self) -> str:
        """Say what was run, and what it guarantees."""
        config = self._found.config
        names = ", ".join(str(config[section]["name"]) for section in ("method", "data", "partition"))
        head = f"Run({str(self.folder)!r}): {names}, seed {self._found.seed}"
        if not self.is_finished:
            return f"{head}, not finished"
        own = self.privacy["arms"][-1]
        return "\n".join([head, *tables.statement_lines(own)])

    def _repr_html_(self) -> str:
        """Return the result table for a notebook."""
        from markupsafe import escape

        return self.table()._repr_html_() if self.is_finished else f"<pre>{escape(repr(self))}</pre>"


def load(folder: str | Path) -> Run:
    """Return the run of a folder, finished or not.

    Raises:
        DataError: it is no run folder.
    """
    if not (Path(folder) / "config.toml").exists():
        raise DataError(f"{folder} is not a run folder: it has no config.toml.")
    return Run(Path(folder))


def guarantees_of(arm: Mapping[str, Any]) -> dict[str, Guarantee]:
    """Return each audience's guarantee from an arm's privacy record."""
    return {str(name): records.from_json(Guarantee, dict(values)) for name, values in arm["audiences"].items()}
