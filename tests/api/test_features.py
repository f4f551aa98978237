import numpy as np
import pytest

import hushprompt as hp
from helpers.runs import TOY, run_with
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError

NOISE = {"epsilon": "none", "noise_multiplier_local": 1.0, "noise_multiplier_global": 1.0, "noise_source": "seeded"}
SEEDED = {**TOY, "privacy": {**TOY["privacy"], **NOISE}, "training": {"num_rounds": 1}}


@pytest.fixture
def exported(tmp_path):
    """The toy data as features, and sections of a config that take them."""
    config = configs.parse({**TOY, "runtime": {"cache_dir": str(tmp_path / "cache")}})
    path = hp.export_features(config, out=tmp_path / "toy.npz", features={"num_views": 3})
    data = {"name": "features", "file": str(path)}
    return path, {"data": data, "backbone": {"name": "features", "text_features": str(path)}}


@pytest.mark.parametrize("method", ["zero_shot", "fedclip"])
def test_a_run_on_exported_features_gives_the_numbers_of_the_run_on_images(tmp_path, exported, method):
    values = {**SEEDED, "method": {"name": method}}
    _, (images,), _ = run_with(values, tmp_path)
    _, (features,), _ = run_with({**values, **exported[1]}, tmp_path, "again")
    for name in ("local", "neighbor", "calibration_error", "per_client", "per_class", "epsilon"):
        assert getattr(images, name) == getattr(features, name), name


def test_a_prompt_method_runs_on_them_with_a_text_tower_alone(tmp_path, exported):
    values = {**SEEDED, **exported[1]}
    config = configs.parse({**values, "runtime": {"cache_dir": str(tmp_path / "cache")}})
    with pytest.raises(ConfigError, match="DP-FPL trains or encodes prompts, and this backbone has no text tower"):
        hp.run(config, out=tmp_path / "refused", progress=False)
    assert not (tmp_path / "refused").exists()
    with_tower = {**values, "backbone": {"name": "features", "text_tower": {"name": "toy"}}}
    _, (features,), _ = run_with(with_tower, tmp_path)
    _, (images,), _ = run_with(SEEDED, tmp_path, "images")
    assert (features.local, features.neighbor) == (images.local, images.neighbor)


def test_the_file_holds_what_a_run_needs(tmp_path, exported):
    found = np.load(exported[0], allow_pickle=False)
    assert found["features"].shape == (108, 6)
    assert (found["split"] == "train").sum() == 72
    assert sorted(set(found["client"].tolist())) == ["client 0", "client 1", "client 2"]
    assert found["class_names"].tolist() == ["ant", "bee", "cat", "dog", "eel", "fox"]
    assert "domain" not in found
    by_client = {**TOY, **exported[1], "method": {"name": "zero_shot"}, "partition": {"name": "by_client"}}
    _, (arm,), _ = run_with(by_client, tmp_path)
    assert len(arm.per_client) == 3


def test_examples_that_nobody_holds_are_left_out(tmp_path):
    few = {"name": "disjoint_classes", "num_clients": 2, "num_shots": 1}
    config = configs.parse({**TOY, "partition": few, "runtime": {"cache_dir": str(tmp_path)}})
    found = np.load(hp.export_features(config, out=tmp_path / "few.npz", progress=False))
    assert (found["split"] == "train").sum() == 6
    with pytest.raises(ConfigError, match=r"written as \.npz, got few\.csv"):
        hp.export_features(config, out="few.csv")


def test_noise_on_somebodys_features_is_secure_by_default(exported):
    assert configs.parse({**TOY, **exported[1]}).privacy.noise_source == "secure"
