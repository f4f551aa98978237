import numpy as np
import pytest

from helpers.layouts import encoded, is_color, wav
from hushprompt.data.readers.huggingface import HuggingFace, Rows
from hushprompt.errors import ConfigError, DataError

datasets = pytest.importorskip("datasets")


def table(numbers, names=("zebra", "ant"), **extra):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names)),
         **{name: datasets.Value("string") for name in extra}}
    )  # fmt: skip
    columns = {
        "image": [{"bytes": encoded(n), "path": None} for n in numbers],
        "label": [n % len(names) for n in numbers],
        **extra,
    }  # fmt: skip
    return datasets.Dataset.from_dict(columns, features=features)


def test_splits_labels_and_pixels_of_a_saved_folder(tmp_path):
    parts = datasets.DatasetDict({"train": table(range(6)), "validation": table([6]), "test": table([7, 8])})
    parts.save_to_disk(str(tmp_path / "hf"))
    dataset = HuggingFace(root=str(tmp_path / "hf")).load()
    assert dataset.class_names == ("zebra", "ant")  # the order of the ClassLabel
    assert [len(split) for split in dataset.splits.values()] == [6, 1, 2]
    assert dataset.splits["test"].labels.tolist() == [1, 0]
    for row in range(6):
        assert is_color(dataset.splits["train"].read(np.array([row]))[0], row, 0)
    assert is_color(dataset.splits["test"].read(np.array([1]))[0], 8, 0)
    again = HuggingFace(root=str(tmp_path / "hf")).load()
    assert again.splits["train"].fingerprint == dataset.splits["train"].fingerprint
    assert len({split.fingerprint for split in dataset.splits.values()}) == 3


def test_one_table_is_split_and_may_name_clients_and_domains(tmp_path):
    data = table(
        range(12), site=[f"s{n % 3}" for n in range(12)], style=["photo"] * 12, whose=[f"P{n}" for n in range(12)]
    )
    data.save_to_disk(str(tmp_path / "hf"))
    dataset = HuggingFace(
        root=str(tmp_path / "hf"), client_column="site", domain_column="style", group_column="whose"
    ).load()
    assert dataset.client_names == ("s0", "s1", "s2")
    assert len(dataset.group_names) == 12
    assert dataset.domain_names == ("photo",)
    train = dataset.splits["train"]
    for row, index in enumerate(train.read.rows):
        assert is_color(train.read(np.array([row]))[0], int(index), 0)
        assert (train.labels[row], train.clients[row]) == (index % 2, index % 3)
        assert dataset.group_names[train.groups[row]] == f"P{index}"


def test_files_that_the_table_only_names_are_read(tmp_path):
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(encoded(number))
    features = datasets.Features({"pic": datasets.Image(decode=False), "kind": datasets.Value("int64")})
    columns = {"pic": [{"bytes": None, "path": str(path)} for path in paths], "kind": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "hf"))
    dataset = HuggingFace(root=str(tmp_path / "hf"), label_column="kind", classes=("cat", "dog")).load()
    assert dataset.class_names == ("cat", "dog")
    rows = dataset.splits["train"].read.rows
    assert is_color(dataset.splits["train"].read(np.array([0]))[0], int(rows[0]), 0)


def test_the_stamp_of_a_cell_that_names_a_file_is_that_of_the_file(tmp_path):
    path = tmp_path / "0.png"
    path.write_bytes(encoded(0))
    features = datasets.Features({"pic": datasets.Image(decode=False)})
    part = datasets.Dataset.from_dict({"pic": [{"bytes": None, "path": str(path)}]}, features=features)
    rows = Rows(parts={"train": part}, column="pic", folder=tmp_path, starts=np.array([0, 1]), stamps=("x",))
    before = rows.stamp(0)
    assert rows.stamp(0) == before
    path.write_bytes(encoded(9))
    assert rows.stamp(0) != before
    path.unlink()
    with pytest.raises(DataError, match="names a file that cannot be read"):
        rows.stamp(0)


def test_a_table_of_sounds(tmp_path):
    pytest.importorskip("soundfile")
    data = [wav(tmp_path / "x.wav", 440 + 50 * n, rate=8000).read_bytes() for n in range(4)]
    storage = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"audio": storage, "label": datasets.Value("string")})
    columns = {"audio": [{"bytes": tone, "path": None} for tone in data], "label": ["hum", "buzz"] * 2}
    plain = datasets.Dataset.from_dict(columns, features=features)
    plain.cast_column("audio", datasets.Audio()).save_to_disk(str(tmp_path / "hf"))
    dataset = HuggingFace(root=str(tmp_path / "hf"), sampling_rate=8000).load()
    assert (dataset.modality, dataset.sampling_rate) == ("audio", 8000)
    assert dataset.splits["train"].read(np.array([0]))[0].shape == (800,)


def test_what_cannot_work_is_one_clear_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.root must be given"):
        HuggingFace().load()
    with pytest.raises(DataError, match="is not a folder that datasets' save_to_disk left"):
        HuggingFace(root=str(tmp_path / "none")).load()
    table(range(4)).save_to_disk(str(tmp_path / "hf"))
    with pytest.raises(DataError, match="has no column 'kind'; it has image, label"):
        HuggingFace(root=str(tmp_path / "hf"), label_column="kind").load()
    with pytest.raises(DataError, match=r"of images or sounds: image.*data\.column"):
        HuggingFace(root=str(tmp_path / "hf"), column="picture").load()
    datasets.DatasetDict({"train": table([0]), "extra": table([1])}).save_to_disk(str(tmp_path / "hf2"))
    with pytest.raises(DataError, match="has the split 'extra'"):
        HuggingFace(root=str(tmp_path / "hf2")).load()
