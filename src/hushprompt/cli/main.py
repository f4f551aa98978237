"""The command line: the one place that prints, draws progress and picks folders."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table

from hushprompt import checks, files
from hushprompt.cli import audit as cli_audit
from hushprompt.cli import compare as cli_compare
from hushprompt.cli import data as cli_data
from hushprompt.cli import federation as cli_federation
from hushprompt.cli import report as cli_report
from hushprompt.cli import sweep as cli_sweep
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.errors import ConfigError, HushpromptError, ResumeError
from hushprompt.federation.publish import privacy_record
from hushprompt.federation.setup import Arm, client_sizes, make_partition, plan_arms, plan_metrics
from hushprompt.federation.simulate import run as simulate
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.sampling import DisjointSampler, PoissonSampler, Sampler
from hushprompt.process import tune
from hushprompt.registry import BACKBONES, DATASETS, METHODS, PARTITIONS, SAMPLERS
from hushprompt.reporting import tables
from hushprompt.reporting.result_table import result_table
from hushprompt.runs import records
from hushprompt.runs.records import ArmSummary, RoundRecord

app = typer.Typer(
    help="Private, personal, federated prompt learning of frozen vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_federation.app, name="federation")
app.command()(cli_data.partition)
app.command()(cli_audit.audit)
app.command()(cli_sweep.sweep)
app.command(name="compare")(cli_compare.compare_runs)
app.command()(cli_report.report)
console = Console(highlight=False)
LISTS = {
    "methods": METHODS,
    "datasets": DATASETS,
    "backbones": BACKBONES,
    "partitions": PARTITIONS,
    "samplers": SAMPLERS,
}
INTERRUPTED = 130
"""Exit status of a run that was stopped by Ctrl-C, as shells give it."""


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(help="TOML file or preset name; none: the embedded preset.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override, such as privacy.epsilon=4.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; none: a new one under runs/.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on in this run folder, with its own config.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print config and privacy statement only.")] = False,
) -> None:
    """Train, evaluate and account; write a run folder and print the table."""
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
        with Bars() as bars:
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


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, datasets, backbones, partitions, samplers, presets")],
) -> None:
    """List what can be named in a config."""
    if what == "presets":
        for path in sorted(configs.presets_folder().glob("*.toml")):
            console.print(path.stem)
        return
    if what not in LISTS:
        raise ConfigError(f"There is no list of {what!r}; known: {', '.join([*LISTS, 'presets'])}.")
    table = Table("name", "what it is", "settings")
    for name in LISTS[what].names():
        cls = LISTS[what].get(name)
        fields = ", ".join(field.name for field in dataclasses.fields(cls))
        table.add_row(name, (cls.__doc__ or "").splitlines()[0], fields)
    console.print(table)


@app.command()
def calibrate(
    epsilon: Annotated[float, typer.Option(help="Target epsilon of the audience.")],
    rounds: Annotated[int, typer.Option(help="Communication rounds.")],
    delta: Annotated[float, typer.Option(help="Target delta.")] = 1e-5,
    sampling_prob: Annotated[
        float | None, typer.Option(help="Poisson sampling probability; none: disjoint batches.")
    ] = None,
    steps_per_round: Annotated[int, typer.Option(help="Steps (batches) a round.")] = 1,
    audience: Annotated[Audience, typer.Option(help="Whom the target is for.")] = Audience.PERSONAL,
    noise_at: Annotated[str, typer.Option(help="Where the global noise is added: server or client.")] = "server",
    local_share: Annotated[float, typer.Option(help="Share of the budget for the local release.")] = 0.5,
    relation: Annotated[str, typer.Option(help="add_remove or replace_one.")] = "add_remove",
    unit: Annotated[str, typer.Option(help="Who is protected: example or client.")] = "example",
    clients: Annotated[
        int, typer.Option(help="Number of clients; delta must lie below 1 / this with --unit client.")
    ] = 1,
    method: Annotated[str, typer.Option(help="Method, which decides what is released.")] = "dp_fpl",
) -> None:
    """Return the noise multipliers that a budget needs, and who then has which epsilon."""
    checks.one_of(("add_remove", "replace_one"), neighboring_relation=relation)
    checks.one_of(("example", "client"), unit=unit)
    checks.one_of(("server", "client"), noise_at=noise_at)
    sampler: Sampler = (
        DisjointSampler(steps_per_round=steps_per_round)
        if sampling_prob is None
        else PoissonSampler(sampling_prob=sampling_prob, steps_per_round=steps_per_round)
    )
    privacy = PrivacyConfig(
        epsilon=epsilon,
        delta=delta,
        audience=audience,
        noise_at=noise_at,  # type: ignore[arg-type]
        local_share=local_share,
        neighboring_relation=relation,  # type: ignore[arg-type]
        privacy_unit=unit,  # type: ignore[arg-type]
    )
    channels: frozenset[Channel] = METHODS.get(method).channels
    plan = make_plan(privacy, sampler, channels=channels, num_rounds=rounds, client_sizes=[1] * clients)
    for channel, value in plan.noise_multipliers.items():
        console.print(f"noise_multiplier_{channel} = {value:.6g}   (noise std over clip norm)")
    guarantees = plan.guarantees()
    for name, guarantee in guarantees.items():
        console.print(f"{tables.AUDIENCES[name]}:\n  {guarantee.statement()}", soft_wrap=True)
    for line in tables.cross_check_lines({"audiences": {str(n): records.to_json(g) for n, g in guarantees.items()}}):
        console.print(line, soft_wrap=True)


@app.command()
def privacy(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]) -> None:
    """Print who sees what of a run, at which epsilon."""
    show_statement(records.read_record(folder / "privacy.json"))


@app.command()
def show(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]) -> None:
    """Print the result table of a finished run again."""
    summary = records.read_record(folder / "summary.json")
    show_results([records.from_json(ArmSummary, arm) for arm in summary["arms"]], folder)


def main() -> None:
    """Run the command line; our own errors become one plain sentence and exit status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    tune()
    try:
        app()
    except HushpromptError as error:
        Console(stderr=True, highlight=False).print(f"hushprompt: {error}", markup=False, soft_wrap=True)
        sys.exit(2)


