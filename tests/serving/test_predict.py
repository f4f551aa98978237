"""Predictions of a run's prompts are those of its evaluation, whatever the method; files give what they can."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hushprompt as hp
from helpers import tiny_models
from helpers.asgi import once
from helpers.runs import TOY, Silent
from helpers.served import long_transparency, sound, toy_app
from helpers.toy_metric import toy_metric
from hushprompt.data.sets.toy import ToyData
from hushprompt.errors import ConfigError, DataError
from hushprompt.registry import METHODS

SETTINGS = {
    "class_statistics": [{"class_prior": 3.0}, {"form": "contexts"}, {"form": "embeddings"}],
    "dp_fpl": [{"rank": 2}, {"rank": 2, "is_class_specific": True}, {"rank": 2, "name_position": "middle"}],
    "promptfl": [{"name_position": "front"}],
    "fedpgp": [{"rank": 2}],
    "dp_fpl_released": [{"rank": 2}],
}
"""Of the methods whose defaults do not fit the toy model, or say too little."""


def cases():
    for name in METHODS.names():
        for settings in SETTINGS.get(name, [{}]):
            fields = METHODS.get(name).__dataclass_fields__
            few = {"num_ctx": 4} if "num_ctx" in fields else {}
            more = {"metric": toy_metric()} if name == "class_statistics" else {}
            yield {"name": name, **few, **more, **settings}


def said(method):
    """The settings that tell two cases apart, and no folder of this process."""
    return {key: value for key, value in method.items() if key not in ("metric", "num_ctx")}


def confused(run):
    """How often evaluation took which class for which, on the clients' own images."""
    written = json.loads((run.folder / "confusion" / "arm-000.json").read_text())["local"]
    return {(true, int(label)): count for true, row in enumerate(written) for label, count in row.items()}


def made(folder, **sections):
    runtime = {"cache_dir": str(folder / "cache")}
    config = {**TOY, "training": {"num_rounds": 2}, "evaluation": {"split": "test"}, "runtime": runtime, **sections}
    return hp.run(config, out=folder / "run", progress=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made(tmp_path_factory.mktemp("predict"))


@pytest.fixture
def pictures(tmp_path):
    """Eight images of the toy data, by name, and what they are."""
    data = ToyData().load()
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, image in enumerate(data.splits["test"].read(np.arange(8))):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("method", list(cases()), ids=lambda method: "-".join(map(str, said(method).values())))
def test_a_file_predicts_what_evaluation_predicted(tmp_path, method):
    done = made(tmp_path, method=method)
    kept = sorted(path.stem for path in (done.folder / "prompts").glob("*.safetensors"))
    if not METHODS.get(method["name"])(**{k: v for k, v in method.items() if k != "name"}).channels:
        assert kept == [], "nothing was trained"
        return
    assert kept, "a method that trains publishes a prompt"
    names = done.prompt(0 if "client-000" in kept else None).classes
    taken = Counter()
    for client in done.arms[-1].per_client:
        number = client["client_id"]
        own = number if f"client-{number:03d}" in kept else None
        rows = list(hp.predict(done.folder, client=own, split="test", top=1))
        partition = json.loads((done.folder / "partition.json").read_text())
        held = [row for row in rows if str(names.index(row.truth)) in partition["test"][number]]
        taken.update((names.index(row.truth), names.index(row.label)) for row in held)
        assert np.mean([row.label == row.truth for row in held]) == pytest.approx(client["local"])
    assert taken == confused(done)


def test_files_give_what_they_can(run, pictures):
    (pictures / "broken.png").write_bytes(b"no image")
    (pictures / ".hidden.png").write_bytes(b"no image")
    (pictures / "deeper").mkdir()
    (pictures / "0.png").rename(pictures / "deeper" / "0.png")
    rows = list(hp.predict(run.prompt(1), pictures, top=2, batch_size=3))
    assert [row.file for row in rows] == [
        str(pictures / name) for name in [*(f"{n}.png" for n in range(1, 8)), "broken.png"]
    ]
    assert "broken.png cannot be read" in rows[-1].error
    assert rows[-1].label is None
    assert all(row.label == row.top[0][0] and len(row.top) == 2 and row.error is None for row in rows[:-1])
    deep = list(hp.predict(run.prompt(1), pictures, recursive=True))
    assert str(pictures / "deeper" / "0.png") in [row.file for row in deep]
    one = run.prompt(1).predict(pictures / "1.png", top=2)
    assert [name for name, _ in one.top] == [name for name, _ in rows[0].top]
    assert one.probability == pytest.approx(rows[0].probability, abs=1e-6)


def test_files_of_a_split_are_what_the_split_is(run, pictures):
    rows = list(hp.predict(run.folder, sorted(pictures.iterdir()), client=1))
    for row, held in zip(rows, hp.predict(run.folder, split="test", client=1), strict=False):
        assert (row.label, held.file) == (held.label, f"test/{Path(row.file).stem}")
        np.testing.assert_allclose([share for _, share in row.top], [share for _, share in held.top], atol=1e-5)


def test_a_prompt_of_clap_takes_sounds(tmp_path):
    pytest.importorskip("transformers")
    sounds, model = tmp_path / "sounds", tmp_path / "model"
    model.mkdir()
    tiny_models.clap(model)
    for rate, name in ((4000, "gong"), (8000, "bell"), (12_000, "whistle")):
        (sounds / name).mkdir(parents=True)
        for tenths in range(1, 11):
            (sounds / name / f"{tenths}.wav").write_bytes(sound(tenths / 10, rate=rate))
    backbone = {"name": "clap", "model": str(model), "template": "a {}"}
    data = {"name": "folder", "root": str(sounds), "sampling_rate": 8000}
    clients = {"name": "iid", "num_clients": 2}
    method = {"name": "promptfl", "num_ctx": 2}
    run = made(tmp_path, backbone=backbone, data=data, partition=clients, method=method)
    prompt, held = run.prompt(), list(hp.predict(run.folder, split="test"))
    assert Counter((prompt.classes.index(row.truth), prompt.classes.index(row.label)) for row in held) == confused(run)
    (sounds / "bell" / "broken.wav").write_bytes(b"RIFF")
    rows = list(hp.predict(prompt, sounds, recursive=True))
    assert [Path(row.file).name for row in rows if row.error] == ["broken.wav"]
    for row in held:
        same = [each.probability for each in rows if Path(each.file).parent.name == row.truth and not each.error]
        assert min(abs(row.probability - share) for share in same) < 1e-6
    one = sounds / "bell" / "3.wav"
    asked = once(toy_app(prompt), "POST", "/v1/predict", one.read_bytes())
    assert asked.json["label"] == prompt.predict(one).label


def test_an_image_is_the_same_however_it_is_given(run, pictures):
    path, prompt = pictures / "1.png", run.prompt(1)
    array = np.asarray(Image.open(path))
    ways = [path, str(path), path.read_bytes(), Image.open(path), array]
    probabilities = prompt.probabilities(ways)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, np.repeat(probabilities[:1], 5, axis=0), atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert prompt.probabilities([]).shape == (0, 6)
    assert prompt.predict(array).label == prompt.predict([array])[0].label
    for wrong in (array.astype(float), array[..., :2], np.zeros((0, 3, 3), np.uint8), 7):
        with pytest.raises(DataError, match=r"is not what this backbone takes: image, as uint8 \[h, w, 3\]"):
            prompt.predict(wrong)


def test_a_linear_prompt_is_a_classifier_of_arrays(run, pictures):
    prompt = run.prompt(1)
    weight, bias, scale = prompt.classifier()
    features = prompt.image_features([pictures / "1.png", pictures / "2.png"]).numpy()
    logits = scale * features @ weight.T + bias
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, prompt.probabilities([pictures / "1.png", pictures / "2.png"]), atol=1e-5)


