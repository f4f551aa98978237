"""Shadow federations: the same training many times over, each candidate in or out by a fair coin.

Members and non-members are exchangeable, because a coin decides: same client, same classes, same source. Each
federation has batches and noise of its own, and the coins of federation k are the same for every budget, so budgets
are compared on equal terms. What is kept of a federation is what its prompts say of the candidates, and the prompts; a
finished federation is one file, written whole or not at all, so an audit goes on where it was stopped.

Where the unit is a client, the coins are about whole clients, and what is kept is the auditor's score of each
(`client_canaries.py`).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hushprompt import files, seeding
from hushprompt.audits.canaries import train_canaries
from hushprompt.audits.client_canaries import has_client_canaries, train_clients
from hushprompt.audits.world import World, audiences, candidates_of
from hushprompt.config.schema import RunConfig
from hushprompt.errors import ResumeError
from hushprompt.federation.setup import Arm, Federation, assemble, load_model, make_partition
from hushprompt.privacy.config import Audience
from hushprompt.process import tune

TRANSCRIPT, UPLOADS = "transcript", "uploads"
CONTENT = 2
"""Counted up where a federation's file holds something else than before."""
OnShadow = Callable[[int, int], None]
"""Called with how many federations are done and how many are wanted."""


@dataclass(frozen=True)
class Job:
    """One federation to train."""

    arm_index: int
    index: int | None
    """Of the shadow federation, from 0; None for the run with canaries."""
    path: Path


@dataclass(frozen=True)
class Shadows:
    """What all federations of one arm say; every array begins with the axis s of the federations."""

    is_in: Bool[np.ndarray, "s m"]
    log_probs: dict[Audience, np.ndarray]
    """[s, m, c] of the candidates, by the audience that holds the prompt."""
    population: dict[Audience, np.ndarray]
    """[s, p, c] of images that nobody trains on."""
    transcript: np.ndarray | None
    """[s, m] projections on the releases, where something is released to all."""
    uploads: np.ndarray | None = None
    """[s, m] projections on the client's own releases, where the server sees them."""


def coins(config: RunConfig, index: int, num_candidates: int) -> Bool[np.ndarray, " m"]:
    """Return which candidates take part in federation `index`."""
    return seeding.stream(config.seed, "shadow inclusion", index).random(num_candidates) < 0.5


def train_shadow(world: World, arm: Arm, index: int) -> dict[str, Tensor]:
    """Train federation `index` and give what is kept of it."""
    is_in = coins(world.config, index, len(world.candidates.indices))
    seed = int(seeding.stream(world.config.seed, "shadow seed", index).integers(2**62))
    state, watch = world.train(arm, is_in, seed)
    kept = {"is_in": torch.from_numpy(is_in)}
    for audience in (one for one in audiences(arm) if one is not Audience.SERVER):
        kept[f"{audience}.candidates"] = world.log_probs(arm, state, audience, world.features)
        kept[f"{audience}.population"] = world.log_probs(arm, state, audience, world.population[0])
    for name, transcript in ((TRANSCRIPT, watch.public), (UPLOADS, watch.uploads)):
        if transcript.releases:
            kept[name] = torch.from_numpy(world.projections(arm, transcript))
    model, method = world.federation.model, arm.method
    files_by_name = {
        "public": method.public_file(model, state.shared),
        "personal": method.personal_file(model, state.shared, state.personal[world.candidates.client_id]),
    }
    for name, published in files_by_name.items():
        if published is not None:
            kept |= {f"prompt.{name}.{key}": tensor for key, tensor in published.tensors.items()}
    return kept


def run_shadows(
    config: RunConfig,
    arms: Sequence[Arm],
    client_id: int,
    num_shadows: int,
    num_canaries: int,
    folder: Path,
    on_shadow: OnShadow,
    num_workers: int = 0,
) -> None:
    """Train what is missing of `num_shadows` federations and one run with canaries an arm, and leave one file each.

    Args:
        config: what is attacked.
        arms: one for each budget, labels all different.
        client_id: whose examples are the candidates.
        num_shadows: federations an arm.
        num_canaries: mislabelled examples of the one run with canaries; 0 leaves that run out.
        folder: where the files go, one folder an arm.
        on_shadow: progress.
        num_workers: processes, each with one thread; 0 takes one a core, 1 stays in this process.

    Raises:
        ResumeError: a file of another audit is in the way.
    """
    wanted = [
        Job(arm_index, index, job_path(folder, arm, index, num_canaries))
        for index in ([None] if num_canaries else []) + list(range(num_shadows))  # all budgets are done alike
        for arm_index, arm in enumerate(arms)
    ]
    jobs = [job for job in wanted if not is_done(job.path, identity(config, arms[job.arm_index], client_id))]
    on_shadow(len(wanted) - len(jobs), len(wanted))
    workers = min(num_workers or len(os.sched_getaffinity(0)), len(jobs))
    finished = _finished(config, arms, client_id, num_canaries, jobs, workers)
    for done, _ in enumerate(finished, len(wanted) - len(jobs) + 1):
        on_shadow(done, len(wanted))


