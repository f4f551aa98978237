"""Tables for a terminal, made from records alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from hushprompt.records import RowSummary


def result_table(rows: Sequence[RowSummary]) -> Table:
    """Give one line a row: accuracies in percent, epsilon, seconds."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
    table.add_column("method (accuracies in %)", no_wrap=True)
    for column in ("local", "neighbor", "harmonic\nmean", "worst\nclient", "epsilon", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        scores = (row.local, row.neighbor, row.harmonic_mean, row.worst_client)
        table.add_row(
            row_title(row), *(f"{100 * score:.1f}" for score in scores), epsilon_text(row.epsilon), f"{row.seconds:.0f}"
        )
    return table


def row_title(row: RowSummary) -> str:
    """Name a row as a reader would."""
    return f"{row.title} without noise" if row.epsilon == float("inf") else row.title


def epsilon_text(epsilon: float | None) -> str:
    """Write an epsilon; "-" where a row has used no private data."""
    if epsilon is None:
        return "-"
    return "inf" if epsilon == float("inf") else f"{epsilon:.3g}"


def captions(rows: Sequence[RowSummary], privacy: dict[str, Any]) -> list[str]:
    """Give the lines that must stand under every table: what its epsilon means, and what it does not cover."""
    last = privacy["rows"][-1]
    lines = [
        f"Seed {rows[-1].seed}, last round, means over clients. local: a client's own images; neighbor: the other "
        "clients'; all classes compete. epsilon -: no private data used; inf: clipped, no noise, no guarantee.",
        f"epsilon is for {AUDIENCES[rows[-1].audience]}; delta, unit, neighbors, sampling and accountant as follows.",
    ]
    stopped = [f"{row.row} ended after {row.num_rounds} rounds: {row.stopped}." for row in rows if row.stopped]
    return [*lines, *stopped, *statement_lines(last), privacy["server"], privacy["several_rows"]]


AUDIENCES = {
    "public": "the public (sees the global prompt after every round; other clients see the same)",
    "personal": "the holder of a client's personal prompt (who also sees all the public sees)",
}


def cross_check_lines(row: dict[str, Any]) -> list[str]:
    """Give, for each audience of one row of `privacy.json`, epsilon by every accountant that applies."""
    lines = []
    for audience, guarantee in row["audiences"].items():
        values = ", ".join(
            f"{name} {value if isinstance(value, str) else f'{value:.4g}'}"
            for name, value in guarantee["cross_checks"].items()
        )
        warnings = guarantee.get("warnings") or ["no contradiction"]
        claimed = guarantee["accountant"]
        lines.append(f"  {audience}: epsilon by accountant: {values}; claimed: {claimed}; {' '.join(warnings)}.")
    return lines


def account_lines(row: dict[str, Any]) -> list[str]:
    """Give each distinct guarantee of one row of `privacy.json` and its clients, the worst first."""
    lines = []
    for account in row.get("clients", []):
        clients = ", ".join(map(str, account["clients"][:10])) + (", ..." if len(account["clients"]) > 10 else "")
        spent = ", ".join(
            f"{audience} {value if isinstance(value, str) else f'{value:.4g}'}"
            for audience, value in account["epsilon"].items()
        )
        lines.append(
            f"  {len(account['clients'])} clients ({clients}): {account['num_rounds']} rounds charged, "
            f"sampling probability {account['sampling_prob']:.4g}; epsilon so far: {spent}."
        )
    return lines


def statement_lines(row: dict[str, Any]) -> list[str]:
    """Give the guarantee of each audience of one row of `privacy.json`."""
    return [
        f"{row['row']}: for {AUDIENCES[audience]}: {guarantee['statement']}"
        for audience, guarantee in row["audiences"].items()
    ]
