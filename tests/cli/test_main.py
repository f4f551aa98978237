"""The command as a user meets it; where it is killed, in a process of its own and for real."""

import dataclasses
import math
import os
import signal
import subprocess
import time

import pytest
from rich.console import Console

from helpers import commands
from helpers.commands import command
from helpers.runs import files
from hushprompt.api import progress
from hushprompt.config import parse as configs
from hushprompt.federation.planning import plan_arms
from hushprompt.runs import records

REFERENCES = "references=[{method={name='zero_shot'}}, {method={name='promptfl', num_ctx=4}}, {epsilon=inf}]"
SETTINGS = [*commands.SETTINGS, f"--set={REFERENCES}"]


@pytest.fixture
def env(tmp_path):
    """What a process of its own sees, as `hush` does."""
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "100"}


def test_a_run_prints_the_table_and_writes_the_folder(hush, tmp_path):
    out = hush("run", *SETTINGS, "--set", "training.num_rounds=2", "--out", "r").out
    for part in (
        "zero-shot template",
        "PromptFL",
        "DP-FPL without noise",
        "delta = 0.001",
        "add_remove",
        "PLD",
        "summary.json",
    ):
        assert part in out
    assert {p.name for p in (tmp_path / "r").iterdir()} == {
        "config.toml", "records.jsonl", "summary.json", "privacy.json", "partition.json", "confusion", "checkpoint",
        "ledger.jsonl", "prompts", "identity.json", "manifest.json",
    }  # fmt: skip
    again = hush("show", "r").out
    assert "DP-FPL" in again
    statement = hush("privacy", "r").out
    for part in ("epsilon = ", "The server is trusted", "Not private, simulation only", "repeatable simulation"):
        assert part in statement
    assert "personal: epsilon (simulation) by accountant: pld " in statement
    assert "no contradiction" in statement
    assert "3 clients (0, 1, 2): 2 rounds charged, sampling probability 0.5; epsilon so far (simulation): " in statement


def test_killed_at_random_moments_and_resumed_a_run_leaves_the_same_files(hush, tmp_path, env):
    rounds = ["--set", "training.num_rounds=25"]
    hush("run", *SETTINGS, *rounds, "--out", "whole")
    words, again = command("run", *SETTINGS, *rounds, "--out", "killed"), command("run", "--resume", "killed")
    for more_s in (0.0, 0.13):  # after one more round is on disk, at a moment that the rounds know nothing of
        done = num_records(tmp_path / "killed")
        with subprocess.Popen(words, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 100
            while num_records(tmp_path / "killed") == done and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(more_s)
            process.kill()
        assert process.returncode == -signal.SIGKILL, "it was ended in the middle"
        words = again
    hush("run", "--resume", "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def num_records(folder):
    path = folder / "records.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def test_ctrl_c_keeps_the_rounds_and_says_how_to_go_on(hush, tmp_path, env):
    args = ["run", *SETTINGS, "--set", "training.num_rounds=4000", "--out", "r"]
    process = subprocess.Popen(
        command(*args),
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    records = tmp_path / "r" / "records.jsonl"
    deadline = time.monotonic() + 120
    with process:
        try:
            while not records.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130, out
    assert "--resume r" in out
    assert (tmp_path / "r" / "checkpoint" / "state.safetensors").exists()


def test_a_dry_run_prints_config_and_statement_and_writes_nothing(hush, tmp_path):
    out = hush("run", *SETTINGS, "--dry-run").out
    assert 'name = "dp_fpl"' in out
    assert "epsilon = " in out
    assert "accountant" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "--set", "privacy.epsilom=1"], "Did you mean 'epsilon'"),
        (["run", "--set", "method.rank=17"], "rank must be at most"),
        (
            ["run", "--set", "partition.num_clients=101"],
            "at most the number of classes, 100, in a disjoint split, got 101",
        ),
        (["run", "--set", "privacy.delta=0.01"], "delta must be below 1 / (examples of the largest client)"),
        (["run", "--set", "sampling.name=shuffle"], "There is no sampler 'shuffle'"),
        (["run", "nothing.toml"], "cannot be read"),
        (["run", "--resume", "nowhere"], "is not a run folder"),
        (["list", "method"], "There is no list of 'method'"),
        (["privacy", "nowhere"], "is not a run folder"),
    ],
)
def test_a_mistake_gets_one_sentence_and_status_2(hush, args, message):
    done = (
        hush(*args, "--set", "backbone.name=toy", ok=False)
        if args[0] == "run" and "--resume" not in args
        else hush(*args, ok=False)
    )
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_folder_with_something_in_it_is_not_overwritten(hush, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.txt").write_text("mine")
    done = hush("run", *SETTINGS, "--out", "r", ok=False)
    assert "is not empty" in done.err
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["thesis.txt"]


def test_calibrate_prints_noise_and_who_has_which_epsilon(hush):
    out = hush("calibrate", "--epsilon", 0.4, "--rounds", 100, "--method", "promptfl").out
    assert "noise_multiplier_global = 86.29" in out
    assert "epsilon = 0.4 at delta = 1e-05" in out
    assert "exact Gaussian (GDP)" in out
    assert "the server (receives" not in out


def test_calibrate_knows_who_adds_the_noise(hush):
    out = hush("calibrate", "--epsilon", 2, "--rounds", 10, "--noise-at", "client", "--audience", "server").out
    assert "the server (receives all that clients send):\n  epsilon = 2 at" in out


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("methods", "dp_fpl"),
        ("datasets", "emoji100"),
        ("backbones", "emoji_clip"),
        ("presets", "embedded"),
        ("samplers", "poisson"),
    ],
)
def test_lists_name_what_can_be_used(hush, what, name):
    assert name in hush("list", what).out


