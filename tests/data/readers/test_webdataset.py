import json

import numpy as np
import pytest

from helpers.layouts import encoded, is_color, names, tar, wav
from hushprompt.data.readers.webdataset import WebDataset
from hushprompt.errors import ConfigError, DataError


def sample(number, label, ending="cls", kind="png", prefix="s"):
    return {f"{prefix}{number:03d}.{ending}": str(label).encode(), f"{prefix}{number:03d}.{kind}": encoded(number)}


def merged(*parts):
    return {name: data for part in parts for name, data in part.items()}


def test_shards_are_read_in_place_in_order(tmp_path):
    tar(tmp_path / "a-train-000.tar", merged(*(sample(n, n % 2) for n in range(4))))
    tar(tmp_path / "a-train-001.tar", merged(*(sample(n, n % 2) for n in range(4, 6))))
    tar(tmp_path / "a-test-000.tar", merged(*(sample(n, n % 2) for n in range(6, 8))))
    dataset = WebDataset(root=str(tmp_path), classes=("cat", "dog")).load()
    assert dataset.class_names == ("cat", "dog")
    train = dataset.splits["train"]
    assert names(train)[4] == "a-train-001.tar/s004.png"
    assert train.labels.tolist() == [0, 1] * 3
    for number, pixels in enumerate(train.read(np.arange(6))):
        assert is_color(pixels, number, 0)
    assert is_color(dataset.splits["test"].read(np.array([1]))[0], 7, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-test-000.tar", "a-train-000.tar", "a-train-001.tar"]


def test_what_the_webdataset_package_writes_is_read(tmp_path):
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "x-{}.tar".format("train"))) as sink:
        for number in range(8):
            label = ["cat", "red_fox"][number % 2]
            content = {"label": label, "client": f"site {number % 2}", "domain": number // 4, "group": number // 2}
            sink.write({"__key__": f"deep/s{number}", "png": encoded(number), "json": content, "txt": "a caption"})
    dataset = WebDataset(root=str(tmp_path)).load()
    assert dataset.class_names == ("cat", "red fox")
    assert dataset.client_names == ("site 0", "site 1")
    assert dataset.domain_names == ("0", "1")
    assert dataset.group_names == ("0", "1", "2", "3")
    assert "shuffled by hushprompt" in dataset.split_source
    for split in dataset.splits.values():
        for row, name in enumerate(names(split)):
            number = int(name.split("/s")[1][0])
            assert split.groups[row] == number // 2
            assert is_color(split.read(np.array([row]))[0], number, 0)
            assert split.labels[row] == split.clients[row] == number % 2


def test_sounds_and_texts(tmp_path):
    pytest.importorskip("soundfile")
    members = {}
    for n, label in enumerate((b"hum\n", b"hum\r\n", b"buzz", b"\xef\xbb\xbfbuzz")):
        members |= {f"{n}.txt": label, f"{n}.wav": wav(tmp_path / "x.wav", 440 + 50 * n, rate=8000).read_bytes()}
    tar(tmp_path / "train.tar", members)
    dataset = WebDataset(root=str(tmp_path), sampling_rate=8000).load()
    assert dataset.modality == "audio"
    assert dataset.class_names == ("buzz", "hum")
    assert dataset.splits["train"].read(np.array([0]))[0].shape == (800,)


def test_a_changed_tar_changes_the_fingerprint(tmp_path):
    tar(tmp_path / "train.tar", merged(*(sample(n, n % 2) for n in range(4))))
    before = WebDataset(root=str(tmp_path)).load().splits["train"].fingerprint
    tar(
        tmp_path / "train.tar",
        merged(*(sample(n, n % 2) for n in range(3)), {"s003.cls": b"1", "s003.png": encoded(9)}),
    )
    assert WebDataset(root=str(tmp_path)).load().splits["train"].fingerprint != before


def test_damaged_and_incomplete_tars_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.root must be given"):
        WebDataset().load()
    with pytest.raises(DataError, match=r"has no tar called \*train\*\.tar"):
        WebDataset(root=str(tmp_path)).load()
    path = tar(tmp_path / "train.tar", sample(1, 0))
    whole = path.read_bytes()
    path.write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match=r"train\.tar is not an uncompressed tar"):
        WebDataset(root=str(tmp_path)).load()
    path.write_bytes(whole[:1600])
    with pytest.raises(DataError, match=r"train\.tar is not an uncompressed tar, or cut off"):
        WebDataset(root=str(tmp_path)).load()
    tar(path, {"a.png": encoded(1)})
    with pytest.raises(DataError, match=r"train\.tar: a has no label"):
        WebDataset(root=str(tmp_path)).load()
    tar(path, {"a.cls": b"1"})
    with pytest.raises(DataError, match=r"train\.tar: a has no image or sound"):
        WebDataset(root=str(tmp_path)).load()
    tar(path, {"a.json": b"{", "a.png": encoded(1)})
    with pytest.raises(DataError, match=r"a\.json cannot be read"):
        WebDataset(root=str(tmp_path)).load()
    tar(path, {"a.jpg": encoded(1), "a.png": encoded(1), "a.cls": b"1"})
    with pytest.raises(DataError, match="a has two examples"):
        WebDataset(root=str(tmp_path)).load()
    with pytest.raises(DataError, match="belongs to two splits"):
        WebDataset(root=str(tmp_path), train="*.tar", test="train.tar").load()
    with pytest.raises(DataError, match=r"but none called \*test\*\.tar"):
        WebDataset(root=str(tmp_path), validation="*.tar").load()


