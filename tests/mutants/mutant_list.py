"""Privacy code broken on purpose, one fault at a time, and the check that must notice each.

A mutant replaces a piece of the real code by what a plausible mistake would make of it. Its check is a test of this
repository, run once on the healthy code, where it must pass, and once on the mutant, where it must fail. A check that
passes on both would show that the tests do not test; `test_mutants.py` fails then. Run this file to get the table of
docs/mutants.md.
"""

import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import dp_accounting
import numpy as np
import torch
import torch.nn.functional as F

from hushprompt import files
from hushprompt.audits.world import World
from hushprompt.data.partitions.base import ClientShard
from hushprompt.deployment import envelope, policy, rescue, roster, secure_turn, shamir
from hushprompt.deployment.client_run import ClientRun
from hushprompt.deployment.responses import Responses
from hushprompt.deployment.secure_turn import SecureTurn
from hushprompt.deployment.store import RunStore, rounds_of_state
from hushprompt.evaluation.splits import GroupedImages
from hushprompt.federation import client, payload, planning, rounding
from hushprompt.federation.server import Server
from hushprompt.federation.simulate import StartBooks
from hushprompt.methods.base import Batch
from hushprompt.methods.class_statistics import ClassStatistics
from hushprompt.methods.dp_fpl import DPFPL
from hushprompt.methods.local_only import LocalOnly
from hushprompt.methods.promptfl import PromptFL
from hushprompt.privacy import accounting, budget, clipping, ledger, metrics, noise
from hushprompt.privacy import plan as plans
from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.mechanisms import base
from hushprompt.privacy.mechanisms.base import Release, StepMechanism
from hushprompt.privacy.mechanisms.class_sums import ClassSumsMechanism
from hushprompt.privacy.mechanisms.gaussian import GaussianMechanism
from hushprompt.privacy.mechanisms.observed import ObservedMechanism, WrappedMechanism
from hushprompt.privacy.plan import PrivacyPlan
from hushprompt.privacy.release_plan import ReleasePlan
from hushprompt.privacy.releases import GaussianReleases
from hushprompt.privacy.sampling import DisjointSampler, EveryExample, PoissonSampler
from hushprompt.privacy.shares import ShareGrid, ShareTerms
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.prefix_cache import PrefixCache
from hushprompt.runs.identity import RunIdentity
from hushprompt.runs.ledger import LedgerFile
from hushprompt.seeding import stream
from hushprompt.statistics import sums

TESTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Check:
    """A test function of this repository, and the values of its parameters; the rest are fixtures."""

    path: str
    function: str
    values: dict = field(default_factory=dict)

    @property
    def label(self):
        return f"{self.path}::{self.function}"

    def load(self):
        """Import the file under a name of its own, once."""
        name = "checked_" + self.path.removesuffix(".py").replace("/", "_")
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, TESTS / self.path)
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return getattr(sys.modules[name], self.function)

    def run(self, request):
        """Call it with its values, its fixtures, and those that its file uses for all tests."""
        function = self.load()
        for mark in getattr(sys.modules[function.__module__], "pytestmark", []):
            for name in mark.args if mark.name == "usefixtures" else ():
                request.getfixturevalue(name)
        names = inspect.signature(function).parameters
        fixtures = {name: request.getfixturevalue(name) for name in names if name not in self.values}
        function(**fixtures, **self.values)


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    name: str
    what: str
    check: Check
    apply: Callable


MUTANTS: list[Mutant] = []


def mutant(what, path, function, **values):
    """Enroll a function that breaks the code through a monkeypatch."""

    def enroll(apply):
        MUTANTS.append(Mutant(apply.__name__, what, Check(path, function, values), apply))
        return apply

    return enroll


def everywhere(patch, original, replacement):
    """Replace a function wherever the package or a check has imported it."""
    found = 0
    for name, module in list(sys.modules.items()):
        if name.startswith(("hushprompt", "checked_")):
            for key, value in list(vars(module).items()):
                if value is original:
                    patch.setattr(module, key, replacement)
                    found += 1
    assert found, "the mutant changes nothing"


def around(patch, owner, name, make):
    """Replace a method by `make(the method)`."""
    patch.setattr(owner, name, make(getattr(owner, name)))


class Altered(WrappedMechanism):
    """The same mechanism, whose releases are altered by `change(mechanism, true release, channel, summed)`."""

    change = None

    def release(self, channel, summed):
        return type(self).change(self.inner, self.inner.release, channel, summed)


def altered(mechanism, change):
    """Return the same mechanism with another release."""
    return type("Mutated", (Altered,), {"change": staticmethod(change)})(mechanism)


CONTRACT = "methods/test_contract.py"
LEAVES = "federation/test_what_leaves.py"
ONE_MORE = "test_one_example_more_moves_upload_and_release_by_no_more_than_the_sensitivity"
FRESH_NOISE = "test_every_release_of_a_run_carries_fresh_noise_of_the_planned_size"
ONLY_RELEASED = "test_data_enters_the_personal_state_only_through_what_is_released"
RELEASE = "test_a_release_is_the_sum_plus_planned_noise_over_the_public_count"
MECHANISM = "privacy/test_mechanisms.py"

# ---------------------------------------------------------------------------------------------------- clipping


@mutant("the mean gradient is clipped, not each example's", CONTRACT, ONE_MORE, name="promptfl")
def batch_clipping(patch):
    def clipped(grads, clip_norm):
        mean = grads.mean(dim=0) if len(grads) else grads.sum(dim=0)
        return ClippedSum(mean * min(1.0, clip_norm / max(float(mean.norm()), 1e-12)) * len(grads), clip_norm)

    everywhere(patch, clipping.clipped_sum, clipped)


@mutant("what is uploaded is not clipped", CONTRACT, ONE_MORE, name="promptfl")
def unclipped_upload(patch):
    def make(true):
        def clip(self, channel, grads):
            return ClippedSum(grads.sum(dim=0), self.plan.clip_norms[channel])

        return clip

    around(patch, GaussianMechanism, "clip", make)


@mutant("the two factors are clipped one by one, so together they exceed the norm", CONTRACT, ONE_MORE, name="dp_fpl")
def factors_clipped_apart(patch):
    def make(true):
        def clip(self, channel, grads):
            if channel is not Channel.LOCAL:
                return true(self, channel, grads)
            halves = [true(self, channel, half) for half in grads.split([8, grads.shape[1] - 8], dim=1)]
            return ClippedSum(torch.cat([half.value for half in halves]), halves[0].sensitivity)

        return clip

    around(patch, GaussianMechanism, "clip", make)


@mutant(
    "noise is added to the raw sum, and the noisy sum is clipped",
    "audits/test_mechanism_audit.py",
    "test_the_real_mechanism_never_shows_more_than_is_claimed",
    epsilon=1.0,
    norm=1000.0,
)
def clip_after_noise(patch):
    def make_clip(true):
        return lambda self, channel, grads: ClippedSum(grads.sum(dim=0), self.plan.clip_norms[channel])

    def make_release(true):
        def release(self, channel, summed):
            noisy = true(self, channel, summed).value
            return Release(noisy * min(1.0, summed.sensitivity * self.expected_count / float(noisy.norm())))

        return release

    around(patch, GaussianMechanism, "clip", make_clip)
    around(patch, GaussianMechanism, "release", make_release)


@mutant(
    "the clip factor comes from the batch's median norm",
    "privacy/test_clipping.py",
    "test_removing_an_example_moves_the_sum_by_at_most_its_sensitivity",
)
def clip_norm_from_the_data(patch):
    def clipped(grads, clip_norm):
        if not len(grads):
            return ClippedSum(grads.sum(dim=0), clip_norm)
        median = grads.flatten(1).norm(dim=1).median().clamp(min=1e-12)
        return ClippedSum(grads.sum(dim=0) * clip_norm / median, clip_norm)

    everywhere(patch, clipping.clipped_sum, clipped)


