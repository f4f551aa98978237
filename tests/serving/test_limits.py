"""What a server takes is what its page says, and nothing is fetched, unpickled or served against its owner's word."""

import pickle
import socket
from pathlib import Path

import pytest

import hushprompt as hp
from helpers.asgi import once
from helpers.served import image, toy_app, toy_prompt
from hushprompt.errors import DataError
from hushprompt.serving.content import MOST_SCANS, SAMPLING_RATES
from hushprompt.serving.limits import ServingLimits

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def app(served_prompt):
    return toy_app(served_prompt)


def test_the_page_says_the_limits_that_hold():
    limits = ServingLimits()
    said = [
        f"{limits.body_bytes // 2**20} MiB a body",
        f"{limits.values // 10**6} million pixels, or samples, and {limits.sound_seconds:g} seconds of a sound",
        f"at most {limits.aspect_ratio:g} times the other",
        f"{limits.scanned_pixels // 10**6} million pixels that all passes of a JPEG",
        f"JPEG of at most {MOST_SCANS} passes",
        f"FLAC of {SAMPLING_RATES[0] // 1000} to {SAMPLING_RATES[1] // 1000} kHz",
        f"in base64, 1 to {limits.images}",
        f"{limits.read_seconds:g} s for a request's head, and {limits.read_seconds:g} s for its body",
        f"{limits.request_seconds:g} s a request",
        f"{limits.request_seconds:g} s in which nobody reads an answer",
        f"{limits.queue} images in the queue",
        f"go together next, {limits.batch_size} at most",
        f"waits for them, for {1000 * limits.batch_seconds:g} ms after the answer at most",
        f"{limits.connections} connections, and {limits.connections_of_one} of one address",
    ]
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert [words for words in said if words not in page] == []


@pytest.mark.parametrize(
    ("how", "rate"),
    [
        ({}, None), ({"rate_limit": 3}, 3), ({"host": "0.0.0.0", "insecure": True}, 10),
        ({"host": "0.0.0.0", "insecure": True, "rate_limit": 0.5}, 0.5),
    ],
    ids=str,
)  # fmt: skip
def test_other_machines_ask_ten_times_a_second_unless_the_owner_says_otherwise(served_prompt, monkeypatch, how, rate):
    class AskedError(Exception):
        pass

    def listener(app, config, limits):
        raise AskedError(limits.rate)

    monkeypatch.setattr("hushprompt.serving.listening.Listener", listener)
    with pytest.raises(AskedError) as asked:
        hp.serve(served_prompt, **how)
    assert asked.value.args == (rate,)


@pytest.mark.parametrize("source", ["http://127.0.0.1:9/cat.png", "file:///etc/passwd", "/etc/passwd", "../x.png"])
def test_nothing_is_fetched_and_no_path_comes_from_a_request(app, monkeypatch, source):
    reached = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: reached.append(address))
    assert once(app, "POST", "/v1/predict", source.encode()).status == 415
    batch = b'{"images": ["%s"]}' % source.encode()
    assert once(app, "POST", "/v1/predict-batch", batch).status in (200, 400)
    assert "label" not in str(once(app, "POST", "/v1/predict-batch", batch).json)
    assert once(app, "POST", f"/v1/predict?url={source}", image()).status == 400
    for path in (source, f"/{source}", f"/v1/model/{source}", f"/script.js/../{source}", f"/%2e%2e/{source}"):
        assert once(app, "GET", path).status == 404
    assert reached == []


class Evil:
    """What runs a program when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_a_prompt_is_safetensors_and_nothing_else_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("evil.safetensors", "evil.pt"):
        Path(name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(DataError, match="is no prompt file"):
            hp.load_prompt(name)
    assert not Path("ran").exists()


def test_the_command_does_not_serve_against_its_owners_word(served_prompt, tmp_path, hush, monkeypatch):
    monkeypatch.setattr("hushprompt.serving.listening.Listener", None)  # nothing listens, whatever is forgotten
    path = served_prompt.path
    free = toy_prompt(tmp_path, privacy={"epsilon": float("inf"), "delta": 1e-3}).path
    for arguments, says in (
        ((path, "--max-epsilon", "4"), "--max-epsilon is 4, and of it holds: epsilon = 7.999 (simulation) at delta"),
        ((free,), "--allow-no-guarantee"),
        ((path, "--host", "0.0.0.0"), "--token-file and --tls-cert and --tls-key must be given, or --insecure"),
        ((path, "--rate-limit", "0"), "--rate-limit must be a number of requests a second"),
        ((path, "--backbone", "emoji_clip"), "was trained with another backbone"),
    ):
        done = hush("serve", *arguments, "--port", "0", ok=False)
        assert (done.code, says in " ".join(done.err.split())) == (2, True), done
