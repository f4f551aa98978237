"""FedCLIP: an attention over the image's features that all clients share, under the hand template.

Source: Lu, Hu, Wang, Xie, "FedCLIP: Fast Generalization and Personalization for CLIP in Federated Learning", IEEE Data
Engineering Bulletin 2023 (arXiv:2302.13485). Our `shared.parameters` are their adapter g. Not a prompt method: the text
features never change. What differs is listed in docs/methods/fedclip.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hushprompt.methods.base import Batch, NoState, Published, Scorer, StepInfo, Upload
from hushprompt.methods.context import mean_loss
from hushprompt.models.base import FeatureKind, TextKind
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.prompts.optimizer import Optimizer, OptimizerState
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS


@dataclass(frozen=True)
class AdapterState:
    """The adapter as one vector, and the state of the optimizer that moves it."""

    parameters: Float[Tensor, " p"]
    optimizer: OptimizerState


class Adapter(NamedTuple):
    """Two linear layers, [out, in] as torch has them."""

    hidden_weight: Float[Tensor, "d d"]
    hidden_bias: Float[Tensor, " d"]
    attention_weight: Float[Tensor, "d d"]
    attention_bias: Float[Tensor, " d"]

    def __call__(self, image_features: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Weigh each coordinate of the features, and normalize again."""
        hidden = torch.tanh(F.linear(image_features, self.hidden_weight, self.hidden_bias))
        attention = F.linear(hidden, self.attention_weight, self.attention_bias).softmax(dim=-1)
        return F.normalize(attention * image_features, dim=-1)


def unpack(parameters: Float[Tensor, " p"], width: int) -> Adapter:
    """Cut the vector of an adapter's parameters, p = 2 (d^2 + d), into its layers."""
    first, second = parameters.view(2, width * (width + 1))
    layers = ((half[: width * width].view(width, width), half[width * width :]) for half in (first, second))
    return Adapter(*(tensor for layer in layers for tensor in layer))


@METHODS.register("fedclip")
@dataclass(frozen=True, kw_only=True)
class FedCLIP:
    """The `method` section of FedCLIP's adapter."""

    title: ClassVar[str] = "FedCLIP adapter"
    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.GLOBAL})
    feature_kind: ClassVar[FeatureKind] = "pooled"
    needs_text: ClassVar[TextKind] = "features"
    payload: ClassVar[tuple[str, ...]] = ("parameters",)

    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=0.4))
    """Optimizer of the adapter."""

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[AdapterState, NoState]:
        """Draw the adapter as torch draws its linear layers: uniform in +-1 / sqrt(d), biases too."""
        width = model.backbone.feature_dim
        values = rng.uniform(-(width**-0.5), width**-0.5, size=2 * width * (width + 1))
        parameters = torch.from_numpy(values).float().to(model.device)
        return AdapterState(parameters, self.optimizer.init(parameters)), NoState()

    def begin_round(self, shared: AdapterState) -> AdapterState:
        """Return the state back: a step needs nothing from where its round began."""
        return shared

    def client_step(
        self,
        model: PromptModel,
        shared: AdapterState,
        personal: NoState,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, NoState, StepInfo]:
        """Upload the sum of clipped gradients."""
        grads, losses = adapter_gradients(model, shared.parameters, batch)
        return Upload(mechanism.clip(Channel.GLOBAL, grads)), personal, StepInfo(mean_loss(losses))

    def server_step(self, shared: AdapterState, released: Float[Tensor, " p"]) -> AdapterState:
        """Step the adapter with the released mean gradient."""
        return AdapterState(*self.optimizer.step(shared.parameters, released, shared.optimizer))

    def public_file(self, model: PromptModel, shared: AdapterState) -> Published:
        """Return the adapter's layers by name."""
        adapter = unpack(shared.parameters, model.backbone.feature_dim)
        how = (
            f"{model.template_origin}; the image's unit-norm features f become those of "
            "f * softmax(attention_weight @ tanh(hidden_weight @ f + hidden_bias) + attention_bias)"
        )
        return Published({name: tensor.contiguous() for name, tensor in adapter._asdict().items()}, how)

    def personal_file(self, model: PromptModel, shared: AdapterState, personal: NoState) -> None:
        """Nothing is personal."""

    def file_scorer(self, model: PromptModel, tensors: Mapping[str, Tensor]) -> Scorer:
        """Return what scores images with the layers of a file."""
        adapter = Adapter(**tensors)
        return lambda image_features: model.logits(adapter(image_features), model.template_features)

    def logits(
        self, model: PromptModel, shared: AdapterState, personal: NoState, image_features: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n c"]:
        """Score adapted images against the hand template."""
        adapter = unpack(shared.parameters, model.backbone.feature_dim)
        return model.logits(adapter(image_features), model.template_features)


def adapter_gradients(
    model: PromptModel, parameters: Float[Tensor, " p"], batch: Batch
) -> tuple[Float[Tensor, "b p"], Float[Tensor, " b"]]:
    """Return each example's cross-entropy gradient in the adapter's parameters, and its loss; neither is private."""
    if len(batch.labels) == 0:
        return parameters.new_zeros(0, len(parameters)), parameters.new_zeros(0)
    text_features = model.template_features

    def loss(vector: Float[Tensor, " p"], feature: Float[Tensor, " d"], label: Tensor) -> Tensor:
        logits = model.logits(unpack(vector, len(feature))(feature[None]), text_features)
        return F.cross_entropy(logits, label[None])

    each = torch.vmap(torch.func.grad_and_value(loss), in_dims=(None, 0, 0))
    grads, losses = each(parameters, batch.image_features, batch.labels)
    return grads, losses