def test_a_named_file_that_is_missing_is_told_and_the_others_are_not_lost(run, pictures, hush):
    dangling = pictures / "dangling.png"
    dangling.symlink_to("nowhere.png")
    rows = list(hp.predict(run.folder, [pictures / "none.png", pictures / "1.png", dangling, pictures / "2.png"]))
    assert [row.error is None for row in rows] == [False, True, False, True]
    assert "No such file" in rows[0].error
    odd = os.fsencode(pictures) + b"/odd\xff.png"
    with open(odd, "wb") as file:
        file.write((pictures / "1.png").read_bytes())
    hush("predict", run.folder, os.fsdecode(odd), "--format", "jsonl", "-o", "odd.jsonl")
    assert "odd\\udcff.png" in Path("odd.jsonl").read_text()


def test_what_pillow_stumbles_over_is_an_error_of_that_image(run, pictures):
    (pictures / "palette.png").write_bytes(long_transparency())
    (pictures / "folder.png").mkdir()
    rows = list(hp.predict(run.folder, [pictures / "palette.png", pictures / "1.png", pictures / "none"]))
    assert "palette.png cannot be read" in rows[0].error
    assert rows[1].error is None
    for wrong in (pictures / "folder.png", Path("/nope.png"), Image.new("RGB", (0, 4))):
        with pytest.raises(DataError):
            run.prompt(1).predict(wrong)
    with pytest.raises(ConfigError, match=r"Give a list of images"):
        run.prompt(1).probabilities("1.png")


def test_zero_shot_stands_beside_it(run, pictures):
    row = next(hp.predict(run.folder, pictures / "1.png", client=1, compare="zero_shot"))
    before = run.prompt(1).zero_shot()
    assert before.privacy == "Nothing was trained: no private data was used."
    assert row.compared == before.predict(pictures / "1.png")
    assert next(hp.predict(run.folder, pictures / "1.png", arm="zero_shot")).label == row.compared.label
    with pytest.raises(DataError, match="is the prompt of dp_fpl, epsilon 8; of 'promptfl' none was kept"):
        hp.predict(run.folder, pictures, arm="promptfl")


