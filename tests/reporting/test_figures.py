"""Positions of known points, read back from the drawings."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from helpers import made_runs as made
from hushprompt.reporting import figures, maps, numbers, tradeoff
from hushprompt.reporting.confusions import pooled
from hushprompt.reporting.series import pool
from hushprompt.reporting.svg import WIDTH, Scale, padded

SVG = "{http://www.w3.org/2000/svg}"


def drawn(panel):
    return ET.fromstring(panel)


def with_class(root, *names):
    return [e for e in root.iter() if set(names) <= set((e.get("class") or "").split())]


def place(element):
    """Where a mark stands."""
    return tuple(map(float, re.match(r"translate\(([-\d.]+) ([-\d.]+)\)", element.get("transform")).groups()))


def path(element):
    """Points of a path of straight lines."""
    return [tuple(map(float, point)) for point in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", element.get("d"))]


def tips(root):
    return [title.text for title in root.iter(f"{SVG}title")][1:]


def sweep(epsilons, seeds=(1, 2)):
    """Runs of a reference and DP-FPL, whose local accuracy grows with epsilon and differs by 4 points between seeds."""
    runs = []
    for epsilon in epsilons:
        for seed in seeds:
            local = 0.5 + 0.05 * min(math.log10(epsilon), 1.5) + 0.04 * (seed - 1)
            rows = [
                made.result("zero_shot", None, local=0.4),
                made.result(f"dp_fpl, epsilon {epsilon}", epsilon, local),
            ]
            runs.append(made.run(seed, rows, config={"privacy": {"epsilon": epsilon}}))
    return pool(runs)


def test_every_panel_says_what_it_is_and_what_it_shows():
    series = sweep([0.1, 1.0, 10.0])
    for panel in [*figures.privacy_utility(series), *tradeoff.local_neighbor(series), *maps.client_spread(series)]:
        root = drawn(panel)
        assert root.get("role") == "img"
        named = [root.find(f".//*[@id='{name}']") for name in root.get("aria-labelledby").split()]
        assert [e.tag for e in named] == [f"{SVG}title", f"{SVG}desc"]
        assert all(e.text for e in named)
        assert root.get("viewBox").startswith(f"0 0 {WIDTH} ")


def test_accuracy_over_epsilon_stands_where_it_belongs():
    series = sweep([0.1, 1.0, 10.0])
    panel = drawn(figures.privacy_utility(series)[1])  # local; means 47, 52, 57
    x = Scale(10 ** (-1 - 0.35), 10**1.35, 34, WIDTH - 118, is_log=True)
    deviation = math.sqrt(8)
    y = Scale(*padded([47 - deviation, 57 + deviation, 40], least=4), 270 - 38, 44)
    marks = with_class(panel, "mark")
    assert [place(m) for m in marks] == [
        pytest.approx((x(epsilon), y(value)), abs=0.006) for epsilon, value in ((0.1, 47), (1, 52), (10, 57))
    ]
    (curve,) = with_class(panel, "line", "d0", "s0")
    assert path(curve) == [place(m) for m in marks]
    bars = [path(w) for w in with_class(panel, "whisker")]
    assert bars[0][0][1] == pytest.approx(y(47 - deviation), abs=0.006)
    assert bars[0][2][1] == pytest.approx(y(47 + deviation), abs=0.006)
    (level,) = with_class(panel, "level")
    assert float(level.get("y1")) == float(level.get("y2")) == pytest.approx(y(40), abs=0.006)
    assert "DP-FPL, ε 1: 52.0 ± 2.8 at epsilon 1" in tips(panel)


def test_without_noise_a_row_is_a_level_line_in_its_methods_pattern():
    runs = [made.run(1, [made.result("dp_fpl, no noise", math.inf, 0.6), made.result()],
                     config={"references": [{"epsilon": math.inf}]})]  # fmt: skip
    panel = drawn(figures.privacy_utility(pool(runs))[1])
    (level,) = with_class(panel, "level")
    assert level.get("class") == "line d1 s0 level"
    assert "DP-FPL, no noise: 60.0" in tips(panel)


@pytest.mark.parametrize("epsilon", [None, math.inf, 0.0])
def test_no_finite_epsilon_no_curve(epsilon):
    assert figures.privacy_utility(pool([made.run(1, [made.result(epsilon=epsilon)])])) == []


def test_local_against_neighbor_and_contours_of_equal_harmonic_mean():
    runs = [made.run(seed, [made.result(local=local, neighbor=0.4)]) for seed, local in ((1, 0.5), (2, 0.6))]
    (panel,) = map(drawn, tradeoff.local_neighbor(pool(runs)))
    scale_x, scale_y = (Scale(*padded([50, 60, 40], least=6), *ends) for ends in ((34, WIDTH - 12), (330 - 38, 44)))
    small = [place(m) for m in with_class(panel, "seed")]
    assert small == [pytest.approx((scale_x(x), scale_y(40)), abs=0.006) for x in (50, 60)]
    (large,) = [m for m in with_class(panel, "mark") if "seed" not in m.get("class")]
    assert place(large) == pytest.approx((scale_x(55), scale_y(40)), abs=0.006)

    def value(scale, unit):
        return scale.low + (unit - scale.start) / (scale.stop - scale.start) * (scale.high - scale.low)

    contours = with_class(panel, "contour")
    levels = [float(e.text) for e in with_class(panel, "contour-label")]
    assert len(contours) == len(levels) >= 3
    for contour, level in zip(contours, levels, strict=True):
        for at_x, at_y in path(contour):
            x, y = value(scale_x, at_x), value(scale_y, at_y)
            assert 2 * x * y / (x + y) == pytest.approx(level, abs=0.01)


def test_lines_over_rounds_are_means_and_bands_reach_from_least_to_most():
    runs = [
        made.run(1, rounds={"dp_fpl, epsilon 2": made.records([0.2, 0.4, 0.6])}),
        made.run(2, rounds={"dp_fpl, epsilon 2": made.records([0.4, 0.4, 0.8])}),
    ]
    local, neighbor = map(drawn, figures.over_rounds(pool(runs)))
    x, y = Scale(1, 3, 34, WIDTH - 118), Scale(*padded([20, 80], least=4), 270 - 38, 44)
    (line,) = with_class(local, "line", "s0")
    assert path(line) == [pytest.approx((x(at), y(v)), abs=0.006) for at, v in ((1, 30), (2, 40), (3, 70))]
    (band,) = with_class(local, "band")
    edge = ((1, 40), (2, 40), (3, 80), (3, 60), (2, 40), (1, 20))
    assert path(band) == [pytest.approx((x(at), y(v)), abs=0.006) for at, v in edge]
    assert neighbor.get("id") == "rounds-neighbor-0"


def test_rounds_without_a_score_are_passed_over():
    rounds = {"dp_fpl, epsilon 2": made.records([0.2, None, 0.6])}
    local, _ = map(drawn, figures.over_rounds(pool([made.run(1, rounds=rounds)])))
    (line,) = with_class(local, "line", "s0")
    assert len(path(line)) == 2


def test_one_round_is_no_course():
    assert figures.over_rounds(pool([made.run(1, rounds={"dp_fpl, epsilon 2": made.records([0.2])})])) == []
    assert figures.epsilon_over_rounds(pool([made.run(1, rounds={"dp_fpl, epsilon 2": made.records([0.2])})])) == []


def test_many_lines_get_a_panel_a_family_with_the_same_axes():
    runs = []
    for method in ("dp_fpl", "promptfl"):
        for epsilon in (0.1, 0.2, 0.5, 1.0, 2.0):
            rows = [made.result(f"{method}, epsilon {epsilon}", epsilon, title=method)]
            rounds = {f"{method}, epsilon {epsilon}": made.records([0.1, 0.2 + epsilon / 10])}
            config = {"method": {"name": method}, "privacy": {"epsilon": epsilon}}
            runs.append(made.run(1, rows, rounds=rounds, config=config))
    panels = [drawn(panel) for panel in figures.over_rounds(pool(runs))]
    assert [p.get("id") for p in panels] == [
        "rounds-local-0",
        "rounds-neighbor-0",
        "rounds-local-1",
        "rounds-neighbor-1",
    ]
    assert len({str([e.text for e in with_class(p, "tick")]) for p in panels}) == 1
    assert [e.text for e in with_class(panels[0], "label")] != []


def test_epsilon_over_rounds_is_the_record_of_each_audience():
    rounds = {"dp_fpl, epsilon 2": made.records([0.2, 0.2, 0.2], epsilons=[0.5, 1.0, 2.0])}
    (panel,) = map(drawn, figures.epsilon_over_rounds(pool([made.run(1, rounds=rounds)])))
    x, y = Scale(1, 3, 34, WIDTH - 118), Scale(0, 2 * 1.08, 250 - 38, 44)
    (line,) = with_class(panel, "line")
    assert path(line) == [pytest.approx((x(at), y(v)), abs=0.006) for at, v in ((1, 0.5), (2, 1), (3, 2))]
    assert "DP-FPL: 2" in [e.text for e in with_class(panel, "label")]
    assert panel.find(f"{SVG}title").text == "epsilon for the public"


def test_clients_have_a_dot_each_and_box_and_median_are_quantiles():
    accuracies = [0.2, 0.3, 0.4, 0.5, 0.9]
    clients = [{"local": value, "neighbor": math.nan} for value in accuracies]
    panels = maps.client_spread(pool([made.run(1, [made.result(clients=clients)])]))
    (panel,) = map(drawn, panels)
    x = Scale(*padded([20, 90], least=10, low=0, high=100), 16, WIDTH - 14)
    assert [place(m)[0] for m in with_class(panel, "dot")] == pytest.approx([x(100 * v) for v in accuracies], abs=0.006)
    (box,) = with_class(panel, "box")
    assert float(box.get("x")) == pytest.approx(x(30), abs=0.006)
    assert float(box.get("width")) == pytest.approx(x(50) - x(30), abs=0.011)
    (median,) = with_class(panel, "median")
    assert float(median.get("x1")) == pytest.approx(x(40), abs=0.006)
    assert "DP-FPL, ε 2, client 4, seed 1: 90.0" in tips(panel)


def cells(root, shape):
    """The shade of every cell, read back from the strokes."""
    found = np.zeros(shape, dtype=int)
    for shade in with_class(root, "shade"):
        if "key" in shade.get("class"):
            continue
        for start, row, length in re.findall(r"M(\d+) (\d+)\.5h(\d+)", shade.get("d")):
            found[int(row), int(start) : int(start) + int(length)] = int(shade.get("class")[-1])
    return found


def test_the_map_of_clients_and_classes_shades_every_count():
    held = made.holdings([[0, 9, 0, 1], [4, 0, 9, 0]])
    (panel,) = map(drawn, maps.holdings_map(held))
    assert maps.by_owner(held).tolist() == [1, 3, 0, 2]
    expected = np.ceil(np.sqrt(np.array([[9, 1, 0, 0], [0, 0, 4, 9]]) / 9) * 6)
    assert cells(panel, (2, 4)).tolist() == expected.tolist()
    assert [e.text for e in panel.iter(f"{SVG}text")].count("class 1") == 1
    assert "client 0: 10 training examples of 2 classes, most of class 1" in tips(panel)


def confusions_of(tables, *trains):
    """Confusions of one row: one table for all, and who holds what for each seed."""
    tables = {"local": np.array(tables), "neighbor": np.zeros_like(tables)}
    runs = [
        made.run(seed, [made.result()], holdings=made.holdings(train), confusion={made.result().label: tables})
        for seed, train in enumerate(trains, start=1)
    ]
    (row,) = pool(runs)
    return pooled(row.members)


def test_the_map_of_confusion_has_shares_of_the_true_class_ordered_by_owner():
    table = [[4, 0, 0], [0, 9, 27], [0, 0, 0]]
    found = confusions_of(table, [[0, 9, 0], [9, 0, 9]])  # order: 1, 0, 2
    panel = drawn(maps.confusion_map("x", "on images", found.tables["local"], found))
    assert cells(panel, (3, 3)).tolist() == [[3, 0, 6], [0, 6, 0], [0, 0, 0]]
    assert len(with_class(panel, "part")) == 1
    assert "13 of 40 predictions are right" in panel.find(f"{SVG}desc").text


def test_confusion_is_added_up_over_seeds_and_classes_stand_by_likeness_where_owners_change():
    table = [[5, 0, 5, 0], [0, 8, 0, 2], [4, 0, 6, 0], [0, 3, 0, 7]]
    found = confusions_of(table, [[9, 9, 0, 0], [0, 0, 9, 9]], [[9, 0, 9, 0], [0, 9, 0, 9]])
    assert (found.seeds, found.tables["local"].tolist()) == ([1, 2], (2 * np.array(table)).tolist())
    assert not found.has_one_partition
    assert {frozenset(found.order()[:2].tolist()), frozenset(found.order()[2:].tolist())} == {
        frozenset({0, 2}), frozenset({1, 3}),
    }  # fmt: skip
    panel = drawn(maps.confusion_map("x", "on images", found.tables["local"], found))
    assert with_class(panel, "part") == []
    assert "for 1 of 2 seeds" in numbers.confusion_table(found.tables["local"], found, "on images")


def test_seeds_without_counts_are_left_out_of_the_confusion():
    with_counts = made.run(1, [made.result()], holdings=made.holdings([[1, 2]]), confusion={
        made.result().label: {"local": np.eye(2, dtype=int), "neighbor": np.eye(2, dtype=int)}
    })  # fmt: skip
    (row,) = pool([made.run(2, [made.result()]), with_counts])
    assert pooled(row.members).seeds == [1]
    assert pooled(row.members[1:]) is None


def test_a_thousand_clients_and_classes_stay_small():
    rng = np.random.default_rng(1)
    held = made.holdings(rng.integers(0, 3, size=(1000, 100)))
    assert len(maps.holdings_map(held)[0]) < 1_200_000
    clients = [{"local": float(v), "neighbor": float(v)} for v in rng.random(1000)]
    assert all(len(p) < 5000 for p in maps.client_spread(pool([made.run(1, [made.result(clients=clients)])])))
