"""The embedded backbone: a small dual encoder of drawings and short captions (docs/model-card.md)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from hushprompt.models.base import Capabilities, Model
from hushprompt.models.bpe import BytePairTokenizer
from hushprompt.models.embedded_network import load_emoji_network
from hushprompt.models.image_graph import ImageGraph, PixelRecipe, TowerGraph
from hushprompt.registry import BACKBONES

PAD_ID = 0
IMAGE_SIZE = 64
"""Side in pixels of the square that the image tower sees."""
IMAGES_AT_ONCE = 25
"""Images that go through the tower together: few enough for a processor's cache; 50 took 1.4 times as long each."""
FILES = ("emoji_clip.safetensors", "emoji_clip.json", "tokenizer.json")


@BACKBONES.register("emoji_clip")
@dataclass(frozen=True, kw_only=True)
class EmojiClip:
    """The `backbone` section of the embedded model: nothing to set."""

    is_embedded: ClassVar[bool] = True
    """The package has it in itself: no file that a config names is read, and nothing is fetched."""

    def load(self) -> Model:
        """Read weights and tokenizer from the package."""
        with resources.as_file(resources.files("hushprompt") / "assets") as folder:
            return EmojiClipModel(folder)


class EmojiClipModel(Model):
    """EfficientNet-Lite0 image tower and a causal text transformer, frozen, in float32."""

    template = "a picture of a {}"
    preprocessing = MappingProxyType(
        {"short_side": IMAGE_SIZE, "resample": "bicubic", "crop": "center", "scale": 1 / 255}
    )

    def __init__(self, folder: Path) -> None:
        weights, config, tokenizer = (folder / name for name in FILES)
        self._network = load_emoji_network(weights, config)
        self.causal_tower = self._network.text.causal_tower()
        self._tokenizer = BytePairTokenizer.from_json(tokenizer)
        digest = hashlib.sha256(b"short side to 64, center crop, pixels / 255")
        for name in FILES:
            digest.update((folder / name).read_bytes())
        self.fingerprint = digest.hexdigest()
        config_values = self._network.config
        self.feature_dim = config_values.dim
        self.token_width = config_values.text_width
        self.capabilities = Capabilities(
            context_window=config_values.context_length, view_size=IMAGE_SIZE, num_patches=9, shares_prefix=True,
            runs_on_gpu=True,
        )  # fmt: skip
        self.logit_scale = float(self._network.log_logit_scale.exp())
        self.start_ids: tuple[int, ...] = (self._tokenizer.start_id,)
        self.end_ids: tuple[int, ...] = (self._tokenizer.end_id,)
        self.pad_id = PAD_ID
        self._device = "cpu"
        self._tower: nn.Module = self._network.image

    def to(self, device: str) -> None:
        """Move both towers."""
        self._network.to(device)
        self._device = device

    @torch.no_grad()
    def encode_images(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Encode uint8 images [h, w, 3]: short side to 64 pixels, center crop."""
        parts = self._pixels(images).split(IMAGES_AT_ONCE)
        return F.normalize(torch.cat(side_by_side(self._tower, parts)), dim=-1)

    @torch.no_grad()
    def encode_patches(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n m d"]:
        """Encode the nine places of the last feature map."""
        return F.normalize(self._network.image.patches(self._pixels(images)), dim=-1)

    @torch.no_grad()
    def prepare_for_threads(self) -> None:
        """Run the image tower as one call: layer by layer, threads wait for Python's global lock after each of them.

        torch calls `trace` deprecated, and has nothing else that does this without a compiler.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # besides, that sizes become constants, as they are
            pixels = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
            self._tower = torch.jit.trace(self._network.image, pixels, check_trace=False)
            for _ in range(2):  # torch looks on, and arranges the call anew
                self._tower(pixels)

    def image_graph(self) -> ImageGraph:
        """Return the tower, and the recipe of `center_square`."""
        square = (IMAGE_SIZE, IMAGE_SIZE)
        recipe = PixelRecipe(short_side=IMAGE_SIZE, size=square, long_side_rounding="nearest")
        return ImageGraph(TowerGraph(self._network.image, self._network.image), recipe)

    def tokenize(self, text: str) -> list[int]:
        """Byte-pair ids without start and end; spaces only part words."""
        return self._tokenizer.encode(text)

    def embed(self, token_ids: Int[Tensor, "*l"]) -> Float[Tensor, "*l e"]:
        """Look up token embeddings."""
        return self._network.text.token_embedding(token_ids)

    def encode_prompts(self, prompts: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """Encode one sequence a class."""
        return F.normalize(self._network.text(prompts, end_index), dim=-1)

    def _pixels(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n 3 s s"]:
        squares = np.stack([center_square(image, IMAGE_SIZE) for image in images])
        return torch.from_numpy(squares).to(self._device).permute(0, 3, 1, 2).float() / 255


def side_by_side(tower: nn.Module, parts: Sequence[Float[Tensor, "_ 3 s s"]]) -> list[Float[Tensor, "_ d"]]:
    """Run parts of a batch on threads of their own: convolutions as small as these gain little by several threads.

    On a GPU parts come one after the other: every new thread would set up the GPU's libraries for itself.
    """
    num_threads = torch.get_num_threads() if parts[0].device.type == "cpu" else 1
    num_workers = min(num_threads, len(parts))
    if num_workers <= 1:
        return [tower(part) for part in parts]

    def run(part: Float[Tensor, "_ 3 s s"]) -> Float[Tensor, "_ d"]:
        with torch.no_grad():  # holds in one thread
            features: Tensor = tower(part)
            return features

    each = num_threads // num_workers
    with ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
        return list(pool.map(run, parts))


def center_square(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Resize an image's short side to `size` pixels and cut out the center; one of that size stays as it is."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    scale = size / min(height, width)
    shape = (max(size, round(width * scale)), max(size, round(height * scale)))
    resized = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    return resized[top : top + size, left : left + size]
