"""A toy prompt behind the real application, and images and sounds to ask it about."""

import dataclasses
import io
import struct
import wave
import zlib

import numpy as np
import torch
from PIL import Image

import hushprompt as hp
from helpers.prompt_files import written
from hushprompt.models.toy import Toy, ToyModel
from hushprompt.serving.guard import Door
from hushprompt.serving.limits import ServingLimits
from hushprompt.serving.replies import PromptAnswers
from hushprompt.serving.server import PromptService, application


def toy_prompt(folder, **sections):
    """Write the files of a method's start, and load client 1's prompt."""
    written({"name": "dp_fpl", "num_ctx": 4, "rank": 2}, folder / "prompts", **sections)
    return hp.load_prompt(folder / "prompts", client=1)


class HearingToy(ToyModel):
    """The toy model's text with an ear: features are a few statistics of a waveform."""

    def __init__(self):
        super().__init__(Toy())
        self.capabilities = dataclasses.replace(self.capabilities, modality="audio", sampling_rate=16_000)

    def encode_images(self, images):
        rows = [[1, wave.mean(), wave.std(), wave.min(), wave.max(), 0] for wave in images]
        return torch.nn.functional.normalize(torch.tensor(rows).float(), dim=1)


def hearing(prompt):
    """Return a prompt for sounds."""
    return dataclasses.replace(prompt, backbone=HearingToy())


def toy_app(prompt, door=None, answers=PromptAnswers, **limits):
    """Put a prompt behind HTTP."""
    allowed = ServingLimits(**limits)
    return application(PromptService(answers(prompt), allowed), door or Door(), allowed)


def image(kind="PNG", size=(20, 16), seed=0, **how):
    """Return the bytes of a random image."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    return buffer.getvalue()


def chunk(name, data):
    """Return one part of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(side):
    """Return a PNG of one color: few bytes, and many pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(min(side, 100) * (side + 1))))
    return b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b"")


def long_transparency():
    """Return a PNG with a palette of one color and transparencies of 400: Pillow fails when it converts the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0))
    colors = chunk(b"PLTE", b"abc") + chunk(b"tRNS", bytes(400))
    return b"\x89PNG\r\n\x1a\n" + header + colors + chunk(b"IDAT", zlib.compress(bytes(20))) + chunk(b"IEND", b"")


def sound(seconds=0.1, rate=16_000):
    """Return the bytes of a WAV."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        tone = np.sin(np.arange(int(seconds * rate)) / 7)
        file.writeframes((20_000 * tone).astype("<i2").tobytes())
    return buffer.getvalue()
