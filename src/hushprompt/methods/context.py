"""What methods with a context share: its shape, its start, its place in the prompt.

Source: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv:2109.01134), section 3.2.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.errors import ConfigError
from hushprompt.methods.base import AnyModel, Batch, Personal, Published, Shared
from hushprompt.methods.class_statistics import ClassStatistics
from hushprompt.methods.linear_head import ReleasedSums
from hushprompt.models.base import FeatureKind
from hushprompt.prompts.layout import NamePosition
from hushprompt.prompts.optimizer import Optimizer, OptimizerState
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.prompts.prompted_model import PromptedModel


@dataclass(frozen=True)
class ContextState:
    """A context and the state of the optimizer that moves it."""

    context: Float[Tensor, "*c t e"]
    optimizer: OptimizerState


StateT = TypeVar("StateT", bound=ContextState)


@runtime_checkable
class HasContext(Protocol):
    """A method whose clients use one context each."""

    name_position: NamePosition

    def context(self, shared: Shared, personal: Personal) -> Float[Tensor, "*c t e"]:
        """Return the context that a client uses and may publish."""


@runtime_checkable
class SharesContext(HasContext, Protocol):
    """A method that may also share one with everybody."""

    def shared_context(self, shared: Shared) -> Float[Tensor, "*c t e"] | None:
        """Return the context that the public sees; None where nothing is shared."""


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """The fields of the `method` section that say what a context is, and what follows from there being one."""

    feature_kind: ClassVar[FeatureKind] = "pooled"
    payload: ClassVar[tuple[str, ...]] = ("context",)

    num_ctx: int = 16
    """Number of context tokens t; CoOp's default."""
    init_std: float = 0.02
    """Standard deviation of the Gaussian start, in embedding units."""
    init_words: str = ""
    """Words that a context starts from, such as "a photo of a"; num_ctx must be their number of tokens. Empty: the
    Gaussian start."""
    name_position: NamePosition = "end"
    """Where the class name stands: "end" behind the context, "middle" between its halves, "front" before it."""
    is_class_specific: bool = False
    """True gives every class a context of its own [c, t, e]; False has one [t, e] for all classes."""

    def __post_init__(self) -> None:
        checks.positive(num_ctx=self.num_ctx, init_std=self.init_std)

    def begin_round(self, shared: Shared) -> Shared:
        """Return the state as it is: no step needs the start of its round."""
        return shared

    def public_file(self: SharesContext, model: AnyModel, shared: Shared) -> Published | None:
        """Return the shared context."""
        context = self.shared_context(shared)
        return None if context is None else published(model, context, self.name_position)

    def personal_file(self: HasContext, model: AnyModel, shared: Shared, personal: Personal) -> Published | None:
        """Return the client's context."""
        return published(model, self.context(shared, personal), self.name_position)

    def logits(
        self: HasContext,
        model: AnyModel,
        shared: Shared,
        personal: Personal,
        image_features: Float[Tensor, "n *m d"],
    ) -> Float[Tensor, "n c"]:
        """Score images with the client's context."""
        return model.scores(self.context(shared, personal), image_features, self.name_position)

    def first_context(self, model: PromptedModel, rng: np.random.Generator) -> Float[Tensor, "*c t e"]:
        """Return the context before training: the words, or a Gaussian draw; data-independent.

        Raises:
            ConfigError: a prompt would not fit the window, or num_ctx is not the number of the words' tokens.
        """
        return self._words(model) if self.init_words else self.draw(model, rng)

    def draw(self, model: PromptedModel, rng: np.random.Generator) -> Float[Tensor, "*c t e"]:
        """Draw a context ~ N(0, init_std^2); ConfigError if a prompt would not fit the window."""
        model.check_context(self.num_ctx, self.name_position, is_class_specific=self.is_class_specific)
        return gaussian(self._shape(model), self.init_std, rng).to(model.device)

    def text_features(self, model: PromptModel, context: Float[Tensor, "*c t e"]) -> Float[Tensor, "c d"]:
        """Encode the prompts of all classes with a context in its place."""
        return model.text_features(context, self.name_position)

    def gradients(
        self, model: PromptedModel, context: Float[Tensor, "*c t e"], batch: Batch
    ) -> tuple[Float[Tensor, "b *c t e"], Float[Tensor, " b"]]:
        """Return each example's gradient in a context, and its loss."""
        return model.gradients(context, batch, self.name_position)

    def _words(self, model: PromptedModel) -> Float[Tensor, "*c t e"]:
        """Embed the initial words, once for each context."""
        words = model.words(self.init_words, self.name_position)
        if len(words) != self.num_ctx:
            raise ConfigError(
                f"method.init_words = {self.init_words!r} has {len(words)} token(s) under this tokenizer, but "
                f"method.num_ctx is {self.num_ctx}. Set num_ctx = {len(words)}, or use other words."
            )
        model.check_context(self.num_ctx, self.name_position, is_class_specific=self.is_class_specific)
        return words.expand(self._shape(model)).clone()

    def _shape(self, model: PromptedModel) -> tuple[int, ...]:
        """Return [t, e] or [c, t, e]."""
        each = (self.num_ctx, model.token_width)
        return (model.num_classes, *each) if self.is_class_specific else each


