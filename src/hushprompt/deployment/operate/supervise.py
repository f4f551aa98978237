"""One process, kept running: started again when it ends, ended with everything it started when it should be."""

from __future__ import annotations

import collections
import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from hushprompt.deployment.operate import process_lifetime
from hushprompt.errors import ConfigError

GRACE_S = 15.0
"""Seconds that a process has to end by itself."""
TAIL = 40
"""Lines of a process's last words that are looked at."""
COLORS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
"""ANSI codes, which only a terminal understands."""
Explain = Callable[[Sequence[str]], str]
"""Says in a sentence why a process ended, from its last lines; empty if they do not say."""


@dataclass(frozen=True)
class BackOff:
    """How long to wait before a process is started again."""

    first_s: float = 2.0
    most_s: float = 60.0
    """Each wait is twice as long as the last, up to this."""
    steady_s: float = 120.0
    """A process that ran so long was well: the next wait is the first again."""


@dataclass(frozen=True)
class ManagedProcess:
    """A process to keep running."""

    name: str
    """What messages call it."""
    command: Sequence[str]
    environment: Mapping[str, str]
    check: Callable[[], None]
    """Called before each start; raises ConfigError with what must be put right first."""
    on_start: Callable[[], None] = lambda: None
    """Called once after each start, in a thread of its own."""
    explain: Explain = lambda lines: ""


class Supervisor:
    """Keeps one process running until it is told to stop."""

    def __init__(self, managed: ManagedProcess, say: Callable[[str], None], back_off: BackOff | None = None) -> None:
        """Keep one process.

        Args:
            managed: what to run.
            say: gets what happens, a line each.
            back_off: waits between starts.
        """
        self._managed, self._say, self._back_off = managed, say, back_off or BackOff()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> None:
        """Start the process again and again, until `stop` or a signal (SIGTERM, SIGINT); then nothing of it is left.

        Raises:
            ConfigError: what `check` finds before the first start. Later it is said, and tried again.
        """
        wait_s, is_first = self._back_off.first_s, True
        with process_lifetime.adopting_orphans(), self._signals():
            while True:
                lived_s, reason = self._once(is_first)
                is_first = False
                if self._stopping.is_set():
                    self._say(f"{self._managed.name} has stopped.")
                    return
                wait_s = self._back_off.first_s if lived_s > self._back_off.steady_s else wait_s
                self._say(f"{self._managed.name} {reason} It is started again in {wait_s:.0f} s.")
                self._stopping.wait(wait_s)
                wait_s = min(2 * wait_s, self._back_off.most_s)

    def stop(self) -> None:
        """End the process, and `run` with it."""
        self._stopping.set()
        process = self._process
        if process is not None:
            process.terminate()

    def _once(self, is_first: bool) -> tuple[float, str]:
        """Run the process to its end; return how long it lived in seconds, and how it ended."""
        if self._stopping.is_set():
            return 0.0, ""
        try:
            self._managed.check()
        except ConfigError as error:
            if is_first:
                raise
            return 0.0, f"cannot run. {error}"
        started = time.monotonic()
        tail: collections.deque[str] = collections.deque(maxlen=TAIL)
        self._process = subprocess.Popen(
            self._managed.command, env=self._managed.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        if self._stopping.is_set():  # the signal came as it started
            self._process.terminate()
        reader = threading.Thread(target=self._copy, args=(self._process, tail), daemon=True)
        reader.start()
        threading.Thread(target=self._managed.on_start, daemon=True).start()
        status = self._wait(self._process)
        process_lifetime.end_descendants(GRACE_S)
        reader.join(GRACE_S)
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return time.monotonic() - started, f"ended {how}. {self._managed.explain(tail)}".rstrip()

    def _wait(self, process: subprocess.Popen[str]) -> int:
        """Wait for the process; once it was told to stop, no longer than the grace."""
        while not self._stopping.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.2)
        try:
            return process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    @staticmethod
    def _copy(process: subprocess.Popen[str], tail: collections.deque[str]) -> None:
        """Pass the process's output on, and remember its end."""
        assert process.stdout is not None
        for line in process.stdout:
            text = COLORS.sub("", line)
            tail.append(text.rstrip("\n"))
            sys.stderr.write(line if sys.stderr.isatty() else text)
            sys.stderr.flush()
        process.stdout.close()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have SIGTERM and SIGINT stop the process."""

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.stop()

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
