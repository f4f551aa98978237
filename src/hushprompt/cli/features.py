"""The commands about features: images as vectors in a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

import hushprompt as hp
from hushprompt.cli.console import ConfigFile, complete_config, console, sentence
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.config.values import refuse_unknown


def export(
    config: ConfigFile = None,
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


def metric(
    images: Annotated[
        str | None,
        typer.Option(help="Folder with a subfolder of images for each class, or the name of a data set."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Instead of images: a file of their features and labels, as by `features export`."),
    ] = None,
    backbone: Annotated[
        Path | None,
        typer.Option(
            help="TOML file or preset whose backbone is meant; none: the embedded preset's, or the file's own.",
            autocompletion=complete_config,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, such as backbone.name=open_clip or data.root=images.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The .safetensors file; none: the cache, where runs find it.")
    ] = None,
) -> None:
    """Make a backbone's public metric, which class statistics need, from labeled public images."""
    from hushprompt.statistics.metric import fingerprint_of, read_metrics

    sections: dict[str, Any] = {}
    for setting in set_ or []:
        sections = configs.override(sections, setting)
    refuse_unknown("", sections, {f.name for f in dataclasses.fields(RunConfig)})
    config = None if backbone is None else configs.locate(backbone)
    path = hp.make_metric(images, features_file=features, config=config, out=out, **sections)
    made = read_metrics(path, fingerprint_of(path))
    rank = max(made.of_rank)
    text = "with texts" if made.at(rank).kappa is not None else "without texts, so for tasks without text alone"
    sentence(
        f"{path} has the metric of the backbone {made.origin.fingerprint[:12]}, {text}: rank up to {rank}, from "
        f"{made.origin.num_images} examples of {made.origin.num_classes} classes. Nothing protects these: they must be "
        "public."
    )
    used = "auto" if out is None else path
    sentence(f"Use it with: --set method.name=class_statistics --set method.metric={used}")
