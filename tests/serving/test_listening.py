"""Where a server listens and how it ends: settings that are refused, and a few requests through real sockets."""

import asyncio
import contextlib
import dataclasses
import datetime
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings

import pytest

import hushprompt as hp
from helpers.served import image, toy_app
from hushprompt.errors import ConfigError, PrivacyError
from hushprompt.serving.guard import HEADERS, Door
from hushprompt.serving.limits import ServingLimits
from hushprompt.serving.listening import Listener, ListenerConfig, _OneWrite, read_token
from hushprompt.serving.replies import PromptAnswers
from hushprompt.serving.server import PromptService

TOKEN = "a-token-that-is-long-enough"


@contextlib.contextmanager
def listening(app, config=None, **limits):
    """Run a server on a free port of this machine; yields its port and what stops it."""
    listener = Listener(app, config or ListenerConfig(port=0), ServingLimits(**limits))
    ready = threading.Event()
    thread = threading.Thread(target=listener.run, args=(ready.set,))
    thread.start()
    assert ready.wait(10)
    try:
        yield int(listener.url.rpartition(":")[2]), listener.stop
    finally:
        listener.stop()
        thread.join(10)
        assert not thread.is_alive()


def post(port, data, path="/v1/predict", **headers):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("POST", path, data, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_it_answers_over_a_real_socket_with_and_without_a_length(served_prompt):
    with listening(toy_app(served_prompt, body_bytes=200_000)) as (port, _):
        wanted = served_prompt.predict(image()).label
        assert post(port, image())[1]["label"] == wanted
        assert post(port, iter([image()[:50], image()[50:]]))[1]["label"] == wanted
        assert post(port, bytes(3_000_000))[0] == 413, "and the answer arrives, though the body is not wanted"
        assert post(port, (bytes(100_000) for _ in range(30)))[0] == 413


@pytest.mark.parametrize("sent", [b"", b"POST /v1/predict HTTP/1.1\r\nHost: loc"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_connection_on_which_no_request_arrives_is_closed(served_prompt, sent, is_first):
    with listening(toy_app(served_prompt), read_seconds=0.2) as (port, _):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as caller:
            if not is_first:
                caller.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                got = b""
                while b'"ok"}' not in got:
                    got += caller.recv(4096)
            if is_first or sent:
                caller.sendall(sent)
                start = time.perf_counter()
                with contextlib.suppress(ConnectionResetError):
                    assert caller.recv(4096) == b""
                assert time.perf_counter() - start < 3
        assert post(port, image())[0] == 200


def test_more_connections_than_allowed_are_told_so(served_prompt):
    with listening(toy_app(served_prompt), connections=2) as (port, _):
        with contextlib.ExitStack() as held:
            for _ in range(2):
                held.enter_context(socket.create_connection(("127.0.0.1", port)))
            time.sleep(0.05)
            status, said = post(port, image())
            assert (status, said) == (503, {"error": "Too many connections open."})
        time.sleep(0.1)
        assert post(port, image())[0] == 200, "one that was refused takes nobody's place"


def raw(port, sent):
    """Send bytes, and return all that comes back until the connection closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as caller:
        caller.sendall(sent)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while more := caller.recv(4096):
                got += more
    return got.decode()


CHUNKED = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


SECRET_NAME = b"GET / HTTP/1.1\r\nsecret\x00: x\r\n\r\n"


@pytest.mark.parametrize("sent", [b"no HTTP at all\r\n\r\n", SECRET_NAME, CHUNKED + b"secret\r\n"])
def test_what_the_protocol_refuses_is_json_with_the_headers_too(served_prompt, caplog, sent):
    with listening(toy_app(served_prompt)) as (port, _):
        head, _, body = raw(port, sent).partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 400 Bad Request\r\n")
        assert json.loads(body) == {"error": "This is no HTTP request that can be read."}
        assert all(f"{name.decode()}: {value.decode()}" in head for name, value in HEADERS)
        assert post(port, image())[0] == 200
    assert not any("secret" in record.getMessage() or record.exc_info for record in caplog.records)
    with listening(toy_app(served_prompt), connections=0) as (port, _):
        head, _, body = raw(port, b"").partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 503 Service Unavailable\r\n")
    assert "retry-after: 1" in head
    assert json.loads(body) == {"error": "Too many connections open."}
    assert all(f"{name.decode()}: {value.decode()}" in head for name, value in HEADERS)


def test_who_reads_no_answer_holds_a_connection_no_longer_than_a_request(served_prompt):
    asked = b"GET /script.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with (
        listening(toy_app(served_prompt), connections=1, request_seconds=0.3) as (port, _),
        socket.socket() as caller,
    ):
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.settimeout(0.2)
        caller.connect(("127.0.0.1", port))
        with contextlib.suppress(OSError):  # it is full, or closed already
            caller.sendall(1000 * asked)
        until = time.perf_counter() + 5
        while post(port, image())[0] == 503:
            assert time.perf_counter() < until
            time.sleep(0.05)


def test_a_connection_is_closed_in_time_though_nobody_reads_what_is_left():
    async def closed():
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        lost = loop.create_future()

        class Told(asyncio.Protocol):
            def connection_lost(self, exc):
                lost.set_result(True)

        transport, _ = await loop.create_connection(Told, sock=near)
        connection = _OneWrite(transport, loop, 0.1)
        connection.write(bytes(10**7))
        connection.close()
        with contextlib.closing(far):
            return await asyncio.wait_for(lost, 3)

    assert asyncio.run(closed())


def test_one_address_cannot_hold_all_connections(served_prompt, monkeypatch):
    for is_here, status in ((True, 200), (False, 503)):
        config = ListenerConfig(port=0, insecure=True)
        monkeypatch.setattr("hushprompt.serving.listening.is_loopback", lambda address, found=is_here: found)
        with (
            listening(toy_app(served_prompt), config, connections_of_one=2) as (port, _),
            contextlib.ExitStack() as held,
        ):
            for _ in range(2):
                held.enter_context(socket.create_connection(("127.0.0.1", port)))
            time.sleep(0.05)
            assert post(port, image())[0] == status


def test_a_slow_body_holds_a_connection_no_longer_than_its_time(served_prompt):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
    cases = ((b"", "408", 2.0), (b"Origin: http://evil.example\r\n", "403", 1.0))
    with listening(toy_app(served_prompt, read_seconds=2.0), read_seconds=2.0) as (port, _):
        for more, status, seconds in cases:
            start = time.perf_counter()
            assert raw(port, head + more + b"\r\nabc").startswith(f"HTTP/1.1 {status} ")
            assert seconds - 0.1 < time.perf_counter() - start < seconds + 0.8


def test_warnings_of_pillow_about_strangers_images_are_not_shown(served_prompt, monkeypatch):
    original = PromptAnswers.__call__

    def warned(self, questions):
        for name in ("PIL.Image", "PIL", "elsewhere"):
            warnings.warn_explicit(f"of {name}", UserWarning, "x.py", 1, module=name)
        return original(self, questions)

    monkeypatch.setattr(PromptAnswers, "__call__", warned)
    app = toy_app(served_prompt)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with listening(app) as (port, _):
            assert post(port, image())[0] == 200
    assert [str(each.message) for each in shown] == ["of elsewhere"]


def test_what_one_who_went_away_asked_is_not_worked_on(served_prompt, monkeypatch):
    go, sizes = threading.Event(), []
    original = PromptAnswers.__call__

    def held(self, questions):
        sizes.append(len(questions))
        assert go.wait(5)
        return original(self, questions)

    def queue():
        return raw(port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

    def becomes(size):
        end = time.perf_counter() + 5
        while f"hushprompt_queue {size}\n" not in queue():
            assert time.perf_counter() < end
            time.sleep(0.01)

    monkeypatch.setattr(PromptAnswers, "__call__", held)
    with listening(toy_app(served_prompt)) as (port, _), contextlib.ExitStack() as asking:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image())}\r\n\r\n".encode()
        callers = [asking.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(4)]
        for number, caller in enumerate(callers):
            caller.sendall(head + image())
            becomes(number)
        for gone in callers[1:]:
            gone.close()
        becomes(0)
        go.set()
        assert callers[0].recv(4096).startswith(b"HTTP/1.1 200 ")
        assert 'path="/v1/predict",status="0"} 3' in queue()
        assert post(port, image())[0] == 200
    assert sizes == [1, 1]


def test_an_answer_is_one_packet(served_prompt):
    with listening(toy_app(served_prompt)) as (port, _), socket.create_connection(("127.0.0.1", port)) as caller:
        caller.settimeout(5)
        for _ in range(20):
            caller.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert caller.recv(65_536).endswith(b'\r\n\r\n{"status":"ok"}')


def test_what_was_asked_is_answered_before_the_end(served_prompt, monkeypatch):
    held = threading.Event()
    original = PromptService.predict

    async def slow(self, request):
        held.set()
        import asyncio

        await asyncio.sleep(0.3)
        return await original(self, request)

    monkeypatch.setattr(PromptService, "predict", slow)
    found = []
    with listening(toy_app(served_prompt)) as (port, stop):
        asking = threading.Thread(target=lambda: found.append(post(port, image())))
        asking.start()
        assert held.wait(5)
        stop()
        asking.join(5)
    assert found[0][0] == 200
    with pytest.raises(OSError, match="refused"):
        post(port, image())


def test_tls_is_spoken_where_there_is_a_certificate(served_prompt, tmp_path, monkeypatch):
    certificates = pytest.importorskip("hushprompt.deployment.operate.certificates")
    now = datetime.datetime.now(datetime.UTC)
    ca, cert, key = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    certificates.make_authority(ca, tmp_path / "ca.key", "test", now)
    certificates.make_server(cert, key, (ca, tmp_path / "ca.key"), ["localhost"], now)
    config = ListenerConfig(port=0, tls_cert=cert, tls_key=key)
    monkeypatch.setattr(ServingLimits, "read_seconds", 0.2)
    with listening(toy_app(served_prompt), config, read_seconds=10.0) as (port, _):
        address = ("127.0.0.1", port)
        with socket.create_connection(address, timeout=5) as silent, contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b"", "a handshake that does not come ends, too"
        context = ssl.create_default_context(cafile=ca)
        with contextlib.closing(http.client.HTTPSConnection("localhost", port, timeout=5, context=context)) as caller:
            caller.request("POST", "/v1/predict", image(), {"origin": f"https://localhost:{port}"})
            assert caller.getresponse().status == 200
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        config.check_tls()
    key.chmod(0o600)
    with pytest.raises(ConfigError, match="no certificate and its key"):
        ListenerConfig(tls_cert=key, tls_key=key).check_tls()


def test_another_machine_needs_token_and_tls(tmp_path):
    for how, missing in (
        ({}, "--token-file and --tls-cert and --tls-key"),
        ({"token_file": tmp_path}, "--tls-cert and --tls-key"),
        ({"tls_cert": tmp_path, "tls_key": tmp_path}, "--token-file"),
    ):
        with pytest.raises(ConfigError, match=rf"reached by other machines, so {missing} must be given, or --insecure"):
            ListenerConfig(host="0.0.0.0", **how)
    assert not ListenerConfig(host="0.0.0.0", insecure=True).is_local
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        assert ListenerConfig(host=host).is_local
    for host in ("::", "192.168.0.1", "example.org", "localhost.example.org"):
        with pytest.raises(ConfigError, match="other machines"):
            ListenerConfig(host=host)
    with pytest.raises(ConfigError, match="together"):
        ListenerConfig(tls_cert=tmp_path)
    with pytest.raises(ConfigError, match="from 0 to 65535"):
        ListenerConfig(port=70_000)
    everywhere = ListenerConfig(host="0.0.0.0", port=0, insecure=True)
    named = dataclasses.replace(everywhere, names=("prompt.example.org",))
    for config, host in ((everywhere, socket.gethostname()), (named, "prompt.example.org")):
        with config.bind() as bound:
            assert config.url(bound) == f"http://{host}:{bound.getsockname()[1]}"


def test_a_token_is_in_a_file_of_its_owner_alone(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"The token .* can be read by others\. Run: chmod 600"):
        read_token(path)
    path.chmod(0o600)
    assert read_token(path) == TOKEN
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(ConfigError, match="is a link"):
        read_token(tmp_path / "link")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "missing")
    for text in ("", "short", "two words that are long enough", "é" * 30):
        path.write_text(text)
        with pytest.raises(ConfigError, match="one word of 20 or more"):
            read_token(path)
    path.write_text(TOKEN)
    door = ListenerConfig(host="0.0.0.0", token_file=path, insecure=True, names=("Prompt.Example.ORG.",)).door()
    assert door.token == TOKEN
    assert {"localhost", "prompt.example.org", socket.gethostname().lower()} <= door.names
    assert ListenerConfig().door() == Door(frozenset({"localhost"}), None)


def test_the_parts_of_an_answer_do_not_wait_for_each_other():
    with ListenerConfig(port=0).bind() as listening:
        assert listening.proto == socket.IPPROTO_TCP, "else asyncio leaves Nagle's algorithm on: 40 ms an answer"
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_a_port_that_is_taken_is_said(served_prompt):
    said = r"Nothing can listen at 127\.0\.0\.1, port \d+: .*--port 0 takes"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=said):
        ListenerConfig(port=taken.getsockname()[1]).bind()
    with pytest.raises(ConfigError, match="Nothing can listen at 203"):
        ListenerConfig(host="203.0.113.7", insecure=True).bind()


def test_the_public_function_checks_before_it_loads_anything(tmp_path):
    with pytest.raises(ConfigError, match="other machines"):
        hp.serve(tmp_path / "nothing", host="0.0.0.0")
    for rate in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="--rate-limit"):
            hp.serve(tmp_path / "nothing", rate_limit=rate)


def test_the_public_function_serves_until_it_is_stopped(served_prompt):
    said = []

    def on_ready(served):
        said.append((served, post(int(served.url.rpartition(":")[2]), image())[1]["label"]))
        served.stop()

    hp.serve(served_prompt.path, port=0, max_epsilon=8, on_ready=lambda served: threading.Thread(
        target=on_ready, args=(served,)).start())  # fmt: skip
    served, label = said[0]
    assert label == served_prompt.predict(image()).label
    assert served.privacy == served_prompt.privacy
    assert "every caller is a holder" in served.meaning[0]
    with pytest.raises(PrivacyError, match="--max-epsilon is 1"):
        hp.serve(served_prompt.path, port=0, max_epsilon=1)


def test_sigterm_ends_the_command_in_order(served_prompt):
    command = [sys.executable, "-m", "hushprompt", "serve", str(served_prompt.path), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "300"}
    )
    try:
        lines = [process.stdout.readline().strip() for _ in range(4)]
        assert lines[0] == served_prompt.privacy
        assert lines[1].startswith("Whoever can ask this server")
        port = int(lines[3].rpartition(":")[2])
        assert post(port, image())[0] == 200
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert (process.returncode, out.strip()) == (0, "Stopped; what was asked has been answered.")
    assert err == "", "nothing of a request is logged"
