"""What a client stores of one run, in a folder that only it reads: only the answers are sent.

`STORE/<federation>/<run>/` holds `agreement.json` (pinned before the first update), `state.safetensors` (personal
state, batches of the round, last answer: one file, so one rename commits an update), `ledger.jsonl` (rounds charged,
each before it is trained, with the epsilon and delta of all of them, for the owner's limits over all runs),
`records.jsonl` (its own scores), and at the end `prompts/` and `privacy.json`. Where clients add noise shares,
`run.key` is there from the first message to the last: without it nothing that was masked can be opened later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hushprompt import files
from hushprompt.deployment.agreement import Agreement, read_agreement
from hushprompt.deployment.config import RESERVED, check_name
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.operate import secrets
from hushprompt.deployment.server_record import AGREEMENT
from hushprompt.errors import ConfigError, ProtocolError, ResumeError
from hushprompt.methods.base import Personal
from hushprompt.runs import identity, ledger, records
from hushprompt.runs.state import fields_of, flatten, restore

STATE, RUN_KEY = "state.safetensors", "run.key"
PARTIAL_KEY = f".{RUN_KEY}.part"
OF_START = {STATE, RUN_KEY, PARTIAL_KEY, AGREEMENT, identity.FILE}
"""All files of a run in which nothing was charged yet."""
MOST_IDLE = 8
"""Runs in a store that a server may have invited to without training in any: older ones are forgotten."""
MOST_RUNS = 1000
"""Runs in a store in which something was trained, whatever it cost."""


@dataclass(frozen=True, kw_only=True)
class ClientProgress:
    """How far a client has come in a run: the plain values of its state."""

    norm: float | None = None
    """Clip norm of its next local release, where norms are adaptive."""
    round_index: int = -1
    """Round of the last update; -1 before the first."""
    step: int = 0
    """First step of the last update."""
    num_rounds: int = 0
    """Different rounds in which it computed an update."""
    request: str = ""
    """Digest of the message that asked for the last update."""
    num_scored: int = -1
    """Rounds after which it was last scored."""
    records_size: int = 0
    """Bytes of `records.jsonl` that belong to this state."""
    participants: tuple[str, ...] = ()
    """Where clients add noise shares, who took part in the step of the last update."""
    unmask_request: str = ""
    """Digest of the message that was told shares of this step's seeds; empty: none was."""


@dataclass(frozen=True, kw_only=True)
class ClientState(ClientProgress):
    """All that a client keeps between two messages."""

    personal: Personal
    batches: tuple[np.ndarray, ...] = ()
    """Of its last round, all its steps: secure ones cannot be drawn again."""
    answer: Envelope = field(default_factory=lambda: Envelope("turn"))
    """What it answered."""
    unmask_answer: Envelope = field(default_factory=lambda: Envelope("unmask"))
    """What it answered to `unmask_request`."""


@dataclass(frozen=True, kw_only=True)
class _StateHeader(ClientProgress):
    """What the file of a state says beside its tensors."""

    answer: tuple[str, dict[str, Any]]
    """Kind and plain values of the last answer."""
    unmask_answer: tuple[str, dict[str, Any]] = ("unmask", {})
    """The same of the answer that told shares of seeds."""


def run_folders(store: Path) -> list[Path]:
    """Return the folders of a store's runs: those in which there is anything of a run, whatever else was lost."""
    traces = (AGREEMENT, STATE, ledger.FILE)
    return sorted({path.parent for name in traces for path in store.glob(f"*/*/{name}")})


def rounds_of_state(folder: Path) -> int:
    """Return the number of rounds that a run's state counts as charged; 0 where there is none.

    Raises:
        ResumeError: it is damaged.
    """
    path = folder / STATE
    try:
        return records.read_tensors(path, _StateHeader)[0].num_rounds if path.exists() else 0
    except ValueError as error:
        raise ResumeError(f"The state {path} is damaged ({error}): what was spent is not known.") from error


