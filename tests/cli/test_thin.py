"""Nothing that a command can do is impossible from Python: each one parses and prints around a public function."""

import importlib
import inspect
import operator

import pytest

import hushprompt as hp
from hushprompt.cli.commands import COMMANDS

CALLS = {
    "run": ("run", "resume", "plan"),
    "sweep": ("sweep",),
    "list": ("register",),
    "privacy": ("load", "verify"),
    "verify": ("verify",),
    "calibrate": ("calibrate",),
    "audit": ("audit",),
    "serve": ("serve",),
    "show": ("load",),
    "compare": ("compare",),
    "figure": ("figure",),
    "report": ("report",),
    "predict": ("predict",),
    "export": ("export",),
    "partition": ("partition",),
    "data info": ("data_info",),
    "data fetch": ("fetch",),
    "features export": ("export_features",),
    "features metric": ("make_metric",),
    "federation init": ("federation.init",),
    "federation key": ("federation.key",),
    "federation fingerprint": ("federation.fingerprint",),
    "federation renew": ("federation.renew",),
    "federation server": ("federation.serve",),
    "federation client": ("federation.join",),
    "federation run": ("federation.run",),
    "federation check": ("federation.check",),
    "federation simulate": ("federation.simulate_deployment",),
    "federation stop": ("federation.stop",),
    "federation status": ("federation.status",),
}
"""Public names that a command calls, as attributes of `hushprompt`; `list` prints what `register` has enrolled."""
INSTEAD = {"register": "LISTS", "sweep": "sweeps.sweep("}
"""What stands in the source of a command instead: the public `sweep` raises where the command counts what failed."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_calls_a_public_function(name):
    module, _, function = COMMANDS[name].target.partition(":")
    source = inspect.getsource(getattr(importlib.import_module(f"hushprompt.cli.{module}"), function))
    for public in CALLS[name]:
        assert operator.attrgetter(public)(hp) is not None
        called = INSTEAD.get(public, f"hp.{public}(")
        assert called in source, f"{name} does not call hushprompt.{public}"


def test_the_table_has_every_command():
    assert CALLS.keys() == COMMANDS.keys()
