"""What every frozen model offers: two towers, a tokenizer, and a word about its own structure."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.data.base import Modality
from hushprompt.errors import ConfigError
from hushprompt.extras import install_hint

FeatureKind = Literal["pooled", "patches"]
"""What is kept of an image: one feature [d] for all of it, or one for each patch [m, d]."""


@runtime_checkable
class Backbone(Protocol):
    """A frozen dual encoder, in float32. Its weights never receive gradients.

    A registered config dataclass in this folder has `load() -> Backbone`. Axis letters: n images, c classes, l text
    tokens, e token width, d feature width.
    """

    modality: Modality
    """What `encode_images` takes."""
    sampling_rate: int | None
    """Samples per second that an audio tower expects; None for images."""
    fingerprint: str
    """SHA-256 over weights, tokenizer and preprocessing; the key of cached features and of prompt files."""
    feature_dim: int
    """d, width of image and text features."""
    token_width: int
    """e, width of a token embedding and so of a context vector."""
    context_window: int
    """Longest text in tokens, start and end included."""
    logit_scale: float
    """Factor on the cosine, after exp."""
    start_ids: tuple[int, ...]
    """Tokens that start every text; empty where there are none (SigLIP)."""
    end_ids: tuple[int, ...]
    """Tokens that end every text."""
    pad_id: int
    """Token that fills a text up behind its end."""
    sees_padding: bool
    """True if tokens behind the end change the feature: every text is then filled up to `context_window`, as in
    training. False if they cannot, because attention is causal or masked: texts are then cut at the longest one."""
    template: str
    """The hand template of the zero-shot row, with {} for the class name."""

    def encode_images(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Preprocess and give unit-norm features.

        Args:
            images: n uint8 arrays [h, w, 3], each of its own size; for an audio backbone float32 waveforms [samples]
                at `sampling_rate`.
        """

    def tokenize(self, text: str) -> list[int]:
        """Return token ids without start and end. A text that begins with a space follows another word."""

    def embed(self, token_ids: Int[Tensor, "*l"]) -> Float[Tensor, "*l e"]:
        """Look up token embeddings, without positions."""

    def encode_prompts(self, prompts: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """Encode one embedded sequence a class, differentiable in `prompts`, also for batched gradients.

        Args:
            prompts: [c, l, e] start, text and end of every class, filled up with padding.
            end_index: [c] where each one's last token before the padding stands.

        Returns:
            [c, d] unit-norm features.
        """


@runtime_checkable
class SharedPrefixBackbone(Backbone, Protocol):
    """A causal backbone that can read the common beginning of all prompts once. Having the method declares it."""

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


@runtime_checkable
class TextPass(Protocol):
    """A forward pass of the text tower that stands ready to go backward for many examples."""

    features: Float[Tensor, "c d"]
    """Unit-norm text features."""

    def pull_back(self, weights: Float[Tensor, "b c"], directions: Float[Tensor, "b d"]) -> Float[Tensor, "b *p e"]:
        """Return b gradients in what the pass was made from.

        Args:
            weights: [b, c] one for each example and class; where most are 0 a tower may have less work.
            directions: [b, d] one for each example; its cotangent of class c's feature is `weights[c] * direction`.
        """

    def pull_back_matrices(self, cotangents: Float[Tensor, "b c d"]) -> Float[Tensor, "b *p e"]:
        """Return b gradients for cotangents of the features that are not of that form."""


@runtime_checkable
class PatchBackbone(Backbone, Protocol):
    """A backbone that also places the parts of an image in the space of the texts. Having the method declares it."""

    num_patches: int
    """m, patches of an image."""

    def encode_patches(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n m d"]:
        """Preprocess as `encode_images` does, and give unit-norm features of all patches, row by row of the image.

        Args:
            images: as for `encode_images`.
        """


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
    """Import a package that only some backbones need.

    Raises:
        ConfigError: it is missing, or does not import beside the installed torch.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        package = module.partition(".")[0]
        raise ConfigError(
            f"This backbone needs the package {package}, which cannot be imported ({error}). "
            f"Install it: {install_hint(extra)}."
        ) from error


def check_template(template: str) -> None:
    """Raise ConfigError unless a hand template has one place for the class name."""
    if template.count("{}") != 1:
        raise ConfigError(f'backbone.template must contain {{}} once, got {template!r}. Example: "a photo of a {{}}."')
