"""Runs are pooled by what their data are, not by what these are called or where they lie."""

import contextlib
import re
import shutil

import pytest

import hushprompt as hp
from helpers.inline_pool import InlinePool
from helpers.runs import run_with
from helpers.tables import picture, values, write_table
from hushprompt.audits.audit import check_content
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError, DataError, ResumeError
from hushprompt.federation.setup import load_fresh
from hushprompt.jobs import job, ray_cluster, sweep
from hushprompt.jobs.ray_cluster import RayCluster
from hushprompt.runs import reader, records

QUICK = {"training": {"num_rounds": 1}}


def made(tmp_path, data, name, seed, **changes):
    """A finished run, with its config."""
    table = {**values(data / "clients.csv"), **QUICK, "seed": seed, **changes}
    folder, _, _ = run_with(table, tmp_path, name)
    (folder / "config.toml").write_text(configs.parse({**table, "runtime": {"cache_dir": str(tmp_path)}}).to_toml())
    return folder


@pytest.fixture
def data(tmp_path):
    return write_table(tmp_path / "imgs")


def test_runs_on_other_data_of_the_same_name_are_not_compared_and_a_report_tells_them_apart(tmp_path, data):
    first = made(tmp_path, data, "first", 1)
    picture(data / "cat1.png", 99)
    runs = [first, made(tmp_path, data, "second", 2)]
    with pytest.raises(ConfigError, match=r"do not mean the same \(data\.fingerprint: "):
        hp.compare(runs)
    assert not re.search(r"DP-FPL.* ± ", hp.compare(runs, by=["data.fingerprint"]).text()), "one seed each"
    page = hp.report(runs, tmp_path / "report.html").read_text()
    digests = [run.identity.data_digest[:12] for run in reader.find(runs).runs]
    assert len(set(digests)) == 2
    assert all(digest in page for digest in digests)


def test_equal_data_in_another_place_are_pooled_over_seeds(tmp_path, data):
    first = made(tmp_path, data, "first", 1)
    shutil.move(data, tmp_path / "moved")
    runs = [first, made(tmp_path, tmp_path / "moved", "second", 2)]
    assert re.search(r"DP-FPL.* ± ", hp.compare(runs).text())


def test_another_model_of_the_same_name_is_another_row(tmp_path, data):
    runs = [made(tmp_path, data, "first", 1), made(tmp_path, data, "second", 2)]
    for name in ("summary.json", "identity.json"):
        summary = records.read_json(runs[1] / name)
        summary.get("identity", summary)["backbone"] = "0" * 64
        records.write_json(runs[1] / name, summary)
    table = hp.compare(runs).text()
    assert "000000000000" in table
    assert "summary.json was changed after the run ended" in table
    assert "summary.json was changed after the run ended" in hp.report(runs, tmp_path / "r.html").read_text()


def test_other_versions_are_told_and_runs_without_identity_are_read(tmp_path, data):
    runs = [made(tmp_path, data, "first", 1), made(tmp_path, data, "second", 2)]
    assert "different versions" not in hp.compare(runs).text()
    summary = records.read_json(runs[1] / "summary.json")
    summary["identity"]["versions"]["torch"] = "1.0"
    records.write_json(runs[1] / "summary.json", summary)
    assert re.search(r"Made with different versions: torch 1\.0, \d", hp.compare(runs).text())
    summary["identity"] = None
    records.write_json(runs[1] / "summary.json", summary)
    assert re.search(r"DP-FPL.* ± ", hp.compare(runs).text())
    assert "identity not recorded" in hp.report(runs, tmp_path / "report.html").read_text()


def test_an_audit_of_a_run_on_other_data_is_refused(tmp_path, data):
    folder = made(tmp_path, data, "run", 1)
    config = configs.load(folder / "config.toml")
    check_content(folder, config)
    picture(data / "cat1.png", 99)
    with pytest.raises(ResumeError, match=r"trained on something else.*the train data are not those"):
        hp.audit(folder, num_shadows=4, num_canaries=0, num_gradient_canaries=0)


class InProcessCluster(RayCluster):
    """A cluster of this process alone."""

    def __init__(self):
        pass

    def threads(self, jobs):
        return 1

    def num_workers(self, num_threads):
        return 1

    def prepare(self, config_tomls):
        self.contents = [job.encode_features(lambda *told: None, toml) for toml in config_tomls]
        yield from ()

    def run(self, tasks, num_threads):
        assert not tasks, "nothing is trained"
        yield from ()


def test_a_sweep_on_ray_does_not_either(tmp_path, data, monkeypatch):
    monkeypatch.setattr(sweep, "WorkerPool", InlinePool)
    monkeypatch.setattr(job, "load_kept", load_fresh)
    monkeypatch.setattr(ray_cluster, "connected", lambda address: contextlib.nullcontext(InProcessCluster()))
    table = {**values(data / "clients.csv"), **QUICK, "runtime": {"cache_dir": str(tmp_path / "cache")}}
    grid = {"base": table, "axes": {"seed": [1]}}
    hp.sweep(grid, out=tmp_path / "sweep", jobs=1)
    picture(data / "cat1.png", 99)
    with pytest.raises(DataError, match=r"1 of 2 runs failed.*was made with other content: the data "):
        hp.sweep({**grid, "axes": {"seed": [1, 2]}}, out=tmp_path / "sweep", ray="auto")


def test_a_sweep_does_not_add_runs_on_other_data(tmp_path, data, monkeypatch):
    monkeypatch.setattr(sweep, "WorkerPool", InlinePool)
    monkeypatch.setattr(job, "load_kept", load_fresh)
    table = {**values(data / "clients.csv"), **QUICK, "runtime": {"cache_dir": str(tmp_path / "cache")}}
    grid = {"base": table, "axes": {"seed": [1]}}
    hp.sweep(grid, out=tmp_path / "sweep", jobs=1)
    picture(data / "cat1.png", 99)
    for axes in ({"seed": [1, 2]}, {"seed": [1], "features.dtype": ["float32", "float16"]}):
        with pytest.raises(DataError, match=r"1 of 2 runs failed.*was made with other content: the data "):
            hp.sweep({**grid, "axes": axes}, out=tmp_path / "sweep", jobs=1)
    picture(data / "cat1.png", 1)
    assert len(hp.sweep({**grid, "axes": {"seed": [1, 2]}}, out=tmp_path / "sweep", jobs=1)) == 2
