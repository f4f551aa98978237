"""Who may ask: names, tokens, pages of other sites, how often; and what every answer says to a browser."""

import asyncio
import base64
import json

import pytest

from helpers.asgi import ask, once, started
from helpers.served import image, toy_app
from hushprompt.serving import guard
from hushprompt.serving.guard import Door, RateLimit
from hushprompt.serving.limits import RefusedError, ServingLimits

TOKEN = "a-token-that-is-long-enough"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:; connect-src 'self'; frame-ancestors 'none'"
)
PATHS = ["/", "/script.js", "/style.css", "/v1/model", "/healthz", "/metrics", "/no/such", "/v1/predict"]


@pytest.fixture(scope="module")
def app(served_prompt):
    return toy_app(served_prompt)


@pytest.fixture(scope="module")
def locked(served_prompt):
    return toy_app(served_prompt, Door(frozenset({"localhost", "prompt.example.org"}), TOKEN))


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_carries_the_headers(app, path):
    answer = once(app, "GET", path)
    assert answer.headers["content-security-policy"].startswith(CSP)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert not any(name.startswith("access-control") for name in answer.headers), "no CORS"
    assert "server" not in answer.headers


def test_refusals_carry_them_too(locked):
    for how in ({"host": "evil.example"}, {"host": None}, {}):
        assert "content-security-policy" in once(locked, "GET", "/v1/model", **how).headers


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "localhost:", "a b", "user@localhost", "[::1"]
)
def test_a_name_that_is_not_its_own_is_not_answered(app, host):
    answer = once(app, "GET", "/", host=host)
    assert answer.status == 421
    assert "--name" in answer.json["error"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:9000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.5", "localhost."]
)
def test_its_own_names_and_addresses_are(app, host):
    assert once(app, "GET", "/", host=host).status == 200


def test_a_request_needs_one_host(app, locked):
    assert once(app, "GET", "/", host=None).status == 421
    assert once(app, "GET", "/", headers=[("host", "localhost")]).status == 421
    assert once(locked, "GET", "/", host="prompt.example.org").status == 200


@pytest.mark.parametrize(
    ("origins", "status"),
    [
        ([], 200), (["http://localhost:8000"], 200), (["https://LOCALHOST:8000"], 200), (["null"], 403),
        (["http://localhost:9000"], 403), (["https://evil.example"], 403), (["http://localhost:8000"] * 2, 403),
        ([""], 403), (["http://[::1"], 403), (["http://[x]:8000"], 403),
    ],
)  # fmt: skip
def test_a_page_of_another_site_cannot_ask(app, origins, status):
    assert once(app, "POST", "/v1/predict", image(), [("origin", each) for each in origins]).status == status


@pytest.mark.parametrize(
    "sent",
    [
        [], [("authorization", f"Bearer {TOKEN}x")], [("authorization", f"Basic {TOKEN}")],
        [("authorization", "Bearer")], [("authorization", TOKEN)], [("authorization", f"Bearer {TOKEN}")] * 2,
        [("cookie", f"token={TOKEN}")],
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/model", "/metrics", "/v1/predict", "/v1/predict-batch", "/no/such"])
def test_without_the_token_nothing_is_told(locked, sent, path):
    answer = once(locked, "POST" if "predict" in path else "GET", path, b"{}", sent)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert set(answer.json) == {"error"}


def test_a_token_in_the_address_is_none(locked):
    assert once(locked, "GET", f"/v1/model?token={TOKEN}").status == 401
    assert (
        once(locked, "POST", f"/v1/predict?token={TOKEN}", image(), [("authorization", f"Bearer {TOKEN}")]).status
        == 400
    )


def test_with_the_token_it_answers_and_the_page_needs_none(locked):
    sent = [("authorization", f"bearer {TOKEN}")]
    assert once(locked, "POST", "/v1/predict", image(), sent).status == 200
    for path in ("/", "/script.js", "/style.css", "/healthz", "/readyz"):
        assert once(locked, "GET", path).status == 200


def test_tokens_are_compared_in_constant_time(locked, monkeypatch):
    compared = []
    real = guard.hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    once(locked, "GET", "/v1/model", headers=[("authorization", "Bearer x")])
    assert compared == [(32, 32)], "hashes, so that a length tells nothing either"


@pytest.mark.parametrize(
    ("method", "path"), [("OPTIONS", "/v1/predict"), ("GET", "/v1/predict"), ("DELETE", "/v1/model")]
)
def test_other_methods_are_refused(app, method, path):
    answer = once(app, method, path)
    assert (answer.status, "allow" in answer.headers) == (405, True)


def test_whatever_fails_is_an_answer_with_the_headers_and_a_line_without_the_request(caplog):
    async def failing(scope, receive, send):
        raise RuntimeError(f"secret of {scope['path']}")

    async def run():
        return await ask(guard.Guard(failing, Door(), ServingLimits()), "POST", "/v1/predict", b"secret")

    answer = asyncio.run(run())
    assert (answer.status, answer.json) == (500, {"error": guard.FAILED})
    assert answer.headers["content-security-policy"].startswith(CSP)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("A request failed, which is a fault of the server: RuntimeError at ")
    assert "secret" not in line
    assert "predict" not in line
    assert caplog.records[0].exc_info is None


def test_an_address_asks_so_often_and_no_more(served_prompt):
    app = toy_app(served_prompt, rate=2.0)

    async def run():
        async with started(app):
            same = [await ask(app, "GET", "/v1/model", client="10.0.0.1") for _ in range(3)]
            other = await ask(app, "GET", "/v1/model", client="10.0.0.2")
            page = await ask(app, "GET", "/", client="10.0.0.1")
            return same, other.status, page.status

    same, other, page = asyncio.run(run())
    assert [each.status for each in same] == [200, 200, 429]
    assert (same[2].headers["retry-after"], other, page) == ("1", 200, 200)


def test_a_request_with_several_images_counts_as_so_many(served_prompt):
    app = toy_app(served_prompt, rate=2.0)
    body = json.dumps({"images": [base64.b64encode(image()).decode()] * 9}).encode()

    async def run():
        async with started(app):
            first = await ask(app, "POST", "/v1/predict-batch", body)
            return first.status, await ask(app, "GET", "/v1/model")

    first, second = asyncio.run(run())
    assert (first, second.status) == (200, 429)
    assert second.headers["retry-after"] in ("4", "5"), "9 were taken from a bucket of 2 that fills with 2 a second"


def test_a_bucket_fills_at_the_rate_and_addresses_are_forgotten():
    now = [0.0]
    limit = RateLimit(2.0, clock=lambda: now[0])

    def is_allowed(address):
        try:
            limit.check(address)
        except RefusedError:
            return False
        return True

    assert [is_allowed("a") for _ in range(3)] == [True, True, False]
    now[0] = 0.5
    assert [is_allowed("a") for _ in range(2)] == [True, False]
    assert [is_allowed(f"2001:db8::{each}") for each in range(3)] == [True, True, False], "one network, one customer"
    assert is_allowed("2001:db8:0:1::1")
    for each in range(guard.MOST_ADDRESSES + 10):
        is_allowed(str(each))
    assert len(limit._buckets) == guard.MOST_ADDRESSES
    assert [RateLimit(None).check("a") for _ in range(99)] == [None] * 99
