"""Noise shares and masks: what they cost a client and the server, against the same step with the noise at the server.

A step of both kinds is made of the functions that a federation calls: a client's clipped sum goes into bytes as its
answer, and the server reads all answers, adds up and has the noisy mean. Noise is secure. Clients are alike, so one is
measured; what all others send is made up, so that their masks cancel. Training is in neither side. `over Flower`
is a server and three clients as separate processes, with and without shares.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

import hushprompt as hp
from benchmarks.measure import in_process
from benchmarks.rows import Row
from hushprompt.config import parse as configs
from hushprompt.deployment import masks, rescue, roster
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.operate.client import free_port
from hushprompt.deployment.operate.process_lifetime import descendants
from hushprompt.federation import payload
from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import Channel, PrivacyConfig
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.privacy.plan import PrivacyPlan, make_plan
from hushprompt.privacy.sampling import PoissonSampler

TITLE = "Secure aggregation with noise shares, CPU of one thread"
SIZES = (8_192, 150_000)
CLIENTS = (3, 10, 50, 100)
RESCUED = {10: (2, 1), 50: (5, 5), 100: (8, 10)}
"""By number of clients: how many may be lost in a step, and how many may be with the server."""
META = {"client": "client-000", "agreement": "0" * 64, "round": 0, "step": 0}
LIMIT = 10**9
ROUNDS, WANTED_RATIO = 20, 1.3
"""Of a federation over Flower, and how much longer they may take with shares."""
TOY = {
    "backbone": {"name": "toy"}, "data": {"name": "toy"}, "partition": {"name": "iid", "num_clients": 3},
    "sampling": {"name": "poisson", "sampling_prob": 0.5}, "method": {"name": "dp_fpl", "num_ctx": 4, "rank": 2},
    "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_at": "server"}, "training": {"num_rounds": ROUNDS},
}  # fmt: skip


def rows(*, is_short: bool) -> list[Row]:
    """Measure all cases, each in a process of its own; a short run leaves out the large ones."""
    clients = CLIENTS[:2] if is_short else CLIENTS
    cases = [Case(num, size) for size in SIZES[: 1 if is_short else 2] for num in clients]
    cases += [Case(num, size, *RESCUED[num]) for size in SIZES[: 1 if is_short else 2] for num in clients if num > 3]
    found = [row for case in cases for row in in_process(measure, case, 1 if is_short else 3)]
    return found if is_short else [*found, *over_flower()]


def over_flower() -> list[Row]:
    """Measure rounds of a server and three clients that are processes of their own, first without shares."""
    with tempfile.TemporaryDirectory() as folder:
        fed = Path(folder) / "fed"
        hp.federation.init(fed, ["a", "b", "c"], address=f"127.0.0.1:{free_port()}", run=TOY)
        ends = ["server/server.toml", *(f"clients/{name}/client.toml" for name in "abc")]
        for file in ends[1:]:
            edit(fed / file, "owner", max_epsilon=100.0, max_delta=0.1)  # both runs add up
        started = [start(fed / file) for file in ends]
        try:
            theirs, ours = (rounds_of(fed / "server" / "server.toml", where, started) for where in ("server", "shares"))
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait()
    names = (
        "3 clients over Flower, median of a round: wall time",
        "3 clients over Flower, a round: CPU of all processes",
    )
    return [
        Row(name=name, figure="ratio", ours=mine, reference=other, target=target)
        for name, mine, other, target in zip(names, ours, theirs, (WANTED_RATIO, None), strict=True)
    ]


def start(file: Path) -> subprocess.Popen[bytes]:
    """Start the process of one end."""
    end = "client" if "clients" in file.parts else "server"
    command = [sys.executable, "-m", "hushprompt", "federation", end, str(file)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def rounds_of(file: Path, noise_at: str, started: list[subprocess.Popen[bytes]]) -> tuple[float, float]:
    """Train in a folder of its own, and return the median seconds and the mean CPU seconds of a round.

    The first round is in neither: clients get ready in it.
    """
    edit(file.with_name("run.toml"), "privacy", noise_at=noise_at)
    edit(file, "federation", folder=noise_at)
    for _ in range(100):
        try:
            hp.federation.stop(file)  # answers when the server's process does
            break
        except hp.LinkError:
            time.sleep(1.0)
    cpu = []

    def say(line: str) -> None:
        if " of " in line and line.startswith("round "):
            cpu.append(sum(cpu_of(process_id) for each in started for process_id in (each.pid, *descendants(each.pid))))

    done = hp.federation.run(file, say=say)
    assert len(done.rounds) == len(cpu) == ROUNDS, done
    return statistics.median(record.seconds for record in done.rounds[1:]), (cpu[-1] - cpu[0]) / (ROUNDS - 1)


def cpu_of(process_id: int) -> float:
    """Return the CPU seconds of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it ended as we looked
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def edit(file: Path, section: str, **changes: str | float) -> None:
    """Change settings of a TOML file."""
    values = configs.read(file)
    values[section] |= changes
    file.write_text(tomli_w.dumps(values), encoding="utf-8")


