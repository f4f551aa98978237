"""A prompt of a generative model as an adapter of the package peft, with what peft does wrong with one written beside.

Only a prompt in front of everything has a form there. Logits are then those of this package; see tests/serving.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hushprompt import files
from hushprompt.errors import ConfigError
from hushprompt.models.generative import GenerativeBackbone
from hushprompt.serving.export import card
from hushprompt.serving.export.scripts import literal
from hushprompt.serving.prompt import Prompt

ADAPTER, CONFIG, INPUT, SCRIPT = "adapter_model.safetensors", "adapter_config.json", "input.json", "ask.py"
FAMILIES = {
    "smolvlm": "pixels[None, None]", "idefics3": "pixels[None, None]", "llava": "pixels[None]",
    "internvl": "pixels[None]",
}  # fmt: skip
"""Backbones that peft reads rightly, with the form in which each takes an image."""
WRONG = {
    "qwen2_vl": "counts positions in one dimension, where the model has three",
    "qwen2_5_vl": "counts positions in one dimension, where the model has three",
    "llava_onevision": "leaves the picture to the model, which cuts a single one into tiles",
    "qwen2_audio": "does not hand the sound to the model",
    "voxtral": "does not hand the sound to the model",
}
"""What peft does wrong with the others."""
TESTED = "0.21.2"
"""Version of peft that the traps were seen in."""
PROGRAM = '''"""Ask about a picture: python ask.py {usage}photo.jpg ["Question?"]; needs peft, transformers, Pillow."""

import argparse, json, pathlib

here = pathlib.Path(__file__).parent
how = json.loads((here / "input.json").read_text())
parser = argparse.ArgumentParser(description="Ask about a picture.")
{argument}parser.add_argument("photo")
parser.add_argument("question", nargs="?", default=how["question"])
given = parser.parse_args()

import numpy as np, torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

try:
    image = Image.open(given.photo).convert("RGB").resize((how["side"], how["side"]), Image.Resampling[how["resample"]])
    tokenizer = AutoTokenizer.from_pretrained({model})
    network = AutoModelForImageTextToText.from_pretrained({model}, dtype=torch.{precision})
except OSError as error:  # no such file, no picture, or no such model
    parser.error(str(error).splitlines()[0])
mean, std = torch.tensor(how["mean"]), torch.tensor(how["std"])
pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std
texts = how["between"] + given.question, how["header"]
parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
ids = torch.tensor([[*how["first_ids"], *parts[0], *parts[1]]])
model = PeftModel.from_pretrained(network, here).eval()
inputs = {{"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": {pixels}.to(network.dtype)}}
with torch.no_grad():
    # use_cache=False, or the answer is another one without a warning: see README.md
    answer = model.generate(**inputs, max_new_tokens=32, do_sample=False, use_cache=False, eos_token_id=how["end_ids"])
print(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True).strip())
'''
ARGUMENT = 'parser.add_argument("model", metavar="MODEL", help="its folder, or its name on the hub")\n'
"""Of a program whose model lay in a folder of the machine where the prompt was exported."""
USE = """The prompt was trained in front of everything else, which is where peft puts it: logits are equal to those of
hushprompt. `ask.py` answers a question about a picture in words:

```text
pip install peft transformers pillow
python ask.py {usage}photo.jpg
```

or, in a program of your own:

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

network = AutoModelForImageTextToText.from_pretrained("{base}")
model = PeftModel.from_pretrained(network, "FOLDER").eval()  # this folder
answer = model.generate(**inputs, do_sample=False, use_cache=False)
```

`input.json` has what stands around the picture and the question, and how a picture is made ready: one square, no tiles.

Two traps, seen in peft {version}:

- **`generate` with its cache of keys and values, which is the default, gives other answers without any warning.**
  Always pass `use_cache=False`.
- **On Qwen2-VL and Qwen2.5-VL peft counts positions in one dimension, where the model has three**, and the logits are
  wrong. This prompt fits the model named above alone, and hushprompt writes no adapter for those two."""


def write(prompt: Prompt, folder: Path) -> None:
    """Write adapter, model card and a program that asks.

    Raises:
        ConfigError: peft has no form for this prompt, or would read it wrongly.
    """
    name, settings = _checked(prompt)
    frozen: Any = prompt.model
    backbone: GenerativeBackbone = frozen.backbone
    context = prompt.tensors["context"].float()
    files.write_tensors(folder / ADAPTER, {"prompt_embeddings": context}, json.dumps({"privacy": prompt.privacy}))
    model = settings.get("model", "")
    files.write_text(folder / CONFIG, _in_json(_config(backbone, len(context), model)))
    files.write_text(folder / INPUT, _in_json(_input(backbone, frozen.how_asked[0])))
    usage, argument, path = ("", "", literal(model)) if model else ("MODEL ", ARGUMENT, "given.model")
    shown = {"usage": usage, "argument": argument, "model": path, "precision": backbone.config.precision}
    files.write_text(folder / SCRIPT, PROGRAM.format(**shown, pixels=FAMILIES[name]))
    use = USE.format(usage=usage, base=model or "MODEL", version=TESTED)
    files.write_text(folder / card.NAME, card.card(prompt, {"Use with peft": [use]}, library="peft"))


def _checked(prompt: Prompt) -> tuple[str, dict[str, Any]]:
    """Return the backbone's name and section; ConfigError for what peft cannot hold."""
    settings = dict(prompt.header.backbone or {})
    name = str(settings.get("name"))
    if name not in FAMILIES:
        why = WRONG.get(name, "is not known to read it rightly")
        raise ConfigError(
            f"This prompt belongs to the backbone {name}, with which peft's logits are wrong: it {why}. Use hushprompt "
            f"predict or serve, or train with one of {', '.join(FAMILIES)}."
        )
    if settings.get("prompt_position", "tail") != "front":
        raise ConfigError(
            "This prompt stands behind the question, and peft puts one before everything, where it means something "
            'else. Train with backbone.prompt_position = "front" for peft, or use hushprompt predict or serve.'
        )
    if settings.get("media_tokens", "none") != "none":
        raise ConfigError(
            "This prompt was trained with averaged tokens of an image, which peft does not average. Train with "
            'backbone.media_tokens = "none" for peft, or use hushprompt predict or serve.'
        )
    return name, settings


def _config(backbone: GenerativeBackbone, num_tokens: int, model: str) -> dict[str, Any]:
    """Return peft's own description of the adapter."""
    return {
        "peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "base_model_name_or_path": model or None,
        "num_virtual_tokens": num_tokens, "token_dim": backbone.token_width, "num_transformer_submodules": 1,
        "num_layers": backbone.num_layers, "num_attention_heads": backbone.num_heads,
        "prompt_tuning_init": "RANDOM", "inference_mode": True,
    }  # fmt: skip


def _input(backbone: GenerativeBackbone, question: str) -> dict[str, Any]:
    """Return what stands around picture and question, and how pixels are made."""
    turn, pixels = backbone.turn, backbone.preprocessing
    media = backbone.tokenize(backbone.config.family.placeholder) * int(pixels["tokens"])
    return {
        "question": question,
        "first_ids": [*backbone.start_ids, *backbone.tokenize(turn.before), *media],
        "between": turn.between,
        "header": turn.header,
        "end_ids": sorted(backbone.stop_ids),
        "side": pixels["side"],
        "resample": pixels["resample"],
        **{name: [[[value]] for value in pixels[name]] for name in ("mean", "std")},
    }


def _in_json(values: dict[str, Any]) -> str:
    """Write values for people, too."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
