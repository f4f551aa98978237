"""Image tower and prompt in one ONNX file: from pixels to probabilities, with a program that needs no torch.

The file is written by torch's exporter and run once by onnxruntime, on random images that the program's own lines make
ready: one that does not give our probabilities is not left behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from hushprompt import files, seeding
from hushprompt.errors import ConfigError, DataError, first_line
from hushprompt.extras import require
from hushprompt.models.image_graph import PixelRecipe
from hushprompt.serving.prompt import Prompt

MODEL, LABELS, RECIPE, SCRIPT = "model.onnx", "labels.json", "preprocess.json", "predict.py"
TOLERANCE = 1e-5
"""Largest difference of a probability that is accepted."""
SCRIPT_START = '''\
"""Say what pictures show: python predict.py photo.jpg ...; needs onnxruntime, numpy and Pillow alone."""
import json, sys, numpy as np, onnxruntime
from pathlib import Path
from PIL import Image

labels, how = (json.loads(Path(__file__).with_name(f"{name}.json").read_text()) for name in ("labels", "preprocess"))
session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"), providers=["CPUExecutionProvider"])
for file, image in ((name, Image.open(name).convert("RGB")) for name in sys.argv[1:]):
'''
SCRIPT_END = """    row = session.run(None, {"pixels": pixels})[0][0]
    print(file, *(f"{labels[at]} {row[at]:.6f}" for at in row.argsort()[:-6:-1]), sep="\\t")
"""
SCALED = {
    "down": 'int(how["short_side"] * side / min(image.size))',
    "nearest": 'round(side * (how["short_side"] / min(image.size)))',
}
"""A side's length after resizing, in the arithmetic of the library that the model comes from."""
OFFSET = {"down": "(side - kept) // 2", "nearest": "round((side - kept) / 2)"}
CUT = """scaled = [{scaled} for side in image.size]
left, top = ({offset} for side, kept in zip(scaled, how["size"]))
image = image.resize(scaled, {method})
image = image.crop((left, top, left + how["size"][0], top + how["size"][1]))
"""
STRETCHED = """image = image.resize(how["size"], {method})
"""
PIXELS = """pixels = ((np.asarray(image) / 255 - how["mean"]) / how["std"]).transpose(2, 0, 1)[None].astype("float32")
"""


class Probabilities(nn.Module):
    """Image tower and prompt as one module."""

    def __init__(self, tower: nn.Module, prompt: Prompt) -> None:
        """Put them together; the text tower's work is done here."""
        super().__init__()
        self.tower = tower
        self._score = prompt.logits
        self._score(torch.zeros(1, prompt.model.backbone.feature_dim, device=prompt.model.device))

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c"]:
        """Return the probability of every class."""
        return self._score(self.tower(pixels)).softmax(dim=1)


def write(prompt: Prompt, folder: Path) -> None:
    """Write model.onnx, its labels, how an image is made ready for it, and a program that does both.

    Raises:
        ConfigError: a package is missing, or the backbone's image tower cannot be written so.
        DataError: the file does not give our probabilities, or the prompt scores patches.
    """
    require("onnx", "The format onnx", "onnx", "onnxscript", "onnxruntime")
    if prompt.feature_kind == "patches":
        raise DataError(f"{prompt.method} compares patches of an image in steps that depend on it, which ONNX cannot.")
    tower, recipe = prompt.model.backbone.image_graph()
    weight = next(tower.parameters())
    if weight.dtype != torch.float32:
        raise ConfigError(f"This prompt's backbone computes in {weight.dtype}, and ONNX is written in float32 alone.")
    width, height = recipe.size
    program = _program(Probabilities(tower, prompt).eval(), torch.rand(2, 3, height, width, device=weight.device))
    _forget_origins(program.model)
    program.model.metadata_props["privacy"] = prompt.privacy
    program.save(str(folder / MODEL))
    files.write_text(folder / LABELS, json.dumps(prompt.classes, indent=1) + "\n")
    files.write_text(folder / RECIPE, json.dumps(_described(recipe), indent=1) + "\n")
    files.write_text(folder / SCRIPT, script(recipe))
    _check(prompt, recipe, folder / MODEL)


def script(recipe: PixelRecipe) -> str:
    """Return the program."""
    return SCRIPT_START + textwrap.indent(steps(recipe), "    ") + SCRIPT_END


def steps(recipe: PixelRecipe) -> str:
    """Return the lines that turn an RGB `image` into `pixels` [1, 3, h, w], by what `how` says."""
    method = 'Image.Resampling[how["interpolation"].upper()]'
    cut = CUT.format(scaled=SCALED[recipe.long_side_rounding], offset=OFFSET[recipe.crop_rounding], method=method)
    return (cut if recipe.short_side else STRETCHED.format(method=method)) + PIXELS


def _described(recipe: PixelRecipe) -> dict[str, Any]:
    steps = "RGB; resize; keep the center of this size (width, height); scale to [0, 1]; minus mean; over std"
    return {"input": "pixels, float32 [n, 3, height, width]", "steps": steps, **dataclasses.asdict(recipe)}


def _program(module: nn.Module, pixels: Float[Tensor, "n 3 h w"]) -> torch.onnx.ONNXProgram:
    """Return a module as ONNX, for batches of any size."""
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module, (pixels,), dynamo=True, verbose=False, input_names=["pixels"],
                output_names=["probabilities"], dynamic_shapes={"pixels": {0: torch.export.Dim("n")}},
            )  # fmt: skip
    except RuntimeError as error:
        raise DataError(f"torch's exporter cannot write this image tower ({first_line(error)}).") from error
    assert program is not None
    return program


def _forget_origins(model: Any) -> None:
    """Drop what the exporter notes of every node: the lines of code that it comes from, with their paths here."""
    for graph in (model.graph, *model.functions.values()):
        for part in (graph, *graph, *graph.inputs, *graph.outputs, *getattr(graph, "initializers", {}).values()):
            part.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own passes to itself: the result is checked."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _check(prompt: Prompt, recipe: PixelRecipe, path: Path) -> None:
    """Run the file on made-up pictures, all in one batch; DataError where it does not give our probabilities."""
    import onnxruntime

    images = _pictures(recipe)
    pixels = np.concatenate([pixels_of(recipe, image) for image in images])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": pixels})
    difference = float(np.abs(found - prompt.probabilities(images)).max())
    if not difference <= TOLERANCE:
        raise DataError(
            f"The ONNX file's probabilities differ from those of the prompt by up to {difference:.2g}, where "
            f"{TOLERANCE:g} is allowed, so it is not written."
        )


def pixels_of(recipe: PixelRecipe, image: Image.Image) -> Float[np.ndarray, "1 3 h w"]:
    """Make a picture ready by the program's own lines."""
    names: dict[str, Any] = {"np": np, "Image": Image, "image": image, "how": _described(recipe)}
    exec(compile(steps(recipe), SCRIPT, "exec"), names)
    pixels: np.ndarray = names["pixels"]
    return pixels


def _pictures(recipe: PixelRecipe) -> list[Image.Image]:
    """Draw smooth color pictures, smaller and larger than the tower's, wide and tall."""
    rng = seeding.stream(0, "pictures of an export")
    width, height = recipe.size
    shapes = [(width, height), (2 * width + 5, height + 6), (width - 3, 3 * height), (width // 2 + 1, height // 3 + 1)]
    noise = [Image.fromarray(rng.integers(256, size=(9, 9, 3), dtype=np.uint8)) for _ in shapes]
    return [image.resize(shape, Image.Resampling.BICUBIC) for image, shape in zip(noise, shapes, strict=True)]
