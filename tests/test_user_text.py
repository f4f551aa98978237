import pytest

from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError, DataError
from hushprompt.user_text import alike, read_lines, read_text

TEXT = "seed = 1\nname = 'café'\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        b"\xff\xfe" + TEXT.encode("utf-16-le"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf\xef\xbb\xbf" + TEXT.encode(),
    ],
)
def test_what_any_editor_writes_is_read(tmp_path, content):
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    assert read_text(path) == TEXT
    assert configs.read(path) == {"seed": 1, "name": "café"}


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"seed = 1\nname = 'caf\xe9'\n", r"line 2 is not UTF-8 text: the byte 0xe9 is of .*Windows-1252"),
        (TEXT.encode("utf-16-le"), "UTF-16 without its mark; save the file as UTF-8"),
        (b'root = "C:\\Users\\me"\n', r"A backslash between double quotes starts an escape: write 'C:\\data'"),
        (b"seed = 1;\n", "does not end with a semicolon"),
        ("name = \u201ctoy\u201d\n".encode(), "typographic quotes"),
        ("seed\u00a0= 1\n".encode(), "a space or sign that cannot be told from others"),
        ("a = 1\n\u200bseed = 1\n".encode(), "a space or sign that cannot be told from others"),
        ("delta = 1e\u20115\n".encode(), "typographic quotes or dashes"),
        ("rate = \u22121\n".encode(), "typographic quotes or dashes"),
        (b"seed = 1\n\x1a", "a control character"),
        (b"\x0cseed = 1\n", "a control character"),
        (b"privacy = { epsilon = 2,5, delta = 1e-5 }\n", "a decimal point, not a comma"),
        (b"epsilon = 0,4\n", "a decimal point, not a comma"),
        (b"seed: 1\n", "= between a key and its value, not a colon"),
        (b"seed = 1\n// mine\n", "A comment of TOML starts with #"),
        (b"a = " + b"[" * 10**5, "nested too deeply"),
    ],
)
def test_where_text_cannot_be_read_the_sentence_names_the_cause(tmp_path, content, cause):
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=cause):
        configs.read(path)


def test_an_escape_that_toml_accepts_is_no_path(toy_values):
    values = {**toy_values, "data": {"name": "folder", "root": "C:\temp\new"}}
    with pytest.raises(ConfigError, match=r"data\.root has a control character.*single quotes"):
        configs.parse(values)


def test_a_setting_of_the_command_line_is_read_or_refused(toy_values):
    assert configs.override({}, r"data.root=C:\Users\me") == {"data": {"root": r"C:\Users\me"}}
    with pytest.raises(ConfigError, match=r"is not a TOML value.*A backslash between double quotes"):
        configs.override({}, r'data.root="C:\Users"')
    with pytest.raises(ConfigError, match=r"is not a TOML value.*need quotes"):
        configs.override({}, "data.classes=[cat, dog]")


def test_lines_are_names_in_nfc(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xef\xbb\xbfcafe\xcc\x81\r\n\r\n tea \r\n")
    assert read_lines(path, "--classes") == ("caf\u00e9", "tea")
    path.write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"^--classes .*classes.txt cannot be read \(line 1 is not UTF-8"):
        read_lines(path, "--classes")


def test_names_that_differ_by_case_or_spaces_alone():
    names = ["Cat", "cat ", "c at", "dog", "Straße", "STRASSE", "red_fox", "red fox"]
    assert alike(names) == [["Cat", "c at", "cat "], ["red fox", "red_fox"], ["STRASSE", "Straße"]]
    assert alike(["cat", "cat\u200b", "\uff43at"]) == [["cat", "cat\u200b", "\uff43at"]]  # look the same
    assert alike(["a", "b", "a"]) == []
    assert alike(["1", "01", "+1", "\u0661", "10", "-0", "0", "1a"]) == [["-0", "0"], ["+1", "01", "1", "\u0661"]]
    assert alike(["-1", "1", "9" * 5000]) == []
