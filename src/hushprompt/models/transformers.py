"""CLIP, SigLIP and SigLIP 2 of transformers, from a hub name or a local folder.

The text towers take embedded prompts and otherwise do what `get_text_features` does after the embedding, with the
library's own modules; tests hold both to 1e-5. SigLIP's logit bias is left out: a constant on all logits changes no
softmax over classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from hushprompt.data.base import Modality
from hushprompt.models.base import Backbone, check_template, fingerprint, optional
from hushprompt.models.packing import Packing, encode_packed
from hushprompt.models.placing import Precision, lowered, precision_settings
from hushprompt.models.transformers_files import load_network, load_part, settings_of
from hushprompt.models.transformers_tokenizer import PromptTokenizer
from hushprompt.registry import BACKBONES

CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
ATTENTION = {"text_config": "eager", "vision_config": "sdpa"}
"""Text attention by plain matrix products: fused kernels have no rule for batched gradients."""


@BACKBONES.register("transformers")
@dataclass(frozen=True, kw_only=True)
class Transformers:
    """The `backbone` section of a CLIP, SigLIP or SigLIP 2 model of transformers."""

    model: str = "openai/clip-vit-base-patch16"
    """Hub name, or a local folder with config.json, weights, tokenizer files and preprocessor_config.json."""
    precision: Precision = "float32"
    """Of both towers; "bfloat16" and "float16" change results. Prompts, clipping and noise stay float32."""
    template: str = "a photo of a {}."
    """Hand template of the zero-shot row."""

    def __post_init__(self) -> None:
        """Check the field."""
        check_template(self.template)

    def load(self) -> Backbone:
        """Read the model.

        Raises:
            ConfigError: transformers is not installed, or the model is of another type.
            DataError: a file is missing or damaged.
        """
        transformers = optional("transformers", "transformers")
        network = load_network(transformers, self.model, CLASSES, ATTENTION)
        kind = ClipBackbone if network.config.model_type == "clip" else TransformersBackbone
        return kind(transformers, self, network)


class TransformersBackbone:
    """Both towers, frozen."""

    modality: Modality = "image"
    sampling_rate: int | None = None

    def __init__(self, transformers: Any, config: Transformers, network: Any) -> None:
        """Read tokenizer and image processor of a network.

        Args:
            transformers: the package.
            config: the section.
            network: of both towers.
        """
        self._model = network
        self._tokenizer = PromptTokenizer(load_part(transformers.AutoTokenizer, config.model, "tokenizer"))
        self._processor = load_part(
            transformers.AutoImageProcessor, config.model, "image processor (preprocessor_config.json)", backend="pil"
        )
        self._text = self._model.text_model
        self._is_clip = self._model.config.model_type == "clip"
        self._projection: nn.Linear = self._model.text_projection if self._is_clip else self._text.head
        self._embedding: nn.Embedding = self._text.embeddings.token_embedding
        self.sees_padding = not self._is_clip  # SigLIP attends to its padding and pools the window's last position
        self.start_ids, self.end_ids = self._tokenizer.start_ids, self._tokenizer.end_ids
        self.pad_id = self._tokenizer.pad_id
        self.context_window: int = self._model.config.text_config.max_position_embeddings
        self.token_width = self._embedding.embedding_dim
        self.feature_dim = self._projection.out_features
        self.logit_scale = float(self._model.logit_scale.exp())
        self.template = config.template
        settings = [settings_of(network.config), self._processor.to_dict(), self._tokenizer.settings()]
        self.fingerprint = fingerprint(network, *settings, *precision_settings(config.precision))
        self._dtype, self._device = lowered(self._model, config.precision), "cpu"

    def to(self, device: str) -> None:
        """Move both towers."""
        self._model.to(device)
        self._device = device

    @torch.no_grad()
    def encode_images(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Encode uint8 images [h, w, 3] of any size by the model's own image processor."""
        found = self._model.get_image_features(**self._inputs(images))
        return F.normalize(found.pooler_output.float(), dim=-1)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of the model's tokenizer without start and end."""
        return self._tokenizer.encode(text)

    def embed(self, token_ids: Int[Tensor, "*l"]) -> Float[Tensor, "*l e"]:
        """Look up token embeddings."""
        return self._embedding(token_ids).float()

    def encode_prompts(self, prompts: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """Encode one sequence a class."""
        x = self._text.embeddings(inputs_embeds=prompts.to(self._dtype))
        length = x.shape[1]
        mask = None
        if self._is_clip:
            mask = x.new_full((1, 1, length, length), float("-inf")).triu(diagonal=1)
        x = self._text.final_layer_norm(self._text.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state)
        last = end_index if self._is_clip else torch.full_like(end_index, length - 1)
        return F.normalize(self._projection(x[torch.arange(len(x), device=x.device), last]).float(), dim=-1)

    def _inputs(self, images: Sequence[np.ndarray]) -> Any:
        """Preprocess."""
        inputs = self._processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        return inputs.to(device=self._device, dtype=self._dtype)  # whole numbers stay what they are


class ClipBackbone(TransformersBackbone):
    """CLIP, whose text tower is causal with its feature at the end token, and whose image tower has patches."""

    def __init__(self, transformers: Any, config: Transformers, network: Any) -> None:
        """Read tokenizer and image processor of a network."""
        super().__init__(transformers, config, network)
        self.num_patches: int = network.vision_model.embeddings.num_patches

    @torch.no_grad()
    def encode_patches(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n m d"]:
        """Norm and project every patch as the class token is."""
        vision = self._model.vision_model
        patches = vision(**self._inputs(images)).last_hidden_state[:, 1:]
        return F.normalize(self._model.visual_projection(vision.post_layernorm(patches)).float(), dim=-1)

    def encode_shared_prefix(
        self, prefix: Float[Tensor, "p e"], suffixes: Sequence[Float[Tensor, "_ _ e"]]
    ) -> Float[Tensor, "c d"]:
        """Encode prompts that begin alike, packed into one sequence with a tree mask."""
        text = self._text
        *layers, last = text.encoder.layers

        def run(tokens: Float[Tensor, "l e"], packing: Packing) -> Float[Tensor, "m e"]:
            x = (tokens.to(self._dtype) + text.embeddings.position_embedding(packing.positions))[None]
            mask = packing.mask.to(self._dtype)
            for layer in layers:
                x = layer(x, mask[None, None])
            return _run_at(last, x, mask, packing.ends)[0]

        features = self._projection(text.final_layer_norm(encode_packed(run, prefix, suffixes)))
        return F.normalize(features.float(), dim=-1)


def _run_at(
    layer: Any, x: Float[Tensor, "1 l e"], mask: Float[Tensor, "l l"], rows: Int[Tensor, " m"]
) -> Float[Tensor, "1 m e"]:
    """Run a layer of CLIP for some tokens; the others are looked at and need no more than keys and values."""
    normed = layer.layer_norm1(x)
    x = x[:, rows] + _attend(layer.self_attn, normed[:, rows], normed, mask[rows])
    output: Tensor = x + layer.mlp(layer.layer_norm2(x))
    return output


def _attend(
    attention: Any, some: Float[Tensor, "1 m e"], tokens: Float[Tensor, "1 l e"], mask: Float[Tensor, "m l"]
) -> Float[Tensor, "1 m e"]:
    """Let some tokens look at all; the library's module lets none but all tokens look."""

    def heads(x: Float[Tensor, "1 _ e"]) -> Float[Tensor, "1 h _ w"]:
        return x.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)

    query, key, value = heads(attention.q_proj(some)), heads(attention.k_proj(tokens)), heads(attention.v_proj(tokens))
    scores = query @ key.mT * attention.scale + mask
    mixed = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value  # [1, h, m, w]
    output: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return output
