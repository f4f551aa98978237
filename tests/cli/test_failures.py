"""What a user sees when the disk, the terminal or somebody else's code fails: one sentence, and status 2."""

import errno
import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

import hushprompt as hp
from helpers.commands import SETTINGS, command
from helpers.layouts import images
from helpers.made_runs import train
from hushprompt import files
from hushprompt.api import training
from hushprompt.cli import main as cli
from hushprompt.cli.console import console
from hushprompt.errors import ConfigError
from hushprompt.reporting.formats import WholeTable


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = tmp_path_factory.mktemp("failures")
    return train(base / "run", base / "cache")


def failing(error):
    """A function that fails in the given way whatever it is called with."""

    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "r/x"), "No space left on device: r/x. The disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "r"), "Permission denied: r. You may not read or write"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "f/x"), "a folder is wanted"),
        (OSError(errno.ENOTCONN, "Not connected"), "Not connected. hushprompt --debug"),
        (OSError("no number"), "OSError: no number. hushprompt --debug"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "Save it as UTF-8"),
        (KeyError("a library's\nown word"), 'KeyError: "a library\'s\\\\nown word". hushprompt --debug'),
        (ZeroDivisionError("x" * 9999), "ZeroDivisionError: xxx"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_whatever_fails_is_one_sentence_and_status_2(hush, monkeypatch, error, words):
    monkeypatch.setattr(hp, "calibrate", failing(error))
    done = hush("calibrate", "--epsilon", 2, "--rounds", 3, ok=False)
    assert done.code == 2
    assert done.err.startswith("hushprompt: ")
    assert words in done.err.replace("\\n", "\\\\n")
    assert len(done.err.splitlines()) == 1
    assert len(done.err) < 600
    assert "Traceback" not in done.err


def test_debug_shows_where_it_comes_from_and_the_next_command_does_not(hush, monkeypatch):
    monkeypatch.setattr(hp, "calibrate", failing(KeyError("x")))
    shown = hush("--debug", "calibrate", "--epsilon", 2, "--rounds", 3, ok=False)
    assert shown.code == 2
    assert "Traceback" in shown.err
    assert "in fail" in shown.err
    assert shown.err.splitlines()[-1].startswith("hushprompt: ")
    assert "Traceback" not in hush("calibrate", "--epsilon", 2, "--rounds", 3, ok=False).err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_output_is_told_once():
    with open("/dev/full", "w") as full:
        done = subprocess.run(command("--version"), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "The disk is full" in done.stderr


def test_who_reads_no_further_is_told_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command("--version"), stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_result_is_shown_in_any_encoding(run, monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["hushprompt", "compare", str(run)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "mean +- standard deviation" in out.buffer.getvalue().decode(encoding).replace("±", "+-")


def test_a_letter_without_a_word_of_its_own_is_written_by_its_number():
    cli.print_in_any_encoding()
    assert "caf\u00e9 \u00b1 \u732b".encode("ascii", "hushprompt") == b"caf\\xe9 +- \\u732b"


# A run that did not start leaves nothing in the way.


def test_the_right_root_works_in_the_folder_in_which_the_wrong_one_failed(hush, tmp_path):
    images(tmp_path / "right", ["ant", "bee", "cat"], 8)
    settings = [*SETTINGS, "--set=data.name=folder", "--set=partition={name='iid', num_clients=2}",
                "--set=references=[]", "--set=training.num_rounds=1"]  # fmt: skip
    failed = hush("run", *settings, "--set=data.root=wrong", "--out=rr", ok=False)
    assert failed.code == 2
    assert not (tmp_path / "rr").exists()
    hush("run", *settings, "--set=data.root=right", "--out=rr")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("a library's"), ConfigError("ours")])
def test_whatever_stops_a_run_before_it_starts_its_folder_is_as_it_was(monkeypatch, tmp_path, error):
    def fail(config, folder, observer, load):
        files.write_text(folder / "partition.json", "{}")
        files.write_text(folder / "deeper" / "note.txt", "")
        raise error

    monkeypatch.setattr(training.simulate, "run", fail)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / ".hidden").write_text("")
    for name in ("new", "old"):
        with pytest.raises(type(error)):
            hp.run(data="toy", backbone="toy", out=tmp_path / name, progress=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["old", ".hidden"]


def test_a_run_that_was_begun_stays_whatever_stops_it(monkeypatch, tmp_path):
    def fail(config, folder, observer, load):
        files.append_line(folder / "ledger.jsonl", "{}")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(training.simulate, "run", fail)
    with pytest.raises(OSError, match="full"):
        hp.run(data="toy", backbone="toy", out=tmp_path / "r", progress=False)
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["config.toml", "ledger.jsonl"]


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_in_the_place_of_the_run_folder_is_named(hush, tmp_path, out):
    (tmp_path / "file").write_text("mine")
    failed = hush("run", *SETTINGS, "--out", out, ok=False)
    assert failed.code == 2
    assert out in failed.err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("out", ["file/x", "x\0y", "x" * 300])
def test_python_says_of_an_output_what_the_command_line_says(run, hush, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    told = {
        "run": lambda: hp.run(data="toy", backbone="toy", out=out, progress=False),
        "sweep": lambda: hp.sweep({"base": hp.RunConfig(), "axes": {"seed": [1]}}, out=out),
        "report": lambda: hp.report(run, out),
        "figure": lambda: hp.figure(run, f"{out}.svg"),
        "compare": lambda: hp.compare(run).write(f"{out}.md"),
        "init": lambda: hp.federation.init(out, ["a", "b"], classes=["cat", "dog"]),
        "key": lambda: hp.federation.key(out),
    }
    for name, call in told.items():
        with pytest.raises(
            hp.HushpromptError, match=r"^[A-Z].*: .*\. (A file|Choose)|^A path has a character NUL"
        ) as found:
            call()
        assert isinstance(found.value, OSError), name
    if "\0" not in out:
        said = hush("report", str(run), "--out", out, ok=False)
        with pytest.raises(hp.HushpromptError) as found:
            hp.report(run, out)
        assert said.err.strip() == f"hushprompt: {found.value}"
        assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "cache"}


def test_a_mistake_in_code_is_no_failure_of_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(training.simulate, "run", failing(ValueError("a library's")))
    with pytest.raises(ValueError, match="a library's") as found:
        hp.run(data="toy", backbone="toy", out=tmp_path / "r", progress=False)
    assert not isinstance(found.value, hp.HushpromptError)
    monkeypatch.setattr(training.simulate, "run", failing(BrokenPipeError(errno.EPIPE, "nobody reads")))
    with pytest.raises(BrokenPipeError) as found:
        hp.run(data="toy", backbone="toy", out=tmp_path / "r", progress=False)
    assert not isinstance(found.value, hp.HushpromptError)


def test_a_device_is_written_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 99) == b"text"
    os.close(reader)
    assert not (tmp_path / "pipe").is_file()


# Names and numbers are whole in every terminal.


@pytest.mark.parametrize("width", [60, 40, 30])
def test_no_name_and_no_number_is_cut_in_a_narrow_terminal(run, hush, monkeypatch, width):
    monkeypatch.setattr(console, "_width", width)
    for words, wanted in (
        (["show", run], ["harmonic mean", "(simulation)"]),
        (["list", "methods"], ["dp_fpl_released"]),
        (["list", "dp_fpl"], ["factorization"]),
        (["data", "info", "toy"], ["train", "18"]),
        (["calibrate", "--epsilon=2", "--rounds=3"], ["noise_multiplier_local"]),
        (["privacy", run], ["epsilon"]),
        (["partition", "--set=data.name=toy", "--set=partition.num_clients=3"], ["(50%)"]),
    ):
        out = hush(*words).out
        assert "…" not in out, words
        for word in wanted:
            assert word in " ".join(out.split()), (words, word)


@pytest.mark.parametrize("width", [12, 30, 50, 200])
def test_a_table_is_a_list_before_it_cuts_a_cell(width):
    table = WholeTable("name", "a long number", "what it is")
    table.add_row("some_long_name", "1234567890", "several words that may stand on lines of their own")
    narrow = Console(width=width, file=io.StringIO())
    narrow.print(table)
    text = narrow.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert width < 30 or ("1234567890" in text and "some_long_name" in text)
