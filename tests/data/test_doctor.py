import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

import hushprompt as hp
from helpers.layouts import image, images
from hushprompt.config import parse as configs
from hushprompt.data.doctor import Subject, examine, quick, warn
from hushprompt.data.partitions.by_class import IID
from hushprompt.data.readers.folder import Folder
from hushprompt.data.readers.table import Table
from hushprompt.data.sets.toy import ToyData


def saved(pixels, kind, **settings):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of ordinary images."""
    images(tmp_path, ["cat", "dog"], 6)
    for path in tmp_path.rglob("*.jpg"):
        Image.open(path).resize((20, 16)).save(path)
    return tmp_path


def told(findings):
    return {one.kind: one.count for one in findings}


def test_good_data_are_found_good(folder):
    assert examine(Subject(dataset=Folder(root=str(folder)).load())) == []
    assert examine(Subject(dataset=ToyData().load())) == examine_tiny(72 + 18 + 18)


def examine_tiny(count):
    """What is said of the toy images, which have 8 x 8 pixels."""
    (one,) = examine(Subject(dataset=ToyData().load()))
    assert (one.kind, one.count) == ("tiny", count)
    return [one]


def test_pixels_are_looked_at(folder, monkeypatch):
    monkeypatch.setattr("hushprompt.data.doctor.HUGE", 2000)
    gray = np.full((20, 20), 4000, dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = np.zeros((20, 20, 3), dtype=np.uint8)
    for place, content in {
        "cat/dark.png": saved(gray, "PNG"),
        "cat/bright.png": saved(gray * 16, "PNG"),
        "dog/turned.jpg": saved(plain, "JPEG", exif=exif),
        "dog/tiny.png": saved(plain[:3], "PNG"),
        "dog/huge.png": saved(np.zeros((50, 50, 3), dtype=np.uint8), "PNG"),
        "dog/broken.png": b"x",
    }.items():
        (folder / place).write_bytes(content)
    findings = examine(Subject(dataset=Folder(root=str(folder)).load()))
    assert told(findings) == {"unreadable": 1, "turned": 1, "twelve_bits": 1, "tiny": 1, "huge": 1}
    assert [one.is_refused for one in findings] == [True, False, False, False, False]
    paths = {one.kind: one.paths[0] for one in findings}
    assert paths["twelve_bits"].endswith("cat/dark.png")
    assert paths["turned"].endswith("dog/turned.jpg")


def test_names_classes_and_files_are_looked_at_without_reading(folder):
    image(folder / "Cat" / "1.jpg", 50)
    image(folder / "d og" / "1.jpg", 51)
    (folder / "Thumbs.db").write_text("x")
    dataset = Folder(root=str(folder)).load()
    findings = quick(Subject(dataset=dataset))
    assert told(findings) == {"stray_files": 1, "classes_without_test": 2, "class_names_alike": 2}
    assert findings[-1].paths == ("'Cat' = 'cat'", "'d og' = 'dog'")


def test_clients_whose_names_are_alike_and_classes_only_in_test(folder):
    rows = [f"{path.relative_to(folder)},{path.parent.name},{('A', 'a ', 'B')[n % 3]},{('train', 'test')[n % 2]}"
            for n, path in enumerate(sorted(folder.rglob("*.jpg")))]  # fmt: skip
    image(folder / "only.jpg", 70)
    (folder / "t.csv").write_text("\n".join(["path,label,client,split", *rows, "only.jpg,emu,B,test"]))
    findings = quick(Subject(dataset=Table(file=str(folder / "t.csv")).load()))
    assert told(findings) == {"classes_without_train": 1, "client_names_alike": 1}


def test_few_shots_that_cannot_be_met(folder):
    dataset = Folder(root=str(folder)).load()
    rule = IID(num_clients=1, num_shots=4)
    partition = rule.partition(dataset, np.random.default_rng(0))
    (one,) = quick(Subject(dataset=dataset, partition=partition, num_shots=4))
    assert (one.kind, one.count, one.paths[0]) == ("few_shots", 2, "cat at client 0: 3")
    partition = dataclasses.replace(rule, num_shots=3).partition(dataset, np.random.default_rng(0))
    assert quick(Subject(dataset=dataset, partition=partition, num_shots=3)) == []


def test_copies_are_told_and_those_that_a_run_refuses_first(folder):
    for split in ("train", "test"):
        (folder / split).mkdir()
    for name in ("cat", "dog"):
        for n, path in enumerate(sorted((folder / name).iterdir())):
            (folder / ("train", "test")[n % 2] / name).mkdir(exist_ok=True)
            path.rename(folder / ("train", "test")[n % 2] / name / path.name)
        (folder / name).rmdir()
    content = (folder / "train" / "cat" / "image_0001.jpg").read_bytes()
    (folder / "train" / "dog" / "copy.jpg").write_bytes(content)
    config = hp.data_info("folder", root=folder)
    assert told(config.findings) == {"copies_in_training": 1}
    (folder / "test" / "dog" / "copy.jpg").write_bytes(content)
    found = hp.data_info("folder", root=folder, verify=True).findings
    assert [(one.kind, one.is_refused) for one in found] == [
        ("copies_across_splits", True), ("copies_in_training", False),
    ]  # fmt: skip


def test_a_run_warns_once_in_one_line(folder, caplog):
    for name in ("Thumbs.db", "cat/notes.txt"):
        (folder / name).write_text("x")
    warn(Subject(dataset=Folder(root=str(folder)).load()))
    (record,) = caplog.records
    assert record.getMessage().count("\n") == 0
    assert "no examples (1: cat/notes.txt); Files were left by" in record.getMessage()
    assert "hushprompt data info CONFIG --verify" in record.getMessage()


def test_the_command_prints_a_line_each_and_json(hush, folder):
    (folder / "Thumbs.db").write_text("x")
    done = hush("data", "info", "folder", "--root", folder, "--verify")
    assert "- Files were left by a NAS, a camera or another program and are left out (1: Thumbs.db)\n" in done.out
    values = json.loads(hush("data", "info", "folder", "--root", folder, "--verify", "--format", "json").out)
    assert (values["class_names"], values["is_verified"]) == (["cat", "dog"], True)
    assert values["findings"] == [
        {
            "kind": "stray_files",
            "message": "Files were left by a NAS, a camera or another program and are left out",
            "count": 1,
            "paths": ["Thumbs.db"],
            "is_refused": False,
        }
    ]


def test_a_config_says_who_holds_what(toy_values):
    assert hp.data_info("toy").findings == []
    config = configs.parse({**toy_values, "partition": {"name": "iid", "num_clients": 4, "num_shots": 9}})
    assert told(hp.data_info(config).findings) == {"few_shots": 24}
