"""From a learnable context to text features of all classes: a frozen model that knows its classes.

Where the text tower is causal, start and context are the same for all classes and never see the names, so they are
encoded once and each class adds only its name and end; that is exact up to rounding. All other towers and layouts take
one sequence a class.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.errors import DataError
from hushprompt.models.base import Model, no_tower
from hushprompt.prompts.cuda_graphs import RecordedPass, Recorder
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.layout import NamePosition, PromptLayout
from hushprompt.prompts.prompted_model import LabeledExamples
from hushprompt.prompts.text_pass import AutogradPass, Encode, TextPass

LARGEST_LOGIT_SCALE = 1000.0
"""CLIP's is at most 100 and SigLIP's 118; where exp of the logarithm was taken once too often, it is about 1e43."""
SEQUENCES_AT_ONCE = 32
"""Sequences of the hand template that go through the text tower together."""


class PromptModel:
    """A frozen dual encoder that knows its classes: a `PromptedModel` whose scores are cosines with text features.

    All methods are pure: the same context gives the same features.
    """

    def __init__(
        self,
        backbone: Model,
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
        has_tower = backbone.capabilities.text == "tower"
        self._prompts = PromptLayout(backbone, class_names, device) if has_tower else None
        self._recorder = Recorder() if records and device == "cuda" else None
        self._template_features: list[Tensor] = []  # one, once it is asked for
        self._lock = threading.Lock()

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

    @property
    def _layout(self) -> PromptLayout:
        """The prompts of the classes; ConfigError where no tower could encode them."""
        if self._prompts is None:
            raise no_tower()
        return self._prompts

    def check_context(
        self, num_ctx: int, name_position: NamePosition = "end", *, is_class_specific: bool = False
    ) -> None:
        """Raise ConfigError, naming the class, if a prompt with `num_ctx` context tokens does not fit the window."""
        self._layout.check_context(num_ctx, name_position)

    @torch.no_grad()
    def check_scores(self) -> None:
        """Raise DataError unless the weights score every class: finite features of unit norm and a sane logit scale."""
        remedy = "The checkpoint is damaged or of another kind; get it again, or choose another backbone."
        if not 0 < self.logit_scale <= LARGEST_LOGIT_SCALE:
            raise DataError(
                f"The backbone's logit scale is {self.logit_scale:g}, and {LARGEST_LOGIT_SCALE:g} is the largest that "
                f"makes sense of a cosine. {remedy}"
            )
        if self._prompts is None:  # given text features were checked when they were read; here, that each class has one
            if self.backbone.capabilities.text == "features":
                self.backbone.class_features(self.class_names)
            return
        norms = self._encode(torch.zeros(1, self.token_width, device=self.device), "end").float().norm(dim=1)
        wrong = (~((norms - 1).abs() < 0.1)).nonzero().flatten().tolist()  # NaN is near nothing
        if wrong:
            raise DataError(
                f"The backbone's text tower gives no finite feature for {len(wrong)} of {self.num_classes} classes, "
                f"such as {self.class_names[wrong[0]]!r}, so nothing can be scored. {remedy}"
            )

    def words(self, text: str, name_position: NamePosition) -> Float[Tensor, "t e"]:
        """Embed the words of a hand-written context, as they are spelled where the context stands."""
        spelled = text.strip() if name_position != "front" else f" {text.strip()}"
        ids = torch.tensor(self.backbone.tokenize(spelled), dtype=torch.long, device=self.device)
        return self.backbone.embed(ids)

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

    def _encoder(self, name_position: NamePosition) -> Encode:
        """Return the text tower as a function of the context alone."""
        return lambda context: self._encode(context, name_position)

    def _encode(self, context: Float[Tensor, "*c t e"], name_position: NamePosition) -> Float[Tensor, "c d"]:
        if not self._shares_prefix(context, name_position):
            return self.backbone.encode_prompts(*self.plain_prompts(context, name_position))
        suffixes = self._layout.suffixes
        return self.backbone.encode_shared_prefix(suffixes.prefix(context), suffixes.groups)[suffixes.class_order]

    def _shares_prefix(self, context: Float[Tensor, "*c t e"], name_position: NamePosition) -> bool:
        """Return whether all prompts begin with one context, in a tower that can make use of it."""
        return self.backbone.capabilities.shares_prefix and name_position == "end" and context.ndim == 2

    def num_tokens(self, context: Float[Tensor, "*c t e"], name_position: NamePosition = "end") -> int:
        """Return the number of tokens that the text tower takes for all classes."""
        if self._shares_prefix(context, name_position):
            return self._layout.suffixes.num_tokens(len(context))
        return self._layout.frame(context.shape[-2], name_position).tokens.shape[:2].numel()

    def plain_prompts(
        self, context: Float[Tensor, "*c t e"], name_position: NamePosition = "end"
    ) -> tuple[Float[Tensor, "c l e"], Int[Tensor, " c"]]:
        """Return one embedded sequence a class, padded, and where each one ends."""
        return self._layout.fill(context, name_position)

    def gradients(
        self, context: Float[Tensor, "*c t e"], batch: LabeledExamples, name_position: NamePosition = "end"
    ) -> tuple[Float[Tensor, "b *c t e"], Float[Tensor, " b"]]:
        """Return each example's cross-entropy gradient in a context, and its loss; see `per_example_gradients`."""
        return per_example_gradients(self, context, batch.image_features, batch.labels, name_position)

    def scores(
        self,
        context: Float[Tensor, "*c t e"],
        image_features: Float[Tensor, "n d"],
        name_position: NamePosition = "end",
    ) -> Float[Tensor, "n c"]:
        """Score images with a context in its place."""
        return self.logits(image_features, self.text_features(context, name_position))

    def template_scores(self, image_features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Score images with the hand template."""
        return self.logits(image_features, self.template_features)

    def text_features_fn(
        self, context: Float[Tensor, "*c t e"], name_position: NamePosition = "end"
    ) -> Callable[[], Float[Tensor, "c d"]]:
        """Return what encodes the prompts of all classes."""
        return lambda: self.text_features(context, name_position)

    def layout(self, context: Float[Tensor, "*c t e"], name_position: NamePosition = "end") -> str:
        """Say how a prompt is put together, for someone who wants to use a context without this package."""
        return self._layout.describe(context, name_position)

    @property
    def template_features(self) -> Float[Tensor, "c d"]:
        """Unit-norm features [c, d] of the backbone's hand template, with no learned context; computed once.

        A backbone without a text tower has them given.

        Raises:
            ConfigError: a filled template does not fit the window, or there is no text feature of a class.
        """
        with self._lock:
            if not self._template_features:
                self._template_features.append(self._encode_template())
            return self._template_features[0]

    def _encode_template(self) -> Float[Tensor, "c d"]:
        backbone = self.backbone
        if self._prompts is None:
            return backbone.class_features(self.class_names)
        texts = [backbone.tokenize(backbone.template.format(name)) for name in self.class_names]
        sequences = [[*backbone.start_ids, *ids, *backbone.end_ids] for ids in texts]
        self._layout.check_fit(sequences, f"with the template {backbone.template!r}", "Use a shorter name or template.")
        parts = [sequences[first : first + SEQUENCES_AT_ONCE] for first in range(0, len(sequences), SEQUENCES_AT_ONCE)]
        return torch.cat([backbone.encode_prompts(*self._layout.padded(part)) for part in parts])

    @property
    def template_origin(self) -> str:
        """Say where `template_features` come from."""
        return f"hand template {self.backbone.template!r}" if self._prompts else "the text features that were given"

    def logits(self, image_features: Float[Tensor, "n d"], text_features: Float[Tensor, "c d"]) -> Float[Tensor, "n c"]:
        """Cosine times the logit scale. A constant bias on all logits (SigLIP) would change no softmax."""
        return image_features @ (self.logit_scale * text_features).T
