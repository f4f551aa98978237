"""docs/federation.md followed literally by three sites and an operator, each in a folder and processes of its own."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("flwr")

import hushprompt as hp
from helpers.commands import command
from helpers.real_federation import free_port

PAGE = Path(__file__).parents[2] / "docs" / "federation.md"
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
    (section,) = re.findall(r"## Three clients with their own images\n(.*?)\n## ", PAGE.read_text(), re.DOTALL)
    ((classes,), lines) = (re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("text", "bash"))
    init, key, fingerprint, server, client, run = (line.strip() for line in lines)
    root, clinics = machines.root, machines.root / "operator" / "clinics"
    (root / "operator" / "classes.txt").write_text(classes)
    machines.call(init, at="operator")
    for name in SITES:
        shutil.copytree(clinics / "clients" / name, root / name, dirs_exist_ok=True)
        machines.call(key, at=name)
    for name in SITES:
        for other in {*SITES} - {name}:
            shutil.copy(root / name / "node.key.pub", root / other / "peers" / f"{name}.pub")
        shutil.copy(
            root / name / "node.key.pub", root / "operator" / "clinics" / "server" / "node_keys" / f"{name}.pub"
        )
        draw(root / name / "images", classes.split(), seed=len(name))
    assert len({machines.call(fingerprint, at=name) for name in SITES}) == 1
    machines.start(server, at="operator/clinics")
    for name in SITES:
        machines.start(client, at=name)
    machines.call(run, at="operator/clinics")
    statement = json.loads((clinics / "server" / "run" / "privacy.json").read_text())
    audiences = statement["arms"][-1]["audiences"]
    assert audiences["server"]["epsilon"] == audiences["public"]["epsilon"] < float("inf")
    assert audiences["server"]["noise_source"] == "secure"
    for name in SITES:
        (prompts,) = (root / name / "store" / "clinics").glob("*/prompts")
        assert sorted(prompts.glob("*.safetensors")), prompts
        assert (
            hp.load_prompt(root / name / "store").predict(root / name / "images" / "cat" / "0.png").label
            in classes.split()
        )
