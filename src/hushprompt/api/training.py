"""Train, go on, or only plan: from a config to a run folder."""

from __future__ import annotations

import contextlib
import datetime
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushprompt import checks, files
from hushprompt.api.progress import watching
from hushprompt.api.run import Run, guarantees_of
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig, RuntimeConfig
from hushprompt.errors import ConfigError, ResumeError, files_told
from hushprompt.federation import simulate
from hushprompt.federation.planning import plan_arms, plan_metrics, with_fitting_references
from hushprompt.federation.setup import (
    Load,
    client_sizes,
    declared_classes,
    load_fresh,
    loads_once,
    make_partition,
    num_trained_classes,
    tell_findings,
)
from hushprompt.privacy import statements
from hushprompt.privacy.guarantee import Guarantee
from hushprompt.process import tune
from hushprompt.registry import METHODS
from hushprompt.runs import records
from hushprompt.runs.identity import LOCATIONS, is_location
from hushprompt.runs.observer import Observer
from hushprompt.runs.privacy_record import privacy_record

BEGUN = ("checkpoint", "ledger.jsonl", "records.jsonl", "summary.json")
"""What a run folder has as soon as there is something to go on with."""
Config = RunConfig | Mapping[str, Any] | str | Path | None
"""A config, its plain values, a TOML file, or the name of a preset; None: the embedded preset."""


@files_told()
def run(
    config: Config = None, *, out: str | Path | None = None, progress: bool | Observer = True, **sections: Any
) -> Run:
    """Train, evaluate and account for every arm of a config, and leave a run folder.

    Stopped at any moment, it can go on: `resume(folder)`. References that the backbone cannot run, or that cannot have
    the other settings, are left out; a line of the log says which and why.

    Args:
        config: a config, its plain values, a TOML file, or the name of a preset; None: the embedded preset.
        out: the run folder, new or empty; None: a new one under runs/.
        progress: show bars in a terminal or notebook; or an observer that is told what happens.
        sections: sections of the config to change, as `RunConfig` takes them: an object takes a section's place, a
            name chooses a class, and a table of settings changes those that it names.

    Returns:
        The finished run.

    Raises:
        ConfigError: the config is impossible for this data.
        PrivacyError: it lies outside the privacy theorem.
        ResumeError: the folder is not empty.
    """
    resolved = configs.resolve(config, sections)
    folder = new_folder(resolved) if out is None else Path(out)
    is_new = not folder.exists()
    if not is_new and not folder.is_dir():
        raise ResumeError(f"{folder} is a file, and a run needs a folder. Give another --out.")
    if not is_new and any(_own_entries(folder)):
        raise ResumeError(f"{folder} is not empty. Give another --out, or go on in it with --resume {folder}.")
    try:
        load = loads_once()
        resolved = with_fitting_references(resolved, load)
        files.write_text(folder / "config.toml", resolved.to_toml())
        return _train(resolved, folder, progress, load)
    except ResumeError:  # another process is at work in it
        raise
    except Exception:
        discard(folder, is_new=is_new)
        raise


@files_told()
def resume(
    folder: str | Path | Run,
    *,
    progress: bool | Observer = True,
    runtime: RuntimeConfig | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> Run:
    """Go on with a run where it stopped; a finished one is left as it is.

    Args:
        folder: the run folder, which has the run's config.
        progress: show bars in a terminal or notebook; or an observer that is told what happens.
        runtime: settings of the runtime section to change: where and how fast.
        overrides: settings that say where data and weights lie now, such as "data.root=/mnt/images".

    Raises:
        ConfigError: an override changes what the run is.
        ResumeError: it is no run folder, it is damaged, another process is at work in it, or the data, the backbone or,
            where noise is seeded, versions are not those that it was begun with; the message says what differs.
    """
    check_overrides(overrides)
    config = configs.resolve(config_of(Path(folder), overrides), {} if runtime is None else {"runtime": runtime})
    return _train(config, Path(folder), progress)


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise ConfigError unless all settings of a resume say where something lies, or how fast."""
    checks.several(overrides=overrides)
    keys = [text.partition("=")[0].strip() for text in overrides]
    if wrong := [key for key in keys if not is_location(key)]:
        raise ConfigError(
            f"A run goes on with its own config: {', '.join(wrong)} cannot change. Settings that can say where things "
            f"lie and how fast: {', '.join(LOCATIONS)}, runtime.*."
        )


def config_of(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the config of a run folder, with overrides of the form "runtime.key=value".

    Raises:
        ResumeError: it is no run folder.
    """
    if not (folder / "config.toml").exists():
        raise ResumeError(f"{folder} is not a run folder: it has no config.toml.")
    return configs.load_stored(folder, overrides)


@dataclass(frozen=True, repr=False)
class Plan:
    """What a run would do: its resolved config, and what it would guarantee to whom."""

    config: RunConfig
    privacy: Mapping[str, Any]
    """As `privacy.json` of a run folder, without what is known only after training."""

    @property
    def guarantees(self) -> dict[str, Guarantee]:
        """The guarantee of the run's own method for each audience."""
        return guarantees_of(self.privacy["arms"][-1])

    @property
    def noise_multipliers(self) -> dict[str, float]:
        """Noise standard deviation over clip norm of each release of the run's own method."""
        return dict(self.privacy["arms"][-1]["noise_multipliers"])

    def statement(self) -> str:
        """Say in sentences who would see what, at which epsilon."""
        return "\n".join(line for arm in self.privacy["arms"] for line in statements.statement_lines(arm))

    def __repr__(self) -> str:
        return f"{self.config.to_toml()}\n{self.statement()}"


@files_told()
def plan(config: Config = None, **sections: Any) -> Plan:
    """Resolve a config and say what it would guarantee, without training.

    Args:
        config: as for `run`.
        sections: as for `run`.

    Raises:
        ConfigError: the config is impossible for this data.
        PrivacyError: it lies outside the privacy theorem.
    """
    resolved = with_fitting_references(configs.resolve(config, sections))
    dataset = resolved.data.load()
    clients = make_partition(resolved, dataset)
    declared = declared_classes(resolved, dataset.class_names[: num_trained_classes(resolved, dataset)])
    arms = plan_arms(resolved, client_sizes(clients), declared)
    tell_findings(resolved, dataset, clients, arms, declared)
    record = privacy_record(arms, metrics=plan_metrics(resolved, arms, clients))
    return Plan(resolved, records.to_json(record))


def new_folder(config: RunConfig) -> Path:
    """Return a fresh folder under runs/, named for a reader; nothing is encoded in the name alone."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / f"{stamp}-{METHODS.name_of(config.method)}-seed{config.seed}"
    folder, count = base, 1
    while folder.exists():
        count += 1
        folder = base.with_name(f"{base.name}-{count}")
    return folder


def discard(folder: Path, *, is_new: bool) -> None:
    """Empty the folder of a run that did not start, and remove it if it is new; one that was begun stays."""
    if not folder.is_dir() or any((folder / name).exists() for name in BEGUN):
        return
    for path in _own_entries(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if is_new:
        with contextlib.suppress(OSError):  # somebody else's hidden file
            folder.rmdir()


def _own_entries(folder: Path) -> list[Path]:
    """Return what a run may have left in its folder: everything that is not hidden."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _train(config: RunConfig, folder: Path, progress: bool | Observer, load: Load = load_fresh) -> Run:
    tune()
    with watching(progress) as observer:
        simulate.run(config, folder, observer, load)
    return Run(folder)
