"""Models of open_clip: OpenAI's CLIP, LAION's, MobileCLIP, SigLIP and every other architecture that it knows.

The text towers take embedded prompts and otherwise do what open_clip's `encode_text` does; tests hold both to 1e-5.
SigLIP's logit bias is left out: a constant on all logits changes no softmax over classes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt import checks
from hushprompt.errors import ConfigError, DataError
from hushprompt.models.base import Capabilities, Model, check_template, fingerprint, optional
from hushprompt.models.hub import ask_once
from hushprompt.models.image_graph import ImageGraph
from hushprompt.models.open_clip_image import ImageTower, num_patches_of
from hushprompt.models.open_clip_text import prompt_tokenizer, text_tower
from hushprompt.models.open_clip_weights import is_torchscript, load_weights
from hushprompt.models.placing import Precision, lowered, precision_settings
from hushprompt.registry import BACKBONES

CONFIG = "open_clip_config.json"
LOCAL_DIR = "and use --set backbone.architecture=local-dir:FOLDER, with backbone.pretrained empty."


@BACKBONES.register("open_clip")
@dataclass(frozen=True, kw_only=True)
class OpenClip:
    """The `backbone` section of an open_clip model: an architecture, and a pretrained tag or a local checkpoint."""

    architecture: str = "ViT-B-16"
    """Name that `open_clip.list_models()` knows, "hf-hub:ORG/NAME", or "local-dir:FOLDER" with open_clip_config.json,
    weights and, if the model has one of its own, the tokenizer."""
    pretrained: str = ""
    """Tag of the weights, such as "openai" or "laion2b_s34b_b88k". With a checkpoint it still says how they were
    trained (activation, preprocessing), and nothing is downloaded."""
    checkpoint: str = ""
    """Local file of weights: safetensors, a .pt state dict, OpenAI's TorchScript archive, or .npz of big_vision."""
    precision: Precision = "float32"
    """Of both towers; "bfloat16" and "float16" change results. Prompts, clipping and noise stay float32."""
    template: str = "a photo of a {}."
    """Hand template of the zero-shot row."""

    def __post_init__(self) -> None:
        check_template(self.template)

    def load(self) -> Model:
        """Read the model.

        Raises:
            ConfigError: open_clip is not installed, or does not know the architecture or the tag.
            DataError: weights or tokenizer are missing, damaged, or of another architecture.
        """
        open_clip = optional("open_clip", "open_clip")
        recipe = _recipe(open_clip, self)
        return OpenClipModel(open_clip, self, recipe, find_tokenizer(open_clip, recipe.name))


@dataclass(frozen=True)
class Recipe:
    """What open_clip's files say about a model."""

    name: str
    """The architecture, spelled as open_clip lists it."""
    model: dict[str, Any]
    """Settings of the network."""
    preprocess: dict[str, Any]
    """Settings of the image transform, where they differ from open_clip's defaults."""
    weights: Path


