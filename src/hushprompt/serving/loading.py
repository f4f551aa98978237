"""Finding a trained prompt: in a run, at a client of a federation, in an export, or as the file itself."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hushprompt.config.overrides import with_sections
from hushprompt.config.values import choose
from hushprompt.errors import ConfigError, DataError, HushpromptError, files_told
from hushprompt.runs import records
from hushprompt.runs.prompt_file import read_prompt
from hushprompt.serving.prompt import Prompt
from hushprompt.user_text import nfc

if TYPE_CHECKING:
    from hushprompt.models.placing import Device

PROMPTS = "prompts"
EXPORTED = "prompt.safetensors"
"""Name of a prompt's file in the folder of an export."""


@files_told()
def load_prompt(
    path: str | os.PathLike[str], *, client: int | str | None = None, backbone: Any = None, device: Device = "auto"
) -> Prompt:
    """Read a trained prompt.

    Args:
        path: a prompt file, a run or its folder of prompts, a client's store, or the folder of an export.
        client: in a folder, whose prompt: number or name, such as 0 or "client-0"; None: the global one, in a store the
            client's own.
        backbone: the frozen model that it was trained with: loaded, a section of a config, a name, or a TOML file with
            such a section; None: the run's own, else the one that the file names.
        device: where the backbone will run: "auto" takes a GPU if there is one.

    Raises:
        DataError: there is no such prompt, or its file is damaged.
        ConfigError: a client is named, and `path` is a file; or there is no such backbone.
    """
    file = find(Path(path).expanduser(), client)
    header, tensors = read_prompt(file)
    chosen = _of_run(file) if backbone is None else _section(backbone)
    return Prompt(path=file, tensors=tensors, header=header, backbone=chosen, device=device)


def find(path: Path, client: int | str | None) -> Path:
    """Return the file of a prompt.

    Raises:
        DataError: there is none.
        ConfigError: a client is named, and `path` is a file.
    """
    if path.is_file():
        if client is not None:
            raise ConfigError(f"{path} is the prompt of one already: leave client out, or give the run folder.")
        return path
    if (path / EXPORTED).exists():
        return find(path / EXPORTED, client)
    folder = _folder(path)
    known = {file.stem: file for file in sorted(folder.glob("*.safetensors"))}
    own = [name for name in known if name != "global"]
    if client is not None:
        name = f"client-{_client_id(folder, client):03d}"
    elif _is_store(folder) and len(own) == 1:
        name = own[0]
    else:
        name = "global"
    if name not in known:
        there = ", ".join(known) or "none"
        raise DataError(f"There is no prompt {name} in {folder}; there are: {there}.{_at_home(folder)}")
    return known[name]


def _folder(path: Path) -> Path:
    """Return the folder of prompts that a path stands for.

    Raises:
        DataError: a store has prompts of several runs, or of none.
    """
    if (path / PROMPTS).is_dir():
        return path / PROMPTS
    if not path.is_dir():
        raise DataError(f"There is no file or folder {path}. Check the path.")
    runs = sorted(folder.parent for depth in ("*", "*/*") for folder in path.glob(f"{depth}/{PROMPTS}"))
    if len(runs) > 1:
        raise DataError(f"{path} has prompts of several runs. Give one: {', '.join(map(str, runs))}.")
    return runs[0] / PROMPTS if runs else path


def _is_store(folder: Path) -> bool:
    """Tell whether prompts are those that a client of a federation keeps: its run has no config of a simulation."""
    return not (folder.parent / "config.toml").exists() and (folder.parent / "agreement.json").exists()


def _client_id(folder: Path, client: int | str) -> int:
    """Return the number of a client that is given by number or name."""
    if not isinstance(client, str):
        if operator.index(client) < 0:
            raise DataError(f"Clients are counted from 0, got {client}.")
        return operator.index(client)
    names: dict[str, int] = {}
    if (folder.parent / "partition.json").exists():
        listed = records.read_json(folder.parent / "partition.json")["client_names"]
        names = {name: number for number, name in enumerate(listed)}
    else:
        headers = [read_prompt(file)[0] for file in sorted(folder.glob("client-*.safetensors"))]
        names = {
            each.client_name: each.client_id for each in headers if each.client_name and each.client_id is not None
        }
    known = {nfc(name): number for name, number in names.items()}
    if nfc(client) in known:
        return known[nfc(client)]
    number = re.fullmatch(r"(?:client[- ])?0*(\d+)", client)
    if number is None:
        there = ", ".join(names) or "numbers from 0"
        raise DataError(f"There is no client {client!r}; known: {there}.{_at_home(folder)}")
    return int(number[1])


def _at_home(folder: Path) -> str:
    """Say where the personal prompts are whose shared one is at a federation's server."""
    is_server = (folder.parent / "agreement.json").exists() and not _is_store(folder)
    return " In a federation each client's own prompt is in its own store alone." if is_server else ""


def _of_run(file: Path) -> Any:
    """Return the backbone of the run that a file lies in, which knows where its weights are; None if there is none."""
    from hushprompt.config import parse as configs

    run = file.parent.parent
    if file.parent.name != PROMPTS or not (run / "config.toml").exists():
        return None
    try:
        return configs.load_stored(run).backbone
    except HushpromptError:  # a config of another version, perhaps; the file may still name its backbone
        return None


def _section(backbone: Any) -> Any:
    """Return a backbone that is given in any of the ways of `load_prompt`."""
    from hushprompt.config import parse as configs

    if isinstance(backbone, Path) or (isinstance(backbone, str) and backbone.endswith(".toml")):
        values = configs.read(Path(backbone).expanduser())
        if "backbone" not in values:
            raise ConfigError(f"{backbone} has no section [backbone]. Give a file with one, such as a run's config.")
        backbone = values["backbone"]
    if isinstance(backbone, (str, Mapping)):
        return choose("backbone", with_sections({}, {"backbone": backbone})["backbone"])
    return backbone
