"""What all commands share: the console that they print on, and their exit statuses."""

from __future__ import annotations

from rich.console import Console

console = Console(highlight=False)
INTERRUPTED = 130
"""Exit status of a command that was stopped by Ctrl-C, as shells give it."""
