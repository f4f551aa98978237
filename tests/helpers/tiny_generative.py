"""Small random generative models of all families, saved in their real formats; each makes its folder in a blink."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from helpers.tiny_models import PIXELS, byte_pairs, seeded
from hushprompt.models import generative

SPECIAL = [
    "<pad>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>",
    "<global-img>", "<img>", "</img>", "<IMG_CONTEXT>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>", "[INST]", "[/INST]", "[BEGIN_AUDIO]", "[AUDIO]",
]  # fmt: skip
ID = {piece: index for index, piece in enumerate(SPECIAL)}
WORDS = ["Ġcat", "Ġdog", "Ġox", "Ġwhat", "Ġis", "Ġthe", "User", "Assistant", "picture"]
VOCABULARY = 384
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {"image_size": 32, "patch_size": 8}
AUDIO = {
    "num_mel_bins": 4, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "d_model": 32,
    "max_source_positions": 50,
}  # fmt: skip
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{m['role'] | capitalize}}{% if m['content'][0]['type'] == 'image' %}{{':'}}"
    "{% else %}{{': '}}{% endif %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{c['text']}}"
    "{% elif c['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""SmolVLM's own."""
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}<|im_end|>\n"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' or 'image' in c %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2-VL's own, less system and video."""
TEMPLATES = {"smolvlm": SMOLVLM_TEMPLATE, "qwen2_vl": QWEN_TEMPLATE}
"""Of those that have one here; the others use the turn of their family."""


def tokenizer(folder, template=None):
    """A byte-level tokenizer with the special tokens of all families."""
    from transformers import PreTrainedTokenizerFast

    vocab, merges = byte_pairs(WORDS, [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>")
    made.chat_template = template
    made.save_pretrained(folder)


def network(kind):
    """Make a random model."""
    import transformers as hf

    text = {name: {"model_type": name, **TEXT} for name in ("llama", "qwen2")}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    if kind in ("smolvlm", "idefics3"):
        cls = {"smolvlm": hf.SmolVLMConfig, "idefics3": hf.Idefics3Config}[kind]
        config = cls(
            text_config=text["llama"], vision_config={**VISION, **IMAGES}, scale_factor=2, image_token_id=ID["<image>"]
        )
    elif kind == "llava":
        vision = {"model_type": "clip_vision_model", **VISION, **IMAGES, "projection_dim": 16}
        config = hf.LlavaConfig(
            text_config=text["llama"], vision_config=vision, image_token_index=ID["<image>"], image_seq_length=16
        )
    elif kind == "llava_onevision":
        vision = {"model_type": "siglip_vision_model", **VISION, **IMAGES, "vision_use_head": False}
        config = hf.LlavaOnevisionConfig(
            text_config=text["qwen2"], vision_config=vision, image_token_index=ID["<image>"],
            image_grid_pinpoints=[[32, 64]],
        )  # fmt: skip
    elif kind == "internvl":
        vision = {"model_type": "internvl_vision", **VISION, "image_size": [32, 32], "patch_size": [8, 8]}
        config = hf.InternVLConfig(
            text_config=text["qwen2"], vision_config=vision, image_token_id=ID["<IMG_CONTEXT>"], image_seq_length=4
        )
    elif kind in ("qwen2_vl", "qwen2_5_vl"):
        tokens = {
            "image_token_id": ID["<|image_pad|>"], "video_token_id": ID["<|video_pad|>"],
            "vision_start_token_id": ID["<|vision_start|>"], "vision_end_token_id": ID["<|vision_end|>"],
        }  # fmt: skip
        text_config = {**TEXT, "rope_parameters": rope, "rope_scaling": rope}
        if kind == "qwen2_vl":
            vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
            config = hf.Qwen2VLConfig(text_config=text_config, vision_config=vision, **tokens)
        else:
            vision = {
                "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
                "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1],
            }  # fmt: skip
            config = hf.Qwen2_5_VLConfig(text_config=text_config, vision_config=vision, **tokens)
    elif kind == "qwen2_audio":
        config = hf.Qwen2AudioConfig(
            text_config=text["qwen2"], audio_config={"model_type": "qwen2_audio_encoder", **AUDIO},
            audio_token_index=ID["<|AUDIO|>"],
        )  # fmt: skip
    else:
        audio = {
            "model_type": "voxtral_encoder", "num_mel_bins": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 64, "hidden_size": 32, "max_source_positions": 50,
        }  # fmt: skip
        config = hf.VoxtralConfig(text_config=text["llama"], audio_config=audio, audio_token_id=ID["[AUDIO]"])
    family = generative.BACKBONES.get(kind).family
    with seeded():
        return spread(getattr(hf, family.network)(config))


def spread(module, seed=0):
    """Draw all weights anew, so that no layer hides behind zeros; keep buffers and norms."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data = 0.15 * torch.randn(parameter.shape, generator=generator)
        elif parameter.ndim:
            parameter.data = parameter.data + 0.05 * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


def processor(kind, folder):
    """Write preprocessor_config.json."""
    from transformers import WhisperFeatureExtractor

    if kind in ("qwen2_audio", "voxtral"):
        WhisperFeatureExtractor(
            feature_size=4, sampling_rate=8000, hop_length=80, chunk_length=1, n_fft=400
        ).save_pretrained(folder)
        return
    names = {
        "smolvlm": "SmolVLM", "idefics3": "Idefics3", "llava": "CLIP", "llava_onevision": "LlavaOnevision",
        "internvl": "GotOcr2", "qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2VL",
    }  # fmt: skip
    values = {"image_processor_type": f"{names[kind]}ImageProcessor", **PIXELS}
    if kind.startswith("qwen"):
        values |= {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 64, "max_pixels": 4096}
    elif kind in ("smolvlm", "idefics3"):
        values |= {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}, "do_image_splitting": False}
    elif kind == "llava":
        values |= {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    else:
        values |= {"size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def write(kind, folder):
    """Write a repository of one family."""
    folder.mkdir(parents=True, exist_ok=True)
    network(kind).save_pretrained(folder)
    tokenizer(folder, TEMPLATES.get(kind))
    processor(kind, folder)
    return folder
