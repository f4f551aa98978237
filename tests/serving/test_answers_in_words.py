"""Questions that a prompt of a generative model answers in words: from Python, by the command, over HTTP."""

import asyncio
import base64
import csv
import dataclasses
import io
import json
import time
from pathlib import Path

import pytest

import hushprompt as hp
from helpers.asgi import ask, once, started
from helpers.served import image, sound, toy_app, toy_prompt
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError, DataError
from hushprompt.registry import BACKBONES
from hushprompt.serving.replies import PromptAnswers

ANSWER = ("POST", "/v1/answer")
QUESTION = "What color is it?"


@pytest.fixture(scope="module")
def prompt(generative_prompt):
    return generative_prompt


@pytest.fixture
def pictures(tmp_path):
    """Two pictures and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in (0, 1):
        (folder / f"{seed}.png").write_bytes(image(seed=seed))
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def body(data, question=QUESTION, **more):
    return json.dumps({"image": base64.b64encode(data).decode(), "question": question, **more}).encode()


def test_an_answer_is_that_of_the_model_for_one_or_several(prompt, pictures):
    paths = [pictures / "0.png", pictures / "1.png"]
    said = prompt.answer(paths, QUESTION, max_tokens=5)
    media, context = prompt.image_features(paths), prompt.tensors["context"]
    assert said == [each.text for each in prompt.model.answers_of_each([context], media, [QUESTION] * 2, 5)[0]]
    assert prompt.answer(paths[1], QUESTION, max_tokens=5) == said[1]
    own = prompt.model.how_asked[0]
    assert prompt.answer(paths[0]) == prompt.answer(paths[0], own)
    assert len({said[0], prompt.answer(paths[0], max_tokens=5), prompt.zero_shot().answer(paths[0], QUESTION)}) == 3
    with pytest.raises(ConfigError, match=r"the model takes 512\. Use a smaller num_ctx, or a shorter question"):
        prompt.answer(paths[0], "why? " * 200)
    with pytest.raises(ConfigError, match="max_tokens must be"):
        prompt.answer(paths[0], max_tokens=0)


def test_a_folder_is_answered_with_errors_in_their_places(prompt, pictures):
    rows = list(hp.predict(prompt, pictures, question=QUESTION, max_tokens=4, compare="zero_shot"))
    first = pictures / "0.png"
    assert rows[0].answer == prompt.answer(first, QUESTION, max_tokens=4)
    assert rows[0].compared_answer == prompt.zero_shot().answer(first, QUESTION, max_tokens=4)
    assert (rows[0].label, rows[0].top) == (None, ())
    assert "broken.png cannot be read" in rows[2].error


def test_the_command_writes_answers_in_three_formats(prompt, pictures, hush, monkeypatch):
    monkeypatch.setattr("hushprompt.api.predicting.load_prompt", lambda *args, **kwargs: prompt)
    asked = ("predict", "run", pictures, "--question", QUESTION, "--max-tokens", 4, "--compare", "zero_shot")
    wanted = prompt.answer(pictures / "0.png", QUESTION, max_tokens=4)
    before = prompt.zero_shot().answer(pictures / "0.png", QUESTION, max_tokens=4)
    hush(*asked, "--format", "jsonl", "-o", "out.jsonl", ok=False)
    lines = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {
        "file": str(pictures / "0.png"), "question": QUESTION, "answer": wanted, "is_complete": False, "error": None,
        "zero_shot": before,
    }  # fmt: skip
    assert (lines[2]["answer"], "cannot be read" in lines[2]["error"]) == (None, True)
    hush(*asked, "--format", "csv", "-o", "out.csv", ok=False)
    table = list(csv.DictReader(io.StringIO(Path("out.csv").read_text(encoding="utf-8"), newline="")))
    assert (table[0]["answer"], table[0]["zero_shot"], table[2]["answer"]) == (wanted, before, "")
    assert (table[0]["is_complete"], table[2]["is_complete"]) == ("False", "")
    done = hush(*asked, ok=False)
    assert f"{wanted}  (cut off)  zero-shot: " in done.out.splitlines()[0]
    assert prompt.privacy in done.err


def test_a_prompt_of_two_towers_answers_no_question(tmp_path, hush):
    toy = toy_prompt(tmp_path)
    (tmp_path / "one.png").write_bytes(image())
    with pytest.raises(ConfigError, match=r"answers no question in words\. Leave the question out"):
        toy.answer(tmp_path / "one.png", QUESTION)
    done = hush("predict", "prompts", "one.png", "--question", QUESTION, ok=False)
    assert "answers no question in words" in done.err
    app = toy_app(toy)
    refused = once(app, *ANSWER, body(image()))
    assert (refused.status, "ask it for the class of an image (POST /v1/predict)" in refused.json["error"]) == (
        404,
        True,
    )
    assert once(app, "GET", "/v1/model").json["in_words"] is None


def test_the_server_answers_as_the_prompt_does(prompt):
    app, data = toy_app(prompt), image()

    async def run():
        async with started(app):
            first = await ask(app, *ANSWER, body(data, compare="zero_shot", max_tokens=5))
            return first, await ask(app, *ANSWER, body(data, "")), await ask(app, "GET", "/v1/model"), await ask(
                app, "GET", "/metrics"
            ), await ask(app, "POST", "/v1/predict", data)  # fmt: skip

    first, default, about, counts, classes = asyncio.run(run())
    assert first.json["answer"] == prompt.answer(data, QUESTION, max_tokens=5)
    assert first.json["zero_shot"] == prompt.zero_shot().answer(data, QUESTION, max_tokens=5)
    assert first.json["is_complete"] is False
    assert first.json["milliseconds"] > 0
    assert default.json["answer"] == prompt.answer(data)
    assert "zero_shot" not in default.json
    assert about.json["in_words"] == {
        "question": "What is shown in this picture?", "characters": 500, "tokens": 64,
    }  # fmt: skip
    assert about.json["privacy"] == prompt.privacy
    assert b"hushprompt_answers_total 2" in counts.body
    assert classes.json["label"] == prompt.predict(data).label


def test_what_is_too_much_or_wrong_is_refused_in_a_sentence(prompt):
    app, data = toy_app(prompt, body_bytes=10_000), image()
    coded = base64.b64encode(data).decode()
    cases = [
        (body(data, "why " * 200), 413, "The question is longer than 500 characters."),
        (body(data, "why <end_of_utterance>"), 400, "which the model does not read as words"),
        (body(data, max_tokens=65), 400, "max_tokens must be a number from 1 to 64."),
        (body(data, max_tokens=0), 400, "max_tokens must be a number from 1 to 64."),
        (body(data, max_tokens="5"), 400, "Expected `int`, got `str`"),
        (body(data, url="http://x"), 400, "unknown field `url`"),
        (body(data, compare="other"), 400, "Invalid enum value"),
        (body(data, sound=coded), 400, "The body must have image, in base64."),
        (body(b""), 400, "The body must have image, in base64."),
        (b'{"image": "***"}', 400, "Invalid base64"),
        (b'{"question": "\\ud800"}', 400, "is not JSON"),
        (b"no json", 400, "is not JSON"),
        (b"[" * 5000, 400, "is not JSON"),
        (body(b"GIF89a"), 415, "no image that can be read"),
        (body(data[:-40]), 415, "cannot be read"),
        (body(bytes(9000)), 413, "larger than 10,000 bytes"),
    ]

    async def run():
        async with started(app):
            found = [await ask(app, *ANSWER, sent) for sent, _, _ in cases]
            in_address = await ask(app, "POST", f"/v1/answer?question={QUESTION[:4]}", body(data))
            return [*found, in_address, await ask(app, "GET", "/v1/answer")]

    *found, in_address, asked_wrongly = asyncio.run(run())
    for answer, (_, status, words) in zip(found, cases, strict=True):
        assert (answer.status, words in answer.json["error"]) == (status, True), answer.json
    assert in_address.status == 400
    assert asked_wrongly.status == 405


def test_a_model_that_hears_is_asked_about_a_sound(prompt, tmp_path):
    pytest.importorskip("soundfile")
    from helpers import tiny_generative

    model = str(tiny_generative.write("qwen2_audio", tmp_path / "qwen2_audio"))
    backbone = BACKBONES.get("qwen2_audio")(model=model).load()
    header = dataclasses.replace(prompt.header, backbone_fingerprint=backbone.fingerprint, modality="audio")
    hears = dataclasses.replace(prompt, header=header, backbone=backbone)
    coded = base64.b64encode(sound(rate=8000)).decode()
    question = "what"
    found = once(toy_app(hears), *ANSWER, json.dumps({"sound": coded, "question": question}).encode())
    assert found.json["answer"] == hears.answer(sound(rate=8000), question)
    refused = once(toy_app(hears), *ANSWER, json.dumps({"image": coded}).encode())
    assert (refused.status, refused.json["error"]) == (400, "The body must have sound, in base64.")


class Slow(PromptAnswers):
    """Says words as long as somebody waits: one that went on would keep the server from ending."""

    def in_words(self, questions):
        (question,) = questions
        while question.is_wanted():
            time.sleep(0.005)
        return super().in_words(questions)


def test_time_and_queue_are_bounded_and_nobodys_answer_is_not_computed(prompt):
    app = toy_app(prompt, answers=Slow, answer_seconds=1.0, answer_queue=2)

    async def run():
        async with started(app):
            waiting = []
            for counts in (b"answers_total 1\n", b"answer_queue 1\n", b"answer_queue 2\n"):
                waiting.append(asyncio.create_task(ask(app, *ANSWER, body(image()))))
                async with asyncio.timeout(10):
                    while counts not in (await ask(app, "GET", "/metrics")).body:
                        await asyncio.sleep(0.01)
            full = await ask(app, *ANSWER, body(image()))
            classes = await ask(app, "POST", "/v1/predict", image())
            return full, classes, [await each for each in waiting]

    full, classes, late = asyncio.run(run())
    assert (full.status, full.headers["retry-after"]) == (503, "1")
    assert classes.status == 200, "questions do not hold up what needs no words"
    assert {(each.status, each.json["error"]) for each in late} == {
        (503, "No answer within 1 seconds. Ask for fewer tokens (max_tokens).")
    }


@pytest.fixture(scope="module")
def open_run(tmp_path_factory, generative_prompt):
    """A run on questions: ten pictures of two clients."""
    folder = tmp_path_factory.mktemp("open")
    lines = []
    for at in range(10):
        (folder / f"{at}.png").write_bytes(image(size=(32, 32), seed=at))
        asked = ["what is the picture", "is it the ox or the dog"][at // 2 % 2]
        lines.append({"image": f"{at}.png", "question": asked, "answers": ["dog", "the cat"], "client": f"c{at % 2}"})
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "backbone": {"name": "smolvlm", "model": generative_prompt.load_backbone().config.model},
        "method": {"name": "dp_fpl", "num_ctx": 3, "rank": 1}, "partition": {"name": "by_client"},
        "data": {"name": "questions", "file": str(folder / "list.jsonl")}, "references": [],
        "sampling": {"name": "poisson", "sampling_prob": 0.5}, "privacy": {"epsilon": 8.0, "delta": 1e-3},
        "training": {"num_rounds": 1}, "evaluation": {"max_answer_tokens": 3, "split": "test"},
        "runtime": {"cache_dir": str(folder / "cache")},
    }  # fmt: skip
    return hp.run(config, out=folder / "run", progress=False)


def test_a_run_on_questions_is_asked_its_own(open_run, hush):
    rows = list(hp.predict(open_run.folder, client=1, split="test", compare="zero_shot"))
    asked = configs.load_stored(open_run.folder).data.load().splits["test"]
    assert [(row.question, row.true_answers) for row in rows] == list(zip(asked.questions, asked.answers, strict=True))
    own = [row.is_right for row, client in zip(rows, asked.clients, strict=True) if client == 1]
    assert sum(own) / len(own) == open_run.arms[-1].per_client[1]["local"]
    assert all(row.compared_answer is not None for row in rows)
    hush("predict", open_run.folder, "--client", 1, "--split", "test", "--format", "jsonl", "-o", "out.jsonl")
    lines = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["answer"], line["truth"]) for line in lines] == [(row.answer, ["dog", "the cat"]) for row in rows]
    done = hush("predict", open_run.folder, "--split", "test", "--format", "csv")
    assert "dog | the cat" in done.out.splitlines()[1]
    assert f"of {len(rows)} are right" in done.err
    (other, *_) = hp.predict(open_run.folder, split="test", question=QUESTION)
    assert (other.question, other.true_answers, other.is_right) == (QUESTION, None, None)


def test_a_prompt_without_classes_answers_or_is_given_some(open_run, tmp_path):
    picture = tmp_path / "one.png"
    picture.write_bytes(image())
    prompt = open_run.prompt(1)
    assert next(hp.predict(prompt, picture)).answer == prompt.answer(picture)
    with pytest.raises(DataError, match=r"has no classes\. Ask it in words"):
        prompt.predict(picture)
    assert prompt.with_classes(["cat", "dog"]).predict(picture).label in ("cat", "dog")
    app = toy_app(prompt)
    for path in ("/v1/predict", "/v1/predict-batch"):
        refused = once(app, "POST", path, image())
        assert (refused.status, "in words (POST /v1/answer)" in refused.json["error"]) == (404, True)
    assert once(app, *ANSWER, body(image())).json["answer"] == prompt.answer(image(), QUESTION)
    text = (hp.export(prompt, to="card", out=tmp_path / "card") / "README.md").read_text()
    assert 'prompt.answer("photo.jpg")' in text
    assert "has no classes" in text
    assert "Probabilities are among its classes" not in text
