"""From a learnable context to text features of all classes.

The prompt of class y is `[start][context][name tokens of y][end]`, or with the name in the middle or in front of the
context (CoOp, Zhou et al. 2022, arXiv:2109.01134, section 3.2). The backbone declares start, end and padding. One
context serves all classes [t, e], or every class has its own [c, t, e].

Where the backbone is causal and can share a prefix, start and context are the same for all classes and never see the
names, so they are encoded once and each class adds only its name and end; that is exact up to rounding. All other
backbones and layouts take one sequence a class.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.errors import ConfigError
from hushprompt.models.base import Backbone, SharedPrefixBackbone, TextPass
from hushprompt.models.shared_prefix import SharedPrefix
from hushprompt.models.text_pass import AutogradPass, Encode
from hushprompt.prompts.cuda_graphs import RecordedPass, Recorder

NamePosition = Literal["end", "middle", "front"]
"""Where the class name stands: behind the context, between its halves, or before it."""
SEQUENCES_AT_ONCE = 32
"""Sequences of the hand template that go through the text tower together."""


@dataclass(frozen=True)
class Frame:
    """The embedded prompts of all classes, with padding in the place of the context."""

    tokens: Float[Tensor, "c l e"]
    context_index: Int[Tensor, "c t"]
    """Where each class's context vectors go."""
    end_index: Int[Tensor, " c"]


