"""Generative models of transformers that read images or sounds, from a hub name or a local folder.

A frozen language model reads the tokens of an image or sound among those of a text. Here are its parts: tokens of
images, tokens of text, and one pass through the language model with positions, mask and earlier keys and values given.
What is asked, and where the learned prompt stands, is in `prompts/generative_model.py`. Measured against the libraries'
own forward passes; see docs/mllm.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hushprompt import checks
from hushprompt.errors import ConfigError, DataError
from hushprompt.models import generative_families as families
from hushprompt.models import grouped_attention
from hushprompt.models.base import Capabilities, Model, fingerprint, no_towers, optional
from hushprompt.models.chat_turn import Turn, turn_of
from hushprompt.models.generative_families import Family
from hushprompt.models.generative_weights import check_device_map, load_generative
from hushprompt.models.keys_and_values import Joining, KeysAndValues
from hushprompt.models.media_tokens import ImageTokens, SoundTokens
from hushprompt.models.placing import Precision, precision_settings
from hushprompt.models.transformers_files import OfTransformers, load_part, settings_of
from hushprompt.registry import BACKBONES

Loss = Literal["answer", "classes", "letters"]
PromptPosition = Literal["tail", "front"]


@dataclass(frozen=True, kw_only=True)
class GenerativeConfig(OfTransformers):
    """What the `backbone` sections of all families have."""

    family: ClassVar[Family]

    model: str
    """Hub name, or a local folder with config.json, weights, tokenizer files and preprocessor_config.json."""
    precision: Precision = "float32"
    """Of weights and arithmetic; "bfloat16" and "float16" change results. Prompts, losses, clipping and noise stay
    float32."""
    device_map: str = ""
    """How the layers lie on several devices: "auto", "balanced", "balanced_low_0" or "sequential", or the one device
    that all lie on, such as "cuda:1"; needs the package accelerate. Prompts stay where runtime.device says. Empty:
    all on that device."""
    question: str = "What is this?"
    """What the model is asked about an image or sound; {classes} in it stands for the names of all classes."""
    prompt_position: PromptPosition = "tail"
    """Where the learned prompt stands: "tail", behind the question, so that image and question are read once and never
    see it; or "front", before everything, as the package peft has it."""
    loss: Loss = "answer"
    """What is minimized: "answer", the mean negative log-likelihood of the true name's tokens; "classes", cross-entropy
    of the mean log-likelihoods of all names; "letters", cross-entropy over the letters of a list of all names, of at
    most 26 classes, that the question then ends with."""
    chat: str = ""
    """One turn of a conversation with {media}, {question} and {answer} in their places; empty: the model's own."""

    def __post_init__(self) -> None:
        """Check the fields."""
        if not self.question.strip():
            raise ConfigError("backbone.question must not be empty: it is what the frozen model is asked.")
        check_device_map(self.device_map)

    def load(self) -> Model:
        """Read the model.

        Raises:
            ConfigError: transformers is not installed, the model is of another type, or a setting does not fit it.
            DataError: a file is missing or damaged.
        """
        transformers = optional("transformers", "transformers")
        network = load_generative(transformers, self)
        return GenerativeBackbone(transformers, self, network)

    def media(self, transformers: Any, network: Any) -> ImageTokens | SoundTokens:
        """Return what makes tokens of images or sounds."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ImageGenerativeConfig(GenerativeConfig):
    """The `backbone` section of a family that reads images."""

    question: str = "What is shown in this picture?"
    """What the model is asked about a picture; {classes} in it stands for the names of all classes."""
    image_size: int | None = None
    """Side in pixels of the square that each image is stretched to; "none": the model's own."""
    media_tokens: int | None = None
    """Tokens of an image: neighbors are averaged to a square grid of so many; "none": all that the model makes."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        for name in ("image_size", "media_tokens"):
            if getattr(self, name) is not None:
                checks.positive(**{name: getattr(self, name)})

    def media(self, transformers: Any, network: Any) -> ImageTokens:
        """Return what makes tokens of images."""
        what = "image processor (preprocessor_config.json)"
        processor = load_part(transformers.AutoImageProcessor, self.model, what, backend="pil")
        return ImageTokens(self.family, network, processor, self.image_size, self.media_tokens)


@dataclass(frozen=True, kw_only=True)
class SoundGenerativeConfig(GenerativeConfig):
    """The `backbone` section of a family that hears sounds."""

    question: str = "What is heard in this recording?"
    """What the model is asked about a sound; {classes} in it stands for the names of all classes."""
    seconds: float | None = None
    """Seconds after which sounds are cut; "none": the longest that the model takes, 30."""

    def media(self, transformers: Any, network: Any) -> SoundTokens:
        """Return what makes tokens of sounds."""
        what = "feature extractor (preprocessor_config.json)"
        extractor = load_part(transformers.AutoFeatureExtractor, self.model, what)
        return SoundTokens(self.family, network, extractor, self.seconds)


class GenerativeBackbone(Model):
    """A frozen language model that reads images or sounds.

    Its layers may lie on several devices: tensors come from any, and what is handed out lies where what came in does.
    """

    def __init__(self, transformers: Any, config: GenerativeConfig, network: Any) -> None:
        """Read tokenizer and processor of a network.

        Args:
            transformers: the package.
            config: the section.
            network: of a family.
        """
        self.config, self._network, self._transformers = config, network, transformers
        self._tokenizer = load_part(transformers.AutoTokenizer, config.model, "tokenizer")
        self._media = config.media(transformers, network)
        inner = network.model
        self._language = inner.language_model if hasattr(inner, "language_model") else inner.text_model
        self._embedding, self._head = network.get_input_embeddings(), network.get_output_embeddings()
        self._cache_name = "cache" if "cache" in inspect.signature(self._language.forward).parameters else (
            "past_key_values"
        )  # fmt: skip
        text = network.config.get_text_config()
        self.turn: Turn = turn_of(self._tokenizer, config.family, config.chat)
        self.start_ids, self.end_ids = self._around()
        self.pad_id, self.template, self.logit_scale = 0, config.question, 1.0
        self.token_width = self.feature_dim = self._embedding.weight.shape[1]
        self.num_layers: int = text.num_hidden_layers
        self.num_heads: int = text.num_attention_heads
        head_width = getattr(text, "head_dim", None) or text.hidden_size // self.num_heads
        self.heads_per_key: int = self.num_heads // text.num_key_value_heads
        grouped_attention.use(transformers, self._language)
        self.key_value_width: int = 2 * text.num_key_value_heads * head_width
        """Numbers of a token's keys and values in a layer."""
        self.floats_per_token: int = 16 * text.hidden_size + 4 * text.intermediate_size
        """Numbers that a layer makes of a token, about."""
        kept = 2 * (text.hidden_size + self.num_heads * head_width) + 2 * text.intermediate_size
        self.floats_kept_per_token: int = kept + self.key_value_width
        """Of them, those that a layer keeps for the backward pass."""
        self.vocabulary_size: int = self._head.weight.shape[0]
        self.capabilities = Capabilities(
            context_window=text.max_position_embeddings,
            modality=config.family.modality,
            text="none",
            sampling_rate=self._media.sampling_rate if isinstance(self._media, SoundTokens) else None,
            num_tokens=self._media.num_tokens,
            runs_on_gpu=True,
        )
        self.preprocessing = dict(self._media.settings)
        self.fingerprint = fingerprint(
            network, settings_of(network.config), self._tokenizer_settings(), self.preprocessing,
            *precision_settings(config.precision),
        )  # fmt: skip

    @property
    def _device(self) -> torch.device:
        """Where token embeddings lie."""
        device: torch.device = self._embedding.weight.device
        return device

    @property
    def _dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        dtype: torch.dtype = self._embedding.weight.dtype
        return dtype

    def to(self, device: str) -> None:
        """Move the model, unless its layers lie on several devices."""
        if not self.config.device_map:
            self._network.to(device)

    def encode_images(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """There is no tower."""
        raise no_towers("A feature of an image")

    def encode_prompts(self, prompts: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """There is no tower."""
        raise no_towers("A text feature")

    @torch.no_grad()
    def encode_tokens(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n m e"]:
        """Return what the language model reads of images or sounds."""
        return self._media(images, self._network.device, self._dtype).float()

    def tokenize(self, text: str) -> list[int]:
        """Return token ids without start and end; special tokens may be spelled in the text."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def tokenize_plain(self, text: str) -> list[int]:
        """Return token ids of a question, answer or name, which has words alone.

        Raises:
            ConfigError: it spells a special token, with which a turn would end or an image begin.
        """
        found = self.tokenize(text)
        added = self._tokenizer.added_tokens_decoder
        if special := [str(added[one]) for one in found if one in added and added[one].special]:
            raise ConfigError(
                f"A question, an answer or a name has {special[0]!r}, which the model does not read as words. Spell it "
                "in another way."
            )
        return found

    def spell(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens without special ones, and without space around it."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True)).strip()

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the turn's, and the tokenizer's."""
        eos = self._tokenizer.eos_token_id
        return frozenset((*self.end_ids, *([] if eos is None else [eos])))

    def embed(self, token_ids: Int[Tensor, "*l"]) -> Float[Tensor, "*l e"]:
        """Look up token embeddings."""
        return self._embedding(token_ids.to(self._device)).to(token_ids.device).float()

    def media_positions(self, is_token: Bool[Tensor, "b m"]) -> tuple[Int[Tensor, "d m"], Int[Tensor, " b"]]:
        """Return the positions of an example's tokens, from 0, and how many positions each example takes."""
        return self._media.positions().to(is_token.device), self._media.span(is_token)

    def read(
        self,
        embedded: Float[Tensor, "b l e"],
        positions: Int[Tensor, "d b l"],
        allowed: Bool[Tensor, "b l k"],
        past: KeysAndValues = (),
        *,
        keeps: bool = True,
    ) -> tuple[Float[Tensor, "b l e"], KeysAndValues]:
        """Run the language model over new tokens behind those that it has read; differentiable in `embedded`.

        Args:
            embedded: [b, l, e] of the new tokens.
            positions: [d, b, l] of the new tokens; d is 1, or 3 for time, height and width.
            allowed: [b, l, k] whether each new token sees each earlier or new one, k = earlier + l.
            past: what an earlier call returned; it is not changed.
            keeps: False: keys and values are not wanted.

        Returns:
            [b, l, e] the last hidden states of the new tokens, in the model's precision, and keys and values of all.
        """
        cache = Joining(past, keeps=keeps)
        seen = allowed[:, None].repeat(1, 1, self.heads_per_key, 1)
        mask = torch.where(seen, 0.0, -torch.inf).to(self._device, self._dtype)  # once for all layers
        places = positions.to(self._device)
        hidden = self._language(
            inputs_embeds=embedded.to(self._device, self._dtype),
            position_ids=places[0] if len(places) == 1 else places,
            attention_mask=mask,
            use_cache=True,
            **{self._cache_name: cache},
        ).last_hidden_state
        return hidden.to(embedded.device), tuple(cache.joined)

    def log_probs(self, hidden: Float[Tensor, "*n e"]) -> Float[Tensor, "*n v"]:
        """Return the log-probabilities of the next token, in float32; all rows in one product of matrices."""
        logits = self._head(hidden.reshape(-1, hidden.shape[-1]).to(self._head.weight.device)).to(hidden.device).float()
        return logits.log_softmax(dim=-1).unflatten(0, hidden.shape[:-1])

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return what the tokenizer puts before a text, unless the turn begins with it, and what ends an answer.

        Raises:
            DataError: nothing ends an answer.
        """
        bare, whole = self.tokenize("a"), list(self._tokenizer("a")["input_ids"])
        starts = [at for at in range(len(whole)) if bare and whole[at : at + len(bare)] == bare]
        start = whole[: starts[0]] if starts else []
        end = self.tokenize(self.turn.end)[:1] or [self._tokenizer.eos_token_id]
        if not bare or end == [None]:
            raise DataError(
                f"The {type(self._tokenizer).__name__} of {self.config.model} cannot spell a text, or has no end "
                "token. Its files are missing or not those of the model: put tokenizer.json and tokenizer_config.json "
                "beside the weights."
            )
        begins = self.tokenize(self.turn.before)[: len(start)] == start
        return (() if begins else tuple(start)), tuple(end)

    def _tokenizer_settings(self) -> dict[str, str]:
        """Return what decides token ids and the turn."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        spelled = backend.to_str() if backend is not None else str(sorted(self._tokenizer.get_vocab().items()))
        return {"tokenizer": spelled, "turn": repr(self.turn), "around": f"{self.start_ids} {self.end_ids}"}


@BACKBONES.register("smolvlm")
@dataclass(frozen=True, kw_only=True)
class SmolVLM(ImageGenerativeConfig):
    """The `backbone` section of a SmolVLM (Marafioti et al. 2025, arXiv:2504.05299)."""

    family: ClassVar[Family] = families.SMOLVLM

    model: str = "HuggingFaceTB/SmolVLM-256M-Instruct"
    """Hub name, or a local folder with config.json, weights, tokenizer files and preprocessor_config.json;
    or "drawings", the tiny one that is in the package."""


@BACKBONES.register("idefics3")
@dataclass(frozen=True, kw_only=True)
class Idefics3(ImageGenerativeConfig):
    """The `backbone` section of an Idefics3 (Laurencon et al. 2024, arXiv:2408.12637)."""

    family: ClassVar[Family] = families.IDEFICS3

    model: str = "HuggingFaceM4/Idefics3-8B-Llama3"
    """Hub name, or a local folder with config.json, weights, tokenizer files and preprocessor_config.json."""


@BACKBONES.register("llava")
@dataclass(frozen=True, kw_only=True)
class Llava(ImageGenerativeConfig):
    """The `backbone` section of a LLaVA (Liu et al. 2023, arXiv:2310.03744)."""

    family: ClassVar[Family] = families.LLAVA

    model: str = "llava-hf/llava-1.5-7b-hf"
    """Hub name, or a local folder with config.json, weights, tokenizer files and preprocessor_config.json."""


@BACKBONES.register("llava_onevision")
@dataclass(frozen=True, kw_only=True)
class LlavaOneVision(ImageGenerativeConfig):
    """The `backbone` section of a LLaVA-OneVision (Li et al. 2024, arXiv:2408.03326), without tiles."""

    family: ClassVar[Family] = families.LLAVA_ONEVISION

    model: str = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
    """Hub name, or a local folder with config.json, weights, tokenizer files and preprocessor_config.json."""


@BACKBONES.register("internvl")
@dataclass(frozen=True, kw_only=True)
class InternVL(ImageGenerativeConfig):
    """The `backbone` section of an InternVL (Zhu et al. 2025, arXiv:2504.10479), without tiles."""

    family: ClassVar[Family] = families.INTERNVL

    model: str = "OpenGVLab/InternVL3-1B-hf"
    """Hub name, or a local folder with config.json, weights, tokenizer files and preprocessor_config.json."""


@BACKBONES.register("qwen2_vl")
@dataclass(frozen=True, kw_only=True)
class Qwen2VL(ImageGenerativeConfig):
    """The `backbone` section of a Qwen2-VL (Wang et al. 2024, arXiv:2409.12191)."""

    family: ClassVar[Family] = families.QWEN2_VL

    model: str = "Qwen/Qwen2-VL-2B-Instruct"
    """Hub name, or a local folder with config.json, weights, tokenizer files and preprocessor_config.json."""


@BACKBONES.register("qwen2_5_vl")
@dataclass(frozen=True, kw_only=True)
class Qwen25VL(ImageGenerativeConfig):
    """The `backbone` section of a Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923)."""

    family: ClassVar[Family] = families.QWEN2_5_VL

    model: str = "Qwen/Qwen2.5-VL-3B-Instruct"
    """Hub name, or a local folder with config.json, weights, tokenizer files and preprocessor_config.json."""


@BACKBONES.register("qwen2_audio")
@dataclass(frozen=True, kw_only=True)
class Qwen2Audio(SoundGenerativeConfig):
    """The `backbone` section of a Qwen2-Audio (Chu et al. 2024, arXiv:2407.10759)."""

    family: ClassVar[Family] = families.QWEN2_AUDIO

    model: str = "Qwen/Qwen2-Audio-7B-Instruct"
    """Hub name, or a local folder with config.json, weights, tokenizer files and preprocessor_config.json."""


@BACKBONES.register("voxtral")
@dataclass(frozen=True, kw_only=True)
class Voxtral(SoundGenerativeConfig):
    """The `backbone` section of a Voxtral (Liu et al. 2025, arXiv:2507.13264)."""

    family: ClassVar[Family] = families.VOXTRAL

    model: str = "mistralai/Voxtral-Mini-3B-2507"
    """Hub name, or a local folder with config.json, weights, tokenizer files (tokenizer.json) and
    preprocessor_config.json."""
