"""A trained prompt as an object: what it says of itself, and what it says of images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from hushprompt import checks
from hushprompt.config.values import choose
from hushprompt.errors import ConfigError, DataError
from hushprompt.privacy import statements
from hushprompt.runs.prompt_file import PromptHeader

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from torch import Tensor

    from hushprompt.methods.base import Method, Scorer
    from hushprompt.models.base import FeatureKind, Model
    from hushprompt.models.placing import Device
    from hushprompt.prompts.decoding import Answer
    from hushprompt.prompts.prompted_model import PromptedModel

BATCH_SIZE = 50
"""Images that are encoded at a time."""
MAX_TOKENS = 32
"""After which an answer in words is cut off."""
ZERO_SHOT = "zero_shot"
NOT_TRAINED = "Nothing was trained: no private data was used."


class Prediction(NamedTuple):
    """What a prompt takes an image for."""

    label: str
    """The most probable class."""
    probability: float
    """Its softmax probability, among the prompt's classes."""
    top: tuple[tuple[str, float], ...]
    """The most probable classes with their probabilities, best first."""


class LinearClassifier(NamedTuple):
    """softmax(logit_scale x features @ weight.T + bias): what is left of a prompt whose scores are linear."""

    weight: Float[np.ndarray, "c d"]
    bias: Float[np.ndarray, " c"]
    """In logits: of classes, and of a client's class prior."""
    logit_scale: float


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Prompt:
    """A prompt that a run has trained: its tensors, what it says of itself, and of images.

    `load_prompt` reads one. The backbone is loaded when it is first needed, and stays.
    """

    path: Path
    tensors: Mapping[str, Tensor] = field(repr=False)
    """By name; of most methods `context` [t, e], or [c, t, e] with one for each class, and `text_features` [c, d] with
    `logit_scale`, and where there are some `bias` [c] and `log_prior` [c], in logits."""
    header: PromptHeader = field(repr=False)
    """What the file says: method, class names, fingerprint of the backbone, how a prompt is put together, privacy."""
    backbone: Any = None
    """What it was loaded with: a backbone, or its section of a config; None: what the file says."""
    device: Device = "auto"
    """Where the backbone runs: "auto" takes a GPU if there is one."""

    @property
    def method(self) -> str:
        """Name of the method that trained it."""
        return self.header.method

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.header.class_names

    @property
    def is_generative(self) -> bool:
        """Whether it belongs to a generative model, which answers in words; nothing is loaded to tell."""
        from hushprompt.models.generative import GenerativeBackbone, GenerativeConfig
        from hushprompt.registry import BACKBONES

        if self.backbone is not None:
            return isinstance(self.backbone, (GenerativeBackbone, GenerativeConfig))
        name = (self.header.backbone or {}).get("name")
        return name in BACKBONES.names() and issubclass(BACKBONES.get(name), GenerativeConfig)

    @property
    def privacy(self) -> str:
        """What it guarantees, in a sentence: epsilon with all that gives it meaning."""
        said = self.header.privacy
        return said if self.header.noise_source or said == NOT_TRAINED else f"{said} {statements.SOURCE_UNKNOWN}"

    @overload
    def predict(self, images: Sequence[Any], *, top: int = ..., batch_size: int = ...) -> list[Prediction]: ...
    @overload
    def predict(self, images: Any, *, top: int = ..., batch_size: int = ...) -> Prediction | list[Prediction]: ...
    def predict(self, images: Any, *, top: int = 5, batch_size: int = BATCH_SIZE) -> Prediction | list[Prediction]:
        """Say what one image is, or each of several.

        Args:
            images: one, or a list or tuple of them: a path, the bytes of a file, a PIL image, or an array (uint8
                [h, w, 3]; for sounds float [samples], for features float [d]).
            top: classes that are named, best first; never more than there are.
            batch_size: images that are encoded at a time.

        Raises:
            DataError: an image cannot be read.
            ConfigError: the backbone is not known, or another one; or `top` is not positive.
        """
        import torch

        is_one = not isinstance(images, (list, tuple))
        with torch.no_grad():
            parts = [self.logits(part) for part in self._encoded([images] if is_one else images, batch_size)]
        found = [each for part in parts for each in predictions(part, self.classes, top)]
        return found[0] if is_one else found

    def probabilities(self, images: Iterable[Any], *, batch_size: int = BATCH_SIZE) -> Float[np.ndarray, "n c"]:
        """Return the probability of every class, float32 [n, c]; a list of images as for `predict`."""
        import torch

        with torch.no_grad():
            parts = [self.logits(part).float().softmax(dim=1).cpu() for part in self._encoded(images, batch_size)]
        rows: np.ndarray = torch.cat([torch.zeros(0, len(self.classes)), *parts]).numpy()
        return rows

    @overload
    def answer(
        self, images: Sequence[Any], question: str = ..., *, max_tokens: int = ..., batch_size: int = ...
    ) -> list[str]: ...
    @overload
    def answer(
        self, images: Any, question: str = ..., *, max_tokens: int = ..., batch_size: int = ...
    ) -> str | list[str]: ...
    def answer(
        self, images: Any, question: str = "", *, max_tokens: int = MAX_TOKENS, batch_size: int = BATCH_SIZE
    ) -> str | list[str]:
        """Answer a question about one image, or about each of several, in words: the most likely token each time.

        Args:
            images: as for `predict`.
            question: what is asked; empty: the question that the prompt was trained with.
            max_tokens: after which an answer is cut off.
            batch_size: images that are encoded at a time.

        Raises:
            DataError: an image cannot be read.
            ConfigError: the prompt belongs to no generative model, or question and answer do not fit its window.
        """
        self.check_question(question, max_tokens)
        is_one = not isinstance(images, (list, tuple))
        parts = self._encoded([images] if is_one else images, batch_size)
        found = [each.text for part in parts for each in self.answers(part, [question] * len(part), max_tokens)]
        return found[0] if is_one else found

    def answers(
        self,
        media: Float[Tensor, "n m e"],
        questions: Sequence[str],
        max_tokens: int = MAX_TOKENS,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> list[Answer]:
        """Answer one question about each encoded image or sound; those of `image_features`.

        Args:
            media: tokens of images or sounds.
            questions: one for each, of which `check_question` was asked.
            max_tokens: after which an answer is cut off.
            is_wanted: asked before each token; False ends all answers where they are.
        """
        model: Any = self.model
        context = self.tensors["context"].to(model.device)
        found: list[Answer] = model.answers_of_each([context], media, questions, max_tokens, is_wanted)[0]
        return found

    def check_question(self, question: str, max_tokens: int) -> None:
        """Raise ConfigError unless the model answers in words, and question and answer fit its window."""
        if not self.is_generative:
            raise ConfigError(
                "This prompt belongs to a model that compares an image with names of classes, and answers no question "
                "in words. Leave the question out, or use the prompt of a generative model."
            )
        checks.positive(max_tokens=max_tokens)
        model: Any = self.model
        model.check_question(len(self.tensors["context"]), question, max_tokens)

    def image_features(self, images: Iterable[Any], *, batch_size: int = BATCH_SIZE) -> Float[Tensor, "n *m d"]:
        """Encode images, given as for `predict`, to unit-norm features: what `logits` takes."""
        import torch

        with torch.no_grad():
            return torch.cat(list(self._encoded(images, batch_size)))

    def logits(self, image_features: Float[Tensor, "n *m d"]) -> Float[Tensor, "n c"]:
        """Score unit-norm image features against all classes; a softmax gives probabilities.

        The file alone is enough where scores are linear; else the backbone is loaded.

        Raises:
            DataError: nothing is known of how this file scores.
            ConfigError: the backbone is needed, and not known.
        """
        if not self.classes:
            raise DataError(
                f"{self.path} was learned from questions with answers, and has no classes. Ask it in words (answer, "
                "--question), or name classes (with_classes, --classes)."
            )
        return self._scorer(image_features)

    def classifier(self) -> LinearClassifier:
        """Return the linear classifier that the prompt amounts to: NumPy arrays, and the image tower is all it needs.

        Raises:
            DataError: its scores are not linear in the image's features.
        """
        from hushprompt.serving.scoring import linear_tensors

        tensors = linear_tensors(self.header, self.tensors, lambda: self.model)
        offsets = tensors.get("bias", 0) + tensors.get("log_prior", 0)
        weight = tensors["text_features"].float().cpu().numpy()
        bias = (offsets + tensors["text_features"].new_zeros(len(weight))).float().cpu().numpy()
        return LinearClassifier(weight, bias, float(tensors["logit_scale"]))

    def with_classes(self, names: Sequence[str]) -> Prompt:
        """Return the prompt for other classes: new names in the same context.

        Raises:
            DataError: it has no context, or one for each class, so it knows its own classes alone.
            ConfigError: a name repeats or is empty.
        """
        if isinstance(names, str) or not names:
            raise ConfigError("Give a list of class names, one at least.")
        if len(set(names)) < len(names) or not all(name.strip() for name in names):
            raise ConfigError("Class names must differ, and none may be empty.")
        if self.method == ZERO_SHOT:
            header = dataclasses.replace(self.header, class_names=tuple(names), task="classes")
            return dataclasses.replace(self, header=header).zero_shot()
        contexts = {name: tensor for name, tensor in self.tensors.items() if name.endswith("context")}
        tensors = contexts or ({} if "text_features" in self.tensors else self.tensors)
        if not tensors or any(context.ndim != 2 for context in contexts.values()):
            raise DataError(
                f"{self.path} has no context that is the same for all classes, so it takes no other names of classes."
            )
        header = dataclasses.replace(self.header, class_names=tuple(names), task="classes")
        changed = dataclasses.replace(self, tensors=tensors, header=header)
        for context in contexts.values():
            changed.model.check_context(context.shape[0], getattr(changed._method, "name_position", "end"))
        return changed

    def zero_shot(self) -> Prompt:
        """Return the backbone's hand template as a prompt for the same classes: what it knew before training.

        Raises:
            ConfigError: the backbone is not known, or has no text.
        """
        import torch

        model: Any = self.model
        if model.backbone.capabilities.num_tokens is None:
            with torch.no_grad():
                features = model.template_features.float()
            tensors = {"text_features": features, "logit_scale": torch.tensor(model.logit_scale)}
        else:  # the written question alone
            tensors = {"context": torch.zeros(0, model.token_width)}
        header = dataclasses.replace(
            self.header, method=ZERO_SHOT, arm=ZERO_SHOT, privacy=NOT_TRAINED, noise_source=None, client_id=None,
            client_name=None, epsilon=None, delta=None, privacy_unit=None, settings=None, rank=None,
            prompt=model.template_origin,
        )  # fmt: skip
        return dataclasses.replace(self, tensors=tensors, header=header, backbone=model.backbone)

    @functools.cached_property
    def model(self) -> PromptedModel:
        """The frozen model with the prompt's classes, on the device; loaded once, as by `load_backbone`."""
        from hushprompt.models.placing import place
        from hushprompt.prompts.prompted import prompted

        frozen = self.load_backbone()
        return prompted(frozen, self.classes, device=place(frozen, self.device))

    def load_backbone(self) -> Model:
        """Return the frozen model that the prompt was trained with, loaded where it is given by its section.

        Raises:
            ConfigError: neither you nor the file, which names no paths, says which one it is, or it is another one: a
                prompt fits no other.
        """
        chosen = self.backbone
        if chosen is None:
            if self.header.backbone is None:
                raise ConfigError("The prompt was loaded without a backbone: load_prompt(path, backbone=...).")
            chosen = choose("backbone", self.header.backbone)
            if left_out := _left_out(chosen, self.header.backbone):
                raise ConfigError(
                    f"The backbone of {self.path} was a file or folder of another machine, which the prompt does not "
                    f"name: give its section of a config, with {left_out}: load_prompt(path, backbone=...), --backbone."
                )
        loaded: Model = chosen.load() if hasattr(chosen, "load") else chosen
        if loaded.fingerprint != self.header.backbone_fingerprint:
            raise ConfigError(
                f"{self.path} was trained with another backbone: its fingerprint is "
                f"{self.header.backbone_fingerprint[:12]}, not {loaded.fingerprint[:12]}. A prompt fits no other."
            )
        return loaded

    @functools.cached_property
    def _scorer(self) -> Scorer:
        """What scores features, with the text tower's work done."""
        from hushprompt.serving.scoring import scorer

        return scorer(self.header, self.tensors, lambda: self.model)

    @property
    def _method(self) -> Method | None:
        """The method with its settings, where the file says them and the method is known."""
        from hushprompt.serving.scoring import method_of

        return method_of(self.header)

    @property
    def feature_kind(self) -> FeatureKind:
        """What it needs to know of an image: "pooled" or "patches"."""
        from hushprompt.serving.scoring import feature_kind

        return feature_kind(self.header, self.tensors)

    def _encoded(self, images: Iterable[Any], batch_size: int) -> Iterable[Float[Tensor, "b *m d"]]:
        from hushprompt.models.base import encoder
        from hushprompt.serving.inputs import as_array, media_for

        checks.positive(batch_size=batch_size)
        if isinstance(images, (str, bytes, Path)):
            raise ConfigError("Give a list of images; of one, [image].")
        backbone = self.model.backbone
        media, encode = media_for(backbone.capabilities), encoder(backbone, self.feature_kind)
        for part in batched(images, batch_size):
            yield encode([as_array(image, media, backbone.feature_dim) for image in part])

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in self.tensors.items())
        return f"Prompt({str(self.path)!r}): {self.method}, {len(self.classes)} classes, {shapes}\n{self.privacy}"


def _left_out(backbone: Any, said: Mapping[str, Any]) -> str:
    """Return the setting that a prompt file lacks because it was a path; "" where the others are enough."""
    paths = ("model", "architecture", "text_features", *(() if said.get("pretrained") else ("checkpoint",)))
    return next((name for name in paths if hasattr(backbone, name) and name not in said), "")


def predictions(logits: Float[Tensor, "n c"], classes: Sequence[str], top: int) -> list[Prediction]:
    """Return the best classes of each row, by logit: two probabilities may round to the same number.

    Of equal ones the first in label order comes first. Raises ConfigError if `top` is not positive.
    """
    checks.positive(top=top)
    rows, shares = logits.float().cpu(), logits.float().softmax(dim=1).cpu()
    best = rows.sort(dim=1, descending=True, stable=True).indices[:, :top]
    tops = [tuple((classes[label], float(share[label])) for label in order.tolist())
            for share, order in zip(shares, best, strict=True)]  # fmt: skip
    return [Prediction(*each[0], each) for each in tops]


def batched(items: Iterable[Any], size: int) -> Iterable[list[Any]]:
    """Return items in lists of `size`, the last one shorter."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
