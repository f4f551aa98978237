"""The tables of the README are made from results that are in the repository."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from hushprompt.runs import archive

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "embedded"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("results_tool", ROOT / "tools" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def groups(tool):
    return tool.groups_of([RESULTS / name for name in tool.KEPT])


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "docs/results.md",
        "docs/mllm.md",
        "results/embedded/grid-wide/README.md",
        "results/embedded/clients/README.md",
    ],
)
def test_every_number_of_the_tables_follows_from_kept_runs(tool, groups, path):
    if "clients" in path:
        groups = tool.groups_of([RESULTS / "clients"])
    page = (ROOT / path).read_text(encoding="utf-8")
    emptied = re.sub(r"(<!-- results: \w+ -->\n).*?(<!-- end -->)", r"\1\2", page, flags=re.DOTALL)
    assert emptied != page
    assert tool.filled(emptied, groups) == page


def test_a_budget_that_is_only_a_name_stands_beside_what_is_proven(tool, groups):
    released = next(line for line in tool.budgets(groups).splitlines() if "as released" in line)
    assert re.search(r"\(proven: 193\)", released)


def test_a_line_of_the_rivals_names_only_what_is_significantly_better(tool, groups):
    header, _, *lines = tool.rivals(groups).splitlines()
    assert header == "| epsilon | local | neighbor | harmonic mean |"
    no_noise = next(line for line in lines if line.startswith("| no noise"))
    assert "local-only +" in no_noise.split("|")[2]
    assert "local-only" not in no_noise.split("|")[4]


def test_class_statistics_are_tested_against_rivals_and_references_at_every_budget_of_the_first_table(tool, groups):
    header, _, *lines = tool.paired(groups).splitlines()
    assert header.split(" | ")[1:] == ["no noise", "8", "2", "0.4", "0.1 |"]
    cells = {line.split(" | ")[0].removeprefix("| above "): line.split(" | ")[1:] for line in lines}
    assert set(cells) == {
        "zero-shot template", "PromptFL", "DP-FPL", "Class means", "Least squares", "Linear probe",
    }  # fmt: skip
    assert all(cell.count("(p ") == 2 for line in cells.values() for cell in line[1:])
    assert cells["DP-FPL"][2].startswith("+12.5 (p < 0.001)")


def test_finished_runs_are_kept_and_others_are_not(tool, tmp_path):
    for name in ("done", "begun"):
        (tmp_path / "sweep" / name / "prompts").mkdir(parents=True)
        for file in ("config.toml", "privacy.json", "records.jsonl"):
            (tmp_path / "sweep" / name / file).write_text(file)
    (tmp_path / "sweep" / "done" / "summary.json").write_text(json.dumps({"arms": []}))
    tool.keep(tmp_path / "sweep", tmp_path / "kept")
    (kept,) = archive.iterate(tmp_path / "kept" / "runs.jsonl.gz")
    assert kept.folder == "done"
    assert sorted(kept.files) == ["config.toml", "privacy.json", "summary.json"]
