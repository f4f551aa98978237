"""A process that is kept running, with processes that are made for the test: restarts, stops, orphans."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from hushprompt.deployment.operate import process_lifetime
from hushprompt.deployment.operate.supervise import BackOff, ManagedProcess, Supervisor
from hushprompt.errors import ConfigError

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")


@pytest.fixture(autouse=True)
def no_helper_process():
    """Stop multiprocessing's helper, which starts again when needed: a supervisor ends all children of its process."""
    resource_tracker._resource_tracker._stop()


QUICK = BackOff(first_s=0.05, most_s=0.1, steady_s=60)


def script(folder, name, text):
    """Write an executable of shell commands."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def job(command, check=lambda: None, **more):
    return ManagedProcess("The process", [command], dict(os.environ), check=check, **more)


def run_until(job, is_enough):
    """Run a job until enough was said, and give what was."""
    said = []

    def say(line):
        said.append(line)
        if is_enough(said):
            supervisor.stop()

    supervisor = Supervisor(job, say, QUICK)
    supervisor.run()
    return said


def is_alive(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_that_ends_is_started_again_after_growing_waits(tmp_path):
    command = script(tmp_path, "ends", f"echo x >> {tmp_path}/starts; echo 'secret key unknown'; exit 3")
    said = run_until(job(command, explain=lambda lines: f"It said: {lines[-1]}."), lambda said: len(said) == 3)
    assert len((tmp_path / "starts").read_text().split()) == 3
    assert said[0].startswith("The process ended with status 3. It said: secret key unknown. It is started again in 0")


def test_what_goes_to_a_file_has_no_codes_for_a_terminal(tmp_path, capfd):
    line = "printf '\\033[92mINFO\\033[0m : started\\n'; exit 1"
    run_until(job(script(tmp_path, "colored", line)), lambda said: True)
    assert "INFO : started" in capfd.readouterr().err


def test_the_wait_grows_up_to_the_most(monkeypatch):
    waits = []
    supervisor = Supervisor(job("x"), lambda line: None, BackOff(first_s=1, most_s=5, steady_s=60))

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 6:
            supervisor._stopping.is_set = lambda: True

    lives = iter([0, 0, 0, 0, 100, 0, 0])
    monkeypatch.setattr(supervisor, "_once", lambda is_first: (next(lives), "ended."))
    monkeypatch.setattr(supervisor._stopping, "wait", wait)
    supervisor.run()
    assert waits == [1, 2, 4, 5, 1, 2]  # a long life begins the waits anew


def test_what_must_be_put_right_first_is_an_error_at_the_first_start_and_a_message_later(tmp_path):
    command = script(tmp_path, "ends", "exit 1")
    checks = iter([None, ConfigError("The certificate has expired."), ConfigError("Still expired.")])

    def check():
        error = next(checks)
        if error:
            raise error

    said = run_until(job(command, check=check), lambda said: "Still" in said[-1])
    assert "cannot run. The certificate has expired." in said[1]
    checks = iter([ConfigError("No certificate.")])
    with pytest.raises(ConfigError, match="No certificate"):
        Supervisor(job(command, check=check), print, QUICK).run()


def test_once_it_is_over_orphans_are_not_adopted_any_more(tmp_path):
    run_until(job(script(tmp_path, "ends", "exit 1")), lambda said: True)
    left = subprocess.run(["sh", "-c", "sleep 2 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE, check=True).stdout
    assert int(left) not in process_lifetime.descendants(os.getpid())


PROGRAM = """
import os, sys
from hushprompt.deployment.operate import supervise
supervise.GRACE_S = 0.5
job = supervise.ManagedProcess("The process", [sys.argv[1]], dict(os.environ), check=lambda: None)
supervise.Supervisor(job, print).run()
"""
CHILD = """
import os, pathlib, sys, time
from hushprompt.deployment.operate import process_lifetime
process_lifetime.end_with_parent()
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""
PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]); time.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_and_all_it_started_even_in_sessions_of_their_own(tmp_path, number):
    stubborn = script(
        tmp_path, "stubborn", f"trap '' TERM; echo $$ > {tmp_path}/stubborn.pid; while :; do sleep 1; done"
    )
    parent = script(tmp_path, "parent", f"setsid {stubborn} &\necho $$ > {tmp_path}/parent.pid; sleep 60 & wait")
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, parent], stdout=subprocess.PIPE, text=True)
    pids = [wait_for(tmp_path / f"{name}.pid") for name in ("parent", "stubborn")]
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "has stopped" in out
    assert not any(is_alive(pid) for pid in pids)


def test_a_process_ends_with_its_parent_however_that_ends(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(tmp_path / "child.pid")])
    pid = wait_for(tmp_path / "child.pid")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def wait_for(path):
    """Give the process id that a script writes."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.02)
    raise TimeoutError(path)
