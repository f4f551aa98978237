"""States of methods as trees: nested frozen dataclasses and tuples of tensors, each tensor with a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hushprompt.methods.base import Personal, Shared
from hushprompt.privacy.adaptive import ClipNorms


@dataclass(frozen=True)
class State:
    """What training moves and a checkpoint stores."""

    shared: Shared
    personal: tuple[Personal, ...]
    """One a client; clients that have not moved apart may have one and the same object."""
    norms: ClipNorms | None = None
    """Clip norms of the next step, where they are adaptive."""


def fields_of(cls: type[Any], value: Any) -> dict[str, Any]:
    """Return the fields of `value`, a dataclass, that `cls`, which it extends, has: by name, as they are."""
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(cls)}


def flatten(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """Name every tensor in nested frozen dataclasses and tuples: `personal.3.context`.

    Raises:
        TypeError: there is anything else in it.
    """
    if isinstance(state, Tensor):
        return {prefix.rstrip("."): state}
    named: dict[str, Tensor] = {}
    for name, child in _children(state):
        named.update(flatten(child, f"{prefix}{name}."))
    return named


def restore(template: Any, tensors: Mapping[str, Tensor], prefix: str = "") -> Any:
    """Rebuild `template` with the tensors of the same names, on its devices."""
    if isinstance(template, Tensor):
        return tensors[prefix.rstrip(".")].to(template.device)
    children = {name: restore(child, tensors, f"{prefix}{name}.") for name, child in _children(template)}
    return tuple(children.values()) if isinstance(template, tuple) else dataclasses.replace(template, **children)


def _children(state: Any) -> list[tuple[str, Any]]:
    """Return names and values one level down."""
    if isinstance(state, tuple):
        return [(str(index), child) for index, child in enumerate(state)]
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        fields = [(f.name, getattr(state, f.name)) for f in dataclasses.fields(state)]
        return [(name, value) for name, value in fields if value is not None]  # None: nothing of that kind
    raise TypeError(f"A state is made of frozen dataclasses, tuples and tensors, got {type(state).__qualname__}.")
