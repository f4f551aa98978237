"""From a frozen backbone and class names to what methods see."""

from __future__ import annotations

from hushprompt.models.base import Model
from hushprompt.models.generative import GenerativeBackbone
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.prompts.prompted_model import PromptedModel


def prompted(
    backbone: Model,
    class_names: tuple[str, ...],
    device: str = "cpu",
    memory_mb: int | None = None,
    prefix_cache_mb: int = 0,
) -> PromptedModel:
    """Return a backbone that knows its classes.

    Args:
        backbone: two frozen towers, or a generative model.
        class_names: names in label order.
        device: where the contexts will live.
        memory_mb: what the backward passes of one step may take; None: as much as they need.
        prefix_cache_mb: what a generative model may keep of examples; see `runtime.prefix_cache_mb`.

    Raises:
        ConfigError: a name has no token.
    """
    if isinstance(backbone, GenerativeBackbone):
        return GenerativeModel(backbone, class_names, device, memory_mb, prefix_cache_mb)
    return PromptModel(backbone, class_names, device, memory_mb)
