"""What the tables of the page set in bold, and what they show of nothing."""

import math

import numpy as np
import pytest

from helpers import made_runs as made
from hushprompt.reporting import page_tables
from hushprompt.reporting.pooling import pool


def bold(runs):
    """The first words of the cells in bold, by row."""
    rows = page_tables.result_table(pool(runs)).rows
    return {
        str(row[0]): [str(cell).split("<strong>")[1][:4] for cell in row if "<strong>" in str(cell)] for row in rows
    }


def of(method, epsilon, local):
    own = made.result(f"{method}, epsilon {epsilon}", epsilon, local=local, neighbor=0.4, title=method)
    config = {"privacy": {"epsilon": epsilon, "delta": 1e-5}, "method": {"name": method}}
    return made.run(1, [own], name=f"{method}{epsilon}", config=config)


def test_bold_compares_arms_of_one_epsilon_alone():
    found = bold([of("a", 2.0, 0.5), of("b", 2.0, 0.6), of("a", 8.0, 0.9), of("b", 8.0, 0.8), of("a", 0.5, 0.1)])
    local = {name: "60.0" in cells or "90.0" in cells for name, cells in found.items()}
    assert sorted(name for name, is_best in local.items() if is_best) == ["a, ε 8", "b, ε 2"]
    assert found["a, ε 0.5"] == [], "alone at its epsilon there is nothing to compare"


def test_no_number_is_never_bold():
    found = bold([of("a", 2.0, math.nan), of("b", 2.0, math.nan)])
    assert not any("-" in cell for cells in found.values() for cell in cells)


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_a_confusion_of_nothing_is_drawn_as_nothing(num_seeds):
    from hushprompt.reporting import drawing, figures
    from hushprompt.reporting.maps import pooled

    nothing = {"local": np.zeros((3, 3), dtype=np.int64), "neighbor": np.zeros((3, 3), dtype=np.int64)}
    train = [[2, 1, 0], [0, 1, 3]]
    runs = [
        made.run(seed, holdings=made.holdings(train[:: (-1) ** seed]), confusion={"dp_fpl, epsilon 2": nothing})
        for seed in range(1, num_seeds + 1)
    ]
    (group,) = pool(runs)
    found = pooled(group.arms)
    assert sorted(found.order().tolist()) == [0, 1, 2]
    drawn = figures.KINDS["confusion"](runs, pool(runs))
    for panel in drawn.panels if drawn else ():
        assert "nan" not in str(drawing.embedded(panel)).lower()
        assert "nan" not in panel.description.lower()
