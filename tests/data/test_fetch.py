import sys
import types
from pathlib import Path

import pytest

from helpers.layouts import images
from hushprompt.data.listing import fetch
from hushprompt.data.sets.caltech101 import ABOUT, Caltech101
from hushprompt.data.sets.esc50 import ABOUT as ESC50
from hushprompt.errors import ConfigError, DataError
from hushprompt.registry import DATASETS


@pytest.fixture
def torchvision(monkeypatch):
    """A torchvision that remembers what was asked of it."""
    asked = []

    def caltech101(root, download):
        asked.append((root, download))
        if root.endswith("offline"):
            raise OSError("no network")
        images(Path(root) / "caltech101" / "101_ObjectCategories", [f"class_{index:03d}" for index in range(100)], 4)

    package, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    datasets.Caltech101, package.datasets = caltech101, datasets
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    return asked


def test_torchvision_downloads_below_the_root(torchvision, tmp_path):
    fetch(ABOUT, tmp_path / "new" / "data")
    assert torchvision == [(str(tmp_path / "new" / "data"), True)]


def test_a_missing_data_set_is_downloaded_once_where_the_config_allows_it(torchvision, tmp_path):
    root = str(tmp_path / "data")
    with pytest.raises(DataError, match="is missing"):
        Caltech101(root=root).load()
    assert not torchvision
    allowed = Caltech101(root=root, download=True)
    assert len(allowed.load().class_names) == 100
    assert allowed.load().class_names[0] == "class 000"
    assert torchvision == [(root, True)]


def test_a_missing_data_set_that_cannot_be_downloaded_says_what_to_put_where(torchvision, tmp_path):
    with pytest.raises(DataError, match=r"no network(?s:.)*101_ObjectCategories/CLASS"):
        Caltech101(root=str(tmp_path / "offline"), download=True).load()


def test_a_failed_download_says_how_to_do_it_by_hand(torchvision, tmp_path):
    with pytest.raises(DataError, match=r"failed \(no network\)\. By hand:\n1\. Download(?s:.)*101_Obj.*/CLASS"):
        fetch(ABOUT, tmp_path / "offline")


def test_without_torchvision_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ConfigError, match=r"pip install '.*\[torchvision\]'(?s:.)*1\. Download"):
        fetch(ABOUT, tmp_path)


def test_a_data_set_without_a_download_says_what_to_get(tmp_path):
    with pytest.raises(DataError, match=r"ESC-50 cannot be downloaded(?s:.)*master\.zip(?s:.)*meta/esc50\.csv"):
        fetch(ESC50, tmp_path)


def test_every_known_data_set_says_all_that_a_reader_needs():
    known = {name: cls.about for name, cls in ((n, DATASETS.get(n)) for n in DATASETS.names()) if hasattr(cls, "about")}
    assert len(known) == 10
    for name, about in known.items():
        assert about.name == name
        assert all((about.title, about.citation, about.license, about.homepage, about.layout, about.how_to_get))
        assert about.folders
        assert about.needs


def test_torchvision_knows_the_classes_that_are_named():
    datasets = pytest.importorskip("torchvision.datasets")
    for name in DATASETS.names():
        wanted = getattr(getattr(DATASETS.get(name), "about", None), "torchvision", "")
        assert not wanted or hasattr(datasets, wanted)
