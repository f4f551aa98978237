import math
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import hushprompt as hp
from hushprompt.config import parse as configs
from hushprompt.config.values import convert
from hushprompt.data.readers.base import OwnData
from hushprompt.errors import ConfigError
from hushprompt.registry import DATASETS, METHODS, Registry

ROOT = Path(__file__).parents[2]
PRESET = ROOT / "src" / "hushprompt" / "config" / "presets" / "embedded.toml"


@pytest.mark.parametrize("path", sorted([*ROOT.glob("configs/**/*.toml"), *PRESET.parent.glob("*.toml")]), ids=str)
def test_every_shipped_config_is_valid(path):
    values = tomllib.loads(path.read_text())
    if not {"stages", "axes"} & set(values):  # a search or a sweep names a config of its own
        assert configs.parse(values).method


def test_every_known_data_set_has_a_config():
    named = {tomllib.loads(path.read_text())["data"]["name"] for path in ROOT.glob("configs/*.toml")}
    assert named == {name for name in DATASETS.names() if hasattr(DATASETS.get(name), "about")}


def test_a_list_of_texts_becomes_a_tuple(toy_values):
    values = {**toy_values, "data": {"name": "folder", "root": "x", "classes": ["cat", "dog"]}}
    resolved = configs.parse(values)
    assert resolved.data.classes == ("cat", "dog")
    assert configs.parse(tomllib.loads(resolved.to_toml())) == resolved
    with pytest.raises(ConfigError, match=r"data\.classes\[1\] must be of type str, got 2"):
        configs.parse({**values, "data": {"name": "folder", "root": "x", "classes": ["cat", 2]}})
    with pytest.raises(ConfigError, match=r"data\.classes must be a list, such as"):
        configs.parse({**values, "data": {"name": "folder", "root": "x", "classes": "cat"}})


def test_the_resolved_config_reads_back_as_itself(toy_config):
    again = configs.parse(tomllib.loads(toy_config.to_toml()))
    assert again == toy_config
    assert again.identity() == toy_config.identity()


def test_a_preset_survives_a_round_trip_with_its_infinite_epsilon():
    preset = configs.load(PRESET.with_stem("embedded-40"))
    assert any(arm.epsilon == math.inf for arm in preset.references)
    assert configs.parse(tomllib.loads(preset.to_toml())) == preset


def test_the_runtime_is_no_part_of_the_identity(toy_values):
    first = configs.parse({**toy_values, "runtime": {"num_threads": 1}})
    second = configs.parse({**toy_values, "runtime": {"num_threads": 2, "memory_mb": 8}})
    assert first.identity() == second.identity()
    assert first.identity() != configs.parse({**toy_values, "seed": 4}).identity()


def load_with(tmp_path, toy_config, *overrides):
    path = tmp_path / "c.toml"
    path.write_text(toy_config.to_toml())
    return configs.load(path, overrides)


def test_overrides_reach_nested_fields_and_infinity(tmp_path, toy_config):
    got = load_with(
        tmp_path,
        toy_config,
        "privacy.epsilon=inf",
        "method.local_optimizer.learning_rate=0.5",
        "seed=7",
        "references=[]",
    )
    assert got.privacy.epsilon == math.inf
    assert got.method.local_optimizer.learning_rate == 0.5
    assert (got.seed, got.references) == (7, ())


def test_a_new_name_drops_the_old_choices_fields(tmp_path, toy_config):
    got = load_with(tmp_path, toy_config, "method.name=promptfl")
    assert METHODS.name_of(got.method) == "promptfl"
    assert got.method.num_ctx == 16


