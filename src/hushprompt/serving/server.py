"""A prompt behind HTTP: endpoints, and the page that asks them. Nothing that comes in is written or logged."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import dataclasses
import importlib.resources
import itertools
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router

from hushprompt.errors import ConfigError
from hushprompt.serving.batching import MicroBatcher
from hushprompt.serving.content import FORMATS, passes, size_of
from hushprompt.serving.guard import CHARGE, Door, Guard
from hushprompt.serving.limits import RefusedError, ServingLimits
from hushprompt.serving.promise import in_plain_words
from hushprompt.serving.prompt import MAX_TOKENS, ZERO_SHOT, Prediction
from hushprompt.serving.replies import OpenQuestion, OpenReply, PromptAnswers, Question, Reply, identifier

if TYPE_CHECKING:
    from starlette.types import ASGIApp

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histogram, in seconds."""


class ServerMetrics:
    """What happened since the start."""

    def __init__(self, paths: Collection[str]) -> None:
        """Take the paths that are told apart; all others are one."""
        self._paths = frozenset(paths)
        self._answers: Counter[tuple[str, int]] = Counter()
        self._times: dict[str, list[float]] = {}

    def count(self, path: str, status: int, seconds: float) -> None:
        """Note an answer; a status of 0 is none, as when the sender went away."""
        known = path if path in self._paths else "other"
        self._answers[known, status] += 1
        times = self._times.setdefault(known, [0.0] * (len(BOUNDS) + 2))  # by bound, beyond all, and their sum
        times[bisect.bisect_left(BOUNDS, seconds)] += 1
        times[-1] += seconds

    def text(self, gauges: Mapping[str, float]) -> str:
        """Return all of it in Prometheus's text format, with values of the moment."""
        lines = ["# TYPE hushprompt_requests_total counter"]
        lines += [
            f'hushprompt_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self._answers.items())
        ]
        lines.append("# TYPE hushprompt_request_seconds histogram")
        for path, times in sorted(self._times.items()):
            name = f'hushprompt_request_seconds_bucket{{path="{path}",le='
            counts = list(itertools.accumulate(times[:-1]))
            lines += [f'{name}"{bound:g}"}} {count:g}' for bound, count in zip(BOUNDS, counts, strict=False)]
            lines += [
                f'{name}"+Inf"}} {counts[-1]:g}',
                f'hushprompt_request_seconds_count{{path="{path}"}} {counts[-1]:g}',
                f'hushprompt_request_seconds_sum{{path="{path}"}} {times[-1]:.6f}',
            ]
        for name, value in gauges.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE hushprompt_{name} {kind}", f"hushprompt_{name} {value:g}"]
        return "\n".join(lines) + "\n"


PAGE = {"/": ("index.html", "text/html"), "/script.js": ("script.js", "text/javascript"),
        "/style.css": ("style.css", "text/css")}  # fmt: skip
KEYS = {"image": "images", "audio": "sounds"}
"""Of a request with several."""
SMALL = 8 * 2**10
"""Bytes of a body whose header is read at once; in a larger one it can be long."""
Endpoint = Callable[[Request], Awaitable[Response]]


