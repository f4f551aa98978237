import os
import pickle

import numpy as np
import pytest

from hushprompt.data import pickles
from hushprompt.errors import DataError


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_plain_values_and_arrays_come_through(tmp_path, protocol):
    content = {
        "a": [1, 2.5, "x", b"y", None],
        "b": np.arange(6).reshape(2, 3),
        "c": np.array(["p", "q"]),
        "d": np.int64(3),
    }
    (tmp_path / "p").write_bytes(pickle.dumps(content, protocol=protocol))
    got = pickles.load(tmp_path / "p")
    assert got["a"] == content["a"]
    assert np.array_equal(got["b"], content["b"])
    assert got["c"].tolist() == ["p", "q"]
    assert got["d"] == 3


def test_numpys_old_names_are_known(tmp_path):
    data = pickle.dumps(np.arange(3, dtype=np.uint8), protocol=2)
    assert b"numpy._core" in data
    (tmp_path / "p").write_bytes(data.replace(b"numpy._core", b"numpy.core"))
    assert pickles.load(tmp_path / "p", encoding="bytes").tolist() == [0, 1, 2]


class Danger:
    def __reduce__(self):
        return os.getcwd, ()


def test_nothing_else_is_called(tmp_path):
    (tmp_path / "p").write_bytes(pickle.dumps([Danger()]))
    with pytest.raises(DataError, match=r"asks for posix\.getcwd"):
        pickles.load(tmp_path / "p")
