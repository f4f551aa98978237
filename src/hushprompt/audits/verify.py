"""What an auditor would do by hand: recompute a run's noise and epsilon, and compare everything that was published.

From config, clients' sizes and ledger alone the plan is made again: noise multipliers, releases, epsilon. Each claim is
then held against dp_accounting itself. What `summary.json`, `privacy.json`, `records.jsonl` and prompt files say must
agree, charges must fit the public schedule, and files must have the hashes that they had at the end of the run. Nothing
needs the data, and nothing is written.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hushprompt.audits.confirmation import is_confirmed
from hushprompt.audits.differences import against_schedule, against_sentence, against_server, differing, part
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.config.values import to_plain
from hushprompt.data.partitions.base import ClientShard, Partition
from hushprompt.errors import DataError, HushpromptError
from hushprompt.federation.planning import plan_arms, plan_metrics
from hushprompt.federation.setup import Classes, declared_classes
from hushprompt.privacy import statements
from hushprompt.privacy.config import Audience
from hushprompt.privacy.ledger import Ledger, accounts
from hushprompt.runs import identity as identities
from hushprompt.runs import ledger as ledgers
from hushprompt.runs import manifest, records
from hushprompt.runs.arm import Arm
from hushprompt.runs.identity import RunIdentity
from hushprompt.runs.privacy_record import privacy_record
from hushprompt.runs.prompt_file import PromptHeader, read_prompt
from hushprompt.words import counted, first_of

OF_ARM = (
    "method", "channels", "clip_norms", "clipped", "sensitivities", "noise_multipliers", "num_rounds", "limit",
    "participation", "share",
)  # fmt: skip
OF_AUDIENCE = ("epsilon", "delta", "privacy_unit", "neighboring_relation", "releases", "terms")
"""Entries of `privacy.json` that are compared; sentences are read for their numbers."""
UNTRAINED = {"method": "zero_shot", "epsilon": None, "num_rounds": 0}
"""What `summary.json` says of the hand template beside the method of a federation, which has no references."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Verification:
    """What was checked of a run, and what does not agree."""

    folder: Path
    digest: str
    """SHA-256 of `manifest.json`, to keep elsewhere; empty where the run has none."""
    checked: Sequence[str]
    """What was compared, in a few words each."""
    differences: Sequence[str]
    """What does not agree, a sentence each; empty where all does."""
    not_recorded: Sequence[str]
    """What could not be checked, since the run has no record of it."""
    privacy: Mapping[str, Any] | None
    """The privacy record computed again; None where that is impossible."""
    noise_source: str
    """"seeded" or "secure", as the config says."""

    @property
    def is_consistent(self) -> bool:
        """Whether everything that was checked agrees."""
        return not self.differences

    def lines(self) -> list[str]:
        """Return the outcome in sentences."""
        agrees = "Checked, and all of it agrees: " if self.is_consistent else "Checked: "
        lines = [f"DIFFERENCE: {text}." for text in self.differences]
        if lines and self.noise_source == "seeded":
            lines.insert(0, statements.of_a_simulation("Every epsilon here"))
        lines += [f"{agrees}{'; '.join(self.checked)}."] if self.checked else []
        lines += [f"Not checked: {text}." for text in self.not_recorded]
        if self.digest:
            lines.append(
                f"digest: {self.digest} (keep it elsewhere: a folder that was rewritten as a whole, with all its "
                "hashes, agrees with itself and has another digest)"
            )
        return lines

    def __repr__(self) -> str:
        return "\n".join([f"Verification({str(self.folder)!r})", *self.lines()])