@dataclass(frozen=True)
class Setup:
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


class Bars:
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
        self._setups: dict[str, Setup] = {}

    def __enter__(self) -> Bars:
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
            self._setups[what] = Setup(task, done, time.monotonic())
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
    partition = make_partition(config, config.data.load())
    arms = plan_arms(config, client_sizes(partition))
    record: dict[str, Any] = records.to_json(privacy_record(arms, metrics=plan_metrics(config, arms, partition)))
    return record


def show_results(arms: list[ArmSummary], folder: Path) -> None:
    """Print the table, what its epsilon means, and where everything lies."""
    table = result_table(arms, records.read_record(folder / "privacy.json"))
    for grid in table.grids:
        console.print(grid)
    for line in table.notes:
        console.print(line, markup=False, soft_wrap=True)
    for path in ("summary.json", "privacy.json", "records.jsonl", "prompts/", "config.toml"):
        console.print(f"  {folder / path}", soft_wrap=True)


def show_statement(privacy_json: dict[str, Any]) -> None:
    """Print a privacy record in sentences."""
    for arm in privacy_json["arms"]:
        for line in tables.statement_lines(arm):
            console.print(line, soft_wrap=True)
        for line in [*tables.cross_check_lines(arm), *tables.account_lines(arm)]:
            console.print(line, soft_wrap=True)
    for key in ("other_client", "server", "not_private", "evaluation_images", "noise_source", "several_arms"):
        if key in privacy_json:  # one is there only where accuracies are noisy
            console.print(f"{key.replace('_', ' ')}: {privacy_json[key]}", soft_wrap=True)


def _epsilon(value: float) -> str:
    """Write an epsilon for the progress bar."""
    return "inf" if math.isinf(value) else f"{value:.2f}"