@mutant(
    "a gradient that is not a number is passed on",
    "privacy/test_clipping.py",
    "test_a_gradient_that_is_not_finite_counts_as_zero",
    bad=float("nan"),
)
def not_a_number(patch):
    def clipped(grads, clip_norm):
        norms = grads.flatten(1).norm(dim=1)
        return ClippedSum(torch.einsum("b,b...->...", (clip_norm / norms).clamp(max=1.0), grads), clip_norm)

    everywhere(patch, clipping.clipped_sum, clipped)


@mutant("every view of an example is clipped and added on its own", CONTRACT, ONE_MORE, name="promptfl")
def every_view_counts(patch):
    def make(true):
        def client_step(self, model, shared, personal, batch, mechanism, rng):
            views = Batch(batch.image_features.repeat(2, 1), batch.labels.repeat(2))
            return true(self, model, shared, personal, views, mechanism, rng)

        return client_step

    around(patch, PromptFL, "client_step", make)


# ------------------------------------------------------------------------------------------------------- noise


def without_noise_on(start, stop):
    """Break DP-FPL: part of its factor gradients comes from the clipped sum itself."""

    def release(self, true, channel, summed):
        released = true(channel, summed).value.clone()
        released[start:stop] = summed.value[start:stop] / self.expected_count
        return Release(released)

    def make(true):
        def client_step(self, model, shared, personal, batch, mechanism, rng):
            return true(self, model, shared, personal, batch, altered(mechanism, release), rng)

        return client_step

    return make


@mutant("noise is forgotten on the factor u", CONTRACT, ONLY_RELEASED, name="dp_fpl")
def no_noise_on_u(patch):
    around(patch, DPFPL, "client_step", without_noise_on(0, 8))


@mutant("noise is forgotten on the factor v", CONTRACT, ONLY_RELEASED, name="dp_fpl")
def no_noise_on_v(patch):
    around(patch, DPFPL, "client_step", without_noise_on(8, 24))


@mutant("noise is forgotten on the global prompt", LEAVES, FRESH_NOISE)
def no_noise_on_g(patch):
    def make(true):
        def release(self, channel, summed):
            if channel is Channel.GLOBAL:
                return Release(summed.value / self.expected_count)
            return true(self, channel, summed)

        return release

    around(patch, GaussianMechanism, "release", make)


def scaled_noise(factor):
    """Break the release: the noise is multiplied by `factor(mechanism, channel)`."""

    def make(true):
        def release(self, channel, summed):
            clean = summed.value / self.expected_count
            return Release(clean + (true(self, channel, summed).value - clean) * factor(self, channel))

        return release

    return make


@mutant("noise is scaled for the mean, and divided by the batch once more", "privacy/test_plan.py", RELEASE)
def noise_of_the_mean(patch):
    around(patch, GaussianMechanism, "release", scaled_noise(lambda self, channel: 1 / self.expected_count))


@mutant("the noise does not know the clip norm", "privacy/test_plan.py", RELEASE)
def noise_without_clip_norm(patch):
    around(patch, GaussianMechanism, "release", scaled_noise(lambda self, channel: 1 / self.plan.clip_norms[channel]))


@mutant("local noise takes the global multiplier", "privacy/test_plan.py", RELEASE)
def noise_of_the_other_channel(patch):
    def factor(self, channel):
        z = self.plan.noise_multipliers
        return z[Channel.GLOBAL] / z[channel]

    around(patch, GaussianMechanism, "release", scaled_noise(factor))


@mutant("noise is drawn once and used again", LEAVES, FRESH_NOISE)
def noise_drawn_once(patch):
    drawn = {}

    def add_gaussian(value, std, rng):
        if value.shape not in drawn:
            drawn[value.shape] = torch.from_numpy(rng.standard_normal(tuple(value.shape))).float()
        return value + std * drawn[value.shape]

    everywhere(patch, noise.add_gaussian, add_gaussian)


def stream_without(position):
    """Break the streams: local noise, or a batch, does not depend on one part of its place."""

    def broken(purposes):
        def ask(seed, purpose, *place):
            if (purpose, *place)[: len(purposes)] == purposes:
                place = tuple(part for index, part in enumerate(place) if index != position % len(place))
            return stream(seed, purpose, *place)

        return ask

    return broken


@mutant("all clients draw their noise from one stream", LEAVES, FRESH_NOISE)
def one_stream_for_two_clients(patch):
    patch.setattr(client, "stream", stream_without(-1)(("noise", "local")))


@mutant("every round draws the same noise", LEAVES, FRESH_NOISE)
def same_noise_every_round(patch):
    patch.setattr(client, "stream", stream_without(2)(("noise", "local")))


@mutant(
    "with secure noise, batches still follow from the seed",
    "privacy/test_secure_noise.py",
    "test_secure_runs_draw_their_batches_from_the_system_whatever_the_seed",
)
def seeded_batches(patch):
    patch.setattr(ReleasePlan, "private_stream", lambda self, seeded: seeded)


SECURE_RUNS = "federation/test_secure_runs.py"
NOTHING_SEEDED = "test_nothing_that_protects_data_is_drawn_from_a_seeded_generator"
DIGITS = "test_sums_keep_their_digits_until_they_are_put_on_the_grid"


@mutant("with secure noise, a client draws its batches from the seeded stream", SECURE_RUNS, NOTHING_SEEDED,
        kind="gradients")  # fmt: skip
def batches_of_the_seed(patch):
    def batches(self, arm, round_index):
        return arm.plan.sampler.batches(len(self.index), client.stream(self.seed, "batch", round_index, self.client_id))

    patch.setattr(client.Client, "batches", batches)


@mutant("with secure noise, sums get seeded noise", SECURE_RUNS, NOTHING_SEEDED, kind="copies")
def seeded_noise(patch):
    add = noise.add_gaussian
    patch.setattr(GaussianMechanism, "_noisy", lambda self, value, std, sensitivity: add(value, std, self.rng))


@mutant("with secure noise, the count of adaptive clip norms gets seeded noise", SECURE_RUNS, NOTHING_SEEDED,
        kind="sums")  # fmt: skip
def seeded_count(patch):
    add = noise.add_gaussian

    def make(true):
        return lambda self, value, std, *given: (
            add(value, std, self.rng) if value.numel() == 1 else true(self, value, std, *given)
        )

    around(patch, GaussianMechanism, "_noisy", make)


@mutant("with secure noise, evaluation counts get seeded noise", SECURE_RUNS, NOTHING_SEEDED, kind="counts")
def seeded_metrics(patch):
    def make(true):
        return lambda self, *given: true(dataclasses.replace(self, noise_source="seeded"), *given)

    around(patch, metrics.MetricsPlan, "release", make)


@mutant("sums under secure noise are added in float32", SECURE_RUNS, DIGITS, kind="gradients", method="dp_fpl")
def sums_of_float32(patch):
    def make(true):
        return lambda self, channel, grads: _as_float32(true(self, channel, grads))

    around(patch, GaussianMechanism, "clip", make)


@mutant("sums under secure noise are rounded to float32 on their way", SECURE_RUNS, DIGITS, kind="sums",
        method="dp_fpl")  # fmt: skip
def sums_rounded_on_their_way(patch):
    true = payload.unpack_sum
    everywhere(patch, true, lambda arrived: _as_float32(true(arrived), torch.float64))


def _as_float32(summed, dtype=torch.float32):
    return dataclasses.replace(summed, value=summed.value.float().to(dtype))


