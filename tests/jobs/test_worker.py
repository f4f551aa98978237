from hushprompt.data.sets.toy import Toy as ToyData
from hushprompt.jobs import messages, sweep_file
from hushprompt.jobs.messages import Job
from hushprompt.jobs.worker import Worker


def jobs_of(path, tmp_path):
    return [
        Job(kind="run", config=run.config.to_toml(), folder=str(tmp_path / run.name))
        for run in sweep_file.expand(sweep_file.load(path))
    ]


def test_many_runs_in_one_process_load_data_and_model_once(toy_sweep, tmp_path, monkeypatch):
    loaded = []
    load = ToyData.load
    monkeypatch.setattr(ToyData, "load", lambda self: loaded.append(self) or load(self))
    events = []
    worker = Worker(events.append)
    jobs = jobs_of(toy_sweep(), tmp_path)
    worker.do(Job(kind="encode", config=jobs[0].config))
    assert {event.kind for event in events[:-1]} == {"encoding"}
    assert events[-1].kind == "done"
    events.clear()
    for job in jobs:
        worker.do(job)
        assert (tmp_path / job.folder / "summary.json").exists()
    assert len(loaded) == 1
    assert {event.kind for event in events} == {"training", "done"}  # nothing is encoded again
    assert [(event.done, event.total) for event in events[:4]] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert events[4].what.startswith("local ")


def test_whatever_goes_wrong_is_told_and_the_next_job_comes(toy_sweep, tmp_path, monkeypatch):
    events = []
    worker = Worker(events.append)
    bad, good = jobs_of(toy_sweep(), tmp_path)[:2]
    worker.do(Job(kind="run", config=bad.config.replace("rank = 2", "rank = 9"), folder=bad.folder))
    assert (events[-1].kind, "rank must be at most" in events[-1].what) == ("failed", True)
    monkeypatch.setattr("hushprompt.jobs.worker.simulate.run", lambda *_: 1 / 0)
    worker.do(good)
    assert events[-1].kind == "failed"
    assert events[-1].what.startswith("ZeroDivisionError: division by zero (test_worker.py:")
    monkeypatch.undo()
    worker.do(good)
    assert events[-1].kind == "done"


def test_a_message_reads_back_as_itself():
    job = Job(kind="run", config='a = "x\\ny"\n', folder="runs/ä")
    line = messages.write(job)
    assert line.count("\n") == 1
    assert messages.read_job(line) == job
