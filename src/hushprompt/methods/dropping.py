"""The option to drop (example, class) pairs that hardly matter, for methods whose loss sees one context."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hushprompt.errors import ConfigError
from hushprompt.methods.base import Batch
from hushprompt.methods.context import ContextConfig
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel


@dataclass(frozen=True, kw_only=True)
class DroppingConfig(ContextConfig):
    """The field of the `method` section that trades exact gradients for speed, and the gradients."""

    drop_below: float = 0.0
    """Drop (example, class) pairs whose |probability - label| is smaller, before clipping; 0 drops none. What is
    clipped is still a function of one example alone, so the guarantee is the same; the gradient is no longer exact.
    Only the embedded model gets faster by it. 0.01 is a start; see docs/fast-path.md."""

    def __post_init__(self) -> None:
        """Check the field."""
        super().__post_init__()
        if not 0 <= self.drop_below < 1:
            raise ConfigError(
                f"drop_below must lie in [0, 1), got {self.drop_below}. It is compared with probabilities; 0 drops "
                "nothing."
            )

    def gradients(
        self, model: PromptModel, context: Float[Tensor, "*c t e"], batch: Batch
    ) -> tuple[Float[Tensor, "b *c t e"], Float[Tensor, " b"]]:
        """Return each example's gradient and loss; see `per_example_gradients`."""
        return per_example_gradients(model, context, batch, self.name_position, drop_below=self.drop_below)
