import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from helpers.reference import slow_gradients
from helpers.runs import Silent, files, fresh
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError, PrivacyError, ResumeError
from hushprompt.federation import client, server
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import assemble, client_sizes, load_model, make_partition
from hushprompt.federation.simulate import run
from hushprompt.methods.base import Batch
from hushprompt.runs import records
from hushprompt.seeding import stream


def with_sampling(config, **values):
    return configs.parse({**toy_of(config), "sampling": values})


def toy_of(config):
    import tomllib

    return tomllib.loads(config.to_toml())


def test_a_run_leaves_the_files_of_the_design(toy_config, tmp_path):
    folder = fresh(tmp_path)
    arms = run(toy_config, folder, Silent())
    assert [arm.method for arm in arms] == ["zero_shot", "promptfl", "dp_fpl"]
    summary = records.read_json(folder / "summary.json")
    last = summary["arms"][-1]
    assert {
        "method",
        "epsilon",
        "delta",
        "local",
        "neighbor",
        "harmonic_mean",
        "worst_client",
        "seconds",
        "seed",
    } <= set(last)
    assert summary["arms"][0]["epsilon"] is None
    assert last["epsilon"] <= 8.0
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert [(line["arm"], line["round_index"]) for line in lines] == [
        (arm, n) for arm in ("promptfl, epsilon 8", "dp_fpl, epsilon 8") for n in (1, 2, 3)
    ]
    assert sorted(p.name for p in (folder / "prompts").iterdir()) == [
        "client-000.safetensors", "client-001.safetensors", "client-002.safetensors", "global.safetensors"
    ]  # fmt: skip


def test_partition_and_confusion_count_every_example_once(toy_config, tmp_path):
    folder = fresh(tmp_path)
    arms = run(toy_config, folder, Silent())
    dataset = toy_config.data.load()
    partition = records.read_json(folder / "partition.json")
    num_classes = len(partition["class_names"])
    for name, split in dataset.splits.items():
        table = records.dense_rows(partition[name], num_classes)
        assert table.shape == (3, num_classes)
        assert table.sum(axis=0).tolist() == np.bincount(split.labels, minlength=num_classes).tolist()
    assert "Not private" in partition["note"]
    for index, arm in enumerate(arms):
        kept = records.read_json(folder / "confusion" / f"arm-{index:03d}.json")
        assert kept["arm"] == arm.arm
        local, neighbor = (records.dense_rows(kept[whose], num_classes) for whose in ("local", "neighbor"))
        tests = np.bincount(dataset.splits["test"].labels, minlength=num_classes)
        assert local.sum(axis=1).tolist() == tests.tolist()
        assert neighbor.sum(axis=1).tolist() == (2 * tests).tolist()
        right = [n / of if of else None for n, of in zip(np.diag(local), tests, strict=True)]
        assert arm.per_class == pytest.approx(right)


def test_epsilon_so_far_ends_at_the_claim_and_bytes_are_the_shared_prompts(toy_config, tmp_path):
    watcher = Silent()
    arms = run(toy_config, fresh(tmp_path), watcher)
    last = watcher.rounds[-1]
    assert last.epsilon["personal"] == arms[-1].epsilon
    so_far = [record.epsilon["personal"] for record in watcher.rounds[-3:]]
    assert so_far == sorted(so_far)
    assert last.bytes_up == last.bytes_down == 3 * 4 * 8 * 4


@pytest.mark.parametrize("stop_after", [1, 3, 4, 6])
def test_a_stopped_run_goes_on_to_the_same_bits(toy_config, tmp_path, stop_after):
    whole, stopped = fresh(tmp_path, "whole"), fresh(tmp_path, "stopped")
    run(toy_config, whole, Silent())
    with pytest.raises(KeyboardInterrupt):
        run(toy_config, stopped, Silent(stop_after))
    with (stopped / "records.jsonl").open("a") as file:
        file.write('{"arm": "half a line')  # what a kill while writing leaves
    run(toy_config, stopped, Silent())
    assert files(stopped) == files(whole)


def test_running_a_finished_run_again_changes_nothing(toy_config, tmp_path):
    folder = fresh(tmp_path)
    first = run(toy_config, folder, Silent())
    before = files(folder)
    assert run(toy_config, folder, Silent()) == first
    assert files(folder) == before


def test_the_number_of_threads_changes_no_bit(toy_config, tmp_path):
    results = []
    for threads in (1, 3):
        runtime = dataclasses.replace(toy_config.runtime, num_threads=threads)
        folder = fresh(tmp_path, str(threads))
        run(dataclasses.replace(toy_config, runtime=runtime), folder, Silent())
        results.append(files(folder))
    assert results[0] == results[1]


