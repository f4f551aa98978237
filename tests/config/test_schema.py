"""A RunConfig is the preset with what was said changed: by objects, tables of settings, or names."""

import dataclasses
import math
import tomllib
from pathlib import Path

import pytest

from hushprompt.config import parse as configs
from hushprompt.config.schema import Reference, RunConfig, TrainingConfig
from hushprompt.errors import ConfigError
from hushprompt.methods.dp_fpl import DPFPL
from hushprompt.methods.promptfl import PromptFL
from hushprompt.privacy.config import Audience, PrivacyConfig
from hushprompt.registry import METHODS

ROOT = Path(__file__).parents[2]
IDENTITIES = {
    "cifar10": "0c995279", "domainnet": "6b908dbb", "features": "27308c5b", "office_caltech10": "e66af1cc",
    "questions": "b4e3debf", "table": "7e4e2800",
}  # fmt: skip
"""By data set, how the identity of a small config begins."""


def test_a_config_of_nothing_is_the_preset():
    preset = configs.load(configs.locate(None))
    assert RunConfig() == preset
    assert RunConfig().identity() == preset.identity()
    assert configs.resolve(None, {}) == preset == configs.resolve("embedded", {})


def test_a_run_is_the_same_run_under_every_version():
    """The order of fields counts, too; with another identity finished runs of a sweep would be trained again."""
    few = {
        "backbone": {"name": "toy"}, "partition": {"name": "iid", "num_clients": 2}, "method": {"name": "promptfl"},
        "sampling": {"name": "poisson", "sampling_prob": 0.5}, "privacy": {"epsilon": 8.0, "delta": 1e-5},
        "training": {"num_rounds": 1},
    }  # fmt: skip
    found = {name: configs.parse({**few, "data": {"name": name}}).identity()[:8] for name in IDENTITIES}
    assert found == IDENTITIES


def test_every_field_of_every_section_has_a_default():
    for name in ("features", "training", "evaluation", "runtime", "privacy"):
        assert type(getattr(RunConfig(), name))()


def test_an_object_takes_the_place_of_a_section():
    config = RunConfig(method=DPFPL(rank=4), privacy=PrivacyConfig(epsilon=4), training=TrainingConfig(num_rounds=3))
    assert config.method == DPFPL(rank=4)
    assert config.privacy == PrivacyConfig(epsilon=4, noise_source="seeded", noise_at="server")
    assert config.training == TrainingConfig(num_rounds=3)
    assert config.data == RunConfig().data


def test_a_table_changes_what_it_names_and_a_name_starts_afresh():
    preset = RunConfig()
    config = RunConfig(method={"rank": 4}, privacy={"audience": Audience.PUBLIC}, partition="iid")
    assert config.method == dataclasses.replace(preset.method, rank=4)
    assert config.privacy == dataclasses.replace(preset.privacy, audience=Audience.PUBLIC)
    assert config.partition == configs.choose("partition", {"name": "iid"})
    assert RunConfig(method="dp_fpl") == preset
    assert RunConfig(data={"name": "folder", "root": "x", "classes": ("a", "b")}).data.classes == ("a", "b")


def test_references_are_objects_tables_or_names_and_have_the_runs_own_method():
    config = RunConfig(method="promptfl", references=["zero_shot", {"epsilon": math.inf}, Reference(method="fedpgp")])
    names = [type(arm.method).__name__ for arm in config.references]
    assert names == ["ZeroShot", "PromptFL", "FedPGP"]
    assert [arm.epsilon for arm in config.references] == [None, math.inf, None]


def test_a_reference_follows_another_method_of_a_run():
    first = RunConfig(references=[{"epsilon": math.inf}, "promptfl"])
    second = configs.resolve(first, {"method": DPFPL(rank=2)})
    assert second == RunConfig(method=DPFPL(rank=2), references=[{"epsilon": math.inf}, "promptfl"])
    assert configs.resolve(first, {}) is first


def test_a_config_of_a_file_is_changed_where_it_says_so(tmp_path, toy_config):
    file = tmp_path / "mine.toml"
    file.write_text(toy_config.to_toml())
    changed = configs.resolve(file, {"training": {"num_rounds": 1}, "seed": 9})
    assert changed == dataclasses.replace(
        toy_config, training=dataclasses.replace(toy_config.training, num_rounds=1), seed=9
    )


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"method": 3}, "int is not a registered method"),
        ({"method": PromptFL}, "type is not a registered method"),
        ({"seed": "one"}, "seed must be of type int, got 'one'"),
        ({"privacy": {"epsilom": 1}}, "Unknown key 'epsilom' in the section privacy.*Did you mean 'epsilon'"),
        ({"references": [{"epsilom": 1}]}, r"Unknown key 'epsilom' in the section references\[0\]"),
        ({"training": 3}, "training must be a TrainingConfig or a table of settings, got 3"),
    ],
)
def test_a_wrong_section_gets_one_clear_sentence(sections, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig(**sections)


def test_a_wrong_section_name_gets_the_nearest():
    with pytest.raises(ConfigError, match=r"Unknown key 'methd' at the top level.*Did you mean 'method'"):
        configs.resolve(None, {"methd": "promptfl"})


def test_published_sweeps_and_the_search_keep_the_forty_rounds_they_were_made_with():
    forty = configs.load(configs.locate(Path("embedded-40")))
    assert (forty.training.num_rounds, forty.sampling.sampling_prob, forty.privacy.epsilon) == (40, 0.05, 2.0)
    rates = [forty.method.global_optimizer.learning_rate, forty.method.local_optimizer.learning_rate]
    assert rates == [0.4, 0.005]
    files = [*(ROOT / "configs" / "sweeps").glob("embedded*.toml"), ROOT / "configs" / "search" / "embedded.toml"]
    assert len(files) == 5
    assert {tomllib.loads(path.read_text(encoding="utf-8"))["base"] for path in files} == {"embedded-40"}


def test_the_preset_is_shorter_and_compares_with_the_two_rivals_and_class_statistics():
    short, forty = (configs.load(configs.locate(Path(name))) for name in ("embedded", "embedded-40"))
    assert short.training.num_rounds < forty.training.num_rounds / 2
    assert METHODS.name_of(short.method) == METHODS.name_of(forty.method) == "dp_fpl"
    rivals = {"local_only", "promptfl", "class_statistics"}
    assert all(rivals <= {METHODS.name_of(arm.method) for arm in preset.references} for preset in (short, forty))
    same = {"backbone", "data", "features", "partition", "sampling", "privacy"}
    assert all(getattr(short, name) == getattr(forty, name) for name in same)
