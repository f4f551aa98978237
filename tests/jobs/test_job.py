from hushprompt.data.sets.toy import ToyData
from hushprompt.jobs import job, sweep_file
from hushprompt.jobs.pool import attempt


def runs_of(path, tmp_path):
    return [(run.config.to_toml(), tmp_path / run.name) for run in sweep_file.expand(sweep_file.load(path))]


def test_many_runs_in_one_worker_load_data_and_model_once(toy_sweep, tmp_path, monkeypatch):
    loaded = []
    load = ToyData.load
    monkeypatch.setattr(ToyData, "load", lambda self: loaded.append(self) or load(self))
    job.load_kept.cache_clear()
    told = []
    runs = runs_of(toy_sweep(), tmp_path)
    job.encode_features(lambda *what: told.append(what), runs[0][0])
    assert {what for what, _, _ in told} == {"encoding toy train", "encoding toy test"}
    told.clear()
    outcomes = [job.train_run(lambda *what: told.append(what), *run) for run in runs]
    assert all(outcome.startswith("local ") for outcome in outcomes)
    assert all((folder / "summary.json").exists() for _, folder in runs)
    assert len(loaded) == 1
    assert [(done, total) for _, done, total in told[:5]] == [(0, 0), (0, 3), (1, 3), (2, 3), (3, 3)]
    assert not any(what.startswith("encoding") for what, _, _ in told), "nothing is encoded again"


def test_whatever_goes_wrong_is_one_sentence(toy_sweep, tmp_path, monkeypatch):
    config, folder = runs_of(toy_sweep(), tmp_path)[0]
    bad = config.replace("rank = 2", "rank = 9")
    value, error = attempt(lambda: job.train_run(lambda *what: None, bad, folder))
    assert (value, "rank must be at most" in error) == (None, True)
    monkeypatch.setattr("hushprompt.jobs.job.simulate.run", lambda *_: 1 / 0)
    _, error = attempt(lambda: job.train_run(lambda *what: None, config, tmp_path / "other"))
    assert error.startswith("ZeroDivisionError: division by zero (test_job.py:")
