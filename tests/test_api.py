"""What can be done from Python: train, go on, plan, look at a run, its prompts and its data."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

import hushprompt as hp
from helpers.inline_pool import InlinePool
from helpers.toy_metric import toy_metric
from hushprompt.api import progress
from hushprompt.api.progress import NotebookLines, PlainText, TrainingBars, watching


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of three arms over three clients."""
    folder = tmp_path_factory.mktemp("made")
    config = hp.RunConfig(
        backbone="toy",
        data="toy",
        partition={"name": "disjoint_classes", "num_clients": 3},
        sampling={"name": "poisson", "sampling_prob": 0.5},
        method=hp.DPFPL(num_ctx=4, rank=2),
        privacy=hp.PrivacyConfig(epsilon=8, delta=1e-3),
        training=hp.TrainingConfig(num_rounds=2),
        references=["zero_shot", {"method": hp.PromptFL(num_ctx=4)}],
        runtime={"cache_dir": str(folder / "cache"), "num_threads": 1},
    )
    return hp.run(config, out=folder / "run")


def test_a_run_is_its_folder(made):
    again = hp.load(made.folder)
    assert again == made
    assert again.config == made.config
    assert again.is_finished
    assert [arm.method for arm in made.arms] == ["zero_shot", "promptfl", "dp_fpl"]
    assert [(record.arm, record.round_index) for record in made.records][-1] == ("dp_fpl, epsilon 8", 2)


def test_epsilon_comes_with_all_that_gives_it_meaning(made):
    public = made.guarantees["public"]
    assert isinstance(public, hp.Guarantee)
    assert 0 < public.epsilon <= made.guarantees["personal"].epsilon <= 8
    for text in (public.statement(), made.statement(), repr(made), made.table()._repr_html_(), made._repr_html_()):
        for word in ("delta = 0.001", "one example", "add_remove", "poisson", "accountant"):
            assert word in text.lower() if word == "poisson" else word in text


def test_the_table_shows_itself_and_is_a_frame(made):
    console = Console(file=io.StringIO(), width=120)
    console.print(made.table())
    assert "DP-FPL" in console.file.getvalue()
    frame = made.table().frame()
    assert list(frame["method"]) == ["zero_shot", "promptfl", "dp_fpl"]
    assert frame["local"].between(0, 1).all()


def test_class_statistics_and_the_rows_beside_them_run_by_their_names(made, tmp_path):
    rivals = [hp.ClassMeans(), hp.LeastSquares(), hp.LinearProbe()]
    run = hp.run(
        made.config,
        method=hp.ClassStatistics(form="contexts", metric=toy_metric()),
        references=[{"method": rival} for rival in rivals],
        sampling={"name": "disjoint", "steps_per_round": 1},
        privacy=hp.PrivacyConfig(epsilon=8, delta=1e-3, audience="public"),
        out=tmp_path / "run",
        progress=False,
    )
    assert [arm.method for arm in run.arms] == ["class_means", "least_squares", "linear_probe", "class_statistics"]
    assert run.config.method.form == "contexts"


def test_a_prompt_is_found_by_the_clients_number_or_name(made):
    first = made.prompt(client="client-0")
    assert first.tensors["context"].shape == (4, 8)
    assert first.classes == made.prompt().classes
    assert "epsilon" in first.privacy
    assert first.privacy in repr(first)
    for name in (0, "client-000", "client 0", "0"):
        assert made.prompt(client=name).path == first.path
    assert hp.load_prompt(first.path).tensors["context"].equal(first.tensors["context"])
    assert not made.prompt().tensors["context"].equal(first.tensors["context"])


def test_a_prompt_fits_its_own_backbone_alone(made):
    assert made.prompt().load_backbone().fingerprint == made.prompt().header.backbone_fingerprint
    assert hp.load_prompt(made.folder, backbone="toy").load_backbone().feature_dim
    with pytest.raises(hp.ConfigError, match="was trained with another backbone"):
        hp.load_prompt(made.folder, backbone="emoji_clip").load_backbone()
    assert hp.load_prompt(made.folder).load_backbone().feature_dim, "the file says which one it is"