def _finished(
    config: RunConfig, arms: Sequence[Arm], client_id: int, num_canaries: int, jobs: Sequence[Job], workers: int
) -> Iterator[Job]:
    """Do jobs, in this process or in several, and give each when its file is there."""
    if workers <= 1:
        worker = Worker(config, arms, client_id, num_canaries) if jobs else None
        for job in jobs:
            assert worker is not None, "there are jobs"
            yield worker.do(job)
        return
    load_federation(config, arms)  # all cores encode what the cache lacks, before processes of one thread each ask
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half-way
    pool = ProcessPoolExecutor(workers, context, _start, (config, tuple(arms), client_id, num_canaries))
    try:
        for future in as_completed([pool.submit(_do, job) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def load_federation(config: RunConfig, arms: Sequence[Arm]) -> Federation:
    """Load model and data, and encode what the cache lacks."""
    dataset = config.data.load()
    model = load_model(config, dataset, arms)
    return assemble(config, model, dataset, make_partition(config, dataset), lambda what, done, total: None)


class Worker:
    """A federation in memory, ready to be trained again and again."""

    def __init__(self, config: RunConfig, arms: Sequence[Arm], client_id: int, num_canaries: int) -> None:
        """Load model, data and features once."""
        federation = load_federation(config, arms)
        self.world = World(config, federation, candidates_of(federation, client_id))
        self.arms, self.num_canaries = arms, num_canaries

    def do(self, job: Job) -> Job:
        """Train one federation and write its file."""
        arm, world = self.arms[job.arm_index], self.world
        if job.index is None:
            kept = train_canaries(world, arm, self.num_canaries)
        elif has_client_canaries(world.config, arm):
            kept = train_clients(world.config, world.federation, arm, job.index)
        else:
            kept = train_shadow(world, arm, job.index)
        files.write_tensors(job.path, kept, identity(world.config, arm, world.candidates.client_id))
        return job


_worker: list[Worker] = []  # of this process, where it is one of several


def _start(config: RunConfig, arms: Sequence[Arm], client_id: int, num_canaries: int) -> None:
    """Make a process ready; an interrupt ends it at once, and its unfinished federation is trained again."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    tune()
    _worker.append(Worker(config, arms, client_id, num_canaries))


def _end_with_parent() -> None:
    """Wait for the end of the process that wants the federations, however it ends, and end as well."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only processes of a pool call this"
    parent.join()
    os._exit(1)


def _do(job: Job) -> Job:
    """Do a job in a process of its own."""
    return _worker[0].do(job)


def job_path(folder: Path, arm: Arm, index: int | None, num_canaries: int) -> Path:
    """Return the file of one federation."""
    name = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in arm.label)
    file = f"canaries-{num_canaries}" if index is None else f"shadow-{index:04d}"
    return folder / name / f"{file}.safetensors"


def identity(config: RunConfig, arm: Arm, client_id: int) -> str:
    """Return what the files of an audit have in common: config, arm, noise and client."""
    noise = {str(channel): z for channel, z in sorted(arm.plan.release_plan.noise_multipliers.items())}
    spelled = json.dumps([CONTENT, config.identity(), arm.label, noise, client_id])
    return hashlib.sha256(spelled.encode()).hexdigest()


def is_done(path: Path, wanted: str) -> bool:
    """Whether a federation's file is there.

    Raises:
        ResumeError: it belongs to another audit, or is damaged.
    """
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata()["hushprompt"]
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise ResumeError(f"{path} is damaged ({error}). Delete it, and the audit trains it again.") from error
    if found != wanted:
        raise ResumeError(f"{path} belongs to an audit of another config or client. Use another --out.")
    return True


def load(path: Path) -> dict[str, Tensor]:
    """Read one federation's file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def load_shadows(paths: Sequence[Path]) -> Shadows:
    """Read the files of one arm's federations."""
    kept = [load(path) for path in paths]
    seen = [audience for audience in Audience if f"{audience}.candidates" in kept[0]]

    def stacked(name: str) -> np.ndarray:
        return torch.stack([one[name] for one in kept]).numpy()

    return Shadows(
        is_in=stacked("is_in").astype(bool),
        log_probs={audience: stacked(f"{audience}.candidates").astype(np.float64) for audience in seen},
        population={audience: stacked(f"{audience}.population").astype(np.float64) for audience in seen},
        transcript=stacked(TRANSCRIPT) if TRANSCRIPT in kept[0] else None,
        uploads=stacked(UPLOADS) if UPLOADS in kept[0] else None,
    )
