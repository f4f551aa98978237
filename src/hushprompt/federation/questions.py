"""Open tasks in a federation: questions and answers as tokens, and how well a prompt answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.config.schema import RunConfig
from hushprompt.data.base import Dataset, Split
from hushprompt.data.copies import in_training
from hushprompt.data.partitions.base import Partition
from hushprompt.errors import ConfigError, UnfitError
from hushprompt.evaluation.answers import anls, exact_match, vqa_accuracy
from hushprompt.methods.base import Method, Personal, Shared
from hushprompt.methods.context import HasContext
from hushprompt.methods.zero_shot import ZeroShot
from hushprompt.models.base import Model
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.prompts.texts import TextTokens


@dataclass(frozen=True)
class Quiz:
    """The questions of an evaluation split, in its order."""

    model: GenerativeModel
    texts: TextTokens
    """Questions and the answers that their likelihood is taken of."""
    questions: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    max_tokens: int
    """After which an answer is cut off."""

    def of(self, rows: np.ndarray) -> Quiz:
        """Return some of the questions."""
        texts, order = self.texts.of(torch.from_numpy(rows)), rows.tolist()
        questions, answers = tuple(self.questions[row] for row in order), tuple(self.answers[row] for row in order)
        return Quiz(self.model, texts, questions, answers, self.max_tokens)

    def measures(
        self, contexts: Sequence[Float[Tensor, "t e"]], media: Float[Tensor, "n m e"]
    ) -> list[Float[Tensor, "n 4"]]:
        """Return exact match, loss per token, ANLS and VQA accuracy of each answer, for each client's context."""
        found = []
        for said, losses in self.model.answers_and_losses(contexts, media, self.texts, self.max_tokens):
            rows = [
                (exact_match(answer.text, true), loss, anls(answer.text, true), vqa_accuracy(answer.text, true))
                for answer, loss, true in zip(said, losses.tolist(), self.answers, strict=True)
            ]
            found.append(torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 4))
        return found

    def matches(
        self, contexts: Sequence[Float[Tensor, "t e"]], media: Float[Tensor, "n m e"]
    ) -> list[Float[Tensor, "n 1"]]:
        """Return the exact match of each answer, for each client's context: for counts that get noise.

        Each question is asked alone, so that an answer does not depend on how many and how long the others are: one
        example more or less changes one answer.
        """
        found = torch.zeros(len(contexts), len(media), 1, dtype=torch.float64)
        for at, (one, question, true) in enumerate(zip(media.split(1), self.questions, self.answers, strict=True)):
            said = self.model.answers_of_each(contexts, one, [question], self.max_tokens)
            found[:, at, 0] = torch.tensor([exact_match(answer.text, true) for (answer,) in said])
        return list(found)


def context_of(model: GenerativeModel, method: Method, shared: Shared, personal: Personal) -> Float[Tensor, "t e"]:
    """Return the context that a client answers with; of length 0 where none is learned."""
    if isinstance(method, HasContext):
        return method.context(shared, personal)
    return torch.zeros(0, model.token_width, device=model.device)


def quiz_of(model: Any, split: Split, config: RunConfig) -> Quiz | None:
    """Return what a split asks; None where its examples have classes. Raises what `texts_of` does."""
    texts = texts_of(model, split, config)
    if texts is None or split.questions is None or split.answers is None:
        return None
    return Quiz(model, texts, split.questions, split.answers, config.evaluation.max_answer_tokens)


def texts_of(model: Any, split: Split, config: RunConfig) -> TextTokens | None:
    """Return questions and the answers that are trained on, as tokens; None where examples have classes.

    Raises:
        ConfigError: one of them does not fit the model's window.
    """
    if split.questions is None or split.answers is None:
        return None
    texts: TextTokens = model.texts(split.questions, [most_frequent(true) for true in split.answers])
    num_answer = max(texts.answers.shape[1], config.evaluation.max_answer_tokens)
    model.check_window(getattr(config.method, "num_ctx", 0), texts.questions.shape[1], num_answer)
    return texts


def most_frequent(answers: tuple[str, ...]) -> str:
    """Return the answer that most gave, of several the first.

    >>> most_frequent(("red", "blue", "blue"))
    'blue'
    """
    return Counter(answers).most_common(1)[0][0]


def check_open(config: RunConfig, dataset: Dataset) -> None:
    """Raise ConfigError where a setting is about classes, and the data have questions."""
    if not dataset.is_open:
        return
    if config.evaluation.base_classes is not None:
        raise ConfigError(
            f"evaluation.base_classes keeps classes from training, and {dataset.name} has questions. Leave it out."
        )
    if config.partition.by_classes and len(dataset.class_names) == 1:
        raise ConfigError(
            f"This partition deals out classes, and the questions of {dataset.name} have none. Name an entry with "
            "categories in data.category_field, or use the partition iid, quantity_skew, by_client or by_domain."
        )


def check_one_question(config: RunConfig, dataset: Dataset, partition: Partition) -> None:
    """Raise ConfigError where a client trains on several questions on one image, each protected on its own."""
    if not dataset.is_open or config.privacy.privacy_unit != "example" or dataset.duplicates != "refuse":
        return
    repeated = in_training(dataset, dataset.copies, partition)
    if not repeated:
        return
    count = sum(sum(counts.values()) for counts in repeated.values())
    raise ConfigError(
        f"{count} image(s) or sound(s) of {dataset.name} have several questions at one client, and "
        'privacy.privacy_unit = "example" protects one question at a time. Set privacy.privacy_unit = "group" with '
        'data.duplicates = "group" (or give each line a group), or, if that is enough, data.duplicates = "allow".'
    )


def check_answers(backbone: Model, method: Method) -> None:
    """Raise UnfitError unless questions can be answered: by a model that generates, with a context."""
    if backbone.capabilities.num_tokens is None:
        raise UnfitError(
            "The data have questions with answers, and this backbone compares images with class names. Use a "
            'generative model, such as backbone.name = "smolvlm".'
        )
    if not isinstance(method, HasContext | ZeroShot):
        raise UnfitError(f"{method.title} has no context, and answers to questions are made with one.")
