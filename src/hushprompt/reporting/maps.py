"""The maps: who holds which class, and the confusion matrix; cells in a few shades, one path a shade."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from hushprompt.reporting.drawing import RULE, SHADE, SOFT, WIDTH, Drawing, Panel, tip
from hushprompt.reporting.pooling import Group, PooledArm, simulated
from hushprompt.reporting.styles import printable
from hushprompt.runs.reader import FinishedRun, Holdings
from hushprompt.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Confusions:
    """Predictions of one row, all seeds together."""

    seeds: Sequence[int]
    class_names: Sequence[str]
    tables: Mapping[str, np.ndarray]
    """[c, c] counts, true by predicted class: "local" and "neighbor"."""
    owners: np.ndarray
    """[s, c] the client that holds most of each class, seed by seed."""
    held: np.ndarray
    """The classes that somebody holds."""

    @property
    def has_one_partition(self) -> bool:
        """True if every class has the same owner for all seeds."""
        return bool((self.owners == self.owners[0]).all())

    def order(self) -> np.ndarray:
        """Return the held classes by owner; where owners change with the seed, confused classes stand together.

        The second order is that of the leaves of an average-linkage tree, whose distance is 1 less the mean share of
        two classes' images that are taken for each other.
        """
        if self.has_one_partition:
            return self.held[np.argsort(self.owners[0][self.held], kind="stable")]
        if len(self.held) < 3:
            return self.held
        counts = (self.tables["local"] + self.tables["neighbor"])[np.ix_(self.held, self.held)]
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        distance = 1 - (shares + shares.T) / 2
        np.fill_diagonal(distance, 0.0)
        return self.held[leaves_list(linkage(squareform(distance), "average", optimal_ordering=True))]


def pooled(arms: Sequence[PooledArm]) -> Confusions | None:
    """Add up the counts of a row's seeds; None where no run has any.

    A seed whose data set has another number of classes than the first one's is left out.
    """
    found: list[tuple[int, Holdings, Mapping[str, np.ndarray]]] = []
    for arm in arms:
        holdings, tables = arm.run.holdings, arm.run.confusion.get(arm.summary.arm)
        if holdings is None or tables is None:
            continue
        if not found or len(holdings.class_names) == len(found[0][1].class_names):
            found.append((arm.run.seed, holdings, tables))
    if not found:
        return None
    return Confusions(
        seeds=[seed for seed, _, _ in found],
        class_names=found[0][1].class_names,
        tables={whose: np.sum([tables[whose] for *_, tables in found], axis=0) for whose in ("local", "neighbor")},
        owners=np.stack([holdings.train.argmax(axis=0) for _, holdings, _ in found]),
        held=np.flatnonzero(np.sum([holdings.train.sum(axis=0) for _, holdings, _ in found], axis=0)),
    )


OPACITIES = (0.14, 0.3, 0.46, 0.63, 0.81, 1.0)
"""Of the shades, from the smallest share to the largest."""
MAX_NAMES = 25
"""More classes than this cannot be named along an axis of 340 units."""
MAX_TIPS = 200
"""Clients that say who they are when they are pointed at."""
LEFT, RIGHT = 44.0, 12.0
WORDS = {"local": "on the clients' own images", "neighbor": "on the other clients' images"}


def holdings(runs: Sequence[FinishedRun], _: Sequence[Group]) -> Drawing | None:
    """Draw clients by classes: the darker, the more training examples of the class a client has."""
    run = next((run for run in runs if run.holdings is not None), None)
    if run is None or run.holdings is None:
        return None
    held = run.holdings
    order = by_owner(held)
    num_clients, num_classes = len(held.client_names), len(order)
    cell = min(max(220 / num_clients, 1.2), 16.0)
    below = 66 if num_classes > MAX_NAMES else 108
    counts = held.train[:, order]
    panel = Panel(
        slug="holdings",
        title="Training examples by client and class",
        description=(
            f"{counted(num_clients, 'client')}, {counted(num_classes, 'class')}, "
            f"{counted(int(counts.sum()), 'training example')}; "
            f"a client has examples of {(counts > 0).sum(axis=1).mean():.1f} classes on average."
        ),
        draw=functools.partial(_draw_holdings, held=held, order=order),
        height=36 + cell * num_clients + below,
        margins=(LEFT, 36, RIGHT, below),
    )
    caption = (
        f"Training examples of seed {run.seed} ({run.name}); another seed or setting may divide the data otherwise. "
        "The stronger the shade, the more examples. Not private: such counts are for simulations only."
    )
    return Drawing(slug="holdings", panels=[panel], caption=caption)


def _draw_holdings(axes: Axes, held: Holdings, order: np.ndarray) -> None:
    counts = held.train[:, order]
    most = int(counts.max())
    _shade(axes, counts / max(most, 1))
    num_clients, num_classes = counts.shape
    every = math.ceil(num_clients / 18)
    clients = range(0, num_clients, every)
    axes.set_yticks([client + 0.5 for client in clients], [str(client) for client in clients])
    axes.set_ylabel("client")
    for client, name in enumerate(held.client_names if num_clients <= MAX_TIPS else ()):
        row = held.train[client]
        largest = held.class_names[int(row.argmax())]
        words = f"{name}: {counted(int(row.sum()), 'training example')} of "
        words += f"{counted(int((row > 0).sum()), 'class')}, most of {largest}"
        axes.barh(client + 0.5, num_classes, height=1, color=SHADE, alpha=0.004, gid=tip(words))
    if num_classes > MAX_NAMES:
        axes.set_xticks([])
        axes.set_xlabel(f"{num_classes} classes, in order of their largest holder")
    else:
        names = [_fitted(held.class_names[label], 13) for label in order]
        axes.set_xticks(np.arange(num_classes) + 0.5, names, rotation=50, ha="right", rotation_mode="anchor", size=10)
    thresholds = [most * level**2 // len(OPACITIES) ** 2 for level in range(1, len(OPACITIES) + 1)]
    _shade_key(axes, thresholds, "examples", 98 if num_classes <= MAX_NAMES else 46)


def by_owner(held: Holdings) -> np.ndarray:
    """Return the classes that somebody holds, in the order of the client that holds most of each."""
    found = np.flatnonzero(held.train.sum(axis=0))
    return found[np.argsort(held.train[:, found].argmax(axis=0), kind="stable")]


def confusion(_: Sequence[FinishedRun], groups: Sequence[Group]) -> Drawing | None:
    """Draw the confusion matrix of the last group that has one: a run's own method stands last."""
    for group in reversed(groups):
        found = pooled(group.arms)
        if found is not None:
            return confusion_of(group.name, found, "confusion", simulated([group]))
    return None


