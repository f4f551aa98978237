"""The page of a served prompt in a real browser: picture in, bars out, and nothing complains."""

import contextlib
import dataclasses
import io
import json
import threading

import pytest
from PIL import Image

from helpers import browser
from helpers.served import hearing, image, sound, toy_app
from hushprompt.serving.guard import Door
from hushprompt.serving.limits import ServingLimits
from hushprompt.serving.listening import Listener, ListenerConfig

pytestmark = pytest.mark.skipif(
    browser.executable() is None,
    reason="no Chromium on the PATH and none named by HUSHPROMPT_BROWSER; get one with: apt-get install chromium",
)
TOKEN = "a-token-that-is-long-enough"
READY = "!document.getElementById('desk').hidden"
ANSWERED = "!document.getElementById('columns').hidden && !document.querySelector('.is-waiting')"
FIRST = "document.querySelector('#trained li').innerText.split('\\n')"
FILE = """
const made = (() => {{
  const bytes = Uint8Array.from(atob("{data}"), each => each.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "made.png"));
  return transfer;
}})();
"""


@contextlib.contextmanager
def listening(app):
    listener = Listener(app, ListenerConfig(port=0), ServingLimits())
    ready = threading.Event()
    thread = threading.Thread(target=listener.run, args=(ready.set,))
    thread.start()
    assert ready.wait(10)
    try:
        yield listener.url
    finally:
        listener.stop()
        thread.join(10)


@pytest.fixture(scope="module")
def url(served_prompt):
    with listening(toy_app(served_prompt)) as found:
        yield found


@pytest.fixture(scope="module")
def browsing(tmp_path_factory):
    with browser.opened(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def tab(browsing):
    browsing.complaints.clear()
    browsing.requests.clear()
    return browsing


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(image(size=(60, 40)))
    return path


@pytest.mark.parametrize(
    "view", [{"width": 1280}, {"width": 1280, "scheme": "dark"}, {"width": 360}, {"width": 390, "scheme": "dark"}]
)
def test_picture_in_bars_out(tab, url, photo, served_prompt, view):
    tab.show(url, **view)
    tab.wait_for(READY)
    assert tab.ask("document.querySelectorAll('.track').length") == 0
    tab.choose("#file", photo)
    tab.wait_for(ANSWERED)
    wanted, before = served_prompt.predict(photo), served_prompt.zero_shot().predict(photo)
    assert tab.ask(FIRST) == [wanted.label, f"{100 * wanted.probability:.1f} %"]
    assert tab.ask("[...document.querySelectorAll('#trained .name')].map(e => e.textContent)") == [
        n for n, _ in wanted.top
    ]
    assert tab.ask("document.querySelector('#zero_shot .name').textContent") == before.label
    whole, bar = (
        tab.ask(f"document.querySelector('#trained .track{inner}').getBoundingClientRect().width")
        for inner in ("", " > span")
    )
    tab.wait_for(f"Math.abs(document.querySelector('#trained .track > span').getBoundingClientRect().width"
                 f" - {whole * wanted.probability}) < 2")  # fmt: skip
    assert bar <= whole
    assert tab.ask("document.querySelector('#picture').naturalWidth") == 60
    assert tab.ask("document.documentElement.scrollWidth") <= view["width"]
    assert tab.complaints == [], "no error, and nothing that the security policy forbids"
    assert {each.split("?")[0] for each in tab.requests if not each.startswith("blob:")} == {
        f"{url}{path}" for path in ("/", "/script.js", "/style.css", "/v1/model", "/v1/predict")
    }, "nothing from elsewhere"


def test_the_page_brings_its_own_icon_under_its_own_policy(tab, url):
    tab.show(url, 800)
    tab.wait_for(READY)
    tab.ask("{const probe = new Image(); probe.id = 'probe'; document.body.append(probe);"
            " probe.src = document.querySelector('link[rel=icon]').href;}")  # fmt: skip
    tab.wait_for("document.getElementById('probe').naturalWidth === 16")
    assert tab.complaints == []
    assert not any("favicon" in each for each in tab.requests)


def test_the_promise_stands_on_the_page_with_the_whole_statement(tab, url, served_prompt):
    tab.show(url, 800)
    tab.wait_for(READY)
    assert "too weak to rule that out" in tab.ask("document.getElementById('plain').innerText")
    assert tab.ask("document.getElementById('statement').textContent") == served_prompt.privacy
    assert tab.ask("document.querySelector('#more a').getAttribute('href')") == "/v1/model"


@pytest.mark.parametrize(
    "event", ["new DragEvent('drop', {dataTransfer: made})", "new ClipboardEvent('paste', {clipboardData: made})"]
)
def test_an_image_can_be_dropped_or_pasted(tab, url, served_prompt, event):
    import base64

    tab.show(url, 800)
    tab.wait_for(READY)
    data = image(seed=4)
    tab.ask(FILE.format(data=base64.b64encode(data).decode()) + f"document.dispatchEvent({event}); 1")
    tab.wait_for(ANSWERED)
    assert tab.ask(FIRST)[0] == served_prompt.predict(data).label
    assert tab.complaints == []


def test_it_works_by_keyboard_and_says_what_came_to_a_screen_reader(tab, url, photo):
    tab.show(url, 800)
    tab.wait_for(READY)
    visited = []
    for _ in range(3):
        tab.press("Tab", 9)
        visited.append(tab.ask("document.activeElement.id || document.activeElement.tagName"))
    assert visited[0] == "file"
    assert "SUMMARY" in visited
    assert tab.ask("getComputedStyle(document.querySelector('label.button')).outlineStyle") == "none"
    tab.ask("document.getElementById('file').focus()")
    assert tab.ask("getComputedStyle(document.querySelector('label.button')).outlineStyle") == "solid"
    tab.choose("#file", photo)
    tab.wait_for(ANSWERED)
    label, share = tab.ask(FIRST)
    assert tab.ask("document.querySelector('[role=status]').textContent") == f"{label}, {share}"


def test_what_is_no_image_is_said_in_a_sentence_and_the_next_one_is_answered(tab, url, tmp_path, photo):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"GIF89a")
    tab.show(url, 800)
    tab.wait_for(READY)
    tab.choose("#file", bad)
    tab.wait_for("!document.getElementById('problem').hidden")
    assert "no image that can be read" in tab.ask("document.querySelector('[role=alert]').innerText")
    tab.choose("#file", photo)
    tab.wait_for(ANSWERED)
    assert tab.ask("document.getElementById('problem').hidden") is True


