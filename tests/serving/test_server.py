"""Endpoints and limits of a served prompt, in this process."""

import asyncio
import base64
import dataclasses
import json
import logging
import random
import threading
import time

import numpy as np
import pytest
import torch

from helpers.asgi import ask, once, started
from helpers.served import bomb, hearing, image, sound, toy_app
from hushprompt.errors import ConfigError
from hushprompt.models.toy import Toy
from hushprompt.serving import replies
from hushprompt.serving.replies import PromptAnswers, Question, Room, identifier
from hushprompt.serving.server import ServerMetrics

PREDICT = ("POST", "/v1/predict")


@pytest.fixture(scope="module")
def app(served_prompt):
    return toy_app(served_prompt)


def test_the_server_says_what_the_prompt_says(app, served_prompt):
    data = image()
    found = once(app, *PREDICT, data).json
    wanted = served_prompt.predict(data)
    assert (found["label"], [each["label"] for each in found["top"]]) == (
        wanted.label,
        [name for name, _ in wanted.top],
    )
    shares = [each["probability"] for each in found["top"]]
    np.testing.assert_allclose(shares, [share for _, share in wanted.top], atol=1e-6)
    assert found["model"] == identifier(served_prompt)
    assert found["milliseconds"] > 0
    assert "zero_shot" not in found


def test_zero_shot_stands_beside_it(app, served_prompt):
    found = once(app, "POST", "/v1/predict?top=2&compare=zero_shot", image()).json
    wanted = served_prompt.zero_shot().predict(image(), top=2)
    assert len(found["top"]) == 2
    assert [each["label"] for each in found["zero_shot"]["top"]] == [name for name, _ in wanted.top]


def test_a_prompt_of_patches_has_features_of_its_own_beside_zero_shot(tmp_path):
    from helpers.prompt_files import written
    from hushprompt.serving.loading import load_prompt

    written({"name": "fedotp", "num_ctx": 4}, tmp_path)
    prompt = load_prompt(tmp_path, client=1)
    found = once(toy_app(prompt), "POST", "/v1/predict?top=1&compare=zero_shot", image()).json
    assert found["label"] == prompt.predict(image()).label
    assert found["zero_shot"]["label"] == prompt.zero_shot().predict(image()).label


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_type_is_told_by_content_and_not_by_a_header(app, kind):
    assert once(app, *PREDICT, image(kind), [("content-type", "text/html")]).status == 200


def test_a_batch_is_answered_in_order_with_errors_in_their_places(app, served_prompt):
    images = [image(seed=1), b"GIF89a", image(seed=2)[:-40], image("WEBP", seed=3)]
    body = json.dumps({"images": [base64.b64encode(each).decode() for each in images]}).encode()
    answer = once(app, "POST", "/v1/predict-batch?top=1", body)
    found = answer.json["predictions"]
    assert answer.status == 200
    assert [each.get("label") for each in found] == [
        served_prompt.predict(images[0]).label, None, None, served_prompt.predict(images[3]).label,
    ]  # fmt: skip
    assert "no image that can be read" in found[1]["error"]
    assert "cannot be read" in found[2]["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b"[" * 5000, b'{"images": []}', b'{"images": ["!"]}', b'{"images": [3]}', b"\xff\xfe",
        b'{"sounds": ["AA=="]}', b'{"images": ["AA=="], "more": []}', json.dumps({"images": ["AA=="] * 17}).encode(),
    ],
)  # fmt: skip
def test_a_batch_that_is_none_is_refused(app, body):
    answer = once(app, "POST", "/v1/predict-batch", body)
    assert answer.status == 400
    assert "images" in answer.json["error"]


def test_the_model_is_described_with_its_guarantee_and_without_its_owner(app, served_prompt):
    found = once(app, "GET", "/v1/model").json
    assert found["classes"] == list(served_prompt.classes)
    assert found["backbone"] == {"name": "toy", **{k: v for k, v in found["backbone"].items() if k != "name"}}
    assert found["fingerprint"] == served_prompt.header.backbone_fingerprint
    assert found["privacy"] == served_prompt.privacy
    assert found["privacy"].startswith("epsilon = 7.999 (simulation) at delta = 0.001")
    assert found["has_zero_shot"] is True
    assert "client 1" not in json.dumps(found)


def test_health_readiness_and_metrics_name_no_label(app, served_prompt):
    async def run():
        assert (await ask(app, "GET", "/readyz")).status == 503
        async with started(app):
            await ask(app, *PREDICT, image())
            await ask(app, "GET", "/no/such/path")
            found = [await ask(app, "GET", path) for path in ("/healthz", "/readyz", "/metrics")]
        assert (await ask(app, "GET", "/readyz")).status == 503
        return found

    health, ready, metrics = asyncio.run(run())
    assert (health.json, ready.json) == ({"status": "ok"}, {"ready": True})
    text = metrics.body.decode()
    assert 'hushprompt_requests_total{path="/v1/predict",status="200"}' in text
    assert 'path="other",status="404"' in text
    assert 'hushprompt_request_seconds_bucket{path="/v1/predict",le="+Inf"}' in text
    assert "hushprompt_images_total" in text
    assert not any(name in text for name in (*served_prompt.classes, "no/such", "127.0.0.1"))


