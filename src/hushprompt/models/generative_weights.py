"""The frozen network of a generative model: read from its repository, on one device or with its layers on several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hushprompt.errors import ConfigError, DataError, UnfitError
from hushprompt.models import generative_families as families
from hushprompt.models.transformers_files import find, reading, without_bar

if TYPE_CHECKING:
    from hushprompt.models.generative import GenerativeConfig

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways to divide layers among the devices that there are."""


def check_device_map(wanted: str) -> None:
    """Raise ConfigError unless layers can be laid out so, here or on another machine."""
    if wanted and wanted not in DEVICE_MAPS:
        try:
            torch.device(wanted)
        except RuntimeError as error:
            ways = ", ".join(DEVICE_MAPS)
            raise ConfigError(
                f"backbone.device_map must be one of {ways} or a device such as cuda:0, got {wanted!r}."
            ) from error


def load_generative(transformers: Any, config: GenerativeConfig) -> Any:
    """Read a frozen network.

    Raises:
        ConfigError: the model is of another type, accelerate is missing, or layers do not fit on the devices.
        DataError: a file is missing or damaged, or weights are missing in it.
    """
    source, model, family = find(config.model), config.model, config.family
    with reading(model, "config.json"):
        found = transformers.AutoConfig.from_pretrained(source)
    if found.model_type in families.OWN_MASKS:
        raise UnfitError(
            f"The model {model} is of the type {found.model_type!r}, which reads image tokens in a way of its own: no "
            "prompt can be trained for it here. Use SmolVLM, Idefics3, LLaVA, LLaVA-OneVision, InternVL, "
            "Qwen2-VL or Qwen2.5-VL."
        )
    if found.model_type != family.model_type:
        raise ConfigError(
            f"The model {model} is of the type {found.model_type!r}; this backbone takes {family.model_type!r}. Use "
            "another model, or another backbone.name."
        )
    wanted = config.device_map
    if wanted and not transformers.utils.is_accelerate_available():
        raise ConfigError("backbone.device_map needs the package accelerate: pip install accelerate.")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f'backbone.device_map = "{wanted}", but torch sees no GPU. Leave it empty, or use "cpu".')
    with reading(model, "weights (model.safetensors)"), without_bar(transformers):
        network, report = getattr(transformers, family.network).from_pretrained(
            source, config=found, dtype=getattr(torch, config.precision), attn_implementation="sdpa",
            output_loading_info=True, **({"device_map": wanted} if wanted else {}),
        )  # fmt: skip
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise DataError(
            f"The weights of {model} lack {len(missing)} tensors that its config.json asks for, such as {missing[0]}. "
            "Use the weights and the config.json of one model."
        )
    if any(weight.is_meta for weight in network.parameters()):
        raise ConfigError(
            f"With backbone.device_map = {wanted!r} not all layers of {model} fit on the devices: some would be "
            "fetched from memory or disk in every pass. Use more or larger devices, or a lower backbone.precision."
        )
    return network.eval().requires_grad_(requires_grad=False)
