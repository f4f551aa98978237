"""The sweep as a user meets it: processes of its own, killed for real."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tomli_w

from helpers.commands import command, is_worker
from helpers.inline_pool import InlinePool
from hushprompt import files
from hushprompt.config import parse as configs
from hushprompt.deployment.operate.process_lifetime import descendants
from hushprompt.federation import simulate
from hushprompt.jobs import sweep_file
from hushprompt.jobs.job import RunTeller
from hushprompt.runs import records

CHILDREN = Path("/proc/self/task").exists()


@pytest.fixture
def toy_sweep(tmp_path, toy_values, hush):
    """A sweep of two methods and two seeds."""
    (tmp_path / "base.toml").write_text(tomli_w.dumps({**toy_values, "training": {"num_rounds": 8}}))
    path = tmp_path / "toy.toml"
    path.write_text("""
        base = "base.toml"
        [axes]
        seed = [1, 2]
        [axes.method]
        dp_fpl = {}
        promptfl = { method = { name = "promptfl", num_ctx = 4 } }
    """)
    return path


def results(folder):
    """What a run says, without the clock and the number of threads."""
    lines = [*(folder / "records.jsonl").read_text().splitlines(), (folder / "summary.json").read_text()]
    read = [json.loads(line, object_hook=lambda v: {k: e for k, e in v.items() if k != "seconds"}) for line in lines]
    prompts = {path.name: path.read_bytes() for path in (folder / "prompts").iterdir()}
    return read, prompts, configs.load(folder / "config.toml").identity()


@pytest.mark.skipif(not CHILDREN, reason="reads the children of a process from /proc")
def test_killed_and_made_by_one_or_two_processes_runs_are_as_if_made_alone(hush, toy_sweep, tmp_path):
    process = subprocess.Popen(
        command("sweep", toy_sweep, "-o", "killed", "--jobs", "2"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(Path("killed").glob("*/records.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    children = [child for child in descendants(process.pid) if is_worker(child)]
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(children) == 2
    while any(map(is_worker, children)):  # no worker outlives the sweep
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(list(Path("killed").glob("*/summary.json"))) < 4
    hush("sweep", toy_sweep, "-o", "killed", "--jobs", "1")
    for run in sweep_file.expand(sweep_file.load(toy_sweep)):
        files.write_text(tmp_path / "alone" / run.name / "config.toml", run.config.to_toml())
        simulate.run(run.config, tmp_path / "alone" / run.name, RunTeller(lambda *what: None))
        assert results(tmp_path / "killed" / run.name) == results(tmp_path / "alone" / run.name)


def test_a_run_that_fails_is_reported_at_the_end_and_stops_no_other(hush, toy_sweep, monkeypatch):
    monkeypatch.setattr("hushprompt.jobs.sweep.WorkerPool", InlinePool)
    text = toy_sweep.read_text()
    toy_sweep.write_text(text.replace("seed = [1, 2]", "seed = [1]").replace("dp_fpl = {}", "dp_fpl.method.rank = 9"))
    status, out, _ = hush("sweep", toy_sweep, "--set", "training.num_rounds=2", "--jobs", "1", ok=False)
    assert status == 1
    assert "2 runs in runs/toy, 0 done before." in out
    assert re.search(r"1 failed: .*rank must be at most.*\n  dp_fpl-seed1\n", out), out
    states = {run["folder"]: run["state"] for run in json.loads(Path("runs/toy/sweep.json").read_text())["runs"]}
    assert states == {"dp_fpl-seed1": "failed", "promptfl-seed1": "done"}
    out = hush("sweep", toy_sweep, "--set", "training.num_rounds=2", "--dry-run").out
    assert "2 runs in runs/toy: 1 waiting, 1 done." in out


def test_ctrl_c_says_how_to_go_on(hush, toy_sweep, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hushprompt.jobs.sweep.make", interrupted)
    status, out, _ = hush("sweep", toy_sweep, ok=False)
    assert (status, "the same command goes on" in out) == (130, True), out
    assert json.loads(Path("runs/toy/sweep.json").read_text())["runs"][0]["state"] == "waiting"


def test_a_folder_in_use_is_refused(hush, toy_sweep, tmp_path):
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    with records.locked(tmp_path / "runs" / "toy"):
        status, _, err = hush("sweep", toy_sweep, ok=False)
    assert (status, "Another process is writing" in err) == (2, True), err
