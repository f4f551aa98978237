"""Whole runs whose clients are stacked leave what they leave one by one, up to rounding."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from helpers.runs import files, run_with
from hushprompt.errors import ConfigError
from hushprompt.federation import stacking
from hushprompt.federation.stacking import Cost, Stacking, cost, cut
from hushprompt.methods.base import Batch
from hushprompt.models.embedded import EmojiClip
from hushprompt.prompts.gradients import bytes_per_example, per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS

TRAINED = [name for name in METHODS.names() if METHODS.get(name).channels]


@pytest.fixture
def stacked(monkeypatch):
    """Lists how many clients each stack has."""
    sizes, run_stacked = [], stacking.run_stacked

    def spy(model, works, memory_mb):
        sizes.append(len(works))
        return run_stacked(model, works, memory_mb)

    monkeypatch.setattr(stacking, "run_stacked", spy)
    return sizes


def prompts(values, tmp_path, **runtime):
    """What a run has learned."""
    name = "-".join(map(str, runtime.values()))
    folder, _, _ = run_with({**values, "runtime": {"num_threads": 1, **runtime}}, tmp_path, name)
    return {path.name: load_file(path) for path in (folder / "prompts").glob("*.safetensors")}


def assert_near(found, expected):
    """All learned tensors agree to 1e-6 of their length."""
    assert found.keys() == expected.keys()
    for name, tensors in found.items():
        for key, ours in tensors.items():
            theirs = expected[name][key]
            assert (ours - theirs).norm() <= 1e-6 * theirs.norm(), (name, key)


def step(context, batch, model):
    """What a client asks the tower for."""
    return per_example_gradients(model, context, batch)


@pytest.mark.parametrize("name", TRAINED)
def test_every_method_learns_the_same(toy_values, tmp_path, stacked, name):
    method = {"name": name, **({} if name == "fedclip" else {"num_ctx": 4})}
    if name in ("dp_fpl", "dp_fpl_released", "fedpgp"):
        method["rank"] = 2
    privacy = {
        **toy_values["privacy"],
        **({"epsilon": math.inf} if name == "dp_fpl_released" else {}),
    }  # slow to account
    values = {**toy_values, "references": [], "method": method, "privacy": privacy}
    alone = prompts(values, tmp_path, stack_mb=0)
    assert not stacked
    assert_near(prompts(values, tmp_path, stack_mb=1000), alone)
    num_rounds, num_clients = 3, 3
    assert stacked == ([] if name == "fedclip" else [num_clients] * num_rounds)


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"num_rounds": 3, "cohort_size": 2, "dropout_rate": 0.4}},
        {
            "training": {"num_rounds": 2, "local_steps": 2},
            "sampling": {"name": "disjoint", "steps_per_round": 2},
            "privacy": {"noise_at": "client", "audience": "public"},
            "method": {"name": "promptfl", "num_ctx": 4},
        },
        {"privacy": {"adaptive_quantile": 0.5}},
        {"sampling": {"name": "poisson", "sampling_prob": 0.02}},  # most batches are empty
        {"method": {"name": "dp_fpl", "num_ctx": 2, "rank": 2, "is_class_specific": True}},
        {"method": {"name": "promptfl", "num_ctx": 4, "name_position": "middle"}},
        {"backbone": {"name": "toy", "is_causal": False}},
    ],
    ids=["dropout", "local steps", "adaptive norms", "small batches", "class-specific", "middle", "not causal"],
)
def test_every_setting_learns_the_same(toy_values, tmp_path, stacked, change):
    privacy = {**toy_values["privacy"], **change.get("privacy", {})}
    values = {**toy_values, "references": [], **change, "privacy": privacy}
    assert_near(prompts(values, tmp_path, stack_mb=1000), prompts(values, tmp_path, stack_mb=0))
    assert stacked


@pytest.mark.parametrize(
    ("method", "training", "expected"),
    [("promptfl", {}, True), ("promptfl", {"local_steps": 2}, False), ("local_only", {}, False)],
)
def test_clients_are_alike_where_nothing_personal_is_in_the_prompt(
    toy_values, tmp_path, monkeypatch, method, training, expected
):
    said = []
    monkeypatch.setattr(stacking, "cost", lambda *args, are_alike: said.append(are_alike))
    values = {**toy_values, "references": [], "method": {"name": method, "num_ctx": 4}}
    values["training"] = {"num_rounds": 2, **training}
    if training:
        values["sampling"] = {"name": "disjoint", "steps_per_round": 2}
        values["privacy"] = {**toy_values["privacy"], "noise_at": "client", "audience": "public"}
    prompts(values, tmp_path, stack_mb=1000)
    assert said == [expected]  # asked once an arm


def test_records_and_ledger_are_those_of_clients_alone(toy_values, tmp_path):
    left = []
    for stack_mb in (0, 1000):
        runtime = {"num_threads": 1, "stack_mb": stack_mb}
        folder, arms, _ = run_with({**toy_values, "runtime": runtime}, tmp_path, str(stack_mb))
        found = files(folder)
        left.append(([arm.epsilon for arm in arms], found["privacy.json"], sorted(found)))
    assert left[0] == left[1]


def test_a_stopped_run_goes_on_to_the_same_bits(toy_values, tmp_path, stacked):
    values = {**toy_values, "runtime": {"stack_mb": 1000, "num_threads": 1}}
    whole, _, _ = run_with(values, tmp_path, "whole")
    assert stacked
    for stop_after in (1, 4):
        name = f"stopped-{stop_after}"
        with pytest.raises(KeyboardInterrupt):
            run_with(values, tmp_path, name, stop_after)
        stopped, _, _ = run_with(values, tmp_path, name)
        assert files(stopped) == files(whole)


def test_memory_limits_a_stack(toy_values, tmp_path, stacked, monkeypatch):
    values = {**toy_values, "references": []}
    given, run_stacked = set(), stacking.run_stacked
    monkeypatch.setattr(stacking, "cost", lambda *args, **kwargs: Cost(held=40.0, example=10.0))
    monkeypatch.setattr(stacking, "run_stacked", lambda *args: given.add(args[2]) or run_stacked(*args))
    alone = prompts(values, tmp_path, stack_mb=0)
    for stack_mb, sizes, of_each in ((99, set(), set()), (100, {2}, {10}), (200, {3}, {26})):
        stacked.clear()
        given.clear()
        assert_near(prompts(values, tmp_path, stack_mb=stack_mb), alone)
        assert set(stacked) == sizes
        assert given == of_each
    assert Cost(held=0.0, example=1e-3).most(10**6) == stacking.MOST_CLIENTS
    assert Cost(held=40.0, example=10.0).left(150, num_clients=3) == 10
    assert Cost(held=40.0, example=10.0).left(30, num_clients=3) == 1


def test_every_thread_has_a_stack(toy_values, tmp_path, stacked):
    values = {**toy_values, "references": [], "partition": {**toy_values["partition"], "num_clients": 5}}
    prompts(values, tmp_path, stack_mb=1000, num_threads=2)
    assert set(stacked) == {2, 3}


def test_stacks_that_run_at_once_share_the_memory(model, batch, monkeypatch):
    monkeypatch.setattr(stacking, "cost", lambda *args, **kwargs: Cost(held=40.0, example=10.0))
    for num_workers, expected in ((1, [4, 4]), (2, [2, 2, 2, 2])):
        stacks = Stacking(model, 200, num_workers).cut("arm", [1] * 8, lambda given: None, are_alike=False)
        assert [len(places) for places in stacks] == expected


def test_what_a_client_costs_is_measured(model, batch):
    context = torch.zeros(4, model.token_width)
    found = cost(model, functools.partial(step, context, batch), are_alike=False)
    assert found == Cost(stacking.GAPS * model.held_bytes(context) / 2**20, bytes_per_example(model, context) / 2**20)
    shared = cost(model, functools.partial(step, context, batch), are_alike=True)
    assert shared == Cost(0.0, found.example)
    assert cost(model, lambda given: None, are_alike=True) is None


def test_the_embedded_model_is_stacked_only_where_contexts_are_shared():
    model = PromptModel(EmojiClip().load(), ("cat", "wild cat", "ox"))
    batch = Batch(torch.ones(1, model.backbone.feature_dim), torch.zeros(1, dtype=torch.long))
    work = functools.partial(step, torch.zeros(4, model.token_width), batch)
    assert cost(model, work, are_alike=False) is None
    assert cost(model, work, are_alike=True).held == 0
    alone = Stacking(model, 1000, 1)
    assert alone.cut("arm", [3, 5], work, are_alike=False) == [[1], [0]]


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 8), st.integers(1, 4))
def test_every_client_is_in_one_stack_that_fits(sizes, most, num_workers):
    stacks = cut(sizes, most, num_workers)
    assert sorted(place for stack in stacks for place in stack) == list(range(len(sizes)))
    in_order = [sizes[place] for stack in stacks for place in stack]
    assert in_order == sorted(sizes, reverse=True)
    lengths = [len(stack) for stack in stacks]
    assert max(lengths, default=0) <= most
    assert max(lengths, default=0) - min(lengths, default=0) <= 1
    assert len(stacks) >= min(num_workers, len(sizes))
    assert min(lengths, default=1) > 0


def test_a_negative_limit_is_refused(toy_values, tmp_path):
    with pytest.raises(ConfigError, match="stack_mb"):
        prompts(toy_values, tmp_path, stack_mb=-1)
