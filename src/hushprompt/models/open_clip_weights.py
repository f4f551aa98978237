"""Weights of open_clip models from files: safetensors, .pt state dicts, TorchScript archives, big_vision's .npz."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from hushprompt.errors import DataError, first_line

NO_WEIGHTS = {
    "input_resolution", "context_length", "vocab_size",  # numbers in OpenAI's archives
    "attn_mask", "text.attn_mask",  # a constant that traced models keep
    "text.transformer.embeddings.position_ids",  # a constant that older transformers kept
}  # fmt: skip
"""What files have among the weights that is none."""
UNREADABLE = (
    OSError, RuntimeError, ValueError, KeyError, AttributeError, EOFError, StopIteration, pickle.UnpicklingError,
    zipfile.BadZipFile, SafetensorError,
)  # fmt: skip
"""What the readers raise for a file that is not what its name says."""


def is_torchscript(path: Path) -> bool:
    """Tell whether a file is a TorchScript archive, as OpenAI publishes CLIP."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def load_weights(open_clip: Any, network: Any, path: Path, architecture: str) -> None:
    """Fill a network with the weights of a file, all of them and no others.

    Args:
        open_clip: the library.
        network: to fill.
        path: of the file.
        architecture: that messages name.

    Raises:
        DataError: the file is damaged, or belongs to another architecture.
    """
    try:
        if path.suffix == ".npz":
            open_clip.convert.load_big_vision_weights(network, str(path))
            return
        state = _read(open_clip, path)
    except UNREADABLE as error:
        raise DataError(
            f"The checkpoint {path} is damaged or no weights file ({first_line(error)}). Copy or download it again; "
            "allowed: safetensors, a .pt state dict, a TorchScript archive, .npz of big_vision."
        ) from error
    try:
        network.load_state_dict(_converted(open_clip, network, state), strict=True)
    except UNREADABLE as error:
        raise DataError(
            f"The checkpoint {path} does not fit the architecture {architecture}: {_detail(error)}. "
            "Set backbone.architecture to the one that the checkpoint was made with."
        ) from error


def _read(open_clip: Any, path: Path) -> dict[str, Tensor]:
    if not is_torchscript(path):
        state: dict[str, Tensor] = open_clip.factory.load_state_dict(str(path))
        return state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, but it is what OpenAI published
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict())


def _converted(open_clip: Any, network: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring older and foreign layouts into today's, as open_clip's `load_checkpoint` does; nothing is resized."""
    state = open_clip.convert.convert_state_dict(network, dict(state))
    if "positional_embedding" in state and not hasattr(network, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    expected = network.state_dict()
    unused = NO_WEIGHTS - expected.keys()
    converted = {name: tensor for name, tensor in state.items() if name not in unused}
    for name in ("logit_scale", "logit_bias"):
        if name in converted and name in expected and converted[name].numel() == 1:
            converted[name] = converted[name].reshape(expected[name].shape)
    if "logit_bias" in expected and "logit_scale" in converted:
        converted.setdefault("logit_bias", torch.zeros_like(expected["logit_bias"]))
    return converted


def _detail(error: BaseException) -> str:
    """Return the first difference that torch reports, shortened."""
    lines = str(error).strip().splitlines()
    detail = (lines[1] if len(lines) > 1 else lines[0] if lines else repr(error)).strip().rstrip(".")
    return detail if len(detail) < 200 else f"{detail[:200]}..."
