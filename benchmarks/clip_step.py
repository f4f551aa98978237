"""A client's step and evaluation with CLIP ViT-B/16: ours, and the plain form by the library's own modules.

Random weights: what is computed does not depend on them. The plain form is what a direct implementation does, as the
code of DP-FPL's authors: one sequence of 77 tokens a class, images encoded at every step.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from hushprompt.methods.base import Batch
from hushprompt.models.base import Model
from hushprompt.models.open_clip import OpenClip
from hushprompt.models.placing import Precision, step_memory_mb
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel

ARCHITECTURE = "ViT-B-16"
NUM_CTX, BATCH, NUM_TRAIN, NUM_TEST, EVAL_BATCH = 16, 32, 2510, 2465, 100
LEARNING_RATE = 1e-3
# fmt: off
CLASS_NAMES = (
    "face", "leopard", "motorbike", "accordion", "airplane", "anchor", "ant", "barrel", "bass", "beaver", "binocular",
    "bonsai", "brain", "brontosaurus", "buddha", "butterfly", "camera", "cannon", "car side", "ceiling fan",
    "cellphone", "chair", "chandelier", "cougar body", "cougar face", "crab", "crayfish", "crocodile",
    "crocodile head", "cup", "dalmatian", "dollar bill", "dolphin", "dragonfly", "electric guitar", "elephant", "emu",
    "euphonium", "ewer", "ferry", "flamingo", "flamingo head", "garfield", "gerenuk", "gramophone", "grand piano",
    "hawksbill", "headphone", "hedgehog", "helicopter", "ibis", "inline skate", "joshua tree", "kangaroo", "ketch",
    "lamp", "laptop", "llama", "lobster", "lotus", "mandolin", "mayfly", "menorah", "metronome", "minaret",
    "nautilus", "octopus", "okapi", "pagoda", "panda", "pigeon", "pizza", "platypus", "pyramid", "revolver", "rhino",
    "rooster", "saxophone", "schooner", "scissors", "scorpion", "sea horse", "snoopy", "soccer ball", "stapler",
    "starfish", "stegosaurus", "stop sign", "strawberry", "sunflower", "tick", "trilobite", "umbrella", "watch",
    "water lilly", "wheelchair", "wild cat", "windsor chair", "wrench", "yin yang",
)
# fmt: on
"""Caltech101's 100 classes, as hushprompt.data.sets.caltech101 names them."""
LONG_NAMES = tuple(
    f"{color} {noun} on the table"
    for color in ("red", "blue", "green", "black", "white", "old", "new", "big", "small", "long")
    for noun in ("cat", "dog", "car", "tree", "house", "bird", "fish", "chair", "boat", "train")
)
"""As many classes, whose names have five tokens each under CLIP's tokenizer."""


@dataclass(frozen=True)
class Inputs:
    """Random stand-ins of the right shapes."""

    context: Float[Tensor, "t e"]
    pixels: Float[Tensor, "b 3 h w"]
    batch_index: Int[Tensor, " b"]
    train_features: Float[Tensor, "n d"]
    test_features: Float[Tensor, "m d"]
    labels: Int[Tensor, " b"]


