"""Flower's own simulation gives what ours gives: the same two apps, with Ray between them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
import torch
from safetensors.torch import load_file

pytest.importorskip("flwr")

from deployments import NAMES
from hushprompt import records
from runs import run_with

SCRIPT = Path(__file__).parent.parent / "flower_simulation.py"


@pytest.mark.slow
def test_prompts_and_epsilon_are_those_of_our_simulation(toy_values, tmp_path):
    values = {**toy_values, "references": []}
    folder, _, rounds = run_with(values, tmp_path, "ours")
    (tmp_path / "run.toml").write_text(tomli_w.dumps(values))
    section = {"name": "trial", "run": "run.toml", "folder": "server", "clients": NAMES, "round_deadline_s": 500.0}
    (tmp_path / "server.toml").write_text(tomli_w.dumps({"federation": section}))
    for index, name in enumerate(NAMES):
        client = {
            "client": {"name": name, "store": name},
            "owner": {"max_epsilon": 10.0, "max_delta": 1.0},
            "share": {"client": index},
            "runtime": {"cache_dir": str(tmp_path / "cache")},
        }
        (tmp_path / f"{name}.toml").write_text(tomli_w.dumps(client))
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "server.toml", *(tmp_path / f"{name}.toml" for name in NAMES)],
        env=os.environ, check=False, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = records.read_json(tmp_path / "server" / "agreement.json")["run"]
    for path in sorted((folder / "prompts").glob("*")):
        is_public = path.name == "global.safetensors"
        own = NAMES[0] if is_public else NAMES[int(path.stem.removeprefix("client-"))]
        found = tmp_path / ("server" if is_public else f"{own}/trial/{run}") / "prompts" / path.name
        for key, tensor in load_file(path).items():
            assert torch.allclose(load_file(found)[key], tensor, atol=1e-6), (path.name, key)
    lines = [json.loads(line) for line in (tmp_path / "server" / "records.jsonl").read_text().splitlines()]
    assert [line["epsilon"] for line in lines] == [record.epsilon for record in rounds]
    assert [(line["bytes_up"], line["bytes_down"]) for line in lines] == [(r.bytes_up, r.bytes_down) for r in rounds]
