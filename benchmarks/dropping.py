"""What dropping (example, class) pairs saves and costs: the embedded preset's own row, with and without.

Two workers, as in a run. Accuracies are of one seed: compare them with a spread of about half a point over seeds.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.federations import Silent
from benchmarks.rows import Row
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.features.cache import image_features
from hushprompt.federation.simulate import run
from hushprompt.prompts.prompt_model import PromptModel

TITLE = "Dropping (example, class) pairs, embedded preset, epsilon 2"
THRESHOLD = 0.001


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One row of the preset."""

    seconds: float
    """CPU time of the process."""
    harmonic_mean: float
    """Of local and neighbor accuracy, in percent."""
    kept: float
    """Share of pairs that stay at the first client's last context."""


def rows(*, is_short: bool) -> list[Row]:
    """Measure all."""
    num_rounds = 4 if is_short else 40
    exact, dropped = trained(0.0, num_rounds), trained(THRESHOLD, num_rounds)
    name, note = f"method.drop_below = {THRESHOLD:g}", f"{num_rounds} rounds, {dropped.kept:.0%} of the pairs left"
    return [
        Row(
            name=f"{name}: CPU time of the row", figure="speedup", ours=dropped.seconds, reference=exact.seconds,
            note=f"{note} at the first client's last context",
        ),
        Row(
            name=f"{name}: harmonic mean of accuracies", figure="amount", unit="%",
            ours=dropped.harmonic_mean, reference=exact.harmonic_mean, note="of one seed",
        ),
    ]  # fmt: skip


def trained(threshold: float, num_rounds: int) -> Outcome:
    """Train once."""
    overrides = [f"method.drop_below={threshold}", f"training.num_rounds={num_rounds}"]
    config = dataclasses.replace(configs.load(configs.locate(None), overrides), references=())
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        (row,) = run(config, Path(folder), Silent())
        seconds = time.process_time() - start
        (context,) = load_file(min((Path(folder) / "prompts").glob("client-*.safetensors"))).values()
    return Outcome(seconds, 100 * row.harmonic_mean, kept_share(config, context, threshold))


def kept_share(config: RunConfig, context: torch.Tensor, threshold: float) -> float:
    """Give the share of all training pairs that a context leaves."""
    dataset = config.data.load()
    model = PromptModel(config.backbone.load(), dataset.class_names)
    cached = image_features(model.backbone, dataset, "train", config.runtime.cache_path, config.features)
    residuals = model.logits(cached.tensor(), model.text_features(context)).softmax(dim=1)
    residuals[torch.arange(len(residuals)), torch.from_numpy(dataset.splits["train"].labels)] -= 1
    return float((residuals.abs() >= threshold).float().mean())
