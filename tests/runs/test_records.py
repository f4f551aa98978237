import json
import math

import numpy as np
import pytest

from hushprompt import files
from hushprompt.errors import DataError, ResumeError
from hushprompt.runs import records
from hushprompt.runs.records import RoundRecord


def record(round_index=1):
    return RoundRecord(
        arm="dp_fpl", round_index=round_index, seconds=0.1, loss=math.nan, local=0.5, neighbor=0.4, harmonic_mean=0.44,
        worst_client=0.1, bytes_up=8, bytes_down=8, epsilon={"public": 1.0, "personal": math.inf},
    )  # fmt: skip


def test_a_record_is_plain_json_without_nan_or_infinity(tmp_path):
    records.append_record(tmp_path / "r.jsonl", record())
    line = json.loads((tmp_path / "r.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert line["loss"] is None
    assert line["epsilon"] == {"public": 1.0, "personal": "inf"}
    again = records.from_json(RoundRecord, line)
    assert again.epsilon["personal"] == math.inf
    assert math.isnan(again.loss)


def test_records_are_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "r.jsonl"
    size = records.append_record(path, record(1))
    records.append_record(path, record(2))
    records.truncate_records(path, size)
    assert [json.loads(line)["round_index"] for line in path.read_text().splitlines()] == [1]
    with pytest.raises(ResumeError, match="records were lost"):
        records.truncate_records(path, size + 1)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    records.write_json(path, {"x": 1})

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        records.write_json(path, {"x": 2})
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(DataError, match="finished run"):
        records.read_json(tmp_path / "summary.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        records.read_json(tmp_path / "bad.json")


def test_a_folder_has_one_writer(tmp_path):
    with records.locked(tmp_path), pytest.raises(ResumeError, match="Another process"), records.locked(tmp_path):
        pass
    with records.locked(tmp_path):
        pass


def test_tables_of_counts_come_back_and_strange_columns_are_refused(tmp_path):
    table = np.array([[0, 3, 0], [1, 0, 2], [0, 0, 0]])
    records.write_compact_json(tmp_path / "t.json", {"note": "counts", "table": records.sparse_rows(table)})
    text = (tmp_path / "t.json").read_text()
    assert text == '{\n"note": "counts",\n"table": [{"1":3},{"0":1,"2":2},{}]\n}\n'
    assert records.dense_rows(records.read_json(tmp_path / "t.json")["table"], 3).tolist() == table.tolist()
    for column in ("3", "-1", "x"):
        with pytest.raises(DataError, match="only 3 columns"):
            records.dense_rows([{column: 1}], 3)
