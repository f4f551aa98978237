"""Measure a rebuilt model on a rebuilt data set: python evaluate.py --model build/model --data build/emoji100.npz

Template, learning rate and number of steps are chosen on the validation split; test is read once at the end of each
line. Writes evaluation.json into the model's folder. `--only` takes any of zero_shot, probe, coop, federated.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captions import with_articles
from hushprompt.data.base import Dataset
from hushprompt.data.sets.emoji100 import read_npz
from hushprompt.models.embedded import EmojiClipModel
from hushprompt.prompts.prompt_model import PromptModel

logger = logging.getLogger("evaluate")
TEMPLATES = (
    "{}", "a {}", "the {}", "this is a {}", "a picture of a {}", "an image of a {}", "a drawing of a {}",
    "an icon of a {}", "a photo of a {}", "clip art of a {}", "an illustration of a {}", "a colorful cartoon {}",
)  # fmt: skip
NUM_CTX, INIT_STD = 16, 0.02
RATES, NUM_STEPS, BATCH, CHECK_EVERY = (0.01, 0.03), 1500, 256, 100
SEEDS = (1, 2, 3)
CLIENTS, LOCAL_STEPS, LOCAL_BATCH = 10, 90, 32
Features = dict[str, tuple[Tensor, Tensor]]
"""Image features and labels of each split."""


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["zero_shot", "probe", "coop", "federated"])
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    backbone, dataset = EmojiClipModel(args.model), read_npz(args.data)
    features = encode(backbone, dataset)
    model = PromptModel(backbone, dataset.class_names)
    path = args.model / "evaluation.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("model") != backbone.fingerprint:
        found = {"model": backbone.fingerprint}
    measures = {"zero_shot": zero_shot, "probe": probe, "coop": coop, "federated": federated}
    for name in args.only:
        found[name] = measures[name](model, features)
        logger.info("%s %s", name, json.dumps(found[name]))
        path.write_text(json.dumps(found, indent=1) + "\n")


def encode(backbone: EmojiClipModel, dataset: Dataset) -> Features:
    """Encode all images."""
    encoded = {}
    for name, split in dataset.splits.items():
        parts = [
            backbone.encode_images(split.read(np.arange(start, min(start + 250, len(split)))))
            for start in range(0, len(split), 250)
        ]
        encoded[name] = (torch.cat(parts), torch.from_numpy(split.labels))
    return encoded


def accuracy(text: Tensor, images: tuple[Tensor, Tensor]) -> float:
    """Percent of images whose nearest class is right, over all classes."""
    features, labels = images
    return round(100 * float(((features @ text.T).argmax(dim=1) == labels).double().mean()), 2)


@torch.no_grad()
def zero_shot(model: PromptModel, features: Features) -> dict[str, Any]:
    """Hand templates on validation; the best of them, and untrained random contexts, on test."""
    texts = {template: template_features(model, template) for template in TEMPLATES}
    validation = {template: accuracy(text, features["validation"]) for template, text in texts.items()}
    best = max(validation, key=lambda template: validation[template])
    random_contexts = [accuracy(model.text_features(random_context(model, seed)), features["test"]) for seed in SEEDS]
    own = accuracy(texts[best], features["train"])
    test = {template: accuracy(text, features["test"]) for template, text in texts.items()}
    return {
        "validation": validation, "template": best, "test": test[best], "train": own,
        "random_context_test": random_contexts, "test_of_all_templates": test,
    }  # fmt: skip


def template_features(model: PromptModel, template: str) -> Tensor:
    """Encode a hand template filled with each name."""
    backbone, rows = model.backbone, []
    for name in model.class_names:
        ids = backbone.tokenize(with_articles(template.format(name)))
        tokens = torch.tensor([[*backbone.start_ids, *ids, *backbone.end_ids]])
        rows.append(backbone.encode_prompts(backbone.embed(tokens), torch.tensor([tokens.shape[1] - 1])))
    return torch.cat(rows)


def random_context(model: PromptModel, seed: int) -> Tensor:
    """Draw a context from N(0, 0.02^2)."""
    generator = torch.Generator().manual_seed(seed)
    return INIT_STD * torch.randn(NUM_CTX, model.token_width, generator=generator)


def probe(model: PromptModel, features: Features) -> dict[str, Any]:
    """Multinomial logistic regression on image features; the penalty is chosen on validation."""
    images, labels = features["train"]
    results = {}
    for penalty in (1e-7, 1e-6, 1e-5, 1e-4):
        weight = torch.zeros(100, images.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

        def closure(weight: Tensor = weight, penalty: float = penalty, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(images @ weight.T, labels) + penalty * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        text = weight.detach()
        results[str(penalty)] = (accuracy(text, features["validation"]), accuracy(text, features["test"]))
    best = max(results, key=lambda penalty: results[penalty][0])
    return {"validation_and_test": results, "penalty": best, "test": results[best][1]}


def coop(model: PromptModel, features: Features) -> dict[str, Any]:
    """One shared context, all training images. Rate by the first seed, step by each seed, both on validation."""
    trials = {str(rate): learn_context(model, features, rate, SEEDS[0]) for rate in RATES}
    rate = max(trials, key=lambda name: trials[name]["validation"])
    runs = [trials[rate], *(learn_context(model, features, float(rate), seed) for seed in SEEDS[1:])]
    mean = round(sum(run["test"] for run in runs) / len(runs), 2)
    return {"learning_rate": rate, "trials": trials, "runs": runs, "test_mean": mean}


def learn_context(model: PromptModel, features: Features, rate: float, seed: int) -> dict[str, Any]:
    """Adam with cosine decay; give the step that is best on validation."""
    images, labels = features["train"]
    generator = torch.Generator().manual_seed(seed)
    context = random_context(model, seed).requires_grad_()
    optimizer = torch.optim.Adam([context], lr=rate)
    best: dict[str, Any] = {"validation": -1.0}
    for step in range(1, NUM_STEPS + 1):
        optimizer.param_groups[0]["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * (step - 1) / NUM_STEPS))
        chosen = torch.randint(len(labels), (BATCH,), generator=generator)
        loss = F.cross_entropy(model.logits(images[chosen], model.text_features(context)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % CHECK_EVERY == 0:
            with torch.no_grad():
                text = model.text_features(context)
            validation = accuracy(text, features["validation"])
            logger.info(
                "coop rate %g seed %d step %d loss %.3f validation %.2f",
                rate,
                seed,
                step,
                float(loss.detach()),
                validation,
            )
            if validation > best["validation"]:
                best = {
                    "seed": seed, "step": step, "validation": validation, "train": accuracy(text, features["train"]),
                    "test": accuracy(text, features["test"]),
                }  # fmt: skip
    return best


def federated(model: PromptModel, features: Features) -> dict[str, Any]:
    """Ten clients with ten classes each learn alone; accuracy over all 100 classes on their own and the next's."""
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1)).view(CLIENTS, -1)
    template = zero_shot(model, features)["template"]
    texts = [local_text(model, features["train"], order[client], seed=client) for client in range(CLIENTS)]
    tests = [of_classes(features["test"], classes) for classes in order]
    hand = template_features(model, template)
    return {
        "zero_shot": mean([accuracy(hand, test) for test in tests]),
        "local": mean([accuracy(text, test) for text, test in zip(texts, tests, strict=True)]),
        "neighbor": mean([accuracy(texts[k], tests[(k + 1) % CLIENTS]) for k in range(CLIENTS)]),
    }


def local_text(model: PromptModel, train: tuple[Tensor, Tensor], classes: Tensor, seed: int) -> Tensor:
    """Learn one client's context from its own classes' images."""
    images, labels = of_classes(train, classes)
    generator = torch.Generator().manual_seed(100 + seed)
    context = random_context(model, 1).requires_grad_()
    optimizer = torch.optim.Adam([context], lr=0.01)
    for _ in range(LOCAL_STEPS):
        chosen = torch.randint(len(labels), (LOCAL_BATCH,), generator=generator)
        loss = F.cross_entropy(model.logits(images[chosen], model.text_features(context)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return model.text_features(context)


def of_classes(images: tuple[Tensor, Tensor], classes: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the images of some classes."""
    keep = torch.isin(images[1], classes)
    return images[0][keep], images[1][keep]


def mean(values: list[float]) -> float:
    """Average, to two places."""
    return round(sum(values) / len(values), 2)


if __name__ == "__main__":
    main()
