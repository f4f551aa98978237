"""A transformers tokenizer as prompts need it: ids of a text alone, and what a full text begins and ends with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from hushprompt.errors import ConfigError, DataError

PROBE = "a"
"""A word that stands before a text whose form inside a sentence is asked for, and that shows start and end."""


class PromptTokenizer:
    """Splits texts into token ids, without start, end or padding."""

    def __init__(self, tokenizer: Any, clean: Callable[[str], str] = str) -> None:
        """Find out what the tokenizer puts around a text.

        Args:
            tokenizer: of transformers.
            clean: what is done to a text before; leading spaces need not survive it.

        Raises:
            DataError: it has no vocabulary, no end or no padding token.
        """
        self.tokenizer = tokenizer
        self._clean = clean
        inner, whole = self._ids(PROBE), list(tokenizer(clean(PROBE))["input_ids"])
        starts = [at for at in range(len(whole)) if inner and whole[at : at + len(inner)] == inner]
        end = starts[0] + len(inner) if starts else len(whole)
        # Where its files are missing, transformers makes a tokenizer without a vocabulary and says nothing.
        if set(inner) <= {tokenizer.unk_token_id} or not whole[end:] or tokenizer.pad_token_id is None:
            raise DataError(
                f"The {type(tokenizer).__name__} cannot spell {PROBE!r} or has no end or padding token. Its files are "
                "missing or not those of the model: put tokenizer.json (or vocab.json and merges.txt, or spiece.model) "
                "and tokenizer_config.json beside the weights."
            )
        self.start_ids: tuple[int, ...] = tuple(whole[: starts[0]])
        self.end_ids: tuple[int, ...] = tuple(whole[end:])
        self.pad_id: int = tokenizer.pad_token_id

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; one that begins with a space is spelled as behind another word.

        Raises:
            ConfigError: the tokenizer joins the text with the word before it, so it has no ids of its own.
        """
        if not text.startswith(" "):
            return self._ids(text)
        before, both = self._ids(PROBE), self._ids(f"{PROBE} {text.strip()}")
        if both[: len(before)] != before:
            raise ConfigError(f"The tokenizer joins {text.strip()!r} with the word before it. Use another name.")
        return both[len(before) :]

    def settings(self) -> dict[str, str]:
        """Return what decides the ids, for a fingerprint."""
        if hasattr(self.tokenizer, "backend_tokenizer"):
            model = self.tokenizer.backend_tokenizer.to_str().encode()
        else:
            model = self.tokenizer.sp_model.serialized_model_proto()
        return {
            "class": type(self.tokenizer).__name__,
            "model": hashlib.sha256(model).hexdigest(),
            "clean": getattr(self._clean, "__qualname__", ""),
            "around": f"{self.start_ids} {self.end_ids} {self.pad_id}",
            "lower_case": str(getattr(self.tokenizer, "do_lower_case", None)),
        }

    def _ids(self, text: str) -> list[int]:
        """Return the ids of a cleaned text, without anything around it."""
        return list(self.tokenizer(self._clean(text), add_special_tokens=False)["input_ids"])
