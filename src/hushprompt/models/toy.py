"""A tiny random dual encoder, causal or not: the one that tests use. It knows nothing about images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hushprompt import checks, seeding
from hushprompt.errors import ConfigError
from hushprompt.models.base import Capabilities, Model
from hushprompt.models.causal_tower import CausalBlock, CausalTower
from hushprompt.registry import BACKBONES

CONTEXT_WINDOW = 40


@BACKBONES.register("toy")
@dataclass(frozen=True, kw_only=True)
class Toy:
    """The `backbone` section of the toy model."""

    is_embedded: ClassVar[bool] = True
    """The package has it in itself: no file that a config names is read, and nothing is fetched."""
    token_width: int = 8
    """Width e of a token embedding."""
    feature_dim: int = 6
    """Width d of image and text features."""
    is_causal: bool = True
    """Whether text attention is causal; False exercises the general path."""
    sees_padding: bool = False
    """Whether a tower that is not causal also attends to padding, and reads its feature at the window's end."""

    def __post_init__(self) -> None:
        checks.positive(token_width=self.token_width, feature_dim=self.feature_dim)
        if self.is_causal and self.sees_padding:
            raise ConfigError("backbone.sees_padding needs backbone.is_causal = false: a causal tower sees no padding.")

    def load(self) -> Model:
        """Make the model; its weights depend on the fields alone."""
        return ToyModel(self)


class ToyModel(Model):
    """One attention layer over letters of the class name, and a linear map of the pixels."""

    logit_scale = 10.0
    start_ids = (0,)
    end_ids = (1,)
    pad_id = 1
    template = "a {}"

    def __init__(self, config: Toy) -> None:
        """Draw fixed weights from the fields of `config`."""
        rng = seeding.stream(0, "toy backbone", config.token_width, config.feature_dim)

        def draw(*shape: int) -> Tensor:
            return torch.from_numpy(rng.normal(size=shape)).float()

        e, d = config.token_width, config.feature_dim
        self.capabilities = Capabilities(
            context_window=CONTEXT_WINDOW, num_patches=4, shares_prefix=config.is_causal,
            sees_padding=config.sees_padding,
        )  # fmt: skip
        self._is_causal = config.is_causal
        self.token_width, self.feature_dim = e, d
        self._embedding = draw(32, e)
        self._position = 0.1 * draw(CONTEXT_WINDOW, e)
        self._query, self._key, self._value = (draw(e, e) / e**0.5 for _ in range(3))
        self._text_projection = draw(e, d)
        self._image_projection = draw(3 * 8 * 8, d)
        self.causal_tower = self._causal_tower() if config.is_causal else None
        self.fingerprint = hashlib.sha256(f"toy {config!r}".encode()).hexdigest()

    def encode_images(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Project images, cut or repeated to 8 x 8 pixels, and normalize."""
        small = _small(images)
        return F.normalize(small.reshape(len(images), -1) @ self._image_projection, dim=-1)

    def encode_patches(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n m d"]:
        """Project each quarter of an image by its part of the projection: unnormalized, they sum up to the image's."""
        quarters = _small(images).unflatten(1, (2, 4)).unflatten(3, (2, 4))  # [n, 2, 4, 2, 4, 3]
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
        last = torch.full_like(end_index, length - 1) if self.capabilities.sees_padding else end_index
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

    def _causal_tower(self) -> CausalTower:
        """Return the same layer as one that computes a shared prefix once."""
        block = CausalBlock(
            num_heads=1,
            norm=lambda x: x,
            query=lambda x: x @ self._query / self.token_width**0.5,
            key=lambda x: x @ self._key,
            value=lambda x: x @ self._value,
            rest=lambda x, mixed: torch.tanh(x + mixed),
        )
        return CausalTower(
            lambda tokens, positions: tokens + self._position[positions], (block,), lambda x: x @ self._text_projection
        )


def _small(images: Sequence[np.ndarray]) -> Float[Tensor, "n 8 8 3"]:
    """Cut or repeat each image, of any size, to 8 x 8 pixels, from -0.5 to 0.5."""
    return torch.from_numpy(np.stack([np.resize(image, (8, 8, 3)) for image in images])).float() / 255 - 0.5
