"""A trained prompt as an object, read from its file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hushprompt.config.overrides import with_sections
from hushprompt.config.values import choose
from hushprompt.errors import ConfigError, DataError, files_told
from hushprompt.privacy import statements
from hushprompt.runs import records
from hushprompt.runs.prompts import PromptHeader, read_prompt
from hushprompt.user_text import nfc

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from hushprompt.models.base import Model


@dataclass(frozen=True, kw_only=True, repr=False)
class Prompt:
    """A prompt that a run has trained: its tensors, and what it says of itself."""

    path: Path
    tensors: Mapping[str, Tensor] = field(repr=False)
    """By name; of most methods `context` [t, e], or [c, t, e] with one for each class, and `text_features` [c, d] with
    `logit_scale`, and where there are some `bias` [c] and `log_prior` [c], in logits."""
    header: PromptHeader = field(repr=False)
    """What the file says: method, class names, fingerprint of the backbone, how a prompt is put together, privacy."""
    backbone: Any = None
    """What it was loaded with: a backbone, or its section of a config; None: what the file says."""

    @property
    def method(self) -> str:
        """Name of the method that trained it."""
        return self.header.method

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.header.class_names

    @property
    def privacy(self) -> str:
        """What it guarantees, in a sentence: epsilon with all that gives it meaning."""
        said = self.header.privacy
        return said if self.header.noise_source else f"{said} {statements.SOURCE_UNKNOWN}"

    def load_backbone(self) -> Model:
        """Return the frozen model that the prompt was trained with, loaded where it is given by its section.

        Raises:
            ConfigError: neither you nor the file, which names no paths, says which one it is, or it is another one: a
                prompt fits no other.
        """
        chosen = self.backbone
        if chosen is None:
            if self.header.backbone is None:
                raise ConfigError("The prompt was loaded without a backbone: load_prompt(path, backbone=...).")
            chosen = choose("backbone", self.header.backbone)
        loaded: Model = chosen.load() if hasattr(chosen, "load") else chosen
        if loaded.fingerprint != self.header.backbone_fingerprint:
            raise ConfigError(
                f"{self.path} was trained with another backbone: its fingerprint is "
                f"{self.header.backbone_fingerprint[:12]}, not {loaded.fingerprint[:12]}. A prompt fits no other."
            )
        return loaded

    def logits(self, image_features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Score unit-norm image features against all classes, with the file alone; a softmax gives probabilities.

        Raises:
            DataError: the file has no text features: of format 1, or of a method whose scores are not linear.
        """
        head = self.tensors
        if "text_features" not in head:
            raise DataError(f"{self.path} has no text features to score with. How to use it: {self.header.prompt}.")
        scores = head["logit_scale"] * image_features @ head["text_features"].T
        return scores + head.get("bias", 0) + head.get("log_prior", 0)

    def __repr__(self) -> str:
        """Say what it is, and what it guarantees."""
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in self.tensors.items())
        return f"Prompt({str(self.path)!r}): {self.method}, {len(self.classes)} classes, {shapes}\n{self.privacy}"


@files_told()
def load_prompt(path: str | Path, *, client: int | str | None = None, backbone: Any = None) -> Prompt:
    """Read a trained prompt.

    Args:
        path: a prompt file, or a run folder, or its folder of prompts.
        client: in a folder, whose prompt: number or name, such as 0 or "client-0"; None: the global one.
        backbone: the frozen model that it was trained with: loaded, a section of a config, or a name; None: the one
            that the file names.

    Raises:
        DataError: there is no such prompt, or its file is damaged.
        ConfigError: a client is named, and `path` is a file; or there is no such backbone.
    """
    file = _file(Path(path), client)
    header, tensors = read_prompt(file)
    if isinstance(backbone, (str, Mapping)):
        backbone = choose("backbone", with_sections({}, {"backbone": backbone})["backbone"])
    return Prompt(path=file, tensors=tensors, header=header, backbone=backbone)


def _file(path: Path, client: int | str | None) -> Path:
    """Return the file of a prompt.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        if client is not None:
            raise ConfigError(f"{path} is the prompt of one already: leave client out, or give the run folder.")
        return path
    folder = path / "prompts" if (path / "prompts").is_dir() else path
    name = "global" if client is None else f"client-{_client_id(folder.parent, client):03d}"
    file = folder / f"{name}.safetensors"
    if not file.exists():
        known = ", ".join(sorted(each.stem for each in folder.glob("*.safetensors"))) or "none"
        raise DataError(f"There is no prompt {name} in {folder}; there are: {known}.")
    return file


def _client_id(run_folder: Path, client: int | str) -> int:
    """Return the number of a client that is given by number or name."""
    if isinstance(client, int):
        return client
    names: list[str] = []
    if (run_folder / "partition.json").exists():
        names = records.read_json(run_folder / "partition.json")["client_names"]
    known = [nfc(name) for name in names]
    if nfc(client) in known:
        return known.index(nfc(client))
    number = re.fullmatch(r"(?:client[- ])?0*(\d+)", client)
    if number is None:
        raise DataError(f"There is no client {client!r}; known: {', '.join(names) or 'numbers from 0'}.")
    return int(number[1])
