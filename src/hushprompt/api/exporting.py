"""A trained prompt as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hushprompt.errors import files_told
from hushprompt.serving.export.formats import export_prompt
from hushprompt.serving.loading import load_prompt
from hushprompt.serving.prompt import Prompt

if TYPE_CHECKING:
    from hushprompt.api.run import Run


@files_told()
def export(
    source: Run | Prompt | str | Path,
    *,
    to: str,
    out: str | Path,
    client: int | str | None = None,
    backbone: Any = None,
) -> Path:
    """Write a trained prompt in another program's form, to a new folder; `load_prompt` reads each of them.

    Args:
        source: a prompt, or what `load_prompt` takes: a run, a prompt file, a client's store, an export.
        to: "head" (a linear classifier of the backbone's image features), "onnx" (image tower and prompt in one file,
            with a program that needs onnxruntime, numpy and Pillow), "open_clip" or "transformers" (the prompt with a
            program for that library), "peft" (an adapter of that package, of a generative model's prompt that stands
            in front, with a program that asks), or "card" (README.md, the model card of a hub).
        out: the folder, which must not exist yet or be empty.
        client: as for `load_prompt`.
        backbone: as for `load_prompt`.

    Returns:
        `out`.

    Raises:
        ConfigError: there is no such format, the folder is not empty, a package is missing, or the backbone is not
            known or cannot be written so.
        DataError: there is no such prompt, or its scores are none that the format can hold.
    """
    prompt = source if isinstance(source, Prompt) else load_prompt(Path(source), client=client, backbone=backbone)
    return export_prompt(prompt, to, Path(out))
