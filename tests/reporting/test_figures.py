"""Everything stands where it belongs: what is drawn is read back from matplotlib's axes, in the data's own units."""

import itertools
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from PIL import Image

from helpers import made_runs as made
from hushprompt.errors import ConfigError, DataError
from hushprompt.reporting import drawing, figures, maps, page_tables
from hushprompt.reporting.maps import pooled
from hushprompt.reporting.pooling import pool
from hushprompt.reporting.styles import Style, printable

SVG = "{http://www.w3.org/2000/svg}"
DP_FPL = "dp_fpl, epsilon 2"


def axes_of(panel):
    axes = Figure().add_axes((0, 0, 1, 1))
    panel.draw(axes)
    return axes


def tips(axes):
    return [gid.removeprefix("tip:") for artist in axes.get_children() if (gid := artist.get_gid())]


def line_named(axes, start):
    (found,) = [line for line in axes.lines if (line.get_gid() or "").startswith(f"tip:{start}")]
    return found.get_xydata().tolist()


def drawn(kind, runs):
    return figures.KINDS[kind](runs, pool(runs))


def sweep(epsilons):
    """Two seeds for each budget, and a template."""
    return [
        made.run(
            seed,
            [
                made.result("zero_shot", None, 0.4, 0.4),
                made.result(f"dp_fpl, epsilon {e}", e, 0.45 + at / 20 + seed / 25),
            ],
            config={"privacy": {"epsilon": e, "delta": 1e-5}},
        )
        for at, e in enumerate(epsilons)
        for seed in (0, 1)
    ]  # fmt: skip


@pytest.fixture
def everything():
    """Runs with something for every figure."""
    table = {"local": np.array([[3, 1], [0, 4]]), "neighbor": np.array([[2, 2], [1, 3]])}
    rounds = {DP_FPL: made.records([0.2, 0.4, 0.6], epsilons=[0.5, 1.0, 2.0])}
    attack = {"attack": "LiRA", "auc": {"value": 0.6}, "roc": {"fpr": [0, 0.01, 0.1, 1], "tpr": [0, 0.1, 0.4, 1]}}
    audit = {"budgets": [{"arm": DP_FPL, "audiences": [{"audience": "public", "attacks": [attack]}]}]}
    return [
        made.run(seed, rounds=rounds, holdings=made.holdings([[9, 0], [0, 9]]), confusion={DP_FPL: table}, audit=audit)
        for seed in (1, 2)
    ]


def test_every_panel_has_a_name_a_description_and_ids_of_its_own(everything):
    ids = []
    for kind in figures.KINDS:
        for panel in drawn(kind, everything).panels:
            root = ET.fromstring(drawing.embedded(panel))
            assert root.get("role") == "img"
            named = [root.find(f".//*[@id='{name}']") for name in root.get("aria-labelledby").split()]
            assert [e.tag for e in named] == [f"{SVG}title", f"{SVG}desc"]
            assert all(e.text for e in named)
            assert root.get("viewBox").startswith(f"0 0 {drawing.WIDTH} ")
            assert [e.text for e in root.iter(f"{SVG}text")], "text stays text"
            ids += [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))


def test_a_panel_has_the_colors_of_the_page_and_nothing_that_changes_with_time(everything):
    for kind in figures.KINDS:
        panel = drawn(kind, everything).panels[0]
        text = drawing.embedded(panel)
        assert text == drawing.embedded(panel)
        for unwanted in ("<metadata", "<style", "<image", "DejaVu", "<script", "#1c1f24", "#5a616b"):
            assert unwanted not in text
        assert "var(--ink)" in text


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        *((kind, ".svg") for kind in ("curves", "budget", "clients", "confusion", "roc")),
        ("roc", ".pdf"),
        ("roc", ".png"),
    ],
)
def test_a_figure_for_a_paper_is_a_file_that_depends_on_the_records_alone(everything, tmp_path, kind, suffix):
    first, second = (tmp_path / f"{name}{suffix}" for name in "ab")
    for path in (first, second):
        figures.figure(everything, kind, path)
    content = first.read_bytes()
    assert content == second.read_bytes()
    assert content.startswith({".pdf": b"%PDF", ".png": b"\x89PNG", ".svg": b"<?xml"}[suffix])
    if suffix == ".svg":
        words = [e.text for e in ET.fromstring(content).iter(f"{SVG}text")]
        assert any(word and "DP-FPL" in word for word in words) or kind in ("confusion", "roc")


