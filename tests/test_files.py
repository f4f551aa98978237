"""Files have the mode that the umask says, and folders of one owner are nobody else's."""

import os

import pytest
import torch

from hushprompt import files
from hushprompt.errors import ConfigError


@pytest.fixture(params=[0o077, 0o027, 0o022])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_have_the_mode_that_the_umask_says(tmp_path, umask):
    files.write_text(tmp_path / "a", "text")
    files.write_bytes(tmp_path / "b", b"bytes")
    files.write_tensors(tmp_path / "c", {"x": torch.ones(2)}, "{}")
    files.append_line(tmp_path / "d", "line")
    files.write_text(tmp_path / "a", "replaced")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys("abcd", 0o666 & ~umask)


def test_an_own_folder_is_made_private_and_others_are_refused(tmp_path, monkeypatch):
    files.own_folder(tmp_path / "a" / "store")
    files.own_folder(tmp_path / "a" / "store")
    assert (tmp_path / "a" / "store").stat().st_mode & 0o777 == 0o700
    (tmp_path / "a" / "store").chmod(0o710)
    with pytest.raises(ConfigError, match="chmod 700"):
        files.own_folder(tmp_path / "a" / "store")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="belongs to another user"):
        files.own_folder(tmp_path / "a" / "store")