def published(model: PromptedModel, context: Float[Tensor, "*c t e"], name_position: NamePosition) -> Published:
    """Pair a context with the layout of its prompt, and its text features."""
    layout = model.layout(context, name_position)
    return Published({"context": context}, layout, model.text_features_fn(context, name_position))


@dataclass(frozen=True, kw_only=True)
class SharedContextConfig(ContextConfig):
    """Base of methods whose shared state is a context, `shared.context`, which may start from class statistics."""

    start: Literal["public", "class_statistics"] = "public"
    """Where the shared context starts: "public", as init_words and init_std say; or "class_statistics", fitted to a
    private release of class statistics, which is made once, of every example, before the first round."""
    start_share: float = 0.8
    """Share of the budget (of 1/z^2) that the release of class statistics gets, in (0, 1)."""
    start_metric: str = "auto"
    """File of the backbone's public metric, as `metric` of class_statistics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.start_share < 1:
            raise ConfigError(
                f"method.start_share must lie in (0, 1), got {self.start_share}. To train without the release, set "
                'method.start = "public"; to release and not train, use method.name = "class_statistics".'
            )

    def first_release(self) -> ClassStatistics | None:
        """Return the release that the shared context starts from; None where it knows no data."""
        if self.start == "public":
            return None
        form: Literal["contexts", "shared_context"] = "contexts" if self.is_class_specific else "shared_context"
        return ClassStatistics(form=form, metric=self.start_metric)

    def started(self, model: PromptModel, shared: StateT, release: ClassStatistics, released: ReleasedSums) -> StateT:
        """Return the shared state with its context fitted to the released statistics: post-processing."""
        context = release.fitted(model, released, shared.context, self.name_position)
        return dataclasses.replace(shared, context=context)


@dataclass(frozen=True, kw_only=True)
class GlobalAndPersonalConfig(SharedContextConfig):
    """Base of methods that train a global prompt, `shared.context`, and a personal one."""

    global_optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimizer of the global prompt."""
    local_optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimizer of the personal prompt; every client has its own state."""

    def server_step(self, shared: ContextState, released: Float[Tensor, "*c t e"]) -> ContextState:
        """Step the global prompt with the released mean gradient."""
        return ContextState(*self.global_optimizer.step(shared.context, released, shared.optimizer))

    def shared_context(self, shared: ContextState) -> Float[Tensor, "*c t e"]:
        """Return the global prompt."""
        return shared.context


@dataclass(frozen=True, kw_only=True)
class PromptSumConfig(GlobalAndPersonalConfig):
    """Base of methods whose clients use the sum of a global and a personal prompt."""

    def init(self, model: AnyModel, rng: np.random.Generator) -> tuple[ContextState, Any]:
        """Return the start of the global prompt, and draw the one start of all personal prompts.

        Initial words are the global prompt's alone: the two are added up.
        """
        shared = fresh(self.first_context(model, rng), self.global_optimizer)
        return shared, fresh(self.draw(model, rng), self.local_optimizer)

    def context(self, shared: ContextState, personal: Any) -> Float[Tensor, "*c t e"]:
        """Return the sum of global and personal prompt."""
        total: Tensor = shared.context + personal.context
        return total

    def check_rank(self, model: PromptedModel, rank: int) -> None:
        """Raise ConfigError if factors of this rank would be wider than a personal prompt."""
        num_rows = self.num_ctx * (model.num_classes if self.is_class_specific else 1)
        widest = min(num_rows, model.token_width)
        if rank > widest:
            rows = "num_classes * num_ctx" if self.is_class_specific else "num_ctx"
            raise ConfigError(
                f"method.rank must be at most min({rows}, token width) = min({num_rows}, {model.token_width}) = "
                f"{widest}, got {rank}. Use a smaller rank."
            )


def gaussian(shape: tuple[int, ...], std: float, rng: np.random.Generator) -> Float[Tensor, "*p"]:
    """Draw a start ~ N(0, std^2); not privacy noise."""
    return torch.from_numpy(rng.normal(0.0, std, size=shape)).float()


def fresh(context: Float[Tensor, "*c t e"], optimizer: Optimizer) -> ContextState:
    """Pair a context with the state of an optimizer that has not moved it yet."""
    return ContextState(context, optimizer.init(context))


def mean_loss(losses: Float[Tensor, " b"]) -> float:
    """Return the mean loss of a batch, NaN for an empty one. Not private."""
    return float(losses.mean())