def test_each_kind_says_what_it_lacks_where_there_is_nothing_to_draw():
    assert figures.MISSING.keys() == figures.KINDS.keys()


def test_a_figure_that_cannot_be_drawn_gets_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"no figure of the kind 'roc': no run was audited, .*\. There is for: budget,"):
        figures.figure([made.run(1)], "roc", tmp_path / "x.pdf")
    with pytest.raises(ConfigError, match=r"ends in \.pdf, \.png, \.svg"):
        figures.figure([made.run(1)], "budget", tmp_path / "x.jpeg")


def test_accuracy_over_epsilon_stands_where_it_belongs():
    found = drawn("budget", sweep([0.1, 1.0, 10.0]))
    axes = axes_of(found.panels[1])  # local; means 47, 52, 57
    assert axes.get_xscale() == "log"
    points = line_named(axes, "DP-FPL: ")
    assert points == [pytest.approx(point) for point in ((0.1, 47), (1, 52), (10, 57))]
    (bars,) = axes.containers
    low, high = bars.lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(47 - math.sqrt(8)), pytest.approx(47 + math.sqrt(8)))
    assert {y for _, y in line_named(axes, "zero-shot template: 40.0")} == {40.0}
    assert "DP-FPL: 47.0 ± 2.8 at epsilon 0.1, 52.0 ± 2.8 at epsilon 1, 57.0 ± 2.8 at epsilon 10" in tips(axes)
    assert all(axes.get_xlim()[0] <= x <= axes.get_xlim()[1] for x, _ in points)
    assert "bars one standard deviation" in found.caption
    assert "no noise" not in found.caption


def test_a_caption_speaks_of_what_is_drawn_and_of_nothing_else():
    rounds = {DP_FPL: made.records([0.2, 0.4, 0.6])}
    alone = [made.run(1, rounds=rounds)]
    assert "Bands" not in drawn("curves", alone).caption
    assert "Gray" not in drawn("curves", alone).caption
    assert "bars" not in drawn("budget", alone).caption
    assert "small ones" not in drawn("tradeoff", alone).caption
    with_all = [made.run(s, [made.result("zero_shot", None), made.result()], rounds=rounds) for s in (1, 2)]
    assert "Bands" in drawn("curves", with_all).caption
    assert "Gray" in drawn("curves", with_all).caption
    assert "small ones single seeds" in drawn("tradeoff", with_all).caption


def test_without_noise_an_arm_is_a_level_line_in_its_methods_pattern():
    runs = [made.run(1, [made.result("dp_fpl, no noise", math.inf, 0.6), made.result()],
                     config={"references": [{"epsilon": math.inf}]})]  # fmt: skip
    found = drawn("budget", runs)
    axes = axes_of(found.panels[1])
    assert {y for _, y in line_named(axes, "DP-FPL, no noise: 60.0")} == {60.0}
    budget, level = (next(g for g in pool(runs) if g.has_budget is has).style for has in (True, False))
    assert (budget.color, budget.marker) == (level.color, level.marker)
    assert budget.dash != level.dash
    assert level.is_hollow
    assert "no noise, so no guarantee" in found.caption


@pytest.mark.parametrize("epsilon", [None, math.inf, 0.0])
def test_no_finite_epsilon_no_curve(epsilon):
    assert drawn("budget", [made.run(1, [made.result(epsilon=epsilon)])]) is None


