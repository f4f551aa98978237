"""The start of the command line: small, and without what only training needs."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from helpers.runs import run_with
from hushprompt.cli.commands import COMMANDS

HEAVY = {"torch", "scipy", "dp_accounting", "matplotlib", "flwr", "ray"}
MAX_MB = 120
PROBE = """
import json, sys
args, code = json.loads(sys.argv[1]), 0
from hushprompt.__main__ import main
for words in args:
    sys.argv = ["hushprompt", *words]
    try:
        main()
    except SystemExit as stop:
        code = code or stop.code
lines = open("/proc/self/status").read().splitlines() if sys.platform == "linux" else []
kib = sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))  # of this program alone
print(json.dumps([code, kib / 1024, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
PLUGIN = """
from dataclasses import dataclass
import torch
from hushprompt.methods.promptfl import PromptFL

@dataclass(frozen=True, kw_only=True)
class Mine(PromptFL):
    "A method of a package of its own."
    strength: float = 0.5
    "How strong it is; no unit."
"""


@pytest.fixture
def start(tmp_path):
    """Call commands in a process of their own, and give what they printed and which packages they imported."""

    def call(*commands, heavy=False):
        path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        done = subprocess.run(
            [sys.executable, "-c", PROBE, json.dumps(commands)],
            env={**os.environ, "COLUMNS": "200", "PYTHONPATH": path},
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        *lines, last = done.stdout.splitlines()
        code, megabytes, packages = json.loads(last)
        assert code == 0, done.stderr
        assert heavy or not HEAVY & set(packages), commands
        if not heavy:
            assert megabytes < MAX_MB, commands
        return "\n".join(lines), set(packages)

    return call


@pytest.fixture
def plugin(tmp_path):
    """An installed package with a method, which imports torch."""
    (tmp_path / "heavy_plugin.py").write_text(PLUGIN)
    info = tmp_path / "heavy_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: heavy-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hushprompt.methods]\nmine = heavy_plugin:Mine\n")


def test_help_and_lists_import_nothing_that_is_heavy(start, plugin):
    kinds = ("methods", "datasets", "backbones", "partitions", "samplers", "presets")
    out, packages = start(["--help"], ["--version"], ["list"], *(["list", kind] for kind in kinds))
    assert "heavy_plugin" not in packages
    assert "from the package heavy-plugin" in out
    for name in ("dp_fpl", "emoji100", "emoji_clip", "dirichlet", "poisson", "embedded"):
        assert name in out


def test_the_help_of_every_command_imports_nothing_that_is_heavy(start, plugin):
    start(*([*name.split(), "--help"] for name in COMMANDS))


def test_a_finished_run_is_shown_without_torch(start, toy_values, tmp_path):
    run_with({**toy_values, "training": {"num_rounds": 1}}, tmp_path)
    out, _ = start(["show", "run"])
    assert "DP-FPL" in out
    assert "epsilon" in out


def test_what_keeps_a_client_of_a_federation_running_is_small():
    modules = "hushprompt.cli.federation, hushprompt.deployment.api, hushprompt.deployment.operate.client"
    code = f"import sys, {modules}, hushprompt.deployment.operate.supervise; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & {name.partition(".")[0] for name in done.stdout.split()}


def test_one_name_is_imported_and_described(start, plugin):
    out, packages = start(["list", "mine"], heavy=True)
    assert {"heavy_plugin", "torch"} <= packages
    assert "A method of a package of its own." in out
    assert re.search(r"strength\W+0.5\W+How strong it is; no unit.", out), out


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("hushprompt ", {"run", "list", "federation"}),
        ("hushprompt federation s", {"server", "status", "stop", "simulate"}),
        ("hushprompt run --", {"--set", "--resume", "--dry-run"}),
        ("hushprompt list d", {"datasets", "dp_fpl"}),
        ("hushprompt run em", {"embedded"}),
    ],
)
def test_the_shell_completes_commands_options_and_names(line, found, tmp_path):
    words = shlex.split(line)
    completing = {
        "_HUSHPROMPT_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - (not line.endswith(" "))),
    }
    code = PROBE.replace('"hushprompt", *words', '"hushprompt"')
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, "[[]]"],
        env={**os.environ, **completing}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found <= set(done.stdout.split()), done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not HEAVY & imported
