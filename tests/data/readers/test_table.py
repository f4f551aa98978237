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
        ("path,label,split", ["pictures/1.png,a,train", "pictures/2.png,b,train"], "has no test examples"),
        (
            "path,label",
            ["pictures/1.png,a", "./pictures/1.png,b"],
            r"lists \./pictures/1\.png twice, the other time as pictures/1",
        ),
        ("path,label", ["pictures/1.png,a", "pictures/2.png,b"], "has no test examples .*Give classes more"),
        ("path,label", ["pictures/1.png,a", "pictures/2.png,a"], "has one class, 'a'"),
        (
            "path,label",
            ["pictures/99.png,a", "pictures/3.png,a", "pictures/1.png,b", "pictures/2.png,b"],
            r"pictures/99\.png is missing",
        ),
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
        Table(file=write(folder, "x", [], "t.txt")).load()
    with pytest.raises(DataError, match="cannot be read"):
        Table(file=str(folder / "none.csv")).load()
    with pytest.raises(DataError, match="cannot be read"):
        Table(file=write(folder, "{", [], "t.jsonl")).load()
    with pytest.raises(DataError, match="line 1 is not a JSON object"):
        Table(file=write(folder, "[]", [], "t.jsonl")).load()


@pytest.mark.parametrize(
    ("name", "header", "rows", "message"),
    [
        ("t.csv", "path,label", ["pictures/1.png,tench, Tinca"], r"t\.csv, line 2: the row has 3 fields, the header 2"),
        ("t.csv", "path,label,client", ["pictures/1.png,a"], "line 2: the row has 2 fields, the header 3"),
        ("t.csv", "path,label,label", ["pictures/1.png,a,b"], r"t\.csv, line 1: the header names label twice"),
        ("t.csv", "path, label,label ", ["pictures/1.png,a,b"], "the header names label twice"),
        ("t.csv", "path,label", ["pictures/1.png,3.5"], r"t\.csv, line 2: the label 3\.5 is neither text"),
        ("t.csv", "path,label", ["pictures/1.png,nan"], "line 2: the label nan is neither text"),
        ("t.csv", "path;label", ["pictures/1.png;10,0"], "line 2: the label '10,0' is neither text"),
        ("t.csv", "path,label", ["pictures/1.png,#N/A"], "line 2: the label '#N/A' is neither text"),
        ("t.csv", "path,label", [f"pictures/1.png,{'9' * 5000}.0"], "line 2: the label inf is neither text"),
        ("t.csv", "path,label", ["pictures/1.png,a\x07b"], r"the class 'a\\x07b', which is no text of one line"),
        ("t.jsonl", '{"path": "pictures/1.png", "label": "\\ud800"}', [], r"the class '\\ud800', which is no text"),
        ("t.jsonl", '{"path": "pictures/1\\u0000.png", "label": "a"}', [], "line 1: the path .* is no text"),
        ("t.jsonl", '{"path": ' + "[" * 10**5, [], "line 1 cannot be read .*recursion"),
        ("t.csv", "path,label", ['pictures/1.png,"a', "pictures/2.png,b"], "line 4: unexpected end of data"),
        ("t.csv", "path,label", ['"pictures/1.png,a"', "pictures/2.png,b"], "line 2: the row has 1 fields"),
        ("t.jsonl", '{"path": "pictures/1.png", "label": true}', [], r"t\.jsonl, line 1: the label True is neither"),
        ("t.jsonl", '{"path": "pictures/1.png", "label": 0.5}', [], "line 1: the label 0.5 is neither"),
        ("t.jsonl", '{"path": "pictures/1.png", "label": NaN}', [], "line 1: the label nan is neither"),
        ("t.jsonl", '{"path": "pictures/1.png", "label": ["a"]}', [], r"line 1: the label \['a'\] is neither"),
        ("t.jsonl", '{"path": 1, "label": "a"}', [], "line 1: the path 1 is no text"),
        ("t.jsonl", '{"path": "pictures/1.png", "label": 1, "label": 2}', [], "line 1 cannot be read.*stands twice"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_with_its_line(folder, name, header, rows, message):
    with pytest.raises(DataError, match=message):
        Table(file=write(folder, header, rows, name)).load()


def test_a_whole_number_is_one_however_it_is_written(folder):
    rows = [f"pictures/{n}.png,{('10', '10.0', '9.', '9')[n % 4]},{n % 2}.0" for n in range(12)]
    dataset = Table(file=write(folder, "path,label,client", rows)).load()
    assert (dataset.class_names, dataset.client_names) == (("9", "10"), ("0", "1"))
    long = "12345678901234567890"
    rows = [f"pictures/{n}.png,{(long, f'{long}.0', '1.0E+01', '10')[n % 4]}" for n in range(12)]
    assert Table(file=write(folder, "path,label", rows)).load().class_names == ("10", long)
    lines = [json.dumps({"path": f"pictures/{n}.png", "label": (1, 10**400)[n % 2]}) for n in range(12)]
    assert Table(file=write(folder, lines[0], lines[1:], "t.jsonl")).load().class_names == ("1", str(10**400))
    lines = [json.dumps({"path": f"pictures/{n}.png", "label": [1, 1.0, "2"][n % 3]}) for n in range(12)]
    assert Table(file=write(folder, lines[0], lines[1:], "t.jsonl")).load().class_names == ("1", "2")
    rows = [f"pictures/{n}.png,{'ab'[n % 2]},{(1.5, 3)[n // 6]}" for n in range(12)]
    assert Table(file=write(folder, "path,label,domain", rows)).load().domain_names == ("1.5", "3")  # a name, no class


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("before", ["", "sep={}\r\n"])
def test_tables_of_spreadsheets_are_read(folder, separator, before):
    rows = [["path", "label", ""], *[[f"pictures\\{n}.png", "a, b" if n % 2 else "c;d"] for n in range(12)]]
    quoted = (separator.join(f'"{cell}"' if cell in ("a, b", "c;d") else cell for cell in row) for row in rows)
    text = before.format(separator) + "\r\n".join(quoted) + f"\r\n{separator}\r\n"
    (folder / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    dataset = Table(file=str(folder / "t.csv")).load()
    assert dataset.class_names == ("a, b", "c;d")
    assert is_color(dataset.splits["test"].read(np.array([0]))[0], int(names(dataset.splits["test"])[0][9:-4]))


def test_clients_and_domains_are_compared_in_nfc(folder):
    spelled = ("Z\u00fcrich", "Zu\u0308rich")
    rows = [f"pictures/{n}.png,{'ab'[n % 2]},{spelled[n // 6]}" for n in range(12)]
    dataset = Table(file=write(folder, "path,label,client", rows)).load()
    assert dataset.client_names == ("Z\u00fcrich",)