def test_what_noise_has_ruined_lies_on_the_edge_and_is_named():
    runs = [made.run(1, [made.result("zero_shot", None, 0.5, 0.5), made.result(local=0.1)])]
    axes = axes_of(drawn("budget", runs).panels[1])
    assert line_named(axes, "DP-FPL") == [[2.0, 40.0]]
    assert "On the lower edge, because they lie below it: DP-FPL, ε 2 (10.0)" in drawn("tradeoff", runs).caption


def test_local_against_neighbor_and_contours_of_equal_harmonic_mean():
    runs = [made.run(seed, [made.result(local=local, neighbor=0.4)]) for seed, local in ((1, 0.5), (2, 0.6))]
    (panel,) = drawn("tradeoff", runs).panels
    axes = axes_of(panel)
    assert line_named(axes, "DP-FPL") == [pytest.approx((55, 40))]
    small = next(line for line in axes.lines if line.get_markersize() == 3.5)
    assert small.get_xydata().tolist() == [pytest.approx((50, 40)), pytest.approx((60, 40))]
    (contours,) = [c for c in axes.collections if type(c).__name__ == "QuadContourSet"]
    assert len(contours.levels) >= 3
    for level, paths in zip(contours.levels, contours.get_paths(), strict=True):
        for x, y in paths.vertices:
            assert 2 * x * y / (x + y) == pytest.approx(level, abs=0.05)


def test_lines_over_rounds_are_means_and_bands_reach_from_least_to_most():
    runs = [
        made.run(1, rounds={DP_FPL: made.records([0.2, 0.4, 0.6])}),
        made.run(2, rounds={DP_FPL: made.records([0.4, 0.4, 0.8])}),
    ]
    local, neighbor = drawn("curves", runs).panels
    axes = axes_of(local)
    assert line_named(axes, "DP-FPL") == [pytest.approx(point) for point in ((1, 30), (2, 40), (3, 70))]
    (band,) = axes.collections
    corners = {tuple(np.round(corner, 6)) for corner in band.get_paths()[0].vertices}
    assert corners == {(1, 20), (1, 40), (2, 40), (3, 60), (3, 80)}
    assert neighbor.slug == "rounds-neighbor-0"


def test_rounds_of_answers_have_their_measures_beside():
    rounds = [{**record, "anls": record["local"] / 2} for record in made.records([0.2, 0.4])]
    runs = [made.run(1, [made.result(anls=0.2, loss=1.5)], rounds={DP_FPL: rounds})]
    *_, panel = drawn("budget", runs).panels
    assert (panel.slug, panel.title) == ("utility-anls", "ANLS by epsilon, %")
    assert line_named(axes_of(panel), "DP-FPL") == [[2.0, 20.0]]
    *_, panel = drawn("curves", runs).panels
    assert (panel.slug, panel.title) == ("rounds-anls-0", "ANLS over rounds, %")
    assert line_named(axes_of(panel), "DP-FPL") == [pytest.approx((1, 10)), pytest.approx((2, 20))]


def test_rounds_without_a_score_are_passed_over():
    runs = [made.run(1, rounds={DP_FPL: made.records([0.2, None, 0.6])})]
    assert [x for x, _ in line_named(axes_of(drawn("curves", runs).panels[0]), "DP-FPL")] == [1, 3]


def test_one_round_is_no_course():
    runs = [made.run(1, rounds={DP_FPL: made.records([0.2])})]
    assert drawn("curves", runs) is None
    assert drawn("epsilon", runs) is None


