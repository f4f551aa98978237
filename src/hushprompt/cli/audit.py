"""The audit command: claimed epsilon, measured lower bound, and how membership attacks do, for every audience."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import hushprompt as hp
from hushprompt.cli.console import INTERRUPTED, console, sentence
from hushprompt.errors import ConfigError
from hushprompt.privacy.statements import AUDIENCES, beside_epsilon
from hushprompt.reporting.audits import exposure_text
from hushprompt.reporting.formats import WholeTable
from hushprompt.reporting.tables import epsilon_text
from hushprompt.words import counted

if TYPE_CHECKING:
    from hushprompt.audits.audit_record import AudienceAudit, AuditRecord, BudgetAudit
    from hushprompt.audits.metrics import AttackResult, Interval

ALL_ATTACKS = "lira,rmia,loss,shadow_mlp,pipra,gradient_cosine,class_row,likelihood,crafted_prompt"
CONTRADICTED = 1
"""Exit status of an audit that measured more than is claimed."""
BOUNDS = {
    "one_run": "one run, any mechanism",
    "f_dp_gaussian": "one run, f-DP of Gaussian mechanisms",
    "f_dp_approximate": "one run, f-DP of any mechanism",
    "independent_trials": "error rates of independent trials, any mechanism",
    "gdp_independent_trials": "error rates of independent trials, Gaussian mechanisms",
}
KINDS = {"mechanism": "gradient canaries", "end_to_end": "canaries in one training", "attack": "attacks"}
"""Kinds of measurements whose power is told apart."""


def audit(
    what: Annotated[Path, typer.Argument(metavar="RUN|CONFIG", help="Run folder, TOML file, or preset.")],
    attack: Annotated[str, typer.Option(help="Attacks, by commas; none leaves them out.")] = ALL_ATTACKS,
    audience: Annotated[str, typer.Option(help="Who attacks, by commas.")] = "public,personal,server",
    epsilon: Annotated[str, typer.Option(help="Budgets, by commas, such as 1,2,8,inf; empty: the config's.")] = "",
    client: Annotated[int, typer.Option(help="Client whose examples are attacked.")] = 0,
    num_shadows: Annotated[int, typer.Option(help="Shadow federations of each budget.")] = 64,
    targets: Annotated[int, typer.Option(help="Examples that crafted prompts are aimed at.")] = 10,
    canaries: Annotated[int, typer.Option(help="Canaries of the end-to-end audit; 0: none.")] = 200,
    gradient_canaries: Annotated[int, typer.Option(help="Canaries of the mechanism audit; 0: none.")] = 5000,
    secrets: Annotated[int | None, typer.Option(help="Secrets in answers; none: 4 where there are questions.")] = None,
    repeats: Annotated[int, typer.Option(help="Training examples that have each secret.")] = 1,
    digits: Annotated[int, typer.Option(help="Random digits of a secret, 1 to 4.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Folder of the audit; none: RUN/audit, or audit/NAME.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0: one a core.")] = 0,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the ROC curves as roc.svg.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override, such as training.num_rounds=5.")] = None,
) -> None:
    """Attack what a run publishes, measure a lower bound on epsilon, and set it beside the claim.

    Started again with the same folder, it goes on where it was stopped.
    """
    from hushprompt.audits import audit as audits

    start = time.monotonic()
    try:
        with _bar() as bar:
            task = bar.add_task("trainings", total=None)
            record = hp.audit(
                what,
                out=out,
                overrides=set_ or [],
                workers=workers,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
                client_id=client,
                epsilons=tuple(_number(text) for text in _words(epsilon)),
                attacks=tuple(_words(attack)),
                audiences=tuple(_words(audience)),
                num_shadows=num_shadows,
                num_targets=targets,
                num_canaries=canaries,
                num_gradient_canaries=gradient_canaries,
                num_secrets=secrets,
                num_repeats=repeats,
                num_digits=digits,
            )
    except KeyboardInterrupt:
        console.print("Stopped. Finished federations are kept; the same command goes on.", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    folder = out or audits.locate(what, set_ or [])[1]
    if plot:
        from hushprompt.reporting import roc
        from hushprompt.runs import records

        roc.write_roc(records.to_json(record), folder / "roc.svg")
    show(record)
    console.print(f"{time.monotonic() - start:.0f} s; {folder / audits.FILE}", soft_wrap=True)
    if any(one.is_contradicted for budget in record.budgets for one in budget.audiences):
        raise typer.Exit(CONTRADICTED)


def show(record: AuditRecord) -> None:
    """Print an audit."""
    units = {"client": "clients", "group": f"groups of client {record.client_id}"}
    of = units.get(record.privacy_unit, f"candidates of client {record.client_id}")
    sentence(
        f"Audit of {record.method}: {record.num_candidates} {of}, "
        f"{counted(record.num_shadows, 'shadow federation')} a budget, seed {record.seed}.",
    )
    for budget in record.budgets:
        for one in budget.audiences:
            _show_audience(budget, one, _canaries(record))
        if budget.clear_sums is not None:
            sentence(_clear_sums(budget, budget.clear_sums))
    for why in record.left_out.values():
        sentence(f"\n{why} Left out.")
    sentence(_power(record))


def _canaries(record: AuditRecord) -> str:
    """Say what is in or out in one training."""
    if record.privacy_unit == "client":
        return "clients, there or not"
    example = "made-up answers" if record.has_questions else "mislabelled images"
    return f"groups of {example}" if record.privacy_unit == "group" else example


def _show_audience(budget: BudgetAudit, one: AudienceAudit, canaries: str) -> None:
    """Print claim, lower bounds and attacks of one audience."""
    sentence(f"\n{budget.arm}, for {AUDIENCES[one.audience]}", style="bold")
    sentence(f"claimed: {one.claimed['statement']}")
    for result in one.mechanism:
        sentence(
            f"measured, mechanism alone: epsilon >= {result.epsilon_lower_bound:.3g} (95 %, {result.num_canaries} "
            f"gradient canaries; {BOUNDS[result.bound]})",
        )
    for canary in one.canaries:
        result = canary.result
        sentence(
            f"measured, end to end: epsilon >= {result.epsilon_lower_bound:.3g} (95 %, {result.num_canaries} "
            f"{canaries}, {result.num_correct} of {result.num_guesses} guesses right; {canary.sees}, "
            f"gap {canary.mean_gap:.2f} standard deviations)",
        )
    by_attacks = [(attack.bound, f"{attack.attack}, {attack.sees}") for attack in one.attacks if attack.bound]
    if by_attacks:
        result, best = max(by_attacks, key=lambda pair: pair[0].epsilon_lower_bound)
        drawn = "trials" if result.bound.endswith("independent_trials") else "coins"
        sentence(
            f"measured, by the guesses of {counted(len(by_attacks), 'attack')}: epsilon >= "
            f"{result.epsilon_lower_bound:.3g} (95 % for all of them, {result.num_canaries} {drawn}, "
            f"{result.num_correct} of {result.num_guesses} guesses right; {best}; {BOUNDS[result.bound]})",
        )
    if one.secrets is not None:
        sentence(f"measured, secrets in answers: {exposure_text(dataclasses.asdict(one.secrets))}")
    if one.is_contradicted:
        claim = epsilon_text(one.claimed["epsilon"]) + beside_epsilon(one.claimed.get("noise_source"))
        sentence(
            f"CONTRADICTED: more was measured ({one.lower_bound:.3g}) than is claimed "
            f"({claim}). Either the code is wrong, or chance: repeat with another seed.",
            style="bold red",
        )
    if one.attacks:
        console.print(attack_table(one.attacks))


def _clear_sums(budget: BudgetAudit, found: AttackResult) -> str:
    """Say what crafted prompts find in sums without noise, and what that means."""
    from hushprompt.audits.audit_record import CRAFTED_POWER

    text = f"\n{budget.arm}, crafted prompts against clear sums: AUC {_interval(found.auc)}"
    if not budget.crafted_has_power:
        return f"{text} (NO POWER: below {CRAFTED_POWER}, so what they find in noisy sums says nothing)."
    if any(one.audience == "server" for one in budget.audiences):
        return f"{text}. This server does not get such sums."
    return f"{text}. This server gets such sums and is trusted with them: against it nothing is claimed."


def attack_table(attacks: list[AttackResult]) -> WholeTable:
    """Return one line an attack."""
    table = WholeTable(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
    table.add_column("attack, and what it sees", no_wrap=True)
    for column in ("AUC (95 %)", "TPR in %\nat 1 % FPR", "TPR in %\nat 0.1 % FPR"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in attacks:
        rates = [_percent(one.tpr[point]) for point in ("0.01", "0.001")]
        table.add_row(f"{one.attack}, {one.sees}", _interval(one.auc), *rates)
    return table


def _power(record: AuditRecord) -> str:
    """Say what each kind of measurement could have found."""
    if not record.power:
        return "\nPower: unknown, as nothing was measured without noise. Add inf to --epsilon."
    lines = ["\nPower, by what was found without noise:"]
    for name, found in record.power.items():
        texts = {
            "mechanism": f"gradient canaries show epsilon >= {found.mechanism or 0:.3g}",
            "end_to_end": f"canaries in one training show epsilon >= {found.end_to_end or 0:.3g}",
            "attack": f"the best attack ({found.attack}) has AUC {_interval(found.auc)}" if found.auc else "",
        }
        if found.secrets is not None:
            texts["secrets"] = f"secrets in answers have p = {found.secrets:.2g}"
        verdicts = [
            f"{KINDS[kind]} left out" if works is None else f"{texts[kind]}{'' if works else ' (NO POWER)'}"
            for kind, works in found.has_power.items()
        ]
        lines.append(f"for the {name} audience: {', '.join(verdicts)}.")
    if any(works is False for found in record.power.values() for works in found.has_power.values()):
        lines.append("NO POWER: where nothing protects, nothing was found, so nothing can be read into other budgets.")
    return "\n".join(lines)


def _percent(rate: Interval) -> str:
    """Write a rate, or that it cannot be seen."""
    if rate.value is None or rate.low is None or rate.high is None:
        return "not resolvable"
    return f"{100 * rate.value:.1f} ({100 * rate.low:.1f}-{100 * rate.high:.1f})"


def _interval(interval: Interval) -> str:
    """Write an estimate with its interval."""
    return f"{interval.value:.2f} ({interval.low:.2f}-{interval.high:.2f})"


def _words(text: str) -> list[str]:
    """Split at commas; "none" and the empty string are nothing."""
    return [word.strip() for word in text.split(",") if word.strip() not in ("", "none")]


def _number(text: str) -> float:
    """Read one budget."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--epsilon takes numbers > 0 and inf, by commas, got {text!r}.") from None


def _bar() -> Progress:
    """Return a bar with the time that is left."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console)
