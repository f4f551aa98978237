"""The audit command as a user meets it."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from helpers import commands
from hushprompt.audits import audit as audits
from hushprompt.audits import pipra
from hushprompt.audits.suite import ATTACKS
from hushprompt.cli import audit as cli_audit
from hushprompt.cli import lazy

SETTINGS = [*commands.SETTINGS, "--set=training.num_rounds=2", "--set=references=[]"]
QUICK = ["--num-shadows=4", "--canaries=12", "--gradient-canaries=1000", "--targets=1", "--workers=1"]


def test_a_run_is_audited_at_several_budgets_and_says_what_it_means(hush, tmp_path, monkeypatch):
    monkeypatch.setattr(pipra, "NUM_STEPS", 20)
    hush("run", *SETTINGS, "--out", "r")
    done = hush("audit", "r", "--epsilon", "2,inf", *QUICK, "--plot")
    for part in (
        "Audit of dp_fpl: 24 candidates of client 0, 4 shadow federations a budget",
        "claimed: epsilon = 2 (simulation) at delta = 0.001",
        "(add_remove)",
        "No guarantee (epsilon = inf, no noise)",
        "measured, mechanism alone: epsilon >= ",
        "measured, end to end: epsilon >= ",
        "LiRA online",
        "PIPRA, personal prompt",
        "gradient cosine",
        "not resolvable",
        "crafted prompts against clear sums: AUC ",
        "Power, by what was found without noise:",
        "for the public audience: gradient canaries show epsilon >= ",
    ):
        assert part in done.out, part
    record = json.loads((tmp_path / "r" / "audit" / "audit.json").read_text())
    assert record["format"] == "hushprompt audit 2"
    assert [budget["epsilon"] for budget in record["budgets"]] == [2.0, "inf"]
    one = record["budgets"][0]["audiences"][1]
    assert set(one) == {"audience", "claimed", "mechanism", "canaries", "attacks", "secrets"}
    assert {"auc", "tpr", "roc", "num_members", "num_non_members"} <= set(one["attacks"][0])
    svg = ElementTree.parse(tmp_path / "r" / "audit" / "roc.svg")
    paths = svg.findall(".//{http://www.w3.org/2000/svg}path")
    curves = [path for path in paths if "fill: none" in path.get("style", "") and "width: 1.6" in path.get("style", "")]
    assert len(curves) == 4 * 7


def test_parts_can_be_left_out_and_the_power_is_then_unknown(hush, tmp_path):
    done = hush("audit", "embedded", *SETTINGS, "--attack=none", "--canaries=0", "--audience=personal", "--out=a")
    assert "measured, mechanism alone" in done.out
    assert "for the public" not in done.out
    assert "Power: unknown" in done.out
    assert not list((tmp_path / "a").rglob("*.safetensors"))


def test_the_power_of_what_was_measured_is_said_by_kind_where_attacks_are_left_out(hush, tmp_path):
    done = hush("audit", "embedded", *SETTINGS, "--attack=none", "--epsilon=2,inf", *QUICK, "--out=a")
    record = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert set(record["power"]) == {"public", "personal"}
    for who, found in record["power"].items():
        one = next(one for one in record["budgets"][1]["audiences"] if one["audience"] == who)
        assert found["mechanism"] == max(result["epsilon_lower_bound"] for result in one["mechanism"]) > 0
        assert found["end_to_end"] == max(canary["result"]["epsilon_lower_bound"] for canary in one["canaries"])
        assert found["attack"] is found["auc"] is None
        says = f"gradient canaries show epsilon >= {found['mechanism']:.3g}, canaries in one training show epsilon >= "
        assert says in done.out
    assert "attacks left out" in done.out
    is_blind = any(found["end_to_end"] == 0 for found in record["power"].values())
    assert ("NO POWER: where nothing protects" in done.out) == is_blind


def test_whole_clients_are_the_canaries_where_they_are_the_unit(hush, tmp_path):
    unit = ["--set=privacy.privacy_unit=client", "--set=privacy.audience=public"]
    done = hush("audit", "embedded", *SETTINGS, *unit, "--epsilon=2,inf", *QUICK, "--out=a")
    assert "Audit of dp_fpl: 3 clients, 4 shadow federations a budget" in done.out
    assert "12 clients, there or not" in done.out
    assert "mislabelled" not in done.out
    assert "for the public audience: gradient canaries show epsilon >= " in done.out
    assert "for the personal audience" not in done.out, "nothing is claimed there, with noise or without"
    assert len(list((tmp_path / "a").rglob("shadow-*.safetensors"))) == 2 * 4


def test_a_measurement_above_the_claim_is_said_aloud_and_fails(hush, monkeypatch):
    true = audits.audit_audience

    def too_much(*args, **others):
        import dataclasses

        return [dataclasses.replace(one, epsilon_lower_bound=9.0) for one in true(*args, **others)]

    monkeypatch.setattr(audits, "audit_audience", too_much)
    done = hush(
        "audit", "embedded", *SETTINGS, "--attack=none", "--canaries=0", "--gradient-canaries=100", "--out=a", ok=False
    )
    assert done.code == cli_audit.CONTRADICTED
    assert "CONTRADICTED: more was measured (9)" in done.out


def test_a_stopped_audit_says_how_to_go_on(hush, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(audits, "measure", stopped)
    done = hush("audit", "embedded", *SETTINGS, "--out=a", ok=False)
    assert done.code == cli_audit.INTERRUPTED
    assert "the same command goes on" in done.out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--epsilon=two", "--epsilon takes numbers > 0 and inf, by commas, got 'two'"),
        ("--epsilon=-1", "epsilon must be > 0, got -1.0"),
        ("--audience=pubic", "audience must be one of public, personal, server"),
        ("--attack=lira,guess", "attack must be one of"),
    ],
)
def test_wrong_options_are_explained(hush, option, message):
    done = hush("audit", "embedded", *SETTINGS, option, "--out=a", ok=False)
    assert done.code == 2
    assert message in done.err


def test_all_attacks_are_the_default():
    (attack,) = [parameter for parameter in lazy.load("audit").params if parameter.name == "attack"]
    assert attack.default == ",".join(ATTACKS)
