"""Pre-train the embedded model: python pretrain.py --drawings build/drawings --out build/model

Four phases, each with a fixed number of steps and one seed for all:
 views    render augmented views, run the frozen early image blocks once, keep their maps;
 frozen   train text tower and projections against the ImageNet trunk's features;
 image    go on with the late image blocks unfrozen, at a small rate;
 text     go on with text tower and projections alone, on the tuned features.
In all of them only a drawing's own caption is its positive. Each phase leaves a file and is skipped if that is there.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import vocabulary
from augment import COLOR_NAMES, DAMAGE, render
from captions import Captioner
from efficientnet_weights import load_trunk
from hushprompt.models.bpe import BytePairTokenizer
from hushprompt.models.embedded_network import EmojiNetwork, EmojiNetworkConfig
from task import CLASSES, PRETRAINING_ONLY, TASK_LABELS

logger = logging.getLogger("pretrain")
VIEWS = {"game-icons": 1, "openclipart": 2, "fluent-emoji-high-contrast": 1}
"""Views of a drawing by source; others get `OTHER_VIEWS`, drawings of the task's concepts `TASK_VIEWS`."""
OTHER_VIEWS, TASK_VIEWS = 3, 36
LONGEST_CAPTION = 30
MAX_LOG_SCALE = math.log(60)


@dataclass(frozen=True)
class Phase:
    """How long and how fast one phase trains."""

    name: str
    num_steps: int
    batch_size: int
    learning_rate: float
    trains_image: bool


PHASES = (
    Phase("frozen", 300, 512, 2e-3, trains_image=False),
    Phase("image", 220, 256, 5e-4, trains_image=True),
    Phase("text", 700, 512, 1.5e-3, trains_image=False),
)


@dataclass(frozen=True)
class Views:
    """Rendered views of drawings and what is cached of them."""

    records: list[dict[str, Any]]
    drawing: Tensor  # [n] index into records
    attributes: dict[str, list[Any]]
    maps: np.ndarray  # [n, 112, s, s] float16, of the frozen early blocks


def main() -> None:
    """Run all phases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    records, images = pretraining_drawings(args.drawings)
    captioner = Captioner(records, name_share=0.5, lead_in_share=0.45, style_share=0.6)
    tokenizer = make_tokenizer(args.out / "tokenizer.json", captioner, args.seed)
    network = EmojiNetwork(EmojiNetworkConfig(text_layers=3, vocab_size=len(tokenizer.symbols)))
    network.image.load_state_dict(load_trunk(), strict=False)
    network.image.to(memory_format=torch.channels_last)
    views = make_views(args.out, network, records, images, args.seed)
    features = late_features(network, views, args.out / "features-imagenet.npy")
    network.image.mean.copy_(features.mean(dim=0))
    network.image.std.copy_(features.std(dim=0) + 1e-2)
    for index, phase in enumerate(PHASES):
        path = args.out / f"{index}-{phase.name}.safetensors"
        if path.exists():
            network.load_state_dict(load_file(path))
        else:
            train(network, phase, views, features, captioner, tokenizer, seed=args.seed + 1000 * (index + 1))
            save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
        if phase.trains_image:
            features = late_features(network, views, args.out / "features-tuned.npy")
    (args.out / "emoji_clip.json").write_text(network.config_json())
    halves = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    save_file(halves, args.out / "emoji_clip.safetensors")


def pretraining_drawings(folder: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Give the drawings that pre-training may see: all but the task vendors' drawings of the task's concepts."""
    records = [json.loads(line) for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()]
    keep = [
        index for index, record in enumerate(records)
        if record["source"] in PRETRAINING_ONLY or ("code" in record and record["label"] not in TASK_LABELS)
    ]  # fmt: skip
    return [records[index] for index in keep], np.load(folder / "images.npy", mmap_mode="r")[keep]


def make_tokenizer(path: Path, captioner: Captioner, seed: int) -> BytePairTokenizer:
    """Learn the vocabulary from captions; the task's names are frequent enough to become few tokens each."""
    if not path.exists():
        rng = random.Random(seed)
        nothing = dict.fromkeys([*DAMAGE, "small", "close", "tilted", "is_textured"], False)
        everything = dict.fromkeys(nothing, True)
        texts = [
            captioner(index, {**done, "background": rng.choice(COLOR_NAMES)}, rng)
            for index in range(len(captioner.labels)) for done in (nothing, nothing, everything)
        ]  # fmt: skip
        vocabulary.train([*texts, *(list(CLASSES) * 60), *([" ".join(COLOR_NAMES)] * 50)], 2048).to_json(path)
    return BytePairTokenizer.from_json(path)


