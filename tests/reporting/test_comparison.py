import math

import pytest

import hushprompt as hp
from helpers.fake_runs import with_settings, write_run
from hushprompt.errors import ConfigError, DataError
from hushprompt.reporting import comparison_tables as made
from hushprompt.reporting.comparison import compare
from hushprompt.reporting.pooling import pool_strictly, split
from hushprompt.runs import reader, records


@pytest.fixture
def grid(toy_values, tmp_path):
    """Two methods, two budgets, three seeds, and the template; promptfl is worse by a point and a little."""
    paths = []
    for seed in (1, 2, 3):
        paths.append(
            write_run(tmp_path / f"zero{seed}", with_settings(toy_values, "zero_shot", seed=seed), [(0.4, 0.4)])
        )
        for epsilon in (math.inf, 2.0):
            for method, score in (("promptfl", 0.5), ("dp_fpl", 0.51 + 0.001 * seed)):
                values = with_settings(toy_values, method, epsilon, seed)
                paths.append(write_run(tmp_path / f"{method}{epsilon}{seed}", values, [(score, score - 0.1)]))
    return paths


def comparison(paths, against=None, test="t", ignore=()):
    found = reader.find(paths)
    groups = pool_strictly(found.runs, ignore)
    return compare("", groups, against=against, test=test, notes=found.notes)


def test_rows_that_differ_in_the_seed_alone_are_one_line_with_mean_and_spread(grid):
    table = made.table(comparison(grid))
    scores = ("local", "neighbor", "harmonic mean", "worst client")
    assert table.header == ("method", "epsilon (simulation)", *scores, "seeds")
    assert [row[:3] for row in table.rows] == [
        ("zero-shot template", "-", "40.0 ± 0.0"),
        ("PromptFL", "inf", "50.0 ± 0.0"),
        ("PromptFL", "2", "50.0 ± 0.0"),
        ("DP-FPL", "inf", "51.2 ± 0.1"),
        ("DP-FPL", "2", "51.2 ± 0.1"),
    ]
    assert {row[-1] for row in table.rows} == {"3"}


def test_folder_names_and_threads_tell_nothing_apart_but_a_rank_does(toy_values, tmp_path):
    values = with_settings(toy_values, "dp_fpl")
    paths = [
        write_run(tmp_path / "anything", {**values, "runtime": {"num_threads": 1}}, [(0.5, 0.5)]),
        write_run(tmp_path / "at_all", {**values, "seed": 2, "runtime": {"memory_mb": 8}}, [(0.6, 0.5)]),
        write_run(tmp_path / "rank", with_settings(toy_values, "dp_fpl", rank=1), [(0.7, 0.5)]),
    ]
    table = made.table(comparison(paths))
    assert table.header[:3] == ("method", "rank", "epsilon (simulation)")
    assert [(row[1], row[3], row[-1]) for row in table.rows] == [("1", "70.0", "1"), ("2", "55.0 ± 7.1", "2")]


def test_references_of_a_run_are_rows_like_those_of_runs_of_their_own(toy_values, tmp_path):
    references = [
        {"method": {"name": "zero_shot"}},
        {"method": {"name": "promptfl", "num_ctx": 4}},
        {"epsilon": math.inf},
    ]
    values = {**with_settings(toy_values, "dp_fpl", 2.0), "references": references}
    write_run(tmp_path / "all", values, [(0.4, 0.4), (0.5, 0.5), (0.7, 0.7), (0.6, 0.6)])
    write_run(tmp_path / "noiseless", with_settings(toy_values, "dp_fpl", math.inf, seed=2), [(0.8, 0.7)])
    table = made.table(comparison([tmp_path / "all", tmp_path / "noiseless"]))
    assert [(row[0], row[1], row[-1]) for row in table.rows] == [
        ("zero-shot template", "-", "1"), ("PromptFL", "2", "1"), ("DP-FPL", "inf", "2"), ("DP-FPL", "2", "1"),
    ]  # fmt: skip


def test_a_rate_that_goes_with_the_budget_is_named_but_is_no_column(toy_values, tmp_path):
    paths = [
        write_run(
            tmp_path / str(epsilon),
            with_settings(toy_values, "promptfl", epsilon, optimizer={"learning_rate": epsilon / 10}),
            [(0.5, 0.5)],
        )
        for epsilon in (2.0, 8.0)
    ]
    table = made.table(comparison(paths))
    assert table.header[:2] == ("method", "epsilon (simulation)")
    assert "Set along with these: method.optimizer.learning_rate." in table.notes


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("privacy", {"delta": 1e-4}, r"privacy.delta: 0.001, 0.0001.*--by privacy.delta"),
        ("privacy", {"audience": "public"}, r"privacy.audience: personal, public.*--by privacy.audience"),
        ("privacy", {"neighboring_relation": "replace_one"}, r"privacy.neighboring_relation: add_remove, replace_one"),
        ("evaluation", {"split": "validation"}, r"evaluation.split: test, validation.*--by evaluation"),
        ("data", {"num_classes": 8}, r"data.num_classes: 6, 8.*--by data"),
    ],
)
def test_what_does_not_mean_the_same_is_refused_and_named(toy_values, tmp_path, section, change, words):
    values = with_settings(toy_values, "dp_fpl")
    other = {**values, section: {**values.get(section, {}), **change}}
    paths = [write_run(tmp_path / "a", values, [(0.5, 0.5)]), write_run(tmp_path / "b", other, [(0.6, 0.5)])]
    with pytest.raises(ConfigError, match=words):
        comparison(paths)
    groups = pool_strictly(reader.find(paths).runs)
    tables = split(groups, [section])
    assert len(tables) == 2
    assert all(section in title and len(members) == 1 for title, members in tables)
    key = f"{section}.{next(iter(change))}"
    with pytest.raises(ConfigError, match="names no setting of these arms"):
        split(groups, [f"{key}s"])


