import logging

from helpers.deployments import NAMES, Deployment
from helpers.layouts import image
from hushprompt.data.readers.folder import Folder
from hushprompt.runs import records


def test_a_client_is_told_once_of_copies_in_its_own_data(toy_values, tmp_path, caplog):
    places = [f"{split}/{name}" for split in ("train", "test") for name in ("ant", "bee", "cat")]
    for number, place in enumerate(places):
        for index in range(4):
            image(tmp_path / "data" / place / f"{index}.png", 10 * number + index)
    image(tmp_path / "data" / "train" / "bee" / "again.png", 11)
    values = {
        **toy_values,
        "data": {"name": "folder", "root": str(tmp_path / "data")},
        "privacy": {"epsilon": 2.0, "delta": 1e-3},
    }
    with caplog.at_level(logging.WARNING):
        deployment = Deployment(values, tmp_path)
        for name in NAMES:
            deployment.restart(name, data=Folder(root=str(tmp_path / "data")))
        deployment.serve()
    (line,) = [record.getMessage() for record in caplog.records if "Data set" in record.getMessage()]
    assert "again.png" in line
    assert "stands 2 times in one client's training set" in line
    assert "not 2, at delta = 0.001" in line


def test_patients_are_protected_from_a_server_that_nobody_trusts_and_a_client_without_names_stays_out(
    toy_values, tmp_path, caplog
):
    """Ann and dan name whose images are whose in their paths, bob declares copies a group, cyd's data say nothing."""
    names = (*NAMES, "dan")
    for name in names:
        for split in ("train", "test"):
            for number, place in enumerate(("ant", "bee")):
                for index in range(6):
                    path = tmp_path / name / split / place / f"{split}-{index // 3}_{index}.png"
                    image(path, 40 * (split == "test") + 10 * number + index)
        image(tmp_path / name / "train" / "bee" / "train-9_9.png", 10)
    values = {
        **toy_values,
        "references": [],
        "method": {"name": "promptfl", "num_ctx": 4},
        "data": {"name": "folder", "root": str(tmp_path / "ann")},
        "sampling": {"name": "disjoint", "steps_per_round": 1},
        "privacy": {
            "epsilon": 2.0, "delta": 1e-3, "privacy_unit": "group", "group_word": "patient", "noise_at": "shares",
            "noise_source": "secure",
        },
        "evaluation": {"metrics_epsilon": 100.0, "metrics_delta": 1e-3},
    }  # fmt: skip
    owner = {"max_metrics_epsilon": 100.0, "require_noise_at": "shares", "require_unit": "group"}
    deployment = Deployment(values, tmp_path, names=names, min_clients=3, owner=owner)
    in_paths = {"group_pattern": r"(\w+-\d)_"}
    for name, way in {"ann": in_paths, "bob": {"duplicates": "group"}, "cyd": {}, "dan": in_paths}.items():
        own = Folder(root=str(tmp_path / name), classes=("ant", "bee"), **way)
        deployment.restart(name, share=None, data=own)
    with caplog.at_level(logging.WARNING):
        deployment.serve()
    agreement = records.read_json(deployment.folder("server") / "agreement.json")
    assert dict(zip(agreement["clients"], agreement["sizes"], strict=True)) == {"ann": 3, "bob": 12, "dan": 3}
    (reason,) = deployment.reasons()
    assert reason == "The plan protects groups, and this client's data do not say which examples belong together."
    assert "data.group_pattern" in caplog.text, "what to do is told to its owner"
    for name in ("server", "ann", "bob", "dan"):
        held = records.read_json(deployment.folder(name) / "privacy.json")["arms"][0]["audiences"]
        assert held["server"]["epsilon"] == held["public"]["epsilon"] <= 2.0
        assert held["server"]["noise_source"] == "secure"
        assert "one patient's examples more or less" in held["server"]["statement"]
        assert "at one client (a patient at two clients counts twice)" in held["server"]["statement"]
        assert (deployment.folder(name) / "prompts").exists()
    told = records.read_json(deployment.folder("server") / "summary.json")["arms"][-1]["per_client"]
    (counts,) = deployment.lines("ann", "metrics.jsonl")
    assert told[0]["local"] == min(max(counts["local"][1] / 2, 0), 1), "of two groups, not of twelve images"