@mutant("what rounding to the grid moves is not paid by more noise", "privacy/test_secure_noise.py",
        "test_the_noise_is_larger_by_what_rounding_to_the_grid_can_move")  # fmt: skip
def grid_not_paid(patch):
    true = noise.add_secure_gaussian
    everywhere(patch, true, lambda value, std, sensitivity, *read: true(value, std, 1e9 * sensitivity, *read))


@mutant("a retry with secure noise passes for a replay", "federation/test_budget.py",
        "test_secure_noise_charges_every_retry_and_ends_before_the_target_is_overspent")  # fmt: skip
def secure_retry_not_charged(patch):
    patch.setattr(ReleasePlan, "is_replay_exact", property(lambda self: True))


@mutant("noise is drawn for the clip norm of the first step", MECHANISM,
        "test_noise_is_that_of_the_clip_norm_of_its_own_step")  # fmt: skip
def noise_of_the_first_norm(patch):
    def factor(self, channel):
        return self.plan.clip_norms[channel] / self.clip_norms[channel]

    around(patch, GaussianMechanism, "release", scaled_noise(factor))


@mutant("clipping aims at the surface of the ball, and rounding carries rows out of it", "privacy/test_clipping.py",
        "test_a_clipped_row_is_inside_the_ball_by_more_than_rounding_carries_it_out",
        dtype=torch.float32)  # fmt: skip
def no_margin(patch):
    def factors(grads, clip_norm):
        norms = grads.flatten(1).norm(dim=1)
        return torch.where(norms.isfinite(), (clip_norm / norms).clamp(max=1.0), torch.zeros_like(norms))

    everywhere(patch, clipping.clip_factors, factors)


@mutant("a mechanism releases as often as it is asked in a step, and one release is charged", MECHANISM,
        "test_a_step_has_one_release", name="gaussian", channel=Channel.LOCAL)  # fmt: skip
def released_again(patch):
    def make(true):
        return lambda self, channel, summed: true(dataclasses.replace(self), channel, summed)

    around(patch, StepMechanism, "begin_release", make)


@mutant(
    "noise is that of exact arithmetic, as if a gradient did not depend on its batch",
    "federation/test_rounding.py",
    "test_noise_is_larger_by_what_rounding_of_all_other_examples_can_move",
)
def rounding_not_paid(patch):
    patch.setattr(ReleasePlan, "sensitivity", ReleasePlan.exact_sensitivity)


@mutant(
    "a model that rounds more than the noise is for is trained on",
    "federation/test_rounding.py",
    "test_a_model_that_rounds_more_is_refused_and_the_bound_that_it_keeps_is_named",
)
def rounding_not_checked(patch):
    patch.setattr(rounding, "measure", lambda *args: 0.0)


@mutant(
    "the count of adaptive clip norms jumps at the clip norm",
    "privacy/test_adaptive.py",
    "test_the_last_bits_of_all_others_move_the_count_by_next_to_nothing",
)
def count_jumps(patch):
    def step(grads, clip_norm):
        return (grads.flatten(1).double().norm(dim=1) <= clip_norm).double()

    everywhere(patch, clipping.unclipped_shares, step)


@mutant(
    "where whole clients are protected, the count of adaptive clip norms takes an empty batch for one not clipped",
    "privacy/test_adaptive.py",
    "test_a_client_that_is_not_there_moves_the_count_by_a_half_at_most",
)
def absent_client_counted(patch):
    everywhere(patch, clipping.as_one_contribution, lambda grads: grads.sum(dim=0, keepdim=True) / max(len(grads), 1))


@mutant(
    "a client's examples are clipped one by one where the whole client is protected",
    "audits/test_mechanism_audit.py",
    "test_whole_clients_are_audited_where_they_are_the_unit",
    norm=1.0,
)
def clients_examples_clipped_alone(patch):
    everywhere(patch, clipping.as_one_contribution, lambda grads: grads)


GROUP_AUDIT = "test_groups_are_canaries_of_several_rows_and_the_bound_stays_below_the_claim"


@mutant(
    "a group's examples are clipped one by one where the whole group is protected",
    "audits/test_groups.py",
    GROUP_AUDIT,
    release="gradients",
)
def groups_examples_clipped_alone(patch):
    everywhere(patch, clipping.group_contributions, lambda grads, groups, clip_norm: grads)


@mutant(
    "each example of a group adds a whole row to class sums", "audits/test_groups.py", GROUP_AUDIT, release="class sums"
)
def groups_rows_added_up(patch):
    everywhere(patch, clipping.group_shares, lambda groups: torch.ones(len(groups), dtype=torch.float64))


@mutant(
    "sizes count examples where groups are the unit",
    "privacy/test_groups.py",
    "test_sizes_count_groups_and_each_is_at_one_client",
)
def sizes_count_examples(patch):
    patch.setattr(ClientShard, "size", property(lambda shard: len(shard.indices["train"])))


@mutant(
    "one stream draws the parts of all large groups, one after the other",
    "privacy/test_groups.py",
    "test_a_large_group_gives_another_part_each_step_and_no_other_group_notices",
)
def one_stream_for_all_groups(patch):
    kept = {}

    def in_a_row(seed, purpose, *place):
        if purpose != "group":
            return stream(seed, purpose, *place)
        return kept.setdefault(place[:-1], stream(seed, purpose, *place[:-1]))

    patch.setattr(client, "stream", in_a_row)


@mutant(
    "rounding of one example of each group is accounted for, not of all",
    "privacy/test_groups.py",
    "test_noise_is_larger_by_what_all_examples_of_all_groups_may_round",
)
def rounding_of_one_example_a_group(patch):
    patch.setattr(PrivacyConfig, "examples_per_unit", 1)


@mutant(
    "each evaluation image of a group counts, where the whole group is protected",
    "privacy/test_groups.py",
    "test_all_evaluation_images_of_a_group_move_each_count_by_at_most_one",
    seed=0,
)
def evaluation_images_of_a_group_counted(patch):
    def each(self, is_right):
        held = self.numbers >= 0
        return np.bincount(self.numbers[held], weights=is_right[held], minlength=len(self.holders))

    patch.setattr(GroupedImages, "shares", each)


@mutant("noise is uniform, with the right deviation", "privacy/test_noise.py", "test_noise_is_gaussian_in_the_tails")
def uniform_noise(patch):
    def add_uniform(value, std, rng):
        bound = std * 3**0.5
        return value + torch.from_numpy(rng.uniform(-bound, bound, size=tuple(value.shape))).to(value)

    everywhere(patch, noise.add_gaussian, add_uniform)


@mutant("a variance is taken for a deviation", "privacy/test_noise.py", "test_noise_has_the_asked_mean_and_deviation")
def variance_for_deviation(patch):
    true = noise.add_gaussian
    everywhere(patch, true, lambda value, std, rng: true(value, std**0.5, rng))


# ---------------------------------------------------------------------------------------------------- sampling


@mutant(
    "batches have a fixed size, accounted as Poisson",
    "privacy/test_sampling.py",
    "test_poisson_batch_sizes_vary_as_a_binomial_does",
)
def fixed_size_batches(patch):
    def batches(self, num_examples, rng):
        size = round(self.sampling_prob * num_examples)
        return [np.sort(rng.permutation(num_examples)[:size]) for _ in range(self.steps_per_round)]

    patch.setattr(PoissonSampler, "batches", batches)


@mutant(
    "every round draws the same batches, and amplification is claimed",
    LEAVES,
    "test_every_round_and_client_draws_a_batch_of_its_own",
)
def same_batches_every_round(patch):
    patch.setattr(client, "stream", stream_without(1)(("batch",)))


