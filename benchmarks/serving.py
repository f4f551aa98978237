"""`hushprompt serve` under load, against plain loops over the same prompt and the same images.

The server is a process of its own, as a user starts it; its clients are in one other, each with one request under way
over a connection that stays open. They run on the same cores, so what they cost counts against the server. Images are
those of the embedded data's test split, as PNG. A plain loop predicts from the same bytes in Python, decoding them as
the server does, as many at a time as there are clients and 16 at most (one client is compared with one image at a
time, 64 with 16), on one thread or on all cores, whichever is faster. All figures are wall time. A client that is
answered 503 asks again after a second, as the answer says; such answers are in the note alone.
"""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import hushprompt as hp
from benchmarks.measure import in_process
from benchmarks.rows import Row
from hushprompt.config import parse as configs
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import client_sizes, load_model, make_partition
from hushprompt.runs.prompts import write_prompts

TITLE = "hushprompt serve, the embedded model"
CLIENTS = (1, 8, 64)
BATCH = 16
WANTED_SHARE, WANTED_SECONDS, WANTED_GROWTH = 0.8, 1 / 100, 1.05
RETRY = 1.0
HEAD, LENGTH = b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n", b"content-length:"


def rows(*, is_short: bool) -> list[Row]:
    """Measure loops, then the server; a short run asks less often."""
    num_requests, soak, warm = (100, 400, 100) if is_short else (3_000, 20_000, 2_000)
    with tempfile.TemporaryDirectory() as folder:
        file, images = in_process(prepare, Path(folder))
        plain = in_process(loops, file, images, num_requests)
        with serving(file) as (port, process):
            loads = {count: asyncio.run(load(port, images, count, num_requests)) for count in CLIENTS}
            memory = []
            for count in (warm, soak - warm):
                asyncio.run(load(port, images, 8, count))
                memory.append(resident_mb(process))
    found = [row for count, each in loads.items() for row in of_load(count, each, plain)]
    wall = Row(
        name=f"{CLIENTS[-1]} clients: wall time an answer", figure="amount", unit="ms", target=1000 * WANTED_SECONDS,
        ours=1000 * loads[CLIENTS[-1]].seconds_each,
    )  # fmt: skip
    growth = Row(
        name=f"resident memory after {soak:,} requests, against {warm:,}", figure="ratio", unit="MB", ours=memory[1],
        reference=memory[0], target=WANTED_GROWTH,
    )  # fmt: skip
    return [*found, wall, growth]


def of_load(count: int, load: Load, plain: dict[int, float]) -> list[Row]:
    """Return the rows of a number of clients, against a loop with as many images at a time, `BATCH` at most."""
    who, size = f"{count} client{'s' if count > 1 else ''}", min(count, BATCH)
    note = f"{1 / load.seconds_each:.0f} answers a second; {load.num_refused} times 503"
    if load.num_refused:
        note += f", within {1000 * np.median(load.refused):.1f} ms (median)"
    p50, p99 = np.percentile(load.answered, [50, 99])
    return [
        Row(name=f"{who}: wall time an answer, against a plain loop of {size} at a time", figure="speedup", unit="ms",
            ours=1000 * load.seconds_each, reference=1000 * plain[size], target=WANTED_SHARE, note=note),
        Row(name=f"{who}: median time to an answer", figure="amount", unit="ms", ours=1000 * float(p50)),
        Row(name=f"{who}: 99th percentile", figure="amount", unit="ms", ours=1000 * float(p99)),
    ]  # fmt: skip


def prepare(folder: Path) -> tuple[Path, list[bytes]]:
    """Write the file of a prompt at its start, which scores as fast as a trained one, and return images as PNG."""
    config = configs.load(configs.locate(None), ["references=[]"])
    dataset = config.data.load()
    partition = make_partition(config, dataset)
    (arm,) = plan_arms(config, client_sizes(partition))
    model = load_model(config, dataset, [arm])
    shared, personal = arm.method.init(model, np.random.default_rng(0))
    write_prompts(folder, model, arm, shared, {0: personal}, backbone=config.backbone,
                  client_names=partition.client_names)  # fmt: skip
    return folder / "client-000.safetensors", [png(each) for each in dataset.splits["test"].read(np.arange(128))]


def png(pixels: np.ndarray) -> bytes:
    """Return an image as a file has it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def loops(file: Path, images: list[bytes], num_images: int) -> dict[int, float]:
    """Return seconds an image of plain loops, by how many they predict at a time, on one thread or on all cores.

    The faster of the two counts: on a busy machine threads that wait for each other cost more than they gain.
    """
    prompt = hp.load_prompt(file)
    prompt.predict(images[:BATCH])
    return {
        size: min(loop(prompt, images, size, num_images, threads) for threads in (1, len(os.sched_getaffinity(0))))
        for size in {min(count, BATCH) for count in CLIENTS}
    }


def loop(prompt: hp.Prompt, images: list[bytes], size: int, num_images: int, num_threads: int) -> float:
    """Return seconds an image of one loop."""
    torch.set_num_threads(num_threads)
    start, done = time.perf_counter(), 0
    while done < num_images:
        at = done % len(images)
        prompt.predict(images[at : at + size], batch_size=size)
        done += size
    return (time.perf_counter() - start) / done


@contextmanager
def serving(file: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Start the server; yield its port and its process."""
    command = [sys.executable, "-m", "hushprompt", "serve", str(file), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = next(line for line in process.stdout if line.strip().startswith("http://"))
            yield int(line.rpartition(":")[2]), process
        finally:
            process.terminate()


@dataclass
class Load:
    """What clients saw, in seconds."""

    seconds_each: float = 0.0
    """Wall time over answers."""
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    @property
    def num_refused(self) -> int:
        """Answers of status 503."""
        return len(self.refused)


async def load(port: int, images: list[bytes], num_clients: int, num_requests: int) -> Load:
    """Ask until so many requests are answered."""
    requests = [HEAD % len(image) + image for image in images]
    found, start, last = Load(), time.perf_counter(), 0.0

    async def client(first: int) -> None:
        nonlocal last
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        at = first
        while len(found.answered) < num_requests:
            sent, at = time.perf_counter(), at + num_clients
            status = await ask(reader, writer, requests[at % len(requests)])
            took = time.perf_counter() - sent
            if status == 503:
                found.refused.append(took)
                await asyncio.sleep(RETRY)
            else:
                assert status == 200, status
                found.answered.append(took)
                last = time.perf_counter()
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client(number) for number in range(num_clients)))
    found.seconds_each = (last - start) / len(found.answered)  # not until those that were refused last have waited
    return found


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send one request over an open connection, read the answer, and return its status."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    at = head.lower().index(LENGTH) + len(LENGTH)
    await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
    return int(head[9:12])


def resident_mb(process: subprocess.Popen[str]) -> float:
    """Return a process's resident memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
