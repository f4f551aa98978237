"""Runs the package under shape and type checks, and offers the toy model to all tests."""

from __future__ import annotations

import copy
import gc
import os
import sys

# Compiled once, and not by each of the workers and the many processes that tests start.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

gc.disable()  # until all tests are collected: nearly all that is made till then stays

from jaxtyping import install_import_hook  # noqa: E402

import helpers.typecheck  # noqa: E402, F401  the hook below looks it up by name

install_import_hook("hushprompt", "helpers.typecheck.checked")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from helpers.commands import Done  # noqa: E402
from helpers.runs import TOY  # noqa: E402
from hushprompt.cli import main as cli  # noqa: E402
from hushprompt.config import parse as configs  # noqa: E402
from hushprompt.config.schema import RunConfig  # noqa: E402
from hushprompt.methods.base import Batch  # noqa: E402
from hushprompt.models.toy import Toy as ToyModel  # noqa: E402
from hushprompt.privacy.config import PrivacyConfig  # noqa: E402
from hushprompt.privacy.plan import make_plan  # noqa: E402
from hushprompt.privacy.sampling import PoissonSampler  # noqa: E402
from hushprompt.prompts.prompt_model import PromptModel  # noqa: E402
from hushprompt.statistics import contexts  # noqa: E402

settings.register_profile("hushprompt", deadline=None, max_examples=50)
settings.load_profile("hushprompt")
torch.set_num_threads(1)
os.fsync = lambda handle: None  # tests kill processes, and never cut the power
collect_ignore = ["faults"]  # for processes that tests start
LONGEST = (
    "test_real_processes", "test_mutants", "test_ray_cluster", "test_docs", "test_flower_simulation", "test_failures",
    "test_main", "test_secure_aggregation", "test_same_numbers", "test_page", "test_mechanism_audit", "test_sweep",
    "test_examples", "test_simulate", "test_shadows", "test_server_refuses", "test_export_onnx", "test_guide",
    "test_start_from_statistics", "test_crafted_prompts", "test_shares_attacks", "test_training_settings",
    "test_class_statistics", "test_cache", "test_verify", "test_edges", "test_noise_source",
)  # fmt: skip
"""Files that take longest, the longest first: begun last, one of them would leave the other workers idle.

The first, third and fifth mostly wait for other processes, so they stand between files that keep a core busy.
"""


def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-xdist keep the order of `pytest_collection_modifyitems`, not take files with many tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    rank = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish() -> None:
    """Take what was made so far, which stays, from what the garbage collector looks through again and again."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def model() -> PromptModel:
    """The toy backbone with five classes of different name lengths."""
    return PromptModel(ToyModel().load(), ("ant", "bee", "kiwi", "ox", "lynx"))


@pytest.fixture
def batch(model: PromptModel) -> Batch:
    """Seven examples of the toy model's classes."""
    rng = np.random.default_rng(5)
    features = torch.from_numpy(rng.normal(size=(7, model.backbone.feature_dim))).float()
    return Batch(torch.nn.functional.normalize(features, dim=1), torch.tensor([0, 1, 2, 3, 4, 0, 2]))


@pytest.fixture
def toy_values() -> dict:
    """A config of plain values that trains in a blink."""
    return {
        **copy.deepcopy(TOY),
        "references": [{"method": {"name": "zero_shot"}}, {"method": {"name": "promptfl", "num_ctx": 4}}],
    }


@pytest.fixture
def toy_config(toy_values: dict, tmp_path) -> RunConfig:
    """The same as a RunConfig, with a cache of its own."""
    return configs.parse({**toy_values, "runtime": {"cache_dir": str(tmp_path / "cache")}})


@pytest.fixture
def short_fits(monkeypatch):
    """For tests of starts from statistics: what is fitted matters, and not how well."""
    monkeypatch.setattr(contexts, "SHARED_STEPS", 3)
    monkeypatch.setattr(contexts, "CLASS_STEPS", 3)


@pytest.fixture
def serve_by_hand(toy_values, tmp_path, monkeypatch):
    """Give a function that makes clients with noise shares, which agreed, and a server that may send them anything."""
    from helpers.secure_clients import HandServer, values_with_shares

    def make(num_clients=5, owner=None, **privacy):
        return HandServer(values_with_shares(toy_values, num_clients, **privacy), tmp_path, monkeypatch, owner).enroll()

    return make


@pytest.fixture
def make_mechanism():
    """Give a function that makes a one-step mechanism for channels, noise and seed; `how` goes to the plan."""

    def make(channels, allowed, *, noise=1.0, clip_norm=1.0, count=7.0, seed=0, step=0, noise_at="server", **how):
        config = PrivacyConfig(
            epsilon=None,
            delta=1e-3,
            noise_multiplier_local=noise,
            noise_multiplier_global=noise,
            clip_norm_local=clip_norm,
            clip_norm_global=clip_norm,
            noise_source="seeded",
            noise_at=noise_at,
        )
        sampler = PoissonSampler(sampling_prob=0.5)
        plan = make_plan(
            config,
            sampler,
            channels=frozenset(channels),
            num_rounds=5,
            client_sizes=[100] * (3 if noise_at == "shares" else 1),
            **how,
        )
        return plan.mechanism(allowed=allowed, expected_count=count, rng=np.random.default_rng(seed), step=step)

    return make


@pytest.fixture
def hush(tmp_path, monkeypatch, capsys):
    """Call the command in this process, in a folder and with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")

    def call(*args, ok=True):
        monkeypatch.setattr(sys, "argv", ["hushprompt", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        done = Done(int(stop.value.code or 0), *capsys.readouterr())
        assert (done.code == 0) == ok, done.out + done.err
        return done

    return call