def test_a_prompt_that_is_not_there_is_a_data_error(made, tmp_path):
    with pytest.raises(hp.DataError, match=r"There is no prompt client-007 in .*; there are: client-000, .*, global"):
        made.prompt(client=7)
    with pytest.raises(hp.DataError, match="There is no client 'bob'; known: client 0, client 1, client 2"):
        made.prompt(client="bob")
    with pytest.raises(hp.ConfigError, match="is the prompt of one already"):
        hp.load_prompt(made.prompt().path, client=0)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(hp.DataError, match="is no prompt file"):
        hp.load_prompt(tmp_path / "x.safetensors")


def test_a_stopped_run_says_so_and_goes_on(made, tmp_path):
    class Stop(progress.NoProgress):
        def on_round(self, record):
            if record.arm.startswith("dp_fpl"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hp.run(made.config, out=tmp_path / "run", progress=Stop())
    stopped = hp.load(tmp_path / "run")
    assert "not finished" in repr(stopped)
    assert "not finished" in stopped._repr_html_()
    with pytest.raises(hp.DataError, match="is not a finished run"):
        stopped.table()
    done = hp.resume(stopped, runtime={"num_threads": 2})
    assert [arm.local for arm in done.arms] == [arm.local for arm in made.arms]


def test_a_run_needs_an_empty_folder_and_leaves_nothing_if_refused(made, tmp_path):
    with pytest.raises(hp.ResumeError, match="is not empty"):
        hp.run(made.config, out=made.folder)
    with pytest.raises(hp.PrivacyError, match="delta must be below"):
        hp.run(made.config, out=tmp_path / "run", privacy={"delta": 0.5})
    assert not (tmp_path / "run").exists()
    with pytest.raises(hp.ResumeError, match="is not a run folder"):
        hp.resume(tmp_path)
    with pytest.raises(hp.DataError, match="is not a finished run"):
        hp.load(tmp_path).table()
    with pytest.raises(hp.DataError, match="nowhere is not a finished run: there is no such folder"):
        hp.load("nowhere")


def test_a_plan_says_what_a_run_would_guarantee_and_writes_nothing(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = hp.plan(made.config)
    assert {who: held.epsilon for who, held in planned.guarantees.items()} == {
        who: held.epsilon for who, held in made.guarantees.items()
    }
    assert set(planned.noise_multipliers) == {"local", "global"}
    assert planned.guarantees["personal"].statement() in repr(planned)
    assert math.isinf(hp.plan(made.config, privacy={"epsilon": math.inf}).guarantees["public"].epsilon)
    assert not list(tmp_path.iterdir())


def test_a_partition_counts_each_clients_examples(made, tmp_path):
    counts = hp.partition(made.config, out=tmp_path)
    assert counts.by_split["train"].shape == (3, len(counts.class_names))
    assert np.all((counts.by_split["train"] > 0).sum(axis=0) == 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["partition.csv", "partition.png"]


def test_data_info_takes_whatever_names_a_data_set(made):
    info = hp.data_info("toy", num_train=3)
    assert info.dataset.name == "toy"
    assert info.about is None
    assert [one.kind for one in hp.data_info("toy", num_train=3, verify=True).findings] == ["tiny"]
    for data in (made.config, made.config.data, {"name": "toy"}):
        assert hp.data_info(data).dataset.class_names == info.dataset.class_names
    assert hp.data_info().shipped
    assert hp.data_info("caltech101", root="nowhere").about.license
    with pytest.raises(hp.DataError, match="There is nothing to fetch for toy"):
        hp.fetch("toy")


def test_a_report_is_made_of_runs(made, tmp_path):
    page = hp.report(made, tmp_path / "page.html")
    assert "DP-FPL" in page.read_text()
    assert hp.report([made, str(made.folder)], tmp_path / "page2.html").exists()
    with pytest.raises(hp.DataError, match="is a folder"):
        hp.report(made, tmp_path)


def test_a_comparison_shows_itself_and_is_text(made, tmp_path):
    compared = hp.compare([made, made.folder], against="promptfl", scores=["local"])
    console = Console(file=io.StringIO(), width=200)
    console.print(compared)
    for text in (console.file.getvalue(), compared._repr_html_(), repr(compared), compared.text("csv")):
        assert "DP-FPL" in text or "dp_fpl" in text
    assert "delta" in repr(compared)
    assert "─────" in repr(compared), "a table as in a terminal"
    assert r"\begin{tab" in compared.write(tmp_path / "table.tex").read_text()
    with pytest.raises(hp.ConfigError, match=r"name a file that ends in \.md, \.tex, \.csv"):
        compared.write(tmp_path / "table.doc")
    with pytest.raises(hp.ConfigError, match=r"table must be one of .*, got 'score'"):
        hp.compare(made, tables=["score"])
    with pytest.raises(hp.ConfigError, match="score must be one of"):
        hp.compare(made, scores=["locl"])


def test_a_figure_shows_itself_and_is_a_file(made, tmp_path):
    drawn = made.figure("curves", tmp_path / "curves.png")
    assert drawn._repr_svg_().lstrip().startswith("<")
    assert "<svg" in drawn.svg
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert "SVG" in repr(hp.figure(made, kind="clients"))
    with pytest.raises(hp.ConfigError, match="kind must be one of"):
        made.figure("pie")


def test_a_sweep_gives_its_runs_and_says_what_failed(made, tmp_path, monkeypatch):
    monkeypatch.setattr("hushprompt.jobs.sweep.WorkerPool", InlinePool)
    base = {"base": made.config, "settings": {"method": {"name": "zero_shot"}}}
    runs = hp.sweep({**base, "axes": {"seed": [1, 2]}}, out=tmp_path / "seeds", jobs=1)
    assert [run.config.seed for run in runs] == [1, 2]
    with pytest.raises(hp.DataError, match=r"1 of 1 run failed: .*num_clients"):
        hp.sweep({**base, "axes": {"partition.num_clients": [99]}}, out=tmp_path / "clients", jobs=1)


def test_progress_shows_where_somebody_looks(made, tmp_path, monkeypatch, capsys):
    with watching(True) as nobody, watching(False) as silent:
        assert type(nobody) is type(silent) is progress.NoProgress
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with TrainingBars(console) as bars:
        hp.run(made.config, out=tmp_path / "bars", progress=bars)
    assert "3/3 dp_fpl, epsilon 8" in console.file.getvalue()
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda text, display_id: shown.append(text) or Handle(shown))
    hp.run(made.config, out=tmp_path / "lines", progress=NotebookLines())
    assert repr(shown[-1]).splitlines()[-1].startswith("3/3 dp_fpl, epsilon 8: 2/2 rounds, loss ")
    assert isinstance(shown[-1], PlainText)


class Handle:
    def __init__(self, shown):
        self.update = shown.append


def test_noise_and_epsilon_are_each_others_inverse():
    noise = hp.calibrate(2.0, rounds=5, delta=1e-4, sampling_prob=0.1)
    assert set(noise.multipliers) == {"local", "global"}
    assert noise.guarantees["personal"].epsilon == pytest.approx(2.0, rel=1e-3)
    assert noise.guarantees["personal"].statement() in repr(noise)
    again = hp.epsilon(noise, rounds=5, delta=1e-4, sampling_prob=0.1)
    assert again.epsilon == noise.guarantees["personal"].epsilon
    assert hp.epsilon(noise, rounds=5, delta=1e-4, sampling_prob=0.1, audience="public").epsilon <= again.epsilon
    assert hp.epsilon(1.0, rounds=5, method="promptfl").audience == "personal"
