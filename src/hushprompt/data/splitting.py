"""Which example is in which split: by a file that says so, or by a rule that anyone can repeat.

The rule shuffles the examples of one class with a random stream named after data set and class, so that it depends on
neither the order of the folder nor the other classes, and cuts. CoOp's sizes are 50/20/30 per class. Examples of one
group, such as a patient's, go to one split together.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hushprompt import checks, seeding
from hushprompt.data.listing import Example
from hushprompt.errors import ConfigError, DataError

VALIDATION, TEST = 0.2, 0.3
"""CoOp's fractions."""
COOP_RULE = "50/20/30 per class, shuffled by hushprompt (CoOp's sizes, not its file)"
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What people call the splits."""


def check_fractions(validation_fraction: float, test_fraction: float) -> None:
    """Raise ConfigError unless there is something left to train on."""
    checks.in_range(0, 1, validation_fraction=validation_fraction, test_fraction=test_fraction)
    if validation_fraction + test_fraction >= 1:
        raise ConfigError(
            f"validation_fraction + test_fraction must be < 1, got {validation_fraction} + {test_fraction}."
        )


def split_per_class(
    examples: Sequence[Example],
    class_names: Sequence[str],
    stream: str,
    *,
    seed: int = 0,
    validation: float = VALIDATION,
    test: float = TEST,
) -> list[Example]:
    """Deal the examples of each class (and client, where known) to train, validation and test.

    Groups are dealt as a whole, each among those of the class (and client) of most of its examples.

    Args:
        examples: in any order; it does not matter.
        class_names: of the labels; part of the streams' names.
        stream: what is split; the other part.
        seed: another one gives another split.
        validation: fraction of each class for validation; 0 for none.
        test: fraction for test; 0 for none.

    Returns:
        All examples, class by class. Where there is one example, or one group, it is for training.
    """
    strata: dict[tuple[int, int], list[list[Example]]] = {}
    for members in _together(examples):
        kinds = Counter((one.label, -1 if one.client is None else one.client) for one in members)
        strata.setdefault(min(kinds, key=lambda kind: (-kinds[kind], kind)), []).append(members)
    dealt = []
    for (label, client), groups in sorted(strata.items()):
        groups = sorted(groups)
        rng = seeding.stream(seed, "split", stream, class_names[label], client)
        order = rng.permutation(len(groups))
        sizes = split_sizes(len(groups), validation, test)
        words = [word for word, size in zip(("train", "validation", "test"), sizes, strict=True) for _ in range(size)]
        dealt += [
            example._replace(split=word) for index, word in zip(order, words, strict=True) for example in groups[index]
        ]
    return dealt


def _together(examples: Sequence[Example]) -> list[list[Example]]:
    """Return examples that go to one split: each group's, sorted, and each example alone that has no group."""
    groups: dict[int | str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.name if example.group is None else example.group, []).append(example)
    return [sorted(members) for members in groups.values()]


def split_sizes(count: int, validation: float, test: float) -> tuple[int, int, int]:
    """Return how many of `count` examples go to train, validation and test.

    Of few, the first is for training and the second for test.

    >>> split_sizes(10, 0.2, 0.3), split_sizes(3, 0.2, 0.3), split_sizes(1, 0.2, 0.3), split_sizes(11, 0.2, 0.0)
    ((5, 2, 3), (2, 0, 1), (1, 0, 0), (9, 2, 0))
    """
    num_train = max(1, round(count * (1 - (validation + test))))
    rest = count - num_train
    num_validation = min(round(count * validation), max(rest - 1, 0)) if test else rest
    return num_train, num_validation, count - num_train - num_validation


def hold_out(examples: Sequence[Example], class_names: Sequence[str], stream: str, fraction: float) -> list[Example]:
    """Turn a fraction of each class's training examples into validation; 0 changes nothing."""
    if fraction == 0:
        return list(examples)
    train = [example for example in examples if example.split == "train"]
    rest = [example for example in examples if example.split != "train"]
    return split_per_class(train, class_names, stream, validation=fraction, test=0.0) + rest


def read_zhou_split(path: Path) -> tuple[tuple[str, ...], list[Example]]:
    """Read a split file of CoOp (`split_zhou_*.json`): for train, val and test a list of [path, label, class name].

    Returns:
        Class names in label order, underscores as spaces, and the examples.

    Raises:
        DataError: the file is damaged, or a label has no name or two.
    """
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
        examples: list[Example] = []
        names: dict[int, str] = {}
        for word in ("train", "val", "test"):
            for name, label, class_name in parts[word]:
                examples.append(Example(name, int(label), SPLIT_WORDS[word]))
                if names.setdefault(int(label), class_name) != class_name:
                    raise DataError(f"{path}: label {label} is both {names[int(label)]!r} and {class_name!r}.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"The split file {path} is damaged ({type(error).__name__}: {error}). Get CoOp's file again, or remove it "
            "to use the documented split."
        ) from error
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{path}: the labels must run from 0 to {len(names) - 1} without a gap.")
    return tuple(names[label].replace("_", " ") for label in range(len(names))), examples