@mutant(
    "examples are drawn twice as often as accounted",
    "privacy/test_sampling.py",
    "test_poisson_includes_each_example_with_its_probability_independently",
)
def drawn_twice_as_often(patch):
    def batches(self, num_examples, rng):
        draws = rng.random((self.steps_per_round, num_examples)) < 2 * self.sampling_prob
        return [np.flatnonzero(row) for row in draws]

    patch.setattr(PoissonSampler, "batches", batches)


@mutant(
    "a shuffle is cut into equal pieces, so one example more moves all later ones",
    "privacy/test_sampling.py",
    "test_one_example_more_changes_one_disjoint_batch_and_leaves_the_others",
)
def shuffled_pieces(patch):
    def batches(self, num_examples, rng):
        return [np.sort(part) for part in np.array_split(rng.permutation(num_examples), self.steps_per_round)]

    patch.setattr(DisjointSampler, "batches", batches)


@mutant(
    "amplification is claimed for disjoint batches",
    "privacy/test_sampling.py",
    "test_disjoint_batches_use_each_example_exactly_once_a_round",
)
def amplified_disjoint_batches(patch):
    patch.setattr(DisjointSampler, "amplification_for", lambda self, num_examples: 1 / self.steps_per_round)


# -------------------------------------------------------------------------------------------------- accounting


@mutant(
    "an exchanged example is accounted as one more or less",
    "privacy/test_accounting.py",
    "test_replace_one_doubles_the_sensitivity_without_sampling",
)
def replace_one_as_add_remove(patch):
    true = accounting.epsilon
    everywhere(patch, true, lambda *args, relation, **others: true(*args, relation="add_remove", **others))


@mutant(
    "rounds are counted where every step is a release",
    "privacy/test_sampling.py",
    "test_every_poisson_step_is_a_release",
)
def rounds_for_steps(patch):
    patch.setattr(PoissonSampler, "num_releases", lambda self, num_rounds: num_rounds)


@mutant("two releases of one batch are charged as one", "privacy/test_plan.py", "test_two_releases_cost_more_than_one")
def two_releases_as_one(patch):
    everywhere(patch, accounting.combine_noise_multipliers, lambda *values: max(values, default=float("inf")))


@mutant(
    "calibration rounds to less noise",
    "privacy/test_accounting.py",
    "test_calibration_meets_the_target_and_a_little_less_noise_does_not",
    q=1.0,
    tolerance=1e-5,
    relation="add_remove",
    target=3.0,
)
def calibrated_too_low(patch):
    true = accounting.calibrate
    everywhere(patch, true, lambda **settings: true(**settings) * (1 - 1e-4))


@mutant(
    "the public is charged for the global release alone, though local ones steer what it sees",
    "privacy/test_plan.py",
    "test_the_target_is_met_however_it_is_split_and_the_public_is_charged_for_both_releases",
    share=0.5,
    sampler=DisjointSampler(steps_per_round=5),
    audience=Audience.PERSONAL,
)
def public_charged_for_half(patch):
    def make(true):
        def charged_channels(self, audience):
            seen = true(self, audience)
            return seen if audience is Audience.PERSONAL else seen - {Channel.LOCAL}

        return charged_channels

    around(patch, PrivacyPlan, "charged_channels", make)


@mutant(
    "delta is not checked against the number of examples",
    "privacy/test_plan.py",
    "test_a_setting_outside_the_theorem_is_refused",
    privacy={"delta": 1 / 400},
    message="largest client",
)
def delta_not_checked(patch):
    true = plans.make_plan
    everywhere(patch, true, lambda *args, client_sizes, **others: true(*args, client_sizes=[1], **others))


@mutant(
    "a retry with fresh noise is not charged again",
    "privacy/test_ledger.py",
    "test_a_replay_bit_for_bit_is_charged_once_and_one_with_fresh_noise_again",
)
def retry_not_charged(patch):
    def make(true):
        return lambda self, round_index, clients, *, is_replay_exact: true(
            self, round_index, clients, is_replay_exact=True
        )

    around(patch, ledger.Ledger, "due", make)


@mutant(
    "the budget stops training one round after it is overspent",
    "privacy/test_ledger.py",
    "test_training_ends_before_the_limit_is_passed_and_not_a_round_earlier",
    audience=Audience.PERSONAL,
    sampler=None,
)
def stopped_a_round_too_late(patch):
    def late(plan, book, charge):
        spent = plan.epsilon(plan.config.audience, book.most_rounds)
        return f"epsilon {spent} is above {plan.limit}" if spent > plan.limit else None

    everywhere(patch, ledger.why_not, late)


# ------------------------------------------------------------------------------------ mechanisms, composition

COMPOSITION = "privacy/test_composition.py"


@mutant("the next clip norm is taken for the release that it follows from", MECHANISM,
        "test_the_next_clip_norm_is_for_the_next_step")  # fmt: skip
def next_norm_applied_now(patch):
    def make(true):
        def release(self, channel, summed):
            released = true(self, channel, summed)
            norm = released.next_norms.get(channel, self.clip_norms[channel])
            return dataclasses.replace(released, value=released.value * (norm / self.clip_norms[channel]))

        return release

    around(patch, GaussianMechanism, "release", make)


@mutant("a method keeps the next clip norm of its release to itself", CONTRACT,
        "test_a_step_hands_on_the_next_clip_norms_of_its_release", name="dp_fpl")  # fmt: skip
def next_norm_not_handed_on(patch):
    def make(true):
        def client_step(self, *given):
            upload, stepped, info = true(self, *given)
            return upload, stepped, dataclasses.replace(info, next_norms={})

        return client_step

    around(patch, DPFPL, "client_step", make)


@mutant("a mechanism says more noise than it adds", MECHANISM, "test_noise_over_sensitivity_is_what_the_event_says",
        name="gaussian", channel=Channel.LOCAL)  # fmt: skip
def event_of_more_noise(patch):
    def make(true):
        return lambda self: dp_accounting.GaussianDpEvent(2 * true(self).noise_multiplier)

    around(patch, GaussianMechanism, "event", make)


@mutant("an observer's copy of a release is what is used", MECHANISM,
        "test_an_observer_hears_of_every_release_and_changes_none")  # fmt: skip
def observer_releases_again(patch):
    def make(true):
        return lambda self, channel, summed: (
            true(self, channel, summed),
            dataclasses.replace(self.inner).release(channel, summed),
        )[1]

    around(patch, ObservedMechanism, "release", make)


@mutant("the composition forgets what is not sampled", COMPOSITION,
        "test_one_release_beside_sampled_rounds_costs_what_dp_accounting_says")  # fmt: skip
def one_shot_part_forgotten(patch):
    true = accounting.compose

    def compose(parts):
        found = true(parts)
        return tuple(part for part in found if part.sampling_prob < 1) or found

    everywhere(patch, true, compose)


@mutant("a plan does not count the release beside its rounds", COMPOSITION,
        "test_a_plan_counts_a_release_beside_its_rounds_for_every_audience")  # fmt: skip
def release_beside_not_charged(patch):
    def make(true):
        return lambda self, *given: true(self, *given)[:1]

    around(patch, PrivacyPlan, "composed", make)


@mutant("rounds are calibrated as if they were alone", COMPOSITION,
        "test_rounds_are_calibrated_beside_a_release_of_fixed_noise", prob=1.0, relation="add_remove")  # fmt: skip
def calibrated_alone(patch):
    true = accounting.calibrate
    everywhere(patch, true, lambda beside=(), **settings: true(**settings))


@mutant("unsampled releases are added as epsilons of the loudest alone", COMPOSITION,
        "test_unsampled_parts_are_one_gaussian_mechanism")  # fmt: skip
