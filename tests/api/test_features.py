import numpy as np
import pytest
import torch
from PIL import Image

import hushprompt as hp
from helpers.runs import TOY, run_with
from hushprompt.api import features
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError, DataError
from hushprompt.federation.setup import load_model
from hushprompt.models.features import FeaturesBackbone
from hushprompt.models.toy import Toy as ToyModel
from hushprompt.statistics import metric
from hushprompt.statistics.metric import cached_path, metrics_of, read_metrics

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


@pytest.fixture
def few_classes(monkeypatch, tmp_path):
    """Six classes are enough, and the cache is the test's own."""
    monkeypatch.setattr(metric, "LEAST_CLASSES", 6)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return {"backbone": "toy", "data": TOY["data"], "runtime": {"cache_dir": str(tmp_path / "cache")}}


def test_a_metric_lies_where_a_run_finds_it_and_has_texts(few_classes):
    path = hp.make_metric(**few_classes)
    model = ToyModel().load()
    found = metrics_of(model)
    assert path == cached_path(model.fingerprint)
    assert (found.origin.num_classes, found.origin.num_images) == (6, 108)
    assert found.at(128).kappa is not None
    with pytest.raises(ConfigError, match=r"from images or from a file .* give one of them"):
        hp.make_metric("toy", features_file="toy.npz")


def test_a_metric_of_exported_features_is_that_of_the_images(few_classes, exported, tmp_path):
    of_images = read_metrics(hp.make_metric(**few_classes), ToyModel().load().fingerprint)
    runtime = {"runtime": few_classes["runtime"]}
    own = hp.make_metric(features_file=exported[0], **runtime)
    tower = hp.make_metric(features_file=exported[0], out=tmp_path / "tower.safetensors", backbone="toy", **runtime)
    assert own == cached_path(ToyModel().load().fingerprint)
    for path in (own, tower):
        found = read_metrics(path, ToyModel().load().fingerprint)
        for name, value in vars(of_images.at(128)).items():
            torch.testing.assert_close(getattr(found.at(128), name), value, msg=f"{path}: {name}")


def test_too_few_public_classes_are_refused_before_an_image_is_encoded(few_classes, monkeypatch):
    monkeypatch.setattr(metric, "LEAST_CLASSES", 7)
    monkeypatch.setattr(features, "image_features", lambda *_: pytest.fail("images were encoded"))
    with pytest.raises(DataError, match="A metric needs 7 classes with two images or more each, and 6 of 6 have them"):
        hp.make_metric(**few_classes)


def test_images_are_a_folder_or_a_data_set(few_classes, tmp_path):
    rng = np.random.default_rng(0)
    for index in range(6):
        (tmp_path / "public" / f"class {index}").mkdir(parents=True)
        for each in range(5):
            image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
            image.save(tmp_path / "public" / f"class {index}" / f"{each}.png")
    del few_classes["data"]
    path = hp.make_metric(tmp_path / "public", out=tmp_path / "of folder.safetensors", **few_classes)
    assert read_metrics(path, ToyModel().load().fingerprint).origin.origin == "30 examples of public"
    with pytest.raises(ConfigError, match="toi is neither a folder nor a data set"):
        hp.make_metric("toi", **few_classes)
    path = hp.make_metric("toy", data={"num_train": 60}, **few_classes)
    assert "examples of toy" in metrics_of(ToyModel().load()).origin.origin


def test_features_of_an_unnamed_model_give_a_metric_without_texts_in_a_named_file_alone(
    few_classes, exported, tmp_path
):
    found = dict(np.load(exported[0]))
    unnamed, named = tmp_path / "unnamed.npz", tmp_path / "named.npz"
    np.savez(unnamed, **{name: found[name] for name in ("features", "labels", "class_names", "split")})
    np.savez(named, **{name: found[name] for name in ("features", "labels", "class_names", "split", "fingerprint")})
    with pytest.raises(ConfigError, match=r"unnamed.* does not say which model made its features"):
        hp.make_metric(features_file=unnamed)
    with pytest.raises(ConfigError, match="does not say which model"):
        hp.make_metric(
            features_file=unnamed, backbone={"name": "features", "text_features": str(texts(found, tmp_path))}
        )
    own = FeaturesBackbone(feature_dim=6).load()
    assert (
        metrics_of(own, str(hp.make_metric(features_file=unnamed, out=tmp_path / "m.safetensors"))).at(128).kappa
        is None
    )
    hp.make_metric(features_file=named)
    data = {"name": "features", "file": str(named)}
    config = configs.parse({**TOY, "data": data, "backbone": {"name": "features", "feature_dim": 6}})
    config = configs.resolve(config, {"method": "class_statistics", "references": []})
    assert metrics_of(load_model(config, config.data.load(), []).backbone).at(128).kappa is None


def texts(found, tmp_path):
    """A file of text features that names no model."""
    path = tmp_path / "texts.npz"
    np.savez(path, **{name: found[name] for name in ("text_features", "class_names")})
    return path


def test_the_package_s_own_metric_is_not_hidden_by_one_that_nothing_would_read():
    with pytest.raises(ConfigError, match="The package has a metric for this model"):
        hp.make_metric()


def test_the_command_says_what_it_made(few_classes, exported, tmp_path, hush):
    out = tmp_path / "made.safetensors"
    done = hush("features", "metric", "--features", exported[0], "-o", out)
    assert f"{out} has the metric of the backbone" in done.out
    assert "with texts: rank up to 3, from 108 examples of 6 classes" in done.out
    assert f"method.metric={out}" in done.out
