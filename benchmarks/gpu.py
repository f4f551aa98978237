"""Rounds of DP-FPL on a GPU, CLIP ViT-B/16 with Caltech101's shapes.

Random weights, 100 classes, 16 context vectors, image features random and cached. Each of 10 clients takes one step of
32 examples a round, with exact per-example gradients, clipping and noise. Seconds are wall time after one round to warm
up. Without a GPU the same code takes one small round on the CPU, which gives no figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.clip_step import BATCH, CLASS_NAMES, NUM_CTX, NUM_TRAIN, loaded, random_network
from benchmarks.measure import count_gflop, in_process
from benchmarks.rows import Row
from hushprompt.backbones.placing import Device, Precision, place
from hushprompt.backbones.prompts import PromptModel
from hushprompt.federation import aggregate
from hushprompt.methods.base import Batch
from hushprompt.methods.dp_fpl import DPFPL
from hushprompt.privacy.config import Channel, PrivacyConfig
from hushprompt.privacy.plan import PrivacyPlan, make_plan
from hushprompt.privacy.sampling import PoissonSampler
from hushprompt.seeding import stream

TITLE = "GPU: 100 rounds of 10 clients, 32 examples each, features cached"
WANTED_SECONDS = 60.0
NUM_ROUNDS, NUM_CLIENTS, MEMORY_MB = 100, 10, 8192
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")


def rows(*, is_short: bool) -> list[Row]:
    """Measure every precision of the towers, or say why not."""
    if torch.cuda.is_available():
        return [in_process(timed, precision, 10 if is_short else NUM_ROUNDS) for precision in PRECISIONS]
    note = "torch sees no GPU"
    if not is_short:
        try_on_cpu()
        note += "; one round of one client with two examples ran on the CPU by the same code"
    name = f"wall time of {NUM_ROUNDS} rounds of {NUM_CLIENTS} clients"
    return [Row(name=name, figure="amount", ours=None, target=WANTED_SECONDS, note=note)]


def timed(precision: Precision, num_rounds: int) -> Row:
    """Measure one precision on the GPU."""
    federation = Federation(device="cuda", precision=precision, num_clients=NUM_CLIENTS, batch=BATCH)
    gflop = count_gflop(lambda: federation.round(0))  # warms up
    torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(lambda: federation.train(num_rounds)) * NUM_ROUNDS / num_rounds
    memory, rate = torch.cuda.max_memory_allocated() / 2**20, matrix_rate(precision)
    at_peak = gflop * NUM_ROUNDS / rate
    return Row(
        name=f"wall time, towers in {precision}", figure="amount", ours=seconds, target=WANTED_SECONDS, ours_mb=memory,
        note=f"{torch.cuda.get_device_name()}; {gflop * NUM_ROUNDS:,.0f} GFLOP, {at_peak / seconds:.1%} of the rate "
        f"of large matrix products in {precision}, {rate:,.0f} GFLOP/s; memory is the GPU's; {num_rounds} rounds ran",
    )  # fmt: skip


def try_on_cpu() -> None:
    """Take one small round."""
    federation = Federation(device="cpu", precision="float32", num_clients=1, batch=2)
    federation.round(0)
    assert bool(federation.shared.context.isfinite().all())


class Federation:
    """Clients with random cached features, and a server, without files and without evaluation."""

    def __init__(self, *, device: Device, precision: Precision, num_clients: int, batch: int) -> None:
        """Make a random network, as a user's checkpoint, and the clients' states."""
        backbone = loaded(random_network(), precision)
        self.device, self.batch = place(backbone, device), batch
        self.model = PromptModel(backbone, CLASS_NAMES, device=self.device, memory_mb=MEMORY_MB)
        self.method = DPFPL(num_ctx=NUM_CTX)
        self.plan = _plan(self.method)
        self.shared, personal = self.method.init(self.model, stream(0, "init"))
        self.personal = [personal] * num_clients
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(NUM_TRAIN, backbone.feature_dim, generator=generator)
        self.features = F.normalize(features, dim=-1).to(self.device)
        self.labels = torch.randint(len(CLASS_NAMES), (NUM_TRAIN,), generator=generator).to(self.device)

    def train(self, num_rounds: int) -> None:
        """Take rounds behind the first, which warms up."""
        for index in range(num_rounds):
            self.round(1 + index)

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


def seconds_of(work: Callable[[], object]) -> float:
    """Give the wall time until the GPU has done it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate(precision: Precision, size: int = 8192) -> float:
    """Measure GFLOP/s of large matrix products."""
    left, right = (torch.randn(size, size, device="cuda").to(getattr(torch, precision)) for _ in range(2))
    seconds = [seconds_of(lambda: left @ right) for _ in range(6)]
    return 2 * size**3 / min(seconds) / 1e9
