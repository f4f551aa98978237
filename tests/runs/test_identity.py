"""A run is its content: it goes on with equal bytes wherever they lie, and with nothing else."""

import dataclasses
import json
import logging
import os
import shutil

import pytest
from PIL import Image

import hushprompt as hp
from helpers.runs import Silent, run_with
from helpers.tables import picture, values, write_table
from hushprompt.config import parse as configs
from hushprompt.data import content
from hushprompt.data.content import content_of
from hushprompt.errors import ConfigError, ResumeError
from hushprompt.models.toy import Toy
from hushprompt.runs import identity, records
from hushprompt.runs.ledger import LedgerFile


@pytest.fixture
def data(tmp_path):
    return write_table(tmp_path / "data" / "imgs")


def begun(tmp_path, data, **privacy):
    """A run of a table that was killed after its second round."""
    with pytest.raises(KeyboardInterrupt):
        run_with(values(data / "clients.csv", **privacy), tmp_path, stop_after=2)
    folder = tmp_path / "run"
    config = configs.parse(
        {**values(data / "clients.csv", **privacy), "runtime": {"cache_dir": str(tmp_path / "cache")}}
    )
    (folder / "config.toml").write_text(config.to_toml())
    return folder


def refused(folder, *words, overrides=()):
    ledger = (folder / "ledger.jsonl").read_bytes()
    with pytest.raises(ResumeError) as caught:
        hp.resume(folder, progress=Silent(), overrides=overrides)
    for word in words:
        assert word in str(caught.value)
    assert (folder / "ledger.jsonl").read_bytes() == ledger, "nothing is charged"
    assert not (folder / "summary.json").exists()


def goes_on(folder, overrides=()):
    assert hp.resume(folder, progress=Silent(), overrides=overrides).is_finished


def test_a_run_with_another_client_is_refused_by_name(tmp_path, data):
    folder = begun(tmp_path, data)
    write_table(data, {"east": range(2), "north": range(2, 4), "south": range(4, 8)})
    refused(folder, "clients: east new", "train data are not those")


def test_equal_sizes_in_other_hands_are_refused(tmp_path):
    data = write_table(tmp_path / "imgs")
    folder = begun(tmp_path, data)
    write_table(data, {"south": range(4), "north": range(4, 8)})
    refused(folder, "the train data are not those of the start")


def test_a_client_of_another_size_is_named_with_both_sizes(tmp_path, data):
    folder = begun(tmp_path, data)
    write_table(data, {"north": range(5), "south": range(5, 8)})
    refused(folder, "north had 6 training examples and has 8", "south had 6 training examples and has 4")


def test_other_bytes_of_the_same_size_and_date_are_refused(tmp_path, data):
    for number in range(8):  # uncompressed: one pixel is another, and nothing else
        Image.open(data / f"cat{number}.png").save(data / f"cat{number}.png", "bmp")
    folder, path = begun(tmp_path, data), data / "cat0.png"
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    refused(folder, "the train data are not those of the start")


def test_a_renamed_class_is_named(tmp_path, data):
    folder = begun(tmp_path, data)
    table = data / "clients.csv"
    table.write_text(table.read_text().replace(",dog,", ",wolf,"))
    refused(folder, "classes: dog gone and wolf new")


def test_a_new_date_a_new_folder_and_a_relative_root_go_on(tmp_path, data, monkeypatch):
    folder = begun(tmp_path, data)
    for path in data.iterdir():
        os.utime(path, (1, 1))
    spare = tmp_path / "spare"
    shutil.copytree(folder, spare)
    goes_on(folder)
    moved = tmp_path / "elsewhere" / "pictures"
    shutil.move(data, moved)
    monkeypatch.chdir(moved.parent)
    goes_on(spare, overrides=["data.file=pictures/clients.csv"])
    first, second = (json.loads((one / "summary.json").read_text()) for one in (folder, spare))
    assert first["identity"] == second["identity"]
    assert str(tmp_path) not in json.dumps(first["identity"])
    assert (folder / "ledger.jsonl").read_bytes() == (spare / "ledger.jsonl").read_bytes()


def test_a_resume_changes_no_setting_but_where_things_lie(tmp_path, data):
    folder = begun(tmp_path, data)
    with pytest.raises(ConfigError, match=r"privacy\.epsilon cannot change"):
        hp.resume(folder, overrides=["privacy.epsilon=8"])
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("epsilon = 4.0", "epsilon = 8.0", 1))
    refused(folder, "privacy.epsilon was 4.0 and is 8.0")


def test_another_backbone_under_the_same_name_is_refused_before_images_are_encoded(tmp_path, data, monkeypatch):
    folder, true_load = begun(tmp_path, data), Toy.load

    def other_weights(self):
        model = true_load(self)
        model.fingerprint = "f" * 64
        return model

    monkeypatch.setattr(Toy, "load", other_weights)
    refused(folder, "the backbone is another one", "now ffffffffffff")