def confusion_of(name: str, found: Confusions, slug: str, note: str = "") -> Drawing:
    """Draw true by predicted class, each row as shares of the true class's images; `note` is about the name."""
    stand = "by the client that holds them" if found.has_one_partition else "with those that they are taken for"
    panels = [
        Panel(
            slug=f"{slug}-{whose}",
            title=f"{WORDS[whose][:1].upper()}{WORDS[whose][1:]}",
            description=(
                f"{int(np.trace(table))} of {int(table.sum())} predictions are right. Classes stand together {stand}."
            ),
            draw=functools.partial(_draw_confusion, table=table, found=found),
            height=54 + (WIDTH - LEFT - RIGHT) + 44,
            margins=(LEFT, 54, RIGHT, 44),
        )
        for whose, table in found.tables.items()
        if table.any()
    ]
    if found.has_one_partition:
        order = (
            "Lines part the classes of different clients, whose numbers stand where there is room: what lies inside "
            "the squares on the diagonal stays within a client's own classes."
        )
        if len(set(found.owners[0][found.held].tolist())) == len(found.held):
            order = "Classes stand by the client that holds them; each client has one."
    else:
        order = (
            "Each seed gives the classes to other clients, so they do not stand by client: classes that are taken for "
            "each other stand together, the same way in both panels."
        )
    seeds = f"seed{'s' if len(found.seeds) > 1 else ''} {', '.join(map(str, found.seeds))}"
    caption = (
        f"{name}, {seeds}, last round. Each row is a true class, each column a prediction; what is right lies on the "
        f"diagonal. {order} On other clients' images, an image counts once for each other client."
    )
    return Drawing(slug=slug, panels=panels, caption=caption, note=note)


