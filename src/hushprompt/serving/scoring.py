"""From a prompt file to scores: with the file alone where they are linear, else with the frozen model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from hushprompt.config.values import build
from hushprompt.errors import DataError
from hushprompt.methods.base import Method, Scorer, ScoresFromFile
from hushprompt.models.base import FeatureKind
from hushprompt.prompts.layout import NamePosition
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS
from hushprompt.runs.prompt_file import PromptHeader


def scorer(header: PromptHeader, tensors: Mapping[str, Tensor], model: Callable[[], Any]) -> Scorer:
    """Return what scores unit-norm image features [n, d], or [n, m, d] of patches or tokens, as the method does.

    Args:
        header: what the file says of itself.
        tensors: what the method published.
        model: loads the frozen model with the classes; only called where the file does not suffice.

    Raises:
        DataError: nothing is known of how the file's tensors score.
    """
    method = None if "text_features" in tensors else method_of(header)
    if isinstance(method, ScoresFromFile):
        frozen = model()
        return method.file_scorer(frozen, {name: tensor.to(frozen.device) for name, tensor in tensors.items()})
    if "context" in tensors and "text_features" not in tensors:
        frozen = model()
        if frozen.backbone.capabilities.num_tokens is not None:
            context = tensors["context"].to(frozen.device)
            return lambda features: frozen.scores(context, features, "end")
    return linear(linear_tensors(header, tensors, model))


def linear_tensors(
    header: PromptHeader, tensors: Mapping[str, Tensor], model: Callable[[], Any]
) -> Mapping[str, Tensor]:
    """Return `text_features`, `logit_scale` and, where there are some, `bias` and `log_prior`; as for `scorer`.

    Raises:
        DataError: scores are not linear in the image features, or nothing is known of how the tensors score.
    """
    if "text_features" in tensors:
        return tensors
    if "context" not in tensors or feature_kind(header, tensors) == "patches":
        raise DataError(f"No linear scores follow from {', '.join(sorted(tensors))}. The file says: {header.prompt}.")
    frozen = model()
    if frozen.backbone.capabilities.num_tokens is not None:
        raise DataError(f"A generative model's scores are likelihoods of names, not linear: {header.prompt!r}.")
    with torch.no_grad():
        features = frozen.text_features(tensors["context"].to(frozen.device), _name_position(header, tensors, frozen))
    return {"text_features": features, "logit_scale": torch.tensor(frozen.logit_scale)}


def linear(tensors: Mapping[str, Tensor]) -> Scorer:
    """Return scores that are linear in the image features."""
    weights = (tensors["logit_scale"] * tensors["text_features"]).T
    offsets = tensors.get("bias", 0) + tensors.get("log_prior", 0) + weights.new_zeros(weights.shape[1])
    return lambda features: features @ weights.to(features.device) + offsets.to(features.device)


def method_of(header: PromptHeader) -> Method | None:
    """Return the method with the settings of a prompt file; None where it is not needed to score, or not known.

    Raises:
        DataError: a file of format 1 does not say the settings, and scores depend on them.
    """
    if header.method not in METHODS.names():
        return None
    method_type = METHODS.get(header.method)
    if header.settings is None and method_type.feature_kind == "patches":
        raise DataError("This prompt file of an older version does not say how patches are matched: train again.")
    settings = {key: value for key, value in (header.settings or {}).items() if key != "name"}
    method: Method = build(method_type, settings, "method")
    return method


def feature_kind(header: PromptHeader, tensors: Mapping[str, Tensor]) -> FeatureKind:
    """Return what has to be known of an image to score it."""
    method = None if "text_features" in tensors else method_of(header)
    return "pooled" if method is None else method.feature_kind


def _name_position(header: PromptHeader, tensors: Mapping[str, Tensor], model: PromptModel) -> NamePosition:
    """Return where class names stand: the place of which a layout says what the file says."""
    positions: tuple[NamePosition, ...] = get_args(NamePosition)
    named = [each for each in positions if model.layout(tensors["context"], each) in str(header.prompt)]
    if len(named) != 1:
        raise DataError(
            f"Where the class name stands in this prompt is not known. What the file says: {header.prompt}."
        )
    return named[0]