def test_many_lines_get_a_panel_a_family_with_the_same_axes():
    runs = []
    for method, epsilon in itertools.product(("dp_fpl", "promptfl"), (0.1, 0.2, 0.5, 1.0, 2.0)):
        label = f"{method}, epsilon {epsilon}"
        rounds = {label: made.records([0.1, 0.2 + epsilon / 10])}
        config = {"method": {"name": method}, "privacy": {"epsilon": epsilon}}
        runs.append(made.run(1, [made.result(label, epsilon, title=method)], rounds=rounds, config=config))
    panels = drawn("curves", runs).panels
    assert [p.slug for p in panels] == ["rounds-local-0", "rounds-neighbor-0", "rounds-local-1", "rounds-neighbor-1"]
    assert panels[2].title.startswith("promptfl: ")
    local = [axes_of(panel) for panel in panels if "local" in panel.slug]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in local}) == 1


def test_epsilon_over_rounds_is_the_record_of_each_audience():
    rounds = {DP_FPL: made.records([0.2, 0.2, 0.2], epsilons=[0.5, 1.0, 2.0])}
    (panel,) = drawn("epsilon", [made.run(1, rounds=rounds)]).panels
    assert line_named(axes_of(panel), "DP-FPL, ε 2, round 3: epsilon 2") == [[1, 0.5], [2, 1.0], [3, 2.0]]
    assert panel.title == "Epsilon for the public"


def test_clients_have_a_dot_each_and_box_and_median_are_quantiles():
    accuracies = [0.2, 0.3, 0.4, 0.5, 0.9]
    clients = [{"local": value, "neighbor": math.nan} for value in accuracies]
    (panel,) = drawn("clients", [made.run(1, [made.result(per_client=clients)])]).panels
    axes = axes_of(panel)
    (dots,) = axes.lines
    assert dots.get_xdata().tolist() == pytest.approx([100 * v for v in accuracies])
    (box,) = axes.patches
    assert (box.get_x(), box.get_width()) == (pytest.approx(30), pytest.approx(20))
    reach, median = (collection.get_segments()[0][:, 0].tolist() for collection in axes.collections)
    assert reach == pytest.approx([20, 90])
    assert median == pytest.approx([40, 40])


def cells(axes, shape):
    """The shade of every cell, read back from the paths."""
    found = np.zeros(shape, dtype=int)
    for patch in axes.patches:
        if isinstance(patch, PathPatch):
            level = maps.OPACITIES.index(patch.get_alpha()) + 1
            for (left, row), (right, _) in zip(
                patch.get_path().vertices[::5], patch.get_path().vertices[1::5], strict=True
            ):
                found[int(row), int(left) : int(right)] = level
    return found


def test_the_map_of_clients_and_classes_shades_every_count():
    held = made.holdings([[0, 9, 0, 1], [4, 0, 9, 0]])
    (panel,) = drawn("partition", [made.run(1, holdings=held)]).panels
    axes = axes_of(panel)
    assert maps.by_owner(held).tolist() == [1, 3, 0, 2]
    expected = np.ceil(np.sqrt(np.array([[9, 1, 0, 0], [0, 0, 4, 9]]) / 9) * 6)
    assert cells(axes, (2, 4)).tolist() == expected.tolist()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["class 1", "class 3", "class 0", "class 2"]
    assert "client 0: 10 training examples of 2 classes, most of class 1" in tips(axes)


def confusions_of(tables, *trains):
    """Confusions of one arm: one table for all, and who holds what for each seed."""
    tables = {"local": np.array(tables), "neighbor": np.zeros_like(tables)}
    runs = [
        made.run(seed, [made.result()], holdings=made.holdings(train), confusion={made.result().arm: tables})
        for seed, train in enumerate(trains, start=1)
    ]
    (group,) = pool(runs)
    return pooled(group.arms)


def test_the_confusion_matrix_has_shares_of_the_true_class_ordered_by_owner():
    table = [[4, 0, 0], [0, 9, 27], [0, 0, 0]]
    found = confusions_of(table, [[0, 9, 0], [9, 0, 9]])  # order: 1, 0, 2
    panel = maps.confusion_of("x", found, "x").panels[0]
    axes = axes_of(panel)
    assert cells(axes, (3, 3)).tolist() == [[3, 0, 6], [0, 6, 0], [0, 0, 0]]
    assert len([line for line in axes.lines if line.get_gid() == "part"]) == 1
    assert "13 of 40 predictions are right" in panel.description


