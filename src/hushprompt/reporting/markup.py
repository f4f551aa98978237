"""HTML and SVG as values: whatever is not markup already is escaped, so no name can break out of its place."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

EMPTY = {"circle", "line", "meta", "path", "rect"}
"""Elements that never have children."""
UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Characters that no HTML or XML document may hold."""


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """Return one element; the result is well-formed as HTML and as XML.

    Args:
        name: of the element.
        children: markup is taken as it is, any other string is escaped.
        attributes: `class_` is written class, `stroke_width` stroke-width; one that is None is left out.

    >>> tag("p", "1 < 2 ", tag("b", "yes"), class_="x")
    Markup('<p class="x">1 &lt; 2 <b>yes</b></p>')
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in EMPTY and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Sequence[str]) -> Markup:
    """Put parts one behind the other; what is not markup is escaped."""
    return Markup("").join(part if isinstance(part, Markup) else escape(UNSAFE.sub("\ufffd", part)) for part in parts)


def num(value: float) -> str:
    """Write a coordinate with at most two decimals.

    >>> num(3.0), num(1 / 3), num(-0.0)
    ('3', '0.33', '0')
    """
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _attribute(value: str | float) -> str:
    """Write an attribute's value."""
    return escape(UNSAFE.sub("\ufffd", value)) if isinstance(value, str) else num(value)
