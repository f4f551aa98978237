"""From a learnable context to text features of all classes.

The prompt of class y is `[start][context][name tokens of y][end]`. In a causal text tower start and context are the
same for all classes and never see the names, so they are encoded once and each class adds only its name and end; that
is exact up to rounding. Other towers take one sequence a class.
"""

from __future__ import annotations

import functools
import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.backbones.base import Backbone
from hushprompt.errors import ConfigError


class PromptModel:
    """A frozen backbone that knows its classes: the only thing a method sees of the model.

    All methods are pure: the same context gives the same features.
    """

    def __init__(self, backbone: Backbone, class_names: tuple[str, ...], device: str = "cpu") -> None:
        """Tokenize the class names once.

        Args:
            backbone: two frozen towers.
            class_names: names in label order.
            device: where the contexts will live.
        """
        self.backbone = backbone
        self.class_names = class_names
        self.device = device
        self._start = backbone.embed(torch.tensor([backbone.start_id], device=device))
        self._suffixes = [
            backbone.embed(torch.tensor([*backbone.tokenize(name), backbone.end_id], device=device))
            for name in class_names
        ]  # c of [s, e]
        lengths = [len(suffix) for suffix in self._suffixes]
        by_length = sorted(range(len(lengths)), key=lambda label: lengths[label])  # stable
        self._groups = [
            torch.stack([self._suffixes[label] for label in labels])
            for _, labels in itertools.groupby(by_length, key=lambda label: lengths[label])
        ]  # [count, length, e] for each length
        self._class_order = torch.tensor(by_length, device=device).argsort()

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

    def check_context(self, num_ctx: int) -> None:
        """Raise ConfigError, naming the class, if a prompt with `num_ctx` context tokens does not fit the window."""
        longest = max(range(self.num_classes), key=lambda label: len(self._suffixes[label]))
        needed = 1 + num_ctx + len(self._suffixes[longest])
        if needed > self.backbone.context_window:
            raise ConfigError(
                f"The prompt of class {self.class_names[longest]!r} needs {needed} tokens with num_ctx = {num_ctx}, "
                f"but the text tower takes {self.backbone.context_window}. Use a smaller num_ctx or a shorter name."
            )

    def text_features(self, context: Float[Tensor, "t e"]) -> Float[Tensor, "c d"]:
        """Encode the prompts of all classes with one context; unit-norm, differentiable in the context."""
        if not self.backbone.is_causal:
            return self.backbone.encode_prompts(*self.plain_prompts(context))
        prefix = torch.cat([self._start, context])
        return self.backbone.encode_shared_prefix(prefix, self._groups)[self._class_order]

    def plain_prompts(self, context: Float[Tensor, "t e"]) -> tuple[Float[Tensor, "c l e"], Int[Tensor, " c"]]:
        """Give one embedded sequence a class, padded with end tokens, and where each one ends."""
        longest = max(len(suffix) for suffix in self._suffixes)
        padded = [torch.cat([suffix, suffix[-1:].expand(longest - len(suffix), -1)]) for suffix in self._suffixes]
        prompts = torch.stack([torch.cat([self._start, context, suffix]) for suffix in padded])
        ends = [len(context) + len(suffix) for suffix in self._suffixes]
        return prompts, torch.tensor(ends, device=self.device)

    @functools.cached_property
    def template_features(self) -> Float[Tensor, "c d"]:
        """Unit-norm features [c, d] of the backbone's hand template, with no learned context."""
        features = []
        for name in self.class_names:
            ids = self.backbone.tokenize(self.backbone.template.format(name))
            tokens = torch.tensor([self.backbone.start_id, *ids, self.backbone.end_id], device=self.device)
            end = torch.tensor([len(tokens) - 1], device=self.device)
            features.append(self.backbone.encode_prompts(self.backbone.embed(tokens)[None], end))
        return torch.cat(features)

    def logits(self, image_features: Float[Tensor, "n d"], text_features: Float[Tensor, "c d"]) -> Float[Tensor, "n c"]:
        """Cosine times the logit scale."""
        return self.logit_scale * image_features @ text_features.T
