"""The page that readers follow with their own images, followed literally."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from hushprompt import cli

PAGE = Path(__file__).parent.parent / "docs" / "bring-your-own-images.md"


@pytest.mark.slow
def test_every_command_of_bring_your_own_images_works(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    blocks = re.findall(r"```(python|bash)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "bash", "bash", "bash", "python", "bash"]
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            continue
        for line in text.strip().splitlines():
            monkeypatch.setattr(sys, "argv", shlex.split(line))
            with pytest.raises(SystemExit) as stop:
                cli.main()
            assert not stop.value.code, (line, capsys.readouterr())
    assert len(list((tmp_path / "my_images").glob("*/*.png"))) == 240
    for name in ("my_images", "my_clients"):
        assert (tmp_path / "runs" / name / "summary.json").exists()
    assert "north hospital" in (tmp_path / "my_clients" / "partition.csv").read_text()
