"""What every frozen image-text model offers: two towers, a tokenizer, and a word about its own structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.data.base import Modality


@runtime_checkable
class Backbone(Protocol):
    """A frozen dual encoder. Its weights never receive gradients.

    A registered config dataclass in this folder has `load() -> Backbone`. Axis letters: n images, c classes, l text
    tokens, e token width, d feature width.
    """

    modality: Modality
    """What `encode_images` takes."""
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
    is_causal: bool
    """True if a text token never looks at later ones; then `encode_shared_prefix` exists and is exact."""
    start_id: int
    """Token that starts a text."""
    end_id: int
    """Token that ends a text and carries its feature."""
    template: str
    """The hand template of the zero-shot row, with {} for the class name."""

    def encode_images(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Preprocess and give unit-norm features.

        Args:
            images: n uint8 arrays [h, w, 3], each of its own size; for an audio backbone float32 waveforms [samples].
        """

    def tokenize(self, text: str) -> list[int]:
        """Give token ids without start and end."""

    def embed(self, token_ids: Int[Tensor, "*l"]) -> Float[Tensor, "*l e"]:
        """Look up token embeddings, without positions."""

    def encode_prompts(self, prompts: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """Encode one embedded sequence a class; give the unit-norm feature at each `end_index`."""

    def encode_shared_prefix(
        self, prefix: Float[Tensor, "p e"], suffixes: Sequence[Float[Tensor, "_ _ e"]]
    ) -> Float[Tensor, "c d"]:
        """Encode prompts that begin alike, reading the beginning once. Causal towers only; same result, less work.

        Args:
            prefix: [p, e] embedded tokens that all prompts begin with.
            suffixes: one [count, length, e] for each length: what follows the prefix, up to the end token.

        Returns:
            [c, d] unit-norm features in the order of `suffixes`.
        """
