"""From images or sounds to the tokens that a language model reads, all of one number, and where they stand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from hushprompt.errors import ConfigError
from hushprompt.models.generative_families import QWEN_SIDE, Family


class ImageTokens:
    """Stretches images to a square and encodes them; on request, joins tokens side by side to fewer."""

    def __init__(self, family: Family, network: Any, processor: Any, side: int | None, num_tokens: int | None) -> None:
        """Find out how many tokens an image has.

        Args:
            family: of the network.
            network: the whole model.
            processor: of images, which knows mean and standard deviation of the pixels.
            side: of the square in pixels; None: the model's own.
            num_tokens: that an image is to have; None: all.

        Raises:
            ConfigError: the model does not take such a size, or has no such number of tokens.
        """
        self._family, self._network = family, network
        unit, own = family.token_side(network.config), getattr(network.config.vision_config, "image_size", QWEN_SIDE)
        own = own[0] if isinstance(own, Sequence) else own
        self._side = side or own
        if self._side % unit or (self._side != own and not family.is_resizable):
            sizes = f"multiples of {unit}" if family.is_resizable else f"images of {own} pixels alone"
            raise ConfigError(f"backbone.image_size = {self._side} does not fit this model, which takes {sizes}.")
        self._full = self._side // unit
        self.grid = self._full if num_tokens is None else math.isqrt(max(num_tokens - family.num_extra, 0))
        self.num_tokens = self.grid**2 + family.num_extra
        if not 0 < self.grid <= self._full or num_tokens not in (None, self.num_tokens):
            extra = f" + {family.num_extra}" if family.num_extra else ""
            raise ConfigError(
                f"backbone.media_tokens = {num_tokens} does not fit: tokens are joined on a grid of {self._full} x "
                f"{self._full}, so take k x k{extra} with k from 1 to {self._full}."
            )
        self._resample = Image.Resampling(getattr(processor, "resample", None) or Image.Resampling.BICUBIC)
        is_normalized = getattr(processor, "do_normalize", True)
        self._mean = torch.tensor(processor.image_mean if is_normalized else [0.0] * 3)[:, None, None]
        self._std = torch.tensor(processor.image_std if is_normalized else [1.0] * 3)[:, None, None]

    def __call__(
        self, images: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype
    ) -> Float[Tensor, "n m e"]:
        """Encode uint8 images [h, w, 3]."""
        pixels = torch.stack([self._pixels(image) for image in images]).to(device, dtype)
        tokens = self._family.encode(self._network, pixels)
        if self.grid == self._full:
            return tokens
        size = self._full**2
        square = tokens[:, :size].transpose(1, 2).unflatten(2, (self._full, self._full))
        joined = F.adaptive_avg_pool2d(square.float(), self.grid).to(tokens.dtype).flatten(2).transpose(1, 2)
        return torch.cat([joined, tokens[:, size:]], dim=1)

    def _pixels(self, image: np.ndarray) -> Float[Tensor, "3 s s"]:
        """Stretch an image to the square, and standardize it."""
        size = (self._side, self._side)
        fitted = Image.fromarray(image).resize(size, self._resample) if image.shape[:2] != size else image
        return (torch.from_numpy(np.array(fitted)).permute(2, 0, 1) / 255 - self._mean) / self._std

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the tokens, beside the weights."""
        numbers = {"mean": self._mean.flatten().tolist(), "std": self._std.flatten().tolist()}
        return {"side": self._side, "tokens": self.num_tokens, "resample": self._resample.name, **numbers}

    def positions(self) -> Int[Tensor, "d m"]:
        """Return the positions of the tokens, from 0: [1, m], or [3, m] in time, height and width."""
        if self._family.positions == "1d":
            return torch.arange(self.num_tokens)[None]
        row, column = torch.meshgrid(torch.arange(self.grid), torch.arange(self.grid), indexing="ij")
        return torch.stack([torch.zeros_like(row), row, column]).flatten(1)

    def span(self, is_token: Bool[Tensor, "b m"]) -> Int[Tensor, " b"]:
        """Return how many positions the tokens of each example take."""
        span = self.num_tokens if self._family.positions == "1d" else self.grid
        return torch.full((len(is_token),), span, device=is_token.device)


class SoundTokens:
    """Encodes sounds, cut at some length; shorter ones have fewer tokens, and zeros behind them."""

    def __init__(self, family: Family, network: Any, extractor: Any, seconds: float | None) -> None:
        """Find out how many tokens the longest sound has.

        Args:
            family: of the network.
            network: the whole model.
            extractor: of spectrograms, which knows the longest sound.
            seconds: at which sounds are cut; None: the longest that the model takes.

        Raises:
            ConfigError: the model takes no sound of that length.
        """
        self._family, self._network, self._extractor = family, network, extractor
        self.sampling_rate: int = extractor.sampling_rate
        longest = extractor.n_samples / self.sampling_rate
        self._seconds = longest if seconds is None else seconds
        if not 0 < self._seconds <= longest:
            raise ConfigError(f"backbone.seconds must be greater than 0 and at most {longest:g}, got {seconds}.")
        self._num_samples = round(self._seconds * self.sampling_rate)
        whole = self._encoded([np.zeros(self._num_samples, np.float32)], next(network.parameters()))
        self.num_tokens = int(whole.ne(0).any(-1).sum())

    def __call__(
        self, sounds: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype
    ) -> Float[Tensor, "n m e"]:
        """Encode float32 waveforms [samples]."""
        return self._encoded(sounds, torch.empty(0, device=device, dtype=dtype))[:, : self.num_tokens]

    @torch.no_grad()
    def _encoded(self, sounds: Sequence[np.ndarray], like: Tensor) -> Float[Tensor, "n m e"]:
        """Make spectrograms, filled up to the longest sound, and encode them."""
        cut = [np.asarray(sound[: self._num_samples]) for sound in sounds]
        options = {"sampling_rate": self.sampling_rate, "padding": "max_length", "return_attention_mask": True}
        inputs = self._extractor(cut, return_tensors="pt", **options)
        features = inputs["input_features"].to(like.device, like.dtype)
        mask = inputs["attention_mask"].to(like.device)
        return self._family.encode(self._network, {"input_features": features, "attention_mask": mask})

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the tokens, beside the weights."""
        known = self._extractor.to_dict()
        named = ("feature_size", "hop_length", "n_fft", "chunk_length", "sampling_rate", "dither", "padding_value")
        return {"seconds": self._seconds, **{name: known.get(name) for name in named}}

    def positions(self) -> Int[Tensor, "1 m"]:
        """Return the positions of the tokens, from 0."""
        return torch.arange(self.num_tokens)[None]

    def span(self, is_token: Bool[Tensor, "b m"]) -> Int[Tensor, " b"]:
        """Return how many positions the tokens of each example take."""
        return is_token.sum(dim=1)
