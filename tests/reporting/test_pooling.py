import math

import pytest

from helpers import made_runs as made
from hushprompt.errors import DataError
from hushprompt.reporting.pooling import pool, pool_strictly
from hushprompt.reporting.styles import COLORS, GRAY

ZERO = made.result("zero_shot", None)


def with_epsilon(epsilon, seed=1, **changes):
    config = {"privacy": {"epsilon": epsilon, "delta": 1e-5}, **changes}
    return made.run(seed, [ZERO, made.result(f"dp_fpl, epsilon {epsilon}", epsilon)], config=config)


def test_runs_that_differ_in_the_seed_alone_are_one_series():
    zero, trained = pool([with_epsilon(2.0, seed) for seed in (3, 1, 2)])
    assert (zero.name, trained.name) == ("zero-shot template", "DP-FPL, ε 2")
    assert [arm.run.seed for arm in trained.arms] == [1, 2, 3]
    assert (zero.epsilon, trained.epsilon) == (None, 2.0)


def test_a_reference_that_several_runs_share_counts_each_seed_once():
    zero, *trained = pool([with_epsilon(8.0), with_epsilon(0.5), with_epsilon(math.inf)])
    assert len(zero.arms) == 1
    assert [s.name for s in trained] == ["DP-FPL, ε 0.5", "DP-FPL, ε 8", "DP-FPL, no noise"]
    assert len({s.family for s in [zero, *trained]}) == 2


REASONS = {
    "seeded": "hushprompt .*arm 'dp_fpl, epsilon 2'",
    "secure": "since their noise is secure, and a table counts",
}


@pytest.mark.parametrize("source", REASONS)
def test_other_results_of_one_seed_are_refused_with_the_reason(source):
    def with_local(local, name):
        config = {"privacy": {"epsilon": 2.0, "delta": 1e-5, "noise_source": source}}
        return made.run(1, [made.result(local=local)], name=name, config=config)

    assert len(pool_strictly([with_local(0.5, "a"), with_local(0.5, "b")])[0].arms) == 1, "a copy counts once"
    with pytest.raises(DataError, match=rf"a and b have an arm with the same settings and seed.*{REASONS[source]}"):
        pool_strictly([with_local(0.5, "a"), with_local(0.6, "b")])


def test_an_epsilon_of_a_reference_is_the_same_as_one_of_a_run():
    both = made.run(
        1,
        [made.result("dp_fpl, no noise", math.inf), made.result()],
        config={"references": [{"method": made.TRAINED, "epsilon": math.inf}]},
    )
    privacy = {"epsilon": math.inf, "delta": 1e-5, "noise_multiplier_local": "none", "noise_multiplier_global": "none"}
    alone = made.run(2, [made.result("dp_fpl, no noise", math.inf)], config={"privacy": privacy})
    assert [(s.name, len(s.arms)) for s in pool([both, alone])] == [("DP-FPL, ε 2", 1), ("DP-FPL, no noise", 2)]


def test_namesakes_are_told_apart_by_the_settings_in_which_they_differ():
    ranks = [made.run(1, config={"method": {"name": "dp_fpl", "rank": rank}}) for rank in (2, 4)]
    assert [s.name for s in pool(ranks)] == ["DP-FPL, rank 2, ε 2", "DP-FPL, rank 4, ε 2"]
    clients = [made.run(1, config={"partition": {"name": "dirichlet", "num_clients": n}}) for n in (25, 50)]
    assert [s.family for s in pool(clients)] == ["DP-FPL, num clients 25", "DP-FPL, num clients 50"]


def test_a_word_that_most_namesakes_share_goes_without_saying():
    changes = [{"rank": 8}, {"rank": 1}, {"rank": 8, "form": "none"}, {"rank": 8, "keep": "false"}]
    usual = {"name": "dp_fpl", "form": "orthonormal", "keep": "true"}
    names = [s.family for s in pool([made.run(1, config={"method": {**usual, **change}}) for change in changes])]
    assert names == ["DP-FPL, rank 8", "DP-FPL, rank 1", "DP-FPL, form none, rank 8", "DP-FPL, keep false, rank 8"]


def test_names_are_unique_whatever_the_settings_are():
    noise = [made.run(1, config={"privacy": {"epsilon": "none", "noise_multiplier_local": z}}) for z in (1.0, 2.0)]
    names = [s.name for s in pool([*noise, made.run(1), with_epsilon(2.0)])]
    assert len(set(names)) == len(names) == 4


def test_style_never_rests_on_color_alone():
    everyone = pool([with_epsilon(2.0), with_epsilon(8.0), made.run(1, [made.result("promptfl, epsilon 2")])])
    looks = {(s.style.marker, s.style.dash) for s in everyone}
    assert len(looks) == len(everyone) == 4
    assert [s.style.color for s in everyone] == [GRAY, COLORS[0], COLORS[0], COLORS[1]]
    assert [s.style.is_hollow for s in everyone] == [True, False, False, False]


def test_no_two_methods_look_alike_however_many_there_are():
    everyone = pool([made.run(1, config={"method": {"name": "dp_fpl", "rank": rank}}) for rank in range(1, 15)])
    looks = {(s.style.marker, s.style.color) for s in everyone}
    assert len(looks) == len(everyone)


def test_values_are_percent_and_leave_nan_out():
    (s,) = pool([made.run(seed, [made.result(local=value)]) for seed, value in ((1, 0.5), (2, math.nan), (3, 0.7))])
    assert s.percents("local") == [50.0, pytest.approx(70.0)]
    assert s.spread("local").mean == pytest.approx(0.6)
    assert s.spread("local").std == pytest.approx(math.sqrt(0.02))
    (one,) = pool([made.run(1)])
    assert math.isnan(one.spread("local").std)
