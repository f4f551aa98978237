import dataclasses
import importlib.metadata
import io
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import hushprompt
from helpers import layouts
from hushprompt.data.base import Split
from hushprompt.data.readers.folder import Folder
from hushprompt.data.sets.toy import ToyData
from hushprompt.errors import ConfigError, DataError
from hushprompt.features import store
from hushprompt.features.cache import FeaturesConfig, cached, feature_key, folder_of, image_features, random_view
from hushprompt.features.store import HEADER_SIZE, FeatureFolder
from hushprompt.models.toy import Toy, ToyModel
from hushprompt.seeding import stream

CONFIG = FeaturesConfig(batch_size=10)
VIEWS = FeaturesConfig(batch_size=10, num_views=3)
CHUNK_BYTES = 10 * 6 * 4
"""Of the toy model with CONFIG."""


class Watched(ToyModel):
    """A toy model without patches that notes what it encodes, and may be made to fail."""

    def __init__(self, config=None, change=lambda features: features, **capabilities):
        super().__init__(config or Toy())
        self.change, self.batches = change, []
        self.capabilities = dataclasses.replace(self.capabilities, num_patches=None, **capabilities)

    def encode_images(self, images):
        self.batches.append(len(images))
        return self.change(super().encode_images(images))


@pytest.fixture
def backbone():
    return Watched()


@pytest.fixture
def data():
    return ToyData().load()


def folder(backbone, data, split, cache_dir, config=CONFIG):
    return folder_of(cache_dir, feature_key(backbone, data, split, config))


def with_split(data, name, **changes):
    return dataclasses.replace(data, splits={**data.splits, name: dataclasses.replace(data.splits[name], **changes)})


def plain(data, split):
    """What the toy model gives without a cache."""
    images = data.splits[split].read(np.arange(len(data.splits[split])))
    return Toy().load().encode_images(images)


def test_images_are_encoded_once(backbone, data, tmp_path):
    seen = []
    first = image_features(backbone, data, "train", tmp_path, CONFIG, lambda *args: seen.append(args))
    second = image_features(backbone, data, "train", tmp_path, CONFIG, lambda *_: pytest.fail("nothing to encode"))
    assert torch.equal(first.tensor(), second.tensor())
    torch.testing.assert_close(first.tensor(), plain(data, "train"))
    assert backbone.batches == [10] * 8
    assert seen == [("encoding toy train", done, 72) for done in (0, 10, 20, 30, 40, 50, 60, 70, 72)]


def test_rows_are_copied_on_demand_and_nothing_else_is_read(backbone, data, tmp_path):
    features = image_features(backbone, data, "train", tmp_path, CONFIG)
    rows = features.rows(np.array([71, 3, 3]), np.zeros(3, dtype=np.int64))
    assert torch.equal(rows, features.tensor()[[71, 3, 3]])
    assert features.rows(np.array([], dtype=np.int64), np.array([], dtype=np.int64)).shape == (0, 6)
    assert isinstance(features.array, np.memmap)
    assert len(features) == 72


def test_the_array_can_be_read_without_us(backbone, data, tmp_path):
    features = image_features(backbone, data, "test", tmp_path, CONFIG)
    array = np.load(folder(backbone, data, "test", tmp_path) / "features.npy", mmap_mode="r")
    assert np.array_equal(array, features.tensor().numpy())


def test_writing_to_the_features_does_not_reach_the_file(backbone, data, tmp_path):
    features = image_features(backbone, data, "test", tmp_path, CONFIG)
    before = features.tensor().clone()
    features.tensor().zero_()
    assert torch.equal(image_features(backbone, data, "test", tmp_path, CONFIG).tensor(), before)


def test_an_empty_split_has_no_features(backbone, data, tmp_path):
    none = np.zeros(0, dtype=np.int64)
    empty = with_split(data, "test", labels=none, domains=none)
    for _ in range(2):
        assert image_features(backbone, empty, "test", tmp_path, CONFIG).tensor().shape == (0, 6)