def loudest_part_alone(patch):
    everywhere(patch, accounting._one_multiplier, lambda unsampled: min(unsampled))


@mutant("a mechanism that adds less noise than the budget asks for is taken", MECHANISM,
        "test_a_mechanism_that_adds_less_noise_than_the_budget_asks_for_is_refused")  # fmt: skip
def weak_mechanism_taken(patch):
    everywhere(patch, plans._check_events, lambda plan: None)


# --------------------------------------------------------------------------------------------------- data flow


@mutant(
    "the residual of the personal prompt takes up raw gradients",
    CONTRACT,
    "test_data_enters_the_personal_state_and_the_upload_only_through_clipped_sums",
    name="dp_fpl",
)
def residual_from_raw_gradients(patch):
    def make(true):
        def client_step(self, model, shared, personal, batch, mechanism, rng):
            upload, stepped, info = true(self, model, shared, personal, batch, mechanism, rng)
            grads, _ = per_example_gradients(model, self.context(shared, personal), batch.image_features, batch.labels)
            raw = dataclasses.replace(stepped, context=stepped.context - 1e-3 * grads.sum(dim=0))
            return upload, raw, info

        return client_step

    around(patch, DPFPL, "client_step", make)


@mutant("momentum takes up the sum before noise", CONTRACT, ONLY_RELEASED, name="local_only")
def momentum_before_noise(patch):
    def make(true):
        def client_step(self, model, shared, personal, batch, mechanism, rng):
            upload, stepped, info = true(self, model, shared, personal, batch, mechanism, rng)
            grads, _ = per_example_gradients(model, personal.context, batch.image_features, batch.labels)
            clean = mechanism.clip(Channel.LOCAL, grads).value / mechanism.expected_count
            optimizer = dataclasses.replace(stepped.optimizer, first=clean)
            return upload, dataclasses.replace(stepped, optimizer=optimizer), info

        return client_step

    around(patch, LocalOnly, "client_step", make)


@mutant("the sum is divided by the batch that showed up", LEAVES, FRESH_NOISE)
def divided_by_the_actual_batch(patch):
    def make(true):
        def client_step(self, model, shared, personal, batch, mechanism, rng):
            actual = dataclasses.replace(mechanism.inner, expected_count=float(max(1, len(batch.labels))))
            observed = dataclasses.replace(mechanism, inner=actual)
            return true(self, model, shared, personal, batch, observed, rng)

        return client_step

    around(patch, DPFPL, "client_step", make)


@mutant(
    "a client with an empty batch sends nothing, so sizes tell who was drawn",
    LEAVES,
    "test_what_travels_has_one_size_whatever_the_batch",
)
def sizes_depend_on_data(patch):
    true = payload.pack

    def pack(upload):
        return true(upload) if bool(upload.shared_grad.value.any()) else None

    everywhere(patch, true, pack)


@mutant(
    "every client's prompt is stepped with the last client's release",
    LEAVES,
    "test_one_clients_data_do_not_reach_anothers_prompt",
)
def one_clients_gradient_for_all(patch):
    last = []

    def release(self, true, channel, summed):
        last.append(true(channel, summed))
        return last[-2] if len(last) > 1 else last[-1]

    def make(true):
        def client_step(self, model, shared, personal, batch, mechanism, rng):
            return true(self, model, shared, personal, batch, altered(mechanism, release), rng)

        return client_step

    around(patch, LocalOnly, "client_step", make)


@mutant(
    "a method may release on a channel that it did not declare",
    "privacy/test_plan.py",
    "test_a_channel_that_the_method_did_not_declare_is_refused",
)
def undeclared_channel(patch):
    def make(true):
        return lambda self, channel, grads: clipping.clipped_sum(grads, self.plan.clip_norms.get(channel, 1.0))

    around(patch, GaussianMechanism, "clip", make)


@mutant(
    "a sum clipped to another norm is released as if it fitted",
    "privacy/test_plan.py",
    "test_a_sum_clipped_to_another_norm_is_refused",
)
def sum_of_another_norm(patch):
    def make(true):
        return lambda self, channel, summed: true(
            self, channel, ClippedSum(summed.value, self.plan.clip_norms[channel])
        )

    around(patch, GaussianMechanism, "release", make)


# ------------------------------------------------------------------------------------------- evaluation counts


@mutant(
    "evaluation counts leave without noise",
    "privacy/test_counts_release.py",
    "test_released_counts_are_the_true_ones_with_the_planned_noise",
    source="seeded",
)
def no_noise_on_metrics(patch):
    around(patch, metrics.MetricsPlan, "release", lambda true: lambda self, answers, rng: answers)


@mutant(
    "an evaluation image counts in its own client's accuracy alone, not in every other client's",
    "privacy/test_counts_release.py",
    "test_what_one_image_moves_in_units_of_noise_is_what_the_budget_allows",
)
def neighbor_counts_forgotten(patch):
    everywhere(patch, metrics.neighbor_sensitivity, lambda num_clients: 1.0)


@mutant(
    "the neighbor counts are released and not accounted for",
    "privacy/test_counts_release.py",
    "test_what_one_image_moves_in_units_of_noise_is_what_the_budget_allows",
)
def neighbor_release_not_charged(patch):
    def make(true):
        def releases(self, num_releases):
            return GaussianReleases(num_steps=num_releases, noise_multiplier=self.noise_multiplier_local)

        return releases

    around(patch, metrics.MetricsPlan, "releases", make)


# ------------------------------------------------------------------------------------------ separate machines


REFUSES = "deployment/test_client_refuses.py"


@mutant(
    "a client takes turns that its owner's budget does not allow",
    REFUSES,
    "test_the_owners_budget_holds_at_every_turn_even_where_the_plan_was_not_looked_at",
)
def owner_not_asked(patch):
    everywhere(patch, policy.total, lambda *arguments: {"epsilon": 0.0, "delta": 0.0})


@mutant(
    "each run at a client has the owner's whole budget",
    REFUSES,
    "test_runs_add_up_against_the_owners_limits",
)
def runs_do_not_add_up(patch):
    def make(true):
        return lambda owner, epsilon, delta, store, folder: true(owner, epsilon, delta, folder, folder)

    around(patch, policy, "_over", make)


@mutant(
    "a client that is asked again takes the turn again, with fresh noise on the same data",
    REFUSES,
    "test_a_turn_is_taken_once_and_asked_again_gives_the_same_bytes",
)
def turn_taken_again(patch):
    def make(true):
        return lambda self, template: dataclasses.replace(true(self, template), request="", round_index=-1)

    around(patch, RunStore, "load", make)


@mutant(
    "a client charges its ledger nothing",
    REFUSES,
    "test_a_turn_is_taken_once_and_asked_again_gives_the_same_bytes",
)
def client_charges_nothing(patch):
    around(patch, LedgerFile, "charge", lambda true: lambda *arguments: None)


@mutant(
    "a run goes on with whatever data lie there now",
    "runs/test_identity.py",
    "test_equal_sizes_in_other_hands_are_refused",
)
def data_not_compared(patch):
    around(patch, RunIdentity, "differences", lambda true: lambda *arguments: [])


@mutant(
    "an owner's limit counts the audience of the run's target alone",
    REFUSES,
    "test_the_owners_limit_counts_every_audience",
)
def one_audience_counted(patch):
    def make(true):
        return lambda plan, num_rounds, client_id: plan.epsilon(plan.config.audience, num_rounds, client_id)

    around(patch, policy, "epsilon", make)


