"""ROC curves on logarithmic axes as an SVG, written without a plotting library."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from hushprompt import files
from hushprompt.audits.audit_record import AuditRecord
from hushprompt.audits.metrics import AttackResult

SIDE, MARGIN, GAP = 300, 52, 46
"""Pixels: of a panel, around it, and above it for its title."""
DECADES = 4
"""Axes run from 1e-4 to 1."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, told apart by the color-blind."""


def write_roc(path: Path, record: AuditRecord) -> None:
    """Draw one panel for each budget and audience that was attacked."""
    panels = [
        (f"{budget.arm}, {one.audience}", one.attacks)
        for budget in record.budgets
        for one in budget.audiences
        if one.attacks
    ]
    columns = max(1, min(2, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    names = list(dict.fromkeys(attack.attack for _, attacks in panels for attack in attacks))
    width, height = columns * (SIDE + MARGIN + 20) + 20, rows * (SIDE + MARGIN + GAP) + 22 * len(names) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><title>ROC curves of membership attacks</title>'
        f'<rect width="{width}" height="{height}" fill="white"/>'
    ]
    for index, (title, attacks) in enumerate(panels):
        left = (index % columns) * (SIDE + MARGIN + 20) + MARGIN
        top = (index // columns) * (SIDE + MARGIN + GAP) + GAP
        parts.append(f'<g transform="translate({left},{top})">{_panel(title, attacks, names)}</g>')
    for index, name in enumerate(names):
        y = rows * (SIDE + MARGIN + GAP) + 22 * index + 14
        parts.append(f'<line x1="{MARGIN}" x2="{MARGIN + 30}" y1="{y}" y2="{y}" {_stroke(index)}/>')
        parts.append(f'<text x="{MARGIN + 38}" y="{y + 4}">{escape(name)}</text>')
    files.write_text(path, "\n".join([*parts, "</svg>"]) + "\n")


def _panel(title: str, attacks: list[AttackResult], names: list[str]) -> str:
    """Draw frame, decades, the line of guessing, and one curve an attack."""
    parts = [f'<rect width="{SIDE}" height="{SIDE}" fill="none" stroke="#444"/>']
    for decade in range(DECADES + 1):
        at = SIDE * decade / DECADES
        label = f"1e{decade - DECADES}" if decade < DECADES else "1"
        parts.append(f'<line x1="{at}" x2="{at}" y1="0" y2="{SIDE}" stroke="#ddd"/>')
        parts.append(f'<line x1="0" x2="{SIDE}" y1="{SIDE - at}" y2="{SIDE - at}" stroke="#ddd"/>')
        parts.append(f'<text x="{at}" y="{SIDE + 16}" text-anchor="middle">{label}</text>')
        parts.append(f'<text x="-6" y="{SIDE - at + 4}" text-anchor="end">{label}</text>')
    parts.append(f'<line x1="0" y1="{SIDE}" x2="{SIDE}" y2="0" stroke="#888" stroke-dasharray="4 4"/>')
    parts.append(f'<text x="{SIDE / 2}" y="-10" text-anchor="middle">{escape(title)}</text>')
    parts.append(f'<text x="{SIDE / 2}" y="{SIDE + 32}" text-anchor="middle">false-positive rate</text>')
    for attack in attacks:
        points = [
            f"{_place(x):.1f},{SIDE - _place(y):.1f}"
            for x, y in zip(attack.roc["fpr"], attack.roc["tpr"], strict=True)
            if x > 0
        ]
        stroke = _stroke(names.index(attack.attack))
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" {stroke}/>')
    return "".join(parts)


def _place(rate: float) -> float:
    """Return a rate's place on a logarithmic axis; what is below the axis lies on its end."""
    return SIDE * max(0.0, 1 + math.log10(max(rate, 10.0**-DECADES)) / DECADES)


def _stroke(index: int) -> str:
    """Return color and width of a curve."""
    return f'stroke="{COLORS[index % len(COLORS)]}" stroke-width="1.8"'
