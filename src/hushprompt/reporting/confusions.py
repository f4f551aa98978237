"""What is taken for what over all seeds of a row: counts added up, and the order in which the classes stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from hushprompt.reporting.pooling import PooledArm
from hushprompt.runs.reader import Holdings


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