@dataclass(frozen=True)
class Case:
    """A step to measure."""

    num_clients: int
    size: int
    """Values of the sum."""
    num_lost: int = 0
    """With a rescue: clients that are lost in the step, and were allowed to be."""
    num_colluding: int = 0
    """0: without a rescue, and one that may be with the server."""

    @property
    def name(self) -> str:
        """What the rows are called."""
        mode = f", rescue of {self.num_lost}" if self.num_colluding else ""
        return f"{self.num_clients} clients, {self.size:,} values{mode}"


def measure(case: Case, passes: int) -> list[Row]:
    """Return the rows of one case: CPU of a client, CPU of the server, and bytes that a client sends."""
    shares, server = Shares(case), AtServer(case)
    ours = [least(passes, work) for work in (shares.client, shares.unmask, shares.server)]
    theirs = [least(passes, work) for work in (server.client, server.server)]
    note = "" if not case.num_colluding else f"{1000 * ours[1]:.1f} ms of it in the second message"
    plan = f"what it has in common with each other, once a run, takes {1000 * least(passes, shares.pairs):.1f} ms"
    return [
        Row(name=f"{case.name}: a client", figure="amount", unit="ms", ours=1000 * (ours[0] + ours[1]),
            reference=1000 * theirs[0], note="; ".join(filter(None, (note, plan)))),
        Row(name=f"{case.name}: the server", figure="amount", unit="ms", ours=1000 * ours[2],
            reference=1000 * theirs[1]),
        Row(name=f"{case.name}: a client sends", figure="amount", unit="KiB", ours=shares.num_bytes / 1024,
            reference=server.num_bytes / 1024),
    ]  # fmt: skip


def least(passes: int, work: Callable[[], Any]) -> float:
    """Return the fewest CPU seconds of some passes."""
    found = math.inf
    for _ in range(passes):
        start = time.process_time()
        work()
        found = min(found, time.process_time() - start)
    return found


class AtServer:
    """A step with the noise at the server: clipped sums as they are."""

    def __init__(self, case: Case) -> None:
        """Make up a sum."""
        self.case, self.summed = case, made_up_sum(case)
        self.answer = self.client()
        self.num_bytes = len(self.answer)

    def client(self) -> bytes:
        """Write the answer of a client."""
        return Envelope("turn", META, {"sum": self.summed.value}).to_bytes()

    def server(self) -> None:
        """Read all answers, add up, and add the noise."""
        sums = []
        for _ in range(self.case.num_clients):
            value = Envelope.from_bytes(self.answer, LIMIT).tensors["sum"]
            sums.append(ClippedSum(value, self.summed.sensitivity, 0.0))
        summed = payload.unpack_sum(sums)
        assert summed is not None
        tool(self.case, "server").release(Channel.GLOBAL, summed)


