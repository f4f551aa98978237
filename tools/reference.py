"""Write the pages that follow from the code: docs/api.md and docs/settings.md.

    python tools/reference.py

A test holds the pages to what this writes.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import hushprompt
from hushprompt.cli.list_names import setting_lines
from hushprompt.config.documentation import settings_of
from hushprompt.config.schema import RunConfig
from hushprompt.config.values import CHOICES
from hushprompt.registry import SECTIONS, Registry

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 100
MADE = "<!-- Made by tools/reference.py from the code: change it there. -->"
HEADINGS = ("Args", "Returns", "Raises", "Yields", "Source", "Guarantee")


def api_page() -> str:
    """Return the page of the public names."""
    lines = [
        "# API",
        "",
        MADE,
        "",
        "What `import hushprompt as hp` offers. Settings of configs: [settings](settings.md).",
    ]
    for module, names in hushprompt._MODULES.items():
        said = (importlib.import_module(f"hushprompt.{module}").__doc__ or "").strip().splitlines()[0]
        lines += ["", f"## `{module}`", "", *_wrapped(said)]
        for name in names:
            lines += ["", *_entry(name, getattr(hushprompt, name))]
    lines += ["", "## `federation`", "", *_wrapped("A federation on separate machines: [federation](federation.md).")]
    for name in hushprompt.federation.__all__:
        lines += ["", *_entry(f"federation.{name}", getattr(hushprompt.federation, name))]
    return "\n".join(lines) + "\n"


def _entry(name: str, value: object) -> list[str]:
    """Return what is said of one public name."""
    lines = [f"### `{name}`", ""]
    if inspect.isfunction(value):
        return [*lines, "```python", *_signature(name, value), "```", "", *_docstring(value)]
    lines += _docstring(value)
    if inspect.isclass(value):
        for member, what in vars(value).items():
            said = inspect.getdoc(getattr(what, "func", what)) if not member.startswith("_") else None
            if said and (callable(what) or isinstance(what, property) or hasattr(what, "func")):
                lines += _wrapped(f"- `{member}{'()' if inspect.isfunction(what) else ''}`: {said.splitlines()[0]}")
    return lines


def _signature(name: str, function: object) -> list[str]:
    """Return a signature, one argument a line where it is long."""
    signature = inspect.signature(function)
    unquoted = (re.sub(r": '([^']*)'", r": \1", str(each)) for each in signature.parameters.values())
    parts = [re.sub(r"<function .*>", "...", part) for part in unquoted]
    kinds = [each.kind for each in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        parts.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    returned = str(signature.return_annotation).strip("'")
    line = f"hp.{name}({', '.join(parts)}) -> {returned}"
    return [line] if len(line) <= WIDTH else [f"hp.{name}(", *(f"    {part}," for part in parts), f") -> {returned}"]


def _docstring(value: object) -> list[str]:
    """Return a docstring as Markdown: its sections as lists, its examples as code."""
    lines: list[str] = []
    for block in re.split(r"\n\n", inspect.getdoc(value) or ""):
        first, *rest = block.splitlines()
        if first.startswith(">>>"):
            lines += ["```python", first, *rest, "```", ""]
        elif first.rstrip(":") in HEADINGS and first.endswith(":"):
            lines += [f"{first.rstrip(':')}:", "", *_items(rest), ""]
        elif block.startswith("    "):
            lines += ["```python", *textwrap.dedent(block).splitlines(), "```", ""]
        else:
            lines += [*_wrapped(" ".join(block.split())), ""]
    return lines[:-1] if lines and not lines[-1] else lines


def _items(rest: list[str]) -> Iterator[str]:
    """Return the entries of a docstring's section as a list."""
    text = textwrap.dedent("\n".join(rest))
    for entry in re.split(r"\n(?=\S)", text):
        name, colon, said = " ".join(entry.split()).partition(": ")
        named = f"`{name}`: {said}" if colon and " " not in name else " ".join(entry.split())
        yield from _wrapped(f"- {named}")


def settings_page() -> str:
    """Return the page of all settings: key, default, meaning with its unit."""
    said = (
        "Every key of a config file, which is a field of a dataclass, with what it is where a file leaves it out. "
        "`hp.RunConfig()` is the embedded preset (`config/presets/embedded.toml`): in Python, sections and settings "
        "that are left out are the preset's; a TOML file stands for itself."
    )
    lines = ["# Settings", "", MADE, "", *_wrapped(said), "", "| section | what it is |", "|---|---|"]
    for setting in settings_of(RunConfig):
        default = f" Default: `{setting.default}`." if setting.name == "seed" else ""
        lines.append(f"| `{setting.name}` | {_cell(setting.meaning)}{default} |")
    for name in SECTIONS.names():
        lines += ["", f"## `{name}`", "", *_table(SECTIONS.get(name))]
    for section, registry in CHOICES.items():
        lines += ["", f"## `{section}`", "", "One of these, by `name`; `hushprompt list` has them too."]
        lines += _choices(registry)
    return "\n".join(lines) + "\n"


def _choices(registry: Registry) -> Iterator[str]:
    """Return the tables of all classes of this package that a section can name."""
    for name in registry.own_names():
        cls = registry.get(name)
        yield from ("", f"### `{name}`", "", *_wrapped((cls.__doc__ or "").strip().splitlines()[0]), "")
        yield from _table(cls)


def _table(cls: type) -> list[str]:
    """Return the settings of a class as a table."""
    rows = [
        f"| `{name}` | {f'`{default}`' if default else ''} | {_cell(said)} |"
        for name, default, said in setting_lines(cls)
    ]
    return ["| key | default | meaning |", "|---|---|---|", *rows] if rows else ["No settings."]


def _cell(text: str) -> str:
    """Return a text that fits into a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _wrapped(text: str) -> list[str]:
    """Return a paragraph in lines."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


PAGES = {"api.md": api_page, "settings.md": settings_page}


def main() -> None:
    """Write the pages, or with --check say which ones are not in step."""
    pages = {DOCS / file: made() for file, made in PAGES.items()}
    if sys.argv[1:] == ["--check"]:
        stale = [path.name for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
        sys.exit(f"{', '.join(stale)}: run python tools/reference.py" if stale else 0)
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
