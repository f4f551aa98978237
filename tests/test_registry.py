"""The registries: names without imports, one clear error for each mistake, an index that is what the sources say."""

import dataclasses
import subprocess
import sys

import pytest

from hushprompt import registry
from hushprompt.errors import ConfigError
from hushprompt.registry import DATASETS, METHODS, REGISTRIES, Registry


@pytest.fixture
def shelf():
    return Registry("fruit", "hushprompt.fruits")


def frozen(name="Apple", module="orchard"):
    return dataclasses.dataclass(frozen=True)(type(name, (), {"__doc__": f"An {name}.\n\nMore.", "__module__": module}))


def test_the_index_is_what_the_sources_register():
    assert registry.made_index() == registry.INDEX.read_text(encoding="utf-8"), "run python -m hushprompt.registry"


def test_names_import_nothing():
    code = (
        "import sys; from hushprompt.registry import REGISTRIES; print(*(e.title for e in [*REGISTRIES][0].entries()));"
        "assert not {'torch', 'numpy', 'scipy', 'dp_accounting', 'hushprompt.methods'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "DP-FPL" in done.stdout


def test_a_name_imports_its_class_alone():
    code = (
        "import sys; from hushprompt.registry import DATASETS; assert DATASETS.get('emoji100').__name__ == 'Emoji100';"
        "assert 'hushprompt.data.sets.cifar' not in sys.modules and 'hushprompt.methods' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_has_a_title_and_its_class():
    for each in REGISTRIES:
        for entry in each.entries():
            cls = each.get(entry.name)
            assert entry.title
            assert entry.title == cls.__doc__.splitlines()[0]
            settings = tuple(f.name for f in dataclasses.fields(cls) if f.init)
            assert (cls.__module__, entry.settings) == (entry.module, settings)
            assert each.has(cls)


def test_a_registered_class_is_found_by_name_and_by_its_objects(shelf):
    apple = shelf.register("apple")(frozen())
    assert shelf.get("apple") is apple
    assert shelf.name_of(apple()) == "apple"
    assert [(entry.name, entry.title, entry.package) for entry in shelf.entries()] == [("apple", "An Apple.", "")]


def test_a_name_is_taken_once(shelf):
    shelf.register("apple")(frozen())
    with pytest.raises(ValueError, match="fruit 'apple' is registered already, by orchard"):
        shelf.register("apple")(frozen(module="market"))
    with pytest.raises(ValueError, match="method 'dp_fpl' is registered already, by hushprompt"):
        registry.register.method("dp_fpl")(frozen())


def test_a_class_that_is_defined_again_takes_its_own_place(shelf):
    old, new = shelf.register("apple")(frozen()), shelf.register("apple")(frozen())
    assert old is not new
    assert shelf.get("apple") is new


def test_a_class_must_be_a_frozen_dataclass(shelf):
    with pytest.raises(ValueError, match="must be a frozen dataclass"):
        shelf.register("apple")(type("Apple", (), {}))


def test_a_wrong_name_gets_the_nearest(shelf):
    with pytest.raises(
        ConfigError, match=r"There is no method 'promtfl'; known: .*dp_fpl, .*Did you mean 'promptfl'\?"
    ):
        METHODS.get("promtfl")
    with pytest.raises(ConfigError, match="Cherry is not a registered fruit"):
        shelf.name_of(frozen("Cherry")())


def test_what_this_package_brings_is_told_apart():
    assert "toy" in DATASETS.own_names()
    assert {entry.package for entry in DATASETS.entries()} == {"hushprompt"}