def test_a_reference_without_method_takes_the_runs_own(toy_values):
    got = configs.parse({**toy_values, "references": [{"epsilon": math.inf}]})
    assert got.references[0].method == got.method


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("privacy.epsilom=1", r"Unknown key 'epsilom' in the section privacy.*Did you mean 'epsilon'"),
        ("privcy.epsilon=1", r"Unknown key 'privcy' at the top level.*Did you mean 'privacy'"),
        ("method.name=promptlf", r"no method 'promptlf'.*Did you mean 'promptfl'"),
        ("method.rank=two", r"method.rank must be of type int, got 'two'"),
        ("method.rank=true", r"method.rank must be of type int"),
        ("method.rank=2.5", r"method.rank must be of type int"),
        ("privacy.epsilon=small", r"privacy.epsilon must be of type float"),
        ("privacy.audience=everyone", r"privacy.audience must be one of public, personal"),
        ("privacy.delta=2", r"delta must be below 0.1"),
        ("method.update=tangents", r"method.update must be one of factors, tangent"),
        ("sampling.sampling_prob=1.5", r"sampling_prob must lie in \[0, 1\]"),
        ("sampling.name=shuffled", r"no sampler 'shuffled'; known: disjoint, poisson"),
        ("training.num_rounds=-1", r"num_rounds must be >= 0"),
        ("privacy", r"--set takes section.key=value"),
        ("seed.deep=1", r"seed is not a table"),
        ("evaluation.split=train", r"evaluation.split must be one of test, validation"),
    ],
)
def test_a_wrong_setting_gets_one_clear_sentence(tmp_path, toy_config, override, message):
    with pytest.raises(ConfigError, match=message):
        load_with(tmp_path, toy_config, override)


def test_a_missing_file_or_section_is_named(tmp_path, toy_values):
    with pytest.raises(ConfigError, match="cannot be read"):
        configs.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("seed = = 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        configs.load(tmp_path / "bad.toml")
    del toy_values["backbone"]
    with pytest.raises(ConfigError, match="section backbone is missing"):
        configs.parse(toy_values)


def test_sampling_may_be_left_out_where_no_method_draws_batches(toy_values):
    del toy_values["sampling"]
    values = {**toy_values, "references": [{"method": {"name": "zero_shot"}}, {"method": {"name": "class_means"}}]}
    config = configs.parse({**values, "method": {"name": "class_statistics"}})
    assert config.to_toml().count('[sampling]\nname = "disjoint"\nsteps_per_round = 1\n') == 1
    for changes in ({}, {"method": {"name": "class_means"}, "references": toy_values["references"]}):
        with pytest.raises(ConfigError, match="section sampling is missing"):
            configs.parse({**values, **changes})


def test_one_text_is_no_list_of_its_letters(toy_values, tmp_path):
    folder = {**toy_values, "data": {"name": "folder", "root": "r", "classes": "cat"}}
    with pytest.raises(ConfigError, match=r'must be a list, such as \["cat"\], got \'cat\'\. .* data\.classes_file'):
        configs.parse(folder)
    with pytest.raises(ConfigError, match=r"classes must be a list.*data\.classes_file"):
        OwnData.__post_init__(SimpleNamespace(classes="cat"))
    with pytest.raises(ConfigError, match=r"federation\.clients must be a list"):
        convert("federation.clients", "abc", tuple[str, ...])
    for call in (
        lambda: configs.load(tmp_path, "seed=2"),
        lambda: hp.resume(tmp_path, overrides="data.root=x"),
        lambda: hp.sweep({"base": toy_values, "axes": {"seed": [1]}}, out=tmp_path / "s", overrides="seed=2"),
        lambda: hp.compare(tmp_path, by="data"),
        lambda: hp.compare(tmp_path, scores="local"),
        lambda: hp.federation.init(tmp_path / "f", "abc"),
    ):
        with pytest.raises(ConfigError, match="must be a list, such as "):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_registry_refuses_duplicates_and_mutable_classes():
    from dataclasses import dataclass

    registry = Registry("thing")

    @registry.register("a")
    @dataclass(frozen=True)
    class A:
        pass

    with pytest.raises(ValueError, match="'a' is registered already"):
        registry.register("a")(A)
    with pytest.raises(ValueError, match="must be a frozen dataclass"):
        registry.register("b")(int)
    assert registry.name_of(A()) == "a"
    with pytest.raises(ConfigError, match="not a registered thing"):
        registry.name_of(3)


def test_settings_of_earlier_versions_are_read_where_they_changed_no_result():
    values = configs.read(configs.locate(None))
    with_old = {
        **values,
        "runtime": {"stack_mb": 1000},
        "method": {**values["method"], "drop_below": 0.0},
        "references": [{"method": {"name": "promptfl", "drop_below": 0.0}}],
    }
    expected = {**values, "references": [{"method": {"name": "promptfl"}}]}
    assert configs.parse(with_old) == configs.parse(expected)
    with pytest.raises(ConfigError, match=r"method\.drop_below was removed"):
        configs.parse({**values, "method": {**values["method"], "drop_below": 0.01}})
