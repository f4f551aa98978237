"""A sweep on two nodes that share no working or cache folder."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from helpers import layouts
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError
from hushprompt.federation import simulate
from hushprompt.jobs import sweep, sweep_file
from hushprompt.jobs.job import RunTeller
from hushprompt.jobs.ray_cluster import pack, refuse_difference, unpack
from hushprompt.jobs.sweep import QuietObserver
from hushprompt.jobs.sweep_folder import RunState


def test_a_folder_comes_back_as_it_was_in_the_place_of_what_is_there(tmp_path):
    (tmp_path / "run" / "prompts").mkdir(parents=True)
    (tmp_path / "run" / "prompts" / "global").write_bytes(b"\0\1")
    (tmp_path / "run" / "config.toml").write_text("seed = 1")
    packed = pack(tmp_path / "run")
    assert pack(tmp_path / "nothing") == b""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").touch()
    for name in ("new", "there"):
        unpack(packed, tmp_path / name)
        assert sorted(path.name for path in (tmp_path / name).rglob("*")) == ["config.toml", "global", "prompts"]
        assert (tmp_path / name / "prompts" / "global").read_bytes() == b"\0\1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "run", "there"]


def test_a_difference_names_both_nodes_and_what_differs():
    refuse_difference("a", {"torch": "2.6", "other": "1"}, "b", {"torch": "2.6"})
    with pytest.raises(ConfigError, match=r"differ: torch is 2\.7 on node a, but 2\.6 on node b"):
        refuse_difference("node a", {"torch": "2.7"}, "node b", {"torch": "2.6"})


def test_without_ray_the_hint_says_what_to_install(monkeypatch, toy_sweep, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"needs the package ray. Get it with: pip install .*\[ray\]"):
        sweep.sweep(toy_sweep(), out=tmp_path / "runs", ray="auto")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes, each with a working folder that holds the images, and with a cache; yields the nodes' folders."""
    ray = pytest.importorskip("ray")
    root = tmp_path_factory.mktemp("cluster")
    for name in ("first", "second"):
        layouts.images(root / name / "images" / "train", ["ant", "bee", "cat"], 8)
        layouts.images(root / name / "images" / "test", ["ant", "bee", "cat"], 4, start=100)
    command = [
        sys.executable,
        str(Path(layouts.__file__).with_name("ray_nodes.py")),
        str(root / "first"),
        str(root / "second"),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout.readline, "")
        address = next(line.strip() for line in lines if re.fullmatch(r"[\d.]+:\d+", line.strip()))
        with warnings.catch_warnings(action="ignore"):  # Ray tells of its plans by warnings
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        yield root
        ray.shutdown()
        process.stdin.close()


@pytest.fixture
def values(toy_values):
    """A sweep of three runs on the nodes' images."""
    data = {"name": "folder", "root": "images"}
    privacy = {**toy_values["privacy"], "noise_source": "seeded"}  # so that numbers can be compared
    base = {**toy_values, "data": data, "privacy": privacy, "references": [], "training": {"num_rounds": 6}}
    return {"base": base, "axes": {"seed": [1, 2, 3]}}


class Killing(QuietObserver):
    """Kills the first worker that it hears of, and notes who works on what."""

    def __init__(self):
        self.workers, self.encoded = {}, set()

    def on_encoding(self, what, done, total):
        self.encoded.add(what)

    def on_progress(self, run, worker, done, total):
        if not self.workers:
            os.kill(int(worker.split()[-1]), signal.SIGKILL)
        self.workers.setdefault(run.planned.config.seed, []).append(worker)


def results(folder):
    """What a run says, without the clock."""
    lines = [*(folder / "records.jsonl").read_text().splitlines(), (folder / "summary.json").read_text()]
    return [json.loads(line, object_hook=lambda v: {k: e for k, e in v.items() if k != "seconds"}) for line in lines]


@pytest.mark.slow
def test_runs_come_back_from_nodes_also_if_a_worker_is_killed_and_nothing_is_made_twice(
    cluster, values, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    watching = Killing()
    runs = sweep.sweep(values, out="runs", ray="auto", observer=watching)
    assert [(run.state, run.error) for run in runs] == [(RunState.DONE, None)] * 3
    killed = next(iter(watching.workers.values()))
    assert len(set(killed)) == 2, "another worker made the run whose worker was killed"
    nodes = {worker.split(",")[0] for workers in watching.workers.values() for worker in workers}
    assert len(nodes) == 2, "both nodes made runs"
    assert {what.split(",")[0] for what in watching.encoded} == {"encoding images train", "encoding images test"}
    for name in ("first", "second"):
        assert list((cluster / name / "cache" / "hushprompt" / "features").iterdir()), "each node has its own features"
        assert not list((cluster / name / "cache" / "hushprompt" / "runs").glob("*")), "no run stays on a node"

    monkeypatch.chdir(cluster / "first")
    config = sweep_file.expand(sweep_file.load(values))[0].config
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.toml").write_text(config.to_toml())
    simulate.run(config, tmp_path / "alone", RunTeller(lambda *what: None))
    monkeypatch.chdir(tmp_path)
    assert results(tmp_path / "alone") == results(runs[0].folder)
    assert configs.load(runs[0].folder / "config.toml").identity() == config.identity()

    shutil.rmtree(runs[1].folder)
    again = Killing()
    again.workers = {"nobody is killed": []}
    assert {run.state for run in sweep.sweep(values, out="runs", ray="auto", observer=again)} == {RunState.DONE}
    assert set(again.workers) == {"nobody is killed", 2}


@pytest.mark.slow
def test_a_node_that_sees_other_images_is_refused(cluster, values, tmp_path):
    layouts.image(cluster / "second" / "images" / "train" / "ant" / "image_0001.jpg", 77)
    with pytest.raises(ConfigError, match=r"The nodes .* differ: the data set folder is \w+ on .*, but \w+ on "):
        sweep.sweep(values, out=tmp_path / "runs", ray="auto")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["sweep.json"]
    (cluster / "second" / "images" / "train" / "ant" / "image_0001.jpg").unlink()


def test_no_cluster_is_told(monkeypatch, values, tmp_path):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def nobody(**others):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", nobody)
    with pytest.raises(ConfigError, match="No Ray cluster answers at 'auto': nobody there"):
        sweep.sweep(values, out=tmp_path / "runs", ray="auto")
