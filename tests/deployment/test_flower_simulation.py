"""Flower's own simulation gives what ours gives, with a method of another package: the same two apps, over Ray."""

import datetime
import json
import os
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("flwr")
pytest.importorskip("ray")

from helpers import questions, tiny_generative
from helpers.commands import command
from helpers.deployments import NAMES
from helpers.other_package import other_package
from helpers.real_federation import edit
from helpers.runs import run_with
from hushprompt.deployment.operate import layout
from hushprompt.deployment.operate.process_lifetime import descendants
from hushprompt.runs import records

ELSEWHERE = {"RAY_ADDRESS": "127.0.0.1:1"}
"""A cluster of somebody's, which is none of ours."""


@pytest.mark.slow
def test_prompts_and_epsilon_are_those_of_our_simulation(toy_values, tmp_path):
    values = {**toy_values, "references": [], "method": {"name": "smoothed", "num_ctx": 4, "rank": 2}}
    values["privacy"] = {**toy_values["privacy"], "noise_at": "shares"}
    with other_package(tmp_path / "site"):
        check_equal(values, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("data", ["classes", "questions"])
def test_a_generative_model_too_though_it_is_killed_after_a_round(toy_values, tmp_path, data):
    pytest.importorskip("transformers")
    repository = tiny_generative.write("smolvlm", tmp_path / "hub")
    values = {**toy_values, "references": [], "backbone": {"name": "smolvlm", "model": str(repository)}}
    values["runtime"] = {"num_threads": 1}  # sums in one order: the same bits
    values["privacy"] = {**toy_values["privacy"], "noise_at": "shares", "noise_source": "seeded"}
    if data == "questions":
        values["data"] = {"name": "questions", "file": str(questions.write(tmp_path / "lists", NAMES))}
        values["partition"] = {"name": "by_client"}
        values["privacy"] |= {"privacy_unit": "group"}
        values["evaluation"] = {"max_answer_tokens": 2}
    check_equal(values, tmp_path, is_killed=True)


def check_equal(values, tmp_path, *, is_killed=False):
    folder, _, rounds = run_with(values, tmp_path, "ours")
    seeded = {**values, "privacy": {**values["privacy"], "noise_source": "seeded"}}
    wanted = layout.Wanted(name="trial", clients=NAMES, address="127.0.0.1:8000", run=seeded)
    layout.write(tmp_path / "fed", wanted, datetime.datetime.now(datetime.UTC))
    server, clients = tmp_path / "fed" / "server", tmp_path / "fed" / "clients"
    for name in NAMES:
        owner = {"max_epsilon": 10.0, "max_delta": 1.0, "require_noise_source": "any", "require_noise_at": "any"}
        runtime = {"cache_dir": str(tmp_path / "cache"), **values.get("runtime", {})}
        edit(clients / name / "client.toml", owner=owner, runtime=runtime)
    if is_killed:
        kill_after_a_round(tmp_path / "fed")
    done = subprocess.run(
        command("federation", "simulate", tmp_path / "fed"),
        env={**os.environ, **ELSEWHERE}, check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("round 3 of 3: ann, bob, cyd took part", ": epsilon = ", "at delta = 0.001"):
        assert words in done.stdout
    run = records.read_json(server / "run" / "agreement.json")["run"]
    for path in sorted((folder / "prompts").glob("*")):
        is_public = path.name == "global.safetensors"
        own = NAMES[0] if is_public else NAMES[int(path.stem.removeprefix("client-"))]
        found = (server / "run" if is_public else clients / own / "store" / "trial" / run) / "prompts" / path.name
        for key, tensor in load_file(path).items():
            assert torch.allclose(load_file(found)[key], tensor, rtol=0, atol=0 if is_killed else 1e-6), (
                path.name,
                key,
            )
    lines = [json.loads(line) for line in (server / "run" / "records.jsonl").read_text().splitlines()]
    assert [line["epsilon"] for line in lines] == [record.epsilon for record in rounds]
    assert [(line["bytes_up"], line["bytes_down"]) for line in lines] == [(r.bytes_up, r.bytes_down) for r in rounds]


def kill_after_a_round(folder):
    """Begin a simulation, and end all its processes at once when its first round is on the disk."""
    done = folder / "server" / "run" / "records.jsonl"
    words, quiet = command("federation", "simulate", folder), subprocess.DEVNULL
    process = subprocess.Popen(words, env={**os.environ, **ELSEWHERE}, stdout=quiet, stderr=quiet)
    while not (done.exists() and done.read_text()):
        assert process.poll() is None, "it ended before"
        time.sleep(0.05)
    for process_id in (process.pid, *descendants(process.pid)):
        os.kill(process_id, signal.SIGKILL)
    process.wait()
    assert len(done.read_text().splitlines()) < 3
