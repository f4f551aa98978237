"""The text towers of open_clip, from embedded prompts to features.

open_clip encodes token ids alone. These classes do what its `encode_text` does after the embedding, with its own
modules: positions, blocks, final norm, pooling, projection.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hushprompt.errors import ConfigError
from hushprompt.models.causal_tower import CausalBlock, CausalTower, ClassToken, fused_maps
from hushprompt.models.transformers_tokenizer import PromptTokenizer


class BytePairs:
    """open_clip's own tokenizer, CLIP's byte pairs; spaces only part words."""

    pad_id = 0

    def __init__(self, tokenizer: Any) -> None:
        """Wrap a SimpleTokenizer."""
        self._tokenizer = tokenizer
        self.start_ids: tuple[int, ...] = (tokenizer.sot_token_id,)
        self.end_ids: tuple[int, ...] = (tokenizer.eot_token_id,)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ids: list[int] = self._tokenizer.encode(text)
        return ids

    def settings(self) -> dict[str, str]:
        """Return what decides the ids."""
        tokenizer = self._tokenizer
        merges = " ".join(f"{left},{right}" for left, right in tokenizer.bpe_ranks)
        return {"vocabulary": " ".join(tokenizer.encoder), "merges": merges, "clean": tokenizer.clean_fn.__qualname__}


class PlainAttention(nn.Module):
    """nn.MultiheadAttention, computed by matrix products that keep the heads where they are."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        """Wrap a module, whose weights are shared."""
        super().__init__()
        assert attention.batch_first
        assert attention.in_proj_weight is not None, "keys and values are as wide as queries"
        self.attention = attention

    def forward(
        self,
        query: Float[Tensor, "n m e"],
        key: Float[Tensor, "n l e"],
        value: Float[Tensor, "n l e"],
        *,
        need_weights: bool = False,
        attn_mask: Float[Tensor, "*nh m l"] | None = None,
    ) -> tuple[Float[Tensor, "n m e"], None]:
        """Attend; the mask is added to the scores, one for all or one for each sequence and head."""
        module = self.attention
        weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )  # [n, h, l, f]
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        if attn_mask is not None:
            scores = scores + (attn_mask if attn_mask.ndim == 2 else attn_mask.view_as(scores))
        mixed: Tensor = module.out_proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
        return mixed, None


class OwnTower:
    """open_clip's own transformer: CLIP, MobileCLIP, SigLIP, and CoCa with its class token behind the text."""

    def __init__(self, model: Any, pad_id: int) -> None:
        """Find the tower's parts: in CLIP they lie in the model itself, elsewhere in `model.text`."""
        self._text = getattr(model, "text", model)
        self._pool: str = getattr(self._text, "pool_type", None) or self._text.text_pool_type
        self._class_token: Tensor | None = getattr(self._text, "cls_emb", None)
        self._pad_id = pad_id
        self.embedding: nn.Embedding = self._text.token_embedding
        is_causal = self._text.attn_mask is not None
        self.sees_padding = not is_causal or self._pool == "last" or self._class_token is not None
        self._is_causal = is_causal and (self._class_token is not None or self._pool in ("argmax", "eos"))
        if self._pool not in ("first", "last", "argmax", "eos"):
            raise ConfigError(
                f"A text tower with the pooling {self._pool!r} gives no single feature. Use another model."
            )

    def encode(self, prompts: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """Return features, not normalized."""
        text, length = self._text, prompts.shape[1]
        mask = None if text.attn_mask is None else text.attn_mask[:length, :length]
        if self._class_token is None:
            x = text.transformer(prompts + text.positional_embedding[:length], attn_mask=mask)
            pooled = self._pooled(text.ln_final(x), end_index)
        else:
            x = torch.cat([prompts, self._class_token.expand(len(prompts), 1, -1)], dim=1)
            x = text.transformer(x + text.positional_embedding[: length + 1], attn_mask=self._class_mask(x, end_index))
            pooled = text.ln_final(x[:, -1])
        return self._projected(pooled)

    def causal_tower(self, dtype: torch.dtype) -> CausalTower | None:
        """Return the tower as one that computes a shared prefix once; None if texts see what follows them."""
        if not self._is_causal:
            return None
        text = self._text

        def embed(tokens: Float[Tensor, "n e"], positions: Int[Tensor, " n"]) -> Float[Tensor, "n e"]:
            embedded: Tensor = tokens.to(dtype) + text.positional_embedding[positions]
            return embedded

        blocks = tuple(_causal_block(block) for block in text.transformer.resblocks)
        return CausalTower(embed, blocks, lambda x: self._projected(text.ln_final(x)), self._end())

    def _end(self) -> ClassToken | None:
        """Return what follows the text, in a tower that has a class token."""
        if self._class_token is None:
            return None
        padding = None if self._text.correct_cls_mask else self.embedding.weight[self._pad_id]
        return ClassToken(self._class_token, self._text.context_length, padding)

    def unfuse(self) -> None:
        """Compute attention by plain matrix products."""
        for block in self._text.transformer.resblocks:
            if not isinstance(block.attn, nn.MultiheadAttention):
                raise ConfigError(
                    "Text towers with open_clip's custom attention blocks (block_type, qk_norm, scale_attn, ...) are "
                    "not supported; none of its own architectures has them. Use another architecture."
                )
            block.attn = PlainAttention(block.attn)

    def _pooled(self, x: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c e"]:
        """Take one position; both "argmax" and "eos" find the end token by its id."""
        if self._pool in ("first", "last"):
            return x[:, 0 if self._pool == "first" else -1]
        return x[torch.arange(len(x), device=x.device), end_index]

    def _projected(self, pooled: Float[Tensor, "c e"]) -> Float[Tensor, "c d"]:
        """Apply the projection, of which there are two kinds, or none."""
        projection = self._text.text_projection
        if projection is None:
            return pooled
        projected: Tensor = projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
        return projected

    def _class_mask(self, x: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Tensor:
        """Return CoCa's mask: causal, and blind to padding in the way its weights were trained with."""
        is_text = torch.arange(x.shape[1] - 1, device=x.device) <= end_index[:, None]
        stand_in = torch.where(is_text, self._pad_id + 1, self._pad_id)  # only whether an id is padding matters
        mask: Tensor = self._text.attn_mask + self._text._build_additive_mask(stand_in, x.shape[1], x.dtype)
        return mask


class HubTower:
    """A transformers encoder inside open_clip (RoBERTa, XLM-R, mT5, NLLB); padding is masked."""

    sees_padding = False

    def __init__(self, text: Any) -> None:
        """Take an HFTextEncoder."""
        self._text = text
        self.embedding: nn.Embedding = text.transformer.get_input_embeddings()

    def encode(self, prompts: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """Return features, not normalized."""
        mask = (torch.arange(prompts.shape[1], device=prompts.device) <= end_index[:, None]).long()
        output = self._text.transformer(inputs_embeds=prompts, attention_mask=mask)
        projected: Tensor = self._text.proj(self._text.pooler(output, mask))
        return projected

    def causal_tower(self, dtype: torch.dtype) -> None:
        """Return None: these towers read texts in both directions."""

    def unfuse(self) -> None:
        """Compute attention by plain matrix products."""
        self._text.transformer.set_attn_implementation("eager")


def _causal_block(block: Any) -> CausalBlock:
    """Return one of open_clip's blocks, whose attention is `PlainAttention`, as functions of tokens."""
    attention = block.attn.attention

    def rest(x: Float[Tensor, "n e"], mixed: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
        x = x + block.ls_1(attention.out_proj(mixed))
        output: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
        return output

    maps = fused_maps(attention.in_proj_weight, attention.in_proj_bias, attention.num_heads)
    return CausalBlock(attention.num_heads, block.ln_1, *maps, rest)


def text_tower(model: Any, pad_id: int) -> OwnTower | HubTower:
    """Return the kind of tower that a model has."""
    text = getattr(model, "text", model)
    return HubTower(text) if hasattr(text, "pooler") else OwnTower(model, pad_id)


def prompt_tokenizer(tokenizer: Any) -> BytePairs | PromptTokenizer:
    """Wrap what `open_clip.get_tokenizer` gives."""
    if hasattr(tokenizer, "bpe_ranks"):
        return BytePairs(tokenizer)
    if tokenizer.tokenizer_mode:
        raise ConfigError(f"The tokenizer mode {tokenizer.tokenizer_mode!r} of open_clip is not supported here.")
    prompts = PromptTokenizer(tokenizer.tokenizer, clean=tokenizer.clean_fn)
    if tokenizer.strip_sep_token:  # CLIPA: the separator is replaced by 0
        separator = tokenizer.tokenizer.sep_token_id
        prompts.end_ids = tuple(0 if token == separator else token for token in prompts.end_ids)
    return prompts