@pytest.mark.parametrize(
    "query",
    ["top=0", "top=-1", "top=x", "top=", "top=²", "top=9999999", "top=2&top=3", "token=secret", "compare=promptfl"],
)
def test_a_wrong_query_is_refused_before_the_body_is_read(app, query):
    answer = once(app, "POST", f"/v1/predict?{query.replace('²', '%C2%B2')}", [b"never", b"read"])
    assert answer.status == 400
    assert answer.json["error"]


def test_more_classes_than_there_are_is_all_of_them(app, served_prompt):
    assert len(once(app, "POST", "/v1/predict?top=1000", image()).json["top"]) == len(served_prompt.classes)


def test_a_body_is_counted_by_its_header_and_while_it_comes(served_prompt):
    app = toy_app(served_prompt, body_bytes=1000)
    declared = once(app, *PREDICT, bytes(1001))
    chunked = once(app, *PREDICT, [bytes(400)] * 5)
    lying = once(app, *PREDICT, [bytes(400)] * 5, [("content-length", "3")])
    for answer in (declared, chunked, lying):
        assert answer.status == 413
        assert answer.json["error"] == "The body is larger than 1,000 bytes."
        assert answer.headers["connection"] == "close"
    assert len(once(app, *PREDICT, [image("JPEG", (8, 8))[:10]] * 3).body) > 0
    assert once(app, *PREDICT, [b"x"], [("content-length", "9" * 5000)]).status == 413
    assert once(app, *PREDICT, [b"x"], [("content-length", "-1")]).status == 400


def test_the_rest_of_a_body_is_read_before_the_connection_closes_so_that_the_answer_arrives(served_prompt):
    app = toy_app(served_prompt, body_bytes=10)
    answer = once(app, *PREDICT, [bytes(8)] * 6)
    assert [part.get("more_body", False) for part in answer.parts[1:]] == [True, False]
    endless = once(toy_app(served_prompt, body_bytes=10, read_seconds=0.05), *PREDICT, [bytes(8)] * 500, pause=0.001)
    assert endless.status == 413
    waiting = once(app, *PREDICT, bytes(11), [("expect", "100-continue")])
    assert waiting.status == 413, "who waits to be asked for the body is not asked"


def test_a_body_that_does_not_arrive_in_time_is_refused(served_prompt):
    answer = once(toy_app(served_prompt, read_seconds=0.05), *PREDICT, [b"a", b"b", b"c"], pause=0.03)
    assert answer.status == 408
    assert "did not arrive within 0.05 seconds" in answer.json["error"]


def test_one_who_goes_away_in_the_middle_is_no_error_of_ours(served_prompt, caplog):
    app = toy_app(served_prompt)

    async def run():
        async with started(app):
            received = iter([{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}])
            sent = []

            async def receive():
                return next(received)

            async def send(message):
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "client": None,
                     "headers": [(b"host", b"localhost"), (b"content-length", b"9")]}  # fmt: skip
            await app(scope, receive, send)
            return sent[0]["status"]

    assert asyncio.run(run()) == 400
    assert not caplog.records


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (bomb(12_000), 413, "144,000,000 pixels, and 40,000,000 are the most"),
        (b"", 415, "no image that can be read"),
        (b"GIF89a" + bytes(100), 415, "PNG, JPEG or WebP is taken"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "PNG, JPEG or WebP"),
        (b"BM" + bytes(100), 415, "PNG, JPEG or WebP"),
        (image()[:20], 415, "no image"),
        (image()[:60], 415, "cannot be read"),
        (image("JPEG")[:100], 415, "no image"),
        (image("JPEG")[:-100], 415, "cannot be read"),
        (image("WEBP")[:40], 415, ""),
        (sound(), 415, "PNG, JPEG or WebP"),
    ],
)
def test_what_is_no_image_or_too_large_is_refused_with_a_sentence(app, data, status, says):
    start = time.perf_counter()
    answer = once(app, *PREDICT, data)
    assert answer.status == status
    assert says in answer.json["error"]
    assert time.perf_counter() - start < 0.5


