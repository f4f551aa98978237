"""Checks of types and shapes at every call inside the package; an int is a float, as PEP 484 has it.

jaxtyping's import hook marks all functions and data classes with `jaxtyping.jaxtyped`. In its place stands `checked`,
which checks the same: each argument, then the result, with axes of one name equal within a call. jaxtyping's own
wrapper also binds the arguments of every call, checks them twice, and compiles its checks anew whenever a nested
function is defined, which was more than half of the time of a run on the toy model.
"""

import abc
import contextlib
import dataclasses
import enum
import functools
import inspect
import sys
import types
import typing
from typing import Any, ForwardRef, TypeVar, Union, get_args, get_origin, get_type_hints

import jaxtyping
from beartype import BeartypeConf
from beartype.door import die_if_unbearable, is_bearable

CONF = BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError)
SAME_AXES = jaxtyping.jaxtyped("context")
REST, OTHERS = "*", "**"
"""Stand for the names of further arguments without and with a name."""
SEVERAL = {inspect.Parameter.VAR_POSITIONAL: REST, inspect.Parameter.VAR_KEYWORD: OTHERS}
typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)  # as Pythons from 3.12 on do themselves
KNOWN = {}
"""Annotations by code: a nested function is made anew whenever it is defined, its code is not."""

PLAIN = {}
"""By the id of an annotation: it, so that the id stays its own, and its plain classes."""
METACLASSES = (type, abc.ABCMeta, enum.EnumMeta)
"""Of plain classes; those of protocols and arrays are other ones."""
CLASSES = {}
"""Annotations of the fields of data classes."""


def checked(one):
    """Return a function whose calls are checked, or a data class whose construction is."""
    if inspect.isclass(one):
        init = vars(one).get("__init__")
        is_free = getattr(one, "__no_type_check__", False) or hasattr(init, "__wrapped__")
        if dataclasses.is_dataclass(one) and init and not is_free:
            one.__init__ = fields_checked(one, init)
        return one
    if one.__code__ not in KNOWN:
        KNOWN[one.__code__] = annotations_of(one)
    in_order, annotations, scope = KNOWN[one.__code__]
    if all(annotation is Any for annotation in annotations.values()):
        return one
    result_type, others = annotations["return"], annotations.get(OTHERS, Any)

    @functools.wraps(one)
    def call(*args, **kwargs):
        with scope:
            for name, value in zip(in_order, args, strict=False):
                check(value, annotations[name], one, name)
            for value in args[len(in_order) :]:
                check(value, annotations.get(REST, Any), one, REST)
            for name, value in kwargs.items():
                check(value, annotations.get(name, others), one, name)
            result = one(*args, **kwargs)
            check(result, result_type, one, "the result")
            return result

    return call


def fields_checked(cls, init):
    """Return the `__init__` of a data class, after which its fields are checked: it may have converted what it got."""

    @functools.wraps(init)
    def call(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if type(self) is cls:
            if cls not in CLASSES:
                found = {one.name: meaning(one.type, vars(sys.modules[cls.__module__])) for one in fields(cls)}
                CLASSES[cls] = found, SAME_AXES if any(map(has_axes, found.values())) else contextlib.nullcontext()
            annotations, scope = CLASSES[cls]
            with scope:
                for name, annotation in annotations.items():
                    check(getattr(self, name), annotation, init, name)

    return call


def fields(cls):
    """The fields of a data class that `__init__` sets."""
    return [one for one in dataclasses.fields(cls) if one.init]


def check(value, annotation, function, name):
    """Raise a TypeCheckError that names the function if a value is not what its annotation says."""
    if annotation is Any or type(value) is annotation or isinstance(value, classes_of(annotation)):
        return
    if is_bearable(value, annotation, conf=CONF):
        return
    where = f"{function.__module__}.{function.__qualname__}, {name}: "
    die_if_unbearable(value, annotation, conf=CONF, exception_prefix=where)


def classes_of(annotation):
    """Classes of which every instance is what an annotation says: itself, or members of a union."""
    if id(annotation) not in PLAIN:
        members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
        PLAIN[id(annotation)] = annotation, tuple(one for one in members if type(one) in METACLASSES)
    return PLAIN[id(annotation)][1]


def annotations_of(function):
    """Return the names of its arguments in order, what each annotation means, and the scope of its axes."""
    signature = inspect.signature(function)
    names = {SEVERAL.get(one.kind, one.name): one.annotation for one in signature.parameters.values()}
    in_order = function.__code__.co_varnames[: function.__code__.co_argcount]
    texts = {**names, "return": signature.return_annotation}
    known = with_bounds(function.__globals__)
    found = {name: meaning(text, known) for name, text in texts.items()}
    return in_order, found, SAME_AXES if any(map(has_axes, found.values())) else contextlib.nullcontext()


def with_bounds(names):
    """Put bounds that are given by name in the place of their type variables, which beartype cannot look up."""
    late = {name: one.__bound__ for name, one in names.items() if isinstance(one, TypeVar)}
    late = {name: bound.__forward_arg__ for name, bound in late.items() if isinstance(bound, ForwardRef)}
    return {**names, **{name: names.get(bound, Any) for name, bound in late.items()}}


def meaning(text, names):
    """Evaluate an annotation; Any where there is none, or it names what only a type checker imports."""

    def holder():
        pass

    if text is inspect.Signature.empty:
        return Any
    holder.__annotations__ = {"value": text}
    try:
        return get_type_hints(holder, names, include_extras=True)["value"]
    except Exception:
        return Any


def has_axes(annotation):
    """Whether there is an array in it."""
    is_array = inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray)
    return is_array or any(map(has_axes, get_args(annotation)))


jaxtyping.jaxtyped = lambda *, typechecker: checked