def test_confusion_is_added_up_over_seeds_and_classes_stand_by_likeness_where_owners_change():
    table = [[5, 0, 5, 0], [0, 8, 0, 2], [4, 0, 6, 0], [0, 3, 0, 7]]
    found = confusions_of(table, [[9, 9, 0, 0], [0, 0, 9, 9]], [[9, 0, 9, 0], [0, 9, 0, 9]])
    assert (found.seeds, found.tables["local"].tolist()) == ([1, 2], (2 * np.array(table)).tolist())
    assert not found.has_one_partition
    assert {frozenset(found.order()[:2].tolist()), frozenset(found.order()[2:].tolist())} == {
        frozenset({0, 2}), frozenset({1, 3}),
    }  # fmt: skip
    whole = maps.confusion_of("x", found, "x")
    assert axes_of(whole.panels[0]).lines[:] == []
    assert "Lines" not in whole.caption
    rows = page_tables.confusion_table(found.tables["local"], found, "on images").rows
    assert any("for 1 of 2 seeds" in cell for row in rows for cell in row)


def test_seeds_without_counts_are_left_out_of_the_confusion():
    with_counts = made.run(1, [made.result()], holdings=made.holdings([[1, 2]]), confusion={
        made.result().arm: {"local": np.eye(2, dtype=int), "neighbor": np.eye(2, dtype=int)}
    })  # fmt: skip
    (group,) = pool([made.run(2, [made.result()]), with_counts])
    assert pooled(group.arms).seeds == [1]
    assert pooled(group.arms[1:]) is None


def test_a_thousand_clients_and_classes_stay_small():
    rng = np.random.default_rng(1)
    held = made.holdings(rng.integers(0, 3, size=(1000, 100)))
    clients = [{"local": float(v), "neighbor": float(v)} for v in rng.random(1000)]
    runs = [made.run(1, [made.result(per_client=clients)], holdings=held)]
    (panel,) = drawn("partition", runs).panels
    assert len(drawing.embedded(panel)) < 3_000_000
    assert all(len(drawing.embedded(p)) < 12_000 for p in drawn("clients", runs).panels)


LONG_NAMES = [[f"DP-FPL, rank {k}, sampling probability 0.05, noise at the client" for k in (1, 2)], ["x" * 120, "a"]]


@pytest.mark.parametrize("names", LONG_NAMES)
@pytest.mark.parametrize("num_panels", [1, 3])
def test_long_names_in_a_legend_are_not_cut_at_the_edges(names, num_panels, tmp_path):
    panels = [drawing.Panel(slug="p", title="t", description="d", draw=lambda axes: None)] * num_panels
    style = Style(color="#000000", dash="-", marker="o", is_hollow=False)
    drawn = drawing.Drawing(slug="s", panels=panels, caption="", legend=[(name, style) for name in names])
    drawing.save(drawn, tmp_path / "f.png")
    pixels = np.asarray(Image.open(tmp_path / "f.png").convert("L"))
    border = np.concatenate([pixels[:, :2].ravel(), pixels[:, -2:].ravel(), pixels[-2:].ravel()])
    assert (border == 255).all()


@pytest.mark.parametrize("name", ["</title><script>alert(1)</script>", "a\x00b\x1f\ud800", "$x^2$ \\frac{", "שלום ‮ 😀"])
def test_no_name_breaks_out_of_a_figure(name):
    runs = [made.run(1, [made.result("zero_shot", None, title=name), made.result()])]
    root = ET.fromstring(drawing.embedded(drawn("clients", runs).panels[0]))
    expected = printable(name)
    assert expected in [e.text for e in root.iter(f"{SVG}text")]
    assert {e.tag.removeprefix(SVG) for e in root.iter()}.isdisjoint({"script", "image", "foreignObject"})
