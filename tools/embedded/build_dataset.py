"""Render the embedded data set: python build_dataset.py --drawings build/drawings --out build/emoji100.npz

Train, validation and test hold different renderings of the task vendors' drawings.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from augment import render
from task import CLASSES, TASK_VENDORS, class_of_label

PER_CLASS = {"train": 40, "validation": 10, "test": 20}
STRENGTH = 0.5
QUALITY = 82
CREDITS = {
    "noto": ["Noto Emoji", "Google Inc.", "Apache-2.0"],
    "noto-v1": ["Noto Emoji (first design)", "Google Inc.", "Apache-2.0"],
    "fxemoji": ["Firefox OS Emoji (FxEmojis)", "Mozilla Foundation", "CC-BY-4.0"],
    "fluent-emoji-flat": ["Fluent Emoji, flat", "Microsoft Corporation", "MIT"],
    "fluent-3d": ["Fluent Emoji, 3D", "Microsoft Corporation", "MIT"],
}


def main() -> None:
    """Render, encode, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    records = [json.loads(line) for line in (args.drawings / "index.jsonl").read_text(encoding="utf-8").splitlines()]
    images = np.load(args.drawings / "images.npy", mmap_mode="r")
    classes = class_of_label()
    by_class: list[list[int]] = [[] for _ in CLASSES]
    for index, record in enumerate(records):
        if record["source"] in TASK_VENDORS and record["label"] in classes:
            by_class[classes[record["label"]]].append(index)
    rng, generator = random.Random(args.seed), torch.Generator().manual_seed(args.seed)
    for drawings in by_class:
        rng.shuffle(drawings)
    blobs, labels, splits, vendors = [], [], [], []
    for code, count in enumerate(PER_CLASS.values()):
        jobs = [(drawings[k % len(drawings)], label) for label, drawings in enumerate(by_class) for k in range(count)]
        for start in range(0, len(jobs), 256):
            part = jobs[start : start + 256]
            chosen = torch.from_numpy(np.ascontiguousarray(images[[index for index, _ in part]]))
            rendered, _ = render(chosen, generator, strength=STRENGTH)
            pixels = (rendered * 255).round().byte().permute(0, 2, 3, 1).numpy()
            blobs += [encode(image) for image in pixels]
        labels += [label for _, label in jobs]
        vendors += [TASK_VENDORS.index(records[index]["source"]) for index, _ in jobs]
        splits += [code] * len(jobs)
    meta = {"names": list(CLASSES), "vendors": list(TASK_VENDORS), "splits": list(PER_CLASS), "credits": CREDITS}
    np.savez(
        args.out,
        data=np.frombuffer(b"".join(blobs), np.uint8),
        offsets=np.cumsum([0, *map(len, blobs)]).astype(np.int64),
        label=np.array(labels, np.uint8),
        split=np.array(splits, np.uint8),
        vendor=np.array(vendors, np.uint8),
        meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
    )
    fewest = min(map(len, by_class))
    logging.info("%d images, %d bytes, at least %d drawings a class", len(blobs), sum(map(len, blobs)), fewest)


def encode(image: np.ndarray) -> bytes:
    """Encode one image as WebP."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
