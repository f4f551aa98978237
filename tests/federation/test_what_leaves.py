"""What a whole training run lets out, looked at from outside: fresh noise, fresh batches, equal sizes, no side door."""

import dataclasses
import itertools

import numpy as np
import torch

from helpers.runs import Silent
from hushprompt.audits.world import World, candidates_of
from hushprompt.config import parse as configs
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import assemble, client_sizes, load_model, make_partition
from hushprompt.federation.simulate import run
from hushprompt.privacy.mechanisms.gaussian import GaussianMechanism
from hushprompt.privacy.sampling import PoissonSampler

NOISE = {"local": 2.0, "global": 3.0}
CLIP_NORMS = {"local": 0.3, "global": 0.7}
NUM_ROUNDS, STEPS, NUM_CLIENTS, RANK, NUM_CTX, WIDTH = 6, 2, 3, 2, 4, 8
RATE = 0.15
COUNTS = {"local": RATE * 24, "global": RATE * 72}
"""Small batches vary much in size, so dividing by the one that showed up would be seen."""


def world_of(toy_values, tmp_path, **changes):
    privacy = {"epsilon": "none", "delta": 1e-3}
    for name in NOISE:
        privacy |= {f"noise_multiplier_{name}": NOISE[name], f"clip_norm_{name}": CLIP_NORMS[name]}
    values = {
        **toy_values,
        "privacy": privacy,
        "sampling": {"name": "poisson", "sampling_prob": 0.5, "steps_per_round": STEPS},
        "training": {"num_rounds": NUM_ROUNDS},
        "references": [],
        "runtime": {"cache_dir": str(tmp_path / "cache")},
        **changes,
    }
    config = configs.parse(values)
    dataset = config.data.load()
    partition = make_partition(config, dataset)
    (arm,) = plan_arms(config, client_sizes(partition))
    federation = assemble(config, load_model(config, dataset, [arm]), dataset, partition, lambda *_: None)
    return World(config, federation, candidates_of(federation, 0)), arm


def trained(world, arm):
    return world.train(arm, np.ones(len(world.candidates.indices), dtype=bool), world.config.seed)


def test_every_release_of_a_run_carries_fresh_noise_of_the_planned_size(toy_values, tmp_path, monkeypatch):
    sampling = {"name": "poisson", "sampling_prob": RATE, "steps_per_round": STEPS}
    world, arm = world_of(toy_values, tmp_path, sampling=sampling)
    noise = {name: [] for name in NOISE}
    true_release = GaussianMechanism.release

    def spy(self, channel, summed):
        released = true_release(self, channel, summed)
        scale = NOISE[channel] * CLIP_NORMS[channel]  # from the config, not from the code that is checked
        noise[channel].append(((released.value * COUNTS[channel] - summed.value) / scale).flatten().double().numpy())
        return released

    monkeypatch.setattr(GaussianMechanism, "release", spy)
    trained(world, arm)
    assert len(noise["local"]) == NUM_ROUNDS * STEPS * NUM_CLIENTS
    assert len(noise["global"]) == NUM_ROUNDS * STEPS
    factor_u = NUM_CTX * RANK
    parts = {
        "u": np.stack(noise["local"])[:, :factor_u],
        "v": np.stack(noise["local"])[:, factor_u:],
        "g": np.stack(noise["global"]),
    }
    for name, part in parts.items():
        assert abs(part.mean()) < 5 / np.sqrt(part.size), name
        assert abs(part.std() - 1) < 5 / np.sqrt(2 * part.size), name
    for releases in noise.values():
        for one, other in itertools.combinations(releases, 2):
            cosine = one @ other / np.sqrt((one @ one) * (other @ other))
            assert abs(cosine) < 0.9, "two releases share their noise"


def test_every_round_and_client_draws_a_batch_of_its_own(toy_values, tmp_path, monkeypatch):
    world, arm = world_of(toy_values, tmp_path)
    batches = []
    true_batches = PoissonSampler.batches

    def spy(self, num_examples, rng):
        drawn = true_batches(self, num_examples, rng)
        batches.extend(tuple(batch) for batch in drawn)
        return drawn

    monkeypatch.setattr(PoissonSampler, "batches", spy)
    trained(world, arm)
    assert len(batches) == NUM_ROUNDS * STEPS * NUM_CLIENTS
    assert len(set(batches)) == len(batches)
    sizes = [len(batch) for batch in batches]
    assert 8 < np.mean(sizes) < 16


def test_what_travels_has_one_size_whatever_the_batch(toy_values, tmp_path):
    sampling = {"name": "poisson", "sampling_prob": 0.03}
    world, _ = world_of(toy_values, tmp_path, sampling=sampling)
    watcher, folder = Silent(), tmp_path / "run"
    folder.mkdir()
    run(world.config, folder, watcher)
    travelled = {(record.bytes_up, record.bytes_down) for record in watcher.rounds}
    assert travelled == {(NUM_CLIENTS * NUM_CTX * WIDTH * 4,) * 2}


def test_one_clients_data_do_not_reach_anothers_prompt(toy_values, tmp_path):
    world, arm = world_of(toy_values, tmp_path, method={"name": "local_only", "num_ctx": NUM_CTX})
    before, _ = trained(world, arm)
    labels = world.federation.train_labels.clone()
    mine = world.federation.partition.clients[0].indices["train"]
    labels[mine] = (labels[mine] + 1) % 6
    federation = dataclasses.replace(world.federation, train_labels=labels)
    candidates = candidates_of(federation, 0)
    after, _ = trained(dataclasses.replace(world, federation=federation, candidates=candidates), arm)
    assert not torch.equal(before.personal[0].context, after.personal[0].context)
    for client_id in (1, 2):
        assert torch.equal(before.personal[client_id].context, after.personal[client_id].context)
