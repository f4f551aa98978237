"""Small random models of the real families, made by the libraries' own classes and saved in their real formats."""

import contextlib
import json
import warnings

import torch

NAMES = ("cat", "zebra kiwi", "ox")
CORPUS = "a photo of a cat\nthis is the sound of rain\nzebra kiwi ox dog lynx\nmany quick brown jumping vow words\n" * 5


@contextlib.contextmanager
def seeded(seed=0):
    """Let library code draw its weights without touching anyone's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def spread(module, seed=0):
    """Draw all weights anew, large enough that no wrong activation, norm or projection hides behind zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1)
    return module.eval().requires_grad_(False)


# --- open_clip --------------------------------------------------------------------------------------------------

VISION = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
OPEN_CLIP = {
    "vit": {"vision_cfg": VISION, "text_cfg": TEXT},
    "vit-quickgelu": {"vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True},
    "resnet": {"vision_cfg": {**VISION, "layers": [1, 1, 1, 1], "image_size": 64, "head_width": 64}, "text_cfg": TEXT},
    "mobile": {
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32},
        "text_cfg": {**TEXT, "no_causal_mask": True},
    },
    "coca": {
        "custom_text": True,
        "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        "text_cfg": {**TEXT, "context_length": 23, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
}


def write_open_clip_configs(folder):
    """Write a model config a file, as open_clip keeps them, those with tokenizers of their own beside them."""
    unigram_tokenizer(folder / "unigram")
    wordpiece_tokenizer(folder / "wordpiece")
    roberta(folder / "roberta")
    hub = {
        "siglip": {
            "custom_text": True,
            "init_logit_bias": -10,
            "vision_cfg": VISION,
            "text_cfg": {
                **TEXT, "vocab_size": 128, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
                "norm_kwargs": {"eps": 1e-6}, "hf_tokenizer_name": str(folder / "unigram"),
                "tokenizer_kwargs": {"clean": "canonicalize"},
            },
        },
        "clipa": {
            "vision_cfg": VISION,
            "text_cfg": {
                **TEXT, "vocab_size": 128, "no_causal_mask": True, "pool_type": "last",
                "hf_tokenizer_name": str(folder / "wordpiece"), "tokenizer_kwargs": {"strip_sep_token": True},
            },
        },
        "worldwide": {
            "vision_cfg": VISION,
            "text_cfg": {
                **TEXT, "vocab_size": 320, "pool_type": "eos", "eos_id": 2,
                "hf_tokenizer_name": str(folder / "roberta"),
            },
        },
        "roberta": {
            "vision_cfg": VISION,
            "text_cfg": {
                "hf_model_name": str(folder / "roberta"), "hf_tokenizer_name": str(folder / "roberta"),
                "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler",
            },
        },
    }  # fmt: skip
    for name, config in {**OPEN_CLIP, **hub}.items():
        (folder / f"tiny-{name}.json").write_text(json.dumps({"embed_dim": 16, **config}))


def open_clip_model(name):
    """Make the random model of a config that open_clip knows."""
    import open_clip

    with seeded():
        return spread(open_clip.create_model(f"tiny-{name}"))


def openai_archive(model, path):
    """Trace a model and save it as OpenAI did: half precision, three numbers among the weights."""
    import open_clip

    for name, value in (("context_length", model.context_length), ("vocab_size", model.vocab_size)):
        delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    model.register_buffer("input_resolution", torch.tensor(model.visual.image_size))
    images, texts = torch.ones(1, 3, 32, 32), torch.zeros(1, 24, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace_module(
            model, {"forward": (images, texts), "encode_text": (texts,), "encode_image": (images,)}
        )
        assert open_clip.CLIP is type(model)
        torch.jit.save(traced, str(path))


# --- tokenizers -------------------------------------------------------------------------------------------------


def pieces():
    """Letters, and some whole words, at the start of a text and behind a space."""
    return [*"▁abcdefghijklmnopqrstuvwxyz.,:!", "▁a", "▁photo", "▁of", "▁the", "▁cat", "▁zebra", "▁ki", "wi"]


def unigram_tokenizer(folder):
    """A T5 tokenizer, as open_clip's SigLIP models have."""
    from transformers import T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -(len(piece) ** -0.5)) for piece in pieces())]
    T5Tokenizer(vocab=vocab, extra_ids=0).save_pretrained(folder)


def wordpiece_tokenizer(folder):
    """A BERT tokenizer."""
    from transformers import BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz.,"
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), "photo", "cat"]
    BertTokenizer(vocab={piece: index for index, piece in enumerate(vocab)}).save_pretrained(folder)


def byte_pairs(words, alphabet):
    """Merges that spell words letter by letter, and the vocabulary with every step of them."""
    vocab, merges = list(alphabet), []
    for word in words:
        whole = word[0]
        for letter in word[1:]:
            if (whole, letter) not in merges:
                merges.append((whole, letter))
                vocab.append(whole + letter)
            whole += letter
    return {piece: index for index, piece in enumerate(vocab)}, merges