@torch.no_grad()
def make_views(out: Path, network: EmojiNetwork, records: list[dict[str, Any]], images: np.ndarray, seed: int) -> Views:
    """Render every drawing several times and run the early image blocks, in a fixed random order."""
    names = set(CLASSES) | TASK_LABELS
    jobs = [
        index for index, record in enumerate(records)
        for _ in range(TASK_VIEWS if record["label"] in names else VIEWS.get(record["source"], OTHER_VIEWS))
    ]  # fmt: skip
    random.Random(seed).shuffle(jobs)
    map_path, attribute_path = out / "maps.npy", out / "attributes.json"
    if not attribute_path.exists():
        side = network.image.size // 16
        maps = np.lib.format.open_memmap(map_path, "w+", np.float16, (len(jobs), 112, side, side))
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for start in range(0, len(jobs), 256):
            chosen = torch.from_numpy(np.ascontiguousarray(images[jobs[start : start + 256]]))
            pixels, attributes = render(chosen, generator)
            maps[start : start + 256] = network.image.early(pixels).half().numpy()
            parts.append(attributes)
            if start % 5120 == 0:
                logger.info("views %d of %d", start, len(jobs))
        maps.flush()
        merged = {name: torch.cat([part[name] for part in parts]).tolist() for name in parts[0]}
        attribute_path.write_text(json.dumps(merged))
    attributes = json.loads(attribute_path.read_text())
    attributes["background"] = [COLOR_NAMES[index] for index in attributes["background"]]
    return Views(records, torch.tensor(jobs), attributes, np.load(map_path, mmap_mode="r"))


@torch.no_grad()
def late_features(network: EmojiNetwork, views: Views, path: Path) -> Tensor:
    """Give the trunk's features [n, 1280] of all views, from disk or by running the late blocks."""
    if not path.exists():
        rows = [
            network.image.late(maps_of(views, np.arange(start, min(start + 512, len(views.maps))))).half().numpy()
            for start in range(0, len(views.maps), 512)
        ]
        np.save(path, np.concatenate(rows))
    return torch.from_numpy(np.load(path)).float()


def maps_of(views: Views, index: np.ndarray) -> Tensor:
    """Give early maps as a float32 batch."""
    batch = torch.from_numpy(np.ascontiguousarray(views.maps[index])).float()
    return batch.contiguous(memory_format=torch.channels_last)


def train(
    network: EmojiNetwork, phase: Phase, views: Views, features: Tensor, captioner: Captioner,
    tokenizer: BytePairTokenizer, seed: int,
) -> None:  # fmt: skip
    """Train one phase with AdamW, warm-up and cosine decay; the network ends as the running mean of its weights."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    named = [
        (name, parameter) for name, parameter in network.named_parameters()
        if not name.startswith("image.") or name.startswith("image.projection")
        or (phase.trains_image and is_late(name))
    ]  # fmt: skip
    network.requires_grad_(requires_grad=False)
    for _, parameter in named:
        parameter.requires_grad_()
    decayed = [p for name, p in named if p.ndim > 1 and "embedding" not in name]
    others = [p for name, p in named if p.ndim <= 1 or "embedding" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=phase.learning_rate, betas=(0.9, 0.98))
    average = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for step in range(phase.num_steps):
        rate = min(1, (step + 1) / 30) * (0.5 + 0.5 * math.cos(math.pi * step / phase.num_steps))
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate * rate
        chosen = torch.randint(len(features), (phase.batch_size,), generator=generator).sort().values
        captions = caption(views, captioner, chosen, rng)
        late = network.image.late(maps_of(views, chosen.numpy())) if phase.trains_image else features[chosen]
        image_features = F.normalize(network.image.project(late), dim=-1)
        text_features = encode_captions(network, tokenizer, captions)
        loss = contrastive_loss(image_features, text_features, network.log_logit_scale, captions)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        optimizer.step()
        keep = min(0.99, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                average[name].mul_(keep).add_(tensor, alpha=1 - keep)
        if step % 20 == 0:
            logger.info("%s step %d loss %.3f scale %.1f", phase.name, step, loss, network.log_logit_scale.exp())
    network.load_state_dict(average)


def is_late(name: str) -> bool:
    """Whether a parameter belongs to the image blocks that are unfrozen, or to the head."""
    return name.startswith("image.head") or any(name.startswith(f"image.blocks.{index}.") for index in range(11, 16))


def caption(views: Views, captioner: Captioner, chosen: Tensor, rng: random.Random) -> list[str]:
    """Caption the chosen views afresh."""
    texts = []
    for view in chosen.tolist():
        done = {name: values[view] for name, values in views.attributes.items()}
        texts.append(captioner(int(views.drawing[view]), done, rng))
    return texts


def encode_captions(network: EmojiNetwork, tokenizer: BytePairTokenizer, captions: list[str]) -> Tensor:
    """Encode captions in buckets of similar length; give unit-norm features."""
    ids = [[tokenizer.start_id, *tokenizer.encode(text)[: LONGEST_CAPTION - 2], tokenizer.end_id] for text in captions]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    features, quarter = [], -(-len(order) // 4)
    for start in range(0, len(order), quarter):
        bucket = [ids[index] for index in order[start : start + quarter]]
        width = max(map(len, bucket))
        batch = torch.tensor([row + [0] * (width - len(row)) for row in bucket])
        ends = torch.tensor([len(row) - 1 for row in bucket])
        features.append(network.text(network.text.token_embedding(batch), ends))
    back = torch.tensor(order).argsort()
    return F.normalize(torch.cat(features)[back], dim=-1)


def contrastive_loss(images: Tensor, texts: Tensor, log_scale: Tensor, captions: list[str]) -> Tensor:
    """CLIP's loss; captions that read the same are positives of each other."""
    number = {text: index for index, text in enumerate(captions)}
    same = torch.tensor([number[text] for text in captions])
    target = (same[:, None] == same).float()
    target = target / target.sum(dim=1, keepdim=True)
    logits = log_scale.clamp(max=MAX_LOG_SCALE).exp() * images @ texts.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


if __name__ == "__main__":
    main()
