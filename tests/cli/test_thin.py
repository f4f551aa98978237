"""Nothing that a command can do is impossible from Python: each one is parsing and printing around a public function."""

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
    "privacy": ("load",),
    "calibrate": ("calibrate",),
    "audit": ("audit",),
    "show": ("load",),
    "report": ("report",),
    "partition": ("partition",),
    "data info": ("data_info",),
    "data fetch": ("fetch",),
    "federation init": ("federation.init",),
    "federation key": ("federation.key",),
    "federation renew": ("federation.renew",),
    "federation server": ("federation.serve",),
    "federation client": ("federation.join",),
    "federation run": ("federation.run",),
    "federation simulate": ("federation.simulate_deployment",),
    "federation stop": ("federation.stop",),
    "federation status": ("federation.status",),
}
"""Public names that a command calls, as attributes of `hushprompt`; `list` prints what `register` has enrolled."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_calls_a_public_function(name):
    module, _, function = COMMANDS[name].target.partition(":")
    source = inspect.getsource(getattr(importlib.import_module(f"hushprompt.cli.{module}"), function))
    for public in CALLS[name]:
        assert callable(operator.attrgetter(public)(hp)) or public == "register"
        assert public == "register" or f"hp.{public}(" in source, f"{name} does not call hushprompt.{public}"


def test_the_table_has_every_command():
    assert CALLS.keys() == COMMANDS.keys()
