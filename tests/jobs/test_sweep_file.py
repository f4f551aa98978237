import functools
import itertools
import math
from pathlib import Path

import pytest
import tomli_w

from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError
from hushprompt.jobs import sweep_file
from hushprompt.methods.zero_shot import ZeroShot
from hushprompt.registry import METHODS

ROOT = Path(__file__).parent.parent.parent
GRID = """
base = "base.toml"

[axes]
"privacy.epsilon" = [inf, 8.0]
"method.rank" = [1, 2]
seed = [1, 2]

[axes.method]
random = { method = { name = "random_prompt", num_ctx = 4 } }
promptfl = { method = { name = "promptfl", num_ctx = 4 } }
dp_fpl = {}

[[rules]]
where = { method = "random" }
without = ["privacy.epsilon"]

[[rules]]
unless = { method = "dp_fpl" }
without = ["method.rank"]

[[rules]]
where = { method = "promptfl", "privacy.epsilon" = inf }
set = { method.optimizer.learning_rate = 0.5, "training.num_rounds" = 2 }

[[rules]]
where = { "method.rank" = 1, "privacy.epsilon" = 8 }
skip = true
"""


@pytest.fixture
def write(tmp_path, toy_values):
    """Write a sweep file beside its base, and give its path."""
    (tmp_path / "base.toml").write_text(tomli_w.dumps(toy_values))

    def write(text=GRID):
        (tmp_path / "grid.toml").write_text(text)
        return tmp_path / "grid.toml"

    return write


def settings(run):
    config = run.config
    method = METHODS.name_of(config.method)
    epsilon = None if method == "random_prompt" else config.privacy.epsilon
    return (method, epsilon, getattr(config.method, "rank", None), config.seed)


def test_the_runs_are_the_grid_with_its_rules_one_by_one(write):
    runs = sweep_file.expand(sweep_file.load(write()))
    expected = {("random_prompt", None, None, seed) for seed in (1, 2)}
    for method, epsilon, rank, seed in itertools.product(("promptfl", "dp_fpl"), (math.inf, 8.0), (1, 2), (1, 2)):
        if method == "promptfl":
            expected.add((method, epsilon, None, seed))
        elif (rank, epsilon) != (1, 8.0):
            expected.add((method, epsilon, rank, seed))
    assert {settings(run) for run in runs} == expected
    assert len(runs) == len(expected)
    for run in runs:
        is_changed = settings(run)[:2] == ("promptfl", math.inf)
        assert run.config.training.num_rounds == (2 if is_changed else 3)
        if is_changed:
            assert run.config.method.optimizer.learning_rate == 0.5


def test_a_run_is_what_its_config_says_and_has_a_name_for_a_reader(write):
    runs = sweep_file.expand(sweep_file.load(write()))
    assert [run.name for run in runs if run.config.seed == 1] == [
        "random-seed1", "promptfl-epsiloninf-seed1", "dp_fpl-epsiloninf-rank1-seed1", "dp_fpl-epsiloninf-rank2-seed1",
        "promptfl-epsilon8-seed1", "dp_fpl-epsilon8-rank2-seed1",
    ]  # fmt: skip
    assert len({run.name for run in runs}) == len({run.identity for run in runs}) == len(runs)
    assert all(run.identity == run.config.identity() for run in runs)
    assert runs[0].labels == {"seed": "1", "method": "random"}


def test_references_of_the_base_are_left_out_unless_the_sweep_sets_some(write):
    assert all(run.config.references == () for run in sweep_file.expand(sweep_file.load(write())))
    text = GRID.replace("[axes]", "[settings]\nreferences = [{ epsilon = inf }]\n\n[axes]", 1)
    assert all(len(run.config.references) == 1 for run in sweep_file.expand(sweep_file.load(write(text))))


def test_a_preset_is_a_base_and_a_bundle_may_change_several_sections(write):
    text = """
    base = "embedded"
    settings = { training.num_rounds = 1, references = [] }
    [axes.data]
    ten = { partition = { num_clients = 10 } }
    dirichlet = { partition = { name = "dirichlet", num_clients = 5, alpha = 0.3 }, "sampling.sampling_prob" = 0.1 }
    """
    ten, dirichlet = sweep_file.expand(sweep_file.load(write(text)))
    assert (ten.name, dirichlet.name) == ("ten", "dirichlet")
    assert dirichlet.config.partition.alpha == 0.3
    assert dirichlet.config.sampling.sampling_prob == 0.1
    assert ten.config.training.num_rounds == 1


