"""CLIP, SigLIP and SigLIP 2 of transformers, from a hub name or a local folder.

The text towers take embedded prompts and otherwise do what `get_text_features` does after the embedding, with the
library's own modules; tests hold both to 1e-5. SigLIP's logit bias is left out: a constant on all logits changes no
softmax over classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from hushprompt.models.base import Capabilities, Model, check_template, fingerprint, optional
from hushprompt.models.causal_tower import CausalBlock, CausalTower
from hushprompt.models.image_graph import ImageGraph, PixelRecipe, TowerGraph, no_graph
from hushprompt.models.placing import Precision, lowered, precision_settings
from hushprompt.models.transformers_files import OfTransformers, load_network, load_part, settings_of
from hushprompt.models.transformers_tokenizer import PromptTokenizer
from hushprompt.registry import BACKBONES

CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
ATTENTION = {"text_config": "eager", "vision_config": "sdpa"}
"""Text attention by plain matrix products: fused kernels have no rule for batched gradients."""


@BACKBONES.register("transformers")
@dataclass(frozen=True, kw_only=True)
class Transformers(OfTransformers):
    """The `backbone` section of a CLIP, SigLIP or SigLIP 2 model of transformers."""

    model: str = "openai/clip-vit-base-patch16"
    """Hub name, or a local folder with config.json, weights, tokenizer files and preprocessor_config.json."""
    precision: Precision = "float32"
    """Of both towers; "bfloat16" and "float16" change results. Prompts, clipping and noise stay float32."""
    template: str = "a photo of a {}."
    """Hand template of the zero-shot row."""

    def __post_init__(self) -> None:
        check_template(self.template)

    def load(self) -> Model:
        """Read the model.

        Raises:
            ConfigError: transformers is not installed, or the model is of another type.
            DataError: a file is missing or damaged.
        """
        transformers = optional("transformers", "transformers")
        network = load_network(transformers, self.model, CLASSES, ATTENTION)
        return TransformersModel(transformers, self, network)


class TransformersModel(Model):
    """Both towers, frozen. CLIP's text tower is causal, and its image tower has patches."""

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
        self.capabilities = Capabilities(
            context_window=network.config.text_config.max_position_embeddings,
            num_patches=network.vision_model.embeddings.num_patches if self._is_clip else None,
            shares_prefix=self._is_clip,
            sees_padding=not self._is_clip,  # SigLIP attends to its padding and pools the window's last position
            runs_on_gpu=True,
        )
        self.start_ids, self.end_ids = self._tokenizer.start_ids, self._tokenizer.end_ids
        self.pad_id = self._tokenizer.pad_id
        self.token_width = self._embedding.embedding_dim
        self.feature_dim = self._projection.out_features
        self.logit_scale = float(self._model.logit_scale.exp())
        self.template = config.template
        self.preprocessing = self._processor.to_dict()
        settings = [settings_of(network.config), self.preprocessing, self._tokenizer.settings()]
        self.fingerprint = fingerprint(network, *settings, *precision_settings(config.precision))
        self._dtype, self._device = lowered(self._model, config.precision), "cpu"
        self.causal_tower = causal_tower(self._text, self._projection, self._dtype) if self._is_clip else None

    def to(self, device: str) -> None:
        """Move both towers."""
        self._model.to(device)
        self._device = device

    @torch.no_grad()
    def encode_images(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Encode uint8 images [h, w, 3] of any size by the model's own image processor."""
        found = self._model.get_image_features(**self._inputs(images))
        return F.normalize(found.pooler_output.float(), dim=-1)

    @torch.no_grad()
    def encode_patches(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n m d"]:
        """Norm and project every patch as CLIP's class token is."""
        vision = self._model.vision_model
        patches = vision(**self._inputs(images)).last_hidden_state[:, 1:]
        return F.normalize(self._model.visual_projection(vision.post_layernorm(patches)).float(), dim=-1)

    def image_graph(self) -> ImageGraph:
        """Return the image tower, and the image processor as a recipe."""
        model = self._model
        parts = (model.vision_model, model.visual_projection) if self._is_clip else (model.vision_model,)
        tower = TowerGraph(lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output, *parts)
        return ImageGraph(tower, recipe_of(self.preprocessing))

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
        inputs = self._processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        return inputs.to(device=self._device, dtype=self._dtype)  # whole numbers stay what they are


def recipe_of(processor: Mapping[str, Any]) -> PixelRecipe:
    """Return what preprocessor_config.json says as a recipe.

    Raises:
        ConfigError: the processor does something else, or leaves images of different sizes.
    """
    try:
        steps = ("do_resize", "do_rescale", "do_normalize")
        is_cut, size = bool(processor.get("do_center_crop")), processor["size"]
        kept = processor["crop_size"] if is_cut else size
        short_side = size.get("shortest_edge")
        is_known = all(processor[step] for step in steps) and not processor.get("do_pad") and is_cut == bool(short_side)
        if not is_known or abs(255 * processor["rescale_factor"] - 1) > 1e-6:
            raise KeyError
        return PixelRecipe(
            short_side=short_side,
            size=(kept["width"], kept["height"]),
            interpolation=Image.Resampling(processor["resample"]).name.lower(),
            mean=tuple(processor["image_mean"]),
            std=tuple(processor["image_std"]),
        )
    except (KeyError, TypeError) as error:
        kind = processor.get("image_processor_type", "its image processor")
        raise no_graph(f"{kind} does more than resize, cut the center and standardize, or leaves that open") from error


def causal_tower(text: Any, projection: nn.Linear, dtype: torch.dtype) -> CausalTower:
    """Return CLIP's text tower as one that computes a shared prefix once."""

    def embed(tokens: Float[Tensor, "n e"], positions: Int[Tensor, " n"]) -> Float[Tensor, "n e"]:
        embedded: Tensor = tokens.to(dtype) + text.embeddings.position_embedding(positions)
        return embedded

    def block(layer: Any) -> CausalBlock:
        attention = layer.self_attn

        def query(normed: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
            projection = attention.q_proj
            return F.linear(normed, attention.scale * projection.weight, attention.scale * projection.bias)

        def rest(x: Float[Tensor, "n e"], mixed: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
            x = x + attention.out_proj(mixed)
            output: Tensor = x + layer.mlp(layer.layer_norm2(x))
            return output

        return CausalBlock(attention.num_heads, layer.layer_norm1, query, attention.k_proj, attention.v_proj, rest)

    blocks = tuple(block(layer) for layer in text.encoder.layers)
    return CausalTower(embed, blocks, lambda x: projection(text.final_layer_norm(x)))
