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
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hushprompt import files, seeding
from hushprompt.audits.canaries import train_canaries
from hushprompt.audits.client_canaries import has_client_canaries, train_clients
from hushprompt.audits.crafted_prompts import attack_target
from hushprompt.audits.exposure import SecretSettings, train_secrets
from hushprompt.audits.world import World, audiences, candidates_of
from hushprompt.config.schema import RunConfig
from hushprompt.errors import HushpromptError, ResumeError
from hushprompt.federation.setup import Federation, assemble, load_model, make_partition
from hushprompt.jobs.pool import CoreShares, TaskEnd, Tell, WorkerPool, prepare_training
from hushprompt.methods.base import Published
from hushprompt.methods.linear_head import LinearHead
from hushprompt.privacy.config import Audience
from hushprompt.runs.arm import Arm

TRANSCRIPT, UPLOADS, RATIOS, CLASS_ROWS = "transcript", "uploads", "ratios", "class_rows"
TEXTS, IMAGES = "texts", "images"
CONTENT = 3
"""Counted up where a federation's file holds something else than before."""
OnShadow = Callable[[int, int], None]
"""Called with how many federations are done and how many are wanted."""


@dataclass(frozen=True)
class ShadowTask:
    """One federation to train."""

    arm_index: int
    index: int | None
    """Of the shadow federation, from 0, or of a crafted prompt's target; None for the run with canaries or secrets."""
    path: Path
    is_crafted: bool = False
    """Whether a crafted prompt is sent to one client, and no federation trained."""
    secrets: SecretSettings | None = None
    """What is hidden in answers of the one federation that is trained for it."""


@dataclass(frozen=True)
class Shadows:
    """What all federations of one arm say; every array begins with the axis s of the federations."""

    is_in: Bool[np.ndarray, "s k"]
    """Coins: of the m candidates, or of k groups of them where these are the unit."""
    log_probs: dict[Audience, np.ndarray]
    """[s, m, c] of the candidates, by the audience that holds the prompt."""
    population: dict[Audience, np.ndarray]
    """[s, p, c] of images that nobody trains on."""
    transcript: np.ndarray | None
    """[s, m] projections on the releases, where something is released to all."""
    uploads: np.ndarray | None = None
    """[s, m] projections on the client's own releases, where the server sees them."""
    ratios: Mapping[Audience, np.ndarray] = field(default_factory=dict)
    """[s, k] log-likelihood ratios of all that an audience sees, of methods with a linear head."""
    class_rows: np.ndarray | None = None
    """[s, m] products with the published rows of the candidates' classes, of the same."""
    texts: Mapping[Audience, np.ndarray] = field(default_factory=dict)
    """[s, k, d] text features of the candidates' k classes by what each audience holds; rows of linear heads."""
    images: np.ndarray | None = None
    """[m, d] image features of the candidates."""


def coins(config: RunConfig, index: int, num_candidates: int) -> Bool[np.ndarray, " m"]:
    """Return which candidates take part in federation `index`."""
    return seeding.stream(config.seed, "shadow inclusion", index).random(num_candidates) < 0.5


def train_shadow(world: World, arm: Arm, index: int) -> dict[str, Tensor]:
    """Train federation `index` and give what is kept of it."""
    is_in = coins(world.config, index, world.candidates.num_coins)
    seed = int(seeding.stream(world.config.seed, "shadow seed", index).integers(2**62))
    method = arm.method
    state, watch = world.train(arm, is_in, seed, judges=isinstance(method, LinearHead))
    kept = {"is_in": torch.from_numpy(is_in)}
    if isinstance(method, LinearHead):
        kept[CLASS_ROWS] = torch.from_numpy(world.class_rows(method, state.shared))
        judged = {who: watch.scores(who) for who in audiences(arm)}
        kept |= {f"{who}.{RATIOS}": torch.from_numpy(found) for who, found in judged.items() if found is not None}
    for audience in (one for one in audiences(arm) if one is not Audience.SERVER):
        kept[f"{audience}.candidates"] = world.log_probs(arm, state, audience, world.examples)
        kept[f"{audience}.population"] = world.log_probs(arm, state, audience, world.population)
    for name, transcript in ((TRANSCRIPT, watch.public), (UPLOADS, watch.uploads)):
        if transcript.releases:
            kept[name] = torch.from_numpy(world.projections(arm, transcript))
    model = world.federation.model
    files_by_name = {
        "public": method.public_file(model, state.shared),
        "personal": method.personal_file(model, state.shared, state.personal[world.candidates.client_id]),
    }
    for name, published in files_by_name.items():
        if published is not None:
            kept |= {f"prompt.{name}.{key}": tensor for key, tensor in published.tensors.items()}
            kept |= _texts(name, published, world.candidates.labels)
    if index == 0 and any(name.endswith(f".{TEXTS}") for name in kept):  # the same for all
        kept[IMAGES] = world.features.cpu().float()
    return kept


def _texts(audience: str, published: Published, labels: Int[np.ndarray, " m"]) -> dict[str, Tensor]:
    """Return the text features of the candidates' classes by a prompt file, where its scores are linear."""
    made, kept = published.text_features_fn, published.tensors.get("text_features")
    with torch.no_grad():
        features = kept if made is None else made()
    if features is None:
        return {}
    return {f"{audience}.{TEXTS}": features[torch.from_numpy(np.unique(labels))].cpu().float()}


