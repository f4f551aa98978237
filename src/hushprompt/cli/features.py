"""The commands about features: images as vectors in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hushprompt as hp
from hushprompt.cli.console import complete_config, console
from hushprompt.config import parse as configs


def export(
    config: Annotated[
        Path | None,
        typer.Argument(help="TOML file or preset name; none: the embedded preset.", autocompletion=complete_config),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override, such as data.root=images.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz file.")] = Path("features.npz"),
) -> None:
    """Encode a config's images, and write features, labels, clients and text features as one .npz file."""
    path = hp.export_features(configs.load(configs.locate(config), set_ or []), out=out)
    console.print(f"{path} has the features; it is as private as the images are. Use it with:", soft_wrap=True)
    settings = (
        "data.name=features", f"data.file={path}", "backbone.name=features", f"backbone.text_features={path}",
        "partition.name=by_client",
    )  # fmt: skip
    console.print("  " + " ".join(f"--set {setting}" for setting in settings), markup=False, soft_wrap=True)
