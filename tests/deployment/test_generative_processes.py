"""A federation on questions with a generative model as real processes: shares of secure noise, all of one patient.

Its server and one of its clients are killed in a turn; and the same config in Flower's simulation.
"""

import json
import sys
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

pytest.importorskip("flwr")
pytest.importorskip("transformers")

import hushprompt as hp
from helpers import questions, tiny_generative
from helpers.deployments import NAMES
from helpers.real_federation import RealFederation, edit
from helpers.runs import run_with
from hushprompt.deployment.config import load_client
from hushprompt.runs import records

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


def values(root):
    return {
        "seed": 3,
        "backbone": {"name": "smolvlm", "model": str(tiny_generative.write("smolvlm", root / "smolvlm"))},
        "data": {"name": "questions", "file": str(questions.write(root / "lists", NAMES))},
        "partition": {"name": "by_client"},
        "sampling": {"name": "poisson", "sampling_prob": 0.5},
        "method": {"name": "dp_fpl", "num_ctx": 4, "rank": 2},
        "privacy": {
            "epsilon": 8.0, "delta": 1e-3, "privacy_unit": "group", "group_word": "patient's questions",
            "noise_at": "shares",
        },
        "training": {"num_rounds": 2},
        "evaluation": {"max_answer_tokens": 2},
    }  # fmt: skip


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A run with noise from the seed, which a simulation can repeat, and one with secure noise and two kills."""
    root = tmp_path_factory.mktemp("questions")
    config = values(root)
    federation = RealFederation(root, config, NAMES)
    for name in NAMES:
        edit(federation.client(name), owner={"require_unit": "group"})
    told = SimpleNamespace(federation=federation, config=config)
    try:
        federation.start("server", *NAMES)
        told.seeded = federation.train(folder="seeded", round_deadline_s=300.0)
        edit(federation.server.with_name("run.toml"), privacy={"noise_source": "secure"})
        federation.set_faults(bob=[("turn", 0, "slow", 200)], ann=[("turn", 1, "slow", 200)])
        run = federation.begin(folder="secure")
        kill_in_a_turn(federation, "bob")
        federation.until(lambda: federation.has_begun("ann"))
        federation.kill("server")
        told.stopped = run.communicate()[0], run.returncode
        federation.set_faults(ann=[])
        federation.start("server")
        federation.until(lambda: {*NAMES} <= federation.online())
        told.secure = federation.train()
    finally:
        federation.stop()
    return told


def kill_in_a_turn(federation, name):
    federation.until(lambda: federation.has_begun(name))
    federation.kill(name)
    federation.set_faults(**{name: []})
    federation.start(name)


def run_store(story, folder, name):
    agreement = records.read_json(story.federation.server.parent / folder / "agreement.json")
    return story.federation.store(name) / "trial" / agreement["run"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_separate_processes_give_what_a_simulation_does(story, tmp_path):
    assert story.seeded[0] == 0, story.seeded[1]
    config = {**story.config, "references": []}
    config["privacy"] = {**config["privacy"], "noise_source": "seeded"}
    folder, _, rounds = run_with(config, tmp_path)
    for path in sorted((folder / "prompts").glob("*")):
        server = story.federation.server.parent / "seeded"
        own = None if path.name == "global.safetensors" else NAMES[int(path.stem.removeprefix("client-"))]
        found = load_file((server if own is None else run_store(story, "seeded", own)) / "prompts" / path.name)
        for key, tensor in load_file(path).items():
            assert (found[key] - tensor).abs().max() < 1e-6, (path.name, key)
    left = lines(story.federation.server.parent / "seeded" / "records.jsonl")
    assert [line["epsilon"] for line in left] == [record.epsilon for record in rounds]
    assert [(line["bytes_up"], line["bytes_down"]) for line in left] == [(r.bytes_up, r.bytes_down) for r in rounds]


def test_a_killed_client_and_server_go_on_and_nobody_is_charged_twice(story):
    assert story.stopped[1] != 0
    assert story.secure[0] == 0, story.secure[1]
    left = lines(story.federation.server.parent / "secure" / "records.jsonl")
    assert [line["took_part"] for line in left] == [[*NAMES]] * 2
    for name in NAMES:
        assert [line["round"] for line in lines(run_store(story, "secure", name) / "ledger.jsonl")] == [1, 2]
        assert not (run_store(story, "secure", name) / "run.key").exists()


def test_the_statement_is_for_patients_against_the_server_too_and_prompts_answer(story):
    (arm,) = records.read_json(story.federation.server.parent / "secure" / "privacy.json")["arms"]
    audiences = arm["audiences"]
    assert audiences["server"]["epsilon"] == audiences["public"]["epsilon"] < 8.1
    assert {(each["noise_source"], each["privacy_unit"]) for each in audiences.values()} == {("secure", "group")}
    for name in NAMES:
        backbone = load_client(story.federation.client(name)).backbone
        prompt = hp.load_prompt(run_store(story, "secure", name), backbone=backbone)
        answer = prompt.answer(story.federation.root / "lists" / f"{name}-0.png", "what is it", max_tokens=2)
        assert isinstance(answer, str)