def test_another_seed_gives_another_result(toy_config, tmp_path):
    first = run(toy_config, fresh(tmp_path, "a"), Silent())
    second = run(dataclasses.replace(toy_config, seed=4), fresh(tmp_path, "b"), Silent())
    assert first[-1].per_client != second[-1].per_client


def test_a_checkpoint_of_another_config_is_refused(toy_config, tmp_path):
    folder = fresh(tmp_path)
    run(toy_config, folder, Silent())
    with pytest.raises(ResumeError, match="seed was 3 and is 9"):
        run(dataclasses.replace(toy_config, seed=9), folder, Silent())


def test_a_round_without_noise_is_plain_federated_descent(toy_values, tmp_path):
    values = {
        **toy_values,
        "sampling": {"name": "disjoint", "steps_per_round": 1},
        "method": {"name": "promptfl", "num_ctx": 4, "optimizer": {"learning_rate": 0.1, "momentum": 0.0}},
        "privacy": {"epsilon": math.inf, "delta": 1e-3, "clip_norm_global": 1e6},
        "training": {"num_rounds": 2},
        "references": [],
        "runtime": {"cache_dir": str(tmp_path / "cache")},
    }
    config = configs.parse(values)
    folder = fresh(tmp_path)
    run(config, folder, Silent())
    from safetensors.torch import load_file

    got = load_file(folder / "prompts" / "global.safetensors")["context"]

    dataset = config.data.load()
    model = load_model(config, dataset, [])
    federation = assemble(config, model, dataset, make_partition(config, dataset), lambda *_: None)
    shared, _ = config.method.init(federation.model, stream(config.seed, "init"))
    context = shared.context
    for _ in range(2):
        batch = Batch(federation.train_features["pooled"].tensor(), federation.train_labels)
        grads = slow_gradients(federation.model, context, batch)
        context = context - 0.1 * grads.mean(dim=0)
    torch.testing.assert_close(got, context, rtol=1e-4, atol=1e-6)


def test_every_round_begins_once_and_before_its_steps(toy_config, tmp_path, monkeypatch):
    from hushprompt.methods.dp_fpl import DPFPL

    calls = []
    true_step = DPFPL.server_step
    monkeypatch.setattr(DPFPL, "begin_round", lambda self, shared: calls.append("round") or shared)
    monkeypatch.setattr(DPFPL, "server_step", lambda *args: calls.append("step") or true_step(*args))
    run(with_sampling(toy_config, name="poisson", sampling_prob=0.5, steps_per_round=2), fresh(tmp_path), Silent())
    assert calls[1:] == ["round", "step", "step"] * 3  # the first is that of the rounding check


def noise_streams(config, folder, monkeypatch):
    """All streams that a run asks for, by purpose."""
    asked = []

    def spy(seed, purpose, *place):
        asked.append((purpose, *place))
        return stream(seed, purpose, *place)

    for side in (client, server):
        monkeypatch.setattr(side, "stream", spy)
    run(config, folder, Silent())
    return asked


def test_every_release_has_a_noise_stream_of_its_own(toy_config, tmp_path, monkeypatch):
    config = with_sampling(toy_config, name="poisson", sampling_prob=0.5, steps_per_round=2)
    asked = [entry for entry in noise_streams(config, fresh(tmp_path), monkeypatch) if entry[0] in ("noise", "batch")]
    assert len(set(asked)) == len(asked)
    arms, rounds, steps, clients = 2, 3, 2, 3
    assert sum(entry[:2] == ("noise", "local") for entry in asked) == arms * rounds * steps * clients
    assert sum(entry[:2] == ("noise", "global") for entry in asked) == arms * rounds * steps


def test_the_number_of_releases_is_the_accounted_one(toy_config, tmp_path, monkeypatch):
    config = with_sampling(toy_config, name="poisson", sampling_prob=0.5, steps_per_round=2)
    from hushprompt.privacy.config import Audience, Channel
    from hushprompt.privacy.mechanisms.gaussian import GaussianMechanism

    releases = []
    true_release = GaussianMechanism.release

    def counted(self, channel, summed):
        releases.append((self.plan.channels, channel))
        return true_release(self, channel, summed)

    monkeypatch.setattr(GaussianMechanism, "release", counted)
    run(config, fresh(tmp_path), Silent())
    both = frozenset(Channel)
    dataset = config.data.load()
    plan = plan_arms(config, client_sizes(make_partition(config, dataset)))[-1].plan
    assert releases.count((both, Channel.GLOBAL)) == plan.releases(Audience.PUBLIC).num_steps
    assert releases.count((both, Channel.LOCAL)) == 3 * plan.releases(Audience.PERSONAL).num_steps


