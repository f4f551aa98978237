"""A partition at a glance: a table of clients, shades of clients by classes, and the same as a file and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hushprompt import files
from hushprompt.reporting.formats import WholeTable

SHADES = " ░▒▓█"
"""From no example of a class to as many as the client with most of it."""
MAX_NAMED_CLASSES = 40
"""More class names than this do not fit below a plot."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many examples of each class each client has."""

    client_names: Sequence[str]
    class_names: Sequence[str]
    by_split: Mapping[str, np.ndarray]
    """[k, c] for train, validation and test."""
    dataset: str = ""
    """Name of the data set."""


def client_table(counts: Counts) -> WholeTable:
    """Return one line a client: its number of examples in each split, and how many classes it trains on."""
    table = WholeTable("client", *counts.by_split, "classes", "largest class")
    train = counts.by_split["train"]
    for client_id, name in enumerate(counts.client_names):
        sizes = [str(int(table_of_split[client_id].sum())) for table_of_split in counts.by_split.values()]
        largest = int(train[client_id].argmax())
        share = train[client_id, largest] / train[client_id].sum()
        table.add_row(
            name, *sizes, str(int((train[client_id] > 0).sum())), f"{counts.class_names[largest]} ({share:.0%})"
        )
    totals = [str(int(table_of_split.sum())) for table_of_split in counts.by_split.values()]
    table.add_section()
    table.add_row("all", *totals, str(int((train.sum(axis=0) > 0).sum())), "")
    return table


def shade_lines(counts: Counts, width: int) -> list[str]:
    """Draw the training table with one character a class, in label order, folded to `width` characters."""
    train = counts.by_split["train"]
    levels = np.ceil(train / np.maximum(train.max(axis=0), 1) * (len(SHADES) - 1)).astype(int)  # [k, c]
    margin = max(len(name) for name in counts.client_names)
    room = max(width - margin - 3, 10)
    lines = []
    for start in range(0, train.shape[1], room):
        stop = min(start + room, train.shape[1])
        lines.append(f"classes {start} to {stop - 1}")
        for name, row in zip(counts.client_names, levels[:, start:stop], strict=True):
            lines.append(f"{name:>{margin}} │{''.join(SHADES[level] for level in row)}│")
    return lines


def write_csv(path: Path, counts: Counts) -> None:
    """Write one line for each client, split and class that has examples."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["client_id", "client", "split", "class", "examples"])
    for split, table in counts.by_split.items():
        for client_id, label in zip(*np.nonzero(table), strict=True):
            names = [counts.client_names[client_id], split, counts.class_names[label]]
            writer.writerow([client_id, *names, int(table[client_id, label])])
    files.write_text(path, buffer.getvalue())


def write_plot(path: Path, counts: Counts, title: str) -> None:
    """Draw clients by classes as a PNG, with the clients' sizes at the side."""
    from matplotlib.figure import Figure

    train = counts.by_split["train"]
    num_clients, num_classes = train.shape
    height = min(max(2.6 + 0.22 * num_clients, 3.5), 40.0)
    figure = Figure(figsize=(11, height), layout="constrained")
    table, bars = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    image = table.imshow(train, aspect="auto", cmap="viridis", interpolation="nearest")
    table.set_xlabel("class" if num_classes <= MAX_NAMED_CLASSES else "class (label)")
    table.set_ylabel("client")
    table.set_yticks(range(num_clients), counts.client_names, fontsize=8 if num_clients <= 40 else 5)
    if num_classes <= MAX_NAMED_CLASSES:
        table.set_xticks(range(num_classes), counts.class_names, rotation=60, ha="right", fontsize=8)
    figure.colorbar(image, ax=table, label="training examples", pad=0.01)
    left = np.zeros(num_clients)
    for split, color in (("train", "#31688e"), ("validation", "#90b8d8"), ("test", "#fde725")):
        if split in counts.by_split:
            sizes = counts.by_split[split].sum(axis=1)
            bars.barh(range(num_clients), sizes, left=left, label=split, color=color)
            left = left + sizes
    bars.set_xlabel("examples")
    bars.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    figure.suptitle(title, fontsize=11)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    files.write_bytes(path, content.getvalue())
