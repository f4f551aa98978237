"""Messages that nobody honest sends, with a checksum that fits."""

import hashlib
import json

import torch
from safetensors.torch import save


def packed(body):
    return b"hushmsg1" + hashlib.sha256(body).digest() + body


def with_text(text):
    return packed(save({}, metadata={"hushprompt": text}))


def with_header(header, content=b""):
    text = header.encode()
    return packed(len(text).to_bytes(8, "little") + text + content)


def of_dtype(dtype):
    return packed(save({"sum": torch.zeros(4, 8).to(dtype)}, metadata={"hushprompt": '{"kind": "turn", "meta": {}}'}))


def with_meta(value):
    return with_text(f'{{"kind": "turn", "meta": {{"round": {value}}}}}')


META = json.dumps({"hushprompt": '{"kind": "turn", "meta": {}}'})
HOSTILE = {
    "nested in a value": with_meta("[" * 1000 + "]" * 1000),
    "nested less": with_meta("[" * 20 + "]" * 20),
    "nested in the header": with_header('{"__metadata__": ' + "[" * 5000 + "]" * 5000 + "}"),
    "float8": of_dtype(torch.float8_e4m3fn),
    "complex": of_dtype(torch.complex64),
    "infinity by overflow": with_meta("1e999"),
    "a number of 400 digits": with_meta("9" * 400),
    "half a surrogate": with_meta('"\\ud800"'),
    "no text": packed(save({}, metadata={"hushprompt": "\x00"})),
    "no metadata": packed(save({"sum": torch.zeros(2)})),
    "a list as header": with_header("[1, 2]"),
    "a header without end": packed((2**63).to_bytes(8, "little") + b"{}"),
    "a tensor beyond the end": with_header(
        f'{{"__metadata__": {META}, "sum": {{"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}}}'
    ),
    "a shape that overflows": with_header(
        f'{{"__metadata__": {META}, "sum": {{"dtype": "F32", "shape": [{2**62}, 4], "data_offsets": [0, 0]}}}}'
    ),
    "a negative shape": with_header(
        f'{{"__metadata__": {META}, "sum": {{"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}}}'
    ),
    "nothing at all": b"",
    "another magic": b"hushmsg0" + bytes(100),
}
