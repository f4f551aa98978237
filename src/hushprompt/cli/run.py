"""The command that trains."""

from __future__ import annotations

import datetime
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from hushprompt import files
from hushprompt.cli.console import INTERRUPTED, complete_config, console
from hushprompt.cli.show import show_results, show_statement
from hushprompt.errors import ConfigError, ResumeError
from hushprompt.runs import records

if TYPE_CHECKING:
    from hushprompt.config.schema import RunConfig
    from hushprompt.runs.arm import Arm
    from hushprompt.runs.records import RoundRecord


def run(
    config: Annotated[
        Path | None,
        typer.Argument(help="TOML file or preset name; none: the embedded preset.", autocompletion=complete_config),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override, such as privacy.epsilon=4.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; none: a new one under runs/.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on in this run folder, with its own config.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print config and privacy statement only.")] = False,
) -> None:
    """Train, evaluate and account; write a run folder and print the table."""
    from hushprompt.config import parse as configs
    from hushprompt.federation.simulate import run as simulate

    if resume is not None:
        if config is not None or out is not None or any(not s.startswith("runtime.") for s in set_ or []):
            raise ConfigError(
                "--resume takes the run folder's own config: give no CONFIG, --out or --set but runtime.*."
            )
        folder = resume
        if not (folder / "config.toml").exists():
            raise ResumeError(f"{folder} is not a run folder: it has no config.toml.")
        resolved = configs.load(folder / "config.toml", set_ or [])
    else:
        resolved = configs.load(configs.locate(config), set_ or [])
        folder = out or new_folder(resolved)
    if dry_run:
        console.print(resolved.to_toml(), markup=False, soft_wrap=True)
        show_statement(planned_privacy(resolved))
        return
    if resume is None:
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ResumeError(f"{folder} is not empty. Give another --out, or go on in it with --resume {folder}.")
        files.write_text(folder / "config.toml", resolved.to_toml())
    try:
        with TrainingBars() as bars:
            arms = simulate(resolved, folder, bars)
    except ConfigError:
        if resume is None:
            discard(folder)
        raise
    except KeyboardInterrupt:
        console.print(f"Stopped. Everything up to the last round is in {folder}; go on with:")
        console.print(f"  hushprompt run --resume {folder}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    show_results(arms, folder)


@dataclass(frozen=True)
class EncodingBar:
    """A bar of images that are encoded."""

    task: TaskID
    num_done_before: int
    """Images that were on the disk when the bar appeared."""
    start: float

    def speed(self, done: int, total: int) -> str:
        """Say how fast it goes, and how long it will take."""
        seconds = time.monotonic() - self.start
        if done == self.num_done_before or seconds == 0:
            return ""
        rate = (done - self.num_done_before) / seconds
        left = datetime.timedelta(seconds=round((total - done) / rate))
        return f"{rate:.0f}/s" + (f", {left} left" if done < total else "")


class TrainingBars:
    """Two progress bars: images encoded, and rounds of the arm in training."""

    def __init__(self) -> None:
        """Make the bars; they are drawn inside a `with`."""
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
            TextColumn("{task.fields[scores]}", table_column=Column(no_wrap=True, overflow="crop")),
            BarColumn(bar_width=None),
            console=console,
            expand=True,
        )
        self._task: TaskID | None = None
        self._audience = ""
        self._scores = ""
        """Of the last round that was evaluated."""
        self._setups: dict[str, EncodingBar] = {}

    def __enter__(self) -> TrainingBars:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self._progress.stop()

    def on_setup(self, what: str, done: int, total: int) -> None:
        """Images are being encoded."""
        if what not in self._setups:
            task = self._progress.add_task(what, total=total, scores="")
            self._setups[what] = EncodingBar(task, done, time.monotonic())
        setup = self._setups[what]
        self._progress.update(setup.task, completed=done, scores=setup.speed(done, total))

    def on_arm(self, arm: Arm, index: int, num_arms: int, num_rounds_done: int) -> None:
        """An arm begins."""
        description = f"{index + 1}/{num_arms} {arm.label}"
        self._audience, self._scores = str(arm.plan.config.audience), ""
        total = arm.num_rounds or 1
        done = num_rounds_done if arm.num_rounds else 1
        self._task = self._progress.add_task(description, total=total, completed=done, scores="")

    def on_round(self, record: RoundRecord) -> None:
        """A round is done."""
        assert self._task is not None, "on_arm comes before on_round"
        if record.is_evaluated:
            self._scores = f"local {100 * record.local:.0f} neighbor {100 * record.neighbor:.0f} "
        epsilon = _epsilon(record.epsilon[self._audience])
        scores = f"loss {record.loss:.2f} {self._scores}epsilon {epsilon}"
        self._progress.update(self._task, completed=record.round_index, scores=scores)


def new_folder(config: RunConfig) -> Path:
    """Return a fresh folder under runs/, named for a reader; nothing is encoded in the name alone."""
    from hushprompt.registry import METHODS

    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / f"{stamp}-{METHODS.name_of(config.method)}-seed{config.seed}"
    folder, count = base, 1
    while folder.exists():
        count += 1
        folder = base.with_name(f"{base.name}-{count}")
    return folder


def discard(folder: Path) -> None:
    """Remove the folder of a run that was refused, if it holds nothing but its config."""
    if [path.name for path in folder.iterdir()] == ["config.toml"]:
        (folder / "config.toml").unlink()
        folder.rmdir()


def planned_privacy(config: RunConfig) -> dict[str, Any]:
    """Return the privacy record of a run that is not trained."""
    from hushprompt.federation.setup import client_sizes, make_partition, plan_arms, plan_metrics
    from hushprompt.runs.privacy_record import privacy_record

    partition = make_partition(config, config.data.load())
    arms = plan_arms(config, client_sizes(partition))
    record: dict[str, Any] = records.to_json(privacy_record(arms, metrics=plan_metrics(config, arms, partition)))
    return record


def _epsilon(value: float) -> str:
    """Write an epsilon for the progress bar."""
    return "inf" if math.isinf(value) else f"{value:.2f}"
