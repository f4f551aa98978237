"""What dropping (example, class) pairs does to accuracy and time: `python benchmarks/drop_pairs.py [--rounds 40]`.

Runs the embedded preset's own row with several `method.drop_below` and seeds, into folders of its own, and prints mean
accuracies, the time of the row and the share of pairs that stay at the end of training.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from federations import Silent
from hushprompt import config as configs
from hushprompt import load_registries
from hushprompt.backbones.cache import image_features
from hushprompt.backbones.prompts import PromptModel
from hushprompt.federation.simulate import run
from hushprompt.records import RowSummary
from measure import write_json


def one_run(threshold: float, seed: int, rounds: int, settings: list[str]) -> tuple[RowSummary, float]:
    """Train once; give the row's summary and the share of pairs kept at the last context of the first client."""
    overrides = [f"method.drop_below={threshold}", f"seed={seed}", f"training.num_rounds={rounds}", *settings]
    config = dataclasses.replace(configs.load(configs.locate(None), overrides), references=())
    with tempfile.TemporaryDirectory() as folder:
        (row,) = run(config, Path(folder), Silent())
        (tensor,) = load_file(sorted((Path(folder) / "prompts").glob("client-*.safetensors"))[0]).values()
    dataset = config.data.load()
    model = PromptModel(config.backbone.load(), dataset.class_names)
    cached = image_features(model.backbone, dataset, "train", config.runtime.cache_path, config.features)
    residuals = model.logits(cached.tensor(), model.text_features(tensor)).softmax(dim=1)
    residuals[torch.arange(len(residuals)), torch.from_numpy(dataset.splits["train"].labels)] -= 1
    return row, float((residuals.abs() >= threshold).float().mean())


def main() -> None:
    """Run all, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.0, 0.001, 0.01, 0.03, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="more overrides of the preset")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    load_registries()
    table = Table(title="Embedded preset, its own row; accuracies in %, means over seeds")
    for header in ("drop_below", "pairs kept", "local", "neighbor", "spread of local", "seconds"):
        table.add_column(header, justify="right")
    lines = []
    for threshold in arguments.thresholds:
        done = [one_run(threshold, seed, arguments.rounds, arguments.settings) for seed in arguments.seeds]
        local, neighbor = ([100 * getattr(row, name) for row, _ in done] for name in ("local", "neighbor"))
        line = {
            "drop_below": threshold,
            "share_of_pairs": statistics.mean(share for _, share in done),
            "local": statistics.mean(local),
            "neighbor": statistics.mean(neighbor),
            "local_std": statistics.stdev(local) if len(local) > 1 else None,
            "seconds": statistics.mean(row.seconds for row, _ in done),
        }
        lines.append(line)
        spread = "-" if line["local_std"] is None else f"{line['local_std']:.2f}"
        table.add_row(
            f"{threshold:g}", f"{line['share_of_pairs']:.1%}", f"{line['local']:.1f}", f"{line['neighbor']:.1f}",
            spread, f"{line['seconds']:.1f}",
        )  # fmt: skip
    Console().print(table)
    if arguments.out:
        setting = {"rounds": arguments.rounds, "seeds": arguments.seeds, "settings": arguments.settings}
        write_json(arguments.out, {"setting": setting, "rows": lines})


if __name__ == "__main__":
    main()
