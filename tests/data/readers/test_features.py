import json

import numpy as np
import pytest

from hushprompt.data.content import content_of
from hushprompt.data.readers.features import FeatureFile
from hushprompt.errors import ConfigError, DataError

NAMES = np.array(["cat", "dog", "red_fox"])
LABELS = np.arange(12) % 3


def vectors(count=12, width=4, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def columns(**changes):
    """The arrays of a whole data set; a change of None leaves one out."""
    split = np.array(["train", "val", "test"])[np.arange(12) // 4]
    arrays = {"features": vectors(), "labels": LABELS, "split": split, "class_names": NAMES, **changes}
    return {name: values for name, values in arrays.items() if values is not None}


def write(folder, arrays, kind="npz"):
    """Write arrays in one of the formats, and return the setting of the file."""
    path = folder / f"made.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    elif kind == "npy":
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)
        path = folder / "features.npy"
    elif kind == "safetensors":
        from safetensors.numpy import save_file

        said = {name: json.dumps(values.tolist()) for name, values in arrays.items() if values.dtype.kind == "U"}
        save_file({name: values for name, values in arrays.items() if name not in said}, path, metadata=said)
    else:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        names = {"class_names": json.dumps(arrays["class_names"].tolist())} if "class_names" in arrays else {}
        table = {name: values.tolist() for name, values in arrays.items() if name != "class_names"}
        parquet.write_table(pa.table(table).replace_schema_metadata(names), path, row_group_size=5)
    return str(path)


def loaded(folder, arrays, kind="npz", **settings):
    return FeatureFile(file=write(folder, arrays, kind), **settings).load()


def rows(split):
    return np.stack(split.read(np.arange(len(split))))


@pytest.mark.parametrize("kind", ["npz", "npy", "safetensors", "parquet"])
def test_every_format_gives_the_same_data(tmp_path, kind):
    pytest.importorskip("pyarrow")
    sites = np.array(["north", "south"])[LABELS % 2]
    dataset = loaded(tmp_path, columns(client=sites, domain=LABELS // 2, group=np.arange(12) // 3), kind)
    assert dataset.class_names == ("cat", "dog", "red fox")
    assert (dataset.client_names, dataset.domain_names) == (("north", "south"), ("0", "1"))
    assert (dataset.modality, dataset.feature_dim) == ("features", 4)
    np.testing.assert_array_equal(rows(dataset.splits["validation"]), vectors()[4:8])
    assert dataset.splits["test"].labels.tolist() == LABELS[8:].tolist()
    assert dataset.splits["train"].clients.tolist() == [0, 1, 0, 0]
    assert dataset.splits["train"].groups.tolist() == [0, 0, 0, 1]
    split = dataset.splits["train"]
    assert content_of(split).is_whole
    (tmp_path / "again").mkdir()
    again = loaded(tmp_path / "again", columns(client=sites, domain=LABELS // 2))
    assert dataset.split_checksum == again.split_checksum
    assert content_of(split) == content_of(again.splits["train"]), "a run may go on from another format"
    assert split.fingerprint == again.splits["train"].fingerprint


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_other_precisions_become_float32(tmp_path, dtype):
    test = loaded(tmp_path, columns(features=vectors().astype(dtype)), "npy").splits["test"]
    assert rows(test).dtype == np.float32
    np.testing.assert_array_equal(rows(test), vectors().astype(dtype).astype(np.float32)[8:])


def test_splits_may_be_arrays_of_their_own(tmp_path):
    arrays = {"class_names": NAMES, "train_shots": np.array(16), "paths": np.array([{}], dtype=object)}
    for seed, split in enumerate(["train", "extra", "val", "test"]):
        arrays |= {f"{split}_features": vectors(6, seed=seed), f"{split}_labels": LABELS[:6]}
    path = write(tmp_path, arrays)
    usual = FeatureFile(file=path).load()
    assert {name: len(split) for name, split in usual.splits.items()} == {"train": 6, "validation": 6, "test": 6}
    more = FeatureFile(file=path, train=("train", "extra", "val")).load()
    assert {name: len(split) for name, split in more.splits.items()} == {"train": 18, "test": 6}
    np.testing.assert_array_equal(rows(more.splits["train"])[12:], vectors(6, seed=2))
    with pytest.raises(DataError, match=r"no array union_features\. It has: .*extra_features.*Check data\.train"):
        FeatureFile(file=path, train=("union",)).load()


def test_splits_may_be_files_of_their_own(tmp_path):
    files = {}
    for seed, field in enumerate(["file", "validation_file", "test_file"]):
        (tmp_path / field).mkdir()
        files[field] = write(tmp_path / field, columns(features=vectors(seed=seed), split=None))
    assert [len(split) for split in FeatureFile(**files).load().splits.values()] == [12, 12, 12]
    with pytest.raises(ConfigError, match=r"data\.validation_file needs data\.test_file"):
        FeatureFile(file=files["file"], validation_file=files["validation_file"])
    np.savez(files["test_file"], **columns(split=None, class_names=NAMES[::-1]))
    with pytest.raises(DataError, match="have different class names"):
        FeatureFile(**files).load()
    np.savez(files["test_file"], **columns(features=vectors(width=5), split=None))
    with pytest.raises(DataError, match="have different widths: 4, 5"):
        FeatureFile(**files).load()


def test_a_file_without_splits_is_split_and_labels_may_be_names(tmp_path):
    dataset = loaded(tmp_path, columns(split=None, class_names=None, labels=NAMES[LABELS]))
    assert dataset.class_names == ("cat", "dog", "red fox")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 6, "validation": 3, "test": 3}


def test_numbers_count_in_the_files_own_class_names_whatever_order_is_wanted(tmp_path):
    path = write(tmp_path, columns())
    dataset = FeatureFile(file=path, classes=("red fox=fox", "cat", "dog")).load()
    assert dataset.class_names == ("fox", "cat", "dog")
    assert dataset.splits["train"].labels.tolist() == [1, 2, 0, 1]
    digits = write(tmp_path, columns(class_names=np.array(["2", "0", "1"])))
    assert FeatureFile(file=digits).load().splits["train"].labels.tolist() == [0, 1, 2, 0]
    texts = write(tmp_path, columns(class_names=np.array(["2", "0", "1"]), labels=LABELS.astype(str)))
    assert FeatureFile(file=texts).load().splits["train"].labels.tolist() == [1, 2, 0, 1]
    assert FeatureFile(file=write(tmp_path, columns(class_names=None)), classes=("x", "y", "z")).load().class_names == (
        "x", "y", "z"
    )  # fmt: skip


def broken(value, row=3):
    found = vectors()
    found[row] = value
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": None}, r"no array 'features', nor train_features and test_features\. It has: labels, split"),
        ({"labels": None}, r"no array 'labels'\. It has: features, .*data\.label_column"),
        ({"labels": LABELS[:11]}, "12 embeddings in features, but an array beside it has 11"),
        ({"labels": np.eye(12)}, r"labels must have one entry an example, got the shape \[12, 12\]"),
        ({"labels": LABELS - 1}, "row 0: labels is -1, which is no class"),
        ({"labels": LABELS + 0.5}, r"row 0: the labels 0\.5 is neither text of one line nor a whole number"),
        ({"labels": LABELS + 1}, r"a label is 3, but there are 3 class_names, so labels run from 0 to 2"),
        ({"labels": NAMES[LABELS].astype(object)}, r"labels of .* cannot be read .*Python objects are not read"),
        ({"class_names": np.arange(3)}, "class_names must be a list of texts"),
        ({"split": np.arange(12)}, "has the split '0'; allowed: train"),
        ({"features": np.zeros((12, 4), int)}, r"float16, float32 or float64 .* got int64 of shape \[12, 4\]"),
        ({"features": vectors().ravel()}, r"got float32 of shape \[48\]"),
        ({"features": broken(np.nan)}, r"made\.npz, row 3 is NaN or infinite in float32"),
        ({"features": broken(0)}, r"made\.npz, row 3 is all zero"),
        ({"features": vectors().astype(np.float64) * 1e300}, "row 0 is NaN or infinite in float32"),
        ({"features": broken(vectors()[9])}, r"same example is in two splits.* row 3 = .* row 9"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        loaded(tmp_path, columns(**changes))


def test_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.file must be given"):
        FeatureFile().load()
    for name in ("none.npz", "none.npy", "none.safetensors", "none.parquet"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            FeatureFile(file=str(tmp_path / name)).load()
    for name in ("a.npz", "a.npy", "a.safetensors", "a.parquet"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing of the kind" * 9)
        with pytest.raises(DataError, match=r"cannot be read|has no array"):
            FeatureFile(file=str(tmp_path / name)).load()
    with pytest.raises(DataError, match=r"x\.csv must end in \.npz, \.npy, \.safetensors, \.parquet"):
        FeatureFile(file=str(tmp_path / "x.csv")).load()


def test_rows_of_different_widths_are_named(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"features": [[1.0, 2.0], [1.0], None], "labels": [0, 1, 0]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 1 has 1 numbers in features, row 0 has 2"):
        FeatureFile(file=str(tmp_path / "t.parquet")).load()


def test_damaged_embeddings_can_be_left_out(tmp_path, caplog):
    dataset = loaded(tmp_path, columns(features=broken(np.nan)), on_unreadable="skip")
    assert (dataset.num_skipped, len(dataset.splits["train"])) == (1, 3)
    assert "row 3 is NaN" in caplog.text


def test_npy_files_stay_on_the_disk(tmp_path):
    dataset = loaded(tmp_path, columns(), "npy")
    (part,) = dataset.splits["train"].read.source.parts
    assert isinstance(part, np.memmap)
