import os
import sys

import pytest

from hushprompt.jobs import processes, sweep_file, sweep_folder
from hushprompt.jobs.messages import Job
from hushprompt.jobs.processes import Shares, WorkerProcess, share

ECHO = """
import json, os, signal, sys
for line in sys.stdin:
    job = json.loads(line)
    if "seed = 2" in job["config"] and job["kind"] == "run":
        print("out of cheese", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    kind = "failed" if "no_data" in job["config"] and job["kind"] == "encode" else "done"
    print(json.dumps({"kind": "encoding", "what": job["kind"]}), flush=True)
    print(json.dumps({"kind": kind, "what": str(os.getpid())}), flush=True)
"""


class Watching:
    def __init__(self):
        self.encoded, self.ended = [], []

    def on_encoding(self, event):
        self.encoded.append(event)

    def on_progress(self, worker, run, event):
        pass

    def on_end(self, worker, run, event):
        self.ended.append((run.planned.name, event))


@pytest.fixture
def echo(monkeypatch):
    """Workers that only answer, and die of seed 2."""
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, "-c", ECHO))


def test_cores_are_shared_and_never_taken_twice(monkeypatch):
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: set(range(8)))
    assert share(0, 100) == Shares(num_workers=8, num_threads=1, num_cores=8)
    assert share(3, 100) == Shares(num_workers=3, num_threads=2, num_cores=8)
    assert share(0, 2) == Shares(num_workers=2, num_threads=4, num_cores=8)
    assert share(16, 100) == Shares(num_workers=16, num_threads=1, num_cores=8)
    for jobs in range(1, 9):
        shares = share(jobs, 100)
        assert shares.num_workers * shares.num_threads <= 8


def test_a_worker_that_dies_fails_its_run_and_the_others_go_on(echo, toy_sweep, tmp_path):
    runs = sweep_folder.place(sweep_file.expand(sweep_file.load(toy_sweep())), tmp_path / "runs")
    watching = Watching()
    processes.make(runs, Shares(num_workers=2, num_threads=1, num_cores=2), watching)
    assert len(watching.encoded) == 2  # once for each method, not for each run
    outcome = {name: (event.kind, event.what) for name, event in watching.ended}
    assert {name: kind for name, (kind, _) in outcome.items()} == {
        "dp_fpl-seed1": "done", "promptfl-seed1": "done", "dp_fpl-seed2": "failed", "promptfl-seed2": "failed",
    }  # fmt: skip
    assert outcome["dp_fpl-seed2"][1] == "Its process ended by signal 9: out of cheese"


def test_runs_whose_features_cannot_be_made_fail_without_being_tried(echo, toy_sweep, tmp_path):
    runs = sweep_folder.place(
        sweep_file.expand(sweep_file.load(toy_sweep()), ["runtime.cache_dir=no_data"]), tmp_path / "runs"
    )
    watching = Watching()
    processes.make(runs, Shares(num_workers=1, num_threads=1, num_cores=1), watching)
    assert [event.kind for _, event in watching.ended] == ["failed"] * 4


def test_a_worker_ends_with_its_input_and_starts_again_after_death(echo):
    worker = WorkerProcess(num_threads=1)
    first = worker.do(Job(kind="run", config=""), lambda event: None).what
    assert worker.do(Job(kind="run", config="seed = 2"), lambda event: None).kind == "failed"
    second = worker.do(Job(kind="run", config=""), lambda event: None).what
    assert first != second
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(second), 0)


def test_ctrl_c_ends_all_workers(echo, toy_sweep, tmp_path):
    seen = []

    class Interrupting(Watching):
        def on_end(self, worker, run, event):
            seen.append(int(event.what))
            raise KeyboardInterrupt

    text = toy_sweep().read_text().replace("seed = [1, 2]", "seed = [1, 3, 4]")
    (tmp_path / "toy.toml").write_text(text)
    runs = sweep_folder.place(sweep_file.expand(sweep_file.load(tmp_path / "toy.toml")), tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        processes.make(runs, Shares(num_workers=2, num_threads=1, num_cores=2), Interrupting())
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)