def test_sounds_are_for_a_model_that_hears(served_prompt):
    prompt = hearing(served_prompt)
    app = toy_app(prompt, sound_seconds=1.0)
    assert once(app, *PREDICT, sound()).json["label"] == prompt.predict(sound()).label
    assert once(app, *PREDICT, image()).status == 415
    long = once(app, *PREDICT, sound(seconds=1.1))
    assert (long.status, long.json["error"]) == (413, "It is longer than 1 seconds.")
    for rate in (3, 400_000):
        odd = once(app, *PREDICT, sound(rate=rate))
        assert (odd.status, f"{rate:,} samples a second" in odd.json["error"]) == (415, True)
    cut = once(app, *PREDICT, sound()[:-100])
    assert (cut.status, cut.json["error"]) == (415, "The recording is cut off.")
    body = json.dumps({"sounds": [base64.b64encode(sound()).decode()]}).encode()
    assert len(once(app, "POST", "/v1/predict-batch", body).json["predictions"]) == 1
    assert once(app, "GET", "/v1/model").json["formats"] == "WAV or FLAC"


def test_a_backbone_of_features_or_another_one_is_not_served(served_prompt):
    with pytest.raises(ConfigError, match="was trained with another backbone"):
        PromptAnswers(dataclasses.replace(served_prompt, backbone=Toy(token_width=4)))
    model = Toy().load()
    model.capabilities = dataclasses.replace(model.capabilities, modality="features")
    with pytest.raises(ConfigError, match="takes features, and a server takes images or sounds"):
        PromptAnswers(dataclasses.replace(served_prompt, backbone=model))


def test_each_of_a_batch_gets_as_much_as_it_asks_for(served_prompt):
    answers = PromptAnswers(served_prompt)
    few, more = answers([Question(image(), 1, top=1), Question(image(), 1, top=3, with_zero_shot=True)])
    assert (len(few.trained.top), few.zero_shot) == (1, None)
    assert (len(more.trained.top), len(more.zero_shot.top)) == (3, 3)
    assert few.trained.label == more.trained.label == more.trained.top[0][0]


def test_whatever_one_image_does_to_the_decoder_is_its_own_alone(served_prompt, monkeypatch):
    def odd(data, media, width):
        if data == b"odd":
            raise ValueError("unrecognized transparency")
        return real(data, media, width)

    answers = PromptAnswers(served_prompt)
    real = replies.as_array
    monkeypatch.setattr(replies, "as_array", odd)
    fine, found = answers([Question(image(), 1), Question(b"odd", 1)])
    assert (found.status, str(found)) == (415, "This image cannot be read.")
    assert fine.trained.label == served_prompt.predict(image()).label


def test_a_score_that_is_no_number_is_no_answer(served_prompt):
    answers = PromptAnswers(hearing(served_prompt))
    answers.prompt.model.backbone.encode_images = lambda images: torch.full((len(images), 6), torch.nan)
    (found,) = answers([Question(sound(), 1)])
    assert (found.status, str(found)) == (415, "The model gives no finite score for this audio.")


class Held(PromptAnswers):
    """Answers once it is let go."""

    def __init__(self, prompt):
        self.go, self.batches = threading.Event(), []
        super().__init__(prompt)

    def __call__(self, questions):
        self.batches.append(len(questions))
        assert self.go.wait(5)
        return super().__call__(questions)


def held_app(prompt, **limits):
    """An application that answers once it is let go, and what lets it go."""
    held = []
    return toy_app(prompt, answers=lambda each: held.append(Held(each)) or held[0], **limits), held[0]


def test_overload_is_answered_at_once_and_never_queued(served_prompt):
    app, held = held_app(served_prompt, queue=2, batch_size=1)

    async def run():
        async with started(app):
            going = []
            for _ in range(3):  # one is being worked on, two wait
                going.append(asyncio.create_task(ask(app, *PREDICT, image())))
                await asyncio.sleep(0.03)
            start = time.perf_counter()
            refused = await ask(app, *PREDICT, image())
            took = time.perf_counter() - start
            held.go.set()
            return refused, took, await asyncio.gather(*going)

    refused, took, answers = asyncio.run(run())
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert took < 0.5
    assert [each.status for each in answers] == [200] * 3


def test_a_request_that_takes_too_long_is_ended(served_prompt):
    app, held = held_app(served_prompt, request_seconds=0.1)

    async def run():
        async with started(app):
            answer = await ask(app, *PREDICT, image())
            held.go.set()
            return answer, await ask(app, *PREDICT, image())

    late, next_one = asyncio.run(run())
    assert (late.status, late.json["error"]) == (503, "No answer within 0.1 seconds.")
    assert next_one.status == 200


def test_an_address_is_asked_in_its_own_way(app):
    for path, method, allowed in (("/v1/model", "POST", "GET, HEAD"), ("/v1/predict", "GET", "POST")):
        answer = once(app, method, path)
        assert (answer.status, ", ".join(sorted(answer.headers["allow"].split(", ")))) == (405, allowed)
        assert answer.json["error"] == "This address is not asked like that."
    assert once(app, "HEAD", "/v1/model").status == 200


