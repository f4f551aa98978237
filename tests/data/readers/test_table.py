import json

import numpy as np
import pytest

from helpers.layouts import image, is_color, names
from hushprompt.data.readers.table import Table
from hushprompt.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        image(tmp_path / "pictures" / f"{number}.png", number)
    return tmp_path


def write(folder, header, rows, name="t.csv"):
    (folder / name).write_text("\n".join([header, *rows]) + "\n")
    return str(folder / name)


def test_columns_give_label_client_split_and_domain(folder):
    rows = [f"pictures/{n}.png,{['dog', 'cat'][n % 2]},site {n % 3},{('train', 'val', 'test')[n // 4]},d{n % 2}"
            for n in range(12)]  # fmt: skip
    dataset = Table(file=write(folder, "path,label,client,split,domain", rows)).load()
    assert dataset.name == "t"
    assert dataset.class_names == ("cat", "dog")
    assert dataset.client_names == ("site 0", "site 1", "site 2")
    assert dataset.domain_names == ("d0", "d1")
    train = dataset.splits["train"]
    assert names(train) == [f"pictures/{n}.png" for n in range(4)]
    assert train.labels.tolist() == [1, 0, 1, 0]
    assert train.clients.tolist() == [0, 1, 2, 0]
    assert train.domains.tolist() == [0, 1, 0, 1]
    assert is_color(dataset.splits["validation"].read(np.array([2]))[0], 6)


def test_a_jsonl_with_other_names_and_another_root(folder):
    lines = [json.dumps({"file": f"{n}.png", "class": n % 2, "hospital": n // 6}) for n in range(12)]
    (folder / "lists").mkdir()
    path = write(folder / "lists", lines[0], lines[1:], "t.jsonl")
    dataset = Table(
        file=path, root=str(folder / "pictures"), path_column="file", label_column="class", client_column="hospital",
        classes=("cat", "dog"),
    ).load()  # fmt: skip
    assert dataset.class_names == ("cat", "dog")
    assert dataset.client_names == ("0", "1")
    for split in dataset.splits.values():
        assert [int(name[:-4]) % 2 for name in names(split)] == split.labels.tolist()
    assert set(dataset.splits["train"].clients) == {0, 1}


def test_numbers_are_ordered_by_value(folder):
    rows = [f"pictures/{n}.png,{n},{'train' if n else 'test'}" for n in range(12)]
    assert Table(file=write(folder, "path,label,split", rows)).load().class_names == tuple(str(n) for n in range(12))


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("path,class", ["pictures/1.png,a"], r"t\.csv, line 2: there is no 'label'.*It has: path, class"),
        ("path,label", ["pictures/1.png,"], "line 2: there is no 'label'"),
        ("path,label", [], "has no example"),
        ("path,label,split", ["pictures/1.png,a,train", "pictures/2.png,a,"], r"2\.png has no split, others do"),
        ("path,label,split", ["pictures/1.png,a,tran"], "has the split 'tran'; allowed: train"),
        ("path,label,client", ["pictures/1.png,a,", "pictures/2.png,a,b"], r"1\.png has no client, others do"),
        ("path,label,split", ["pictures/1.png,a,train"], "has no test examples"),
        ("path,label", ["pictures/1.png,a", "pictures/1.png,b"], r"lists pictures/1\.png twice"),
        ("path,label", ["pictures/1.png,a"], "has no test examples .*Give classes more"),
        ("path,label", ["pictures/99.png,a", "pictures/1.png,a"], r"pictures/99\.png is missing"),
        ("path,label", ["pictures/1.xyz,a"], "found: xyz"),
    ],
)
def test_a_wrong_table_gets_one_clear_sentence(folder, header, rows, message):
    with pytest.raises(DataError, match=message):
        Table(file=write(folder, header, rows)).load()


def test_a_column_that_was_named_must_be_there(folder):
    path = write(folder, "path,label", ["pictures/1.png,a"])
    with pytest.raises(DataError, match=r"there is no 'site'.*data\.client_column"):
        Table(file=path, client_column="site").load()


def test_files_that_are_no_table(folder):
    with pytest.raises(ConfigError, match=r"data\.file must be given"):
        Table().load()
    with pytest.raises(DataError, match=r"must end in \.csv or \.jsonl"):
        Table(file=write(folder, "x", [], "t.tsv")).load()
    with pytest.raises(DataError, match="cannot be read"):
        Table(file=str(folder / "none.csv")).load()
    with pytest.raises(DataError, match="cannot be read"):
        Table(file=write(folder, "{", [], "t.jsonl")).load()
    with pytest.raises(DataError, match="line 1 is not a JSON object"):
        Table(file=write(folder, "[]", [], "t.jsonl")).load()
