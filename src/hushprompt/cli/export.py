"""The command that writes a trained prompt for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import hushprompt as hp
from hushprompt.cli.console import Tower, Whose, console
from hushprompt.user_text import printable

FORMATS = "head, onnx, open_clip, transformers, peft, card"


def export(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Run folder, prompt file, client's store, or export.")
    ],
    to: Annotated[str, typer.Option("--to", help=f"The format: {FORMATS}.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")],
    client: Whose = None,
    backbone: Tower = None,
) -> None:
    """Write a trained prompt for other programs: a linear head, ONNX, a script, peft's form, or a model card."""
    folder = hp.export(source, to=to, out=out, client=client, backbone=backbone)
    prompt = hp.load_prompt(folder)
    holder = (
        "" if prompt.header.client_id is None else "A client's personal prompt: who has this folder is its holder. "
    )
    Console(stderr=True, highlight=False).print(printable(f"{holder}{prompt.privacy}"), markup=False, soft_wrap=True)
    for file in sorted(folder.iterdir()):
        console.print(f"  {file} ({file.stat().st_size / 1000:.0f} kB)", markup=False, soft_wrap=True)
