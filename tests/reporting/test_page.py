"""The page of real toy runs: whole, self-contained, the same every time, and never broken by what a record holds."""

import html
import json
import math
import re
import sys
import xml.etree.ElementTree as ET

import pytest
from scipy.stats import norm

from helpers import made_runs as made
from helpers.made_runs import train
from hushprompt.cli import main as cli
from hushprompt.errors import DataError
from hushprompt.privacy.accounting import epsilon
from hushprompt.privacy.releases import GaussianReleases
from hushprompt.privacy.statements import detection_rate, in_plain_words
from hushprompt.reporting import page as pages
from hushprompt.reporting import sections
from hushprompt.reporting.page import report
from hushprompt.reporting.page_tables import result_table
from hushprompt.reporting.pooling import pool
from hushprompt.reporting.sections import SECTIONS

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</title></style><script>alert("x")</script>&lt;\x00‮\'"><img src=x onerror=alert(1)>'


def parsed(page):
    """The page as XML, which is stricter than a browser."""
    return ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_arms(folder, **values):
    """Set something in every arm of a summary."""
    edit(folder / "summary.json", lambda summary: [arm.update(values) for arm in summary["arms"]])


def words(element):
    return " ".join("".join(element.itertext()).split())


def section(root, slug):
    return root.find(f".//section[@id='{slug}']")


@pytest.fixture
def only(monkeypatch):
    """Call it to have pages of some sections alone: figures of the others take seconds."""
    return lambda *some: monkeypatch.setattr(pages, "SECTIONS", some)


@pytest.fixture(scope="module")
def page(finished):
    return report([finished])


def test_the_page_is_whole_and_every_figure_is_there(page):
    root = parsed(page)
    assert len(root.findall(".//section")) == len(SECTIONS) - 1  # nothing was audited
    panels = [svg.get("id") for svg in root.iter(f"{SVG}svg") if svg.get("role") == "img"]
    for name in ("utility-local", "tradeoff", "rounds-local-0", "clients-neighbor", "holdings", "confusion-0-local",
                 "confusion-0-neighbor", "epsilon-public-0", "epsilon-personal-0"):  # fmt: skip
        assert name in panels
    assert not root.findall(".//p[@class='missing']")
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    for element in root.iter():
        for name in (element.get("aria-labelledby") or "").split():
            assert name in ids
    assert len(root.findall(".//figure")) <= len(root.findall(".//details"))


