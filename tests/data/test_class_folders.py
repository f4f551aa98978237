import os

import pytest

from helpers.layouts import image, images
from hushprompt.data.class_folders import media_files, walk
from hushprompt.data.readers.folder import Folder
from hushprompt.errors import DataError


def test_a_loop_of_links_is_walked_once(tmp_path):
    images(tmp_path, ["cat", "dog"], 8)
    (tmp_path / "cat" / "self").symlink_to(".")
    (tmp_path / "dog" / "up").symlink_to("..")
    (tmp_path / "dog" / "other").symlink_to("../cat")
    walked = walk(tmp_path)
    assert len(walked.media) == 16
    assert walked.repeated == ["cat/self", "dog/other", "dog/up"]
    dataset = Folder(root=str(tmp_path)).load()
    assert [len(split) for split in dataset.splits.values()] == [8, 4, 4]
    assert [(one.kind, one.count) for one in dataset.findings] == [("links", 3)]


def test_a_link_counts_where_it_leads_out_and_once(tmp_path):
    image(tmp_path / "store" / "1.jpg", 1)
    image(tmp_path / "store" / "deep" / "2.jpg", 2)
    root = tmp_path / "root"
    images(root, ["cat"], 2)
    (root / "zoo").symlink_to(tmp_path / "store")
    (root / "cat" / "b.jpg").symlink_to(tmp_path / "store" / "1.jpg")
    (root / "cat" / "c.jpg").symlink_to("image_0001.jpg")
    walked = walk(root)
    assert walked.media == ["cat/image_0001.jpg", "cat/image_0002.jpg", "zoo/1.jpg", "zoo/deep/2.jpg"]
    assert walked.repeated == ["cat/b.jpg", "cat/c.jpg"]


def test_two_links_to_one_file_elsewhere_are_one_example(tmp_path):
    image(tmp_path / "store" / "1.jpg", 1)
    (tmp_path / "root" / "cat").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "root" / "cat" / name).symlink_to(tmp_path / "store" / "1.jpg")
    walked = walk(tmp_path / "root")
    assert (walked.media, walked.repeated) == (["cat/a.jpg"], ["cat/b.jpg"])


def test_a_link_to_itself_leads_nowhere(tmp_path):
    images(tmp_path, ["cat", "dog"], 8)
    (tmp_path / "cat" / "self").symlink_to("self")
    (tmp_path / "loop").symlink_to("loop")
    walked = walk(tmp_path)
    assert (len(walked.media), walked.others) == (16, ["cat/self", "loop"])
    assert Folder(root=str(tmp_path)).load().class_names == ("cat", "dog")
    (tmp_path / "cat" / "self.jpg").symlink_to("self.jpg")
    with pytest.raises(DataError, match=r"cat/self\.jpg is missing"):
        Folder(root=str(tmp_path)).load()


def test_a_link_that_leads_nowhere_is_named_when_it_is_read(tmp_path):
    images(tmp_path, ["cat", "dog"], 4)
    (tmp_path / "cat" / "x.jpg").symlink_to("gone.jpg")
    with pytest.raises(DataError, match=r"cat/x\.jpg is missing"):
        Folder(root=str(tmp_path)).load()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    images(tmp_path, ["cat", "dog"], 1)
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"cat cannot be listed \(Permission denied\)"):
        media_files(tmp_path)
