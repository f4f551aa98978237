"""Other people's packages: found by entry point, imported by name alone, and harmless where they are broken."""

import logging
import sys

import pytest

import hushprompt as hp
from helpers.other_package import other_package
from helpers.plugins import plug_in
from helpers.runs import TOY
from hushprompt.errors import ConfigError
from hushprompt.registry import BACKBONES, DATASETS, MECHANISMS, METHODS, PARTITIONS, SAMPLERS, Registry

FRUIT = '''
from dataclasses import dataclass

@dataclass(frozen=True)
class Apple:
    """An apple."""
    weight: float = 0.1

word = "no class"
'''
THEIRS = '''
from dataclasses import dataclass
import hushprompt as hp
from hushprompt.data.partitions.by_class import IID
from hushprompt.data.sets.toy import ToyData
from hushprompt.models.toy import Toy as ToyModel

@hp.register.dataset("their_data")
@dataclass(frozen=True, kw_only=True)
class Data(ToyData):
    """Their data."""

@dataclass(frozen=True, kw_only=True)
class Model(ToyModel):
    """Their model."""

@dataclass(frozen=True, kw_only=True)
class Split(IID):
    """Their partition."""
'''

TOOLS = '''
from dataclasses import dataclass
from typing import ClassVar
from hushprompt.methods.promptfl import PromptFL
from hushprompt.privacy.mechanisms.gaussian import GaussianMechanism
from hushprompt.privacy.sampling import DisjointSampler

@dataclass(frozen=True, kw_only=True)
class Sampler(DisjointSampler):
    """Their sampler."""

@dataclass(frozen=True, kw_only=True)
class Mechanism(GaussianMechanism):
    """Their mechanism."""
    released: ClassVar[list] = []

    def release(self, channel, summed):
        self.released.append(str(channel))
        return GaussianMechanism.release(self, channel, summed)

@dataclass(frozen=True, kw_only=True)
class Method(PromptFL):
    """Their method, which releases by it."""
    mechanism: ClassVar[str] = "their_mechanism"
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package into a folder of the search path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def place(name, points, source=FRUIT, module=None):
        module = module or name.replace("-", "_")
        plug_in(tmp_path, name, module, source, points)
        modules.append(module)

    modules = []
    yield place
    for module in modules:
        sys.modules.pop(module, None)
    for registry in (BACKBONES, DATASETS, MECHANISMS, METHODS, PARTITIONS, SAMPLERS):
        for name in [name for name in registry._classes if name.startswith("their_")]:
            del registry._classes[name]


@pytest.fixture
def shelf():
    return Registry("fruit", "hushprompt.fruits")


def test_a_name_is_known_before_its_package_is_imported(install, shelf):
    install("orchard", {"fruits": {"apple": ":Apple"}})
    assert [(entry.name, entry.package, entry.title) for entry in shelf.entries()] == [("apple", "orchard", "")]
    assert "orchard" not in sys.modules
    assert shelf.get("apple")().weight == 0.1
    assert [(entry.package, entry.title) for entry in shelf.entries()] == [("orchard", "")]


def test_an_object_of_another_package_has_its_name_though_nobody_asked_for_it(install, shelf):
    install("orchard", {"fruits": {"apple": ":Apple"}})
    import orchard

    assert not shelf.has(orchard.Apple)
    assert shelf.name_of(orchard.Apple()) == "apple"
    assert shelf.has(orchard.Apple)


@pytest.mark.parametrize(
    ("source", "point", "message"),
    [
        ("import nowhere_to_be_found", ":Apple", r"cannot be imported: ModuleNotFoundError: No module named 'nowhere"),
        ("raise SystemError('boom')", ":Apple", "cannot be imported: SystemError: boom. Repair the package"),
        ("", ":Apple", "cannot be imported: AttributeError"),
        (FRUIT, ":word", "is not a class, and registers none under this name"),
        ("class Apple: pass", ":Apple", "must be a frozen dataclass"),
    ],
)
def test_a_broken_package_is_one_error_that_names_it_and_nobody_elses_trouble(install, shelf, source, point, message):
    install("rotten-fruit", {"fruits": {"rotten": point}}, source)
    install("orchard", {"fruits": {"apple": ":Apple"}})
    with pytest.raises(ConfigError, match=f"The fruit 'rotten' of the package rotten-fruit .*{message}"):
        shelf.get("rotten")
    assert shelf.get("apple")
    assert shelf.names() == ["apple", "rotten"]


def test_two_packages_with_one_name_are_told(install, shelf):
    install("orchard", {"fruits": {"apple": ":Apple"}})
    install("market", {"fruits": {"apple": ":Apple"}})
    with pytest.raises(ConfigError, match=r"The fruit 'apple' comes with market and orchard\. Uninstall one of them"):
        shelf.get("apple")


def test_our_own_names_cannot_be_taken(install, caplog):
    install("taker", {"methods": {"dp_fpl": ":Apple"}})
    with caplog.at_level(logging.WARNING):
        assert METHODS.get("dp_fpl") is hp.DPFPL
        assert {entry.name: entry.package for entry in METHODS.entries()}["dp_fpl"] == "hushprompt"
    assert "The package taker brings a method called 'dp_fpl', which hushprompt has itself" in caplog.text


def test_data_backbone_and_partition_of_another_package_train(install, tmp_path):
    install(
        "theirs",
        {
            "datasets": {"their_data": ":Data"},
            "backbones": {"their_model": ":Model"},
            "partitions": {"their_split": ":Split"},
        },
        THEIRS,
    )
    names = {"data": {"name": "their_data"}, "backbone": {"name": "their_model"}}
    config = {**TOY, **names, "partition": {"name": "their_split", "num_clients": 3}, "training": {"num_rounds": 1}}
    run = hp.run(config, out=tmp_path / "run", runtime={"cache_dir": str(tmp_path / "cache")})
    assert type(run.config.data).__module__ == type(run.config.backbone).__module__ == "theirs"
    assert 'name = "their_split"' in (run.folder / "config.toml").read_text()


def test_sampler_and_mechanism_of_another_package_train(install, tmp_path):
    points = {"samplers": {"their_sampler": ":Sampler"}, "mechanisms": {"their_mechanism": ":Mechanism"}}
    install("tools", {**points, "methods": {"their_method": ":Method"}}, TOOLS)
    names = {"sampling": {"name": "their_sampler", "steps_per_round": 2}, "method": {"name": "their_method"}}
    config = {**TOY, **names, "training": {"num_rounds": 2}}
    run = hp.run(config, out=tmp_path / "run", runtime={"cache_dir": str(tmp_path / "cache")})
    assert type(run.config.sampling).__module__ == "tools"
    assert sys.modules["tools"].Mechanism.released == ["global"] * 4
    assert "2 disjoint batches a round" in run.guarantees["public"].statement()
    assert run.guarantees["public"].epsilon == pytest.approx(8.0, rel=1e-3)


def test_a_method_of_another_package_trains_sweeps_compares_reports_and_is_audited(hush, tmp_path):
    with other_package(tmp_path / "site"):
        settings = {"runtime": {"cache_dir": str(tmp_path / "cache")}, "training": {"num_rounds": 2}}
        run = hp.run({**TOY, **settings}, method={"name": "smoothed", "num_ctx": 4, "rank": 2}, out=tmp_path / "run")
        assert run.arms[-1].title == "Smoothed DP-FPL"
        base = hp.RunConfig(**{**TOY, **settings})
        grid = {"base": base, "axes": {"method.name": ["dp_fpl", "smoothed"]}}
        runs = hp.sweep(grid, out=tmp_path / "grid", jobs=1)  # in a worker process
        assert [type(each.config.method).__name__ for each in runs] == ["DPFPL", "Smoothed"]
        assert "Smoothed DP-FPL" in hush("compare", tmp_path / "grid").out
        assert "Smoothed DP-FPL" in hp.report(runs, tmp_path / "page.html").read_text()
        quick = {"num_shadows": 4, "num_canaries": 0, "num_gradient_canaries": 0, "workers": 1, "attacks": ("lira",)}
        record = hp.audit(run, **quick)  # shadow federations in a worker process
        assert record.method == "smoothed"
        assert "smoothed" in hush("list", "methods").out