def test_the_page_needs_nothing_from_outside(page):
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script|<link|<img|<image|@import|@font-face|url\((?!#)|href=\"(?!#)|\bsrc=|\bon\w+=", page)
    assert "default-src 'none'; style-src 'unsafe-inline'" in html.unescape(page)


def test_equal_records_give_equal_bytes(finished, page):
    assert page == report([finished / "seed-1", finished / "seed-2", finished])


def test_the_table_has_means_and_deviations_over_seeds(finished, only):
    only(sections.results)
    arms = [json.loads((finished / f"seed-{seed}" / "summary.json").read_text())["arms"][-1] for seed in (1, 2)]
    low, high = sorted(100 * arm["local"] for arm in arms)
    cell = f"{(low + high) / 2:.1f} ± {(high - low) / math.sqrt(2):.1f}"
    assert cell in words(section(parsed(report([finished])), "results"))


def test_epsilon_never_stands_without_what_gives_it_meaning(finished, only):
    only(sections.results, sections.utility, sections.privacy_spent, sections.privacy)
    root = parsed(report([finished]))
    for slug in ("results", "utility", "spent", "privacy"):
        text = words(section(root, slug))
        for part in ("delta = 0.001", "one example", "add_remove", "disjoint", "accountant:"):
            assert part in text, (slug, part)
    for part in ("The server is trusted", "Not private, simulation only", "repeatable simulation", "In plain words"):
        assert part in words(section(root, "privacy"))


def test_hostile_names_stay_text(copied):
    for folder in copied.iterdir():
        edit(folder / "summary.json", lambda v: [arm.update(title=HOSTILE) for arm in v["arms"]])
        edit(folder / "summary.json", lambda v: v["provenance"].update(torch=HOSTILE))
        edit(folder / "privacy.json", lambda v: v.update(server=HOSTILE))
        edit(folder / "partition.json", lambda v: v.update(class_names=[HOSTILE + name for name in v["class_names"]]))
        edit(folder / "partition.json", lambda v: v.update(client_names=[HOSTILE] * len(v["client_names"])))
    page = report([copied], HOSTILE)
    root = parsed(page)
    assert {e.tag.rpartition("}")[2] for e in root.iter()}.isdisjoint({"script", "img"})
    assert not re.search(r"<script|<img", page)
    assert root.find(".//h1").text == HOSTILE.replace("\x00", "\ufffd")


@pytest.mark.parametrize(
    ("damage", "make", "says"),
    [
        (lambda f: (f / "partition.json").unlink(), sections.holdings, "no partition.json"),
        (lambda f: [p.unlink() for p in (f / "confusion").iterdir()], sections.confusion, "no confusion counts"),
        (lambda f: (f / "records.jsonl").unlink(), sections.rounds, "No arm was scored"),
        (lambda f: (f / "records.jsonl").unlink(), sections.privacy_spent, "more than one round"),
        (lambda f: (f / "privacy.json").unlink(), sections.privacy, "nothing is claimed"),
        (lambda f: (f / "privacy.json").unlink(), sections.results, "read it as no guarantee"),
        (lambda f: edit_arms(f, per_client=[]), sections.clients, "no scores of"),
        (lambda f: edit_arms(f, local=None), sections.local_and_neighbor, "both"),
        (lambda f: edit_arms(f, epsilon=None), sections.utility, "No arm with a finite"),
        (lambda f: edit_arms(f, epsilon="inf"), sections.utility, "No arm with a finite"),
        (lambda f: edit(f / "summary.json", lambda v: v.pop("provenance")), sections.provenance, "Runs"),
    ],
)  # fmt: skip
def test_what_is_missing_gets_a_sentence(copied, damage, make, says, only):
    for folder in copied.iterdir():
        damage(folder)
    only(make)
    (found,) = parsed(report([copied])).findall(".//section")
    assert says in words(found)


def test_scores_that_are_no_numbers_break_nothing(copied):
    def spoil(values):
        for arm in values["arms"]:
            arm.update(local=None, neighbor=None, harmonic_mean=None, worst_client=None)
            arm["per_client"] = [{"client_id": 0, "local": None, "neighbor": None}]

    for folder in copied.iterdir():
        edit(folder / "summary.json", spoil)
        lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        spoiled = [{**line, "local": None, "neighbor": None, "epsilon": {"personal": "inf"}} for line in lines]
        (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in spoiled))
    parsed(report([copied]))


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"num_rounds": 1}},
        {"training": {"num_rounds": 0}, "references": []},
        {"privacy": {"epsilon": math.inf, "delta": 1e-3}, "references": []},
        {"method": {"name": "zero_shot"}, "references": []},
        {"method": {"name": "promptfl", "num_ctx": 4}, "references": []},
        {"evaluation": {"base_classes": 0.5}, "partition": {"name": "iid", "num_clients": 2}, "references": []},
        {"partition": {"name": "dirichlet", "num_clients": 4, "alpha": 0.5}, "references": []},
    ],
    ids=["one round", "no round", "no noise", "nothing learned", "no personal prompt", "new classes", "shared classes"],
)  # fmt: skip
def test_every_kind_of_run_has_a_page(changes, tmp_path):
    root = parsed(report([train(tmp_path / "run", tmp_path / "cache", **changes)]))
    assert len(root.findall(".//section")) == len(SECTIONS) - 1  # nothing was audited


def test_classes_that_nobody_trained_on_get_a_table(copied, only):
    only(sections.results)
    assert "nobody trained on" not in report([copied])
    for folder in copied.iterdir():
        edit_arms(folder, base=0.61, new=0.42, base_new_harmonic_mean=0.5)
    assert "61.0 ± 0.0" in words(section(parsed(report([copied])), "results"))


@pytest.mark.parametrize(("measured", "says"), [(1.5, "at least 1.5"), (9.5, "More was measured than is proven")])
def test_an_audit_stands_beside_the_claim(copied, measured, says, only):
    only(sections.audit)
    claimed = {"epsilon": 8.0, "statement": "epsilon = 8 at delta = 0.001; accountant: PLD."}
    one = {
        "audience": "personal",
        "claimed": claimed,
        "mechanism": [{"epsilon_lower_bound": 0.5}],
        "canaries": [{"result": {"epsilon_lower_bound": measured}}],
        "attacks": [{"attack": "lira", "auc": {"value": 0.61}}, {"attack": "loss", "auc": {"value": None}}],
    }
    (copied / "seed-1" / "audit").mkdir()
    record = {"budgets": [{"arm": "dp_fpl, epsilon 8", "epsilon": 8.0, "audiences": [one]}]}
    (copied / "seed-1" / "audit" / "audit.json").write_text(json.dumps(record))
    text = words(section(parsed(report([copied])), "audit"))
    for part in (
        says,
        "at least 0.5",
        "0.610 (lira)",
        "8 (simulation)",
        "epsilon = 8 (simulation) at delta = 0.001; acc",
    ):
        assert part in text