def _draw_confusion(axes: Axes, table: np.ndarray, found: Confusions) -> None:
    order = found.order()
    shares = table[np.ix_(order, order)] / np.maximum(table[order].sum(axis=1, keepdims=True), 1)
    _shade(axes, shares)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.xaxis.set_label_position("top")
    whose = ""
    if found.has_one_partition:
        whose = ", by its client"
        _part(axes, found.owners[0][order])
    axes.set_xlabel(f"predicted class{whose}", loc="left", labelpad=14)
    axes.set_ylabel(f"true class{whose}", labelpad=14)
    _shade_key(axes, [3, 11, 25, 44, 69, 100], "% of a row", 26)


def _part(axes: Axes, owners: np.ndarray) -> None:
    """Draw lines between the classes of different clients, and number the clients where there is room."""
    starts = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist()]
    size = len(owners)
    if len(starts) == size:
        return
    cell = (WIDTH - LEFT - RIGHT) / size
    for start, stop in zip(starts, [*starts[1:], size], strict=True):
        if start:
            axes.axhline(start, color=RULE, linewidth=0.6, gid="part")
            axes.axvline(start, color=RULE, linewidth=0.6)
        if cell * (stop - start) >= 14:
            number, middle = str(owners[start]), (start + stop) / 2
            axes.text(middle, -4 / cell, number, ha="center", color=SOFT)
            axes.text(-5 / cell, middle, number, ha="right", va="center", color=SOFT)


def levels(shares: np.ndarray) -> np.ndarray:
    """Return the shade of each share in [0, 1]: 0 is not drawn; the root makes small shares visible.

    >>> levels(np.array([0.0, 0.01, 0.25, 1.0])).tolist()
    [0, 1, 3, 6]
    """
    return np.ceil(np.sqrt(shares) * len(OPACITIES)).astype(int)


def _shade(axes: Axes, shares: np.ndarray) -> None:
    """Draw a table of shares [n, m]: one path a shade, cells of one shade in a row joined."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    shade = levels(shares)
    for level, opacity in enumerate(OPACITIES, start=1):
        corners = []
        for row, cells in enumerate(shade == level):
            edges = np.flatnonzero(np.diff(np.concatenate(([0], cells.astype(int), [0]))))
            for start, stop in edges.reshape(-1, 2).tolist():
                corners += [(start, row), (stop, row), (stop, row + 1), (start, row + 1), (start, row)]
        if corners:
            codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY]
            outline = Outline(corners, codes * (len(corners) // 5))
            axes.add_artist(PathPatch(outline, facecolor=SHADE, alpha=opacity, linewidth=0))
    axes.grid(visible=False)
    axes.set(xlim=(0, shares.shape[1]), ylim=(shares.shape[0], 0))
    axes.tick_params(length=0)
    axes.spines[:].set(visible=True, color=SOFT)


def _shade_key(axes: Axes, thresholds: Sequence[int], unit: str, down: float) -> None:
    """Show every shade that is used, `down` units below the map, and say up to which value it stands."""
    from matplotlib.patches import Rectangle
    from matplotlib.transforms import Affine2D

    used = [(OPACITIES[level], most) for level, most in enumerate(thresholds) if most > 0]
    box = axes.get_position()
    figure = axes.get_figure(root=True)
    assert figure is not None
    size = figure.get_size_inches() * 72
    left, bottom = box.x0 * size[0], box.y0 * size[1]
    for place, (opacity, _) in enumerate(used):
        cell = Rectangle(
            (left + 12 * place, bottom - down), 12, 10, facecolor=SHADE, alpha=opacity, linewidth=0, clip_on=False
        )
        axes.add_artist(cell)
        cell.set_transform(Affine2D().scale(1 / 72) + figure.dpi_scale_trans)
    words = f"up to {', '.join(str(most) for _, most in used)} {unit}"
    offset = (12 * len(used) + 6, -down + 1)
    axes.annotate(words, (0, 0), xycoords="axes fraction", xytext=offset, textcoords="offset points", color=SOFT)


def _fitted(name: str, letters: int) -> str:
    """Cut a name to the room, with an ellipsis.

    >>> _fitted("untrained random context", 9)
    'untraine…'
    """
    name = printable(name)
    return name if len(name) <= letters else name[: letters - 1].rstrip(" ,") + "…"