def test_a_difference_that_is_none_may_be_ignored(toy_values, tmp_path):
    values = with_settings(toy_values, "dp_fpl")
    other = {**values, "seed": 2, "data": {"name": "toy", "num_train": 16}}
    paths = [write_run(tmp_path / "a", values, [(0.5, 0.5)]), write_run(tmp_path / "b", other, [(0.6, 0.5)])]
    assert [row[-1] for row in made.table(comparison(paths, ignore=["data.num_train"])).rows] == ["2"]


def test_two_results_of_one_config_and_seed_are_refused_but_a_copy_counts_once(toy_values, tmp_path):
    values = with_settings(toy_values, "dp_fpl")
    first, copy = (write_run(tmp_path / name, values, [(0.5, 0.5)]) for name in ("first", "copy"))
    assert made.table(comparison([first, copy])).rows[0][-1] == "1"
    other = write_run(tmp_path / "other", values, [(0.6, 0.5)])
    with pytest.raises(DataError, match="same settings and seed but other results"):
        comparison([first, other])


def test_each_row_is_tested_against_the_one_of_its_own_budget(grid):
    compared = comparison(grid, against="promptfl")
    tested = {compared.groups[at].title: [] for at in compared.references}
    for at, reference in compared.references.items():
        assert compared.groups[at].epsilon == compared.groups[reference].epsilon
        tested[compared.groups[at].title].append(compared.groups[at].epsilon)
    assert tested == {"DP-FPL": [math.inf, 2.0]}
    difference, corrected = compared.differences["local"][next(iter(compared.references))]
    assert difference.mean == pytest.approx(0.012)
    assert difference.p < 0.05
    assert corrected == pytest.approx(2 * difference.p)
    table = made.table(compared)
    assert [row[2][-1] for row in table.rows] == ["0", "0", "0", "*", "*"]
    note = "\n".join(table.notes)
    assert "Not compared, for want of one row to compare with or of common clients: zero-shot template." in note
    assert "unit of the test: the seed" in note
    lines = made.differences(compared, "local")
    assert lines.title == "local: difference in points to promptfl of the same epsilon and other columns"
    assert [row[:3] for row in lines.rows] == [("DP-FPL", "inf", "+1.2"), ("DP-FPL", "2", "+1.2")]


def test_one_row_may_be_chosen_by_its_settings(grid):
    compared = comparison(grid, against="method=promptfl, epsilon=inf", test="sign_flip")
    assert set(compared.references.values()) == {1}
    assert set(compared.references) == {0, 2, 3, 4}
    assert all(p >= 0.25 for _, p in compared.differences["neighbor"].values() if p is not None)
    for against, message in (("fedotp", "no row is that"), ("rnk=8", "'rnk' names no setting")):
        with pytest.raises(ConfigError, match=message):
            comparison(grid, against=against)


def test_other_clients_are_not_paired(toy_values, tmp_path):
    paths = []
    for clients, method in ((2, "promptfl"), (3, "dp_fpl")):
        for seed in (1, 2):
            values = {
                **with_settings(toy_values, method, seed=seed),
                "partition": {"name": "disjoint_classes", "num_clients": clients},
            }
            paths.append(write_run(tmp_path / f"{method}{seed}", values, [(0.5 + seed / 10, 0.5)]))
    compared = comparison(paths, against="promptfl")
    assert compared.references == {}


def test_a_pivot_has_a_column_for_each_budget(grid):
    table = made.pivot(comparison(grid), "epsilon", "local")
    assert table.header == ("method", "no epsilon", "epsilon inf", "epsilon 2")
    assert table.rows == (
        ("zero-shot template", "40.0 ± 0.0", "", ""),
        ("PromptFL", "", "50.0 ± 0.0", "50.0 ± 0.0"),
        ("DP-FPL", "", "51.2 ± 0.1", "51.2 ± 0.1"),
    )
    assert "Seeds: 3." in table.notes
    with pytest.raises(ConfigError, match="'rank' names no setting"):
        made.pivot(comparison(grid), "rank", "local")


