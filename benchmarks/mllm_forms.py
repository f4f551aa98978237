"""An example step of a generative model: ours, and the plain forms by the library's own forward pass.

Random weights at the shapes of real language models; what is computed does not depend on them. The vision towers are
small: media tokens are cached, and no step asks for a tower. The plain forms read the whole sequence, with a record for
the backward pass, and take the head at the places of the answer alone; all names of a loop have four tokens with the
one that ends an answer, so that nothing is padded.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float, Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from hushprompt.methods.base import Batch
from hushprompt.models.generative import GenerativeBackbone, GenerativeConfig, Loss, PromptPosition, Qwen2VL, SmolVLM
from hushprompt.prompts.generative_model import GenerativeModel

NUM_CTX, SIDE, NUM_EXAMPLES = 16, 8, 4
"""Context vectors; tokens along a side of an image; examples of a step with the loss of the answer."""
COLORS = ("red", "blue", "green", "black", "white", "old", "new", "big", "small", "long")
NOUNS = ("cat", "dog", "car", "tree", "house", "bird", "fish", "chair", "boat", "train")
NAMES = tuple(f"{color} wooden {noun}" for noun in NOUNS for color in COLORS)
PIECES = ("<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>", "<|im_end|>",
          "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")  # fmt: skip
WORDS = ("User", "Assistant", "user", "assistant", ":", "?", "What", "is", "shown", "in", "this", "picture", "wooden")


@dataclass(frozen=True)
class Shape:
    """A language model's."""

    name: str
    section: type[GenerativeConfig]
    text: Mapping[str, Any]


def _llama(hidden: int, width: int, layers: int, heads: int) -> Mapping[str, Any]:
    """Return a Llama's shape whose heads share keys in threes."""
    return {
        "model_type": "llama", "vocab_size": 49280, "hidden_size": hidden, "intermediate_size": width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads // 3,
        "max_position_embeddings": 8192,
    }  # fmt: skip


SMOLLM2_135M = Shape("SmolLM2-135M", SmolVLM, _llama(576, 1536, 30, 9))
SMOLLM2_360M = Shape("SmolLM2-360M", SmolVLM, _llama(960, 2560, 32, 15))
ROPE = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
QWEN2_VL_2B = Shape("Qwen2-VL-2B", Qwen2VL, {
    "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rope_parameters": ROPE,
    "rope_scaling": ROPE,
})  # fmt: skip