def verify(folder: Path, digest: str = "") -> Verification:
    """Check a run folder, also a copy without its data; of a federation, the server's or a client's.

    Args:
        folder: of the run.
        digest: as it was kept elsewhere; empty: none was.

    Raises:
        DataError: it is no run folder, or a file cannot be read.
    """
    work = _FolderCheck(folder)
    assert work.config is not None, "or it raised"
    for step in (
        work.hashes, work.identity, work.plan, work.ledger, work.compute, work.confirm, work.privacy, work.summary,
        work.rounds, work.prompts,
    ):  # fmt: skip
        work.attempt(step)
    found = manifest.digest(folder)
    if digest and digest != found:
        work.differences.append(f"the digest is {found or 'missing'}, not {digest}: the folder is not the one it was")
    return Verification(
        folder=folder,
        digest=found,
        checked=work.checked,
        differences=work.differences,
        not_recorded=work.not_recorded,
        privacy=work.computed,
        noise_source=work.config.privacy.noise_source,
    )


def recomputed(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Compute a run's privacy record from config and ledger, without the time that the rest of `verify` takes.

    Returns:
        The record, None where that is impossible; and what does not agree of files, identity, ledger and record.
    """
    work = _FolderCheck(folder)
    for step in (work.hashes, work.identity, work.plan, work.ledger, work.compute, work.privacy):
        work.attempt(step)
    return work.computed, work.differences


@dataclass
class _FolderCheck:
    """A check of one folder, step by step; a step that lacks something says so and leaves the rest."""

    folder: Path
    checked: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    not_recorded: list[str] = field(default_factory=list)
    arms: list[Arm] = field(default_factory=list)
    """As planned."""
    spent: list[Arm] = field(default_factory=list)
    """As the ledger has them."""
    charged: dict[str, Ledger] = field(default_factory=dict)
    computed: dict[str, Any] | None = None

    @functools.cached_property
    def config(self) -> RunConfig:
        """The run's config."""
        if (self.folder / "config.toml").exists():
            return configs.load_stored(self.folder)
        if self.agreement is None:
            raise DataError(f"{self.folder} is not a run folder: it has no config.toml.")
        return configs.parse(tomllib.loads(self.agreement["config"]))

    @functools.cached_property
    def agreement(self) -> Any:
        """What a federation agreed on: its server and its clients have that instead of a config and sizes."""
        return self._json("agreement.json")

    @functools.cached_property
    def recorded(self) -> RunIdentity | None:
        """What the run was begun with."""
        return identities.read(self.folder)

    @functools.cached_property
    def holdings(self) -> Any:
        """Who has how many examples."""
        return self._json("partition.json")

    @functools.cached_property
    def clients(self) -> list[tuple[str, int]]:
        """Names and training examples; empty where nobody recorded them."""
        if self.agreement is not None:
            return list(zip(self.agreement["clients"], self.agreement["sizes"], strict=True))
        if self.recorded is not None:
            return list(self.recorded.clients)
        return [] if self.holdings is None else self._held("train")

    def attempt(self, step: Callable[[], None]) -> None:
        """Take a step; what stops it is a difference."""
        try:
            step()
        except (HushpromptError, ValueError, KeyError, TypeError, AttributeError) as error:  # of anything edited
            self.differences.append(f"{step.__name__}: {error}".rstrip("."))

    def hashes(self) -> None:
        """Compare files with their hashes."""
        if manifest.digest(self.folder):
            self.checked.append("hashes of what was published")
            self.differences += manifest.changes(self.folder)
        else:
            self.not_recorded.append("hashes not recorded")

    def identity(self) -> None:
        """Compare what the run was begun with, wherever it is written."""
        if self.recorded is None:
            self.not_recorded.append(identities.NOT_RECORDED)
            return
        self.checked.append("settings and clients against the identity of the first start")
        now = dataclasses.replace(self.recorded, settings=identities.settings_of(self.config))
        self.differences += [f"config.toml: {text}" for text in self.recorded.differences(now)]
        summary = self._json("summary.json") or {}
        if summary and summary.get("identity") != records.to_json(self.recorded):
            self.differences.append("summary.json has another identity than identity.json")
        if self.holdings is not None and self._sizes(self._held("train")) != self._sizes(self.recorded.clients):
            self.differences.append("partition.json has other clients, or other sizes, than identity.json")

    def plan(self) -> None:
        """Make the plan again: calibrates all noise."""
        if not self.clients:
            self.not_recorded.append("sizes of the clients are not recorded, so noise and epsilon cannot be computed")
            return
        try:
            num_late = (self.agreement or {}).get("num_late", 0)
            arms = plan_arms(self.config, [size for _, size in self.clients], self._declared(), num_late)
        except HushpromptError as error:
            self.differences.append(f"no plan can be made of this config: {error}")
            return
        self.arms = arms[-1:] if self.agreement is not None else arms
        if self._own_client is not None:
            client_id = [name for name, _ in self.clients].index(self._own_client)
            self.arms = [dataclasses.replace(arm, plan=arm.plan.of_client(client_id)) for arm in self.arms]
        self.checked.append("noise multipliers, releases and epsilon, computed again from config and ledger")

    def ledger(self) -> None:
        """Read the charges, and compare them with the public schedule."""
        path = self.folder / ledgers.FILE
        lines = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
        digest = self.recorded.digest[: ledgers.LETTERS] if self.recorded else None
        try:
            self.charged = ledgers.read_ledgers(path, lines, [name for name, _ in self.clients], digest)
        except HushpromptError as error:
            self.differences.append(str(error).rstrip("."))
        self.differences += [
            f"ledger.jsonl charges an arm {label!r} that the config does not have"
            for label in self.charged
            if self.arms and label not in {each.label for arm in self.arms for each in arm.stages}
        ]
        for each in (each for arm in self.arms for each in arm.stages):
            self.differences += against_schedule(each, self.charged.get(each.label, Ledger()), self._own_client)
        self.spent = [arm.spent(self.charged) for arm in self.arms]

    def compute(self) -> None:
        """Compute the privacy record again."""
        if self.spent:
            stages = [each for arm in self.spent for each in arm.stages]
            of = {each.label: accounts(each.plan, self.charged.get(each.label, Ledger())) for each in stages}
            computed = privacy_record(self.spent, of, *self._metrics(), in_one_process=self.agreement is None)
            self.computed = records.to_json(computed)

    def confirm(self) -> None:
        """Hold every epsilon against dp_accounting."""
        if not self.spent:
            return
        self.checked.append("each epsilon against dp_accounting")
        for arm in self.spent:
            for audience, held in arm.plan.guarantees().items():
                parts = arm.plan.composed(audience)
                if not math.isinf(held.epsilon) and not is_confirmed(
                    held.epsilon, parts, held.delta, held.neighboring_relation
                ):
                    self.differences.append(
                        f"{arm.label}: dp_accounting does not confirm epsilon {held.epsilon:.6g} for the {audience}"
                    )

    def privacy(self) -> None:
        """Compare the privacy record with the computed one."""
        if self.computed is None:
            return
        written = self._json("privacy.json")
        if written is None:
            self.not_recorded.append("privacy.json is not there: the run has not ended")
            return
        self._compare_privacy(written, self.computed)

    def summary(self) -> None:
        """Compare the result table's epsilon, delta and rounds."""
        summary = self._json("summary.json")
        if summary is None or not self.spent:
            return
        self.checked.append("summary.json")
        by_label = {entry.get("arm"): entry for entry in summary.get("arms", [])}
        for planned, arm in zip(self.arms, self.spent, strict=True):
            entry, audience = by_label.pop(arm.label, None), arm.plan.config.audience
            if entry is None:
                self.differences.append(f"summary.json has no arm {arm.label!r}")
                continue
            due = {
                "epsilon": arm.plan.epsilon(audience) if arm.plan.channels else None,
                "delta": arm.plan.config.delta,
                "audience": str(audience),
                "num_rounds": arm.num_rounds,
            }
            self.differences += differing(f"summary.json, {arm.label}", part(entry, due), records.to_json(due))
            self.differences += self._against_source(f"summary.json, {arm.label}", entry.get("noise_source"))
            if arm.num_rounds < planned.num_rounds and not entry.get("stopped"):
                self.differences.append(
                    f"{arm.label}: ledger.jsonl charges {arm.num_rounds} of {counted(planned.num_rounds, 'round')}, "
                    "and summary.json does not say that training was stopped"
                )
        if self.agreement is not None and self.config.evaluation.metrics_epsilon is not None:
            beside = by_label.pop("zero_shot", UNTRAINED)  # clients told what the model did before training
            self.differences += differing("summary.json, zero_shot", part(beside, UNTRAINED), UNTRAINED)
        self.differences += [f"summary.json has an arm {label!r} that the config does not have" for label in by_label]

    def rounds(self) -> None:
        """Compare what each round said it had spent."""
        by_label: dict[str, list[Any]] = {}
        path = self.folder / "records.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            record = records.renamed(json.loads(line))
            by_label.setdefault(record.get("arm", ""), []).append(record)
        has_ended = (self.folder / "privacy.json").exists()
        for planned, arm in zip(self.arms, self.spent, strict=True):
            found, ledger = by_label.get(arm.label, []), self.charged.get(arm.label, Ledger())
            if not found:
                continue
            self.checked.append(f"rounds of {arm.label}")
            if missing := [at for at in (record["round_index"] for record in found) if at - 1 not in ledger.made]:
                self.differences.append(
                    f"{arm.label}: records.jsonl has rounds that ledger.jsonl does not charge: {first_of(missing, 5)}"
                )
            # A run that was killed in a round had charged for it.
            before = {**self.charged, arm.label: ledger.before(found[-1]["round_index"])}
            plan = arm.plan if has_ended else planned.spent(before).plan
            due = {str(audience): plan.epsilon(audience) for audience in plan.audiences}
            where = f"records.jsonl, {arm.label}, round {found[-1]['round_index']}: epsilon"
            self.differences += differing(where, part(found[-1]["epsilon"], due), records.to_json(due))

    def prompts(self) -> None:
        """Compare what each prompt file says of itself."""
        paths = sorted((self.folder / "prompts").glob("*.safetensors"))
        if not paths or not self.spent:
            return
        self.checked.append(counted(len(paths), "prompt file"))
        guarantees = self.spent[-1].plan.guarantees()
        for path in paths:
            header, tensors = read_prompt(path)
            where = f"prompts/{path.name}"
            held = guarantees[Audience.PUBLIC if header.client_id is None else Audience.PERSONAL]
            self.differences += against_sentence(where, header.privacy, records.to_json(held.to_json()))
            self.differences += against_server(f"{where}, server", header.server, guarantees.get(Audience.SERVER))
            self.differences += self._against_source(where, header.noise_source)
            if header.method != self.spent[-1].method_name:
                self.differences.append(f"{where} is of the method {header.method}, not {self.spent[-1].method_name}")
            self.differences += self._against_content(where, header, tensors)
            if (known := self.recorded) is None:
                continue
            if known.backbone not in ("", header.backbone_fingerprint):
                self.differences.append(f"{where} is of another backbone than identity.json names")
            if header.class_names != known.class_names[: len(header.class_names)]:
                self.differences.append(f"{where} is of other classes than identity.json names")

    def _against_content(self, where: str, header: PromptHeader, tensors: Mapping[str, Tensor]) -> Iterator[str]:
        """Say where a prompt file is not of the trained arm, or keeps quiet about what it shows."""
        arm = self.spent[-1]
        if header.arm not in (None, arm.label):
            yield f"{where} is of the arm {header.arm!r}, not {arm.label!r}"
        if header.settings is not None:
            yield from differing(f"{where}, settings", header.settings, part(to_plain(arm.method), header.settings))
        if "log_prior" in tensors and statements.CLASSES_DECLARED not in header.privacy:
            yield f"{where} shows the client's classes and does not say that these were declared public"

    def _compare_privacy(self, written: Mapping[str, Any], computed: Mapping[str, Any]) -> None:
        """Compare privacy.json with what was computed, entry by entry."""
        self.checked.append("privacy.json")
        by_label = {entry.get("arm"): entry for entry in written.get("arms", [])}
        for due in computed["arms"]:
            entry = by_label.pop(due["arm"], None)
            if entry is None:
                self.differences.append(f"privacy.json has no arm {due['arm']!r}")
                continue
            self._compare_arm(f"privacy.json, {due['arm']}", entry, due)
        self.differences += [f"privacy.json has an arm {label!r} that the config does not have" for label in by_label]
        due, said = computed.get("evaluation"), written.get("evaluation")
        if due is not None and said is not None:
            guarantees = ({**one, "guarantee": part(one["guarantee"], OF_AUDIENCE)} for one in (said, due))
            self.differences += differing("privacy.json, evaluation", *guarantees)

    def _compare_arm(self, where: str, entry: Mapping[str, Any], due: Mapping[str, Any]) -> None:
        """Compare the entry of one arm, and of the release that it starts from."""
        self.differences += differing(where, part(entry, OF_ARM), part(due, OF_ARM))
        if self._own_client is None:
            self.differences += differing(f"{where}, clients", entry.get("clients", []), due["clients"])
        for audience, held in due["audiences"].items():
            said = entry.get("audiences", {}).get(audience, {})
            place = f"{where}, {audience}"
            self.differences += differing(place, part(said, OF_AUDIENCE), part(held, OF_AUDIENCE))
            self.differences += differing(f"{place}, beside", said.get("beside", []), held["beside"])
            self.differences += self._against_source(place, said.get("noise_source"))
            self.differences += against_sentence(f"{place}, statement", said.get("statement", ""), held)
        if "start" in due:
            self._compare_arm(f"{where}, start", entry.get("start", {}), due["start"])

    def _against_source(self, where: str, said: str | None) -> list[str]:
        """Say where the noise source is not the config's; older versions did not write it down."""
        due = self.config.privacy.noise_source
        return [] if said in (None, due) else [f"{where} says that noise is {said}, and config.toml that it is {due}"]

    def _metrics(self) -> tuple[Any, int | None]:
        """Return the plan of noisy evaluation counts, and how many were released; None where there is none."""
        if self.config.evaluation.metrics_epsilon is None or self.agreement is not None:
            return None, None
        split = self.config.evaluation.split
        if self.holdings is None or split not in self.holdings:
            self.not_recorded.append("numbers of evaluation images are not recorded")
            return None, None
        shards = [ClientShard(at, (), {split: np.arange(size)}) for at, (_, size) in enumerate(self._held(split))]
        path = self.folder / "metrics.jsonl"
        num_released = len(path.read_bytes().splitlines()) if path.exists() else 0
        return plan_metrics(self.config, self.arms, Partition(tuple(shards))), num_released

    @property
    def _own_client(self) -> str | None:
        """At a client of a federation, its name: its ledger charges nobody else."""
        if self.agreement is None or self.recorded is None or len(self.recorded.clients) > 1:
            return None
        return self.recorded.clients[0][0]

    def _declared(self) -> Classes | None:
        """Return the classes that each client was declared to have."""
        if self.agreement is not None:
            sets = self.agreement.get("client_classes")
            return sets and tuple(None if own is None else tuple(own) for own in sets)
        if self.holdings is None:
            return None
        return declared_classes(self.config, self.holdings["class_names"])

    def _sizes(self, clients: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Return names and numbers of examples that can be compared: names alone where sizes count groups."""
        is_group = self.config.privacy.privacy_unit == "group"
        return [(name, 0 if is_group else size) for name, size in clients]

    def _held(self, split: str) -> list[tuple[str, int]]:
        """Return each client's name and number of examples in a split."""
        rows = self.holdings[split]
        return [(str(name), sum(row.values())) for name, row in zip(self.holdings["client_names"], rows, strict=True)]

    def _json(self, name: str) -> Any:
        """Read a file of the folder; None where there is none."""
        return records.read_record(self.folder / name) if (self.folder / name).exists() else None
