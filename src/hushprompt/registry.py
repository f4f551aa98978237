"""Names to classes: one registration enrolls a method, data set, backbone, partition, sampler or mechanism everywhere.

A registered class is a frozen dataclass; its fields are the section of the config that names it. Nothing is imported
before it is asked for. A name is looked for among

1. the classes that this process registered itself (`@hushprompt.register.method("mine")`),
2. this package's own, by `registry_index.json`, which `python -m hushprompt.registry` writes from the sources,
3. the entry points of other installed packages, such as in their pyproject.toml

       [project.entry-points."hushprompt.methods"]
       mine = "my_package.my_module:MyMethod"
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import logging
import os
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hushprompt import checks
from hushprompt.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=type[Any])
PACKAGE = "hushprompt"
INDEX = Path(__file__).with_name("registry_index.json")
ROOMS = ("config", "data.partitions", "data.readers", "data.sets", "features", "methods", "models", "privacy")
"""Where classes of this package are registered."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of a name before its class is imported."""

    name: str
    title: str = ""
    """First line of the class's docstring; empty where another package's class is not imported yet."""
    settings: tuple[str, ...] = ()
    """Names of the class's fields."""
    module: str
    """Where the class is defined."""
    package: str = PACKAGE
    """Installed package that the class comes with; empty for one that this process registered itself."""


class Registry:
    """Classes of one kind by name; refuses duplicates and suggests the nearest name for a wrong one."""

    def __init__(self, kind: str, group: str = "") -> None:
        """Make an empty registry.

        Args:
            kind: the word that error messages use.
            group: entry points in which other packages name their classes; empty: they cannot.
        """
        self.kind = kind
        self.group = group
        self._classes: dict[str, type[Any]] = {}
        self._loading = threading.RLock()

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enrolls a frozen dataclass under `name`.

        A class that is defined again, as in a notebook's cell that runs twice, takes its own place.

        Raises:
            ValueError: the name is taken, or the class is not a frozen dataclass.
        """

        def enroll(cls: T) -> T:
            if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
                raise ValueError(f"{self.kind} {name!r} must be a frozen dataclass, got {cls!r}.")
            if (holder := self._holder(name, cls)) is not None:
                raise ValueError(f"{self.kind} {name!r} is registered already, by {holder}. Choose another name.")
            self._classes[name] = cls
            return cls

        return enroll

    def get(self, name: str) -> type[Any]:
        """Return the class called `name`, and import it where needed.

        Raises:
            ConfigError: there is none, then with the nearest name; or the package that it comes with is broken.
        """
        with self._loading:
            if name not in self._classes:
                self._load(name)
            return self._classes[name]

    def name_of(self, thing: object) -> str:
        """Return the name under which the class of `thing` is registered.

        Raises:
            ConfigError: it is not.
        """
        cls = type(thing)
        for name, known in self._classes.items():
            if cls is known:
                return name
        for point in self._entry_points():
            if point.value.replace(" ", "") == f"{cls.__module__}:{cls.__qualname__}" and self.get(point.name) is cls:
                return point.name
        raise ConfigError(
            f"{cls.__qualname__} is not a registered {self.kind}. Put @{PACKAGE}.register.{_attribute(self.kind)}"
            f'("a_name") above the class, or name it in an entry point of the group {self.group}.'
        )

    def has(self, cls: type[Any]) -> bool:
        """Whether a class is registered."""
        return cls in self._classes.values()

    def names(self) -> list[str]:
        """Return all names, sorted; imports nothing."""
        return [entry.name for entry in self.entries()]

    def entries(self) -> list[Entry]:
        """Return what is known of all names, sorted, without importing a class."""
        found = {
            point.name: Entry(name=point.name, module=point.module, package=_package_of(point))
            for point in self._entry_points()
        }
        found |= {name: entry_of(name, cls) for name, cls in self._classes.items() if name not in found}
        found |= _index().get(self.kind, {})
        return [found[name] for name in sorted(found)]

    def own_names(self) -> list[str]:
        """Return the names of this package's own classes, sorted."""
        return sorted(_index().get(self.kind, {}))

    def _holder(self, name: str, cls: type[Any]) -> str | None:
        """Return which module has taken a name that `cls` is to be registered under; None if it is free."""
        known = self._classes.get(name)
        if known is not None:
            is_same_place = (known.__module__, known.__qualname__) == (cls.__module__, cls.__qualname__)
            return None if is_same_place and known is not cls else known.__module__
        own = _index().get(self.kind, {}).get(name)
        return None if own is None or is_own(cls) else own.module

    def _load(self, name: str) -> None:
        """Import the class called `name`, which then is registered."""
        own = _index().get(self.kind, {}).get(name)
        if own is not None:
            importlib.import_module(own.module)
            return
        points = [point for point in self._entry_points() if point.name == name]
        if not points:
            known = self.names()
            raise ConfigError(
                f"There is no {self.kind} {name!r}; known: {', '.join(known)}.{checks.nearest(name, known)}"
            )
        if len(points) > 1:
            packages = " and ".join(sorted(_package_of(point) for point in points))
            raise ConfigError(f"The {self.kind} {name!r} comes with {packages}. Uninstall one of them.")
        self._load_point(points[0])

    def _load_point(self, point: EntryPoint) -> None:
        """Import another package's class; whatever goes wrong there is one error that names the package."""
        where = f"The {self.kind} {point.name!r} of the package {_package_of(point)} ({point.value})"
        try:
            thing = point.load()
        except Exception as error:  # other people's code may raise anything
            logger.debug("%s cannot be imported.", where, exc_info=error)
            raise ConfigError(
                f"{where} cannot be imported: {type(error).__name__}: {error}. Repair the package, or uninstall it."
            ) from error
        if point.name in self._classes:  # by the module's own decorator
            return
        if not isinstance(thing, type):
            raise ConfigError(f"{where} is not a class, and registers none under this name. Repair the package.")
        try:
            self.register(point.name)(thing)
        except ValueError as error:
            raise ConfigError(f"{where} cannot be used: {error}") from error

    def _entry_points(self) -> list[EntryPoint]:
        """Return other packages' entry points of this kind; a name that this package has itself is passed over."""
        if not self.group:
            return []
        points: list[EntryPoint] = []
        for point in _points_of(self.group, tuple(map(_state, sys.path))):
            if point.name in _index().get(self.kind, {}):
                logger.warning(
                    "The package %s brings a %s called %r, which %s has itself: it is not used.",
                    _package_of(point), self.kind, point.name, PACKAGE,
                )  # fmt: skip
            elif point not in points:  # a folder that stands in the search path twice
                points.append(point)
        return points