def test_noise_divides_by_the_public_count_whoever_showed_up(toy_config, tmp_path, monkeypatch):
    from hushprompt.privacy.config import Channel
    from hushprompt.privacy.plan import PrivacyPlan

    counts = set()
    true_mechanism = PrivacyPlan.mechanism

    def spy(self, *, allowed, expected_count, **others):
        counts.add((allowed, expected_count))
        return true_mechanism(self, allowed=allowed, expected_count=expected_count, **others)

    monkeypatch.setattr(PrivacyPlan, "mechanism", spy)
    run(toy_config, fresh(tmp_path), Silent())
    assert counts == {(Channel.LOCAL, 0.5 * 24), (Channel.GLOBAL, 0.5 * 72)}


def test_every_step_draws_one_of_the_views_for_each_of_its_examples(toy_values, tmp_path, monkeypatch):
    from hushprompt.features.store import StoredFeatures

    values = {**toy_values, "features": {"num_views": 3}, "runtime": {"cache_dir": str(tmp_path / "cache")}}
    config, drawn = configs.parse(values), []
    true_rows = StoredFeatures.rows

    def spy(self, indices, views):
        assert self.array.shape == (72, 3, 6)
        drawn.append(views)
        return true_rows(self, indices, views)

    monkeypatch.setattr(StoredFeatures, "rows", spy)
    asked = [entry for entry in noise_streams(config, fresh(tmp_path), monkeypatch) if entry[0] == "view"]
    assert len(asked) == len(set(asked)) == 2 * 3 * 3, "arms x rounds x clients"
    counts = np.bincount(np.concatenate(drawn), minlength=3)
    assert counts.sum() > 150
    assert counts.min() > counts.sum() / 4
    first = files(tmp_path / "run")
    monkeypatch.undo()
    run(config, fresh(tmp_path, "again"), Silent())
    assert files(tmp_path / "again") == first


def test_who_else_is_in_the_batch_changes_no_examples_view(toy_values, tmp_path, monkeypatch):
    """Else one example more would change the gradients of all that follow it."""
    from hushprompt.features.store import StoredFeatures
    from hushprompt.privacy.sampling import PoissonSampler

    values = {**toy_values, "features": {"num_views": 3}, "runtime": {"cache_dir": str(tmp_path / "cache")}}
    config, true_batches, true_rows, drawn = configs.parse(values), PoissonSampler.batches, StoredFeatures.rows, []
    monkeypatch.setattr(
        StoredFeatures,
        "rows",
        lambda self, indices, views: drawn.append((indices, views)) or true_rows(self, indices, views),
    )
    run(config, fresh(tmp_path, "all"), Silent())
    whole, drawn[:] = list(drawn), []
    monkeypatch.setattr(PoissonSampler, "batches", lambda *args: [batch[1:] for batch in true_batches(*args)])
    run(config, fresh(tmp_path, "first_left_out"), Silent())
    views_by_batch = {tuple(indices[1:]): tuple(views[1:]) for indices, views in whole if len(indices)}
    assert len(drawn) == len(whole)
    for indices, views in drawn:
        assert not len(indices) or views_by_batch[tuple(indices)] == tuple(views)


def test_views_change_the_training_and_one_view_does_not(toy_values, tmp_path):
    results = {}
    for num_views in (1, 2):
        values = {**toy_values, "features": {"num_views": num_views, "view_seed": 5}}
        folder = fresh(tmp_path, str(num_views))
        run(configs.parse({**values, "runtime": {"cache_dir": str(tmp_path / "cache")}}), folder, Silent())
        results[num_views] = (folder / "prompts" / "global.safetensors").read_bytes()
    plain = fresh(tmp_path, "plain")
    run(configs.parse({**toy_values, "runtime": {"cache_dir": str(tmp_path / "cache")}}), plain, Silent())
    assert results[1] == (plain / "prompts" / "global.safetensors").read_bytes()
    assert results[2] != results[1]


