"""Every command says what it does, with examples that work and a sentence for each option."""

import importlib
import inspect
import shlex

import pytest
import typer
from typer.testing import CliRunner

from hushprompt.cli import compare, figure, lazy
from hushprompt.cli import main as cli
from hushprompt.cli.commands import COMMANDS, EXAMPLES, SECTIONS
from hushprompt.config import parse as configs
from hushprompt.reporting import figures, pooling


def context_of(line):
    """Parse a command line as the shell would hand it over, without running it."""
    program, *args = shlex.split(line)
    assert program == "hushprompt"
    command = typer.main.get_command(cli.app)
    context = command.make_context(program, args)
    while isinstance(context.command, lazy.LazyGroup):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return context


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_examples_that_parse_and_a_sentence_for_each_option(name):
    entry = COMMANDS[name]
    module, _, function = entry.target.partition(":")
    function = getattr(importlib.import_module(f"hushprompt.cli.{module}"), function)
    assert inspect.getdoc(function).splitlines()[0] == entry.summary
    command = lazy.load(name)
    shown = CliRunner().invoke(cli.app, [*name.split(), "--help"], terminal_width=200, env={"COLUMNS": "200"}).output
    assert 1 <= len(entry.examples) <= 3
    for line in entry.examples:
        assert f"$ {line}" in shown
        context = context_of(line)
        assert context.command_path == f"hushprompt {name}"
        assert len(line) <= 76, "an example must not break in a terminal of 80 columns"
        for setting in context.params.get("set_") or []:
            configs.load(configs.locate(None), [setting])
    for parameter in command.params:
        assert getattr(parameter, "help", None) or parameter.name == "help", parameter.name


def test_what_help_enumerates_is_all_there_is():
    assert compare.SCORES.split(", ") == [*pooling.SCORES]
    assert compare.MEASURES.split(", ") == [*pooling.MEASURES]
    assert figure.KINDS.split(", ") == [*figures.KINDS]


@pytest.mark.parametrize("name", ["", *SECTIONS])
def test_a_group_has_examples_that_parse(name):
    shown = CliRunner().invoke(cli.app, [*name.split(), "--help"], env={"COLUMNS": "200"}).output
    for line in SECTIONS[name].examples if name else EXAMPLES:
        assert f"$ {line}" in shown
        context_of(line)


def test_run_stands_first_and_every_command_in_a_group():
    out = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "100"}).output
    places = [out.index(f"─ {panel} ─") for panel in ("Train", "Privacy", "Compare", "Data", "Federation")]
    assert places == sorted(places)
    assert "─ Commands ─" not in out
    listed = [line.split()[1] for line in out[places[0] :].splitlines() if line.startswith("│ ") and line[2] != " "]
    assert listed[0] == "run"
    assert set(listed) == {name.split()[0] for name in COMMANDS}


def test_a_wrong_command_is_answered_with_the_nearest():
    done = CliRunner().invoke(cli.app, ["rnu"])
    assert done.exit_code == 2
    assert done.output.count("Did you mean") == 1


def test_the_completion_script_can_be_shown(monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = CliRunner().invoke(cli.app, ["--show-completion", "bash"], prog_name="hushprompt")
    assert "_HUSHPROMPT_COMPLETE=complete_bash" in done.output


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert CliRunner().invoke(cli.app, ["--version"]).output == f"hushprompt {version('hushprompt')}\n"
