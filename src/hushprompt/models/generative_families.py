"""What differs between families of generative models: how an image becomes tokens, and what stands around them.

Each image is stretched to one square, so that all have the same number of tokens; nothing is cut into tiles. That is
each library's own path for a square image of that size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.data.base import Modality

QWEN_SIDE = 224
"""Side in pixels where a family takes images of any size and names none."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One type of model."""

    model_type: str
    """As config.json says it."""
    network: str
    """Class of transformers."""
    encode: Callable[..., Float[Tensor, "n m e"]]
    """From the network and what the processor made of n images or sounds to their tokens."""
    token_side: Callable[[Any], int] = lambda config: int(config.vision_config.patch_size)
    """Pixels that a token covers, along a side of the image, by the network's config."""
    modality: Modality = "image"
    placeholder: str = "<image>"
    """Stands for the image or sound in a chat template."""
    around: tuple[str, str] = ("", "")
    """What the processor puts before and behind the tokens."""
    chat: str = "{media}{question}{answer}"
    """One turn, where the tokenizer has no chat template."""
    num_extra: int = 0
    """Tokens behind those of the image's grid."""
    is_resizable: bool = True
    """Whether an image may have another size than the one that the model was made for."""
    positions: Literal["1d", "3d"] = "1d"
    """Of a token in the text, or in time, height and width."""


