"""What every frozen model offers: two towers, a tokenizer, and its capabilities."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt import extras
from hushprompt.data.base import Modality
from hushprompt.errors import ConfigError, UnfitError
from hushprompt.models.causal_tower import CausalTower
from hushprompt.models.image_graph import ImageGraph, no_graph

FeatureKind = Literal["pooled", "patches"]
"""What is kept of an image: one feature [d] for all of it, or one for each patch [m, d]."""
TextKind = Literal["none", "features", "tower"]
"""What a model has of text, or a method needs: nothing, one given feature a class, or a tower that encodes prompts.
Each one includes what stands before it."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a model takes, and what it can do."""

    context_window: int
    """Longest text in tokens, start and end included."""
    modality: Modality = "image"
    """What `encode_images` takes."""
    text: TextKind = "tower"
    """What there is of text; without a tower `context_window` is 0, and nothing is tokenized or encoded."""
    sampling_rate: int | None = None
    """Samples per second that an audio tower expects; None for images."""
    view_size: int | None = None
    """Side in pixels of a random crop for this model; None: the image's own short side."""
    num_patches: int | None = None
    """m, patches of an image; None: the model has no `encode_patches`."""
    num_tokens: int | None = None
    """m, tokens that a generative model reads of an image or sound, by `encode_tokens`. It is one language model, not
    two towers: it has neither features nor text features, and `text` is "none". None: a dual encoder."""
    shares_prefix: bool = False
    """True if the text tower is causal, and the model has a `causal_tower`."""
    sees_padding: bool = False
    """True if tokens behind the end change the feature of `encode_prompts`: every text is then filled up to
    `context_window`, as in training. False if they cannot: texts are then cut at the longest one."""
    runs_on_gpu: bool = False
    """True if the model has `to`."""

    @property
    def scores_untrained(self) -> bool:
        """Whether the model scores classes before anything is learned: by text features, or by an answer."""
        return self.text != "none" or self.num_tokens is not None