class Ours:
    """What the package does."""

    def __init__(self, shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """Make a random network."""
        with tempfile.TemporaryDirectory() as folder:
            _write_tokenizer(Path(folder), shape)
            config = shape.section(model=folder)  # type: ignore[call-arg]
            self.backbone = GenerativeBackbone(transformers, config, _network(shape, device, dtype))
        self.device = device
        self.context = 0.02 * _random(1, NUM_CTX, self.backbone.token_width).to(device)

    def model(
        self, loss: Loss, num_names: int = 20, *, position: PromptPosition = "tail", keeps: bool = False,
        memory_mb: int | None = 160,
    ) -> GenerativeModel:  # fmt: skip
        """Return the model with some names and settings."""
        backbone = copy.copy(self.backbone)
        backbone.config = dataclasses.replace(backbone.config, loss=loss, prompt_position=position)
        return GenerativeModel(backbone, NAMES[:num_names], self.device, memory_mb, prefix_cache_mb=4096 * keeps)

    def batch(self, count: int) -> Batch:
        """Draw cached tokens of images, and labels."""
        media = 0.05 * _random(2, count, SIDE**2, self.backbone.token_width).to(self.device)
        return Batch(media, torch.arange(count, device=self.device) * 3 % 20)


class Plain:
    """The whole sequence in the library's own forward pass, the prompt at the tail."""

    def __init__(self, backbone: GenerativeBackbone) -> None:
        """Embed what all examples share."""
        turn, tokenize = backbone.turn, backbone.tokenize
        self._backbone = backbone
        self._before = self._embedded([*backbone.start_ids, *tokenize(turn.before)])
        self._between = self._embedded(tokenize(turn.between + backbone.config.question))
        self._header = self._embedded(tokenize(turn.header))
        self._answers = torch.tensor([[*tokenize(" " + name), *backbone.end_ids] for name in NAMES])

    def gradients(self, context: Float[Tensor, "t e"], batch: Batch) -> Float[Tensor, "b t e"]:
        """Return each example's gradient of the loss of its own answer, all in one pass."""
        copies = context.expand(len(batch.labels), -1, -1).clone().requires_grad_()
        return torch.autograd.grad(-self._log_probs(copies, batch, batch.labels).sum(), copies)[0]

    def looped_gradients(self, context: Float[Tensor, "t e"], batch: Batch, num_names: int) -> Float[Tensor, "b t e"]:
        """Return each example's gradient of the cross-entropy over names, each of which goes forward and back alone."""
        copies = context.expand(len(batch.labels), -1, -1).clone().requires_grad_()
        scores, slopes = [], []
        for name in range(num_names):
            found = self._log_probs(copies, batch, torch.full_like(batch.labels, name))
            slopes.append(torch.autograd.grad(found.sum(), copies)[0])
            scores.append(found.detach())
        weights = torch.stack(scores, dim=1).softmax(dim=1) - F.one_hot(batch.labels, num_names)
        return torch.einsum("bc,cbte->bte", weights, torch.stack(slopes))

    @torch.no_grad()
    def looped_scores(self, context: Float[Tensor, "t e"], batch: Batch, num_names: int) -> Float[Tensor, "b c"]:
        """Return the scores of names, one pass for each."""
        copies = context.expand(len(batch.labels), -1, -1)
        each = [self._log_probs(copies, batch, torch.full_like(batch.labels, name)) for name in range(num_names)]
        return torch.stack(each, dim=1)

    def _log_probs(self, copies: Float[Tensor, "b t e"], batch: Batch, names: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return the mean log-likelihood of an answer a row."""
        answers, num = self._answers[names], len(copies)
        before, between, header = (each.expand(num, -1, -1) for each in (self._before, self._between, self._header))
        parts = [before, batch.image_features, between, copies, header, self._backbone.embed(answers[:, :-1])]
        network = self._backbone._network
        hidden = network.model(inputs_embeds=torch.cat(parts, dim=1), use_cache=False).last_hidden_state
        logits = network.get_output_embeddings()(hidden[:, -answers.shape[1] :].flatten(0, 1))
        return -F.cross_entropy(logits, answers.flatten(), reduction="none").unflatten(0, answers.shape).mean(dim=1)

    def _embedded(self, ids: list[int]) -> Float[Tensor, "l e"]:
        """Embed tokens."""
        return self._backbone.embed(torch.tensor(ids, dtype=torch.long))


def _network(shape: Shape, device: str, dtype: torch.dtype) -> Any:
    """Make a model with random weights and a small vision tower."""
    vision: dict[str, Any] = {"hidden_size": 32, "num_heads": 2, "num_attention_heads": 2}
    ids = {"image_token_id": _vocabulary().index("<image>")}
    if shape.section is SmolVLM:
        vision |= {"intermediate_size": 48, "num_hidden_layers": 1, "image_size": 16 * SIDE, "patch_size": 8}
        config = transformers.SmolVLMConfig(text_config=dict(shape.text), vision_config=vision, scale_factor=2, **ids)
    else:
        vision |= {"depth": 1, "embed_dim": 32, "hidden_size": shape.text["hidden_size"], "patch_size": 14}
        config = transformers.Qwen2VLConfig(text_config=dict(shape.text), vision_config=vision, **ids)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(0)
        network = getattr(transformers, shape.section.family.network)(config)
    network.set_attn_implementation("sdpa")
    return network.to(dtype).eval().requires_grad_(requires_grad=False)


def _vocabulary() -> list[str]:
    """Return all tokens."""
    return ["[UNK]", *PIECES, *WORDS, *COLORS, *NOUNS]


def _write_tokenizer(folder: Path, shape: Shape) -> None:
    """Write a tokenizer of whole words, and what the image processor needs."""
    known = {word: index for index, word in enumerate(_vocabulary())}
    backend = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(list(PIECES))
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>").save_pretrained(folder)
    kind = "SmolVLM" if shape.section is SmolVLM else "Qwen2VL"
    values = {"image_processor_type": f"{kind}ImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def _random(seed: int, *size: int) -> Tensor:
    """Draw numbers."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))