def test_measures_of_answers_have_a_table_and_are_tested_as_scores_are(grid):
    with pytest.raises(ConfigError, match="worst_client, got 'anls'"):
        hp.compare(grid, scores=["anls"])
    for path in grid:
        summary = records.read_json(path / "summary.json")
        better = (0.1 + 0.001 * summary["arms"][0]["seed"]) * ("dp_fpl" in path.name)
        summary["arms"][0] |= {"is_open": True, "loss": 2 - better, "neighbor_loss": 2.5, "anls": 0.3 + better}
        records.write_json(path / "summary.json", summary)
    scores, answers, *_ = made.tables_of([comparison(grid, against="promptfl")], None)
    assert (scores.name, answers.name, answers.notes) == ("scores", "answers", ())
    assert answers.header[2:] == ("loss per token", "neighbor loss", "ANLS", "seeds")
    assert answers.rows[1][2:] == ("2.000 ± 0.000", "2.500 ± 0.000", "30.0 ± 0.0", "3")
    assert answers.rows[3][2:] == ("1.898 ± 0.001*", "2.500 ± 0.000", "40.2 ± 0.1*", "3")
    assert "a share of answers that are one of the true ones; losses in nats." in scores.notes[0]
    found = hp.compare(grid, against="promptfl", columns="epsilon", scores=["loss", "anls"])
    assert [grid.name for grid in found.grids] == ["loss", "anls", "loss-differences", "anls-differences"]
    assert found.grids[1].title.startswith("ANLS by epsilon")
    loss, anls = found.grids[2:]
    assert loss.title.startswith("loss per token: difference to promptfl")
    assert anls.title.startswith("ANLS: difference in points to promptfl")
    assert (loss.rows[0][2], anls.rows[0][2]) == ("-0.102", "+10.2")
    assert "anls_mean" in found.text("csv").splitlines()[0]


def test_rows_without_a_budget_stand_in_the_table_of_every_budget(grid):
    groups = pool_strictly(reader.find(grid).runs)
    tables = split(groups, ["epsilon"])
    assert [title for title, _ in tables] == ["privacy.epsilon = inf", "privacy.epsilon = 2"]
    for _, members in tables:
        assert [group.title for group in members] == ["zero-shot template", "PromptFL", "DP-FPL"]


def test_an_epsilon_that_is_only_named_never_stands_for_a_proven_one(grid, tmp_path):
    for path in grid:
        if "dp_fpl2" in path.name:
            summary = records.read_json(path / "summary.json")
            summary["arms"][0]["epsilon"] = 36.0
            records.write_json(path / "summary.json", summary)
    compared = comparison(grid, against="promptfl")
    assert [row[1] for row in made.table(compared).rows] == ["-", "inf", "2", "inf", "36"]
    assert made.pivot(compared, "epsilon", "local").rows[-1][-1] == "51.2 ± 0.1 (proven: 36)"
    assert [compared.groups[at].epsilon for at in compared.references] == [math.inf]  # no rival has that budget


def test_epsilon_has_all_that_gives_it_meaning_under_the_table(grid):
    note = "\n".join(made.table(comparison(grid)).notes)
    for words in ("holder of a client's personal prompt", "delta = 0.001", "one example of one client", "add_remove",
                  "Poisson sampling", "accountant: PLD", "last round", "hushprompt 0.1.0"):  # fmt: skip
        assert words in note


def test_what_all_epsilons_have_in_common_is_said_once(grid):
    for path in grid:
        if "dp_fpl" in path.name:
            privacy = records.read_json(path / "privacy.json")
            wide = "inf" in path.name
            privacy["arms"][0]["audiences"]["personal"]["sampling"] += f", clipping of the batch, nominal {wide}"
            records.write_json(path / "privacy.json", privacy)
    note = next(note for note in made.table(comparison(grid)).notes if note.startswith("epsilon"))
    assert note.count("delta = 0.001") == note.count("Poisson sampling") == note.count("accountant: PLD") == 1
    assert "; DP-FPL: clipping of the batch, nominal True or False. -:" in note


def test_a_sweep_counts_what_is_not_finished(grid, tmp_path):
    runs = [{"folder": path.name} for path in grid] + [{"folder": "waiting"}]
    records.write_json(tmp_path / "sweep.json", {"runs": runs})
    found = reader.find([tmp_path])
    assert len(found.runs) == len(grid)
    assert list(found.notes) == [f"{tmp_path.name}: 1 of {len(grid) + 1} runs not finished."]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no run"):
        reader.find([tmp_path / "empty"])


def test_csv_lines_hold_numbers_and_all_that_gives_them_meaning(grid):
    header, lines = made.flat_rows(comparison(grid, against="promptfl"), "")
    line = dict(zip(header, lines[3], strict=True))
    assert (line["method"], line["epsilon"], line["delta"]) == ("dp_fpl", math.inf, 1e-3)
    assert (line["privacy_unit"], line["accountant"], line["seeds"]) == ("example", "PLD", "1 2 3")
    assert line["local_mean"] == pytest.approx(0.512)
    assert line["local_difference"] == pytest.approx(0.012)
    assert line["against"] == "PromptFL (epsilon inf)"
    assert dict(zip(header, lines[0], strict=True))["epsilon"] == ""
