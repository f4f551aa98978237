"""A prompt file, which says itself what it is. Whoever uses one needs no accountant, so none is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hushprompt.errors import DataError
from hushprompt.runs.records import read_tensors

FORMAT = "hushprompt prompt 2"
READ = ("hushprompt prompt 1", FORMAT)
"""The first had a method's own tensors alone, and did not say which backbone it was."""


@dataclass(frozen=True, kw_only=True)
class PromptHeader:
    """What a prompt file says of itself."""

    format: str
    """One of `READ`."""
    prompt: Any
    """Which prompt it is, in the words of the method."""
    method: str
    backbone_fingerprint: str
    """Of the model whose embeddings the tensors are; they mean nothing to another one."""
    class_names: tuple[str, ...]
    privacy: str
    """The guarantee for whoever holds the file, in one sentence."""
    client_id: int | None = None
    """Whose personal prompt it is; None: everybody's."""
    rank: int | None = None
    """Rank of a factorized personal part, where the method has one."""
    noise_source: str | None = None
    """Where noise came from: "seeded" makes it a simulation; None in files of versions that did not say."""
    client_name: str | None = None
    arm: str | None = None
    """Label of the line of the run's table; this and all that follows is None in files of format 1."""
    settings: dict[str, Any] | None = None
    """The method's section of a config, without paths."""
    backbone: dict[str, Any] | None = None
    """The backbone's section of a config, without paths of the machine that it was made on."""
    modality: str | None = None
    template: str | None = None
    """Hand template of the backbone, with {} for the class name."""
    logit_scale: float | None = None
    """The backbone's; the tensor `logit_scale` is that of the scores."""
    preprocessing: dict[str, Any] | None = None
    """What is known of how the backbone makes an image's pixels, or a sound, ready."""
    epsilon: float | None = None
    """Of `privacy`, for programs: never to be shown without that sentence; None in files that did not have it."""
    delta: float | None = None
    privacy_unit: str | None = None
    """"example", "group" or "client"."""
    server: str | None = None
    """The guarantee against the server that the prompt was trained at; None where it had none."""
    task: str = "classes"
    """"answers": it was learned from questions with answers, and there are no classes."""
    group_word: str | None = None
    """Where the unit is a group: what one is."""


def read_prompt(path: Path) -> tuple[PromptHeader, dict[str, Tensor]]:
    """Read a prompt file: what it says of itself, and what the method published, by name.

    Raises:
        DataError: it is missing, damaged, or no prompt file of this version.
    """
    try:
        header, tensors = read_tensors(path, PromptHeader)
    except ValueError as error:
        raise DataError(f"{path} is no prompt file ({error}). Give a file of a run's prompts folder.") from error
    if header.format not in READ:
        raise DataError(f"{path} has the format {header.format!r}, but this version reads {' and '.join(READ)}.")
    _check(path, header, tensors)
    return header, tensors


def _check(path: Path, header: PromptHeader, tensors: dict[str, Tensor]) -> None:
    """Raise DataError unless a file's tensors are finite and fit its classes, and its numbers can be what they say."""
    num_classes = len(header.class_names)
    wrong = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    rows = {"text_features": 2, "bias": 1, "log_prior": 1}
    wrong += [name for name, ndim in rows.items() if name in tensors
              and (tensors[name].ndim != ndim or len(tensors[name]) != num_classes)]  # fmt: skip
    numbers = {"epsilon": header.epsilon, "delta": header.delta}
    wrong += [name for name, value in numbers.items() if value is not None and not value >= 0]
    is_classless = num_classes == 0 and header.task != "answers"
    if wrong or is_classless or len(set(header.class_names)) < num_classes:
        what = ", ".join(wrong) or "class names"
        raise DataError(f"{path} contradicts itself ({what}). Get it again, from a run's prompts folder.")
