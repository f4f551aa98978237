"""What a server asks its prompt: images as bytes, in batches, the hand template beside the prompt where wanted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from hushprompt.errors import ConfigError, DataError
from hushprompt.extras import require
from hushprompt.prompts.decoding import Answer
from hushprompt.serving.inputs import as_array, media_for
from hushprompt.serving.limits import RefusedError
from hushprompt.serving.prompt import ZERO_SHOT, Prediction, Prompt, predictions

VALUES_AT_ONCE = 40_000_000
"""Pixels, or samples, that are decoded at the same time: 600 MB at worst.

A PNG with a palette and transparency, which is converted twice, takes 15 bytes a pixel; others take less.
"""
MOST_WORKERS = 4
"""More threads would wait for Python's global lock."""
WORTHWHILE = 1.3
"""An image alone has to be encoded so many times as fast on all cores as on one, or a batch stays on one."""


@dataclass(frozen=True)
class Question:
    """What is this?"""

    data: bytes
    size: int
    """Pixels or samples, once it is decoded."""
    top: int = 5
    with_zero_shot: bool = False


@dataclass(frozen=True)
class Reply:
    """What the prompt takes it for, and what the hand template does."""

    trained: Prediction
    zero_shot: Prediction | None = None


@dataclass(frozen=True)
class OpenQuestion:
    """What is to be answered in words about an image, or a sound?"""

    data: bytes
    size: int
    """Pixels or samples, once it is decoded."""
    text: str
    """Empty: the question that the prompt was trained with."""
    max_tokens: int
    with_zero_shot: bool = False
    is_wanted: Callable[[], bool] = lambda: True
    """Asked before each token; False: nobody waits for the answer any more."""


@dataclass(frozen=True)
class OpenReply:
    """What the prompt answers, and what the model without a learned prompt does."""

    trained: Answer
    zero_shot: Answer | None = None


