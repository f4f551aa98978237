"""The public metric: what it is, when it is refused, and its file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hushprompt import files
from hushprompt.errors import DataError
from hushprompt.statistics.metric import choose_rank, make_metrics, read_metrics
from tests.helpers.class_worlds import class_world


@pytest.fixture(scope="module")
def world():
    return class_world()


def test_coordinates_are_inverse_to_each_other_and_centered_on_public_classes(world):
    metric = world.metric
    torch.testing.assert_close(metric.directions.T @ metric.inverse, torch.eye(metric.rank).double())
    coordinates = torch.randn(3, metric.rank, dtype=torch.float64)
    torch.testing.assert_close(metric.lift(coordinates) @ metric.directions, coordinates)
    assert metric.unused.norm() == pytest.approx(1)


def test_whitening_makes_spread_within_classes_nearly_one_and_even(world):
    assert world.metric.within.max() < 1
    assert world.metric.within.std() < 0.2


def test_ranks_are_at_most_half_the_width(world):
    assert list(world.metrics.of_rank) == [12]
    assert world.metrics.at(256) is world.metrics.at(128)
    wide = torch.nn.functional.normalize(torch.randn(220, 300, generator=torch.Generator().manual_seed(0)), dim=1)
    metrics = make_metrics(wide, torch.arange(110).repeat(2), "noise", "f")
    assert list(metrics.of_rank) == [128, 150]
    assert (metrics.at(128).rank, metrics.at(256).rank) == (128, 150)


@pytest.mark.parametrize(
    ("images", "noise", "holders", "rank"), [(35, 1.0, 1, 256), (35, 1.2, 1, 128), (35, 0.5, 9, 128), (4, 0.0, 1, 256)]
)
def test_the_rank_follows_from_public_quantities(images, noise, holders, rank):
    assert choose_rank(images, noise, holders) == rank


def test_one_image_a_class_or_too_few_classes_are_refused():
    features = torch.nn.functional.normalize(torch.randn(700, 8), dim=1)
    with pytest.raises(DataError, match="0 of 700 have them"):
        make_metrics(features, torch.arange(700), "x", "f")
    with pytest.raises(DataError, match="99 of 99 have them"):
        make_metrics(features[:198], torch.arange(99).repeat(2), "x", "f")
    features[3] = torch.nan
    with pytest.raises(DataError, match="not a finite number"):
        make_metrics(features[:300], torch.arange(100).repeat(3), "x", "f")


def test_classes_of_one_image_are_left_out(world):
    features, labels = torch.randn(202, 6).double(), torch.cat([torch.arange(100).repeat(2), torch.tensor([100, 101])])
    metrics = make_metrics(features, labels, "x", "f")
    assert (metrics.origin.num_classes, metrics.origin.num_images) == (100, 200)
    alone = make_metrics(features[:200], labels[:200], "x", "f")
    assert torch.equal(metrics.at(128).directions, alone.at(128).directions)


def test_labels_may_be_any_numbers_and_texts_are_matched_by_them():
    generator = torch.Generator().manual_seed(1)
    features, labels = torch.randn(300, 6, generator=generator).double(), torch.arange(100).repeat(3)
    texts = {label: torch.randn(6, generator=generator).double() for label in range(0, 100, 3)}
    plain = make_metrics(features, labels, "x", "f", texts).at(128)
    shifted = make_metrics(features, labels * 7 + 5, "x", "f", {7 * k + 5: text for k, text in texts.items()}).at(128)
    assert plain.kappa == shifted.kappa
    assert make_metrics(features, labels, "x", "f").at(128).kappa is None


def test_a_file_gives_the_same_metric_back(world, tmp_path):
    path = tmp_path / "metric.safetensors"
    world.metrics.write(path)
    back = read_metrics(path, "f" * 64)
    assert back.origin == world.metrics.origin
    for name, value in vars(world.metric).items():
        other = vars(back.at(128))[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def test_a_file_of_another_backbone_is_refused(world, tmp_path):
    path = tmp_path / "metric.safetensors"
    world.metrics.write(path)
    with pytest.raises(DataError, match="another backbone"):
        read_metrics(path, "0" * 64)


def _damage(path, tensors, metadata, case):
    if case == "garbage":
        path.write_bytes(b"no file")
        return
    if case == "not finite":
        tensors["12.mean"][0] = torch.nan
    elif case == "wrong shape":
        tensors["12.within"] = tensors["12.within"][:-1].contiguous()
    elif case == "missing":
        del tensors["12.inverse"]
    elif case == "no header":
        save_file(tensors, path)
        return
    elif case == "other format":
        metadata["format"] = "hushprompt prompt 1"
    elif case == "zero clip":
        metadata["ranks"]["12"]["clip_mean"] = 0.0
    elif case == "no rank":
        metadata["ranks"] = {}
    elif case == "kappa a word":
        metadata["ranks"]["12"]["kappa"] = "large"
    files.write_tensors(path, tensors, json.dumps(metadata))


@pytest.mark.parametrize(
    "case",
    ["garbage", "not finite", "wrong shape", "missing", "no header", "other format", "zero clip", "no rank",
     "kappa a word"],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_a_sentence(world, tmp_path, case):
    path = tmp_path / "metric.safetensors"
    world.metrics.write(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["hushprompt"])
    _damage(path, load_file(path), metadata, case)
    with pytest.raises(DataError, match=r"is no metric file .*hushprompt features metric"):
        read_metrics(path, "f" * 64)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no metric file"):
        read_metrics(tmp_path / "nothing", "f")
