"""What a prompt says of many examples: files of a user, or a split of a run's own data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from hushprompt import checks
from hushprompt.config.schema import RunConfig
from hushprompt.errors import ConfigError, HushpromptError, sentence_of
from hushprompt.evaluation.answers import exact_match
from hushprompt.features.cache import image_features
from hushprompt.models.base import FeatureKind
from hushprompt.serving.inputs import as_array, media_for
from hushprompt.serving.prompt import MAX_TOKENS, Prediction, Prompt, batched, predictions

Told = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


@dataclass(frozen=True, kw_only=True)
class ExamplePrediction:
    """What a prompt takes one example for, or what it answers."""

    file: str
    """Path of the file, "-" for standard input, or split and index within it."""
    label: str | None = None
    """The most probable class; None where it is less probable than `threshold`, or the file cannot be read."""
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    """The most probable classes with their probabilities, best first."""
    error: str | None = None
    """Why the file cannot be read."""
    truth: str | None = None
    """The class that the data says; of a split."""
    compared: Prediction | None = None
    """What the other prompt takes it for."""
    question: str | None = None
    """What was asked in words; None: which class it is."""
    answer: str | None = None
    """What the prompt answered in words."""
    is_complete: bool | None = None
    """Whether the prompt ended its answer; False where it was cut off."""
    compared_answer: str | None = None
    """What the other prompt answered."""
    true_answers: tuple[str, ...] | None = None
    """What the data say is right; of a split with questions."""

    @property
    def is_right(self) -> bool | None:
        """Whether it is what the data say: the class, or in words an exact match; None where they say nothing."""
        if self.answer is not None:
            true = self.true_answers or ((self.truth,) if self.truth is not None else ())
            return bool(exact_match(self.answer, true)) if true else None
        return None if self.truth is None or not self.top else self.top[0][0] == self.truth


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is wanted of each example."""

    prompt: Prompt
    compare: Prompt | None = None
    """Another prompt for the same backbone, asked about the same images."""
    top: int = 5
    threshold: float = 0.0
    """Smallest probability of a label that is told, in [0, 1]."""
    question: str | None = None
    """To be answered in words instead of by a class; empty: the one that the prompt was trained with."""
    max_tokens: int = MAX_TOKENS
    """After which an answer in words is cut off."""

    def __post_init__(self) -> None:
        checks.positive(top=self.top)
        checks.in_range(0, 1, threshold=self.threshold)
        if self.question is not None:
            self.prompt.check_question(self.question, self.max_tokens)

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts that are asked."""
        return [self.prompt] if self.compare is None else [self.prompt, self.compare]

    def rows(
        self, names: Sequence[str], features: Mapping[FeatureKind, Tensor], truths: Sequence[str | None]
    ) -> list[ExamplePrediction]:
        """Return the predictions of encoded examples."""
        if self.question is not None:
            answered = self.answered(names, features, [self.question] * len(names))
            return [dataclasses.replace(row, truth=truth) for row, truth in zip(answered, truths, strict=True)]
        with torch.no_grad():
            found = [predictions(each.logits(features[each.feature_kind]), each.classes, self.top)
                     for each in self.prompts]  # fmt: skip
        others = found[1] if len(found) > 1 else [None] * len(names)
        return [
            ExamplePrediction(
                file=name, label=own.label if own.probability >= self.threshold else None,
                probability=own.probability, top=own.top, truth=truth, compared=other,
            )
            for name, own, other, truth in zip(names, found[0], others, truths, strict=True)
        ]  # fmt: skip

    def answered(
        self, names: Sequence[str], features: Mapping[FeatureKind, Tensor], questions: Sequence[str]
    ) -> list[ExamplePrediction]:
        """Return answers in words about encoded examples, a question each."""
        found = [each.answers(features[each.feature_kind], questions, self.max_tokens) for each in self.prompts]
        others: Sequence[str | None] = [each.text for each in found[1]] if len(found) > 1 else [None] * len(names)
        return [
            ExamplePrediction(
                file=name, question=question, answer=own.text, is_complete=own.is_complete, compared_answer=other
            )
            for name, question, own, other in zip(names, questions, found[0], others, strict=True)
        ]


def predict_files(
    asked: Asked, files: Sequence[str], *, batch_size: int, told: Told = lambda *_: None
) -> Iterator[ExamplePrediction]:
    """Yield a prediction for each file, in order; a file that cannot be read gets one that says why.

    The next batch is decoded while one is encoded, and no more is ever held.
    """
    backbone = asked.prompt.model.backbone
    media, batches = media_for(backbone.capabilities), list(batched(files, batch_size))

    def decoded(names: list[str]) -> list[object]:
        return [_decoded(lambda: as_array(name, media, backbone.feature_dim)) for name in names]  # noqa: B023

    done = 0
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        coming = [pool.submit(decoded, names) for names in batches[:1]]
        for at, names in enumerate(batches):
            examples = coming.pop().result()
            coming = [pool.submit(decoded, following) for following in batches[at + 1 : at + 2]]
            yield from _of_batch(asked, names, examples)
            done += len(names)
            told("predicting", done, len(files))


def _decoded(decode: Callable[[], object]) -> object:
    """Return an example, or the sentence that says why there is none."""
    try:
        return decode()
    except ConfigError:  # a package is missing: nothing can be read
        raise
    except (HushpromptError, OSError) as error:
        return sentence_of(error)


def _of_batch(asked: Asked, names: Sequence[str], examples: Sequence[object]) -> list[ExamplePrediction]:
    """Return the predictions of a batch, of which some could not be read."""
    readable = [at for at, example in enumerate(examples) if not isinstance(example, str)]
    rows = {
        at: ExamplePrediction(file=names[at], error=str(each), question=asked.question)
        for at, each in enumerate(examples)
        if at not in readable
    }
    if readable:
        of_kind = {each.feature_kind: each for each in asked.prompts}
        images = [examples[at] for at in readable]
        features = {kind: prompt.image_features(images, batch_size=len(images)) for kind, prompt in of_kind.items()}
        found = asked.rows([names[at] for at in readable], features, [None] * len(readable))
        rows |= dict(zip(readable, found, strict=True))
    return [rows[at] for at in range(len(names))]


def predict_split(
    asked: Asked, config: RunConfig, split: str, *, batch_size: int, told: Told = lambda *_: None
) -> Iterator[ExamplePrediction]:
    """Yield a prediction for each example of a split of a run's data, from the features that its evaluation read.

    Raises:
        ConfigError: the data have no such split.
        DataError: they are not there, or cannot be read.
    """
    dataset = config.data.load()
    if split not in dataset.splits:
        raise ConfigError(f"There is no split {split!r} in {dataset.name}; there are: {', '.join(dataset.splits)}.")
    backbone, where = asked.prompt.model.backbone, config.runtime.cache_path
    stored = {
        kind: image_features(backbone, dataset, split, where, config.features, told, kind)
        for kind in {each.feature_kind for each in asked.prompts}
    }
    labels, questions, answers = (getattr(dataset.splits[split], name) for name in ("labels", "questions", "answers"))
    for rows in batched(range(len(labels)), batch_size):
        features = {kind: each.as_stored()[rows].float().to(asked.prompt.model.device) for kind, each in stored.items()}
        names = [f"{split}/{row}" for row in rows]
        if questions is None:
            yield from asked.rows(names, features, [dataset.class_names[label] for label in labels[rows]])
        elif asked.question:  # another one than those whose answers are known
            yield from asked.rows(names, features, [None] * len(rows))
        else:
            found = asked.answered(names, features, [questions[row] for row in rows])
            for row, each in zip(rows, found, strict=True):
                yield dataclasses.replace(each, true_answers=answers[row])