@mutant(
    "a run whose ledger is lost has spent nothing",
    REFUSES,
    "test_a_lost_ledger_of_another_run_stops_everything",
)
def lost_ledger_forgiven(patch):
    everywhere(patch, rounds_of_state, lambda folder: 0)


@mutant(
    "others may look into a client's store",
    REFUSES,
    "test_a_store_is_its_owners_alone",
)
def store_open_to_others(patch):
    around(patch, files, "own_folder", lambda true: lambda path: path.mkdir(parents=True, exist_ok=True))


SAYS = "deployment/test_what_answers_say.py"


@mutant(
    "an answer says more than is declared",
    SAYS,
    "test_every_answer_has_its_declared_fields_and_a_length_that_no_data_change",
    case={},
)
def undeclared_field(patch):
    def make(true):
        return lambda self, *arguments: {**true(self, *arguments), "num_images": len(self.examples.index["train"])}

    around(patch, ClientRun, "_header", make)


@mutant(
    "a client draws its batches of a round anew for each turn",
    SAYS,
    "test_batches_of_a_round_are_drawn_once_whatever_the_number_of_turns_and_processes",
)
def batches_drawn_each_turn(patch):
    def make(true):
        def load(self, template):
            return dataclasses.replace(true(self, template), round_index=-1)

        return load

    around(patch, RunStore, "load", make)


@mutant(
    "the server divides by the clients that answered",
    "federation/test_training_settings.py",
    "test_a_failed_client_is_charged_and_the_divisor_stays",
)
def divided_by_who_answered(patch):
    def make(true):
        return lambda self, arm, shared, norms, messages, cohort, step: true(
            self, arm, shared, norms, messages, list(messages), step
        )

    around(patch, Server, "aggregate", make)


@mutant(
    "what a client sends is added up twice, under noise for once",
    "audits/test_client_canaries.py",
    "test_what_clients_are_said_to_add_is_what_is_released",
)
def added_up_twice(patch):
    true = payload.unpack_sum
    everywhere(patch, true, lambda arrived: true([*arrived, *arrived]))


@mutant(
    "all local steps of a round draw the same noise",
    "federation/test_training_settings.py",
    "test_every_local_step_is_a_release_that_the_claim_counts",
)
def one_noise_for_all_local_steps(patch):
    def make(true):
        return lambda self, arm, norms, channel, place, *more: true(self, arm, norms, channel, (*place[:2], 0), *more)

    around(patch, client.Client, "_mechanism", make)


@mutant(
    "the server takes an earlier answer for a new one",
    "deployment/test_server_refuses.py",
    "test_a_replayed_answer_is_not_used_again",
)
def replay_taken(patch):
    around(patch, Responses, "_check_names", lambda true: lambda *arguments: None)


# ---------------------------------------------------------------------------------------------- class statistics

STATISTICS = "methods/test_class_statistics.py"
ALL_PARTS = "test_the_parts_of_a_release_are_together_no_more_than_the_whole"


@mutant(
    "residuals are taken from the mean of the client's own images, without noise",
    STATISTICS,
    "test_an_image_moves_no_message_through_the_mean_of_others",
    stage=1,
)
def anchored_by_the_private_mean(patch):
    true = sums.residual_rows

    def residual_rows(features, labels, metric, shared, guess):
        return true(features, labels, metric, sums.mean_rows(features, metric).mean(dim=0), guess)

    everywhere(patch, true, residual_rows)


@mutant(
    "the squares of the third message are taken around the client's own class means, without noise",
    STATISTICS,
    "test_an_image_moves_no_message_through_the_mean_of_others",
    stage=2,
)
def squares_around_private_means(patch):
    def make(true):
        def clip_in_classes(self, channel, rows):
            one_hot = F.one_hot(rows.labels).double()
            means = one_hot.T @ rows.values / one_hot.sum(dim=0).clamp(min=1)[:, None]
            values = rows.values - means[rows.labels] if rows.squares else rows.values
            return true(self, channel, dataclasses.replace(rows, values=values))

        return clip_in_classes

    around(patch, ClassSumsMechanism, "clip_in_classes", make)


@mutant("sums of classes are divided by true counts", STATISTICS, "test_each_image_enters_each_message_once")
def divided_by_true_counts(patch):
    def make(true):
        def clip_in_classes(self, channel, rows):
            summed = true(self, channel, rows)
            counts = torch.bincount(rows.labels, minlength=len(rows.is_public)).clamp(min=1)
            return dataclasses.replace(summed, value=summed.value / counts[:, None])

        return clip_in_classes

    around(patch, ClassSumsMechanism, "clip_in_classes", make)


@mutant(
    "an example adds its row to the sums of two classes",
    STATISTICS,
    "test_one_example_more_moves_each_message_by_at_most_its_part_and_no_other_class",
    stage=1,
    clip_norm=0.02,
)
def sensitivity_of_two_rows(patch):
    true = clipping.clipped_class_sums

    def clipped_class_sums(rows, labels, num_classes, clip_norm):
        own = true(rows, labels, num_classes, clip_norm)
        others = true(rows, (labels + 1) % num_classes, num_classes, clip_norm)
        return dataclasses.replace(own, value=own.value + others.value)

    everywhere(patch, true, clipped_class_sums)


@mutant(
    "class statistics leave without noise",
    "audits/test_linear_heads.py",
    "test_without_noise_members_are_found_and_with_noise_no_more_than_is_claimed",
    method="class_statistics",
    epsilons=(1.0, 8.0, float("inf")),
)
def no_noise_on_class_sums(patch):
    def make(true):
        def release(self, channel, summed):
            self.begin_release(channel, summed)
            return Release((summed.value / self.expected_count).float())

        return release

    around(patch, ClassSumsMechanism, "release", make)


@mutant("classes without examples get no noise", MECHANISM, ALL_PARTS, source="seeded", parts=(0.05, 0.95))
def no_noise_on_empty_rows(patch):
    def make(true):
        def release(self, channel, summed):
            released = true(self, channel, summed).value
            return Release(torch.where(summed.value.any(dim=1, keepdim=True), released, 0.0))

        return release

    around(patch, ClassSumsMechanism, "release", make)


@mutant(
    "the classes that a client releases are read from its images",
    STATISTICS,
    "test_every_row_that_is_not_publicly_empty_gets_its_noise_at_every_client",
    partition="dirichlet",
)
def class_sets_from_the_data(patch):
    def make(true):
        def client_step(self, model, shared, personal, batch, mechanism, rng):
            seen = dataclasses.replace(batch, classes=tuple(batch.labels.unique().tolist()))
            return true(self, model, shared, personal, seen, mechanism, rng)

        return client_step

    around(patch, ClassStatistics, "client_step", make)


@mutant("all views of an image enter the sums", STATISTICS, "test_of_several_views_of_an_image_one_enters")
def views_counted_as_rows(patch):
    def make(true):
        def step(self, arm, shared, personal, drawn, here, mechanism):
            num_views = self.features[arm.method.feature_kind].num_views
            repeated = type(drawn)(*(part if part is None else np.repeat(part, num_views) for part in drawn))
            return true(self, arm, shared, personal, repeated, here, mechanism)

        return step

    around(patch, client.Client, "_step", make)


@mutant(
    "each message is clipped as if it were the whole release", MECHANISM, ALL_PARTS, source="seeded", parts=(0.05, 0.95)
)
def parts_that_sum_to_two(patch):
    def make(true):
        def exact_sensitivity(self, channel, clip_norm=None, step=0):
            return true(dataclasses.replace(self, parts=()), channel, clip_norm, step)

        return exact_sensitivity

    around(patch, ReleasePlan, "exact_sensitivity", make)


