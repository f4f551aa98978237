import gzip
import json

import pytest

from helpers.fake_runs import with_settings, write_run
from hushprompt.errors import DataError
from hushprompt.runs import archive, reader


@pytest.fixture
def folders(tmp_path):
    """Two runs with more files than are kept."""
    for name in ("b", "a"):
        for file in ("config.toml", "summary.json", "privacy.json", "confusion/row-0.json", "prompts/x.bin"):
            path = tmp_path / "sweep" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} {file} ε\n", encoding="utf-8")
    return [tmp_path / "sweep" / name for name in ("b", "a")]


def test_runs_come_back_as_they_were(folders, tmp_path):
    assert archive.pack(folders, tmp_path / "x.jsonl.gz") == 2
    first, second = archive.iterate(tmp_path / "x.jsonl.gz")
    assert (first.folder, second.folder) == ("b", "a")  # as given
    assert first.files["confusion/row-0.json"] == "b confusion/row-0.json ε\n"
    assert "prompts/x.bin" not in first.files
    back = archive.unpack(tmp_path / "x.jsonl.gz", tmp_path / "back")
    assert [folder.name for folder in back] == ["b", "a"]
    assert (back[0] / "privacy.json").read_bytes() == (folders[0] / "privacy.json").read_bytes()


def test_equal_runs_give_equal_bytes_whatever_the_file_name(folders, tmp_path):
    archive.pack(folders, tmp_path / "x.jsonl.gz", archive.RESULTS)
    archive.pack(folders, tmp_path / "y.jsonl.gz", archive.RESULTS)
    content = (tmp_path / "x.jsonl.gz").read_bytes()
    assert content == (tmp_path / "y.jsonl.gz").read_bytes()
    lines = gzip.decompress(content).decode().splitlines()
    assert list(json.loads(lines[0])["files"]) == sorted(archive.RESULTS)


def test_what_is_no_archive_or_leads_outside_is_refused(folders, tmp_path):
    (tmp_path / "x.jsonl.gz").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        list(archive.iterate(tmp_path / "x.jsonl.gz"))
    line = json.dumps({"folder": "a", "files": {"../../evil": "x"}})
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    with pytest.raises(DataError, match="outside its run"):
        archive.unpack(tmp_path / "y.jsonl.gz", tmp_path / "back")
    with pytest.raises(DataError, match="same name"):
        archive.pack([*folders, folders[0]], tmp_path / "z.jsonl.gz")


def test_a_sweep_is_packed_in_the_order_it_was_planned_and_without_what_is_not_finished(folders, tmp_path):
    sweep = tmp_path / "sweep"
    assert [folder.name for folder in archive.finished(sweep)] == ["a", "b"]
    (sweep / "sweep.json").write_text(json.dumps({"runs": [{"folder": name} for name in ("b", "c", "a")]}))
    assert [folder.name for folder in archive.run_folders(sweep)] == ["b", "c", "a"]
    assert [folder.name for folder in archive.finished(sweep)] == ["b", "a"]


def test_a_packed_sweep_is_read_like_its_folder(toy_values, tmp_path):
    folders = [
        write_run(tmp_path / "sweep" / f"seed{seed}", with_settings(toy_values, "dp_fpl", seed=seed), [(0.5, 0.4)])
        for seed in (1, 2)
    ]
    archive.pack(folders, tmp_path / "kept" / archive.FILE)
    loose = reader.find([tmp_path / "sweep"]).runs
    for packed in (tmp_path / "kept", tmp_path / "kept" / archive.FILE):
        assert list(reader.find([packed]).runs) == list(loose)