def test_unfinished_runs_are_named_and_left_out(copied, only):
    only(sections.results)
    (copied / "seed-3").mkdir()
    (copied / "seed-3" / "config.toml").write_text("seed = 3")
    assert "not finished: seed-3" in words(section(parsed(report([copied])), "results"))
    with pytest.raises(DataError, match="none has a summary"):
        report([copied / "seed-3"])


def test_a_config_from_before_a_setting_existed_means_its_default(copied, only):
    only(sections.results)
    config = copied / "seed-1" / "config.toml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("metrics_delta")]
    assert len(lines) < len(config.read_text().splitlines())
    config.write_text("\n".join(lines))
    assert "metrics delta" not in words(section(parsed(report([copied])), "results"))


def test_damaged_records_are_named(copied):
    (copied / "seed-1" / "records.jsonl").write_text('{"arm": ')
    with pytest.raises(DataError, match=r"records\.jsonl is damaged in line 1"):
        report([copied])


def call(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["hushprompt", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0), *capsys.readouterr()


def test_the_command_writes_the_page_and_says_where(finished, tmp_path, monkeypatch, capsys, only):
    page = tmp_path / "page.html"
    only(sections.privacy)
    status, out, _ = call(monkeypatch, capsys, "report", finished, "-o", page, "--title", "Mine")
    assert status == 0
    assert "page.html" in out
    assert "<h1>Mine</h1>" in page.read_text()


@pytest.mark.parametrize(("runs", "out", "message"), [("none", "page.html", "holds no run"), ("", "", "is a folder")])
def test_a_mistake_gets_one_sentence(finished, tmp_path, monkeypatch, capsys, only, runs, out, message):
    only(sections.privacy)
    folder = tmp_path if runs else finished
    status, _, err = call(monkeypatch, capsys, "report", folder, "-o", tmp_path / out)
    assert status == 2
    assert message in err


@pytest.mark.parametrize(("noise", "steps"), [(0.5, 1), (1.0, 1), (2.0, 10), (30.0, 5)])
@pytest.mark.parametrize("delta", [1e-5, 1e-2])
@pytest.mark.parametrize("false_alarms", [1e-4, 0.01, 0.3])
def test_the_best_test_against_gaussian_noise_stays_below_the_plain_words(noise, steps, delta, false_alarms):
    releases = GaussianReleases(num_steps=steps, noise_multiplier=noise)
    bound = epsilon(releases, delta=delta, relation="add_remove")
    best = norm.cdf(norm.ppf(false_alarms) + math.sqrt(steps) / noise)  # Neyman and Pearson
    assert best <= detection_rate(bound, delta, false_alarms) + 1e-9


def test_plain_words_do_not_promise_too_much():
    seen = {
        "epsilon": 0.0,
        "delta": 1e-5,
        "privacy_unit": "client",
        "releases": {"num_steps": 3, "noise_multiplier": 9},
    }
    assert "at most 1.0% of cases" in in_plain_words(seen)
    assert "sees nothing" in in_plain_words({**seen, "releases": {"num_steps": 0}})
    assert "nothing limits" in in_plain_words({**seen, "epsilon": "inf"})
    assert "next to no protection" in in_plain_words({**seen, "epsilon": 9.0})


@pytest.mark.parametrize(("second", "expected"), [(0.5, 0), (0.6, 1)])
def test_nothing_is_set_in_bold_where_all_are_equal(second, expected):
    runs = []
    for method, local in (("a", 0.5), ("b", second)):
        own = made.result(f"{method}, epsilon 2", 2.0, local=local, neighbor=0.4)
        config = {"privacy": {"epsilon": 2.0, "delta": 1e-5}, "method": {"name": method}}
        runs.append(made.run(1, [own], name=method, config=config))
    local_cells = [str(row[1]) for row in result_table(pool(runs)).rows]
    assert sum("<strong>" in cell for cell in local_cells) == expected