@mutant(
    "a method may name parts of more than one release",
    STATISTICS,
    "test_parts_that_are_more_than_one_release_are_refused",
    parts=(0.6, 0.6),
)
def parts_unchecked(patch):
    patch.setattr(plans, "check_parts", lambda config, parts: None)


@mutant(
    "an example of a class that its client is declared not to have enters a sum",
    MECHANISM,
    "test_an_example_of_a_class_that_was_declared_absent_moves_nothing",
)
def undeclared_classes_summed(patch):
    def make(true):
        def clip_in_classes(self, channel, rows):
            summed = true(self, channel, dataclasses.replace(rows, is_public=torch.ones_like(rows.is_public)))
            return dataclasses.replace(summed, rows_released=rows.is_public)

        return clip_in_classes

    around(patch, ClassSumsMechanism, "clip_in_classes", make)


@mutant(
    "a release that is made again after it was lost counts as the first one",
    "deployment/test_class_statistics.py",
    "test_a_client_whose_secure_release_was_charged_and_lost_makes_no_other",
)
def release_again_for_nothing(patch):
    patch.setattr(EveryExample, "num_releases", lambda self, num_rounds: min(num_rounds, 1))


@mutant(
    "a client that joins late makes the first message too",
    "deployment/test_class_statistics.py",
    "test_the_first_message_is_refused_by_a_late_client",
)
def late_client_makes_all(patch):
    def make(true):
        def init(self, *given):
            true(self, *given)
            self.is_late = False

        return init

    around(patch, ClientRun, "__init__", make)


@mutant(
    "where clients add the noise, what they send is their mean gradient without it",
    "audits/test_crafted_prompts.py",
    "test_under_noise_it_shows_less_than_is_claimed_and_more_than_nothing",
    noise_at="client",
    num_targets=2,
)
def uploads_without_noise(patch):
    def pack_private(upload, mechanism):
        return upload.shared_grad.value / mechanism.expected_count

    everywhere(patch, payload.pack_private, pack_private)


# ------------------------------------------------------------------------------------------ noise shares

SHARING = "privacy/test_shares.py"
SHARED_RUNS = "federation/test_noise_shares.py"
FEWEST = "test_shares_of_the_fewest_honest_clients_are_together_the_planned_noise"


@mutant("noise is shared among all clients, also among those who tell the server their part", SHARED_RUNS,
        "test_the_sum_of_a_step_has_the_planned_noise_of_all_but_those_on_the_servers_side")  # fmt: skip
def own_share_not_counted(patch):
    patch.setattr(ShareTerms, "honest_among", lambda self, count: count)


@mutant("noise is shared among all clients of the cohort, though fewer take part", SHARING, FEWEST,
        source="seeded", n=8, d=2, c=2, rescue=False, honest={6: 4})  # fmt: skip
def share_of_all_clients(patch):
    patch.setattr(ShareTerms, "honest_among", lambda self, count: self.num_clients - self.max_colluding)


@mutant("a server that shows every client another list is taken for one that does not", SHARING,
        "test_no_strategy_of_a_server_opens_a_smaller_sum", n=4, d=1, c=1, versions=2)  # fmt: skip
def lists_believed(patch):
    patch.setattr(ShareTerms, "honest_among", lambda self, count: count - self.max_colluding)


@mutant("clients add no noise under their masks", SHARING, FEWEST,
        source="secure", n=3, d=0, c=1, rescue=False, honest={3: 2})  # fmt: skip
def no_noise_under_masks(patch):
    everywhere(patch, noise.share_of_noise, lambda size, *_: np.zeros(size, dtype=np.int64))


@mutant("what rounding to the grid of shares moves is not paid by more noise", SHARING,
        "test_the_noise_pays_for_what_rounding_adds_to_the_sensitivity")  # fmt: skip
def share_rounding_not_paid(patch):
    true = ShareGrid.of.__func__
    patch.setattr(ShareGrid, "of", classmethod(lambda cls, std, wide, size, h: true(cls, std, 1e9 * wide, size, h)))


@mutant("the count of adaptive clip norms has no share of the noise", SHARING,
        "test_the_count_of_adaptive_norms_has_its_own_share")  # fmt: skip
def count_without_share(patch):
    true = noise.share_of_noise

    def share_of_noise(size, *given):
        drawn = true(size, *given)
        drawn[-1] = 0
        return drawn

    everywhere(patch, true, share_of_noise)


@mutant("all clients draw their shares of the noise from one stream", SHARED_RUNS,
        "test_the_sum_of_a_step_has_the_planned_noise_of_all_but_those_on_the_servers_side")  # fmt: skip
def one_stream_for_all_shares(patch):
    patch.setattr(client, "stream", stream_without(-1)(("noise", "global")))


@mutant("with secure noise, shares follow from the seed", "federation/test_secure_runs.py",
        "test_nothing_that_protects_data_is_drawn_from_a_seeded_generator", kind="shares")  # fmt: skip
def seeded_shares(patch):
    true = noise.share_of_noise

    def make(share):
        def seeded(self, channel, summed, count):
            everywhere(patch, base.share_of_noise, lambda size, *_: true(size, self.rng))
            return share(self, channel, summed, count)

        return seeded

    around(patch, StepMechanism, "share", make)


@mutant("a share, which is less than all of the noise, is given where all of it is planned", SHARING,
        "test_only_the_planned_doors_are_open")  # fmt: skip
def share_for_a_release(patch):
    patch.setattr(StepMechanism, "_check_shares", lambda self, channel: None)


@mutant("a sum in which masks did not cancel is used", SHARING, "test_an_uncancelled_mask_is_refused")
def uncancelled_sum_used(patch):
    patch.setattr(ShareGrid, "decode", lambda self, total, count: total * self.step)


@mutant("a step goes on with fewer clients than are planned", SHARED_RUNS,
        "test_rounds_with_too_few_clients_move_nothing_and_are_charged")  # fmt: skip
def too_few_add_up(patch):
    patch.setattr(ShareTerms, "least", property(lambda self: 1))
    patch.setattr(ShareTerms, "honest_among", lambda self, count: max(count - self.max_colluding, 1))


@mutant("a client may join after the release, and its sum stands alone", SHARED_RUNS,
        "test_nobody_joins_after_a_release_of_shares")  # fmt: skip
def late_sum_alone(patch):
    patch.setattr(planning, "_check_late", lambda plan, num_late: None)


# ------------------------------------------------------------------------------------------ start from statistics

START = "federation/test_start_from_statistics.py"
BEGUN = {"name": "promptfl", "is_class_specific": True}


@mutant("the sums that a prompt starts from are released without noise", START,
        "test_rounds_begin_at_the_context_that_noisy_statistics_give", **BEGUN)  # fmt: skip
def start_without_noise(patch):
    def make(true):
        def release(self, channel, summed):
            return true(dataclasses.replace(self, plan=_quiet(self.plan)), channel, summed)

        return release

    around(patch, ClassSumsMechanism, "release", make)


def _quiet(plan):
    """A plan of releases without noise."""
    return dataclasses.replace(plan, noise_multipliers=dict.fromkeys(plan.noise_multipliers, 0.0))


@mutant("the release that a prompt starts from is not written into the ledger", START,
        "test_the_start_is_charged_before_it_is_made_and_all_say_so")  # fmt: skip
def start_not_charged(patch):
    patch.setattr(StartBooks, "charge", lambda self, arm, round_index: None)


@mutant("rounds are planned as if the release before them cost nothing", START,
        "test_a_budget_pays_for_the_start_and_the_rounds_as_dp_accounting_composes_them",
        name="promptfl", share=0.8, noise_at="server")  # fmt: skip
def start_not_beside_the_rounds(patch):
    true = plans.make_plan
    everywhere(patch, true, lambda *given, beside=(), **named: true(*given, **named))


