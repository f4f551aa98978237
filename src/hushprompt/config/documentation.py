"""What the fields of a section mean, read from the strings below them: for help texts and the settings reference."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """A field of a section."""

    name: str
    default: Any
    """Its value where the config says nothing; `dataclasses.MISSING`: the config must say it."""
    meaning: str
    """The string below the field, in one line; empty where there is none."""


def settings_of(cls: type[Any]) -> list[Setting]:
    """Return the fields of a frozen dataclass in their order, with what their class or a base says of each."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            meanings |= _meanings(base)
    return [Setting(field.name, _default(field), meanings.get(field.name, "")) for field in dataclasses.fields(cls)]


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _meanings(cls: type[Any]) -> dict[str, str]:
    """Return the strings that stand below the fields of a class's own body; empty where its source is not there."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # defined in a console
        return {}
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