@functools.lru_cache(maxsize=32)
def _points_of(group: str, path: tuple[tuple[int, ...] | None, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group; every package is looked at, so only where the search path has changed."""
    from importlib.metadata import entry_points

    return tuple(entry_points(group=group))


def _state(folder: str) -> tuple[int, ...] | None:
    """Return what changes where a package is installed into a folder of the search path; None without a folder."""
    try:
        found = os.stat(folder or ".")
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def is_own(cls: type[Any]) -> bool:
    """Whether a class comes with this package."""
    return cls.__module__.startswith(f"{PACKAGE}.")


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module


def entry_of(name: str, cls: type[Any]) -> Entry:
    """Describe an imported class."""
    return Entry(
        name=name,
        title=(cls.__doc__ or "").strip().partition("\n")[0],
        settings=tuple(field.name for field in dataclasses.fields(cls) if field.init),
        module=cls.__module__,
        package=PACKAGE if is_own(cls) else "",
    )


def _attribute(kind: str) -> str:
    """Return a kind as an attribute of `register`."""
    return kind.replace(" ", "_").replace("data_set", "dataset")


METHODS = Registry("method", "hushprompt.methods")
DATASETS = Registry("data set", "hushprompt.datasets")
BACKBONES = Registry("backbone", "hushprompt.backbones")
PARTITIONS = Registry("partition", "hushprompt.partitions")
SAMPLERS = Registry("sampler", "hushprompt.samplers")
MECHANISMS = Registry("mechanism", "hushprompt.mechanisms")
SECTIONS = Registry("section")
"""Config sections without a choice of class: `features`, `privacy`, `training`, `evaluation`, `runtime`."""
REGISTRIES = (METHODS, DATASETS, BACKBONES, PARTITIONS, SAMPLERS, MECHANISMS, SECTIONS)


class Register:
    """Enrolls classes of other packages: `@hushprompt.register.method("mine")` above a frozen dataclass."""

    method = staticmethod(METHODS.register)
    dataset = staticmethod(DATASETS.register)
    backbone = staticmethod(BACKBONES.register)
    partition = staticmethod(PARTITIONS.register)
    sampler = staticmethod(SAMPLERS.register)
    mechanism = staticmethod(MECHANISMS.register)


register = Register()


@functools.cache
def _index() -> dict[str, dict[str, Entry]]:
    """Read the index of this package's own classes: by kind and name."""
    if not INDEX.exists():  # before it is made for the first time
        return {}
    kinds = json.loads(INDEX.read_text(encoding="utf-8"))
    return {
        kind: {
            name: Entry(name=name, module=value["module"], title=value["title"], settings=tuple(value["settings"]))
            for name, value in entries.items()
        }
        for kind, entries in kinds.items()
    }


def own_modules() -> Iterator[str]:
    """Return all modules of this package in which classes are registered."""
    for room in ROOMS:
        path = INDEX.parent.joinpath(*room.split("."))
        for module in pkgutil.walk_packages([str(path)], f"{PACKAGE}.{room}."):
            yield module.name


def made_index() -> str:
    """Import every room, and return the index of what they register, as it is kept in `registry_index.json`."""
    for module in own_modules():
        importlib.import_module(module)
    kinds: dict[str, dict[str, Any]] = {}
    for registry in REGISTRIES:
        entries = [entry_of(name, cls) for name, cls in sorted(registry._classes.items())]
        kinds[registry.kind] = {
            entry.name: {"module": entry.module, "title": entry.title, "settings": list(entry.settings)}
            for entry in entries
            if entry.package == PACKAGE
        }
    lines = (
        f"  {json.dumps(kind)}: {{\n"
        + ",\n".join(f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items())
        + "\n  }"
        for kind, entries in kinds.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    INDEX.write_text(importlib.import_module("hushprompt.registry").made_index(), encoding="utf-8")