@mutant("the release that a prompt starts from takes the whole budget, whatever its share", START,
        "test_the_start_has_its_share_of_one_gaussian_release_of_the_whole_budget", share=0.2)  # fmt: skip
def start_share_ignored(patch):
    true = budget.start_multiplier
    everywhere(patch, true, lambda config, share: true(config, 0.9))


@mutant("a release that a prompt starts from and that was made twice is counted once", START,
        "test_a_secret_start_that_was_lost_is_made_again_charged_again_and_told")  # fmt: skip
def start_counted_once(patch):
    patch.setattr(EveryExample, "num_releases", lambda self, num_rounds: min(num_rounds, 1))


# ------------------------------------------------------------------------------------------ secure aggregation

SHARES, LIARS, RESCUE = (f"deployment/test_{name}.py" for name in ("shares_client", "shares_attacks", "rescue"))


def forgetting(patch, forget):
    """Bind masks to a part of the message alone."""
    true = envelope.fingerprint
    patch.setattr(secure_turn, "fingerprint", lambda message: true(forget(message)))


@mutant("masks do not know the model that a client was shown", LIARS,
        "test_clients_that_were_shown_other_models_are_in_no_sum", victims="d")  # fmt: skip
def masks_without_model(patch):
    forgetting(patch, lambda message: dataclasses.replace(message, tensors={}))


@mutant("all steps of a run have the same masks", LIARS,
        "test_what_a_client_masked_in_two_steps_has_nothing_in_common")  # fmt: skip
def masks_without_step(patch):
    forgetting(patch, lambda message: dataclasses.replace(message, meta={**message.meta, "round": 0, "step": 0}))


@mutant("a client gives shares for a second list of who answered", LIARS,
        "test_two_lists_of_who_answered_open_nothing")  # fmt: skip
def second_list_answered(patch):
    def make(true):
        return lambda self, request, state: true(self, request, dataclasses.replace(state, unmask_request=""))

    around(patch, SecureTurn, "unmask", make)


@mutant("of a client that answered, shares of its self mask and of all its seeds are given", RESCUE,
        "test_boxes_have_the_size_that_is_told_and_nothing_readable")  # fmt: skip
def both_kinds_of_shares(patch):
    def give_shares(boxes, pairs, context, own, answered, least):
        keys = [rescue._box_key(pairs[sender], context, sender, own) for sender in answered]
        opened = [rescue._open(key, box.tobytes(), context) for key, box in zip(keys, boxes, strict=True)]
        return np.stack([np.frombuffer(data, np.uint8).reshape(len(pairs), -1) for data in opened])

    patch.setattr(rescue, "give_shares", give_shares)


@mutant("a client takes part in a sum of fewer clients than the plan needs", SHARES,
        "test_a_turn_is_taken_once_with_enough_clients_of_the_round_in_order")  # fmt: skip
def small_list_accepted(patch):
    around(patch, ShareTerms, "least", lambda true: property(lambda self: 1))


@mutant("nobody looks at who signed a run key", SHARES,
        "test_a_plan_is_taken_only_with_keys_that_pinned_clients_signed_for_this_run")  # fmt: skip
def run_key_not_verified(patch):
    patch.setattr(roster, "check_claim", lambda *given: None)


@mutant("a plan may have clients that the owner did not pin", SHARES,
        "test_a_plan_is_taken_only_with_keys_that_pinned_clients_signed_for_this_run")  # fmt: skip
def stranger_in_the_plan(patch):
    def make(true):
        def check_members(agreement, pinned):
            known = [at for at, name in enumerate(agreement.clients) if name in pinned]
            fields = ("clients", "sizes", "keys", "signatures")
            some = {field: tuple(getattr(agreement, field)[at] for at in known) for field in fields if agreement.keys}
            true(dataclasses.replace(agreement, **some), pinned)

        return check_members

    around(patch, roster, "check_members", make)


@mutant("boxes are not encrypted", RESCUE,
        "test_boxes_have_the_size_that_is_told_and_nothing_readable")  # fmt: skip
def boxes_in_clear(patch):
    patch.setattr(rescue, "_seal", lambda key, data, context: bytes(rescue.NONCE) + data + bytes(rescue.TAG))
    patch.setattr(rescue, "_open", lambda key, box, context: box[rescue.NONCE : -rescue.TAG])


@mutant("one share fewer than the plan says opens a seed", RESCUE,
        "test_the_sum_of_who_answered_opens_exactly_by_any_holders_that_are_enough_and_by_no_fewer")  # fmt: skip
def threshold_one_too_low(patch):
    around(patch, shamir, "split", lambda true: lambda secret, threshold, places: true(secret, threshold - 1, places))


@mutant("a turn that is asked with another message draws the same noise", LIARS,
        "test_draws_follow_from_the_run_key_the_whole_message_and_the_state")  # fmt: skip
def draws_of_the_place_alone(patch):
    true = secure_turn.turn_id

    def turn_id(request, state):
        place = {key: request.meta[key] for key in ("round", "step")}
        return true(envelope.Envelope("turn", place), state)

    everywhere(patch, true, turn_id)


@mutant("any turn of a round that was charged is free, whatever it is made from", LIARS,
        "test_a_turn_that_was_lost_is_charged_again_only_where_another_is_taken", is_same=False)  # fmt: skip
def another_turn_for_nothing(patch):
    def make(true):
        return lambda self, *given, is_replay_exact: true(self, *given, is_replay_exact=True)

    around(patch, ledger.Ledger, "due", make)


@mutant("the run key stays after the end", SHARES,
        "test_a_run_key_is_the_owners_alone_and_lasts_from_the_first_invitation_to_the_end")  # fmt: skip
def run_key_kept(patch):
    patch.setattr(RunStore, "remove_run_key", lambda self: None)


# ------------------------------------------------------------------------------------------- generative models

GENERATIVE, OWN_ROW = "prompts/test_generative_model.py", "test_a_row_is_a_function_of_its_own_example_alone"


@mutant("examples of a generative model share one copy of the prompt: each row has the gradients of all", GENERATIVE,
        OWN_ROW, kept=0)  # fmt: skip
def one_copy_of_the_prompt(patch):
    def make(true):
        def gradients(self, context, batch, name_position):
            grads, losses = true(self, context, batch, name_position)
            return grads.sum(dim=0).expand_as(grads), losses

        return gradients

    around(patch, GenerativeModel, "gradients", make)


@mutant("a generative model reads an example behind another one's image", GENERATIVE, OWN_ROW, kept=8)
def another_examples_prefix(patch):
    true = PrefixCache._one
    patch.setattr(PrefixCache, "_one", lambda self, row, *rest: true(self, row * 0 + 1, *rest))


@mutant("a generative model reads an example behind another question than its own", GENERATIVE, OWN_ROW, kept=8)
def another_examples_question(patch):
    true = PrefixCache._one
    patch.setattr(PrefixCache, "_one", lambda self, row, question, read: true(self, row, question * 0 + 5, read))


@mutant(
    "an auditor of questions reads releases by the true answers of canaries that had made-up ones",
    "audits/test_questions.py",
    "test_made_up_answers_are_found_without_noise_and_with_it_no_more_than_is_claimed",
    unit="example",
)
def canaries_read_by_true_answers(patch):
    def make(true):
        return lambda self, arm, labels, texts: true(self, arm, labels, self.federation.train_texts)

    around(patch, World, "_probe", make)


def table():
    """Give the table of docs/mutants.md."""
    lines = ["| mutant | what is broken | caught by |", "|---|---|---|"]
    for one in MUTANTS:
        lines.append(f"| `{one.name}` | {one.what} | `{one.check.label}` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
