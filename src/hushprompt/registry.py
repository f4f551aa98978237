"""Names to classes: one registration enrolls a method, data set, backbone or partition everywhere.

A registered class is a frozen dataclass; its fields are the section of the config that names it. The
classes are found by importing the rooms (`hushprompt.load_registries`), so this file imports none of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from hushprompt import checks
from hushprompt.errors import ConfigError

T = TypeVar("T", bound=type[Any])


class Registry:
    """Classes of one kind by name; refuses duplicates and suggests the nearest name for a wrong one."""

    def __init__(self, kind: str) -> None:
        """Make an empty registry of `kind`, the word that its error messages use."""
        self.kind = kind
        self._classes: dict[str, type[Any]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enrolls a frozen dataclass under `name`.

        Raises:
            ValueError: the name is taken, or the class is not a frozen dataclass.
        """

        def enroll(cls: T) -> T:
            if name in self._classes:
                raise ValueError(f"{self.kind} {name!r} is registered already, by {self._classes[name].__qualname__}.")
            if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
                raise ValueError(f"{self.kind} {name!r} must be a frozen dataclass, got {cls!r}.")
            self._classes[name] = cls
            return cls

        return enroll

    def get(self, name: str) -> type[Any]:
        """Return the class called `name`; ConfigError with the nearest name if there is none."""
        if name not in self._classes:
            known = ", ".join(self.names())
            raise ConfigError(f"There is no {self.kind} {name!r}; known: {known}.{checks.nearest(name, self._classes)}")
        return self._classes[name]

    def name_of(self, thing: object) -> str:
        """Return the name under which the class of `thing` is registered."""
        for name, cls in self._classes.items():
            if type(thing) is cls:
                return name
        raise ConfigError(f"{type(thing).__qualname__} is not a registered {self.kind}.")

    def classes(self) -> list[type[Any]]:
        """Return all registered classes."""
        return list(self._classes.values())

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._classes)


METHODS = Registry("method")
DATASETS = Registry("data set")
BACKBONES = Registry("backbone")
PARTITIONS = Registry("partition")
SAMPLERS = Registry("sampler")
SECTIONS = Registry("section")
"""Config sections without a choice of class: `features`, `privacy`, `training`, `evaluation`, `runtime`."""
