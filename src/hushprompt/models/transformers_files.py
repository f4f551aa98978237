"""Models of transformers from a hub name or a local folder: weights, tokenizer, processor, or a clear error."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from hushprompt.errors import ConfigError, DataError, first_line
from hushprompt.models.base import optional
from hushprompt.models.hub import ask_once

UNREADABLE = (
    OSError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, ImportError, EOFError,
    pickle.UnpicklingError, SafetensorError,
)  # fmt: skip
"""What transformers raises for a repository that is missing, cut off or not what its config says."""
EMBEDDED = {"drawings": "drawings_mllm"}
"""Names of the models that the package has in itself, and their folders among its assets."""


class OfTransformers:
    """What the `backbone` sections of models of transformers have in common."""

    model: str

    def check_found(self) -> None:
        """Raise what `load` does where the package is not installed, or the model is neither here nor to be had."""
        optional("transformers", "transformers")
        find(self.model)


def find(model: str) -> str:
    """Return what `from_pretrained` takes: the folder that exists, one of the package itself, or a hub name.

    Raises:
        DataError: the text is a path, and there is no folder; or the hub cannot be reached, or lacks the model.
    """
    if model in EMBEDDED:
        return str(resources.files("hushprompt") / "assets" / EMBEDDED[model])
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder)
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise DataError(
            f"The model folder {model!r} does not exist. backbone.model is a folder with config.json, weights, "
            "tokenizer and preprocessor files, or a hub name such as openai/clip-vit-base-patch16."
        )
    try:
        ask_once(model, "config.json")
    except OSError as error:
        raise _not_fetched(model, "config.json", error) from error
    return model


def load_network(
    transformers: Any,
    model: str,
    classes: Mapping[str, str],
    attention: str | Mapping[str, str],
) -> Any:
    """Read a frozen network in float32.

    Args:
        transformers: the package.
        model: hub name or local folder.
        classes: allowed model types, each with the name of its class.
        attention: implementation of attention, of all or of each tower.

    Raises:
        ConfigError: the model is of another type.
        DataError: a file is missing or damaged, or weights are missing in it.
    """
    source = find(model)
    with reading(model, "config.json"):
        config = transformers.AutoConfig.from_pretrained(source)
    if config.model_type not in classes:
        raise ConfigError(
            f"The model {model} is of the type {config.model_type!r}; this backbone takes: {', '.join(classes)}. "
            "Use another model, or another backbone.name."
        )
    cls = getattr(transformers, classes[config.model_type])
    with reading(model, "weights (model.safetensors)"), without_bar(transformers):
        network, report = cls.from_pretrained(
            source, config=config, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise DataError(
            f"The weights of {model} lack {len(missing)} tensors that its config.json asks for, such as {missing[0]}. "
            "Use the weights and the config.json of one model."
        )
    return network.eval().requires_grad_(requires_grad=False)


def load_part(loader: Any, model: str, what: str, **options: Any) -> Any:
    """Read a tokenizer or processor by `loader.from_pretrained`; DataError if that fails."""
    with reading(model, what):
        return loader.from_pretrained(find(model), **options)


def settings_of(config: Any) -> dict[str, Any]:
    """Return a model's config without what names its place or the package's version."""
    return _without_place(config.to_dict())


def _without_place(values: dict[Any, Any]) -> dict[Any, Any]:
    """Drop the keys that change nothing."""
    dropped = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_commit_hash", "_attn_implementation")
    return {
        key: _without_place(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in dropped
    }


@contextlib.contextmanager
def without_bar(transformers: Any) -> Iterator[None]:
    """Have weights read without the bar of transformers, which would stand in ours; those of downloads stay."""
    log, hub = transformers.utils.logging, import_module("huggingface_hub.utils")
    was_shown, had_hub = log.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    log.disable_progress_bar()  # the hub's, too
    if had_hub:
        hub.enable_progress_bars()
    try:
        yield
    finally:
        if was_shown:
            log.enable_progress_bar()
        if not had_hub:
            hub.disable_progress_bars()


@contextlib.contextmanager
def reading(model: str, what: str) -> Iterator[None]:
    """Turn what transformers raises into one sentence that says what to do."""
    try:
        yield
    except UNREADABLE as error:
        if Path(model).expanduser().is_dir():
            raise DataError(
                f"The {what} in {model} cannot be read ({first_line(error)}). The folder must hold a whole repository: "
                "config.json, model.safetensors, tokenizer files and preprocessor_config.json."
            ) from error
        raise _not_fetched(model, what, error) from error


def _not_fetched(model: str, what: str, error: Exception) -> DataError:
    """Return the sentence on a part of a model that is not at hand, and what to put where."""
    return DataError(
        f"The {what} of {model} is neither in the Hugging Face cache nor could it be fetched ({first_line(error)}). "
        f"On a machine with internet: hf download {model} --local-dir FOLDER; copy the folder here and use "
        "--set backbone.model=FOLDER."
    )