def test_a_photo_that_lies_on_its_side_is_turned_upright_before_it_is_sent(tab, url, tmp_path, served_prompt):
    path = tmp_path / "side.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(image(size=(64, 32)))).save(path, exif=exif.tobytes(), quality=95)
    tab.show(url, 800)
    tab.wait_for(READY)
    tab.ask(
        "window.sent = []; const real = fetch;"
        "fetch = (path, how) => { sent.push(how.body); return real(path, how); }; 1"
    )
    tab.choose("#file", path)
    tab.wait_for(ANSWERED)
    tab.ask("createImageBitmap(sent[0]).then(found => window.size = [found.width, found.height]); 1")
    tab.wait_for("window.size")
    assert tab.ask("size") == [32, 64]
    assert tab.complaints == []


def test_a_server_with_a_token_asks_for_it_and_keeps_it_in_memory_alone(tab, served_prompt, photo):
    with listening(toy_app(served_prompt, Door(frozenset({"localhost"}), TOKEN))) as url:
        tab.show(url, 800)
        tab.wait_for("!document.getElementById('door').hidden")
        assert tab.ask(READY) is False
        for token, expected in (("wrong", "document.getElementById('about').textContent.includes('not the token')"),
                                (TOKEN, READY)):  # fmt: skip
            tab.ask(f"document.getElementById('token').value = {json.dumps(token)};"
                    "document.getElementById('door').requestSubmit(); 1")  # fmt: skip
            tab.wait_for(expected)
        tab.choose("#file", photo)
        tab.wait_for(ANSWERED)
        assert not any(TOKEN in each for each in tab.requests), "never in an address"
        assert tab.ask("document.cookie + JSON.stringify({...localStorage, ...sessionStorage})") == "{}"
        assert not any("Security Policy" in json.dumps(each) for each in tab.complaints)
        tab.show(url, 800)
        tab.wait_for("!document.getElementById('door').hidden")


def test_a_prompt_for_sounds_takes_sounds(tab, served_prompt, tmp_path):
    path = tmp_path / "tone.wav"
    path.write_bytes(sound())
    prompt = hearing(served_prompt)
    with listening(toy_app(prompt)) as url:
        tab.show(url, 360)
        tab.wait_for(READY)
        tab.choose("#file", path)
        tab.wait_for(ANSWERED)
        assert tab.ask(FIRST)[0] == prompt.predict(sound()).label
        assert "tone.wav" in tab.ask("document.getElementById('hint').innerText")
        assert tab.complaints == []


def test_a_question_is_answered_in_words_by_keyboard_alone(tab, url, generative_prompt, photo):
    """Only where the model answers in words, zero-shot beside it."""
    tab.show(url, 800)
    tab.wait_for(READY)
    assert tab.ask("document.getElementById('words').hidden") is True
    question = "What color is it?"
    with listening(toy_app(generative_prompt)) as words:
        tab.show(words, 360)
        tab.wait_for(READY)
        assert generative_prompt.privacy == tab.ask("document.getElementById('statement').textContent")
        tab.choose("#file", photo)
        tab.wait_for(ANSWERED)
        while tab.ask("document.activeElement.id") != "question":
            tab.press("Tab", 9)
        tab.send("Input.insertText", text=question)
        tab.send("Input.dispatchKeyEvent", type="keyDown", key="Enter", windowsVirtualKeyCode=13, text="\r")
        tab.wait_for("document.getElementById('thinking').className === 'is-answer'")
        said = f"{generative_prompt.answer(photo, question)} (cut off)"
        before = generative_prompt.zero_shot().answer(photo, question) or "(no word)"
        assert [tab.ask(f"document.getElementById('{id}').textContent") for id in ("thinking", "said_before")] == [
            said, before,
        ]  # fmt: skip
        assert tab.ask("document.documentElement.scrollWidth") <= 360
        assert not any("color" in each for each in tab.requests), "never in an address"
        tab.choose("#file", photo)
        tab.wait_for("document.getElementById('said_beside').hidden")
        assert tab.complaints == []
    header = dataclasses.replace(generative_prompt.header, class_names=(), task="answers")
    with listening(toy_app(dataclasses.replace(generative_prompt, header=header))) as words:
        tab.show(words, 360)
        tab.wait_for(READY)
        tab.choose("#file", photo)
        tab.wait_for("document.getElementById('thinking').className === 'is-answer'")
        said = f"{generative_prompt.answer(photo)} (cut off)"
        assert tab.ask("document.getElementById('thinking').textContent") == said
        assert "questions about an image in words" in tab.ask("document.getElementById('about').textContent")
        assert tab.complaints == []