class Ours:
    """What the package does."""

    def __init__(self, backbone: Model, class_names: tuple[str, ...] = CLASS_NAMES) -> None:
        """Take a backbone, and the names of the classes."""
        self.model = PromptModel(backbone, class_names, memory_mb=step_memory_mb(0, "cpu"))

    def text_gradient(self, inputs: Inputs, features: Float[Tensor, "b d"]) -> Float[Tensor, "t e"]:
        """Return the gradient of the mean loss."""
        leaf = inputs.context.clone().requires_grad_()
        logits = self.model.logits(features, self.model.text_features(leaf))
        return torch.autograd.grad(F.cross_entropy(logits, inputs.labels), leaf)[0]

    def step(self, inputs: Inputs) -> Float[Tensor, "2 t e"]:
        """Take cached features and one gradient step; give the new context and the gradient."""
        gradient = self.text_gradient(inputs, inputs.train_features[inputs.batch_index])
        return torch.stack([inputs.context - LEARNING_RATE * gradient, gradient])

    def per_example(self, inputs: Inputs, count: int = BATCH) -> Float[Tensor, "b t e"]:
        """Return the own gradients of the batch's first examples."""
        batch = Batch(inputs.train_features[inputs.batch_index[:count]], inputs.labels[:count])
        return per_example_gradients(self.model, inputs.context, batch.image_features, batch.labels)[0]

    def one_by_one(self, inputs: Inputs, count: int) -> Float[Tensor, "b t e"]:
        """Return the same with so little memory that every example goes backward alone."""
        kept, self.model.memory_mb = self.model.memory_mb, 1
        try:
            return self.per_example(inputs, count)
        finally:
            self.model.memory_mb = kept

    @torch.no_grad()
    def evaluate(self, inputs: Inputs) -> Float[Tensor, "m c"]:
        """Score all test images: text features once, one product."""
        return self.model.logits(inputs.test_features, self.model.text_features(inputs.context))


class Plain:
    """The plain form: every class a sequence of the whole window, library modules throughout."""

    def __init__(self, network: Any) -> None:
        """Embed the prompts once."""
        self.network = network
        tokenizer = open_clip.get_tokenizer(ARCHITECTURE)
        texts = tokenizer([" ".join(["X"] * NUM_CTX) + f" {name}" for name in CLASS_NAMES])  # one token an X
        self.embedded = network.token_embedding(texts)
        self.ends = texts.argmax(dim=1)
        self.logit_scale = float(network.logit_scale.exp())

    def text_features(self, context: Float[Tensor, "t e"]) -> Float[Tensor, "c d"]:
        """Encode 100 sequences of 77 tokens."""
        network, start = self.network, self.embedded[:, :1]
        each = context.expand(len(CLASS_NAMES), -1, -1)
        x = torch.cat([start, each, self.embedded[:, 1 + NUM_CTX :]], dim=1) + network.positional_embedding
        x = network.ln_final(network.transformer(x, attn_mask=network.attn_mask))
        return F.normalize(x[torch.arange(len(x)), self.ends] @ network.text_projection, dim=-1)

    def text_gradient(self, inputs: Inputs, features: Float[Tensor, "b d"]) -> Float[Tensor, "t e"]:
        """Return the gradient of the mean loss."""
        leaf = inputs.context.clone().requires_grad_()
        logits = self.logit_scale * features @ self.text_features(leaf).T
        return torch.autograd.grad(F.cross_entropy(logits, inputs.labels[: len(features)]), leaf)[0]

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> Float[Tensor, "b d"]:
        """Encode the batch's images."""
        return F.normalize(self.network.encode_image(inputs.pixels), dim=-1)

    @torch.no_grad()
    def evaluate(self, inputs: Inputs, num_batches: int) -> Float[Tensor, "m c"]:
        """Score the first batches of the test images, with text features anew for each."""
        batches = inputs.test_features.split(EVAL_BATCH)[:num_batches]
        return torch.cat([self.logit_scale * batch @ self.text_features(inputs.context).T for batch in batches])


def random_network() -> Any:
    """Make open_clip's model with random weights."""
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that the weights are random
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return open_clip.create_model(ARCHITECTURE).eval().requires_grad_(requires_grad=False)


def loaded(network: Any, precision: Precision = "float32") -> Model:
    """Return our backbone with the weights of a network, loaded as a user's checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
        return OpenClip(architecture=ARCHITECTURE, checkpoint=str(path), precision=precision).load()


def random_inputs() -> Inputs:
    """Draw everything else."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    pixels = random(BATCH, 3, 224, 224)
    train, test = (F.normalize(random(count, 512), dim=-1) for count in (NUM_TRAIN, NUM_TEST))
    index = torch.randperm(NUM_TRAIN, generator=generator)[:BATCH]
    labels = torch.randint(len(CLASS_NAMES), (BATCH,), generator=generator)
    return Inputs(0.02 * random(NUM_CTX, 512), pixels, index, train, test, labels)
