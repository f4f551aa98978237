"""Make the embedded model's public metric: python metric.py --node node_modules --out emoji_clip_metric.safetensors

From drawings by vendors that pre-training never saw, of concepts that are none of the task's: images of the vendors and
concepts that a model was trained on lie too close to their captions, which makes it trust text too much.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

import drawings
from augment import render
from build_dataset import STRENGTH
from hushprompt.models.embedded import EmojiClip
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.statistics.metric import make_metrics
from task import TASK_LABELS

VENDORS = ("emojione", "emojione-v1", "openmoji")
NUM_VIEWS, SEED = 8, 7
ORIGIN = (
    "Emoji One (CC BY 4.0), Emoji One v1 and OpenMoji (both CC BY-SA 4.0): drawings by vendors that pre-training never "
    f"saw, of concepts that are no class of the task, {NUM_VIEWS} renderings each"
)


def main() -> None:
    """Collect, render, encode, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--node", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    drawings.ICON_SETS[:] = VENDORS
    jobs = [job for job in drawings.emoji_jobs(args.node) if is_wanted(job)]
    with ProcessPoolExecutor() as pool:
        drawn = list(pool.map(drawings.rasterize, [(kind, text) for kind, text, _ in jobs], chunksize=32))
    kept = [(image, job[2]["label"]) for image, job in zip(drawn, jobs, strict=True) if image is not None]
    names = sorted({label for _, label in kept})
    labels = torch.tensor([names.index(label) for _, label in kept]).repeat_interleave(NUM_VIEWS)
    model = EmojiClip().load()
    images = torch.from_numpy(np.stack([image for image, _ in kept])).repeat_interleave(NUM_VIEWS, dim=0)
    generator = torch.Generator().manual_seed(SEED)
    features = []
    for part in images.split(256):
        pixels = (render(part, generator, strength=STRENGTH)[0] * 255).round().byte().permute(0, 2, 3, 1)
        features.append(model.encode_images(list(pixels.numpy())))
    texts = dict(enumerate(PromptModel(model, tuple(names)).template_features))
    make_metrics(torch.cat(features), labels, ORIGIN, model.fingerprint, texts).write(args.out)


def is_wanted(job: drawings.Job) -> bool:
    """Return whether a drawing is by one of the vendors, of a concept outside the task."""
    return job[2]["source"] in VENDORS and job[2]["label"] not in TASK_LABELS


if __name__ == "__main__":
    main()