def _is_idle(folder: Path) -> bool:
    """Whether a folder has nothing but what the start of a run leaves, and no round was counted as charged."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - OF_START:
        return False
    try:
        return rounds_of_state(folder) == 0
    except ResumeError:  # nobody knows: it stays
        return False


class RunStore:
    """The folder of one run."""

    def __init__(self, store: Path, federation: str, run: str) -> None:
        """Name the folder; the names come from the server, and must be names.

        Raises:
            ProtocolError: they are paths.
        """
        try:
            check_name("the name of the federation", federation)
            check_name("the name of the run", run)
        except ConfigError as error:
            raise ProtocolError(str(error)) from error
        self.folder = store / federation / run

    @property
    def records_path(self) -> Path:
        """The client's own scores."""
        return self.folder / "records.jsonl"

    @property
    def has_charges(self) -> bool:
        """Whether any round was ever charged."""
        path = self.folder / ledger.FILE
        return path.exists() and path.stat().st_size > 0

    def run_key(self) -> bytes | None:
        """Return the private run key; None where there is none.

        Raises:
            ConfigError: others can read it.
        """
        path = self.folder / RUN_KEY
        return secrets.read(path, "run key") if path.exists() else None

    def make_room(self) -> None:
        """Remove the oldest of the other runs in the store that never trained: whoever invites could fill the disk.

        Raises:
            ProtocolError: too many did train.
        """
        places = [path for path in self.folder.parents[1].glob("*/*") if path.parent.name not in RESERVED]
        idle = sorted(
            (path for path in places if path != self.folder and _is_idle(path)), key=lambda path: path.stat().st_mtime
        )
        if len(places) - len(idle) - (self.folder in places) >= MOST_RUNS:
            raise ProtocolError(
                f"This client's store holds {MOST_RUNS} runs, as many as it takes. Its owner has to begin another one "
                "(client.store), with limits that leave out what was spent in this one."
            )
        for folder in idle[: max(0, len(idle) - MOST_IDLE + 1)]:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            with contextlib.suppress(OSError):  # where its federation has other runs
                folder.parent.rmdir()

    def make_run_key(self, key: bytes) -> None:
        """Store a private run key for this client alone; after a crash it is there whole or not at all."""
        temporary = self.folder / PARTIAL_KEY
        temporary.unlink(missing_ok=True)  # of a process that was killed here
        secrets.write_new(temporary, key)
        os.replace(temporary, self.folder / RUN_KEY)

    def remove_run_key(self) -> None:
        """Remove the run key: what was masked with it stays closed for good."""
        (self.folder / RUN_KEY).unlink(missing_ok=True)

    def state_digest(self) -> bytes:
        """Return the SHA-256 of the state as it lies on the disk."""
        return hashlib.sha256((self.folder / STATE).read_bytes()).digest()

    def pinned(self) -> Agreement | None:
        """Return what was agreed on; None before."""
        path = self.folder / AGREEMENT
        return read_agreement(records.read_json(path)) if path.exists() else None

    def pin(self, agreement: Agreement, state: ClientState) -> None:
        """Store an agreement, with the state before training."""
        self.save(state)
        records.write_json(self.folder / AGREEMENT, agreement.to_json())

    def save(self, state: ClientState) -> None:
        """Write the state; after a crash it is the old or the new one."""
        tensors = {
            **flatten(state.personal, "personal."),
            **{f"answer.{name}": tensor for name, tensor in state.answer.tensors.items()},
            **{f"unmask.{name}": tensor for name, tensor in state.unmask_answer.tensors.items()},
            **{f"batch.{step}": torch.from_numpy(batch) for step, batch in enumerate(state.batches)},
        }
        answer, unmask = ((each.kind, dict(each.meta)) for each in (state.answer, state.unmask_answer))
        header = _StateHeader(**fields_of(ClientProgress, state), answer=answer, unmask_answer=unmask)
        files.write_tensors(self.folder / STATE, tensors, json.dumps(dataclasses.asdict(header)))

    def load(self, template: Personal) -> ClientState:
        """Read the state into the structure of a personal state of the same method and model.

        Raises:
            ResumeError: it is missing or damaged: what left is not known.
        """
        path = self.folder / STATE
        try:
            header, tensors = records.read_tensors(path, _StateHeader)
            parts: dict[str, dict[str, torch.Tensor]] = {"personal": {}, "answer": {}, "unmask": {}, "batch": {}}
            for key, tensor in tensors.items():
                part, _, name = key.partition(".")
                parts[part][name] = tensor
            batches = tuple(parts["batch"][str(step)].numpy() for step in range(len(parts["batch"])))
            personal = restore(template, parts["personal"])
            answers: dict[str, Any] = {
                "answer": Envelope(*header.answer, parts["answer"]),
                "unmask_answer": Envelope(*header.unmask_answer, parts["unmask"]),
            }
            return ClientState(personal=personal, batches=batches, **answers, **fields_of(ClientProgress, header))
        except (ValueError, KeyError) as error:
            raise ResumeError(f"The state {path} is missing or damaged ({error}): what left is not known.") from error