def byte_level_tokenizer(folder):
    """A RoBERTa tokenizer: a word behind a space is another token than at the start."""
    from tokenizers import pre_tokenizers
    from transformers import RobertaTokenizer

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab, merges = byte_pairs(["cat", "Ġcat", "Ġof", "photo", "Ġphoto"], alphabet)
    RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=40).save_pretrained(folder)


def gemma_tokenizer(folder):
    """SigLIP 2's tokenizer: Gemma's byte pairs, lower case, an end token and none at the start."""
    from transformers import Siglip2Tokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁cat", "▁photo", "▁of", "cat", "photo", "a"]
    vocab, merges = byte_pairs(words, [*special, *"▁abcdefghijklmnopqrstuvwxyz.,:!"])
    options = {"padding_side": "right", "add_bos_token": False, "add_eos_token": True, "model_max_length": 24}
    Siglip2Tokenizer(vocab=vocab, merges=merges, **options).save_pretrained(folder)


def sentencepiece_tokenizer(folder):
    """SigLIP's tokenizer on a sentencepiece model of its own."""
    import sentencepiece
    from transformers import SiglipTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    corpus, prefix = folder / "corpus.txt", folder / "trained"
    corpus.write_text(CORPUS)
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(prefix), vocab_size=70, hard_vocab_limit=False, minloglevel=2, **ids
    )
    SiglipTokenizer(f"{prefix}.model", model_max_length=24).save_pretrained(folder)


def clip_tokenizer(folder):
    """CLIP's own vocabulary, which open_clip brings along, in the files of transformers."""
    import open_clip

    tokenizer = open_clip.SimpleTokenizer()
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {renamed.get(piece, piece): index for piece, index in tokenizer.encoder.items()}
    merges = "\n".join(f"{left} {right}" for left, right in tokenizer.bpe_ranks)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 24, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


# --- transformers -----------------------------------------------------------------------------------------------

ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {"image_size": 32, "patch_size": 8}
PIXELS = {
    "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True,
    "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "resample": 3,
}  # fmt: skip


def roberta(folder):
    """A RoBERTa with its tokenizer."""
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(vocab_size=320, max_position_embeddings=42, type_vocab_size=1, **ENCODER)
    with seeded():
        spread(RobertaModel(config, add_pooling_layer=False)).save_pretrained(folder)
    byte_level_tokenizer(folder)


def clip(folder):
    """A CLIP repository."""
    from transformers import CLIPConfig, CLIPModel

    text = {**ENCODER, "vocab_size": 49408, "max_position_embeddings": 24, "eos_token_id": 49407, "bos_token_id": 49406}
    save(CLIPModel(CLIPConfig(text_config=text, vision_config={**ENCODER, **IMAGES}, projection_dim=16)), folder)
    clip_tokenizer(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": 32, "do_center_crop": True}
    write_processor(folder, "CLIPImageProcessor", size)


def siglip(folder):
    """A SigLIP repository."""
    siglip_network(folder, vocab_size=80)
    sentencepiece_tokenizer(folder)


def siglip2(folder):
    """A SigLIP 2 repository of fixed resolution: SigLIP's network with Gemma's tokenizer."""
    siglip_network(folder, vocab_size=320)
    gemma_tokenizer(folder)


def siglip_network(folder, vocab_size):
    """SigLIP's network and image processor."""
    from transformers import SiglipConfig, SiglipModel

    text = {**ENCODER, "vocab_size": vocab_size, "max_position_embeddings": 24, "projection_size": 32}
    save(SiglipModel(SiglipConfig(text_config=text, vision_config={**ENCODER, **IMAGES})), folder)
    write_processor(folder, "SiglipImageProcessor", {"size": {"height": 32, "width": 32}})


def siglip2_naflex(folder):
    """A SigLIP 2 repository of any aspect ratio."""
    from transformers import Siglip2Config, Siglip2Model

    text = {**ENCODER, "vocab_size": 320, "max_position_embeddings": 24, "projection_size": 32}
    vision = {**ENCODER, "patch_size": 8, "num_patches": 16}
    save(Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)), folder)
    write_processor(folder, "Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 16})
    gemma_tokenizer(folder)


def clap(folder, enable_fusion=False):
    """A CLAP repository."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    text = {**ENCODER, "vocab_size": 320, "max_position_embeddings": 42, "type_vocab_size": 1, "pad_token_id": 1}
    audio = {
        "spec_size": 64, "num_mel_bins": 16, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4],
        "patch_embeds_hidden_size": 16, "hidden_size": 32, "depths": [1, 1], "num_attention_heads": [2, 2],
        "num_hidden_layers": 2, "enable_fusion": enable_fusion, "fusion_type": "aff_2d" if enable_fusion else None,
    }  # fmt: skip
    save(ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16)), folder)
    byte_level_tokenizer(folder)
    ClapFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=100, max_length_s=1, fft_window_size=256, frequency_max=4000,
        truncation="fusion" if enable_fusion else "rand_trunc",
    ).save_pretrained(folder)  # fmt: skip


def save(model, folder):
    """Save a network with random weights."""
    with seeded():
        spread(model).save_pretrained(folder)


def write_processor(folder, kind, settings):
    """Write preprocessor_config.json."""
    values = {"image_processor_type": kind, **PIXELS, **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
