import json

from hushprompt import files
from hushprompt.federation import simulate
from hushprompt.jobs import sweep_file, sweep_folder
from hushprompt.jobs.job import RunTeller
from hushprompt.jobs.sweep_folder import RunState


def make(run):
    files.write_text(run.folder / "config.toml", run.planned.config.to_toml())
    simulate.run(run.planned.config, run.folder, RunTeller(lambda *what: None))


def test_what_is_done_is_known_by_its_config_whatever_its_folder_is_called(toy_sweep, tmp_path):
    runs = sweep_file.expand(sweep_file.load(toy_sweep()))
    first, *others = sweep_folder.place(runs, tmp_path / "runs")
    make(first)
    first.folder.rename(tmp_path / "runs" / "mine")
    placed = sweep_folder.place(runs, tmp_path / "runs")
    assert [run.state for run in placed] == [RunState.DONE, *[RunState.WAITING] * len(others)]
    assert placed[0].folder.name == "mine"


def test_a_name_that_holds_another_config_is_not_taken(toy_sweep, tmp_path):
    make(sweep_folder.place(sweep_file.expand(sweep_file.load(toy_sweep())), tmp_path / "runs")[0])
    runs = sweep_file.expand(sweep_file.load(toy_sweep(num_rounds=4)))
    placed = sweep_folder.place(runs, tmp_path / "runs")
    assert placed[0].state is RunState.WAITING
    assert placed[0].folder.name == f"dp_fpl-seed1-{runs[0].identity[:8]}"
    assert placed[1].folder.name == "promptfl-seed1"


def test_a_summary_without_the_runs_own_identity_is_not_done(toy_sweep, tmp_path):
    run = sweep_folder.place(sweep_file.expand(sweep_file.load(toy_sweep())), tmp_path / "runs")[0]
    make(run)
    path = run.folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["provenance"]["config_identity"] = "other"
    path.write_text(json.dumps(summary))
    assert sweep_folder.place([run.planned], tmp_path / "runs")[0].state is RunState.BEGUN
    path.write_text("{")
    assert sweep_folder.place([run.planned], tmp_path / "runs")[0].state is RunState.BEGUN


def test_a_config_that_cannot_be_read_is_passed_over(toy_sweep, tmp_path):
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "config.toml").write_text("no_such_key = 1")
    runs = sweep_folder.place(sweep_file.expand(sweep_file.load(toy_sweep())), tmp_path / "runs")
    assert {run.state for run in runs} == {RunState.WAITING}
