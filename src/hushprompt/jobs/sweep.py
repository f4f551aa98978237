"""A sweep from its file to its run folders: the function behind `hushprompt sweep`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hushprompt.config.schema import RunConfig
from hushprompt.jobs import job, ray_cluster, sweep_file, sweep_folder
from hushprompt.jobs.pool import CoreShares, TaskEnd, TaskProgress, WorkerPool, prepare_training, share_cores
from hushprompt.jobs.ray_cluster import RayCluster
from hushprompt.jobs.sweep_folder import RunState, SweepRun
from hushprompt.runs import identity as identities
from hushprompt.runs import records
from hushprompt.runs.identity import LETTERS


@runtime_checkable
class SweepObserver(Protocol):
    """Who watches a sweep; all calls come from the thread that called `sweep`."""

    def on_start(self, runs: Sequence[SweepRun], num_workers: int) -> None:
        """What is not done of all runs of the sweep is about to be made."""

    def on_encoding(self, what: str, done: int, total: int) -> None:
        """Images are being encoded."""

    def on_progress(self, run: SweepRun, worker: str, done: int, total: int) -> None:
        """A worker has begun a run (`total` is 0), or has done so many of its rounds."""

    def on_end(self, run: SweepRun) -> None:
        """A run is done or has failed; its state says so, and its scores or its error what came out."""


class QuietObserver:
    """Watches a sweep and says nothing."""

    def on_start(self, runs: Sequence[SweepRun], num_workers: int) -> None:
        """Say nothing."""

    def on_encoding(self, what: str, done: int, total: int) -> None:
        """Say nothing."""

    def on_progress(self, run: SweepRun, worker: str, done: int, total: int) -> None:
        """Say nothing."""

    def on_end(self, run: SweepRun) -> None:
        """Say nothing."""


def plan_sweep(
    file: Path | str | Mapping[str, Any], *, out: Path | str | None = None, overrides: Sequence[str] = ()
) -> tuple[Path, list[SweepRun]]:
    """Return a sweep's folder, and its runs with their folders and states; nothing is made.

    See `sweep` for the arguments.
    """
    planned = sweep_file.load(file)
    root = Path(out) if out is not None else Path("runs") / planned.name
    return root, sweep_folder.place(sweep_file.expand(planned, overrides), root)


def sweep(
    file: Path | str | Mapping[str, Any],
    *,
    out: Path | str | None = None,
    jobs: int = 0,
    ray: str | None = None,
    overrides: Sequence[str] = (),
    observer: SweepObserver | None = None,
) -> list[SweepRun]:
    """Make every run of a grid that is not done yet; called again after a kill, it goes on.

    Results do not depend on the number of workers, nor on the machine that makes a run.

    Args:
        file: a sweep file, or what it says as plain values (base, settings, axes, rules); `base` may then be a
            RunConfig, too.
        out: folder of the runs; None: runs/NAME.
        jobs: processes side by side, which share the cores; 0: one a core.
        ray: address of a Ray cluster that makes the runs, such as "auto" or "ray://head:10001"; None: this machine.
        overrides: settings of the form "section.key=value" made in every run.
        observer: who watches.

    Returns:
        All runs of the sweep, done (also those done before) or failed, with the error.

    Raises:
        ConfigError: the sweep file is wrong, or a run of it no valid config.
        ResumeError: another process is at work in the folder.
    """
    observer = observer or QuietObserver()
    planned = sweep_file.load(file)
    root, runs = plan_sweep(file, out=out, overrides=overrides)
    root.mkdir(parents=True, exist_ok=True)
    with records.locked(root):
        states = {run.planned.identity: run for run in sweep_folder.place([run.planned for run in runs], root)}
        sweep_folder.write(root, planned, states.values())
        waiting = [run for run in states.values() if run.state is not RunState.DONE]
        for run in _made(waiting, jobs, ray, observer, list(states.values())):
            states[run.planned.identity] = run
            sweep_folder.write(root, planned, states.values())
            observer.on_end(run)
    return list(states.values())


def _made(
    waiting: Sequence[SweepRun], jobs: int, ray: str | None, observer: SweepObserver, runs: Sequence[SweepRun]
) -> Iterator[SweepRun]:
    """Make runs, here or on a cluster, and yield each as it ends."""
    done = [run for run in runs if run.state is RunState.DONE]
    if not waiting:
        observer.on_start(runs, 0)
    elif ray is None:
        shares = share_cores(jobs, len(waiting))
        observer.on_start(runs, shares.num_workers)
        yield from make(waiting, shares, observer, done)
    else:
        with ray_cluster.connected(ray) as cluster:
            num_threads = cluster.threads(jobs)
            observer.on_start(runs, min(cluster.num_workers(num_threads), len(waiting)))
            yield from make_on_ray(waiting, cluster, num_threads, observer, done)


def make_on_ray(
    runs: Sequence[SweepRun],
    cluster: RayCluster,
    num_threads: int,
    observer: SweepObserver,
    done: Sequence[SweepRun] = (),
) -> Iterator[SweepRun]:
    """Make runs on a cluster whose nodes are checked first; their folders come back and are written here.

    As for `make`, a run whose data or model are not those of the runs that are `done` fails.
    """

    def keep(run: SweepRun, value: tuple[bytes, str]) -> str:
        packed, scores = value
        ray_cluster.unpack(packed, run.folder)
        return scores

    needed = {features_key(run.planned.config): run.planned.config.to_toml() for run in runs}
    for event in cluster.prepare(list(needed.values())):
        observer.on_encoding(f"{event.what}, {event.worker}", event.done, event.total)
    before, digests, ready = _recorded(done), dict(zip(needed, cluster.contents, strict=True)), []
    for run in runs:
        seen = digests[features_key(run.planned.config)]
        error = None if seen is None else _other_content(before, run.planned.config, seen)
        if error is None:
            ready.append(run)
        else:
            yield failed(run, error)
    tasks = [(with_threads(run.planned.config, num_threads).to_toml(), ray_cluster.pack(run.folder)) for run in ready]
    yield from watched(cluster.run(tasks, num_threads), ready, observer, keep)


def make(
    runs: Sequence[SweepRun], shares: CoreShares, observer: SweepObserver, done: Sequence[SweepRun] = ()
) -> Iterator[SweepRun]:
    """Make runs side by side, each in its folder; the features that they need are made first, with all cores.

    A run that fails is yielded as failed, and the others go on. So is one whose data or model are not those of the runs
    of the same settings that are `done`: together they would mean nothing.
    """
    before = _recorded(done)
    with WorkerPool(shares, prepare_training) as pool:
        ready = []
        errors: dict[Any, str | None] = {}
        for run in runs:
            key = features_key(run.planned.config)
            if key not in errors:
                config = with_threads(run.planned.config, shares.num_cores)
                errors[key] = _encode(pool, config, observer, before)
            if errors[key] is None:
                ready.append(run)
            else:
                yield failed(run, errors[key])
        tasks = [(with_threads(run.planned.config, shares.num_threads).to_toml(), run.folder) for run in ready]
        yield from watched(pool.run(job.train_run, tasks), ready, observer)


def watched(
    events: Iterator[TaskProgress | TaskEnd],
    runs: Sequence[SweepRun],
    observer: SweepObserver,
    keep: Callable[[SweepRun, Any], str] = lambda run, value: str(value),
) -> Iterator[SweepRun]:
    """Tell an observer what tasks tell, and yield every run as it ends.

    Args:
        events: of one task a run, in the order of `runs`.
        runs: what the tasks make.
        observer: who watches.
        keep: turns what a task returned into the run's scores.
    """
    for event in events:
        run = runs[event.task]
        if isinstance(event, TaskProgress):
            observer.on_progress(run, event.worker, event.done, event.total)
        elif event.error is not None:
            yield failed(run, event.error)
        else:
            yield dataclasses.replace(run, state=RunState.DONE, scores=keep(run, event.value))


def _encode(
    pool: WorkerPool, config: RunConfig, observer: SweepObserver, before: Mapping[Any, tuple[str, str]]
) -> str | None:
    """Put the features that a config needs into the cache; return what went wrong, or differs from a run before."""
    for event in pool.run(job.encode_features, [(config.to_toml(),)]):
        if isinstance(event, TaskEnd):
            return event.error or _other_content(before, config, event.value)
        observer.on_encoding(event.what, event.done, event.total)
    raise AssertionError("a task ends")


def _recorded(done: Iterable[SweepRun]) -> dict[Any, tuple[str, str]]:
    """Return a run that is done and the digest of its data, or model, by the settings that name these."""
    found: dict[Any, tuple[str, str]] = {}
    for run in done:
        recorded = identities.read(run.folder)
        if recorded is not None:
            digests = recorded.data_digest, recorded.backbone
            found |= {
                key: (run.folder.name, digest)
                for key, digest in zip(_content_keys(run.planned.config), digests, strict=True)
            }
    return found


def _other_content(before: Mapping[Any, tuple[str, str]], config: RunConfig, digests: tuple[str, str]) -> str | None:
    """Say what differs now from what a run that is done was made with."""
    for key, now in zip(_content_keys(config), digests, strict=True):
        name, was = before.get(key, ("", now))
        if was != now:
            return (
                f"{name} was made with other content: the {key[0]} {was[:LETTERS]}, now {now[:LETTERS]}. Put it back, "
                "or sweep into another folder (-o)."
            )
    return None


def _content_keys(config: RunConfig) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the settings that name a run's data, and its model."""
    return ("data", config.data, config.evaluation.split), ("backbone", config.backbone)


def features_key(config: RunConfig) -> tuple[Any, ...]:
    """Return what decides the features that a run needs: equal keys, equal features."""
    return (config.backbone, config.data, config.features, config.evaluation.split, job.kinds_of(config))


def failed(run: SweepRun, error: str | None) -> SweepRun:
    """Return a run as one that failed."""
    return dataclasses.replace(run, state=RunState.FAILED, error=error)


def with_threads(config: RunConfig, num_threads: int) -> RunConfig:
    """Return the config with a number of threads; that is no part of its identity."""
    return dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, num_threads=num_threads))
