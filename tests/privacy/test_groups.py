"""Groups as the privacy unit: one group moves a sum by at most the clip norm, and groups of one are examples."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from helpers.runs import TOY, files, run_with
from helpers.toy_metric import toy_metric
from hushprompt.audits.verify import verify
from hushprompt.config import parse as configs
from hushprompt.config.schema import TrainingConfig
from hushprompt.data.partitions.base import ClientShard, Partition
from hushprompt.data.sets.toy import ToyData
from hushprompt.errors import ConfigError, PrivacyError, ResumeError
from hushprompt.evaluation.private import count_right
from hushprompt.evaluation.splits import client_splits
from hushprompt.federation.client import Client
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import client_sizes, make_partition
from hushprompt.privacy import statements
from hushprompt.privacy.clipping import group_contributions
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.mechanisms import base
from hushprompt.privacy.mechanisms.base import ClassRows, clip_outer
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.sampling import DisjointSampler, EqualBatchesSampler, EveryExample, PoissonSampler
from hushprompt.runs import records

BOTH = frozenset(Channel)
values = st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from([math.nan, math.inf, 0.0]))
rows = npst.arrays("float32", st.tuples(st.integers(0, 8), st.just(3)), elements=values)
numbers = st.lists(st.integers(0, 3), min_size=8, max_size=8)


def plan_of(sampler=None, channels=BOTH, sizes=(50, 50), num_rounds=10, parts=(), mechanism=None, **privacy):
    wanted = {"noise_source": "seeded", "privacy_unit": "group", "epsilon": 4.0, **privacy}
    sampler = sampler or PoissonSampler(sampling_prob=0.1, steps_per_round=3)
    config = PrivacyConfig(**wanted)
    return make_plan(
        config, sampler, channels=channels, num_rounds=num_rounds, client_sizes=list(sizes), parts=parts,
        mechanism=mechanism,
    )  # fmt: skip


def tool(plan, groups, channel=Channel.LOCAL, step=0):
    return plan.mechanism(
        allowed=channel, expected_count=5.0, rng=np.random.default_rng(0), step=step, groups=torch.tensor(groups).long()
    )


@given(rows, numbers, st.floats(1e-2, 1e2), st.integers(0, 3), st.sampled_from(["seeded", "secure"]))
def test_all_of_a_group_moves_a_sum_by_at_most_the_clip_norm(data, groups, clip_norm, which, source):
    plan = plan_of(clip_norm_local=clip_norm, noise_source=source)
    groups, data = np.array(groups[: len(data)], dtype=np.int64), torch.from_numpy(data)
    kept = groups != which
    whole = tool(plan, groups).clip(Channel.LOCAL, data)
    rest = tool(plan, groups[kept]).clip(Channel.LOCAL, data[torch.from_numpy(kept)])
    assert whole.sensitivity == rest.sensitivity == clip_norm
    assert (whole.value.double() - rest.value.double()).norm() <= clip_norm * (1 + 1e-5)
    assert abs(whole.centered_count - rest.centered_count) <= 0.5 + 1e-9


@given(rows, numbers, st.integers(0, 3), st.booleans())
def test_all_of_a_group_moves_the_sums_of_all_classes_together_by_at_most_their_part(data, groups, which, squares):
    plan = plan_of(
        EveryExample(steps_per_round=2), frozenset({Channel.GLOBAL}), num_rounds=1, parts=(0.4, 0.6),
        mechanism="class_sums", clip_norm_global=2.0,
    )  # fmt: skip
    groups, data = np.array(groups[: len(data)], dtype=np.int64), torch.from_numpy(data)
    kept = groups != which
    public = torch.ones(3, dtype=torch.bool)

    def summed(some):
        some_rows, some_labels = data[torch.from_numpy(some)], torch.arange(len(data))[torch.from_numpy(some)] % 3
        sent = ClassRows(some_rows, some_labels, public, squares=squares)
        return tool(plan, groups[some], Channel.GLOBAL, 1).clip_in_classes(Channel.GLOBAL, sent)

    whole, rest = summed(np.ones(len(groups), dtype=bool)), summed(kept)
    assert whole.sensitivity == rest.sensitivity == pytest.approx(2 * 0.6**0.5)
    assert (whole.value.double() - rest.value.double()).norm() <= whole.sensitivity * (1 + 1e-5)


def test_a_groups_gradients_add_up_and_none_decides_alone():
    grads = torch.tensor([[1e6, 0.0], [0.0, 0.5], [0.0, 0.5], [0.1, 0.0]])
    both = group_contributions(grads, torch.tensor([0, 0, 0, 1]), 1.0)
    torch.testing.assert_close(both, torch.tensor([[1.0, 1.0], [0.1, 0.0]]))


@given(rows, st.floats(1e-2, 1e2))
def test_groups_of_one_add_what_examples_add(data, clip_norm):
    data = torch.from_numpy(data)
    grouped = tool(plan_of(clip_norm_local=clip_norm), np.arange(len(data))).clip(Channel.LOCAL, data)
    plain = plan_of(clip_norm_local=clip_norm, privacy_unit="example")
    alone = plain.mechanism(allowed=Channel.LOCAL, expected_count=5.0, rng=np.random.default_rng(0))
    assert torch.equal(grouped.value, alone.clip(Channel.LOCAL, data).value)


def test_products_are_clipped_by_groups_whatever_the_chunks(monkeypatch):
    rng = np.random.default_rng(1)
    left, right = (torch.from_numpy(rng.normal(size=(9, width))) for width in (3, 4))
    groups = [0, 2, 1, 0, 2, 2, 3, 0, 1]
    found = []
    for at_once in (2**24, 12, 36):
        monkeypatch.setattr(base, "NUMBERS_AT_ONCE", at_once)
        found.append(clip_outer(tool(plan_of(), groups), Channel.LOCAL, left, right).value)
    whole = tool(plan_of(), groups).clip(Channel.LOCAL, torch.einsum("bc,bd->bcd", left, right)).value
    for value in found:
        torch.testing.assert_close(value, whole)
    empty = clip_outer(tool(plan_of(), []), Channel.LOCAL, left[:0], right[:0])
    assert not empty.value.any()


def test_what_does_not_fit_the_theorem_is_refused():
    mechanism = tool(plan_of(), [0, 0, 1])
    with pytest.raises(PrivacyError, match="3 rows are known, and 2 rows came"):
        mechanism.clip(Channel.LOCAL, torch.ones(2, 3))
    with pytest.raises(PrivacyError, match="clipped batch"):
        mechanism.clip_batch(Channel.LOCAL, torch.ones(3))
    server = plan_of().mechanism(allowed=Channel.GLOBAL, expected_count=5.0, rng=np.random.default_rng(0))
    with pytest.raises(PrivacyError, match="Groups of no rows are known"):
        server.clip(Channel.GLOBAL, torch.ones(2, 3))
    with pytest.raises(PrivacyError, match=r"1 / \(groups of the largest client\) = 1 / 20.*all of a group"):
        plan_of(sizes=(20,), delta=0.05)
    with pytest.raises(PrivacyError, match=r"1000 groups with 16 examples in a step at most.*max_group_examples"):
        plan_of(sizes=(1000,))
    with pytest.raises(PrivacyError, match="group_word must be a word"):
        PrivacyConfig(group_word="<b>")


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (PoissonSampler(sampling_prob=0.1), "Poisson sampling with probability 0.1"),
        (EqualBatchesSampler(batch_size=5), "Poisson sampling of 5 patients of each client in expectation"),
        (DisjointSampler(steps_per_round=3), "3 disjoint batches a round, each patient in one"),
    ],
)
def test_the_accounting_is_that_of_examples_and_the_statement_names_the_group(sampler, words):
    plan = plan_of(sampler, group_word="patient's images", rounding=0.0)
    same = plan_of(sampler, privacy_unit="example", rounding=0.0)
    assert plan.release_plan.noise_multipliers == same.release_plan.noise_multipliers
    for audience, held in plan.guarantees().items():
        assert held.epsilon == same.guarantees()[audience].epsilon
        assert "for all of one patient's images at one client (a patient at two clients counts twice)" in (
            held.statement()
        )
        assert "neighbors differing by one patient's images more or less" in held.statement()
        assert words in held.statement()
        assert "example" not in held.statement()
        assert "the use of a single patient in at most" in statements.in_plain_words(held.to_json())
        assert "for one patient of one client" in " ".join(statements.clauses("them", held.to_json()))
    assert plan_of().guarantees()[Audience.PUBLIC].statement().count("one group's examples") == 2


def test_noise_is_larger_by_what_all_examples_of_all_groups_may_round():
    plan = plan_of(max_group_examples=8, rounding=1e-5)
    assert plan.release_plan.rounding_margin == pytest.approx(50 * 8 * 1e-5)


# --- In a federation ------------------------------------------------------------------------------------------------

GROUPED = {
    **TOY, "references": [], "data": {"name": "toy", "group_size": 3}, "partition": {"name": "iid", "num_clients": 3},
    "privacy": {"epsilon": 8.0, "delta": 1e-3, "privacy_unit": "group", "group_word": "patient"},
    "sampling": {"name": "disjoint", "steps_per_round": 2}, "training": {"num_rounds": 2},
}  # fmt: skip
METHODS = {
    "dp_fpl": {"name": "dp_fpl", "num_ctx": 4, "rank": 2},
    "promptfl": {"name": "promptfl", "num_ctx": 4},
    "local_only": {"name": "local_only", "num_ctx": 4},
    "fedclip": {"name": "fedclip"},
    "linear_probe": {"name": "linear_probe"},
    "fedpgp": {"name": "fedpgp", "num_ctx": 4, "rank": 2},
    "least_squares": {"name": "least_squares"},
}


def of(method, **privacy):
    return {**GROUPED, "method": method, "privacy": {**GROUPED["privacy"], **privacy}}


@pytest.mark.parametrize("name", ["dp_fpl", "linear_probe", "fedpgp", "class_statistics"])
def test_groups_of_one_train_what_examples_train(tmp_path, name):
    method = METHODS.get(name) or {"name": name, "metric": toy_metric(), "covariance_share": 0.1}
    values = {**of(method, max_group_examples=1), "features": {"num_views": 2}}
    alone = run_with({**values, "data": {"name": "toy", "group_size": 1}}, tmp_path, "alone")[0]
    plain = run_with({**values, "privacy": {"epsilon": 8.0, "delta": 1e-3}}, tmp_path, "plain")[0]
    first, second = files(alone), files(plain)
    assert first["records.jsonl"] == second["records.jsonl"]
    for prompt in (path for path in first if path.endswith(".safetensors")):
        numbers = [text[8 + int.from_bytes(text[:8], "little") :] for text in (first[prompt], second[prompt])]
        assert numbers[0] == numbers[1], "but for what their headers say"


@pytest.mark.parametrize(
    ("name", "privacy"),
    [
        *((name, {}) for name in [*METHODS, "class_statistics"]),
        ("promptfl", {"noise_at": "shares", "audience": "server"}),
    ],
)
def test_every_method_trains_on_groups(tmp_path, name, privacy):
    method = METHODS.get(name) or {"name": name, "metric": toy_metric()}
    folder, (arm,), _ = run_with(of(method, **privacy), tmp_path)
    told = (folder / "privacy.json").read_text()
    assert arm.epsilon <= 8.0
    assert "one patient's examples" in told
    assert "Groups are each client's own." in told
    assert '"privacy_unit": "group"' in told


def test_sizes_count_groups_and_each_is_at_one_client(tmp_path, caplog):
    config = configs.parse(GROUPED)
    partition = make_partition(config, config.data.load())
    groups = config.data.load().splits["train"].groups
    held = [len(np.unique(groups[client.indices["train"]])) for client in partition.clients]
    assert client_sizes(partition) == held
    assert sum(held) == len(np.unique(groups))
    with caplog.at_level("WARNING"):
        folder = run_with(GROUPED, tmp_path)[0]
    (folder / "config.toml").write_text(config.to_toml())
    assert verify(folder).differences == []
    assert "A group has examples at two clients" not in caplog.text


def test_a_method_that_clips_batches_is_refused():
    with pytest.raises(PrivacyError, match="Clipped batches are accounted for by"):
        plan_arms(configs.parse(of({"name": "dp_fpl_released", "num_ctx": 4, "rank": 2})), [9, 9, 9])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"name": "toy"}}, ConfigError, "toy does not say which examples belong together"),
        (
            {
                "data": {"name": "toy", "group_size": 1, "num_train": 48},
                "evaluation": {"metrics_epsilon": 1.0, "metrics_delta": 0.09},
            },
            PrivacyError,
            "evaluation groups of the largest client",
        ),
    ],
)
def test_settings_that_no_theorem_covers_are_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run_with({**GROUPED, **changes}, tmp_path)


def client_of(model, groups):
    index = torch.arange(len(groups))
    return Client(0, 1, TrainingConfig(num_rounds=1), model, {}, index, index, None, np.array(groups))


def test_a_large_group_gives_another_part_each_step_and_no_other_group_notices(model):
    arm = plan_arms(configs.parse(of(METHODS["promptfl"], max_group_examples=2)), [3])[-1]
    small, large = client_of(model, [0, 1, 1, 1, 1, 2, 2, 2]), client_of(model, [0, 1, 1, 1, 1, 1, 1, 2, 2, 2])
    units, seen = np.array([0, 1, 2]), set()
    for step in range(9):
        drawn = large._drawn(arm, units, ("arm", 0, step))
        assert drawn.units.tolist() == [0, 1, 1, 2, 2]
        assert drawn.groups.tolist() == [0, 1, 1, 2, 2]
        assert drawn.ranks.tolist() == [0, 0, 1, 0, 1]
        assert all(large.groups[drawn.places] == drawn.units)
        seen |= set(drawn.places[1:3].tolist())
        other = small._drawn(arm, units, ("arm", 0, step))
        assert (drawn.places[3:] - 2).tolist() == other.places[3:].tolist()
        without = small._drawn(arm, np.array([0, 2]), ("arm", 0, step))
        assert without.places.tolist() == other.places[[0, 3, 4]].tolist()
        assert without.groups.tolist() == [0, 1, 1]
    assert seen == set(range(1, 7))
    assert large.size == 3
    once = plan_arms(configs.parse(of({"name": "least_squares"}, max_group_examples=2)), [3])[-1]
    assert len(large._drawn(once, units, ("arm", 0, 0)).places) == 10, "statistics take all of a group"
    assert len(large._drawn(arm, units[:0], ("arm", 0, 0)).places) == 0


def test_a_resume_notices_that_examples_belong_together_otherwise(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run_with(GROUPED, tmp_path, stop_after=1)
    load = ToyData.load

    def moved(self):
        dataset = load(self)
        train = dataset.splits["train"]
        groups = np.roll(train.groups, 1)
        return dataclasses.replace(
            dataset, splits={**dataset.splits, "train": dataclasses.replace(train, groups=groups)}
        )

    monkeypatch.setattr(ToyData, "load", moved)
    with pytest.raises(ResumeError, match="group data are not those of the start"):
        run_with(GROUPED, tmp_path)


def counts_of(is_right, groups, holders):
    """What is counted where each image is held by one of three clients, or by nobody."""
    own = [np.flatnonzero(holders == client) for client in range(3)]
    shards = tuple(ClientShard(client, (), {"test": mine}) for client, mine in enumerate(own))
    logits = torch.nn.functional.one_hot(torch.from_numpy(is_right).long(), 2).float()
    return count_right(
        lambda _: logits, torch.ones(len(groups)).long(), client_splits(Partition(shards), "test", groups)
    )


@pytest.mark.parametrize("seed", range(3))
def test_all_evaluation_images_of_a_group_move_each_count_by_at_most_one(seed):
    rng = np.random.default_rng(seed)
    groups, holders, is_right = rng.integers(0, 9, 60), rng.integers(0, 3, 60), rng.random(60) < 0.7
    whole = counts_of(is_right, groups, holders)
    sizes = [len(np.unique(groups[holders == client])) for client in range(3)]
    for client in range(3):
        for group in np.unique(groups[holders == client]):
            without = counts_of(is_right, groups, np.where((groups == group) & (holders == client), -1, holders))
            local, neighbor = whole.local - without.local, whole.neighbor - without.neighbor
            assert (local >= 0).all()
            assert (local <= (np.arange(3) == client)).all()
            assert (neighbor >= 0).all()
            assert (neighbor <= (np.arange(3) != client)).all()
    perfect = counts_of(np.ones(60, dtype=bool), groups, holders)
    assert perfect.local.tolist() == sizes
    assert perfect.neighbor.tolist() == [sum(sizes) - own for own in sizes]


def test_noisy_accuracies_count_groups_and_say_so(tmp_path):
    evaluation = {"metrics_epsilon": 50.0, "metrics_delta": 1e-3, "every": 2}
    folder, (arm,), _ = run_with({**GROUPED, "evaluation": evaluation}, tmp_path)
    (folder / "config.toml").write_text(configs.parse({**GROUPED, "evaluation": evaluation}).to_toml())
    told = records.read_json(folder / "privacy.json")["evaluation_images"]
    assert "all of one patient's examples for evaluation at one client" in told
    assert "every patient is in every release" in told
    assert "patients on each client's local count" in told
    assert 0 <= arm.local <= 1
    assert verify(folder).differences == []
