"""Write docs/methods/README.md from the registry: every method of this package, and what it releases and sends.

python tools/methods_index.py
"""

from __future__ import annotations

import inspect
from pathlib import Path

from hushprompt.privacy.config import Channel
from hushprompt.registry import METHODS

FOLDER = Path(__file__).parent.parent / "docs" / "methods"
HEAD = """# Methods

<!-- Made by `python tools/methods_index.py` from the registry; do not edit. -->

`method.name` chooses one, and `hushprompt list NAME` describes it with its settings
([settings](../settings.md)). Methods of other installed packages stand in `hushprompt list methods`
beside these; [CONTRIBUTING.md](../../CONTRIBUTING.md) says how to add one.

| method | name | in short | noisy releases of a step | sent to clients | image features |
|---|---|---|---|---|---|
"""
TAIL = """
A **local** release adds noise on the client, to the gradient of its personal prompt. A **global**
release adds noise to the sum over clients, for what all of them share. [Privacy](../privacy.md)
says who is charged for which.
"""


def index() -> str:
    """Return the page."""
    return HEAD + "".join(f"{row(name)}\n" for name in METHODS.own_names()) + TAIL


def row(name: str) -> str:
    """Return the line of one method."""
    cls = METHODS.get(name)
    page = f"{name.replace('_', '-')}.md"
    title = f"[{cls.title}]({page})" if (FOLDER / page).exists() else cls.title
    releases = " and ".join(str(channel) for channel in Channel if channel in cls.channels) or "none"
    payload = ", ".join(f"`{field}`" for field in cls.payload) if Channel.GLOBAL in cls.channels else "nothing"
    return f"| {title} | `{name}` | {in_short(cls)} | {releases} | {payload} | {cls.feature_kind} |"


def in_short(cls: type) -> str:
    """Return what a method does: the first line of its file, without the name in front."""
    module = inspect.getmodule(cls)
    first = (getattr(module, "__doc__", "") or "").strip().partition("\n")[0]
    _, _, rest = first.rpartition(": ") if first.split(":")[0].count(" ") < 2 else ("", "", first)
    return rest[0].upper() + rest[1:].rstrip(".")


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(index(), encoding="utf-8")
