import pytest

from helpers.layouts import images


def test_info_of_a_config_shows_splits_and_checksums(hush, tmp_path):
    images(tmp_path / "mine", ["red_fox", "cat"], 10)
    done = hush("data", "info", "embedded", "--set=data={name='folder', root='mine'}")
    assert "2 classes: cat, red fox" in done.out
    assert "split checksum: 172746e5ff2280a2" in done.out
    assert "0.2 of each class for validation and 0.3 for test" in done.out
    assert "left out as unreadable: 0" in done.out
    (train,) = [line.split() for line in done.out.splitlines() if line.startswith("│ train")]
    assert train[1:6:2] == ["train", "10", "5"]


def test_info_of_a_name_takes_the_root_and_other_settings(hush, tmp_path):
    images(tmp_path / "mine", ["red_fox", "cat"], 10)
    done = hush("data", "info", "folder", "--root", "mine", "--set=data.test_fraction=0.5", "--verify")
    assert "Every example can be read." in done.out
    (tmp_path / "mine" / "cat" / "image_0001.jpg").write_bytes(b"x")
    done = hush("data", "info", "folder", "--root", "mine", "--verify", ok=False)
    assert "cat/image_0001.jpg cannot be read" in done.out
    assert "A run refuses mine: Examples cannot be read (1: The image mine/cat/image_0001.jpg" in done.err
    done = hush("data", "info", "folder", "--root", "mine", "--set=data.on_unreadable=skip")
    assert "left out as unreadable: 1" in done.out


def test_info_of_data_that_is_not_there_says_what_it_is_and_how_to_get_it(hush):
    done = hush("data", "info", "dtd", ok=False)
    assert "Describing Textures in the Wild" in done.out
    assert "hushprompt data fetch dtd --root data" in done.err
    assert "There is no data set 'ddt'" in hush("data", "info", "ddt", ok=False).err


def test_fetch_says_what_to_get_where_there_is_no_download(hush):
    done = hush("data", "fetch", "domainnet", ok=False)
    assert "clipart.zip" in done.err
    assert "There is nothing to fetch for emoji100" in hush("data", "fetch", "emoji100", ok=False).err


def test_partition_prints_the_table_and_writes_csv_and_plot(hush, tmp_path):
    pytest.importorskip("matplotlib")
    done = hush("partition", "--set=data.name=toy", "--set=partition.num_clients=3", "--out", "here")
    assert "toy, disjoint_classes, 3 clients, seed 1" in done.out
    assert "client 2 │" in done.out
    assert (tmp_path / "here" / "partition.csv").read_text().startswith("client_id,client,split,class,examples\n")
    assert (tmp_path / "here" / "partition.png").stat().st_size > 5000


def test_partition_by_a_column_of_my_file(hush, tmp_path):
    pytest.importorskip("matplotlib")
    images(tmp_path / "pictures", ["ant", "bee"], 12)
    rows = [
        f"pictures/{name}/image_{n:04d}.jpg,{name},hospital {n % 2}" for name in ("ant", "bee") for n in range(1, 13)
    ]
    (tmp_path / "mine.csv").write_text("\n".join(["path,label,client", *rows]) + "\n")
    done = hush("partition", "--set=data={name='table', file='mine.csv'}", "--set=partition.name=by_client")
    assert "mine, by_client, 2 clients" in done.out
    assert "hospital 1 │██│" in done.out


def test_info_lists_the_features_that_come_with_the_package(hush):
    lines = hush("data", "info", "embedded", "--cache-dir", "cache").out.splitlines()
    start = lines.index("features that come with the package:")
    assert sum("complete" in line for line in lines[start:]) == 3
    assert lines[-1].startswith("cached features: none in cache")
    assert "come with the package" not in hush("data", "info", "toy", "--cache-dir", "cache").out


def test_info_lists_what_is_cached_and_its_size(hush):
    toy = ("--set", "data.name=toy", "--set", "backbone.name=toy")
    assert "cached features: none in " in hush("data", "info", "toy", "--cache-dir", "cache").out
    quick = ("--set", "training.num_rounds=0", "--set", "references=[]", "--set", "privacy.delta=1e-3")
    few = ("--set", "partition.num_clients=3", "--set", "method={name='zero_shot'}")
    hush("run", *toy, *quick, *few, "--set", "runtime.cache_dir=cache", "--out", "run")
    lines = hush("data", "info", "toy", "--cache-dir", "cache").out.splitlines()
    (train,) = [line for line in lines if line.startswith("│ train") and "float32" in line]
    assert "72 x 6" in train
    assert "complete" in train
    assert any(line.startswith("cached features: 0.0 MB in cache") for line in lines)
    patches = ("--set", "partition.num_clients=3", "--set", "method={name='fedotp', num_ctx=4}")
    hush("run", *toy, *quick, *patches, "--set", "runtime.cache_dir=cache", "--out", "patches")
    assert "72 x 4 x 6" in hush("data", "info", "toy", "--cache-dir", "cache").out
