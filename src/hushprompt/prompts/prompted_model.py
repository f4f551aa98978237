"""What a method sees of a frozen model that it learns a prompt for, whatever the model is.

Two implementations: `prompt_model.PromptModel`, two towers whose features are compared, and
`generative_model.GenerativeModel`, a language model that reads an image's or sound's tokens and answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.prompts.layout import NamePosition
from hushprompt.prompts.texts import TextTokens


@runtime_checkable
class LabeledExamples(Protocol):
    """Some examples with their labels, as a batch has them."""

    @property
    def image_features(self) -> Float[Tensor, "b *m d"]:
        """What is kept of each image or sound: one feature, one a patch, or the tokens that a language model reads."""

    @property
    def labels(self) -> Int[Tensor, " b"]:
        """Classes."""

    @property
    def texts(self) -> TextTokens | None:
        """Question and answer of each, as tokens; None in classification."""


@runtime_checkable
class PromptedModel(Protocol):
    """A frozen model that knows its classes. All its functions are pure: the same context gives the same scores."""

    backbone: Any
    class_names: tuple[str, ...]
    """In label order."""
    device: str
    """Where the contexts live."""
    memory_mb: int | None
    """What the backward passes of one step may take; None: as much as they need."""

    @property
    def num_classes(self) -> int:
        """Number of classes c."""

    @property
    def token_width(self) -> int:
        """Width e of a context vector."""

    @property
    def logit_scale(self) -> float:
        """Factor on the cosine; 1 where scores are no cosines."""

    def check_context(self, num_ctx: int, name_position: NamePosition, *, is_class_specific: bool = False) -> None:
        """Raise ConfigError if a prompt with `num_ctx` context tokens does not fit the model."""

    def check_scores(self) -> None:
        """Raise DataError unless the weights score every class."""

    def words(self, text: str, name_position: NamePosition) -> Float[Tensor, "t e"]:
        """Embed the words of a hand-written context."""

    def layout(self, context: Float[Tensor, "*c t e"], name_position: NamePosition) -> str:
        """Say how a prompt is put together, for someone who wants to use a context without this package."""

    def gradients(
        self, context: Float[Tensor, "*c t e"], batch: LabeledExamples, name_position: NamePosition
    ) -> tuple[Float[Tensor, "b *c t e"], Float[Tensor, " b"]]:
        """Return each example's gradient of the loss in the context, and its loss; b may be 0, neither is private.

        Guarantee: row x is a function of the context and of example x alone, up to rounding.
        """

    def scores(
        self, context: Float[Tensor, "*c t e"], image_features: Float[Tensor, "n *m d"], name_position: NamePosition
    ) -> Float[Tensor, "n c"]:
        """Score examples against all classes with a context in its place."""

    def template_scores(self, image_features: Float[Tensor, "n *m d"]) -> Float[Tensor, "n c"]:
        """Score examples with what is written by hand, and no learned context."""

    def text_features_fn(
        self, context: Float[Tensor, "*c t e"], name_position: NamePosition
    ) -> Callable[[], Float[Tensor, "c d"]] | None:
        """Return what computes the text features whose products with an image's feature are the scores.

        None where scores are no such products.
        """