class Shares:
    """A step with noise shares, of which one client and the server are measured; the others send zeros under masks."""

    def __init__(self, case: Case) -> None:
        """Make run keys, and what all clients send."""
        self.case, self.context, num = case, os.urandom(32), case.num_clients
        self.keys = [roster.new_run_key() for _ in range(num)]
        self.public = [roster.public_half(key) for key in self.keys]
        self.all_pairs = [self.pairs(place) for place in range(num)]
        self.least = num - case.num_lost
        self.answered = list(range(self.least)) if case.num_colluding else list(range(num))
        zeros = np.zeros(case.size, np.int64)
        self.answers = [self.answer(place, zeros) for place in self.answered]
        self.sealed = {
            place: self.read(place).tensors["sealed"].numpy() for place in self.answered if case.num_colluding
        }
        self.shares = [self.unmask(place) for place in self.sealed]
        self.num_bytes = sum(len(each[0]) for each in (self.answers, self.shares) if each)

    def pairs(self, place: int = 0) -> list[bytes]:
        """Return what a client has in common with each, once a run."""
        return [masks.pair_secret(self.keys[place], public) for public in self.public]

    def client(self) -> None:
        """Round a clipped sum, add a share of the noise, and answer with it."""
        shared = tool(self.case, "shares").share(Channel.GLOBAL, made_up_sum(self.case), self.case.num_clients)
        self.answer(0, shared)

    def answer(self, own: int, shared: np.ndarray) -> bytes:
        """Mask, seal where there is a rescue, and write the answer of a client."""
        pairs = self.all_pairs[own]
        others = [place for place in range(len(pairs)) if place != own]
        seeds = {place: masks.pair_seed(pairs[place], self.context, own, place) for place in others}
        tensors = {}
        if self.case.num_colluding:
            seeds[own] = os.urandom(masks.SEED)
            boxes = rescue.make_boxes(seeds, pairs, self.context, own, self.least)
            tensors = {"sealed": torch.from_numpy(boxes)}
        tensors["masked"] = torch.from_numpy(masks.mask(shared, own, seeds))
        return Envelope("turn", {**META, "context": self.context.hex()}, tensors).to_bytes()

    def unmask(self, own: int = 0) -> bytes:
        """Write what a client tells in the second message, where there is one."""
        if not self.case.num_colluding:
            return b""
        boxes = rescue.rows_for(self.sealed, own)
        given = rescue.give_shares(boxes, self.all_pairs[own], self.context, own, self.answered, self.least)
        return Envelope(
            "unmask", {**META, "context": self.context.hex()}, {"shares": torch.from_numpy(given)}
        ).to_bytes()

    def read(self, at: int) -> Envelope:
        """Read the answer of a client that gave one."""
        return Envelope.from_bytes(self.answers[at], LIMIT)

    def server(self) -> None:
        """Read all answers, add up, unmask and open."""
        total = payload.add_shares([self.read(at).tensors["masked"].numpy() for at in range(len(self.answers))])
        if self.case.num_colluding:
            missing = list(range(self.least, self.case.num_clients))
            read = [Envelope.from_bytes(data, LIMIT).tensors["shares"].numpy() for data in self.shares]
            given = dict(zip(self.answered, read, strict=True))
            total = rescue.open_sum(total, self.answered, missing, given, self.least)
        assert not total.any(), "what all sent were zeros under masks"
        tool(self.case, "shares").open_shares(Channel.GLOBAL, total, self.case.num_clients)


@functools.cache
def plan(case: Case, noise_at: str) -> PrivacyPlan:
    """Return a plan of sums alone."""
    settings: dict[str, Any] = {}
    if noise_at == "shares" and case.num_colluding:
        settings = {"max_colluding": case.num_colluding, "max_dropouts": case.num_lost, "rescue": True}
    config = PrivacyConfig(
        epsilon=None, noise_multiplier_local=1.0, noise_multiplier_global=1.0, noise_source="secure",
        audience="public", noise_at=noise_at, **settings,
    )  # fmt: skip
    return make_plan(
        config,
        PoissonSampler(sampling_prob=0.5),
        channels=frozenset({Channel.GLOBAL}),
        num_rounds=1,
        client_sizes=[100] * case.num_clients,
        cohort_size=case.num_clients,
    )


def tool(case: Case, noise_at: str) -> Mechanism:
    """Return the mechanism of a step."""
    return plan(case, noise_at).mechanism(
        allowed=Channel.GLOBAL, expected_count=50.0 * case.num_clients, rng=np.random.default_rng(0)
    )


def made_up_sum(case: Case) -> ClippedSum:
    """Return a clipped sum of 50 contributions of norm 1 that point anywhere."""
    value = torch.randn(case.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return ClippedSum(value * math.sqrt(50 / case.size), 1.0, 0.0)
