import csv

import numpy as np
import pytest

from helpers.layouts import names, wav
from hushprompt.data.sets.esc50 import ESC50
from hushprompt.errors import ConfigError, DataError

pytest.importorskip("soundfile")
CATEGORIES = ["dog", "rooster", "sea_waves", *(f"sound_{index:02d}" for index in range(47))]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    home = tmp_path_factory.mktemp("data") / "ESC-50-master"
    rows = [(f"{fold}-{label}-A-{label}.wav", fold, label) for fold in range(1, 6) for label in range(50)]
    (home / "meta").mkdir(parents=True)
    with (home / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        for name, fold, label in rows:
            wav(home / "audio" / name, frequency=200 + 20 * label, seconds=0.02)
            writer.writerow([name, fold, label, CATEGORIES[label], "False", fold, "A"])
    return home.parent


def test_folds_names_and_waveforms(root):
    dataset = ESC50(root=str(root)).load()
    assert (dataset.modality, dataset.sampling_rate) == ("audio", 48000)
    assert dataset.class_names[:3] == ("dog", "rooster", "sea waves")
    assert [len(split) for split in dataset.splits.values()] == [200, 50]
    test = dataset.splits["test"]
    assert names(test)[2] == "5-2-A-2.wav"
    assert test.labels.tolist() == list(range(50))
    (wave,) = test.read(np.array([2]))
    assert (wave.dtype, wave.shape) == (np.float32, (960,))
    expected = np.sin(2 * np.pi * 240 * np.arange(960) / 48000) / 2
    assert np.abs(wave - expected)[100:-100].max() < 5e-3
    assert dataset.split_checksum[:16] == "1f5a4d5691201278"


def test_other_folds_can_be_test_and_validation(root):
    dataset = ESC50(root=str(root), test_fold=1, validation_fold=2, sampling_rate=16000).load()
    assert [len(split) for split in dataset.splits.values()] == [150, 50, 50]
    assert {name[0] for name in names(dataset.splits["test"])} == {"1"}
    assert {name[0] for name in names(dataset.splits["validation"])} == {"2"}
    assert dataset.splits["train"].read(np.array([0]))[0].shape == (320,)


def test_wrong_folds_and_damaged_tables_are_named(tmp_path):
    with pytest.raises(ConfigError, match="must differ, got 5 twice"):
        ESC50(validation_fold=5)
    with pytest.raises(ConfigError, match=r"test_fold must lie in \[1, 5\], got 6"):
        ESC50(test_fold=6)
    (tmp_path / "audio").mkdir()
    with pytest.raises(DataError, match=r"meta/esc50\.csv is missing(?s:.)*master\.zip"):
        ESC50(root=str(tmp_path)).load()
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text("filename,fold,target\na.wav,1,0\n")
    with pytest.raises(DataError, match=r"esc50\.csv is missing or damaged \(KeyError"):
        ESC50(root=str(tmp_path)).load()
    (tmp_path / "meta" / "esc50.csv").write_text("filename,fold,target,category\na.wav,1,0,dog\n")
    with pytest.raises(DataError, match="must have 50 classes, found 1"):
        ESC50(root=str(tmp_path)).load()
