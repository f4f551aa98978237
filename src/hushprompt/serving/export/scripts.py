"""A prompt with a short program that applies it by its backbone's own library, without this package."""

from __future__ import annotations

import re
from pathlib import Path

from hushprompt import files
from hushprompt.errors import ConfigError
from hushprompt.serving.prompt import Prompt

NAME = "predict.py"
HEAD = '''"""Say what images show: python predict.py {usage}photo.jpg ..."""

import json, pathlib, sys
{imports}
from PIL import Image
from safetensors import safe_open

with safe_open(pathlib.Path(__file__).with_name("prompt.safetensors"), framework="pt") as file:
    head, about = {{name: file.get_tensor(name) for name in file.keys()}}, json.loads(file.metadata()["hushprompt"])
'''
OPEN_CLIP = """model = open_clip.create_model({model}).eval()
preprocess = image_transform_v2(PreprocessCfg(**about["preprocessing"]), is_train=False)
images = torch.stack([preprocess(Image.open(path).convert("RGB")) for path in sys.argv[1:]])
with torch.no_grad():
    features = model.encode_image(images, normalize=True)
"""
TRANSFORMERS = """path = {model}
model, processor = AutoModel.from_pretrained(path).eval(), AutoImageProcessor.from_pretrained(path, backend="pil")
inputs = processor([Image.open(path).convert("RGB") for path in sys.argv[1:]], return_tensors="pt")
with torch.no_grad():
    features = torch.nn.functional.normalize(model.get_image_features(**inputs).pooler_output, dim=-1)
"""
TAIL = """\
scores = head["logit_scale"] * features @ head["text_features"].T + head.get("bias", 0) + head.get("log_prior", 0)
probabilities = scores.softmax(dim=-1)
for path, row in zip(sys.argv[1:], probabilities):
    print(path, about["class_names"][int(row.argmax())], f"{row.max():.4f}", sep="\\t")
print(about["privacy"], file=sys.stderr)
"""
ARGUMENT = "sys.argv.pop(1)"
"""Stands for a file or folder that lies on this machine alone: whoever runs the program names theirs."""


def write_open_clip(prompt: Prompt, folder: Path) -> None:
    """Write a program that needs open_clip alone.

    Raises:
        ConfigError: the backbone is not one of open_clip, or not in float32.
        DataError: the prompt's scores are not linear in an image's features.
    """
    settings = _settings(prompt, "open_clip")
    # The model knows its activation; for open_clip's factory it is a word beside the name of the weights.
    is_quick = getattr(prompt.load_backbone(), "uses_quick_gelu", False)
    activation = ", force_quick_gelu=True" if is_quick else ""
    files.write_text(folder / NAME, open_clip_script(settings, activation))


def open_clip_script(settings: dict[str, str], more: str = "") -> str:
    """Return the program for a backbone's section; `more` are further arguments of `open_clip.create_model`."""
    architecture, tag = settings.get("architecture", ""), settings.get("pretrained", "")
    imports = "import open_clip, torch\nfrom open_clip.transform import PreprocessCfg, image_transform_v2"
    if not architecture:
        usage, model = "local-dir:FOLDER ", ARGUMENT
    elif ":" in architecture:
        usage, model = "", literal(architecture)
    else:
        weights = literal(tag) if tag else ARGUMENT
        usage, model = "" if tag else "WEIGHTS ", f"{literal(architecture)}, pretrained={weights}{more}"
    return HEAD.format(usage=usage, imports=imports) + OPEN_CLIP.format(model=model) + TAIL


def write_transformers(prompt: Prompt, folder: Path) -> None:
    """Write a program that needs transformers alone; as `write_open_clip`."""
    files.write_text(folder / NAME, transformers_script(_settings(prompt, "transformers")))


def transformers_script(settings: dict[str, str]) -> str:
    """Return the program for a backbone's section."""
    model = settings.get("model", "")
    usage, path = ("", literal(model)) if model else ("FOLDER ", ARGUMENT)
    imports = "import torch\nfrom transformers import AutoImageProcessor, AutoModel"
    return HEAD.format(usage=usage, imports=imports) + TRANSFORMERS.format(model=path) + TAIL


def literal(name: str) -> str:
    """Return a name as a text of a program; a prompt file may hold anything, so other signs are refused.

    >>> literal("openai/clip-vit-base-patch16")
    '"openai/clip-vit-base-patch16"'
    """
    if not re.fullmatch(r"[\w./:@-]+", name, re.ASCII):
        raise ConfigError(f"{name!r} is no name of a model, so no program is made from it. Name the backbone yourself.")
    return f'"{name}"'


def _settings(prompt: Prompt, library: str) -> dict[str, str]:
    """Return the backbone's section; a prompt that such a program cannot apply is refused."""
    found = prompt.header.backbone
    if found is None:
        raise ConfigError("The prompt does not say which backbone it belongs to: name it (backbone=..., --backbone).")
    if found["name"] != library:
        raise ConfigError(
            f"This prompt belongs to the backbone {found['name']}, which {library} does not run. Use another format, "
            "such as onnx."
        )
    if found.get("precision", "float32") != "float32":
        raise ConfigError(f"The program computes in float32, and this prompt's backbone in {found['precision']}.")
    prompt.classifier()
    return found
