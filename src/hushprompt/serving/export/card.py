"""README.md of a prompt in the form of a hub's model card: what it is, what it guarantees, and what it is not for.

Of a run it says what the run's records say, with epsilon computed again as `hushprompt privacy` does; of a prompt file
alone what the file says. Accuracies are left out: they are read from images that no guarantee covers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hushprompt import files
from hushprompt.privacy import statements
from hushprompt.registry import METHODS
from hushprompt.runs import reader, records
from hushprompt.runs.prompt_file import PromptHeader
from hushprompt.serving.loading import PROMPTS
from hushprompt.serving.prompt import NOT_TRAINED, Prompt
from hushprompt.words import counted

NAME = "README.md"
MOST_CLASSES = 100
"""Class names that are spelled out."""
TASKS = {"image": "image-classification", "audio": "audio-classification"}
ASKED = {"image": "image-text-to-text", "audio": "audio-text-to-text"}
"""The same of a generative model."""
COLUMNS = {
    "delta": "delta", "privacy_unit": "unit", "neighboring_relation": "relation", "sampling": "sampling",
    "accountant": "accountant",
}  # fmt: skip
"""What gives an epsilon its meaning, by its name in a record."""
USE = """```python
import hushprompt as hp

prompt = hp.load_prompt("FOLDER")  # this folder
prompt.predict("photo.jpg")
```"""


def write(prompt: Prompt, folder: Path) -> None:
    """Write the card."""
    files.write_text(folder / NAME, card(prompt))


def card(prompt: Prompt, more: Mapping[str, Sequence[str]] | None = None, library: str = "hushprompt") -> str:
    """Return the card of a prompt, and of its run where it lies in one.

    Args:
        prompt: whose card it is.
        more: sections with their paragraphs, before those that every card has.
        library: what the folder is loaded with.
    """
    run = run_of(prompt)
    known = None if run is None else reader.read(run)
    record = None if run is None else _recorded(run, prompt.header.arm)
    sections = {
        **(more or {}),
        "Data": _data(run, known),
        "Method": _method(prompt.header, record),
        "Privacy": [*_held(prompt), *([] if record is None else _of_run(record))],
        "Audit": _audit(known),
        "Intended use": _use(prompt),
        "Limits": _limits(prompt),
    }
    text = [_metadata(prompt, library), f"# {_title(prompt.header)}", *_summary(prompt)]
    for heading, paragraphs in sections.items():
        text += [f"## {heading}", *paragraphs]
    return "\n\n".join(text) + "\n"


def run_of(prompt: Prompt) -> Path | None:
    """Return the folder of the finished run that a prompt file lies in; None for a file alone."""
    run = prompt.path.parent.parent
    is_in_run = (
        prompt.path.parent.name == PROMPTS and (run / "config.toml").exists() and (run / "summary.json").exists()
    )
    return run if is_in_run and prompt.header.privacy != NOT_TRAINED else None


def _metadata(prompt: Prompt, library: str) -> str:
    """Return the block that hubs read, as YAML; JSON's texts are YAML's too."""
    header, tasks = prompt.header, ASKED if prompt.is_generative else TASKS
    values: dict[str, Any] = {"library_name": library, "pipeline_tag": tasks.get(header.modality or "image")}
    base = str((header.backbone or {}).get("model") or (header.backbone or {}).get("architecture") or "")
    base = base.removeprefix("hf-hub:")
    values["base_model"] = base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None
    values["tags"] = ["prompt-learning", "differential-privacy", "federated-learning", header.method]
    lines = (f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items() if value)
    return "\n".join(["---", *lines, "---"])


def _title(header: PromptHeader) -> str:
    method = METHODS.get(header.method).title if header.method in METHODS.names() else header.method
    return f"{method} prompt for {counted(len(header.class_names), 'class') if header.class_names else 'questions'}"


def _summary(prompt: Prompt) -> Iterator[str]:
    header = prompt.header
    whose = "A client's personal prompt" if header.client_id is not None else "A prompt that all clients share"
    backbone = header.backbone or {}
    told = {name: value for name, value in backbone.items() if name not in ("name", "template") and value != ""}
    known = ", ".join(f"{name} = {value}" for name, value in told.items())
    yield (
        f"{whose}, for a frozen backbone: {backbone.get('name', 'not named by the file')}"
        f"{f' ({known})' if known else ''}, fingerprint `{header.backbone_fingerprint}`. It fits no other one."
    )
    if not header.class_names:
        yield "It was learned from questions with answers, and has no classes."
        return
    names = ", ".join(_plain(name) for name in header.class_names[:MOST_CLASSES])
    more = f", and {len(header.class_names) - MOST_CLASSES} more" if len(header.class_names) > MOST_CLASSES else ""
    yield f"Classes: {names}{more}."


def _data(run: Path | None, known: reader.FinishedRun | None) -> list[str]:
    """Say what is known of the training data: public settings, no count and no place."""
    if run is None or known is None:
        return ["Not known from the prompt file alone."]
    data, partition, split = known.config["data"], known.config["partition"], known.config["evaluation"]["split"]
    if (run / "agreement.json").exists():
        each = counted(len(known.identity.clients), "client") if known.identity else "Several clients"
        return [f"{each} with data and a machine of their own: a federation. Evaluation used their split `{split}`."]
    return [
        f"`{data['name']}`, divided among {counted(partition.get('num_clients', 'several'), 'client')} by "
        f"`{partition['name']}`. Evaluation used the split `{split}`."
    ]


def _method(header: PromptHeader, record: _Record | None) -> list[str]:
    settings = [
        f"{name} = {value}"
        for name, value in (header.settings or {}).items()
        if value != "" and not isinstance(value, dict)
    ]
    found = [f"`{header.method}`: {_plain(', '.join(settings[1:])) or 'settings not known'}."]
    if record is not None:
        found.append(f"{counted(record.arm['num_rounds'], 'round')}; {_plain(record.arm['sampling'])}.")
    return [*found, f"How a prompt is put together: `{header.prompt}`."]


def _held(prompt: Prompt) -> list[str]:
    """Say what the prompt in the folder guarantees."""
    who = "the prompt of this folder, and with it everybody who can ask a server that uses it"
    source = statements.NOISE_SOURCE.get(prompt.header.noise_source or "", "")
    return [f"For whoever holds {who}: {prompt.privacy}", *([source] if source else [])]


@dataclass(frozen=True)
class _Record:
    """The privacy record of a run, and what of it is about one arm."""

    whole: Mapping[str, Any]
    arm: Mapping[str, Any]
    origin: str
    """Where it comes from, in words."""
    differences: Sequence[str]
    """Where the run's files say something else."""