def test_a_member_that_is_cut_off_later_is_named(tmp_path):
    path = tar(tmp_path / "train.tar", merged(*(sample(n, n % 2) for n in range(4))))
    dataset = WebDataset(root=str(tmp_path)).load()
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"train\.tar/s00.\.png is cut off"):
        dataset.splits["train"].read(np.array([0]))


def test_a_damaged_member_can_be_skipped(tmp_path, caplog):
    json_label = json.dumps({"label": "a"}).encode()
    tar(
        tmp_path / "train.tar",
        merged(*(sample(n, "ab"[n % 2]) for n in range(4)), {"x.json": json_label, "x.png": b"no"}),
    )
    dataset = WebDataset(root=str(tmp_path), on_unreadable="skip").load()
    assert dataset.num_skipped == 1
    assert "train.tar/x.png" in caplog.text


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"x.cls": b"3.5"}, r"train\.tar: x\.cls: the label 3\.5 is neither text of one line nor a whole number"),
        ({"x.txt": b"a\nb"}, r"x\.txt: the label 'a\\nb' is neither"),
        ({"x.json": b'{"label": true}'}, r"x\.json: the label True is neither"),
        ({"x.json": b'{"label": 1, "label": 2}'}, r"x\.json cannot be read .*stands twice"),
        ({"x.cls": b"caf\xe9"}, r"x\.cls cannot be read"),
    ],
)
def test_a_label_that_does_not_fit_is_refused(tmp_path, label, message):
    tar(tmp_path / "train.tar", {**label, "x.png": encoded(1)})
    with pytest.raises(DataError, match=message):
        WebDataset(root=str(tmp_path)).load()


def test_whole_numbers_marks_and_files_of_other_programs(tmp_path):
    labels = [b"1", b"1.0\r\n", b"\xef\xbb\xbf2", b"2"]
    parts = [{f"{n}.cls": label, f"{n}.png": encoded(n)} for n, label in enumerate(labels)]
    tar(tmp_path / "train.tar", merged(*parts, {"__MACOSX/0.png": b"x", "._0.png": b"x", "@eaDir/1.jpg": b"x"}))
    dataset = WebDataset(root=str(tmp_path)).load()
    assert dataset.class_names == ("1", "2")


def test_a_link_to_a_tar_is_not_another_tar(tmp_path):
    tar(tmp_path / "train-0.tar", merged(*(sample(n, n % 2) for n in range(4))))
    (tmp_path / "train-1.tar").symlink_to("train-0.tar")
    with pytest.raises(DataError, match="is there twice by a link"):
        WebDataset(root=str(tmp_path)).load()
