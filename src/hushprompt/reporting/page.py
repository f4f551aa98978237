"""One self-contained page: no script, no font, no image and no address from outside, which its own policy forbids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hushprompt.errors import DataError
from hushprompt.privacy.statements import SIMULATION
from hushprompt.reporting.drawing import sample
from hushprompt.reporting.pooling import arms_of, pool
from hushprompt.reporting.sections import SECTIONS, Report
from hushprompt.reporting.styles import printable
from hushprompt.runs import reader
from hushprompt.runs.reader import FinishedRun
from hushprompt.words import counted

MAX_NAMED = 3
"""More methods than this are counted in the page's heading."""


def report(paths: Sequence[Path], title: str = "") -> str:
    """Make the page of some runs; equal records give equal bytes.

    Args:
        paths: run folders, folders with runs below them, or packed sweeps.
        title: heading of the page; empty: made of the data sets and methods.

    Raises:
        DataError: a path holds no finished run, or a file is damaged.
    """
    found = reader.find(paths)
    return page_of(found.runs, found.unfinished, title)


def page_of(runs: Sequence[FinishedRun], unfinished: Sequence[str] = (), title: str = "") -> str:
    """Make the page of runs that have been read.

    Raises:
        DataError: no run has an arm.
    """
    with_results = [run for run in runs if run.arms]
    if not with_results:
        raise DataError("No run has an arm in its summary.json, so there is nothing to report.")
    whole = Report(title or _title(with_results), with_results, unfinished, pool(with_results))
    sections = [section for make in SECTIONS if (section := make(whole)) is not None]
    samples = {group.name: sample(group.style, f"sample-{at}") for at, group in enumerate(whole.groups)}
    style = Markup(_resource("page.css"))
    page: str = _template().render(
        title=whole.title, subtitle=_subtitle(with_results), sections=sections, style=style, samples=samples,
        sample=sample, slugs={group.style: f"sample-{at}" for at, group in enumerate(whole.groups)},
    )  # fmt: skip
    return page.lstrip()


def _template() -> Any:
    """Return the template of the page: whatever is not markup already is escaped, so no name can leave its place."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    )
    return environment.from_string(_resource("page.html.j2"))


def _printable(value: Any) -> Any:
    """Replace the characters that no HTML document may hold."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _resource(name: str) -> str:
    """Read a file that comes with the package."""
    return (resources.files("hushprompt.reporting") / name).read_text(encoding="utf-8")


def _title(found: Sequence[FinishedRun]) -> str:
    """Name the page by methods and data."""
    methods = list(dict.fromkeys(run.arms[-1].title for run in found))
    named = " and ".join(methods) if len(methods) <= MAX_NAMED else f"{len(methods)} methods"
    return f"{named} on {_values(found, 'data', 'name')}"


def _subtitle(found: Sequence[FinishedRun]) -> str:
    """Say in one line what was run."""
    clients = _values(found, "partition", "num_clients")
    parts = [
        _values(found, "backbone", "name"),
        f"{_values(found, 'partition', 'name')}" + (f" over {counted(clients, 'client')}" if clients else ""),
        counted(_values(found, "training", "num_rounds"), "round"),
        f"seed {', '.join(str(seed) for seed in sorted({run.seed for run in found}))}",
        counted(len(found), "run"),
        _noise_sources(found),
    ]
    return " · ".join(part.replace("_", " ") for part in parts if part)


def _noise_sources(found: Sequence[FinishedRun]) -> str:
    """Say whether what is shown are simulations; empty where no epsilon is."""
    budgets = [arm for run in found for arm in arms_of(run) if math.isfinite(arm.summary.epsilon or math.inf)]
    num_simulated = sum(arm.noise_source == "seeded" for arm in budgets)
    if not num_simulated:
        return "secure noise" if budgets else ""
    return SIMULATION if num_simulated == len(budgets) else f"partly a {SIMULATION}"


def _values(found: Sequence[FinishedRun], section: str, key: str) -> str:
    """Return the values of a setting over all runs, each once."""
    values: list[Any] = [run.config.get(section, {}).get(key) for run in found]
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))