def _recorded(run: Path, label: str | None) -> _Record:
    """Compute a run's privacy record again, or read it where that is impossible."""
    from hushprompt.audits.verify import recomputed  # imports the accountant

    computed, differences = recomputed(run)
    whole = computed or statements.with_noise_source(records.read_record(run / "privacy.json"))
    arm = next((arm for arm in whole["arms"] if arm["arm"] == label), whole["arms"][-1])
    origin = (
        "computed again from the run's config and ledger" if computed else "as the run wrote it: not computed again"
    )
    return _Record(whole, arm, origin, differences)


def _of_run(record: _Record) -> list[str]:
    """Return each audience's guarantee, with all that gives it meaning."""
    rows = []
    for audience, held in record.arm["audiences"].items():
        epsilon = f"{statements.number(held['epsilon']):.4g}{statements.beside_epsilon(held.get('noise_source'))}"
        rows.append([statements.AUDIENCES[audience], epsilon, *(str(held[name]) for name in COLUMNS)])
    return [
        f"By audience, {record.origin}:",
        _table(["audience", "epsilon", *COLUMNS.values()], rows),
        *statements.statement_lines(record.arm),
        *(str(record.whole[name]) for name in ("server", "several_arms") if name in record.whole),
        *(f"**DIFFERENCE: {text}.**" for text in record.differences),
    ]


def _audit(known: reader.FinishedRun | None) -> list[str]:
    from hushprompt.reporting.audits import audit_blocks  # imports what draws figures
    from hushprompt.reporting.blocks import PageTable, Words

    blocks = [] if known is None else audit_blocks([known])
    found = []
    for block in blocks:
        if isinstance(block, PageTable):
            rows = [[cell.striptags() if isinstance(cell, Markup) else cell for cell in row] for row in block.rows]
            found += [f"{block.caption}.", _table(block.header, rows)]
        elif isinstance(block, Words):
            found.append(block.text)
    if found:
        found.append("These figures come from attacks on the run's own training: no guarantee covers them.")
    return found or ["Not audited." if known else "Not known from the prompt file alone."]


def _use(prompt: Prompt) -> list[str]:
    if not prompt.classes:
        return ["To answer questions in words, by the backbone above:", USE.replace(".predict(", ".answer(")]
    what = "a sound is of" if prompt.header.modality == "audio" else "an image shows"
    words = ", or to answer a question about it in words" if prompt.is_generative else ""
    return [f"To say which of its classes {what}{words}, by the backbone above:", USE]


def _limits(prompt: Prompt) -> list[str]:
    words = "- Answers in words are the frozen model's, may be wrong, and may be about anything.\n"
    classes = "- Probabilities are among its classes alone: whatever an example shows, one of them is named.\n"
    always = (
        "- The guarantee is one for training examples. It covers neither evaluation images, nor names of classes, nor "
        "what the backbone was pretrained on; every further prompt of the same data adds to what is learned of it.\n"
        "- Errors and prejudices of the backbone remain, and its license and that of the data apply.\n"
        "- Accuracies are not stated here, since they are read from images that the guarantee does not cover."
    )
    return [(words if prompt.is_generative else "") + (classes if prompt.classes else "") + always]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _plain(text: object) -> str:
    """Return a text in one line, with nothing that Markdown or HTML would take for its own."""
    return re.sub(r"([\\`*<>\[\]#]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(str(text).split()))
