"""docs/use-a-prompt.md followed literally, from a finished run to a served page and a file for other programs."""

import json
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import hushprompt as hp
from helpers import bare_environment
from hushprompt.cli import main as cli

PAGE = Path(__file__).parent.parent.parent / "docs" / "use-a-prompt.md"


@pytest.mark.slow
def test_every_step_of_the_guide_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    blocks = re.findall(r"```(python|bash|text)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks] == ["bash", "python", "bash", "python", "text", "bash", "text"]
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), {})
        elif kind == "bash":
            for line in text.strip().splitlines():
                monkeypatch.setattr(sys, "argv", shlex.split(line))
                with pytest.raises(SystemExit) as stop:
                    cli.main()
                assert not stop.value.code, (line, capsys.readouterr())
    picture = Path("pictures/0000.png")
    wanted = hp.load_prompt("runs/mine", client=3).predict(picture)
    assert json.loads(Path("out.jsonl").read_text().splitlines()[0])["label"] == wanted.label
    assert len(Path("test.txt").read_text().splitlines()) == 2000
    (serve, _), (install, elsewhere) = (text.strip().splitlines() for kind, text in blocks if kind == "text")
    assert served(serve, picture)["label"] == wanted.label
    (told, _) = with_onnxruntime_alone(install, elsewhere)
    assert told.split("\t")[1].rpartition(" ")[0] == wanted.label
    for folder in ("head", "onnx", "card"):
        assert hp.load_prompt(folder).predict(picture).probability == pytest.approx(wanted.probability, abs=1e-5)


def with_onnxruntime_alone(install, command):
    """What a program prints in a new virtual environment that holds what a line installs, without the index."""
    pip, verb, *names = shlex.split(install)
    assert (pip, verb) == ("pip", "install")
    python = bare_environment.linked(Path("environment").absolute(), *names)
    assert bare_environment.contents(python) == bare_environment.needed(names).keys()
    return bare_environment.lines(python, *shlex.split(command)[1:])


def served(command, picture):
    """What a server that was started by a line of the page says of a picture; on a free port, not on 8000."""
    line = [sys.executable, "-m", *shlex.split(command), "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = next(found[0] for row in server.stdout if (found := re.findall(r"http://\S+", row)))
            with urllib.request.urlopen(f"{url.rstrip('/')}/v1/predict", picture.read_bytes(), timeout=60) as answer:
                return json.loads(answer.read())
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0
