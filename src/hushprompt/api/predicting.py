"""Asking a trained prompt about many examples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hushprompt.api.progress import watching
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError, DataError
from hushprompt.runs.observer import Observer
from hushprompt.serving.inputs import find_files
from hushprompt.serving.loading import load_prompt
from hushprompt.serving.many import Asked, ExamplePrediction, predict_files, predict_split
from hushprompt.serving.prompt import BATCH_SIZE, MAX_TOKENS, ZERO_SHOT, Prompt

if TYPE_CHECKING:
    from hushprompt.config.schema import RunConfig
    from hushprompt.models.placing import Device


@dataclass(frozen=True, eq=False)
class Predictions(Iterator[ExamplePrediction]):
    """Predictions, each made when it is asked for."""

    prompt: Prompt
    """Whose they are."""
    rows: Iterator[ExamplePrediction] = field(repr=False)

    def __next__(self) -> ExamplePrediction:
        return next(self.rows)


def predict(
    source: Prompt | str | os.PathLike[str],
    examples: str | Path | Sequence[str | Path] = (),
    *,
    client: int | str | None = None,
    split: str | None = None,
    compare: Prompt | str | None = None,
    arm: str | None = None,
    classes: Sequence[str] | None = None,
    top: int = 5,
    threshold: float = 0.0,
    question: str | None = None,
    max_tokens: int | None = None,
    recursive: bool = False,
    batch_size: int = BATCH_SIZE,
    backbone: Any = None,
    device: Device = "auto",
    progress: bool | Observer = True,
) -> Predictions:
    """Say what files of images, or of sounds, are, or answer a question about each: one by one, in order, as they come.

    A file that cannot be read gets a prediction with `error`; the others are not lost.

    Args:
        source: a prompt, or what `load_prompt` reads: a run, a prompt file, a client's store, an export.
        examples: files and folders; "-" is standard input.
        client: as for `load_prompt`.
        split: instead of `examples`, a split of the run's own data, such as "test", from the features that its
            evaluation read.
        compare: "zero_shot" asks the hand template too, about the same images: what did training change? Or a prompt
            of the same backbone.
        arm: which line of the run's table: its own method, whose prompts it keeps, or "zero_shot".
        classes: other names, in the same context.
        top: classes that are named.
        threshold: a label whose probability is smaller is None.
        question: to be answered in words about each example, instead of by a class; of the prompt of a generative
            model. Empty: the question that it was trained with, or of a split with questions each example's own. A
            prompt without classes, which was learned from questions, answers always.
        max_tokens: after which an answer in words is cut off; None: 32, of a split as in its evaluation.
        recursive: take files in folders of a folder, too.
        batch_size: images that are encoded at a time.
        backbone: as for `load_prompt`.
        device: as for `load_prompt`.
        progress: as for `run`.

    Raises:
        ConfigError: nothing is to be predicted, or a setting is wrong.
        DataError: there is no such prompt, file or folder.
    """
    prompt = chosen(source, client=client, arm=arm, classes=classes, backbone=backbone, device=device)
    other = prompt.zero_shot() if compare == ZERO_SHOT else compare
    if other is not None and not isinstance(other, Prompt):
        raise ConfigError(f'compare is "zero_shot" or a prompt, got {other!r}.')
    if other is not None and other.header.backbone_fingerprint != prompt.header.backbone_fingerprint:
        raise ConfigError("Prompts of two backbones cannot be compared on the same features.")
    usual = MAX_TOKENS if split is None else _config(prompt).evaluation.max_answer_tokens
    asked = Asked(
        prompt=prompt, compare=other, top=top, threshold=threshold,
        question="" if question is None and not prompt.classes else question,
        max_tokens=usual if max_tokens is None else max_tokens,
    )  # fmt: skip
    if split is not None:
        if examples:
            raise ConfigError("Give files or a split, not both.")
        config = _config(prompt)
        return Predictions(
            prompt,
            _watched(progress, lambda told: predict_split(asked, config, split, batch_size=batch_size, told=told)),
        )
    paths = [examples] if isinstance(examples, (str, Path)) else examples
    files = find_files(paths, prompt.model.backbone.capabilities.modality, recursive=recursive)
    return Predictions(
        prompt, _watched(progress, lambda told: predict_files(asked, files, batch_size=batch_size, told=told))
    )


def _watched(progress: bool | Observer, make: Any) -> Iterator[ExamplePrediction]:
    """Yield predictions while their progress is shown."""
    with watching(progress) as observer:
        yield from make(observer.on_setup)


def chosen(
    source: Prompt | str | os.PathLike[str],
    *,
    client: int | str | None = None,
    arm: str | None = None,
    classes: Sequence[str] | None = None,
    backbone: Any = None,
    device: Device = "auto",
) -> Prompt:
    """Return the prompt that the arguments of `predict` mean.

    Raises:
        DataError: there is none.
        ConfigError: its backbone is not known, or it cannot take other classes.
    """
    if isinstance(source, Prompt):
        prompt = source
    else:
        prompt = load_prompt(source, client=client, backbone=backbone, device=device)
    if arm == ZERO_SHOT:
        prompt = prompt.zero_shot()
    elif arm not in (None, prompt.method, prompt.header.arm):
        raise DataError(
            f"{prompt.path} is the prompt of {prompt.header.arm or prompt.method}; of {arm!r} none was kept."
        )
    return prompt if classes is None else prompt.with_classes(classes)


def _config(prompt: Prompt) -> RunConfig:
    folder = prompt.path.parent.parent
    if not (folder / "config.toml").exists():
        raise DataError(f"{prompt.path} does not lie in a run folder, so there is no data to take a split of.")
    return configs.load_stored(folder)