class PromptModel:
    """A frozen backbone that knows its classes: the only thing a method sees of the model.

    All methods are pure: the same context gives the same features.
    """

    def __init__(
        self,
        backbone: Backbone,
        class_names: tuple[str, ...],
        device: str = "cpu",
        memory_mb: int | None = None,
        *,
        records: bool = True,
    ) -> None:
        """Tokenize the class names once.

        Args:
            backbone: two frozen towers.
            class_names: names in label order.
            device: where the contexts will live.
            memory_mb: what the backward passes of one step may take; None: as much as they need.
            records: on a GPU, record the tower's kernels and replay them; False starts them one by one.

        Raises:
            ConfigError: a name has no token.
        """
        self.backbone = backbone
        self.class_names = class_names
        self.device = device
        self.memory_mb = memory_mb
        self._first_names = [backbone.tokenize(name) for name in class_names]
        self._later_names = [backbone.tokenize(f" {name}") for name in class_names]  # behind another word
        for name, ids in zip(class_names, self._later_names, strict=True):
            if not ids:
                raise ConfigError(
                    f"The class name {name!r} has no token under this tokenizer. Give it a name in words."
                )
        self._recorder = Recorder() if records and device == "cuda" else None
        self._frames: dict[tuple[int, NamePosition], Frame] = {}
        self._template_features: list[Tensor] = []  # one, once it is asked for
        self._lock = threading.Lock()
        self._shared_prefix: SharedPrefix | None = None
        if isinstance(backbone, SharedPrefixBackbone):
            self._shared_prefix = SharedPrefix(backbone, self._later_names, device)

    @property
    def num_classes(self) -> int:
        """Number of classes c."""
        return len(self.class_names)

    @property
    def token_width(self) -> int:
        """Width e of a context vector."""
        return self.backbone.token_width

    @property
    def logit_scale(self) -> float:
        """Factor on the cosine, after exp."""
        return self.backbone.logit_scale

    def check_context(self, num_ctx: int, name_position: NamePosition = "end") -> None:
        """Raise ConfigError, naming the class, if a prompt with `num_ctx` context tokens does not fit the window."""
        sequences = [self._sequence(label, num_ctx, name_position)[0] for label in range(self.num_classes)]
        self._check_fit(sequences, f"with num_ctx = {num_ctx}", "Use a smaller num_ctx or a shorter name.")

    def words(self, text: str, name_position: NamePosition) -> Float[Tensor, "t e"]:
        """Embed the words of a hand-written context, as they are spelled where the context stands."""
        spelled = text.strip() if name_position != "front" else f" {text.strip()}"
        return self._embed(self.backbone.tokenize(spelled))

    def text_features(
        self, context: Float[Tensor, "*c t e"], name_position: NamePosition = "end"
    ) -> Float[Tensor, "c d"]:
        """Encode the prompts of all classes; unit-norm, differentiable in the context.

        Args:
            context: [t, e] for all classes, or [c, t, e] with one for each.
            name_position: where the class name stands.
        """
        is_differentiated = torch.is_grad_enabled() and context.requires_grad
        if self._recorder is None or is_differentiated:
            return self._encode(context, name_position)
        return RecordedPass(self._recorder, name_position, self._encoder(name_position), context).features

    def _encode(self, context: Float[Tensor, "*c t e"], name_position: NamePosition) -> Float[Tensor, "c d"]:
        """Run the text tower."""
        if self._shared_prefix is not None and _can_share(context, name_position):
            return self._shared_prefix.encode(context)
        return self.backbone.encode_prompts(*self.plain_prompts(context, name_position))

    def _encoder(self, name_position: NamePosition) -> Encode:
        """Return the text tower as a function of the context alone."""
        return lambda context: self._encode(context, name_position)

    def text_pass(self, context: Float[Tensor, "*c t e"], name_position: NamePosition = "end") -> TextPass:
        """Encode the prompts of all classes, ready to give many gradients in the context at once.

        Args:
            context: [t, e] for all classes, or [c, t, e] with one for each.
            name_position: where the class name stands.
        """
        encode = self._encoder(name_position)
        if self._recorder is None:
            return AutogradPass(encode, context)
        return RecordedPass(self._recorder, name_position, encode, context)

    def num_tokens(self, context: Float[Tensor, "*c t e"], name_position: NamePosition = "end") -> int:
        """Count the tokens that the text tower reads for all classes."""
        if self._shared_prefix is not None and _can_share(context, name_position):
            return self._shared_prefix.num_tokens(len(context))
        return self._frame(context.shape[-2], name_position).tokens.shape[:2].numel()

    def plain_prompts(
        self, context: Float[Tensor, "*c t e"], name_position: NamePosition = "end"
    ) -> tuple[Float[Tensor, "c l e"], Int[Tensor, " c"]]:
        """Return one embedded sequence a class, padded, and where each one ends."""
        frame = self._frame(context.shape[-2], name_position)
        rows = torch.arange(self.num_classes, device=self.device)[:, None]
        each = context.expand(self.num_classes, -1, -1)
        return frame.tokens.index_put((rows, frame.context_index), each), frame.end_index

    def layout(self, context: Float[Tensor, "*c t e"], name_position: NamePosition = "end") -> str:
        """Say how a prompt is put together, for someone who wants to use a context without this package."""
        first = _num_before_name(context.shape[-2], name_position)
        parts = {
            "end": "[context][class name]",
            "middle": f"[first {first} vectors of the context][class name][rest of the context]",
            "front": "[class name][context]",
        }
        start = "[start]" if self.backbone.start_ids else ""
        padding = f"[padding up to {self.backbone.context_window} tokens]" if self.backbone.sees_padding else ""
        owner = ", one context for each class" if context.ndim == 3 else ""
        return f"{start}{parts[name_position]}[end]{padding}{owner}"

    @property
    def template_features(self) -> Float[Tensor, "c d"]:
        """Unit-norm features [c, d] of the backbone's hand template, with no learned context; computed once.

        Raises:
            ConfigError: a filled template does not fit the window.
        """
        with self._lock:
            if not self._template_features:
                self._template_features.append(self._encode_template())
            return self._template_features[0]

    def _encode_template(self) -> Float[Tensor, "c d"]:
        """Encode the hand template."""
        backbone = self.backbone
        texts = [backbone.tokenize(backbone.template.format(name)) for name in self.class_names]
        sequences = [[*backbone.start_ids, *ids, *backbone.end_ids] for ids in texts]
        self._check_fit(sequences, f"with the template {backbone.template!r}", "Use a shorter name or template.")
        parts = [sequences[first : first + SEQUENCES_AT_ONCE] for first in range(0, len(sequences), SEQUENCES_AT_ONCE)]
        return torch.cat([backbone.encode_prompts(*self._padded(part)) for part in parts])

    def logits(self, image_features: Float[Tensor, "n d"], text_features: Float[Tensor, "c d"]) -> Float[Tensor, "n c"]:
        """Cosine times the logit scale. A constant bias on all logits (SigLIP) would change no softmax."""
        return image_features @ (self.logit_scale * text_features).T

    def _frame(self, num_ctx: int, name_position: NamePosition) -> Frame:
        """Return the prompts around a context of `num_ctx` vectors."""
        key = (num_ctx, name_position)
        if key not in self._frames:
            self.check_context(num_ctx, name_position)
            pairs = [self._sequence(label, num_ctx, name_position) for label in range(self.num_classes)]
            tokens, ends = self._padded([ids for ids, _ in pairs])
            places = torch.tensor([places for _, places in pairs], dtype=torch.long, device=self.device)
            self._frames[key] = Frame(tokens, places, ends)
        return self._frames[key]

    def _sequence(self, label: int, num_ctx: int, name_position: NamePosition) -> tuple[list[int], list[int]]:
        """Return the token ids of one class's prompt, padding where the context goes, and the places of the context."""
        backbone, first = self.backbone, _num_before_name(num_ctx, name_position)
        name = self._later_names[label] if first or name_position == "end" else self._first_names[label]
        holes = [backbone.pad_id] * num_ctx
        ids = [*backbone.start_ids, *holes[:first], *name, *holes[first:], *backbone.end_ids]
        start = len(backbone.start_ids)
        places = [start + index + (len(name) if index >= first else 0) for index in range(num_ctx)]
        return ids, places

    def _padded(self, sequences: list[list[int]]) -> tuple[Float[Tensor, "c l e"], Int[Tensor, " c"]]:
        """Embed sequences, filled up as the backbone declares, and say where each one ends."""
        longest = max(len(ids) for ids in sequences)
        length = self.backbone.context_window if self.backbone.sees_padding else longest
        ends = torch.tensor([len(ids) - 1 for ids in sequences], device=self.device)
        filled = [[*ids, *[self.backbone.pad_id] * (length - len(ids))] for ids in sequences]
        return self.backbone.embed(torch.tensor(filled, device=self.device)), ends

    def _embed(self, ids: list[int]) -> Float[Tensor, "l e"]:
        """Embed a list of ids, which may be empty."""
        return self.backbone.embed(torch.tensor(ids, dtype=torch.long, device=self.device))

    def _check_fit(self, sequences: list[list[int]], what: str, advice: str) -> None:
        """Raise ConfigError for the class whose sequence is the longest, if it is longer than the window."""
        longest = max(range(self.num_classes), key=lambda label: len(sequences[label]))
        needed = len(sequences[longest])
        if needed > self.backbone.context_window:
            raise ConfigError(
                f"The prompt of class {self.class_names[longest]!r} needs {needed} tokens {what}, "
                f"but the text tower takes {self.backbone.context_window}. {advice}"
            )


def _can_share(context: Float[Tensor, "*c t e"], name_position: NamePosition) -> bool:
    """True if all prompts begin with one and the same context."""
    return name_position == "end" and context.ndim == 2


def _num_before_name(num_ctx: int, name_position: NamePosition) -> int:
    """Count the context vectors before the class name; CoOp halves them, rounding down."""
    return {"end": num_ctx, "middle": num_ctx // 2, "front": 0}[name_position]