def test_counts_of_times_grow_with_the_bound():
    metrics = ServerMetrics(["/"])
    for seconds in (0.001, 0.005, 0.3, 99):
        metrics.count("/", 200, seconds)
    text = metrics.text({})
    for bound, count in (("0.005", 2), ("0.25", 2), ("0.5", 3), ("30", 3), ("+Inf", 4)):
        assert f'hushprompt_request_seconds_bucket{{path="/",le="{bound}"}} {count}\n' in text
    assert 'hushprompt_request_seconds_count{path="/"} 4\n' in text


def test_every_core_has_a_batch_of_its_own_unless_one_is_faster_on_all(served_prompt, monkeypatch):
    before, left = torch.get_num_threads(), []
    monkeypatch.setattr(type(served_prompt.model.backbone), "prepare_for_threads", lambda self: left.append(self))
    for seconds, wanted in (((1.0, 1.2), (3, 1)), ((1.0, 1.9), (1, 3))):
        times = iter(seconds)
        monkeypatch.setattr(PromptAnswers, "_seconds_alone", lambda self, times=times: next(times))
        torch.set_num_threads(3)
        try:
            answers = PromptAnswers(served_prompt)
            assert (answers.num_workers, torch.get_num_threads()) == (wanted[0], 3)
            answers.prepare_thread()
            assert torch.get_num_threads() == wanted[1]
        finally:
            torch.set_num_threads(before)
    assert len(left) == 1, "one batch at a time has nobody to wait for"


def test_what_is_decoded_at_the_same_time_fits_into_memory_and_comes_in_turn():
    room, order = Room(10), []

    def take(name, values):
        with room.taken(values):
            order.append(name)

    with room.taken(8):
        threads = [threading.Thread(target=take, args=each) for each in (("large", 99), ("small", 1))]
        for each in threads:
            each.start()
            time.sleep(0.05)
        assert not order, "the small one waits for its turn, or the large one might wait for ever"
    for each in threads:
        each.join(5)
    assert order == ["large", "small"]


def test_an_answer_on_its_way_is_given_before_the_end(served_prompt):
    app, held = held_app(served_prompt)

    async def run():
        async with started(app):
            going = asyncio.create_task(ask(app, *PREDICT, image()))
            await asyncio.sleep(0.02)
            held.go.set()
            return await going

    assert asyncio.run(run()).status == 200


def test_a_failure_of_ours_says_nothing_of_itself(served_prompt, monkeypatch):
    app = toy_app(served_prompt)
    monkeypatch.setattr(PromptAnswers, "_replies", lambda self, arrays, questions: 1 / 0)

    async def run():
        async with started(app):
            failed = await ask(app, *PREDICT, image())
            monkeypatch.undo()
            return failed, await ask(app, *PREDICT, image())

    failed, after = asyncio.run(run())
    assert (failed.status, list(failed.json)) == (500, ["error"])
    assert "zero" not in failed.json["error"]
    assert after.status == 200, "and the server goes on"


def test_nothing_that_came_in_is_written_or_logged(app, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    opened = []
    real = open

    def noted(file, mode="r", *args, **kwargs):
        if set(mode) & set("wax+"):
            opened.append(file)
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", noted)
    monkeypatch.chdir(tmp_path)
    found = once(app, *PREDICT, image()).json
    once(app, *PREDICT, b"no image")
    assert not opened
    assert not list(tmp_path.iterdir())
    logged = [record.getMessage() for record in caplog.records if record.name != "asyncio"]
    assert not any(found["label"] in line or "predict" in line for line in logged)


@pytest.mark.filterwarnings("default")
def test_a_thousand_mutated_images_never_give_an_error_of_ours(app):
    rng = random.Random(0)
    seeds = [image(kind, (24, 24)) for kind in ("PNG", "JPEG", "WEBP")]
    seeds += [image("JPEG", (24, 24), progressive=True), image("WEBP", (24, 24), lossless=True), bomb(64)]

    async def run():
        async with started(app):
            return [(await ask(app, *PREDICT, mutated(rng, seeds))).status for _ in range(1000)]

    found = asyncio.run(run())
    assert set(found) <= {200, 413, 415}
    assert found.count(200) > 50
    assert found.count(415) > 200


def mutated(rng, seeds):
    """Return an image with a few bytes changed, left out, doubled, or cut off."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data) if rng.random() < 0.6 else min(len(data), 48))
        how = rng.random()
        if how < 0.6:
            data[at] = rng.choice([0, 255, 127, 128, rng.randrange(256)])
        elif how < 0.75:
            del data[max(at, 1) : at + rng.randint(1, 20)]
        elif how < 0.9:
            data[at:at] = data[at : at + rng.randint(1, 20)]
        else:
            del data[max(16, at) :]
    return bytes(data)
