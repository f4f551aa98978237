"""Base of methods that score an image by two prompts, a global and a personal one, without adding them up.

Each prompt has text features of its own, so an example has one gradient in each; that of the personal prompt is
released on the client, that of the global prompt over all clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.methods.base import Batch, Published, Scorer, StepInfo, Upload
from hushprompt.methods.context import ContextState, GlobalAndPersonalConfig, fresh, mean_loss, published
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.prompts.gradients import TextFeatures, gradients_in_contexts
from hushprompt.prompts.prompt_model import PromptModel


@dataclass(frozen=True, kw_only=True)
class PromptPairConfig(GlobalAndPersonalConfig):
    """A subclass says how two sets of text features score images, and how its files are to be used."""

    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.LOCAL, Channel.GLOBAL})

    def scores(
        self, model: PromptModel, text_features: TextFeatures, image_features: Float[Tensor, "n *m d"]
    ) -> Float[Tensor, "n c"]:
        """Score images by the text features of the global and of the personal prompt, each image on its own."""
        raise NotImplementedError

    def how_to_score(self) -> str:
        """Return the sentence of a prompt file that says how to score with it."""
        raise NotImplementedError

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[ContextState, ContextState]:
        """Return the start of the global prompt and the one start of all personal prompts: words, or two draws."""
        shared = fresh(self.first_context(model, rng), self.global_optimizer)
        return shared, fresh(self.first_context(model, rng), self.local_optimizer)

    def client_step(
        self,
        model: PromptModel,
        shared: ContextState,
        personal: ContextState,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, ContextState, StepInfo]:
        """Release the noisy gradient in the personal prompt and step it; upload the clipped sum for the global one."""

        def logits(text_features: TextFeatures, image: Float[Tensor, "*m d"]) -> Float[Tensor, " c"]:
            return self.scores(model, text_features, image[None])[0]

        contexts = (shared.context, personal.context)
        (of_shared, of_personal), losses = gradients_in_contexts(
            model, contexts, logits, batch.image_features, batch.labels, self.name_position
        )
        released = mechanism.release(Channel.LOCAL, mechanism.clip(Channel.LOCAL, of_personal))
        stepped = ContextState(*self.local_optimizer.step(personal.context, released.value, personal.optimizer))
        return (
            Upload(mechanism.clip(Channel.GLOBAL, of_shared)),
            stepped,
            StepInfo(mean_loss(losses), released.next_norms),
        )

    def public_file(self, model: PromptModel, shared: ContextState) -> Published:
        """Return the global prompt."""
        return published(model, shared.context, self.name_position)

    def personal_file(self, model: PromptModel, shared: ContextState, personal: ContextState) -> Published:
        """Return both prompts of a client, and how they score together."""
        layout = model.layout(shared.context, self.name_position)
        tensors = {"global_context": shared.context, "local_context": personal.context}
        return Published(tensors, f"{layout}, once with each context; {self.how_to_score()}")

    def logits(
        self, model: PromptModel, shared: ContextState, personal: ContextState, image_features: Float[Tensor, "n *m d"]
    ) -> Float[Tensor, "n c"]:
        """Score images with both prompts of a client."""
        both = (self.text_features(model, shared.context), self.text_features(model, personal.context))
        return self.scores(model, both, image_features)

    def file_scorer(self, model: PromptModel, tensors: Mapping[str, Tensor]) -> Scorer:
        """Return what scores images with the contexts of a file: both of a client, or the global one alone."""
        contexts = [tensors[name] for name in ("context", "global_context", "local_context") if name in tensors]
        with torch.no_grad():
            features = tuple(self.text_features(model, context) for context in contexts)
        return lambda image_features: self.scores(model, features, image_features)
