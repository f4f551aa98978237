"""Rounds of DP-FPL on Caltech101's shapes: `python benchmarks/gpu.py [--device cuda] [--precision bfloat16]`.

CLIP ViT-B/16 with random weights, 100 classes, 16 context vectors, image features random and cached. Each of 10 clients
takes one step of 32 examples a round, with exact per-example gradients, clipping and noise. Wanted: 100 rounds in under
60 s on one GPU. `--short` runs one round of one client with two examples, so that the path can be tried anywhere.
Seconds are wall time after one round to warm up; the share is of the device's own rate for large matrix products in the
towers' precision.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import save_file

from clip_step import ARCHITECTURE, BATCH, CLASS_NAMES, NUM_CTX, NUM_TRAIN
from hushprompt.backbones.open_clip import OpenClip
from hushprompt.backbones.placing import Precision, place
from hushprompt.backbones.prompts import PromptModel
from hushprompt.federation import aggregate
from hushprompt.methods.base import Batch
from hushprompt.methods.dp_fpl import DPFPL
from hushprompt.privacy.config import Channel, PrivacyConfig
from hushprompt.privacy.plan import PrivacyPlan, make_plan
from hushprompt.privacy.sampling import PoissonSampler
from hushprompt.seeding import stream
from measure import count_gflop, machine, write_json

WANTED_SECONDS = 60.0


class Federation:
    """Clients with random cached features, and a server, without files and without evaluation."""

    def __init__(self, *, device: str, precision: Precision, num_clients: int, batch: int, memory_mb: int) -> None:
        """Make a random network, as a user's checkpoint, and the clients' states."""
        logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that the weights are random
        with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
            torch.default_generator.manual_seed(0)
            path = Path(folder) / "weights.safetensors"
            weights = open_clip.create_model(ARCHITECTURE).state_dict()
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
            backbone = OpenClip(architecture=ARCHITECTURE, checkpoint=str(path), precision=precision).load()
        self.device, self.batch = place(backbone, device), batch
        self.model = PromptModel(backbone, CLASS_NAMES, device=self.device, memory_mb=memory_mb)
        self.method = DPFPL(num_ctx=NUM_CTX)
        self.plan = _plan(self.method)
        self.shared, personal = self.method.init(self.model, stream(0, "init"))
        self.personal = [personal] * num_clients
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(NUM_TRAIN, backbone.feature_dim, generator=generator)
        self.features = F.normalize(features, dim=-1).to(self.device)
        self.labels = torch.randint(len(CLASS_NAMES), (NUM_TRAIN,), generator=generator).to(self.device)

    def round(self, index: int) -> None:
        """Step every client, then the server."""
        messages = []
        for client_id, personal in enumerate(self.personal):
            chosen = stream(0, "batch", index, client_id).choice(NUM_TRAIN, self.batch, replace=False)
            rows = torch.from_numpy(chosen).to(self.device)
            mechanism = self.plan.mechanism(
                allowed=Channel.LOCAL, expected_count=self.batch, rng=stream(0, "noise", index, client_id)
            )
            upload, self.personal[client_id], _ = self.method.client_step(
                self.model, self.shared, personal, Batch(self.features[rows], self.labels[rows]), mechanism,
                stream(0, "method", index, client_id),
            )  # fmt: skip
            messages.append(aggregate.pack(upload))
        summed = aggregate.unpack_sum(messages)
        assert summed is not None
        mechanism = self.plan.mechanism(
            allowed=Channel.GLOBAL, expected_count=self.batch * len(messages), rng=stream(0, "noise", index)
        )
        self.shared = self.method.server_step(self.shared, mechanism.release(Channel.GLOBAL, summed))


def _plan(method: DPFPL) -> PrivacyPlan:
    """Give noise of a fixed size: what it protects does not matter to the time."""
    config = PrivacyConfig(epsilon=None, noise_multiplier_local=1.0, noise_multiplier_global=1.0)
    sampler = PoissonSampler(sampling_prob=BATCH / NUM_TRAIN)
    return make_plan(config, sampler, channels=method.channels, num_rounds=1, client_sizes=[NUM_TRAIN])


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Give the wall time until the device has done it."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate(device: str, precision: Precision, size: int) -> float:
    """Measure GFLOP/s of large matrix products."""
    left, right = (torch.randn(size, size, device=device).to(getattr(torch, precision)) for _ in range(2))
    seconds = [seconds_of(lambda: left @ right, device) for _ in range(6)]
    return 2 * size**3 / min(seconds) / 1e9


def main() -> None:
    """Run, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--memory-mb", type=int, default=8192, help="runtime.memory_mb")
    parser.add_argument("--short", action="store_true", help="one round of one client with two examples")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rounds, clients, batch = (1, 1, 2) if arguments.short else (arguments.rounds, arguments.clients, BATCH)
    federation = Federation(
        device=arguments.device,
        precision=arguments.precision,
        num_clients=clients,
        batch=batch,
        memory_mb=arguments.memory_mb,
    )
    device = federation.device
    gflop = count_gflop(lambda: federation.round(0))  # warms up
    seconds = seconds_of(lambda: [federation.round(1 + index) for index in range(rounds)], device)
    rate = matrix_rate(device, arguments.precision, 1024 if device == "cpu" else 8192)
    finite = bool(np.isfinite(federation.shared.context.cpu().numpy()).all())
    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "precision": arguments.precision, "rounds": rounds, "clients": clients, "batch": batch, "seconds": seconds,
        "seconds_of_100_rounds_of_10": seconds / (rounds * clients * batch) * 1000 * BATCH,
        "wanted_seconds": WANTED_SECONDS,
        "gflop_per_round": gflop, "gflop_per_second": gflop * rounds / seconds, "matrix_gflop_per_second": rate,
        "share_of_matrix_rate": gflop * rounds / seconds / rate, "is_finite": finite,
    }  # fmt: skip
    for name, value in result.items():
        Console().print(f"{name:<30}{value:.4g}" if isinstance(value, float) else f"{name:<30}{value}")
    if arguments.out:
        write_json(arguments.out, {**result, "machine": machine()})


if __name__ == "__main__":
    main()