def _idefics(network: Any, pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n m e"]:
    """Encode each image as the one of a conversation."""
    return torch.stack(list(network.model.get_image_features(pixel_values=pixels[:, None]).pooler_output))


def _pooled(network: Any, pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n m e"]:
    """Encode images that the library encodes one by one."""
    found = network.model.get_image_features(pixel_values=pixels).pooler_output
    return found if isinstance(found, Tensor) else torch.stack(list(found))


def _onevision(network: Any, pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n m e"]:
    """Encode images without tiles, as the library does where a conversation has more than one."""
    several = pixels if len(pixels) > 1 else pixels.repeat(2, 1, 1, 1)
    sizes = torch.tensor([pixels.shape[2:]] * len(several))
    found = network.model.get_image_features(
        pixel_values=several, image_sizes=sizes, batch_num_images=torch.tensor([len(several)])
    )
    return torch.stack(list(found.pooler_output))[: len(pixels)]


def _qwen(network: Any, pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n m e"]:
    """Cut images into patches in the library's order, those of a token side by side, and encode them."""
    vision = network.config.vision_config
    side, merge, frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    num, grid = len(pixels), pixels.shape[-1] // side
    cut = pixels.reshape(num, 3, grid // merge, merge, side, grid // merge, merge, side)
    ordered = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [n, gh, gw, merge, merge, 3, side, side]
    patches = ordered[:, :, :, :, :, :, None].expand(-1, -1, -1, -1, -1, -1, frames, -1, -1)
    sizes = torch.tensor([[1, grid, grid]] * num, device=pixels.device)
    flat = patches.reshape(num * grid * grid, -1)
    return torch.stack(list(network.model.get_image_features(pixel_values=flat, image_grid_thw=sizes).pooler_output))


def _qwen_audio(network: Any, inputs: Any) -> Float[Tensor, "n m e"]:
    """Encode sounds as the library's forward pass does; tokens behind the end of a sound are zeros."""
    tower = network.model.audio_tower
    num_frames, num_tokens = tower._get_feat_extract_output_lengths(inputs["attention_mask"].sum(-1))
    longest = (inputs["input_features"].shape[-1] - 2) // 2 + 1
    is_sound = torch.arange(longest, device=num_frames.device) < num_frames[:, None]
    mask = is_sound[:, None, None, :].expand(-1, 1, longest, -1)
    hidden = tower(inputs["input_features"], attention_mask=mask).last_hidden_state
    tokens: Tensor = network.model.multi_modal_projector(hidden)
    is_token = torch.arange(tokens.shape[1], device=tokens.device) < num_tokens.to(tokens.device)[:, None]
    return tokens * is_token[:, :, None]


def _voxtral(network: Any, inputs: Any) -> Float[Tensor, "n m e"]:
    """Encode sounds with the silence behind them, as the model was trained."""
    features = inputs["input_features"]
    tokens: Tensor = network.model.get_audio_features(features).pooler_output
    return tokens.reshape(len(features), -1, tokens.shape[-1])


def _merged_side(config: Any) -> int:
    """Return the side of the patches that Qwen joins to one token."""
    return int(config.vision_config.patch_size * config.vision_config.spatial_merge_size)


def _shuffled_side(config: Any) -> int:
    """Return the side of the patches that Idefics joins to one token."""
    return int(config.vision_config.patch_size * config.scale_factor)


def _internvl_side(config: Any) -> int:
    """Return the side of the patches that InternVL joins to one token."""
    return round(config.vision_config.patch_size[0] / config.downsample_ratio)


IDEFICS = ("<fake_token_around_image><global-img>", "<fake_token_around_image>")
CHATML = "<|im_start|>user\n{media}{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"
SMOLVLM = Family(
    model_type="smolvlm", network="SmolVLMForConditionalGeneration", encode=_idefics, token_side=_shuffled_side,
    around=IDEFICS, chat="<|im_start|>User:{media}{question}<end_of_utterance>\nAssistant: {answer}<end_of_utterance>",
)  # fmt: skip
IDEFICS3 = Family(
    model_type="idefics3", network="Idefics3ForConditionalGeneration", encode=_idefics, token_side=_shuffled_side,
    around=IDEFICS, chat=SMOLVLM.chat.removeprefix("<|im_start|>"),
)  # fmt: skip
LLAVA = Family(
    model_type="llava", network="LlavaForConditionalGeneration", encode=_pooled, is_resizable=False,
    chat="USER: {media}\n{question} ASSISTANT: {answer}",
)  # fmt: skip
LLAVA_ONEVISION = Family(
    model_type="llava_onevision", network="LlavaOnevisionForConditionalGeneration", encode=_onevision,
    num_extra=1, is_resizable=False, chat=CHATML,
)  # fmt: skip
INTERNVL = Family(
    model_type="internvl", network="InternVLForConditionalGeneration", encode=_pooled, token_side=_internvl_side,
    placeholder="<IMG_CONTEXT>", around=("<img>", "</img>"), chat=CHATML.replace("{media}", "{media}\n"),
)  # fmt: skip
QWEN = {"encode": _qwen, "token_side": _merged_side, "placeholder": "<|image_pad|>", "positions": "3d"}
QWEN_CHAT = CHATML.replace("{media}", "<|vision_start|>{media}<|vision_end|>")
QWEN2_VL = Family(model_type="qwen2_vl", network="Qwen2VLForConditionalGeneration", chat=QWEN_CHAT, **QWEN)  # type: ignore[arg-type]
QWEN2_5_VL = Family(model_type="qwen2_5_vl", network="Qwen2_5_VLForConditionalGeneration", chat=QWEN_CHAT, **QWEN)  # type: ignore[arg-type]
QWEN2_AUDIO = Family(
    model_type="qwen2_audio", network="Qwen2AudioForConditionalGeneration", encode=_qwen_audio, modality="audio",
    placeholder="<|AUDIO|>", chat=CHATML.replace("{media}", "Audio 1: <|audio_bos|>{media}<|audio_eos|>\n"),
)  # fmt: skip
VOXTRAL = Family(
    model_type="voxtral", network="VoxtralForConditionalGeneration", encode=_voxtral, modality="audio",
    placeholder="[AUDIO]", chat="[INST][BEGIN_AUDIO]{media}{question}[/INST]{answer}",
)  # fmt: skip
OWN_MASKS = {"gemma3", "lfm2_vl", "paligemma", "qwen3_vl"}
"""Types whose attention among image tokens, states or extra image features do not fit one prefix that is read once."""
