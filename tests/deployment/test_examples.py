import logging

from helpers.deployments import NAMES, Deployment
from helpers.layouts import image
from hushprompt.data.readers.folder import Folder


def test_a_client_is_told_once_of_copies_in_its_own_data(toy_values, tmp_path, caplog):
    places = [f"{split}/{name}" for split in ("train", "test") for name in ("ant", "bee", "cat")]
    for number, place in enumerate(places):
        for index in range(4):
            image(tmp_path / "data" / place / f"{index}.png", 10 * number + index)
    image(tmp_path / "data" / "train" / "bee" / "again.png", 11)
    values = {
        **toy_values,
        "data": {"name": "folder", "root": str(tmp_path / "data")},
        "privacy": {"epsilon": 2.0, "delta": 1e-3},
    }
    with caplog.at_level(logging.WARNING):
        deployment = Deployment(values, tmp_path)
        for name in NAMES:
            deployment.restart(name, data=Folder(root=str(tmp_path / "data")))
        deployment.serve()
    (line,) = [record.getMessage() for record in caplog.records if "Data set" in record.getMessage()]
    assert "again.png" in line
    assert "stands 2 times in one client's training set" in line
    assert "not 2, at delta = 0.001" in line