def test_overrides_reach_every_run_but_undo_no_axis(write):
    sweep = sweep_file.load(write())
    runs = sweep_file.expand(sweep, ["runtime.memory_mb=8", "training.num_rounds=1"])
    assert {run.config.training.num_rounds for run in runs} == {1}
    for setting in ("privacy.epsilon=1", "method.name=promptfl", 'method={name="promptfl"}', "seed=7"):
        with pytest.raises(ConfigError, match="would undo the axis"):
            sweep_file.expand(sweep, [setting])


def test_what_all_choices_of_an_axis_share_may_be_overridden(write):
    text = """
    base = "base.toml"
    [axes.data]
    few = { data = { name = "toy", num_classes = 6, num_train = 12 } }
    many = { data = { name = "toy", num_classes = 8, num_train = 12 } }
    """
    runs = sweep_file.expand(sweep_file.load(write(text)), ["data.num_train=16"])
    assert [(run.config.data.num_classes, run.config.data.num_train) for run in runs] == [(6, 16), (8, 16)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('base = "base.toml"', "", "needs base ="),
        ('base = "base.toml"', 'base = "bass.toml"', "cannot be read"),
        ("[[rules]]", "[[rulez]]", "Unknown key 'rulez'.*Did you mean 'rules'"),
        ("[1, 2]\nseed", "[]\nseed", "The axis method.rank must be a list of values"),
        ("[1, 2]\nseed", "[1, 1]\nseed", "The axis method.rank has a value twice"),
        ('"method.rank" =', "method.rank =", "The axis method must be"),
        ('{ method = "random" }', '{ methd = "random" }', "names 'methd', which is no axis.*Did you mean 'method'"),
        ('{ method = "random" }', '{ method = "randm" }', "method must be one of.*Did you mean 'random'"),
        ('without = ["privacy.epsilon"]', 'without = ["privacy.epsilom"]', "names 'privacy.epsilom', which is no axis"),
        ("skip = true", "", r"rules\[3\] does nothing"),
        ("skip = true", 'skip = "yes"', "skip is true or false"),
        ("rank\" = [1, 2]", "rank\" = [1, 2, 99.5]", "In the run dp_fpl-epsiloninf-rank99.5-seed1: method.rank"),
        ("learning_rate = 0.5", "learning_rte = 0.5", "In the run .*promptfl.*Did you mean 'learning_rate'"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_clear_sentence(write, old, new, message):
    assert old in GRID
    text = GRID.replace(old, new)
    if old == '"method.rank" =':
        text = text.replace("[axes.method]", "[axes.methods]")
    with pytest.raises(ConfigError, match=message):
        sweep_file.expand(sweep_file.load(write(text)))


def test_a_sweep_that_skips_everything_is_refused(write):
    with pytest.raises(ConfigError, match="has no run"):
        sweep_file.expand(sweep_file.load(write(GRID + "\n[[rules]]\nwhere = { seed = [1, 2] }\nskip = true\n")))


SHIPPED = [path for path in sorted(ROOT.glob("configs/**/*.toml")) if "axes" in configs.read(path)]


@functools.cache
def expanded(path):
    """The runs of a shipped sweep, made once: there are hundreds."""
    return sweep_file.expand(sweep_file.load(path))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_sweep_expands(path):
    runs = expanded(path)
    assert len(runs) > 1
    learn = [run for run in runs if not isinstance(run.config.method, ZeroShot)]
    assert not learn or len({run.config.seed for run in learn}) >= 2
    assert len({run.name for run in runs}) == len(runs)


def test_the_wide_embedded_grid_goes_on_where_the_other_stopped():
    core, wide = (
        {run.identity for run in expanded(ROOT / "configs" / "sweeps" / f"{name}.toml")}
        for name in ("embedded", "embedded-wide")
    )
    assert core < wide