class OpenClipModel(Model):
    """Both towers of an open_clip model, frozen."""

    uses_quick_gelu: bool
    """Whether its weights were trained with the quick approximation of GELU."""

    def __init__(self, open_clip: Any, config: OpenClip, recipe: Recipe, tokenizer: Any) -> None:
        """Read a network and put it together with its tokenizer.

        Args:
            open_clip: the library.
            config: the section.
            recipe: how to make the network.
            tokenizer: of the library.
        """
        network = _network(open_clip, recipe)
        self._tokenizer = prompt_tokenizer(tokenizer)
        self.start_ids, self.end_ids = self._tokenizer.start_ids, self._tokenizer.end_ids
        self.pad_id = self._tokenizer.pad_id
        self._images = ImageTower(open_clip, network, recipe.preprocess)
        self.preprocessing = self._images.preprocess
        settings = [recipe.model, self._images.preprocess, self._tokenizer.settings()]
        self.fingerprint = fingerprint(network, *settings, *precision_settings(config.precision))
        self._model = network
        self.uses_quick_gelu = bool(recipe.model.get("quick_gelu"))
        self._text = text_tower(self._model, self.pad_id)
        self._text.unfuse()
        self._dtype = lowered(self._model, config.precision)
        self.causal_tower = self._text.causal_tower(self._dtype)
        self.capabilities = Capabilities(
            context_window=tokenizer.context_length,
            num_patches=num_patches_of(open_clip, network.visual),
            shares_prefix=self.causal_tower is not None,
            sees_padding=self._text.sees_padding,
            runs_on_gpu=True,
        )
        self.token_width: int = self._text.embedding.embedding_dim
        self.feature_dim: int = recipe.model["embed_dim"]
        self.logit_scale = float(self._model.logit_scale.exp())
        self.template = config.template

    def to(self, device: str) -> None:
        """Move both towers."""
        self._model.to(device)
        self.causal_tower = self._text.causal_tower(self._dtype)

    @torch.no_grad()
    def encode_images(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Encode uint8 images [h, w, 3] of any size by open_clip's own transform."""
        return self._images.encode(images)

    @torch.no_grad()
    def encode_patches(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n m d"]:
        """Encode uint8 images [h, w, 3] of any size, and keep one feature for each patch."""
        return self._images.encode_patches(images)

    def image_graph(self) -> ImageGraph:
        """Return the image tower, and open_clip's transform as a recipe."""
        return self._images.graph()

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of open_clip's tokenizer without start and end."""
        return self._tokenizer.encode(text)

    def embed(self, token_ids: Int[Tensor, "*l"]) -> Float[Tensor, "*l e"]:
        """Look up token embeddings."""
        return self._text.embedding(token_ids).float()

    def encode_prompts(self, prompts: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """Encode one sequence a class."""
        return F.normalize(self._text.encode(prompts.to(self._dtype), end_index).float(), dim=-1)


def _recipe(open_clip: Any, config: OpenClip) -> Recipe:
    """Find the settings of a model and its weights, downloading them only if nothing local is named."""
    schema, name = open_clip.factory.parse_model_name(config.architecture)
    checkpoint = Path(config.checkpoint).expanduser() if config.checkpoint else None
    if checkpoint is not None and not checkpoint.is_file():
        raise DataError(f"The checkpoint {checkpoint} does not exist. Check backbone.checkpoint.")
    if schema is None:
        return _known_recipe(open_clip, config, checkpoint)
    if config.pretrained:
        raise ConfigError(
            f"backbone.pretrained must stay empty with architecture = {config.architecture!r}, which brings its own "
            f"settings, got {config.pretrained!r}."
        )
    if schema == "local-dir":
        settings, weights = _folder(open_clip, Path(name).expanduser(), checkpoint)
    else:
        settings, weights = _hub(open_clip, name, checkpoint)
    return Recipe(config.architecture, settings["model_cfg"], settings.get("preprocess_cfg", {}), weights)


def _known_recipe(open_clip: Any, config: OpenClip, checkpoint: Path | None) -> Recipe:
    """Find a model that open_clip knows by name."""
    name = config.architecture.replace("/", "-")
    model = open_clip.get_model_config(name)
    if model is None:
        raise ConfigError(
            f"open_clip knows no architecture {config.architecture!r}.{checks.nearest(name, open_clip.list_models())} "
            "All of them: python -c 'import open_clip; print(open_clip.list_models())'."
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not config.pretrained and checkpoint is None:
        raise ConfigError(
            f"Name the weights of {name} by backbone.pretrained ({', '.join(tags) or 'it has no tag'}) or by "
            "backbone.checkpoint, a local file."
        )
    trained: dict[str, Any] = open_clip.get_pretrained_cfg(name, config.pretrained) if config.pretrained else {}
    if config.pretrained and not trained:
        raise ConfigError(
            f"{name} has no pretrained tag {config.pretrained!r}; known: {', '.join(tags) or 'none'}."
            f"{checks.nearest(config.pretrained, tags)}"
        )
    if trained:  # OpenAI's and some other weights need QuickGELU, whatever the architecture's name says
        model["quick_gelu"] = bool(trained.get("quick_gelu", False))
    elif checkpoint is not None and is_torchscript(checkpoint):  # OpenAI's own files
        model["quick_gelu"] = True
    return Recipe(name, model, trained, checkpoint or _download(open_clip, name, config.pretrained, trained))


def _download(open_clip: Any, name: str, tag: str, trained: dict[str, Any]) -> Path:
    """Fetch the weights of a tag, or take them from the hub's cache."""
    try:
        if trained.get("hf_hub"):
            _ask_for_weights(open_clip, *trained["hf_hub"].rsplit("/", 1))
        return Path(open_clip.download_pretrained(trained))
    except Exception as error:  # whatever the hub's client and its network layers raise
        hub = "/".join(trained.get("hf_hub", "").split("/")[:2])  # a file name may follow
        source = f"a weights file of https://huggingface.co/{hub}" if hub else trained.get("url", "its page")
        advice = f"download {source}, copy it here, and add --set backbone.checkpoint=PATH; leave backbone.pretrained."
        if open_clip.get_model_config(name)["text_cfg"].get("hf_tokenizer_name"):
            advice = f"hf download {hub} --local-dir FOLDER; copy the folder here, {LOCAL_DIR}"
        raise DataError(
            f"The weights {tag!r} of {name} could not be fetched ({error}). On a machine with internet: {advice}"
        ) from error


def _folder(open_clip: Any, folder: Path, checkpoint: Path | None) -> tuple[dict[str, Any], Path]:
    """Read the settings in a folder of open_clip's layout, and find its weights."""
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        _ = settings["model_cfg"]["embed_dim"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is missing or no open_clip config ({error!r}). The folder of local-dir: must hold "
            "open_clip_config.json and the weights, as a model repository of open_clip on the hub does."
        ) from error
    found = checkpoint or open_clip.factory._find_checkpoint_in_dir(folder)
    if found is None:
        raise DataError(
            f"{folder} has no weights (*.safetensors, *.bin, *.pth). Put open_clip_model.safetensors there."
        )
    return settings, Path(found)


def _hub(open_clip: Any, name: str, checkpoint: Path | None) -> tuple[dict[str, Any], Path]:
    """Fetch settings and weights of a hub repository, or take them from the hub's cache."""
    try:
        ask_once(name, CONFIG)
        settings = open_clip.factory._get_hf_config(name)
        if checkpoint is None:
            _ask_for_weights(open_clip, name)
        return settings, checkpoint or Path(open_clip.download_pretrained_from_hf(name))
    except Exception as error:  # whatever the hub's client and its network layers raise
        raise DataError(
            f"The model {name} could not be fetched ({error}). On a machine with internet: hf download {name} "
            f"--local-dir FOLDER; copy the folder here, {LOCAL_DIR}"
        ) from error


def _ask_for_weights(open_clip: Any, name: str, file: str = "") -> None:
    """Ask the hub once for a file of weights, or for one that open_clip takes in its place."""
    pretrained = open_clip.pretrained
    file = file or pretrained.HF_WEIGHTS_NAME
    ask_once(name, *pretrained._get_safe_alternatives(file), file)


def _network(open_clip: Any, recipe: Recipe) -> Any:
    """Build the network of a recipe and fill it with its weights; frozen."""
    network = _built(open_clip, recipe.model)
    load_weights(open_clip, network, recipe.weights, recipe.name)
    return network.eval().requires_grad_(requires_grad=False)


def _built(open_clip: Any, settings: dict[str, Any]) -> Any:
    """Make the network with random weights, as open_clip's factory does; the global random state stays as it is."""
    settings = copy.deepcopy(settings)
    is_hub_text = bool(settings["text_cfg"].get("hf_model_name"))
    if is_hub_text:
        optional("transformers", "transformers")
        settings["text_cfg"]["hf_model_pretrained"] = False
    if settings["vision_cfg"].get("timm_model_name"):
        settings["vision_cfg"]["timm_model_pretrained"] = False
    is_custom = settings.pop("custom_text", False) or is_hub_text
    cls = open_clip.CLIP
    if is_custom:
        cls = open_clip.CoCa if "multimodal_cfg" in settings else open_clip.CustomTextCLIP
    with torch.random.fork_rng(devices=[]):
        try:
            if is_hub_text:
                ask_once(settings["text_cfg"]["hf_model_name"], "config.json")
            return cls(**settings)
        except OSError as error:
            raise DataError(
                f"The text tower's settings could not be read from {settings['text_cfg'].get('hf_model_name')!r} "
                f"({error}). Put that repository into the Hugging Face cache, or name a local folder as hf_model_name "
                "in a local-dir: architecture."
            ) from error


def find_tokenizer(open_clip: Any, architecture: str) -> Any:
    """Make open_clip's tokenizer of an architecture.

    Raises:
        ConfigError: it needs transformers, which is not installed.
        DataError: its files are nowhere.
    """
    settings = open_clip.get_model_config(architecture)
    name = settings["text_cfg"].get("hf_tokenizer_name")
    if name:
        optional("transformers", "transformers")
    try:
        if name:
            ask_once(name, "tokenizer_config.json")
        return open_clip.get_tokenizer(architecture)
    except (OSError, ValueError) as error:
        raise DataError(
            f"The tokenizer {name!r} of {architecture} is neither here nor could it be fetched ({error}). On a machine "
            f"with internet: hf download {name} --local-dir FOLDER; copy the folder here, put the weights and "
            f"open_clip_config.json beside the tokenizer's files, {LOCAL_DIR}"
        ) from error
