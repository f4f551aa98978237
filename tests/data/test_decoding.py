import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.layouts import encoded, wav
from hushprompt.data.decoding import Media, decode_audio, decode_image, media_of, resample
from hushprompt.errors import DataError


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_pixels_are_those_of_the_file_and_every_image_keeps_its_size():
    pixels = np.arange(5 * 3 * 3, dtype=np.uint8).reshape(5, 3, 3)
    got = decode_image(saved(Image.fromarray(pixels)), "a.png")
    assert got.dtype == np.uint8
    assert np.array_equal(got, pixels)


@pytest.mark.parametrize(
    ("image", "first"),
    [
        (Image.new("L", (2, 2), 9), [9, 9, 9]),
        (Image.new("1", (2, 2), 1), [255, 255, 255]),
        (Image.new("RGBA", (2, 2), (1, 2, 3, 0)), [1, 2, 3]),
        (Image.new("LA", (2, 2), (7, 100)), [7, 7, 7]),
        (Image.fromarray(np.full((2, 2), 65535, np.uint16)), [255, 255, 255]),
        (Image.fromarray(np.full((2, 2), 514, np.uint16)), [2, 2, 2]),
    ],
)
def test_gray_alpha_and_sixteen_bits_become_rgb(image, first):
    got = decode_image(saved(image), "a.png")
    assert got.shape == (2, 2, 3)
    assert got[0, 0].tolist() == first


def test_a_palette_with_transparency_is_read_without_a_warning():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    got = decode_image(saved(image, transparency=bytes([0, 255])), "a.png")
    assert got[0, 0].tolist() == [10, 20, 30]


def test_pixels_without_a_scale_are_refused():
    data = saved(Image.new("F", (2, 2), 0.5), "TIFF")
    with pytest.raises(DataError, match=r"a\.tif has pixels of type F; save it with 8 or 16 bits"):
        decode_image(data, "a.tif")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # of its own, before it raises
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]), st.floats(0, 0.98))
def test_a_cut_off_image_is_named_whatever_its_format(kind, part):
    data = encoded(3, kind, size=(40, 40))
    with pytest.raises(DataError, match=r"The image x\.img cannot be read"):
        decode_image(data[: int(part * len(data)) // 2], "x.img")


def test_a_recording_is_mono_and_of_the_wanted_rate(tmp_path):
    pytest.importorskip("soundfile")
    data = wav(tmp_path / "a.wav", frequency=1000, seconds=0.2, rate=44100, channels=2).read_bytes()
    got = decode_audio(data, "a.wav", 48000)
    assert got.dtype == np.float32
    assert got.shape == (9600,)
    expected = np.sin(2 * np.pi * 1000 * np.arange(9600) / 48000) / 2
    assert np.abs(got - expected)[200:-200].max() < 2e-3


def test_a_recording_of_the_wanted_rate_is_not_touched(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    wave = np.linspace(-0.5, 0.5, 100, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    assert np.array_equal(decode_audio((tmp_path / "a.wav").read_bytes(), "a.wav", 16000), wave)
    assert resample(wave, 16000, 8000).shape == (50,)


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_a_cut_off_recording_is_named(tmp_path, ending):
    pytest.importorskip("soundfile")
    data = wav(tmp_path / f"a.{ending}", seconds=1).read_bytes()
    for part in (0, 30, len(data) // 2):
        with pytest.raises(DataError, match=r"The recording a\.wav (is cut off|cannot be read|is empty)"):
            decode_audio(data[:part], "a.wav", 48000)


def test_a_streamed_wav_without_a_length_is_not_cut_off(tmp_path):
    pytest.importorskip("soundfile")
    data = bytearray(wav(tmp_path / "a.wav").read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    assert len(decode_audio(bytes(data), "a.wav", 44100)) == 4410


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    with pytest.raises(DataError, match="samples that are no numbers"):
        decode_audio((tmp_path / "a.wav").read_bytes(), "a.wav", 8000)


def test_endings_tell_images_from_sounds():
    assert media_of(["a.JPG", "b/c.png"], 8000, "d") == Media()
    assert media_of(["a.wav"], 8000, "d") == Media(modality="audio", sampling_rate=8000)
    with pytest.raises(DataError, match=r"d must have files of one kind.*found: jpg, wav"):
        media_of(["a.jpg", "a.wav"], 8000, "d")