def test_client_level_privacy_divides_by_the_clients_and_leaves_personal_prompts_unclaimed(
    toy_values, tmp_path, monkeypatch
):
    from hushprompt.privacy.config import Channel
    from hushprompt.privacy.mechanisms.gaussian import GaussianMechanism

    divisors = set()
    true_release = GaussianMechanism.release

    def spy(self, channel, summed):
        divisors.add((channel, self.expected_count))
        return true_release(self, channel, summed)

    monkeypatch.setattr(GaussianMechanism, "release", spy)
    privacy = {"epsilon": 8.0, "delta": 1e-3, "privacy_unit": "client", "audience": "public"}
    folder = fresh(tmp_path)
    arms = run(
        configs.parse({**toy_values, "privacy": privacy, "runtime": {"cache_dir": str(tmp_path)}}), folder, Silent()
    )
    assert divisors == {(Channel.LOCAL, 12.0), (Channel.GLOBAL, 3.0)}
    assert 7.9 < arms[-1].epsilon <= 8.0
    audiences = records.read_json(folder / "privacy.json")["arms"][-1]["audiences"]
    assert audiences["personal"]["epsilon"] == "inf"
    assert audiences["public"]["privacy_unit"] == "client"


@pytest.mark.parametrize(
    "sampling", [{"name": "disjoint", "steps_per_round": 3}, {"name": "poisson", "sampling_prob": 0.02}]
)
def test_disjoint_batches_and_empty_poisson_batches_run_through(toy_config, tmp_path, sampling):
    arms = run(with_sampling(toy_config, **sampling), fresh(tmp_path), Silent())
    assert 0 < arms[-1].epsilon <= 8.0
    assert all(np.isfinite(arm.local) for arm in arms)


def test_a_delta_as_large_as_one_over_n_is_refused(toy_values, tmp_path):
    values = {**toy_values, "privacy": {"epsilon": 8.0, "delta": 0.05}, "runtime": {"cache_dir": str(tmp_path)}}
    with pytest.raises(PrivacyError, match="largest client"):
        run(configs.parse(values), fresh(tmp_path), Silent())


def test_prompt_files_say_what_they_are_and_give_the_clients_logits(toy_config, tmp_path):
    from safetensors import safe_open

    folder = fresh(tmp_path)
    arms = run(toy_config, folder, Silent())
    with safe_open(folder / "prompts" / "client-001.safetensors", framework="pt") as file:
        metadata, context = json.loads(file.metadata()["hushprompt"]), file.get_tensor("context")
    assert context.shape == (4, 8)
    assert metadata["prompt"] == "[start][context][class name][end]"
    assert f"epsilon = {arms[-1].epsilon:.4g}" in metadata["privacy"]
    assert "add_remove" in metadata["privacy"]
    dataset = toy_config.data.load()
    partition = make_partition(toy_config, dataset)
    model = load_model(toy_config, dataset, [])
    federation = assemble(toy_config, model, dataset, partition, lambda *_: None)
    logits = model.logits(federation.eval_features["pooled"], model.text_features(context))
    mine = partition.clients[1].indices["test"]
    accuracy = float((logits[mine].argmax(1) == federation.eval_labels[mine]).double().mean())
    assert accuracy == pytest.approx(arms[-1].per_client[1]["local"])


def test_class_specific_contexts_are_trained_and_published_with_their_layout(toy_values, tmp_path):
    from safetensors import safe_open

    method = {**toy_values["method"], "is_class_specific": True, "name_position": "middle"}
    values = {**toy_values, "method": method, "references": [], "runtime": {"cache_dir": str(tmp_path / "cache")}}
    folder = fresh(tmp_path)
    run(configs.parse(values), folder, Silent())
    for name in ("global", "client-002"):
        with safe_open(folder / "prompts" / f"{name}.safetensors", framework="pt") as file:
            metadata, context = json.loads(file.metadata()["hushprompt"]), file.get_tensor("context")
        assert context.shape == (6, 4, 8)
        assert metadata["prompt"] == (
            "[start][first 2 vectors of the context][class name][rest of the context][end], one context for each class"
        )


def test_a_method_that_does_not_fit_the_model_is_refused_before_anything_is_encoded_or_trained(toy_values, tmp_path):
    class Untouched(Silent):
        def on_setup(self, what, done, total):
            raise AssertionError("images were encoded")

        on_arm = on_setup

    values = {**toy_values, "method": {"name": "dp_fpl", "num_ctx": 4, "rank": 5}}
    config = configs.parse({**values, "runtime": {"cache_dir": str(tmp_path / "cache")}})
    with pytest.raises(ConfigError, match="rank must be at most"):
        run(config, fresh(tmp_path), Untouched())
