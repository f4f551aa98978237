"""A tiny random dual encoder, causal or not: the one that tests use. It knows nothing about images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hushprompt import checks, seeding
from hushprompt.data.base import Modality
from hushprompt.errors import ConfigError
from hushprompt.models.base import Backbone
from hushprompt.registry import BACKBONES


@BACKBONES.register("toy")
@dataclass(frozen=True, kw_only=True)
class Toy:
    """The `backbone` section of the toy model."""

    token_width: int = 8
    """Width e of a token embedding."""
    feature_dim: int = 6
    """Width d of image and text features."""
    is_causal: bool = True
    """Whether text attention is causal; False exercises the general path."""
    sees_padding: bool = False
    """Whether a tower that is not causal also attends to padding, and reads its feature at the window's end."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.positive(token_width=self.token_width, feature_dim=self.feature_dim)
        if self.is_causal and self.sees_padding:
            raise ConfigError("backbone.sees_padding needs backbone.is_causal = false: a causal tower sees no padding.")

    def load(self) -> Backbone:
        """Make the model; its weights depend on the fields alone."""
        return CausalToyBackbone(self) if self.is_causal else ToyBackbone(self)


class ToyBackbone:
    """One attention layer over letters of the class name, and a linear map of the pixels."""

    modality: Modality = "image"
    sampling_rate: int | None = None
    num_patches = 4
    context_window = 40
    logit_scale = 10.0
    start_ids: tuple[int, ...] = (0,)
    end_ids: tuple[int, ...] = (1,)
    pad_id = 1
    template = "a {}"

    def __init__(self, config: Toy) -> None:
        """Draw fixed weights from the fields of `config`."""
        rng = seeding.stream(0, "toy backbone", config.token_width, config.feature_dim)

        def draw(*shape: int) -> Tensor:
            return torch.from_numpy(rng.normal(size=shape)).float()

        e, d = config.token_width, config.feature_dim
        self.sees_padding = config.sees_padding
        self._is_causal = config.is_causal
        self.token_width, self.feature_dim = e, d
        self._embedding = draw(32, e)
        self._position = 0.1 * draw(self.context_window, e)
        self._query, self._key, self._value = (draw(e, e) / e**0.5 for _ in range(3))
        self._text_projection = draw(e, d)
        self._image_projection = draw(3 * 8 * 8, d)
        self.fingerprint = hashlib.sha256(f"toy {config!r}".encode()).hexdigest()

    def encode_images(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Project images, cut or repeated to 8 x 8 pixels, and normalize."""
        small = torch.from_numpy(np.resize(np.stack(images), (len(images), 8, 8, 3))).float() / 255 - 0.5
        return F.normalize(small.reshape(len(images), -1) @ self._image_projection, dim=-1)

    def encode_patches(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n m d"]:
        """Project each quarter of an image by its part of the projection: unnormalized, they sum up to the image's."""
        small = torch.from_numpy(np.resize(np.stack(images), (len(images), 8, 8, 3))).float() / 255 - 0.5
        quarters = small.unflatten(1, (2, 4)).unflatten(3, (2, 4))  # [n, 2, 4, 2, 4, 3]
        weights = self._image_projection.view(2, 4, 2, 4, 3, -1)
        return F.normalize(torch.einsum("nyhxwc,yhxwcd->nyxd", quarters, weights).flatten(1, 2), dim=-1)

    def tokenize(self, text: str) -> list[int]:
        """One token a letter; anything else but a leading space is token 31."""
        letters = text.lower().removeprefix(" ")
        return [2 + ord(letter) - ord("a") if "a" <= letter <= "z" else 31 for letter in letters]

    def embed(self, token_ids: Int[Tensor, "*l"]) -> Float[Tensor, "*l e"]:
        """Look up token embeddings."""
        return self._embedding[token_ids]

    def encode_prompts(self, prompts: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """Encode one sequence a class."""
        length = prompts.shape[1]
        index = torch.arange(length)
        mask = (index[:, None] >= index) if self._is_causal else torch.ones(length, length, dtype=torch.bool)
        last = torch.full_like(end_index, length - 1) if self.sees_padding else end_index
        visible = mask[None] & (index[None, None, :] <= last[:, None, None])
        hidden = self._hidden(prompts, index, visible)
        return F.normalize(hidden[torch.arange(len(prompts)), last] @ self._text_projection, dim=-1)

    def _hidden(
        self, tokens: Float[Tensor, "c l e"], positions: Int[Tensor, " l"], mask: Bool[Tensor, "c l l"]
    ) -> Float[Tensor, "c l e"]:
        """One residual attention layer and a tanh."""
        x = tokens + self._position[positions]
        scores = (x @ self._query) @ (x @ self._key).transpose(-1, -2) / self.token_width**0.5
        attention = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
        return torch.tanh(x + attention @ (x @ self._value))


class CausalToyBackbone(ToyBackbone):
    """The toy tower that reads from left to right, and so can share a prefix."""

    def encode_shared_prefix(
        self, prefix: Float[Tensor, "p e"], suffixes: Sequence[Float[Tensor, "_ _ e"]]
    ) -> Float[Tensor, "c d"]:
        """Encode prompts that begin alike: here simply one by one."""
        return torch.cat([self._encode_group(prefix, group) for group in suffixes])

    def _encode_group(self, prefix: Float[Tensor, "p e"], group: Float[Tensor, "m s e"]) -> Float[Tensor, "m d"]:
        """Encode suffixes of one length."""
        prompts = torch.cat([prefix.expand(len(group), -1, -1), group], dim=1)
        return self.encode_prompts(prompts, torch.full((len(group),), prompts.shape[1] - 1))
