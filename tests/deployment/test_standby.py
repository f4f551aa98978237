"""The process on standby: a message handed over is answered in a process of its own, and its end is told."""

import os
import signal
import stat
import subprocess
import sys
import time

import pytest

pytest.importorskip("flwr")

from hushprompt.deployment.flower import hand_over

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")
SERVER = """
import os, signal, sys, time
from pathlib import Path
from hushprompt.deployment.flower.standby import stand_by

def answer(arguments):
    Path("pids").open("a").write(f"{os.getpid()} {os.getppid()} {arguments}\\n")
    if arguments == ["killed"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if arguments == ["exit"]:
        sys.exit(4)
    if arguments == ["raise"]:
        raise ValueError("what went wrong")
    return 0

def prepare():
    while not Path("may begin").exists():
        time.sleep(0.01)
    Path("prepared").open("a").write(f"{os.getpid()}\\n")

stand_by(Path(sys.argv[1]), answer, prepare)
"""


@pytest.fixture
def folder(tmp_path):
    # Longer than the path of a socket may be.
    long = tmp_path / ("a" * 100)
    long.mkdir()
    return long


@pytest.fixture
def slow_server(folder):
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(folder)], stderr=subprocess.PIPE, text=True)
    while not (folder / hand_over.SOCKET).exists():
        assert process.poll() is None
        time.sleep(0.01)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def server(folder, slow_server):
    (folder / "may begin").touch()
    return slow_server


def bring(folder, *arguments):
    command = [sys.executable, "-I", "-S", hand_over.__file__, *arguments]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode


def test_each_message_has_a_process_of_its_own_and_its_end_is_told(folder, server):
    asked = (["--token", "a b"], ["exit"], ["raise"], ["killed"], ["--token", "c"])
    assert [bring(folder, *arguments) for arguments in asked] == [0, 4, 1, 1, 0]
    lines = (folder / "pids").read_text().splitlines()
    assert len({line.split()[0] for line in lines}) == 5
    assert {line.split()[1] for line in lines} == {str(server.pid)}
    assert set((folder / "prepared").read_text().split()) == {str(server.pid)}
    assert lines[0].endswith("['--token', 'a b']")
    server.send_signal(signal.SIGTERM)
    assert server.wait() == -signal.SIGTERM
    assert "what went wrong" in server.stderr.read()


def test_only_its_own_user_can_hand_over(folder, server):
    assert stat.S_IMODE(os.stat(folder / hand_over.SOCKET).st_mode) & 0o077 == 0


def test_a_message_that_comes_before_all_is_prepared_waits(folder, slow_server):
    with subprocess.Popen([sys.executable, "-I", "-S", hand_over.__file__, "early"], cwd=folder) as early:
        time.sleep(0.2)
        assert early.poll() is None
        (folder / "may begin").touch()
    assert early.returncode == 0
    assert (folder / "pids").read_text().endswith("['early']\n")


def test_without_a_process_on_standby_the_caller_is_told(folder, server):
    server.kill()
    server.wait()
    assert bring(folder) == hand_over.NOBODY
