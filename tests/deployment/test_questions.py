"""A federation of separate ends on questions and answers: numbers are a simulation's, and classes are nobody's."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("transformers")

from helpers import tiny_generative
from helpers.deployments import NAMES, Deployment, assert_gives_the_contexts_of_a_simulation
from helpers.runs import TOY
from hushprompt.config import parse as configs
from hushprompt.deployment.agreement import Agreement, make_offer, version
from hushprompt.deployment.client_node import CANNOT
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.examples import open_examples
from hushprompt.errors import ConfigError, ProtocolError, UnfitError


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    repository = tiny_generative.write("smolvlm", tmp_path_factory.mktemp("hub") / "smolvlm")
    folder, rng = tmp_path_factory.mktemp("list"), np.random.default_rng(0)
    lines = []
    for at in range(18):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{at}.png")
        lines.append(
            {
                "image": f"{at}.png",
                "question": "is it " * (at % 3 + 1),
                "answers": [["ox", "the dog"][at % 2]],
                "group": str(at // 2),
            }
        )
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "seed": 3,
        "backbone": {"name": "smolvlm", "model": str(repository)},
        "data": {"name": "questions", "file": str(folder / "list.jsonl")},
        "partition": {"name": "iid", "num_clients": 3},
        "sampling": {"name": "poisson", "sampling_prob": 0.5},
        "method": {"name": "dp_fpl", "num_ctx": 4, "rank": 2},
        "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_source": "seeded"},
        "training": {"num_rounds": 1},
        "evaluation": {"max_answer_tokens": 2, "metrics_epsilon": 1.0, "metrics_delta": 1e-3},
    }


def deployment(values, tmp_path, **owner):
    deployed = Deployment(values, tmp_path, owner={"max_metrics_epsilon": 2.0, **owner})
    run = configs.parse(values)
    for name in NAMES:
        deployed.restart(name, backbone=run.backbone, data=run.data)
    return deployed


def test_it_gives_the_numbers_of_a_simulation(tmp_path, values):
    deployed = deployment(values, tmp_path)
    assert_gives_the_contexts_of_a_simulation(deployed, values, tmp_path)
    arms = json.loads((deployed.root / "server" / "summary.json").read_text())["arms"]
    assert [(arm["method"], arm["is_open"], len(arm["per_client"])) for arm in arms] == [
        ("zero_shot", True, 3), ("dp_fpl", True, 3),
    ]  # fmt: skip


def test_an_owners_limits_and_the_statement_are_those_of_every_method(tmp_path, values):
    """Shares of secure noise for all questions of a patient; a plan that is less is refused."""
    config = {key: value for key, value in values.items() if key != "evaluation"}
    config |= {"evaluation": {"max_answer_tokens": 2}, "privacy": {**values["privacy"], "noise_at": "shares"}}
    wanted = {"require_unit": "group", "require_noise_at": "shares", "require_noise_source": "secure"}
    refused = deployment(config, tmp_path / "example", **wanted)
    with pytest.raises(ProtocolError, match="0 clients accept the plan"):
        refused.serve()
    for words in ("what is protected is one example", "noise would come from a seed"):
        assert all(words in reason for reason in refused.reasons())
    config["privacy"] |= {"privacy_unit": "group", "group_word": "patient's questions", "noise_source": "secure"}
    deployed = deployment(config, tmp_path, **wanted)
    deployed.serve()
    assert deployed.reasons() == []
    (arm,) = json.loads((deployed.folder("server") / "privacy.json").read_text())["arms"]
    audiences = arm["audiences"]
    assert {each["privacy_unit"] for each in audiences.values()} == {"group"}
    assert "all of one patient's questions" in audiences["server"]["statement"]
    assert {each["noise_source"] for each in audiences.values()} == {"secure"}
    assert audiences["server"]["epsilon"] == audiences["public"]["epsilon"] <= audiences["personal"]["epsilon"] < 8


def test_classes_and_questions_do_not_mix(tmp_path, values):
    deployed = deployment(values, tmp_path)
    deployed.restart(NAMES[0], backbone=configs.parse(values).backbone, data=configs.parse(TOY).data)
    with pytest.raises(ProtocolError, match="2 of 3 clients joined"):
        deployed.serve()
    assert any("data have classes and the federation's questions" in reason for reason in deployed.reasons())
    with pytest.raises(ConfigError, match="Questions have no classes"):
        deployed.serve(classes=("cat", "dog"))
    with pytest.raises(UnfitError, match="Use a generative model"):
        Deployment({**values, "backbone": {"name": "toy"}}, tmp_path / "toy").serve()


def told(values, folder, text, **method):
    """What a client whose first question ends so answers to a plan, and what its owner can read."""
    path = Path(values["data"]["file"])
    first, *others = path.read_text().splitlines()
    changed = path.with_name(f"{folder.name}.jsonl")
    changed.write_text("\n".join([json.dumps({**json.loads(first), "question": f"is it {text}"}), *others]))
    values = {**values, "method": {**values["method"], **method}}
    deployed = deployment(values, folder)
    run = deployed.config.run
    site = deployed.site("ann", backbone=run.backbone, data=dataclasses.replace(run.data, file=str(changed)))
    offer = make_offer("trial", "run-1", run, (), run.backbone.load().fingerprint)
    plan = Agreement(**offer.to_json(), clients=NAMES, sizes=(open_examples(site.config, offer).size,) * 3)
    answer = site.answer(Envelope("plan", {**version(), "agreement": plan.to_json()}))
    return answer.meta["reason"], json.loads((site.store / "refusals.jsonl").read_text())["reason"]


def test_how_long_own_questions_are_and_what_they_spell_is_for_their_owner_alone(tmp_path, values):
    for num_ctx in (2, 90):  # with 2 it would fit; what a plan asks for decides nothing
        told_server, told_owner = told(values, tmp_path / f"long-{num_ctx}", "it " * 220, num_ctx=num_ctx)
        assert told_server == CANNOT
        assert "An example needs " in told_owner
    told_server, told_owner = told(values, tmp_path / "special", "<end_of_utterance>")
    assert (told_server, "'<end_of_utterance>'" in told_owner) == (CANNOT, True)
    told_server, _ = told(values, tmp_path / "plan", "it", num_ctx=127)
    assert told_server.startswith("The plan has num_ctx = 127 and evaluation.max_answer_tokens = 2, together more than")
