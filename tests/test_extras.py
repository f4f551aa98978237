import importlib.metadata
from types import SimpleNamespace

import pytest

from hushprompt import extras
from hushprompt.errors import ConfigError


@pytest.mark.parametrize(
    ("direct_url", "command"),
    [
        ('{"dir_info": {"editable": true}, "url": "file:///x"}', "pip install '.[flower]' (in the checkout)"),
        (None, "pip install 'hushprompt[flower]'"),
    ],
)
def test_the_hint_fits_how_the_package_was_installed(monkeypatch, direct_url, command):
    found = SimpleNamespace(read_text=lambda name: direct_url)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    assert extras.install_hint("flower") == command


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(ConfigError, match=r"A federation needs the package no_such_package.*\[flower\]"):
        extras.require("flower", "A federation", "json", "no_such_package")
