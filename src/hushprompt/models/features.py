"""A backbone without an image tower, for data that are features already (`data.name = "features"`).

Text features of the classes come from a file, from the text tower of another backbone, or there are none. With a tower
every method runs; with given text features those that train no prompt; without any, those that need no text at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt import checks
from hushprompt.config.values import choose
from hushprompt.data.arrays import matrix, read_arrays, usable
from hushprompt.errors import ConfigError, DataError
from hushprompt.models.base import Capabilities, Model, no_tower
from hushprompt.registry import BACKBONES
from hushprompt.user_text import nfc

LOGIT_SCALE = 100.0
"""CLIP's, where nothing says another one."""
UNIT = 1e-3
"""A norm that is nearer to 1 is left as it is: rounding to float16 moves norms by less."""


@BACKBONES.register("features")
@dataclass(frozen=True, kw_only=True)
class FeaturesBackbone:
    """The `backbone` section for data that are features: no image tower, and no text tower unless one is named."""

    text_features: str = ""
    """File of the classes' text features: an array `text_features` [c, d] with `class_names` [c], as npz, safetensors
    or parquet, or an .npy file in label order. It may be the file of the data. Empty: none."""
    text_tower: Any = None
    """Backbone whose text tower is used instead, as a table such as { name = "open_clip" }: the one that made the
    features. "none": none."""
    feature_dim: int | None = None
    """Width d of the features, where neither text features nor a tower say it; "none": they do."""
    logit_scale: float | None = None
    """Factor on the cosine; "none": what the file of text features or the tower says, else 100."""

    def __post_init__(self) -> None:
        """Check the fields, and build the section of the tower."""
        tower = None if self.text_tower in (None, "none") else self.text_tower
        if isinstance(tower, (str, Mapping)):
            tower = choose("backbone.text_tower", {"name": tower} if isinstance(tower, str) else tower, BACKBONES)
        object.__setattr__(self, "text_tower", tower)  # still being made
        given = {"text_features": self.text_features, "text_tower": tower, "feature_dim": self.feature_dim}
        if sum(bool(value) for value in given.values()) != 1:
            raise ConfigError(
                'backbone.name = "features" takes one of text_features (a file of the classes\' text features), '
                "text_tower (the backbone that made the features), or, where there is no text, feature_dim (their "
                f"width, such as 512); got {', '.join(name for name, value in given.items() if value) or 'none'}."
            )
        if self.feature_dim is not None:
            checks.positive(feature_dim=self.feature_dim)
        if self.logit_scale is not None:
            checks.positive(logit_scale=self.logit_scale)

    @property
    def is_embedded(self) -> bool:
        """Whether no file that a config names is read, and nothing is fetched."""
        return not self.text_features and (self.text_tower is None or getattr(self.text_tower, "is_embedded", False))

    def load(self) -> Model:
        """Read the text features, or load the tower.

        Raises:
            DataError: a file is missing or damaged, or has text features that are NaN or zero.
        """
        if self.text_tower is not None:
            return TowerOfText(self.text_tower.load(), self.logit_scale)
        texts = read_texts(Path(self.text_features).expanduser()) if self.text_features else None
        return GivenFeatures(texts, self.feature_dim or 0, self.logit_scale)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Text features of classes, from a file."""

    path: Path
    features: Float[Tensor, "c d"]
    """Unit-norm."""
    class_names: tuple[str, ...]
    """In NFC, with spaces for underscores; none: they are in label order."""
    logit_scale: float
    encoder: str
    """Fingerprint of the backbone that made them, where the file says so."""

    def of(self, class_names: Sequence[str]) -> Float[Tensor, "c d"]:
        """Return the text features of classes; ConfigError if the file has none for one of them."""
        if not self.class_names and len(class_names) != len(self.features):
            raise ConfigError(
                f"{self.path} has {len(self.features)} text features without names, but there are {len(class_names)} "
                "classes. Add an array class_names to it, or give one row for each class, in label order."
            )
        places = {name: place for place, name in enumerate(self.class_names or map(plain, class_names))}
        missing = [name for name in class_names if plain(name) not in places]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ConfigError(
                f"{self.path} has no text feature of the class {missing[0]!r}{more}. Add it, or name the classes alike "
                "with data.classes."
            )
        return self.features[[places[plain(name)] for name in class_names]]


def plain(name: str) -> str:
    """Return a class name as names are compared: in NFC, with spaces for underscores."""
    return nfc(name.strip()).replace("_", " ")


def read_texts(path: Path) -> Texts:
    """Read a file of text features.

    Raises:
        DataError: it is missing or damaged, names a class twice, or has a text feature that is NaN or zero.
    """
    arrays = read_arrays(path)
    features = matrix(arrays, arrays.own or "text_features")
    names = tuple(map(plain, arrays.words("class_names")))
    if names and (len(names) != len(features) or len(set(names)) < len(names)):
        raise DataError(
            f"{path}: class_names must name each of the {len(features)} text features once, got {len(names)} names, "
            f"{len(set(names))} of them different."
        )
    if not (good := usable(features)).all():
        raise DataError(f"{path}: row {np.flatnonzero(~good)[0]} of the text features is NaN, infinite or all zero.")
    said = arrays.text("logit_scale")
    scale = float(said) if said else LOGIT_SCALE
    return Texts(
        path=path, features=unit(features), class_names=names, logit_scale=scale, encoder=arrays.text("fingerprint")
    )


def unit(rows: Sequence[np.ndarray] | np.ndarray) -> Float[Tensor, "n d"]:
    """Return vectors in float32 with unit norm; those that have it up to rounding stay as they are."""
    values = torch.from_numpy(np.stack(list(rows)).astype(np.float64))
    norms = values.norm(dim=1, keepdim=True)
    return torch.where((norms - 1).abs() < UNIT, values, values / norms).float()


class GivenFeatures(Model):
    """Features are passed on; text features are those of a file, or there are none."""

    token_width = 0
    start_ids = end_ids = ()
    pad_id = 0
    template = ""

    def __init__(self, texts: Texts | None, feature_dim: int, logit_scale: float | None) -> None:
        self._texts, self._device = texts, "cpu"
        self.capabilities = Capabilities(
            context_window=0, modality="features", text="none" if texts is None else "features", runs_on_gpu=True
        )
        self.feature_dim = feature_dim if texts is None else texts.features.shape[1]
        self.logit_scale = logit_scale or (LOGIT_SCALE if texts is None else texts.logit_scale)
        self.encoder = "" if texts is None else texts.encoder
        digest = hashlib.sha256(f"features {self.feature_dim} {self.logit_scale}".encode())
        if texts is not None:
            digest.update(repr(texts.class_names).encode() + texts.features.numpy().astype("<f4").tobytes())
        self.fingerprint = digest.hexdigest()

    def encode_images(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Return the features that the data have."""
        return unit(images)

    def class_features(self, class_names: Sequence[str]) -> Float[Tensor, "c d"]:
        """Return the text features of some classes.

        Raises:
            ConfigError: there is none for one of them.
        """
        if self._texts is None:
            raise no_tower()
        return self._texts.of(class_names).to(self._device)

    def to(self, device: str) -> None:
        """Say where text features are to lie."""
        self._device = device