class PromptService:
    """The endpoints of one prompt."""

    def __init__(self, answers: PromptAnswers, limits: ServingLimits) -> None:
        """Take what answers, and how much of it one may ask."""
        self._prompt, self._answers, self._limits = answers.prompt, answers, limits
        self._batcher, self._writer = self._new_batcher(), self._new_writer()
        self._id, self._is_ready = identifier(answers.prompt), False
        self._about = self._description()
        self.endpoints: dict[str, tuple[Endpoint, str]] = {
            "/v1/model": (self.model, "GET"), "/healthz": (self.healthz, "GET"), "/readyz": (self.readyz, "GET"),
            "/metrics": (self.metrics, "GET"),
        }  # fmt: skip
        if answers.prompt.classes:
            several = (self.predict_batch, "POST")
            self.endpoints |= {"/v1/predict": (self.predict, "POST"), "/v1/predict-batch": several}
        else:
            no_classes = "This prompt has no classes: ask it in words (POST /v1/answer)."
            self.endpoints |= dict.fromkeys(("/v1/predict", "/v1/predict-batch"), (_nothing(no_classes), "POST"))
        in_words = "This prompt answers no questions in words: ask it for the class of an image (POST /v1/predict)."
        is_generative = answers.prompt.is_generative
        self.endpoints["/v1/answer"] = (self.answer if is_generative else _nothing(in_words), "POST")
        self.counts = ServerMetrics([*self.endpoints, *PAGE])

    @contextlib.asynccontextmanager
    async def running(self, app: object = None) -> AsyncIterator[None]:
        """Encode what is asked while the application runs."""
        self._batcher, self._writer = self._new_batcher(), self._new_writer()  # queues belong to this event loop
        tasks = [asyncio.create_task(each.run()) for each in (self._batcher, self._writer)]
        self._is_ready = True
        try:
            yield
        finally:
            self._is_ready = False
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            self._answers.give_back_threads()

    async def predict(self, request: Request) -> Response:
        """Say what the one image, or sound, in the body is."""
        top, with_zero_shot = self._wanted(request)
        data = await self._body(request)
        start = time.perf_counter()
        question = Question(data, await self._size(data), top, with_zero_shot)
        (coming,) = self._batcher.submit([question])
        return JSONResponse({**_told(await coming), **self._signed(start)})

    async def predict_batch(self, request: Request) -> Response:
        """Say what each of several images, or sounds, in base64, is; what is wrong with one is told in its place."""
        top, with_zero_shot = self._wanted(request)
        everything = self._several(await self._body(request))
        request.scope[CHARGE](len(everything) - 1)
        start = time.perf_counter()
        questions: list[Question | RefusedError] = []
        for data in everything:
            try:
                questions.append(Question(data, await self._size(data), top, with_zero_shot))
            except RefusedError as refusal:
                questions.append(refusal)
        coming = self._batcher.submit([each for each in questions if isinstance(each, Question)])
        replies = iter(await asyncio.gather(*coming, return_exceptions=True))
        found = [_told(each if isinstance(each, RefusedError) else next(replies)) for each in questions]
        return JSONResponse({"predictions": found, **self._signed(start)})

    async def answer(self, request: Request) -> Response:
        """Answer a question about an image, or a sound, in words; both are in the body, in JSON."""
        if request.query_params:
            raise RefusedError(400, "Nothing is taken behind a question mark here: the question goes into the body.")
        asked = self._in_words(await self._body(request))
        data, has_ended, start = asked.data, threading.Event(), time.perf_counter()
        question = OpenQuestion(
            data, await self._size(data), asked.question, asked.max_tokens, asked.compare is not None,
            is_wanted=lambda: not has_ended.is_set(),
        )  # fmt: skip
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                (coming,) = self._writer.submit([question])
                reply = await coming
        except TimeoutError as error:
            late = f"No answer within {self._limits.answer_seconds:g} seconds. Ask for fewer tokens (max_tokens)."
            raise RefusedError(503, late) from error
        finally:
            has_ended.set()
        told = {"answer": reply.trained.text, "is_complete": reply.trained.is_complete}
        beside = {} if reply.zero_shot is None else {ZERO_SHOT: reply.zero_shot.text}
        return JSONResponse({**told, **beside, **self._signed(start)})

    async def model(self, request: Request) -> Response:
        """Say what the prompt is, and what it promises."""
        return JSONResponse(self._about)

    async def healthz(self, request: Request) -> Response:
        """Say that the process is there."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Say whether requests are answered."""
        return JSONResponse({"ready": self._is_ready}, 200 if self._is_ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Return counts and times."""
        batches, images = self._batcher.sizes
        gauges = {"batches_total": batches, "images_total": images, "queue": self._batcher.num_waiting}
        if self._prompt.is_generative:
            gauges |= {"answers_total": self._writer.sizes[1], "answer_queue": self._writer.num_waiting}
        return PlainTextResponse(self.counts.text(gauges), media_type="text/plain; version=0.0.4")

    def _new_batcher(self) -> MicroBatcher[Question, Reply]:
        answers = self._answers
        return MicroBatcher(
            answers, self._limits, cost=_cost, num_workers=answers.num_workers, prepare=answers.prepare_thread
        )

    def _new_writer(self) -> MicroBatcher[OpenQuestion, OpenReply]:
        """Return the queue of questions that are answered in words, one at a time."""
        limits = dataclasses.replace(self._limits, queue=self._limits.answer_queue, batch_size=1)
        return MicroBatcher(self._answers.in_words, limits, prepare=self._answers.prepare_thread)

    def _in_words(self, body: bytes) -> InWords:
        """Return what a body in JSON asks, once it is known that it can be answered."""
        key, limits = KEYS[self._answers.modality][:-1], self._limits
        try:
            asked = msgspec.json.decode(body, type=InWords)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise RefusedError(
                400, f'The body is not JSON such as {{"{key}": "(base64)", "question": "..."}} ({error}).'
            ) from error
        if not getattr(asked, key) or (asked.image and asked.sound):
            raise RefusedError(400, f"The body must have {key}, in base64.")
        if len(asked.question) > limits.question_chars:
            raise RefusedError(413, f"The question is longer than {limits.question_chars} characters.")
        if not 0 < asked.max_tokens <= limits.answer_tokens:
            raise RefusedError(400, f"max_tokens must be a number from 1 to {limits.answer_tokens}.")
        try:
            self._prompt.check_question(asked.question, asked.max_tokens)
        except ConfigError as error:
            raise RefusedError(400, str(error)) from error
        return asked

    def _wanted(self, request: Request) -> tuple[int, bool]:
        """Return how many classes are to be named, and whether the hand template is asked too."""
        asked = dict(request.query_params)
        is_once = len(asked) == len(request.query_params.multi_items())
        top, compare = asked.pop("top", "5"), asked.pop("compare", None)
        if asked or not is_once:
            raise RefusedError(400, "Only top=N and compare=zero_shot are taken, once. A token goes into a header.")
        if not (top.isascii() and top.isdigit() and len(top) <= 6 and int(top) > 0):
            raise RefusedError(400, "top must be a number from 1: how many classes are named.")
        if compare not in (None, ZERO_SHOT):
            raise RefusedError(400, f"compare can be {ZERO_SHOT} only.")
        if compare and self._answers.zero_shot is None:
            raise RefusedError(400, "There is no zero-shot prompt to compare with: the backbone has no text.")
        return int(top), compare is not None

    async def _body(self, request: Request) -> bytes:
        """Return the body, counted while it comes in."""
        most, declared = self._limits.body_bytes, request.headers.get("content-length", "0")
        too_large = RefusedError(413, f"The body is larger than {most:,} bytes.")
        if not declared.isdecimal():
            raise RefusedError(400, "The header Content-Length is no number.")
        if len(declared) > 15 or int(declared) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.read_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise too_large
        except ClientDisconnect as error:
            raise RefusedError(400, "The sender went away.") from error
        except TimeoutError as error:
            raise RefusedError(408, f"The body did not arrive within {self._limits.read_seconds:g} seconds.") from error
        return bytes(body)

    async def _size(self, data: bytes) -> int:
        """Return pixels or samples; others are answered while a long header is read."""
        if len(data) <= SMALL:
            return size_of(data, self._answers.modality, self._limits)
        return await asyncio.to_thread(size_of, data, self._answers.modality, self._limits)

    def _several(self, body: bytes) -> list[bytes]:
        key, most = KEYS[self._answers.modality], self._limits.images
        kind = dict[str, Annotated[list[bytes], msgspec.Meta(min_length=1, max_length=most)]]
        try:
            found = msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise RefusedError(400, f"The body is not JSON with 1 to {most} {key} in base64 ({error}).") from error
        if found.keys() != {key}:
            raise RefusedError(400, f'The body must be {{"{key}": [...]}}, with {key} in base64.')
        return found[key]

    def _signed(self, start: float) -> dict[str, Any]:
        """Return what stands below every prediction."""
        return {"model": self._id, "milliseconds": round(1000 * (time.perf_counter() - start), 1)}

    def _question_limits(self) -> dict[str, Any] | None:
        """Return what is said of questions that can be answered in words; None where none can."""
        if not self._prompt.is_generative:
            return None
        model: Any = self._prompt.model
        limits = self._limits
        return {"question": model.how_asked[0], "characters": limits.question_chars, "tokens": limits.answer_tokens}

    def _description(self) -> dict[str, Any]:
        """Return what is said of the prompt; not whose it is."""
        header = self._prompt.header
        return {
            "id": self._id,
            "method": header.method,
            "arm": header.arm,
            "classes": list(header.class_names),
            "backbone": header.backbone,
            "fingerprint": header.backbone_fingerprint,
            "modality": self._answers.modality,
            "privacy": self._prompt.privacy,
            "in_plain_words": in_plain_words(self._prompt),
            "has_zero_shot": self._answers.zero_shot is not None,
            "in_words": self._question_limits(),
            "formats": FORMATS[self._answers.modality],
            "body_bytes": self._limits.body_bytes,
        }


class InWords(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a question that is to be answered in words."""

    question: str = ""
    """Empty: the one that the prompt was trained with."""
    image: bytes = b""
    sound: bytes = b""
    """One of the two, in base64."""
    max_tokens: int = MAX_TOKENS
    compare: Literal["zero_shot"] | None = None

    @property
    def data(self) -> bytes:
        """The file."""
        return self.image or self.sound


def application(service: PromptService, door: Door, limits: ServingLimits) -> ASGIApp:
    """Return the ASGI application: endpoints, page, and the guard before them."""
    pages = {path: (_page(*told), "GET") for path, told in PAGE.items()}
    routes = [Route(path, found, methods=[method]) for path, (found, method) in {**service.endpoints, **pages}.items()]
    app = Router(routes, redirect_slashes=False, lifespan=service.running)
    return Guard(app, door, limits, service.counts.count)


def _nothing(why: str) -> Endpoint:
    """Return the endpoint of what this prompt cannot do, which says what it can."""

    async def endpoint(request: Request) -> Response:
        raise RefusedError(404, why)

    return endpoint


def _cost(question: Question) -> int:
    """Return the pixels that decoding passes over, or the samples."""
    return question.size * passes(question.data)


def _page(name: str, kind: str) -> Endpoint:
    """Return the endpoint of a file of the page, which is read once."""
    content = (importlib.resources.files("hushprompt.serving") / "page" / name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind)

    return endpoint


def _told(found: Reply | BaseException) -> dict[str, Any]:
    """Return one reply as JSON says it; an error of its own is told in its place, any other one is raised."""
    if isinstance(found, RefusedError):
        return {"error": str(found)}
    if isinstance(found, BaseException):
        raise found
    told = _prediction(found.trained)
    return told if found.zero_shot is None else {**told, ZERO_SHOT: _prediction(found.zero_shot)}


def _prediction(found: Prediction) -> dict[str, Any]:
    top = [{"label": label, "probability": round(share, 7)} for label, share in found.top]
    return {"label": found.label, "probability": round(found.probability, 7), "top": top}
