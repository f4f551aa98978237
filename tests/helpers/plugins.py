"""Packages of other people: a folder with a module and the entry points that pip would leave there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def plug_in(folder: Path, name: str, module: str, source: str, points: Mapping[str, Mapping[str, str]]) -> Path:
    """Install a package into a folder and return the folder, which belongs into the search path.

    Args:
        folder: new ones of each package may be the same.
        name: of the package.
        module: its one module.
        source: what the module holds.
        points: by kind ("methods") and name, where the class is: ":Class" of the module.
    """
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for kind, classes in points.items():
        lines += [f"[hushprompt.{kind}]", *(f"{key} = {module}{value}" for key, value in classes.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder
