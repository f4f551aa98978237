"""Where noise comes from: secure for somebody's own data, and with a seed a run is called a simulation everywhere."""

import dataclasses
import json
import re
import shutil
import tomllib

import pytest

import hushprompt as hp
from helpers.deployments import Deployment
from helpers.layouts import images
from helpers.made_runs import VALUES, train
from helpers.runs import TOY
from hushprompt.config import parse as configs
from hushprompt.deployment.config import load_server
from hushprompt.errors import PrivacyError
from hushprompt.privacy import statements
from hushprompt.registry import DATASETS
from hushprompt.reporting import roc
from hushprompt.runs import reader, records
from hushprompt.runs.tracking import scalars

MARK = "(simulation)"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of the same settings from a seed and with secure noise."""
    base = tmp_path_factory.mktemp("noise")
    for source in ("seeded", "secure"):
        train(base / source, base / "cache", privacy={**VALUES["privacy"], "noise_source": source})
    return base


def page_of(folder, tmp_path):
    hp.report(hp.load(folder), tmp_path / "page.html")
    return (tmp_path / "page.html").read_text()


def drawn(folder, tmp_path, kind):
    hp.figure(hp.load(folder), tmp_path / "drawn.svg", kind=kind)
    return (tmp_path / "drawn.svg").read_text()


SURFACES = {
    "table of a run": lambda folder, _: repr(hp.load(folder).table()),
    "table in a notebook": lambda folder, _: hp.load(folder)._repr_html_(),
    "repr of a run": lambda folder, _: repr(hp.load(folder)),
    "statement of a run": lambda folder, _: hp.load(folder).statement(),
    "repr of a guarantee": lambda folder, _: repr(hp.load(folder).guarantees["public"]),
    "repr of a prompt": lambda folder, _: repr(hp.load(folder).prompt(client=0)),
    "statement of a prompt": lambda folder, _: hp.load(folder).prompt().privacy,
    "repr of a plan": lambda folder, _: repr(hp.plan(hp.load(folder).config)),
    "comparison as Markdown": lambda folder, _: hp.compare(hp.load(folder)).text("markdown"),
    "comparison as LaTeX": lambda folder, _: hp.compare(hp.load(folder)).text("latex"),
    "comparison by budget": lambda folder, _: hp.compare(hp.load(folder), columns="epsilon").text("markdown"),
    "differences": lambda folder, _: hp.compare(hp.load(folder), against="promptfl", tables=["local-differences"]).text(
        "markdown"
    ),
    "head and sections of a page": page_of,
    "epsilon over rounds": lambda folder, tmp_path: drawn(folder, tmp_path, "epsilon"),
    "budgets": lambda folder, tmp_path: drawn(folder, tmp_path, "budget"),
}


@pytest.mark.parametrize("surface", SURFACES)
def test_beside_every_epsilon_of_a_seeded_run_stands_that_it_is_a_simulation(runs, tmp_path, surface):
    text = SURFACES[surface](runs / "seeded", tmp_path)
    assert MARK in text
    assert not re.search(r"epsilon = [\d.e+-]+ at", text)
    assert MARK not in SURFACES[surface](runs / "secure", tmp_path)


def words_of(svg):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", svg))


def test_curves_of_attacks_say_it_too(tmp_path):
    rates = {"fpr": [0, 0.1, 1], "tpr": [0, 0.4, 1]}
    attacks = [{"attack": "LiRA", "auc": {"value": 0.6}, "roc": rates}]
    for source in ("seeded", "secure"):
        audience = {"audience": "public", "attacks": attacks, "claimed": {"epsilon": 2.0, "noise_source": source}}
        roc.write_roc({"budgets": [{"arm": "dp_fpl, epsilon 2", "audiences": [audience]}]}, tmp_path / "roc.svg")
        said = words_of((tmp_path / "roc.svg").read_text())
        assert ("that of a simulation" in said) == (source == "seeded")


def test_commands_say_it_too(runs, hush):
    for command in ("show", "privacy", "compare"):
        said = hush(command, runs / "seeded").out
        assert MARK in said
        assert not re.search(r"epsilon = [\d.e+-]+ at", said)
        assert MARK not in hush(command, runs / "secure").out
    assert ",simulation," in hush("compare", runs / "seeded", "--format=csv").out
    assert ",secure," in hush("compare", runs / "secure", "--format=csv").out


def test_a_page_says_it_in_its_head_tables_and_captions(runs, tmp_path):
    page = page_of(runs / "seeded", tmp_path)
    assert re.search(r'class="subtitle">[^<]*simulation', page)
    assert '<th scope="col" role="columnheader">epsilon (simulation)</th>' in page
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert sum("that of a simulation" in caption for caption in captions) >= 5
    assert re.search(r'class="subtitle">[^<]*secure noise', page_of(runs / "secure", tmp_path))


@pytest.mark.parametrize("kind", ["curves", "budget", "clients", "tradeoff", "epsilon"])
def test_every_figure_with_an_epsilon_says_it_in_its_file(runs, tmp_path, kind):
    note = "Every epsilon here is that of a simulation"
    assert note in drawn(runs / "seeded", tmp_path, kind)
    assert note not in drawn(runs / "secure", tmp_path, kind)


def test_differences_say_it(runs, tmp_path):
    for source in ("seeded", "secure"):
        folder = shutil.copytree(runs / source, tmp_path / source)
        assert "simulation" not in repr(hp.verify(folder))
        (folder / "ledger.jsonl").unlink()
        assert ("that of a simulation" in repr(hp.verify(folder))) == (source == "seeded")


def test_of_both_kinds_together_each_says_what_it_is(runs):
    text = hp.compare([runs / "seeded", runs / "secure"]).text("markdown")
    rows = [line for line in text.splitlines() if line.startswith("| DP-FPL") and "| inf" not in line]
    assert [MARK in row for row in rows] == ["seeded" in row for row in rows]
    assert {"seeded" in row for row in rows} == {True, False}


def test_a_prompt_file_says_it_itself_and_an_old_one_that_it_does_not(runs):
    prompt = hp.load(runs / "seeded").prompt()
    assert prompt.header.noise_source == "seeded"
    old = dataclasses.replace(prompt.header, noise_source=None, privacy="epsilon = 2 at ...")
    assert "simulation" in dataclasses.replace(prompt, header=old).privacy


def bare_epsilons(value, known=()):
    """Where an epsilon stands in plain values without delta and noise source beside or around it."""
    if isinstance(value, dict):
        known = {*known, *value}
        is_bare = value.get("epsilon") is not None and not {"delta", "noise_source"} <= known
        inner = [one for name, one in value.items() if name != "settings"]  # of the config, under dotted keys
        return [value] * is_bare + [found for one in inner for found in bare_epsilons(one, known)]
    return [found for one in value for found in bare_epsilons(one, known)] if isinstance(value, list) else []


def test_no_file_has_an_epsilon_without_delta_and_noise_source(runs, tmp_path):
    deployed = Deployment({**TOY, "training": {"num_rounds": 2}}, tmp_path)
    deployed.serve()
    seen = set()
    for folder in (runs / "seeded", runs / "secure", *map(deployed.folder, ("server", "ann"))):
        for path in folder.rglob("*.json*"):
            for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
                assert bare_epsilons(json.loads(line)) == [], path
                seen |= {path.name} if '"epsilon"' in line else set()
    assert seen >= {"records.jsonl", "summary.json", "privacy.json", "ledger.jsonl", "identity.json"}
    for one in (hp.load(runs / "seeded").records[-1], hp.load(runs / "seeded").arms[-1]):
        assert "noise_source='seeded'" in repr(one)
        assert "delta=0.001" in repr(one)


def test_metrics_of_a_seeded_run_are_called_those_of_a_simulation(runs):
    names = {source: set(scalars(hp.load(runs / source).records[-1])) for source in ("seeded", "secure")}
    assert "privacy/simulation_epsilon_public" in names["seeded"]
    assert "privacy/epsilon_public" in names["secure"]


def test_records_hold_the_resolved_source(runs):
    for source in ("seeded", "secure"):
        config = tomllib.loads((runs / source / "config.toml").read_text())
        summary = json.loads((runs / source / "summary.json").read_text())
        assert config["privacy"]["noise_source"] == summary["arms"][-1]["noise_source"] == source
        assert summary["arms"][0]["noise_source"] is None  # zero-shot: no epsilon
        guarantee = hp.load(runs / source).guarantees["public"]
        assert guarantee.noise_source == source


def test_records_of_older_versions_are_those_of_simulations(runs):
    record = records.read_record(runs / "seeded" / "privacy.json")
    for arm in record["arms"]:
        for held in arm["audiences"].values():
            del held["noise_source"]
            held["statement"] = held["statement"].replace(f" {MARK}", "")
    told = statements.with_noise_source(record)
    assert told["arms"][-1]["audiences"]["public"]["statement"].startswith("epsilon = ")
    assert MARK in told["arms"][-1]["audiences"]["public"]["statement"]


# Which data make secure noise the default.


@pytest.mark.parametrize("name", DATASETS.own_names())
def test_published_benchmarks_are_simulations_and_every_reader_of_own_data_is_not(name):
    cls = DATASETS.get(name)
    assert getattr(cls, "is_public", False) == cls.__module__.startswith("hushprompt.data.sets.")


def config_on(data, **sections):
    return configs.resolve(configs.parse(TOY), {"data": data, **sections})


def test_own_data_have_secure_noise_unless_the_config_says_otherwise():
    assert configs.parse(TOY).privacy.noise_source == "seeded"
    assert config_on({"name": "folder", "root": "mine"}).privacy.noise_source == "secure"
    assert hp.RunConfig(data={"name": "folder", "root": "mine"}).privacy.noise_source == "secure"
    seeded = config_on({"name": "folder", "root": "mine"}, privacy={"noise_source": "seeded"})
    assert seeded.privacy.noise_source == "seeded"
    assert configs.resolve(seeded, {"training": {"num_rounds": 1}}).privacy.noise_source == "seeded"
    assert configs.resolve(configs.parse(TOY), {"privacy": {"noise_source": "secure"}}).privacy.noise_source == "secure"


def test_a_data_set_of_another_package_is_somebodys_own_unless_it_says_that_it_is_public():
    @dataclasses.dataclass(frozen=True)
    class Ours:
        def load(self):
            """Nothing is loaded here."""

    @dataclasses.dataclass(frozen=True)
    class Published(Ours):
        is_public = True

    try:
        for cls in (Ours, Published):
            hp.register.dataset(cls.__name__)(cls)
        assert config_on({"name": "Ours"}).privacy.noise_source == "secure"
        assert config_on({"name": "Published"}).privacy.noise_source == "seeded"
    finally:
        for cls in (Ours, Published):
            DATASETS._classes.pop(cls.__name__)


def test_a_run_on_own_images_is_secure_from_python_and_from_the_command_line(hush, tmp_path):
    images(tmp_path / "mine", ["ant", "bee", "cat"], 8)
    data = {"name": "folder", "root": str(tmp_path / "mine")}
    values = {**TOY, "data": data, "partition": {"name": "iid", "num_clients": 2}, "training": {"num_rounds": 1}}
    run = hp.run(values, out=tmp_path / "python", progress=False)
    settings = ["backbone.name=toy", "partition={name='iid', num_clients=2}", "training.num_rounds=1",
                "sampling.sampling_prob=0.5", "privacy.delta=1e-3", "references=[]", "data.name=folder",
                f"data.root={tmp_path / 'mine'}", "method={name='dp_fpl', num_ctx=4, rank=2}"]  # fmt: skip
    done = hush("run", *(f"--set={setting}" for setting in settings), f"--out={tmp_path / 'command'}")
    assert MARK not in done.out + repr(run)
    for folder in ("python", "command"):
        assert hp.load(tmp_path / folder).config.privacy.noise_source == "secure"
    assert reader.read(tmp_path / "command").config["privacy"]["noise_source"] == "secure"


def test_a_stored_config_without_a_source_is_from_when_all_noise_was_seeded(tmp_path):
    config = config_on({"name": "folder", "root": "mine"}, privacy={"noise_source": "seeded"})
    (tmp_path / "config.toml").write_text(config.to_toml().replace('noise_source = "seeded"\n', ""))
    assert configs.load(tmp_path / "config.toml").privacy.noise_source == "secure"  # a config to run
    assert hp.load(tmp_path).config.privacy.noise_source == "seeded"  # a run that was made


def test_a_federation_is_secure_whatever_its_data(tmp_path):
    (tmp_path / "run.toml").write_text('backbone = { name = "toy" }\ndata = { name = "toy" }\n'
                                       'partition = { name = "iid" }\nsampling = { name = "poisson" }\n'
                                       'method = { name = "dp_fpl" }\n')  # fmt: skip
    (tmp_path / "server.toml").write_text(
        '[federation]\nname = "trial"\nrun = "run.toml"\nfolder = "run"\nclients = ["ann"]\n'
    )
    assert load_server(tmp_path / "server.toml").run.privacy.noise_source == "secure"


def test_a_method_for_comparison_runs_in_simulations_alone():
    method = {"name": "dp_fpl_released", "num_ctx": 4, "rank": 2}
    hp.plan({**TOY, "method": method})
    with pytest.raises(PrivacyError, match=r'Set privacy\.noise_source = "seeded"'):
        hp.plan({**TOY, "method": method, "privacy": {**TOY["privacy"], "noise_source": "secure"}})