def test_a_large_cache_is_opened_without_being_loaded(tmp_path, data):
    num, dim = 200_000, 64

    class Fast(Watched):
        def __init__(self):
            super().__init__()
            self.feature_dim = dim

        def encode_images(self, images):
            return torch.full((len(images), dim), 0.125)

    pixel = np.zeros((1, 1, 3), dtype=np.uint8)
    labels = np.zeros(num, dtype=np.int64)
    split = Split(labels=labels, domains=labels, read=lambda index: [pixel] * len(index), fingerprint="many")
    large = dataclasses.replace(data, splits={**data.splits, "train": split})
    config = FeaturesConfig(batch_size=10_000)
    image_features(Fast(), large, "train", tmp_path, config)
    tracemalloc.start()
    features = image_features(Fast(), large, "train", tmp_path, config)
    rows = features.rows(np.arange(0, num, 1000), np.zeros(200, dtype=np.int64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert torch.equal(rows, torch.full((200, dim), 0.125))
    assert features.array.nbytes > 50e6
    assert peak < 10e6


def test_the_next_batch_is_decoded_while_one_is_encoded(data, tmp_path):
    is_read = {10: threading.Event(), 20: threading.Event()}

    def read(indices):
        if indices[0] in is_read:
            is_read[indices[0]].set()
        return data.splits["train"].read(indices)

    def encode(features):
        assert is_read[min(10 * len(backbone.batches), 20)].wait(timeout=20)
        return features

    backbone = Watched(change=encode)
    image_features(backbone, with_split(data, "train", read=read), "train", tmp_path, CONFIG)


# --- what invalidates


@pytest.mark.parametrize(
    "change", [{"dtype": "float16"}, {"num_views": 2}, {"num_views": 4}, {"batch_size": 20}], ids=str
)
def test_another_setting_has_features_of_its_own(backbone, data, tmp_path, change):
    assert folder(backbone, data, "train", tmp_path) != folder(
        backbone, data, "train", tmp_path, dataclasses.replace(CONFIG, **change)
    )


@pytest.mark.parametrize("change", [{"min_scale": 0.5}, {"view_seed": 1}], ids=str)
def test_settings_of_views_count_where_there_are_views(backbone, data, tmp_path, change):
    def where(split, config):
        return folder(backbone, data, split, tmp_path, config), folder(
            backbone, data, split, tmp_path, dataclasses.replace(config, **change)
        )

    assert len(set(where("train", VIEWS))) == 2
    assert len(set(where("train", CONFIG))) == 1
    assert len(set(where("test", VIEWS))) == 1


def test_a_changed_image_or_weight_is_not_served_from_the_cache(backbone, data, tmp_path):
    image_features(backbone, data, "test", tmp_path, CONFIG)
    inverted = [255 - image for image in data.splits["test"].read(np.arange(18))]
    changed = with_split(data, "test", read=lambda index: [inverted[i] for i in index], fingerprint="0" * 64)
    got = image_features(backbone, changed, "test", tmp_path, CONFIG).tensor()
    torch.testing.assert_close(got, Toy().load().encode_images(inverted))
    other = Watched(Toy(token_width=9))
    image_features(other, data, "test", tmp_path, CONFIG)
    assert sum(other.batches) == 20


def test_other_bytes_of_the_same_size_and_date_are_encoded_anew_and_it_is_told(tmp_path, caplog):
    layouts.images(tmp_path / "imgs", ["ant", "bee"], 3)
    path, backbone = tmp_path / "imgs" / "ant" / "image_0001.jpg", Watched()

    def features():
        dataset = Folder(root=str(tmp_path / "imgs")).load()
        return image_features(backbone, dataset, "train", tmp_path / "cache", CONFIG).tensor().clone()

    def bitmap(number):  # uncompressed: all of one size
        layouts.Image.open(io.BytesIO(layouts.encoded(number))).save(path, "bmp")

    bitmap(0)
    before, status = features(), path.stat()
    bitmap(200)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert "encoded anew" not in caplog.text
    assert not torch.equal(features(), before)
    assert "other bytes or dates" in caplog.text
    num_encoded = sum(backbone.batches)
    features()
    assert sum(backbone.batches) == num_encoded


def test_a_folder_of_something_else_under_the_same_name_is_not_believed(backbone, data, tmp_path, caplog):
    expected = image_features(backbone, data, "test", tmp_path, CONFIG).tensor().clone()
    image_features(backbone, data, "validation", tmp_path, CONFIG)
    wrong = image_features(backbone, data, "validation", tmp_path, CONFIG).tensor()
    kept = wrong.clone()
    shutil.rmtree(folder(backbone, data, "test", tmp_path))
    folder(backbone, data, "validation", tmp_path).rename(folder(backbone, data, "test", tmp_path))
    with caplog.at_level(logging.WARNING):
        got = image_features(backbone, data, "test", tmp_path, CONFIG)
    assert torch.equal(got.tensor(), expected)
    assert torch.equal(wrong, kept), "who had the old file mapped keeps it"
    assert "of something else" in caplog.text


def test_names_of_data_sets_stay_inside_the_cache(backbone, data, tmp_path):
    for name in ("../up", "a/b", "..", ""):
        named = dataclasses.replace(data, name=name)
        path = folder(backbone, named, "test", tmp_path)
        assert path.resolve().parents[1] == (tmp_path / "features").resolve()


# --- damage


def flip_a_bit(path):
    data = bytearray((path / "features.npy").read_bytes())
    data[HEADER_SIZE + CHUNK_BYTES + 17] ^= 4
    (path / "features.npy").write_bytes(data)


def flip_the_header(path):
    data = bytearray((path / "features.npy").read_bytes())
    data[12] ^= 4
    (path / "features.npy").write_bytes(data)


def cut(path):
    os.truncate(path / "features.npy", HEADER_SIZE + CHUNK_BYTES + 100)


def drop_a_line(path):
    lines = (path / "chunks.jsonl").read_text().splitlines(keepends=True)
    (path / "chunks.jsonl").write_text("".join([lines[0], "{broken\n", *lines[2:]]))


@pytest.mark.parametrize(
    ("damage", "encoded_again"),
    [
        (flip_a_bit, [10]),
        (cut, [10]),
        (drop_a_line, [10]),
        (flip_the_header, []),
        (lambda path: (path / "features.npy").write_bytes(b"garbage"), [10, 10]),
        (lambda path: (path / "features.npy").unlink(), [10, 10]),
        (lambda path: (path / "metadata.json").write_bytes(b"\xff garbage"), []),
        (lambda path: (path / "chunks.jsonl").write_bytes(b"\xff garbage"), [10, 10]),
        (lambda path: (path / "chunks.jsonl").unlink(), [10, 10]),
    ],
)
def test_what_is_damaged_is_made_again_and_nothing_more(backbone, data, tmp_path, damage, encoded_again, caplog):
    first = image_features(backbone, data, "test", tmp_path, CONFIG).tensor().clone()
    backbone.batches.clear()
    damage(folder(backbone, data, "test", tmp_path))
    with caplog.at_level(logging.WARNING):
        again = image_features(backbone, data, "test", tmp_path, CONFIG)
    assert torch.equal(first, again.tensor())
    assert backbone.batches == encoded_again
    assert "made again" in caplog.text
    image_features(backbone, data, "test", tmp_path, CONFIG)
    assert backbone.batches == encoded_again


def test_a_half_written_line_is_not_believed(backbone, data, tmp_path, caplog):
    image_features(backbone, data, "test", tmp_path, CONFIG)
    path = folder(backbone, data, "test", tmp_path)
    log = (path / "chunks.jsonl").read_bytes()
    (path / "chunks.jsonl").write_bytes(log[:-9])
    (path / "metadata.json").unlink()
    backbone.batches.clear()
    with caplog.at_level(logging.WARNING):
        image_features(backbone, data, "test", tmp_path, CONFIG)
    assert backbone.batches == [10]
    assert not caplog.text, "what a kill leaves is no damage"


# --- stops


def test_an_unreadable_image_surfaces_as_it_is_and_encoding_goes_on_when_it_is_fixed(backbone, data, tmp_path):
    def read(indices):
        if 35 in indices:
            raise DataError("/pictures/cat.jpg cannot be read. Replace it or take it out.")
        return data.splits["train"].read(indices)

    with pytest.raises(DataError, match=r"^/pictures/cat.jpg cannot be read"):
        image_features(backbone, with_split(data, "train", read=read), "train", tmp_path, CONFIG)
    assert backbone.batches == [10, 10, 10]
    seen = []
    features = image_features(backbone, data, "train", tmp_path, CONFIG, lambda *args: seen.append(args))
    assert backbone.batches == [10] * 8
    assert seen[0] == ("encoding toy train", 30, 72)
    torch.testing.assert_close(features.tensor(), plain(data, "train"))


def test_features_that_are_not_finite_name_their_example(data, tmp_path):
    def spoil(features):
        if len(backbone.batches) == 2:
            features[3, 2] = float("nan")
        return features

    backbone = Watched(change=spoil)
    with pytest.raises(DataError, match="Example 13 of toy train has features that are NaN"):
        image_features(backbone, data, "train", tmp_path, CONFIG)


def test_a_disk_that_runs_full_says_so_and_keeps_what_is_there(backbone, data, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER_SIZE + 5 * CHUNK_BYTES // 2, before[1]))
    try:
        with pytest.raises(DataError, match=r"no room for them.*runtime\.cache_dir.*kept"):
            image_features(backbone, data, "train", tmp_path, CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert backbone.batches == [10, 10, 10]
    image_features(backbone, data, "train", tmp_path, CONFIG)
    assert backbone.batches == [10] * 9, "the third was encoded but could not be kept"


def test_a_disk_that_is_too_small_is_noticed_before_any_work(backbone, data, tmp_path, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(DataError, match=r"toy train need 0\.0 MB in .* no room"):
        image_features(backbone, data, "train", tmp_path, CONFIG)
    assert not backbone.batches


def test_a_cache_that_cannot_be_written_says_so(backbone, data, tmp_path):
    (tmp_path / "features").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"cannot be written .*Check its permissions"):
        image_features(backbone, data, "test", tmp_path, CONFIG)


# --- several processes

SCRIPT = """
import os, sys, time
from pathlib import Path
import numpy as np
from hushprompt.features.cache import FeaturesConfig, image_features
from hushprompt.models.toy import Toy, ToyModel
from hushprompt.data.sets.toy import ToyData

cache, calls, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
calls.with_name(f"{os.getpid()}.ready").touch()
while not calls.with_name("go").exists():
    time.sleep(0.01)

class Slow(ToyModel):
    def encode_images(self, images):
        with calls.open("a") as file: file.write(f"{os.getpid()} {sum(int(i.sum()) for i in images)}\\n")
        time.sleep(seconds)
        return super().encode_images(images)

features = image_features(Slow(Toy()), ToyData().load(), "train", cache, FeaturesConfig(batch_size=10))
np.save(calls.with_name(f"{os.getpid()}.npy"), features.tensor().numpy())
"""


def start(cache_dir, calls, seconds):
    """Encode in a process of its own, as soon as there is a file called go."""
    environment = {**os.environ, "PYTHONPATH": str(Path(hushprompt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(cache_dir), str(calls), str(seconds)]
    return subprocess.Popen(command, env=environment)


def wait_for(condition, process, seconds=60):
    """Wait until something is true, while a process runs."""
    stop = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        assert process.poll() is None, "the process ended early"
        stop.wait(0.01)
    pytest.fail("it took too long")


def num_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_two_processes_share_the_work_of_one(backbone, data, tmp_path):
    both = [start(tmp_path / "cache", tmp_path / "calls", 0.05) for _ in range(2)]
    wait_for(lambda: len(list(tmp_path.glob("*.ready"))) == 2, both[0])
    (tmp_path / "go").touch()
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert num_lines(tmp_path / "calls") == 8
    got = [np.load(tmp_path / f"{process.pid}.npy") for process in both]
    assert np.array_equal(got[0], got[1])
    torch.testing.assert_close(torch.from_numpy(got[0]), plain(data, "train"))


def test_who_waits_sees_the_progress_and_takes_over_from_the_dead(backbone, data, tmp_path):
    log = folder(backbone, data, "train", tmp_path / "cache") / "chunks.jsonl"
    (tmp_path / "go").touch()
    process = start(tmp_path / "cache", tmp_path / "calls", 0.3)
    wait_for(lambda: num_lines(log) >= 2, process)
    seen, kept = [], []

    def watch(what, done, total):
        seen.append(done)
        if done >= 20 and process.poll() is None:
            process.kill()
            process.wait()
            kept.append(num_lines(log) - 1)
            kept.append(cached(tmp_path / "cache")[0].is_complete)

    features = image_features(backbone, data, "train", tmp_path / "cache", CONFIG, watch)
    torch.testing.assert_close(features.tensor(), plain(data, "train"))
    assert seen == sorted(seen)
    assert seen[0] >= 10
    assert 2 <= kept[0] < 8
    assert kept[1] is False
    assert len(backbone.batches) == 8 - kept[0], "what the dead one finished is kept"


def test_reading_a_finished_cache_needs_no_lock(backbone, data, tmp_path):
    image_features(backbone, data, "test", tmp_path, CONFIG)
    key = feature_key(backbone, data, "test", CONFIG)
    with FeatureFolder(folder_of(tmp_path, key), key).locked(on_wait=lambda: pytest.fail("nobody has it")):
        image_features(backbone, data, "test", tmp_path, CONFIG)


# --- precision and views


def test_float16_takes_half_the_disk_and_hands_out_float32(backbone, data, tmp_path):
    half = dataclasses.replace(CONFIG, dtype="float16")
    exact = image_features(backbone, data, "train", tmp_path, CONFIG).tensor()
    stored = image_features(backbone, data, "train", tmp_path, half)
    assert stored.tensor().dtype == stored.rows(np.arange(3), np.zeros(3, dtype=np.int64)).dtype == torch.float32
    assert stored.array.dtype == np.float16
    assert 0 < float((stored.tensor() - exact).abs().max()) < 2**-11
    cosines = exact @ exact.T
    assert float((stored.tensor() @ exact.T - cosines).abs().max()) < 1e-3


def test_views_are_those_of_their_streams_whatever_the_batches(data, tmp_path):
    small, large = (
        image_features(Watched(), data, "train", tmp_path, dataclasses.replace(VIEWS, batch_size=size))
        for size in (1, 30)
    )
    assert small.array.shape == (72, 3, 6)
    np.testing.assert_allclose(small.array, large.array, rtol=1e-5, atol=1e-6)
    (image,) = data.splits["train"].read(np.array([40]))
    views = [random_view(image, stream(0, "views", 40, n), min_scale=0.08, size=8) for n in range(3)]
    expected = Toy().load().encode_images(views)
    torch.testing.assert_close(small.rows(np.full(3, 40), np.arange(3)), expected)
    assert len({tuple(row.tolist()) for row in expected}) == 3
    assert torch.equal(small.tensor(), small.rows(np.arange(72), np.zeros(72, dtype=np.int64)))


def test_views_of_another_seed_differ(backbone, data, tmp_path):
    first = image_features(backbone, data, "train", tmp_path, VIEWS)
    second = image_features(backbone, data, "train", tmp_path, dataclasses.replace(VIEWS, view_seed=1))
    assert not np.array_equal(first.array, second.array)


def test_views_have_the_size_that_the_backbone_takes(data, tmp_path):
    class Sized(Watched):
        def encode_images(self, images):
            assert all(image.shape == (5, 5, 3) for image in images)
            return super().encode_images(images)

    image_features(Sized(view_size=5), data, "train", tmp_path, VIEWS)


def test_a_batch_counts_views(backbone, data, tmp_path):
    image_features(backbone, data, "train", tmp_path, VIEWS)
    assert set(backbone.batches) == {9}


def test_only_training_images_are_augmented(backbone, data, tmp_path):
    assert image_features(backbone, data, "test", tmp_path, VIEWS).num_views == 1


# --- patches


def patches(backbone, data, split, cache_dir, config=CONFIG, on_progress=None):
    return image_features(backbone, data, split, cache_dir, config, on_progress, "patches")


def test_patches_are_kept_beside_the_pooled_features(data, tmp_path):
    backbone, seen = Toy().load(), []
    pooled = image_features(backbone, data, "train", tmp_path, CONFIG)
    stored = patches(backbone, data, "train", tmp_path, on_progress=lambda *args: seen.append(args))
    again = patches(backbone, data, "train", tmp_path, on_progress=lambda *_: pytest.fail("nothing to encode"))
    images = data.splits["train"].read(np.arange(72))
    assert stored.array.shape == (72, 1, 4, 6)
    assert isinstance(stored.array, np.memmap)
    torch.testing.assert_close(stored.tensor(), backbone.encode_patches(images))
    assert torch.equal(again.tensor(), stored.tensor())
    rows = stored.rows(np.array([71, 3, 3]), np.zeros(3, dtype=np.int64))
    assert torch.equal(rows, stored.tensor()[[71, 3, 3]])
    torch.testing.assert_close(pooled.tensor(), plain(data, "train"))
    assert seen[0] == ("encoding toy train, 4 patches an image, 0 MB", 0, 72)
    entries = {entry.num_patches: entry for entry in cached(tmp_path)}
    assert entries[4].num_bytes == HEADER_SIZE + 72 * 4 * 6 * 4
    assert entries[None].num_bytes == HEADER_SIZE + 72 * 6 * 4
    assert "-train-patches-" in entries[4].path.name


def test_patches_of_views_in_half_precision_are_those_of_the_views(data, tmp_path):
    backbone = Toy().load()
    stored = patches(backbone, data, "train", tmp_path, dataclasses.replace(VIEWS, dtype="float16"))
    assert stored.array.shape == (72, 3, 4, 6)
    (image,) = data.splits["train"].read(np.array([40]))
    views = [random_view(image, stream(0, "views", 40, n), min_scale=0.08, size=8) for n in range(3)]
    got = stored.rows(np.full(3, 40), np.arange(3))
    torch.testing.assert_close(got, backbone.encode_patches(views), rtol=0, atol=2**-11)
    array = np.load(next(tmp_path.glob("features/toy/*-patches-*/features.npy")), mmap_mode="r")
    assert array.shape == (72, 3, 4, 6)


def test_damaged_patches_are_made_again(data, tmp_path, caplog):
    backbone = Toy().load()
    first = patches(backbone, data, "test", tmp_path).tensor().clone()
    flip_a_bit(next(tmp_path.glob("features/toy/*-patches-*")))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(patches(backbone, data, "test", tmp_path).tensor(), first)
    assert "1 of 2 chunks are made again" in caplog.text


def test_patches_that_are_not_finite_name_their_example(data, tmp_path):
    backbone = Toy().load()

    def spoil(images, true_patches=backbone.encode_patches):
        features = true_patches(images)
        features[3, 2, 1] = float("inf")
        return features

    backbone.encode_patches = spoil
    with pytest.raises(DataError, match="Example 3 of toy train has features that are NaN or infinite, or all zero"):
        patches(backbone, data, "train", tmp_path)


def test_a_backbone_without_patches_is_refused(backbone, data, tmp_path):
    with pytest.raises(ConfigError, match=r"needs features of image patches, .* Use emoji_clip"):
        patches(backbone, data, "train", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cache_from_before_there_were_patches_is_still_found(backbone, data, tmp_path):
    key = feature_key(backbone, data, "train", CONFIG).to_json()
    assert "num_patches" not in key
    assert list(key)[-2:] == ["format", "last_chunk"]


def test_a_cache_whose_last_batch_was_not_filled_up_is_made_again_and_others_are_found(backbone, data):
    def key(num_examples):
        whole = feature_key(backbone, data, "train", CONFIG)
        return dataclasses.replace(whole, num_examples=num_examples).to_json()

    assert "last_chunk" in key(72), "batches of 10"
    assert "last_chunk" not in key(70)


def test_a_feature_does_not_depend_on_the_number_of_other_examples(data, tmp_path):
    class Sums(Watched):
        def encode_images(self, images):  # as matrix kernels do: last bits follow from the size of the batch
            return super().encode_images(images) * (1 + 1e-6 * len(images))

    def features(num_examples):
        split = data.splits["train"]
        few = dataclasses.replace(split, labels=split.labels[:num_examples], domains=split.domains[:num_examples])
        some = dataclasses.replace(data, splits={**data.splits, "train": few})
        return image_features(Sums(), some, "train", tmp_path / str(num_examples), CONFIG).tensor()

    assert torch.equal(features(71)[:70], features(70))
    assert torch.equal(features(3)[:2], features(2))


# --- ill input


def test_a_backbone_of_another_modality_is_refused(backbone, data, tmp_path):
    sounds = dataclasses.replace(data, modality="audio", sampling_rate=16000)
    with pytest.raises(ConfigError, match=r"encodes image, but .* toy holds audio.*Set backbone\.name"):
        image_features(backbone, sounds, "test", tmp_path, CONFIG)


def test_a_backbone_of_another_sampling_rate_is_refused(data, tmp_path):
    backbone = Watched(modality="audio", sampling_rate=48000)
    sounds = dataclasses.replace(data, modality="audio", sampling_rate=16000)
    with pytest.raises(ConfigError, match=r"takes sounds of 48000 .* with 16000\. Set data\.sampling_rate = 48000"):
        image_features(backbone, sounds, "test", tmp_path, CONFIG)
    image_features(backbone, dataclasses.replace(sounds, sampling_rate=48000), "test", tmp_path, CONFIG)


def test_views_of_sounds_are_refused(data, tmp_path):
    backbone = Watched(modality="audio")
    with pytest.raises(ConfigError, match=r"num_views = 3 needs images.*Set features\.num_views = 1"):
        image_features(backbone, dataclasses.replace(data, modality="audio"), "test", tmp_path, VIEWS)


@pytest.mark.parametrize("wrong", [{"num_views": 0}, {"min_scale": 0.0}, {"min_scale": 1.5}, {"batch_size": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FeaturesConfig(**wrong)


# --- the list


def test_the_list_says_what_is_cached(backbone, data, tmp_path):
    assert cached(tmp_path) == []
    image_features(backbone, data, "test", tmp_path, CONFIG)
    image_features(backbone, data, "train", tmp_path, dataclasses.replace(VIEWS, dtype="float16"))
    (tmp_path / "features" / "toy" / "notes").mkdir()
    (tmp_path / "features" / "toy" / "notes" / "chunks.jsonl").write_text('{"not": "ours"}\n')
    by_split = {entry.split: entry for entry in cached(tmp_path)}
    assert set(by_split) == {"test", "train"}
    test, train = by_split["test"], by_split["train"]
    assert (test.dataset, test.num_examples, test.feature_dim, test.num_views) == ("toy", 18, 6, 1)
    assert test.num_bytes == HEADER_SIZE + 18 * 6 * 4
    assert test.is_complete
    assert test.backbone == backbone.fingerprint
    assert (train.num_views, train.dtype, train.num_bytes) == (3, "float16", HEADER_SIZE + 72 * 3 * 6 * 2)
    (test.path / "metadata.json").unlink()
    assert not {entry.split: entry for entry in cached(tmp_path)}["test"].is_complete


def test_the_metadata_says_what_made_the_features(backbone, data, tmp_path):
    image_features(backbone, data, "train", tmp_path, VIEWS)
    metadata = json.loads((folder(backbone, data, "train", tmp_path, VIEWS) / "metadata.json").read_text())
    assert metadata["shape"] == [72, 3, 6]
    assert metadata["key"]["backbone"] == backbone.fingerprint
    assert metadata["key"]["data"] == data.splits["train"].fingerprint
    assert metadata["packages"]["torch"] == importlib.metadata.version("torch")