class TowerOfText(Model):
    """Features are passed on; prompts go through the text tower of another backbone."""

    def __init__(self, tower: Model, logit_scale: float | None) -> None:
        self._tower = tower
        self.capabilities = dataclasses.replace(
            tower.capabilities, modality="features", sampling_rate=None, view_size=None, num_patches=None
        )
        self.feature_dim, self.token_width, self.pad_id = tower.feature_dim, tower.token_width, tower.pad_id
        self.start_ids, self.end_ids, self.template = tower.start_ids, tower.end_ids, tower.template
        self.causal_tower = tower.causal_tower
        self.logit_scale = logit_scale or tower.logit_scale
        self.encoder = tower.fingerprint
        self.fingerprint = hashlib.sha256(f"features {self.logit_scale} {tower.fingerprint}".encode()).hexdigest()

    def encode_images(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Return the features that the data have."""
        return unit(images)

    def tokenize(self, text: str) -> list[int]:
        """Tokenize as the tower does."""
        return self._tower.tokenize(text)

    def embed(self, token_ids: Int[Tensor, "*l"]) -> Float[Tensor, "*l e"]:
        """Look up the tower's token embeddings."""
        return self._tower.embed(token_ids)

    def encode_prompts(self, prompts: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """Encode one sequence a class."""
        return self._tower.encode_prompts(prompts, end_index)

    def to(self, device: str) -> None:
        """Move the tower."""
        self._tower.to(device)