def test_other_names_go_into_the_same_context(run, pictures):
    row = next(hp.predict(run.folder, pictures / "1.png", classes=["zebra", "cat"], top=9))
    assert {name for name, _ in row.top} == {"zebra", "cat"}
    same = run.prompt().with_classes(run.prompt().classes)
    np.testing.assert_allclose(
        same.probabilities([pictures / "1.png"]), run.prompt().probabilities([pictures / "1.png"]), atol=1e-5
    )
    for names, message in [(["cat", "cat"], "must differ"), ([], "one at least"), ("cat", "one at least")]:
        with pytest.raises(ConfigError, match=message):
            run.prompt().with_classes(names)
    with pytest.raises(ConfigError, match=r"The prompt of class 'very .* needs \d+ tokens"):
        run.prompt().with_classes(["very " * 99 + "long"])
    before = run.prompt().zero_shot()
    assert (before.header.epsilon, before.header.delta) == (None, None)
    assert before.with_classes(["zebra", "cat"]).predict(pictures / "1.png").label in ("zebra", "cat")
    assert next(hp.predict(run.folder, pictures / "1.png", arm="zero_shot", classes=["zebra"])).label == "zebra"


def test_a_context_for_each_class_takes_no_others(tmp_path):
    done = made(tmp_path, method={"name": "promptfl", "num_ctx": 4, "is_class_specific": True})
    with pytest.raises(DataError, match="no context that is the same for all classes"):
        done.prompt().with_classes(["zebra"])


def test_wrong_use_is_told_at_once(run, pictures, tmp_path):
    for arguments, message in [
        ({}, "Say what to predict"),
        ({"examples": pictures, "split": "test"}, "files or a split, not both"),
        ({"split": "training"}, "There is no split 'training' in toy; there are: train, validation, test"),
        ({"examples": pictures, "top": 0}, "top must be > 0"),
        ({"examples": pictures, "threshold": 2.0}, "threshold"),
        ({"examples": pictures, "compare": "random"}, 'compare is "zero_shot" or a prompt'),
        ({"examples": pictures, "client": "nobody"}, "There is no client 'nobody'; known: client 0"),
        ({"examples": pictures, "backbone": "emoji_clip"}, "was trained with another backbone"),
    ]:
        with pytest.raises((ConfigError, DataError), match=message):
            list(hp.predict(run.folder, **{"examples": (), **arguments}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no file that ends in"):
        hp.predict(run.folder, tmp_path / "empty")


def test_progress_is_told(run, pictures):
    seen = Silent()
    assert len(list(hp.predict(run.folder, pictures, batch_size=3, progress=seen))) == 8
    assert seen.encoded == {"predicting"}


def test_the_command_writes_lines_tables_and_text(run, pictures, hush, monkeypatch):
    (pictures / "broken.png").write_bytes(b"no image")
    done = hush(
        "predict", run.folder, pictures, "--client", "1", "--format", "jsonl", "--compare", "zero_shot", ok=False
    )
    assert done.code == 3
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [set(line) >= {"file", "label", "probability", "top", "error"} for line in lines] == [True] * 9
    assert lines[0]["zero_shot"]["label"]
    assert "8 predictions. 1 file could not be read" in done.err
    assert done.err.count("epsilon = ") == 1, "the promise stands once"
    hush("predict", run.folder, pictures / "1.png", "--format", "csv", "-o", "out.csv")
    table = Path("out.csv").read_text().splitlines()
    assert table[0] == "file,label,probability,error,truth,zero_shot,zero_shot_probability"
    assert len(table) == 2
    text = hush("predict", run.folder, "--split", "test", "--client", "0", "--top", "1").out
    assert text.startswith("test/0 (ant)  ")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((pictures / "1.png").read_bytes())))
    assert hush("predict", run.folder, "-", "--threshold", "1").out.startswith("-  -  ")
    assert hush("predict", run.folder, ok=False).code == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_cannot_be_written_is_named_with_what_to_do(run, pictures, hush):
    Path("folder").mkdir()
    for out, said in (
        ("folder", "Is a directory: folder. A folder stands where a file is wanted: name a file in it"),
        ("/dev/full", "No space left on device: /dev/full. The disk is full: free some space, or write elsewhere.\n"),
    ):
        done = hush("predict", run.folder, pictures / "1.png", "-o", out, ok=False)
        assert f"hushprompt: {said}" in done.err, "and nothing is said of runs, or of a temporary file"
    assert not list(Path("folder").iterdir())


def test_no_name_of_a_file_commands_the_terminal(run, pictures, hush):
    evil = pictures / "a\x1b[2Jb\n.png"
    evil.write_bytes((pictures / "1.png").read_bytes())
    out = hush("predict", run.folder, evil).out
    assert "\x1b" not in out
    assert out.count("\n") == 1


def test_who_only_predicts_imports_no_accountant(run, pictures):
    code = (
        "import sys, hushprompt as hp\n"
        f"next(hp.predict({str(run.folder)!r}, {str(pictures / '1.png')!r}, client=1))\n"
        "print(sorted({'dp_accounting', 'scipy', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "[]"