def test_other_versions_refuse_a_seeded_run_and_are_told_of_a_secure_one(tmp_path, data, monkeypatch, caplog):
    folder = begun(tmp_path, data)
    secure = tmp_path / "secure"
    secure.mkdir()
    begun(secure, data, noise_source="secure")
    monkeypatch.setattr(identity, "versions_of", lambda config: {"hushprompt": "9.9", "torch": "2"})
    refused(folder, "seeded run", "hushprompt", "now 9.9", "torch")
    goes_on(secure / "run")
    assert caplog.text.count("was begun with other versions: hushprompt ") == 1


def test_the_version_of_another_package_counts(tmp_path, monkeypatch):
    from helpers.other_package import other_package

    with other_package(tmp_path / "site"):
        config = configs.parse({**values("t.csv"), "method": {"name": "smoothed", "num_ctx": 2, "rank": 1}})
        assert identity.versions_of(config)["smoothing"] == "1.0"


def test_a_lost_or_exchanged_identity_gives_no_other_data(tmp_path, data):
    folder = begun(tmp_path, data)
    path = folder / "identity.json"
    recorded = records.read_json(path)
    recorded["data"]["train"] = "0" * 64
    records.write_json(path, recorded)
    refused(folder, "the train data are not those")
    path.unlink()
    refused(folder, "identity.json is gone")


def test_a_ledger_of_another_run_is_refused(tmp_path, data):
    folder = begun(tmp_path, data)
    path = folder / "ledger.jsonl"
    line = json.loads(path.read_text().splitlines()[0])
    assert line["clients"] == ["north", "south"]
    assert line["identity"] == identity.read(folder).digest[:16]
    path.write_text(path.read_text().replace(line["identity"], "0" * 16))
    with pytest.raises(ResumeError, match="charges for the identity 0000000000000000"):
        goes_on(folder)
    path.write_text(path.read_text().replace('"north"', '"west"'))
    with pytest.raises(ResumeError, match=r"charges .west., who is no client"):
        LedgerFile(folder, ["north", "south"], "0" * 64)


def test_a_run_of_an_older_version_goes_on_and_says_what_is_not_known(tmp_path, data, caplog):
    folder = begun(tmp_path, data)
    (folder / "identity.json").unlink()
    ranges = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    old = [json.dumps({"arm": line["arm"], "round": line["round"], "clients": [[0, 1]]}) for line in ranges]
    (folder / "ledger.jsonl").write_text("\n".join(old) + "\n")
    with caplog.at_level(logging.WARNING):
        with pytest.raises(ResumeError, match="another config"):  # which old checkpoints name with its paths
            goes_on(folder, overrides=[f"data.root={data}"])
        goes_on(folder)
    assert "identity not recorded" in caplog.text
    summary = records.read_json(folder / "summary.json")
    assert summary["identity"] is None
    assert not (folder / "identity.json").exists()


def test_files_that_hold_a_fingerprint_of_the_data_are_named_as_not_private(tmp_path, data):
    folder, _, _ = run_with(values(data / "clients.csv"), tmp_path)
    found = identity.read(folder)
    prints = [found.digest[:16].encode(), *(each.encode() for each in found.data.values())]
    holders = {p.name for p in folder.rglob("*.*") if any(each in p.read_bytes() for each in prints)}
    assert holders == {"identity.json", "summary.json", "ledger.jsonl"}
    told = json.loads((folder / "privacy.json").read_text())["not_private"]
    assert all(name in told for name in holders)


def test_equal_bytes_give_equal_content_and_any_change_another(tmp_path, data, monkeypatch):
    def digest():
        return content_of(configs.parse(values(data / "clients.csv")).data.load().splits["train"])

    first = digest()
    assert first.is_whole
    assert digest() == first
    picture(data / "cat1.png", 99)
    assert digest() != first
    monkeypatch.setattr(content, "MAX_READ", 3)
    assert not digest().is_whole
    picture(data / "cat1.png", 1)
    sampled = digest()
    (data / "cat1.png").write_bytes((data / "cat1.png").read_bytes() + b"\0")  # not read, but longer
    assert digest() != sampled


def test_of_data_that_are_only_sampled_the_features_must_agree():
    first = identity.RunIdentity(
        settings={}, class_names=("a", "b"), clients=(("x", 1),), split="s", data={"train": "d"}, is_whole=False,
        backbone="b", features={"train (pooled)": "1"},
    )  # fmt: skip
    other = dataclasses.replace(first, features={"train (pooled)": "2"})
    assert "features of train (pooled) are not those" in first.differences(other)[0]
    whole = [dataclasses.replace(one, is_whole=True) for one in (first, other)]
    assert whole[0].differences(whole[1]) == []
    assert whole[0].digest == whole[1].digest
