"""A group of commands whose modules are imported once one of them is called."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from hushprompt.cli.commands import COMMANDS, SECTIONS

if TYPE_CHECKING:
    import click


class LazyGroup(TyperGroup):
    """The commands of `COMMANDS` whose names begin with the group's own; help and completion import none of them."""

    def __init__(self, *, name: str | None = None, **settings: Any) -> None:
        """Fill the group with placeholders, which know a name and a sentence."""
        super().__init__(name=name, **settings)
        self.suggest_commands = False  # click names the nearest command itself
        self._prefix = f"{name} " if name else ""
        for full_name, entry in COMMANDS.items():
            group, _, own = full_name.rpartition(" ")
            if group == (name or ""):
                self.commands[own] = TyperCommand(own, help=entry.summary, rich_help_panel=entry.panel)
            elif not name and group not in self.commands:
                section = SECTIONS[group]
                self.commands[group] = LazyGroup(
                    name=group,
                    help=section.summary,
                    epilog=epilog(section.examples),
                    rich_help_panel=section.panel,
                    no_args_is_help=True,
                )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is called, imported."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, load(self._prefix + name) if name and isinstance(found, TyperCommand) else found, rest


def load(full_name: str) -> click.Command:
    """Import a command by its full name, such as "data info"."""
    entry = COMMANDS[full_name]
    module, _, function = entry.target.partition(":")
    app = typer.Typer(add_completion=False)
    command = getattr(importlib.import_module(f"hushprompt.cli.{module}"), function)
    app.command(full_name.split()[-1], epilog=epilog(entry.examples))(command)
    return typer.main.get_command(app)


def epilog(examples: Sequence[str]) -> str:
    """Return what stands below a help: command lines to copy."""
    return "\n\n".join(["Example:" if len(examples) == 1 else "Examples:", *(f"$ {line}" for line in examples)])
