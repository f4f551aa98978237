"""docs/federation.md followed literally by three sites and an operator, each in a folder and processes of its own."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("flwr")

import hushprompt as hp
from helpers import questions, tiny_generative
from helpers.commands import command
from helpers.real_federation import edit, free_port

PAGE, MLLM = (Path(__file__).parents[2] / "docs" / name for name in ("federation.md", "mllm.md"))
SITES = ("north", "south", "west")
ELSEWHERE = "server.example.org:8000"
"""Where the guide has its server."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


class Machines:
    """A folder for each site and one for the operator, and what was started in them."""

    def __init__(self, root):
        self.root, self.address, self.started = root, f"127.0.0.1:{free_port()}", []
        self.environment = {**os.environ, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}

    def call(self, line, *, at):
        """What a line of the guide says on a machine, run to its end."""
        words = [self.address if word == ELSEWHERE else word for word in shlex.split(line)[1:]]
        done = subprocess.run(
            command(*words), cwd=self.root / at, env=self.environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, line, *, at):
        """Start a line of the guide that goes on."""
        with (self.root / f"{at}.log").open("w") as log:
            self.started.append(
                subprocess.Popen(
                    command(*shlex.split(line)[1:]), cwd=self.root / at, env=self.environment, stdout=log, stderr=log
                )
            )

    def wait_for(self, words, *, at):
        """Wait until what was started on a machine has said so."""
        end = time.monotonic() + 300
        while words not in (self.root / f"{at}.log").read_text():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.5)

    def stop(self):
        for process in self.started:
            process.send_signal(signal.SIGTERM)
        for process in self.started:
            process.wait()


def draw(folder, names, seed):
    """Twelve images of each class for a site: noise of a color."""
    rng = np.random.default_rng(seed)
    for at, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 120, (24, 24, 3), dtype=np.uint8)
            pixels[:, :, at % 3] += 120
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture
def machines(tmp_path):
    found = Machines(tmp_path)
    for name in ("operator", *SITES):
        (tmp_path / name).mkdir()
    try:
        yield found
    finally:
        found.stop()


def test_three_sites_get_personal_prompts_under_shares(machines):
    """From nothing: what the page has between its two headlines, line by line."""
    ((classes,), (init, *lines)) = guide()
    (machines.root / "operator" / "classes.txt").write_text(classes)
    machines.call(init, at="operator")
    for name in SITES:
        draw(machines.root / name / "images", classes.split(), seed=len(name))
    audiences = follow(machines, lines)
    assert audiences["server"]["epsilon"] == audiences["public"]["epsilon"] < float("inf")
    assert audiences["server"]["noise_source"] == "secure"
    for name in SITES:
        found = hp.load_prompt(machines.root / name / "store")
        assert found.predict(machines.root / name / "images" / "cat" / "0.png").label in classes.split()


def test_three_hospitals_with_questions_of_their_own_do_as_well(machines):
    """The same with what docs/mllm.md has of it, on a tiny model whose folder each site has somewhere else."""
    pytest.importorskip("transformers")
    (section,) = re.findall(r"## Federations of separate machines\n(.*?)\n## ", MLLM.read_text(), re.DOTALL)
    ((config,), (init,)) = (re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("toml", "bash"))
    root = machines.root
    models = {name: tiny_generative.write("smolvlm", root / name / "model") for name in ("operator", *SITES)}
    assert config.count("/models/smolvlm") == 1
    (root / "operator" / "questions.toml").write_text(config.replace("/models/smolvlm", str(models["operator"])))
    machines.call(init, at="operator")
    for name in SITES:
        questions.write(root / name, [name]).rename(root / name / "questions.jsonl")

    def of_the_site(name):
        edit(root / name / "client.toml", backbone={"model": str(models[name])})

    audiences = follow(machines, guide()[1][1:], of_the_site)
    assert audiences["server"]["epsilon"] == audiences["public"]["epsilon"] < float("inf")
    assert {(each["privacy_unit"], each["noise_source"]) for each in audiences.values()} == {("group", "secure")}
    (predict,) = re.findall(r"hushprompt predict .*", section)
    for name in SITES:
        assert f"{name}-0.png  Which side?" in machines.call(predict.replace("scan.png", f"{name}-0.png"), at=name)


def guide():
    """Return the file of classes and the commands that the page has between its two headlines."""
    (section,) = re.findall(r"## Three clients with their own images\n(.*?)\n## ", PAGE.read_text(), re.DOTALL)
    files, lines = (re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("text", "bash"))
    return files, [line.strip() for line in lines]


def follow(machines, lines, at_a_site=lambda name: None):
    """Do what the page says once the folders are there, and return what the server's statement says of the run."""
    key, fingerprint, server, client, run = lines
    root, clinics = machines.root, machines.root / "operator" / "clinics"
    for name in SITES:
        shutil.copytree(clinics / "clients" / name, root / name, dirs_exist_ok=True)
        at_a_site(name)
        machines.call(key, at=name)
    for name in SITES:
        for other in {*SITES} - {name}:
            shutil.copy(root / name / "node.key.pub", root / other / "peers" / f"{name}.pub")
        shutil.copy(
            root / name / "node.key.pub", root / "operator" / "clinics" / "server" / "node_keys" / f"{name}.pub"
        )
    assert len({machines.call(fingerprint, at=name) for name in SITES}) == 1
    machines.start(server, at="operator/clinics")
    for name in SITES:
        machines.start(client, at=name)
    machines.wait_for("May connect", at="operator/clinics")
    machines.call(run, at="operator/clinics")
    statement = json.loads((clinics / "server" / "run" / "privacy.json").read_text())
    for name in SITES:
        (prompts,) = (root / name / "store" / "clinics").glob("*/prompts")
        assert sorted(prompts.glob("*.safetensors")), prompts
    return statement["arms"][-1]["audiences"]