def test_the_bar_of_encoding_counts_only_what_this_process_did(monkeypatch):
    setup = progress.EncodingBar(task=0, num_done_before=100, start=50.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: 60.0)
    assert setup.speed(100, 400) == ""
    assert setup.speed(200, 400) == "10/s, 0:00:20 left"
    assert setup.speed(400, 400) == "30/s"


def test_a_refused_run_leaves_nothing_behind(hush, tmp_path):
    hush("run", *SETTINGS, "--set", "method.rank=5", "--out", "r", ok=False)
    assert not (tmp_path / "r").exists()
    hush("run", *SETTINGS, "--set", "training.num_rounds=1", "--out", "r")
    (tmp_path / "r" / "config.toml").write_text(
        (tmp_path / "r" / "config.toml").read_text().replace("rank = 2", "rank = 5")
    )
    hush("run", "--resume", "r", ok=False)
    assert (tmp_path / "r" / "summary.json").exists()


def test_with_rare_evaluation_the_bar_keeps_the_last_scores_and_the_run_shows_who_takes_part(hush, tmp_path):
    extra = [
        "sampling={name='disjoint', steps_per_round=2}",
        "training={num_rounds=7, cohort_size=2, local_steps=2}",
        "privacy.noise_at=client",
        "evaluation={every=4, base_classes=0.5}",
    ]
    done = hush("run", *SETTINGS, *(f"--set={setting}" for setting in extra), f"--out={tmp_path / 'r'}")
    assert done.code == 0, done.err
    assert "nan" not in done.out
    assert "base" in done.out
    assert "2 of 3 clients take part in a round" in done.out
    assert "for the server (receives all that clients send" in done.out
    bars = progress.TrainingBars(Console())
    bars._words = progress.LastScores(plan_arms(configs.load(tmp_path / "r" / "config.toml"), [4, 4, 4])[-1])
    record = records.RoundRecord(
        arm="x", round_index=3, seconds=0.0, loss=1.0, local=0.5, neighbor=0.25, harmonic_mean=0.33, worst_client=0.1,
        bytes_up=0, bytes_down=0, epsilon={"personal": 1.0},
    )  # fmt: skip
    nan = math.nan
    unknown = dataclasses.replace(record, local=nan, neighbor=nan, harmonic_mean=nan, worst_client=nan)
    bars._task = bars._progress.add_task("arm", total=5, scores="")
    for each, shown in (
        (unknown, "loss 1.00 epsilon 1.00 (simulation)"),
        (record, "local 50 neighbor 25"),
        (unknown, "local 50"),
    ):
        bars.on_round(each)
        assert shown in bars._progress.tasks[0].fields["scores"]