class Model(ABC):
    """A frozen model: a dual encoder, or a generative one. Its weights never receive gradients.

    A registered config dataclass has `load() -> Model`. Axis letters: n images, c classes, l text tokens, e token
    width, d feature width.
    """

    capabilities: Capabilities
    fingerprint: str
    """SHA-256 over weights, tokenizer and preprocessing; the key of cached features and of prompt files."""
    encoder: str = ""
    """Of a model that takes features: the fingerprint of the one that its text features come from, where known."""
    feature_dim: int
    """d, width of image and text features."""
    token_width: int
    """e, width of a token embedding and so of a context vector."""
    logit_scale: float
    """Factor on the cosine, after exp."""
    start_ids: tuple[int, ...]
    """Tokens that start every text; empty where there are none (SigLIP)."""
    end_ids: tuple[int, ...]
    """Tokens that end every text."""
    pad_id: int
    """Token that fills a text up behind its end."""
    template: str
    """Hand template of the zero-shot arm, with {} for the class name."""
    preprocessing: Mapping[str, Any] = MappingProxyType({})
    """What is known of how an example is made ready for `encode_images`, as JSON can say it; part of prompt files."""
    causal_tower: CausalTower | None = None
    """The text tower as one that computes a shared prefix once; where `capabilities.shares_prefix`."""

    @abstractmethod
    def encode_images(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Preprocess images and return unit-norm features in float32.

        Args:
            images: n uint8 arrays [h, w, 3], each of its own size; for an audio model float32 waveforms [samples]
                at `sampling_rate`; for one of features float32 vectors [d].
        """

    def encode_patches(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n m d"]:
        """Preprocess as `encode_images` does, and return unit-norm features of all patches, row by row of the image."""
        raise NotImplementedError

    def image_graph(self) -> ImageGraph:
        """Return the image tower of `encode_images` as a module, and how an image is made ready for it.

        Raises:
            ConfigError: there is none, or its preprocessing is no matter of resizing, cutting and standardizing.
        """
        raise no_graph("it has none that works without this package")

    def encode_tokens(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n m e"]:
        """Preprocess as `encode_images` does, and return what a language model reads, where it is one.

        The m tokens of each image lie in the space of token embeddings; those of a shorter sound are filled up with
        zeros.
        """
        raise NotImplementedError

    def tokenize(self, text: str) -> list[int]:
        """Return token ids without start and end. A text that begins with a space follows another word."""
        raise no_tower()

    def embed(self, token_ids: Int[Tensor, "*l"]) -> Float[Tensor, "*l e"]:
        """Look up token embeddings in float32, without positions."""
        raise no_tower()

    def encode_prompts(self, prompts: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """Encode one embedded sequence a class, differentiable in `prompts`, also for batched gradients.

        Args:
            prompts: [c, l, e] start, text and end of every class, filled up with padding.
            end_index: [c] index of each sequence's last token before the padding.

        Returns:
            [c, d] unit-norm features in float32.
        """
        raise no_tower()

    def class_features(self, class_names: Sequence[str]) -> Float[Tensor, "c d"]:
        """Return the given unit-norm text features of classes, where `capabilities.text` is "features"."""
        raise NotImplementedError

    def encode_shared_prefix(
        self, prefix: Float[Tensor, "p e"], suffixes: Sequence[Float[Tensor, "_ _ e"]]
    ) -> Float[Tensor, "c d"]:
        """Encode prompts that begin alike: the result of `encode_prompts`, with less work.

        Args:
            prefix: [p, e] embedded tokens that all prompts begin with.
            suffixes: one [count, length, e] for each length: what follows the prefix, up to the end token.

        Returns:
            [c, d] unit-norm features in the order of `suffixes`.
        """
        assert self.causal_tower is not None
        return F.normalize(self.causal_tower.encode(prefix, suffixes).float(), dim=-1)

    def to(self, device: str) -> None:
        """Move both towers; what the model returns from then on lies there."""
        raise NotImplementedError

    def prepare_for_threads(self) -> None:  # noqa: B027  # a model need not do anything
        """Have `encode_images` on the CPU hold Python's global lock (GIL) little; features stay the same."""


def encoder(model: Model, kind: FeatureKind) -> Callable[[Sequence[np.ndarray]], Float[Tensor, "n *m d"]]:
    """Return what encodes images as a kind of features; a generative model's tokens stand for "pooled"."""
    if kind == "patches":
        return model.encode_patches
    return model.encode_images if model.capabilities.num_tokens is None else model.encode_tokens


def no_tower(what: str = "A prompt is to be encoded, and this") -> UnfitError:
    """Return the error for what needs a text tower where there is none."""
    return UnfitError(
        f"{what} backbone has no text tower. Set backbone.text_tower to the backbone that made the features, or choose "
        "a method that trains no prompt."
    )


def no_towers(what: str) -> UnfitError:
    """Return the error for what needs two towers where there is one generative model."""
    return UnfitError(
        f"{what} needs two towers whose features are compared, and this backbone is one generative model. Use a "
        "method that trains a context alone, such as dp_fpl, promptfl or local_only, or a dual encoder."
    )


def fingerprint(module: torch.nn.Module, *settings: Mapping[str, Any] | str) -> str:
    """Return the SHA-256 of a module's weights and buffers and of settings that JSON can say.

    Equal in every process; changes with a weight's name, shape, type or value, and with any setting.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for setting in settings:
        digest.update(json.dumps(setting, sort_keys=True).encode())
    return digest.hexdigest()


def optional(module: str, extra: str) -> Any:
    """Import a package that only some models need.

    Raises:
        ConfigError: it is missing, or does not import beside the installed torch.
    """
    return extras.load(module, extra, "This backbone")


def check_template(template: str) -> None:
    """Raise ConfigError unless a hand template has one place for the class name."""
    if template.count("{}") != 1:
        raise ConfigError(f'backbone.template must contain {{}} once, got {template!r}. Example: "a photo of a {{}}."')