def run_shadows(
    config: RunConfig,
    arms: Sequence[Arm],
    client_id: int,
    num_shadows: int,
    num_canaries: int,
    folder: Path,
    on_shadow: OnShadow,
    num_workers: int = 0,
    num_targets: int = 0,
    secrets: SecretSettings | None = None,
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
        num_targets: examples that crafted prompts are aimed at.
        secrets: what is hidden in the answers of one more run an arm; None leaves it out.

    Raises:
        ResumeError: a file of another audit is in the way.
    """
    wanted = [
        ShadowTask(arm_index, index, job_path(folder, arm, index, num_canaries))
        for index in ([None] if num_canaries else []) + list(range(num_shadows))  # all budgets are done alike
        for arm_index, arm in enumerate(arms)
    ]
    wanted += [
        ShadowTask(arm_index, target, target_path(folder, arm, target), is_crafted=True)
        for target in range(num_targets)
        for arm_index, arm in enumerate(arms)
    ]
    if secrets is not None:
        wanted += [
            ShadowTask(arm_index, None, secrets_path(folder, arm, secrets), secrets=secrets)
            for arm_index, arm in enumerate(arms)
        ]
    tasks = [task for task in wanted if not is_done(task.path, identity(config, arms[task.arm_index], client_id))]
    on_shadow(len(wanted) - len(tasks), len(wanted))
    workers = min(num_workers or len(os.sched_getaffinity(0)), len(tasks))
    finished = _finished(config, arms, client_id, num_canaries, tasks, workers)
    for done, _ in enumerate(finished, len(wanted) - len(tasks) + 1):
        on_shadow(done, len(wanted))


def _finished(
    config: RunConfig,
    arms: Sequence[Arm],
    client_id: int,
    num_canaries: int,
    tasks: Sequence[ShadowTask],
    num_workers: int,
) -> Iterator[None]:
    """Train federations, in this process or in several, and yield when the file of one is there."""
    if num_workers <= 1:
        trainer = ShadowTrainer(config, arms, client_id, num_canaries) if tasks else None
        for task in tasks:
            assert trainer is not None, "there are tasks"
            trainer.train(task)
            yield
        return
    load_federation(config, arms)  # all cores encode what the cache lacks, before processes of one thread each ask
    shares = CoreShares(num_workers, 1, num_workers)
    with WorkerPool(shares, _start, config, tuple(arms), client_id, num_canaries) as pool:
        for event in pool.run(_train, [(task,) for task in tasks]):
            if isinstance(event, TaskEnd):
                if event.error is not None:
                    raise HushpromptError(f"{tasks[event.task].path.name} could not be trained: {event.error}")
                yield


def load_federation(config: RunConfig, arms: Sequence[Arm]) -> Federation:
    """Load model and data, and encode what the cache lacks."""
    dataset = config.data.load()
    model = load_model(config, dataset, arms)
    return assemble(config, model, dataset, make_partition(config, dataset), lambda what, done, total: None)


class ShadowTrainer:
    """A federation in memory, ready to be trained again and again."""

    def __init__(self, config: RunConfig, arms: Sequence[Arm], client_id: int, num_canaries: int) -> None:
        """Load model, data and features once."""
        federation = load_federation(config, arms)
        self.world = World(config, federation, candidates_of(federation, client_id))
        self.arms, self.num_canaries = arms, num_canaries

    def train(self, task: ShadowTask) -> None:
        """Train one federation and write its file."""
        arm, world = self.arms[task.arm_index], self.world
        if task.secrets is not None:
            kept = train_secrets(world, arm, task.secrets)
        elif task.index is None:
            kept = train_canaries(world, arm, self.num_canaries)
        elif task.is_crafted:
            kept = attack_target(world, arm, task.index)
        elif has_client_canaries(world.config, arm):
            kept = train_clients(world.config, world.federation, arm, task.index)
        else:
            kept = train_shadow(world, arm, task.index)
        files.write_tensors(task.path, kept, identity(world.config, arm, world.candidates.client_id))


_trainer: list[ShadowTrainer] = []  # of this process, where it is a worker


def _start(config: RunConfig, arms: Sequence[Arm], client_id: int, num_canaries: int) -> None:
    prepare_training()
    _trainer.append(ShadowTrainer(config, arms, client_id, num_canaries))


def _train(tell: Tell, task: ShadowTask) -> None:
    _trainer[0].train(task)


def job_path(folder: Path, arm: Arm, index: int | None, num_canaries: int) -> Path:
    """Return the file of one federation."""
    file = f"canaries-{num_canaries}" if index is None else f"shadow-{index:04d}"
    return _folder(folder, arm) / f"{file}.safetensors"


def target_path(folder: Path, arm: Arm, target: int) -> Path:
    """Return the file of the crafted prompt that is aimed at a target."""
    return _folder(folder, arm) / f"crafted-{target:04d}.safetensors"


def secrets_path(folder: Path, arm: Arm, secrets: SecretSettings) -> Path:
    """Return the file of the run with secrets."""
    spelled = f"{secrets.num_secrets}x{secrets.num_repeats}x{secrets.num_digits}"
    return _folder(folder, arm) / f"secrets-{spelled}.safetensors"


def _folder(folder: Path, arm: Arm) -> Path:
    return folder / "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in arm.label)


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
        ratios={who: stacked(f"{who}.{RATIOS}") for who in Audience if f"{who}.{RATIOS}" in kept[0]},
        class_rows=stacked(CLASS_ROWS) if CLASS_ROWS in kept[0] else None,
        texts={who: stacked(f"{who}.{TEXTS}") for who in Audience if f"{who}.{TEXTS}" in kept[0]},
        images=kept[0][IMAGES].numpy() if IMAGES in kept[0] else None,
    )
