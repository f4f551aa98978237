"""Choose a preset's defaults by measurement: python tools/search.py configs/search/embedded.toml

A search file names a base config, seeds and stages. A stage is a grid of overrides; each point is run with every seed
on the validation split, and the point with the best mean harmonic mean of local and neighbor accuracy is kept for the
stages after it. Runs are folders under `--work`: what is done is not done again. The result is one JSON file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushprompt.config import parse as config
from hushprompt.jobs import sweep, sweep_folder
from hushprompt.jobs.pool import share_cores
from hushprompt.jobs.sweep_file import PlannedRun
from hushprompt.jobs.sweep_folder import RunState
from hushprompt.runs import records

logger = logging.getLogger("search")
Point = dict[str, str]
"""Override keys and values, as `--set` takes them."""


@dataclass(frozen=True)
class Stage:
    """One grid of the search."""

    name: str
    fixed: Point
    """Overrides of this stage alone."""
    grid: dict[str, list[Any]]
    """Values of each override; linked ones share a key, joined by `&`."""
    keep: bool
    """Whether the best point holds for the stages after it; False only measures."""

    def points(self) -> Iterator[Point]:
        """Give every combination."""
        for values in itertools.product(*self.grid.values()):
            point: Point = {}
            for keys, value in zip(self.grid, values, strict=True):
                linked = keys.split("&")
                parts = value if len(linked) > 1 else [value]
                point.update({key: as_toml(part) for key, part in zip(linked, parts, strict=True)})
            yield point


def main() -> None:
    """Run the stages in order."""
    parser = argparse.ArgumentParser()
    parser.add_argument("search", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/search"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    values = tomllib.loads(args.search.read_text(encoding="utf-8"))
    base, seeds = values["base"], values["seeds"]
    stages = [
        Stage(entry["name"], {k: as_toml(v) for k, v in entry.get("fixed", {}).items()}, entry["grid"], entry["keep"])
        for entry in values["stages"]
    ]
    chosen: Point = {}
    report = []
    for stage in stages:
        points = [{**chosen, **stage.fixed, **point} for point in stage.points()]
        scores = measure(args.work, [planned(base, point, seed) for point in points for seed in seeds])
        rows = [
            {"point": own, **summarize(scores[at * len(seeds) : (at + 1) * len(seeds)])}
            for at, own in enumerate(stage.points())
        ]
        best = max(rows, key=lambda row: row["harmonic_mean"])
        report.append({"stage": stage.name, "fixed": {**chosen, **stage.fixed}, "rows": rows, "best": best["point"]})
        if stage.keep:
            chosen |= best["point"]
        logger.info("%s\n%s", stage.name, "\n".join(line(row) for row in rows))
        result = {"base": base, "seeds": seeds, "split": "validation", "stages": report, "chosen": chosen}
        records.write_json(args.out, result)


def planned(base: str, point: Point, seed: int) -> PlannedRun:
    """Give the run of one point and seed."""
    settings = {**point, "references": "[]", "evaluation.split": '"validation"'}
    overrides = [f"seed={seed}", *(f"{key}={value}" for key, value in settings.items())]
    resolved = config.load(config.locate(Path(base)), overrides)
    identity = resolved.identity()
    return PlannedRun(name=identity[:16], labels=point, config=resolved, identity=identity)


def measure(work: Path, runs: list[PlannedRun]) -> list[dict[str, float]]:
    """Make the runs that are not done, and give the scores of all."""
    placed = sweep_folder.place(runs, work)
    waiting = list({run.planned.identity: run for run in placed if run.state is not RunState.DONE}.values())
    for run in sweep.make(waiting, share_cores(0, len(waiting)), sweep.QuietObserver()) if waiting else ():
        if run.error is not None:
            raise RuntimeError(f"{run.folder}: {run.error}")
    names = ("local", "neighbor", "harmonic_mean", "worst_client", "seconds")
    rows = [records.read_json(run.folder / "summary.json")["rows"][-1] for run in placed]
    return [{name: row[name] for name in names} for row in rows]


def summarize(scores: list[dict[str, float]]) -> dict[str, Any]:
    """Give means over seeds, and the spread of what is maximized."""
    means = {name: round(statistics.fmean(score[name] for score in scores), 5) for name in scores[0]}
    spread = statistics.stdev(score["harmonic_mean"] for score in scores) if len(scores) > 1 else 0.0
    return {**means, "harmonic_mean_std": round(spread, 5)}


def line(row: dict[str, Any]) -> str:
    """Write one measured point."""
    numbers = " ".join(f"{100 * row[name]:5.1f}" for name in ("local", "neighbor", "harmonic_mean", "worst_client"))
    return f"  {numbers}  {row['seconds']:5.0f} s  {row['point']}"


def as_toml(value: Any) -> str:
    """Write a value as `--set` reads it."""
    if isinstance(value, str):
        return json.dumps(value)
    return "inf" if value == float("inf") else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    main()
