"""Where the time of single steps goes: `python -m benchmarks SECTION --profile FOLDER` writes a table for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.clip_step import Ours, loaded, random_inputs, random_network
from hushprompt.config import parse as configs
from hushprompt.methods.base import Batch
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel

NUM_LINES = 40


def write(folder: Path) -> None:
    """Write the operators of three steps, most of their own time first; a trace for a browser beside each table."""
    ours, inputs = Ours(loaded(random_network())), random_inputs()
    works: dict[str, Callable[[], object]] = {
        "clip-text-step": lambda: ours.text_gradient(inputs, inputs.train_features[inputs.batch_index]),
        "clip-4-per-example-gradients": lambda: ours.per_example(inputs, 4),
        "embedded-20-per-example-gradients": embedded_step(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, work in works.items():
        work()  # warms up
        with profile(activities=[ProfilerActivity.CPU]) as found:
            work()
        table = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=NUM_LINES)
        (folder / f"{name}.txt").write_text(table, encoding="utf-8")
        found.export_chrome_trace(str(folder / f"{name}.trace.json"))


def embedded_step() -> Callable[[], object]:
    """Return the work of a step of the embedded preset, on random features."""
    config = configs.load(configs.locate(None))
    model = PromptModel(config.backbone.load(), config.data.load().class_names)
    generator = torch.Generator().manual_seed(0)
    context = 0.02 * torch.randn(16, model.token_width, generator=generator)
    features = torch.nn.functional.normalize(torch.randn(20, model.backbone.feature_dim, generator=generator), dim=1)
    batch = Batch(features, torch.arange(20) % model.num_classes)
    return lambda: per_example_gradients(model, context, batch.image_features, batch.labels)