class PromptAnswers:
    """A prompt and its hand template, loaded and warm."""

    def __init__(self, prompt: Prompt) -> None:
        """Load the backbone, encode the class names, and answer once.

        Raises:
            ConfigError: the backbone is not known or another one, or takes features.
        """
        self.prompt = prompt
        backbone = prompt.model.backbone
        self.modality = backbone.capabilities.modality
        if self.modality == "features":
            raise ConfigError(
                "This prompt's backbone takes features, and a server takes images or sounds. Load the prompt with the "
                "backbone that made the features: --backbone FILE.toml."
            )
        if self.modality == "audio":
            require("audio", "A server of sounds", "soundfile")
        self._media, self._width = media_for(backbone.capabilities), backbone.feature_dim
        self.zero_shot = _zero_shot(prompt)
        self._room = Room(VALUES_AT_ONCE)
        self.num_workers, self._num_threads = self._shared_out()

    def __call__(self, questions: Sequence[Question]) -> list[Reply | Exception]:
        """Return a reply, or what is wrong, for each question; of several threads at the same time."""
        found: list[Reply | Exception] = []
        for part in _parts(questions):
            with self._room.taken(sum(each.size for each in part)):
                arrays = [self._decoded(each) for each in part]
                readable = [at for at, array in enumerate(arrays) if not isinstance(array, Exception)]
                replies = iter(self._replies([arrays[at] for at in readable], [part[at] for at in readable]))
            found += [array if isinstance(array, Exception) else next(replies) for array in arrays]
        return found

    @torch.no_grad()
    def in_words(self, questions: Sequence[OpenQuestion]) -> list[OpenReply | Exception]:
        """Return an answer in words, or what is wrong, for each question, one after the other."""
        return [self._in_words(each) for each in questions]

    def _in_words(self, question: OpenQuestion) -> OpenReply | Exception:
        with self._room.taken(question.size):
            array = self._decoded(question)
            if isinstance(array, Exception):
                return array
            features = self.prompt.image_features([array])
        asked = [self.prompt, *([self.zero_shot] if question.with_zero_shot and self.zero_shot else [])]
        wanted = [question.text], question.max_tokens, question.is_wanted
        return OpenReply(*(each.answers(features, *wanted)[0] for each in asked))

    def prepare_thread(self) -> None:
        """Have batches of this thread encoded on as many cores as one of them is given."""
        torch.set_num_threads(self._num_threads)

    def give_back_threads(self) -> None:
        """Let what the caller's thread does next run on as many cores as before: other threads changed that for all."""
        torch.set_num_threads(torch.get_num_threads())

    def _shared_out(self) -> tuple[int, int]:
        """Return how many batches are encoded at the same time, and on how many threads each.

        A large model is faster on all cores. A small one is not, as its threads wait for each other; then every core
        has a batch of its own.
        """
        num_threads = torch.get_num_threads()
        if self.prompt.model.device != "cpu" or num_threads == 1:
            self._seconds_alone()
            return 1, num_threads
        together = self._seconds_alone()
        torch.set_num_threads(1)
        alone = self._seconds_alone()
        torch.set_num_threads(num_threads)
        if alone > WORTHWHILE * together:
            return 1, num_threads
        self.prompt.model.backbone.prepare_for_threads()
        return min(num_threads, MOST_WORKERS), 1

    def _seconds_alone(self) -> float:
        """Return how long a blank takes, the fastest of three once the model is warm."""
        rate = self.prompt.model.backbone.capabilities.sampling_rate or 48_000
        blank = np.zeros((32, 32, 3), np.uint8) if self.modality == "image" else np.zeros(rate, np.float32)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            if self.prompt.classes:
                self._replies([blank], [Question(b"", 0)])
            else:
                self.prompt.image_features([blank])
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def _decoded(self, question: Question | OpenQuestion) -> np.ndarray | Exception:
        """Return the pixels or samples, or the refusal of what is damaged."""
        try:
            return as_array(question.data, self._media, self._width)
        except DataError as error:
            return RefusedError(415, str(error).replace(" given as bytes", "").partition(" Replace it ")[0])
        except Exception:  # of one among strangers' images, which must not fail with it; the decoder's words may be its
            return RefusedError(415, f"This {self.modality} cannot be read.")

    @torch.inference_mode()
    def _replies(self, arrays: Sequence[Any], questions: Sequence[Question]) -> list[Reply | Exception]:
        """Return the replies to what could be decoded."""
        if not questions:
            return []
        top = max(each.top for each in questions)
        features = self.prompt.image_features(arrays, batch_size=len(arrays))
        trained = predictions(self.prompt.logits(features), self.prompt.classes, top)
        others: Sequence[Prediction | None] = [None] * len(questions)
        if self.zero_shot is not None and any(each.with_zero_shot for each in questions):
            if self.zero_shot.feature_kind != self.prompt.feature_kind:
                features = self.zero_shot.image_features(arrays, batch_size=len(arrays))
            others = predictions(self.zero_shot.logits(features), self.prompt.classes, top)
        return [self._reply(*each) for each in zip(questions, trained, others, strict=True)]

    def _reply(self, question: Question, trained: Prediction, other: Prediction | None) -> Reply | Exception:
        """Return the reply to one question, with as many classes as it asks for."""
        said = [trained] if other is None or not question.with_zero_shot else [trained, other]
        if not all(math.isfinite(each.probability) for each in said):
            return RefusedError(415, f"The model gives no finite score for this {self.modality}.")
        return Reply(*(each._replace(top=each.top[: question.top]) for each in said))


def identifier(prompt: Prompt) -> str:
    """Return what tells a prompt from all others: of its tensors and what it says of itself, 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(asdict(prompt.header), sort_keys=True, default=str).encode())
    for name, tensor in sorted(prompt.tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _zero_shot(prompt: Prompt) -> Prompt | None:
    """Return the hand template as a prompt; None where it is the prompt itself, or the backbone has no text."""
    if prompt.method == ZERO_SHOT:
        return None
    try:
        return prompt.zero_shot()
    except ConfigError:
        return None


class Room:
    """Room in memory, for which threads wait in turn."""

    def __init__(self, values: int) -> None:
        self._values = self._left = values
        self._turn, self._change = threading.Lock(), threading.Condition()

    @contextlib.contextmanager
    def taken(self, values: int) -> Iterator[None]:
        """Take room for so many values while the block runs; for more than there is, all of it."""
        values = min(values, self._values)
        with self._turn, self._change:
            self._change.wait_for(lambda: self._left >= values)
            self._left -= values
        try:
            yield
        finally:
            with self._change:
                self._left += values
                self._change.notify()


def _parts(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Yield questions in their order, as many at a time as fit into memory once they are decoded."""
    part: list[Question] = []
    for each in questions:
        if part and sum(other.size for other in part) + each.size > VALUES_AT_ONCE:
            yield part
            part = []
        part.append(each)
    if part:
        yield part
