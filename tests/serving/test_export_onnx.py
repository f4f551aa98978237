"""An exported ONNX file gives our probabilities, and its program needs onnxruntime, numpy and Pillow alone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import hushprompt as hp
from helpers import bare_environment, tiny_models
from helpers.pictures import pictures
from helpers.prompt_files import written
from helpers.runs import TOY
from hushprompt.config.values import choose
from hushprompt.errors import ConfigError, DataError
from hushprompt.models.image_graph import PixelRecipe
from hushprompt.models.transformers import recipe_of
from hushprompt.serving.export import onnx_file

FEDCLIP = {"name": "fedclip"}
TOLERANCE = 1e-5
NEEDED = ("onnxruntime", "numpy", "pillow")


def backbone_of(kind, folder):
    """Return the section of a small model of a family."""
    if kind == "emoji_clip":
        return {"name": "emoji_clip"}
    if kind in ("clip", "siglip", "siglip2_naflex"):
        folder.mkdir()
        getattr(tiny_models, kind)(folder)
        return {"name": "transformers", "model": str(folder)}
    import open_clip

    folder.mkdir()
    tiny_models.write_open_clip_configs(folder)
    open_clip.add_model_config(folder)
    save_file(tiny_models.open_clip_model(kind).state_dict(), folder / "weights.safetensors")
    return {"name": "open_clip", "architecture": f"tiny-{kind}", "checkpoint": str(folder / "weights.safetensors")}


def session(folder):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("clip", TOY["method"]),
        ("siglip", TOY["method"]),
        ("vit", FEDCLIP),
        ("resnet", FEDCLIP),
        ("emoji_clip", TOY["method"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_the_file_gives_our_probabilities_in_batches_of_any_size(kind, method, tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "open_clip", "transformers"):
        pytest.importorskip(package)
    monkeypatch.setitem(tiny_models.ENCODER, "num_hidden_layers", 1)
    backbone = backbone_of(kind, tmp_path / "model")
    written(method, tmp_path / "prompts", backbone=backbone)
    prompt = hp.load_prompt(tmp_path / "prompts", backbone=choose("backbone", backbone).load())
    folder, images = hp.export(prompt, to="onnx", out=tmp_path / "onnx"), pictures(tmp_path)
    recipe = prompt.model.backbone.image_graph().recipe
    pixels = np.concatenate([onnx_file.pixels_of(recipe, Image.open(path)) for path in images])
    wanted, opened = prompt.probabilities(images), session(folder)
    assert opened.get_modelmeta().custom_metadata_map == {"privacy": prompt.privacy}
    for count in (1, 3):
        (found,) = opened.run(None, {"pixels": pixels[:count]})
        assert np.abs(found - wanted[:count]).max() < TOLERANCE
    assert np.ptp(wanted, axis=0).max() > 100 * TOLERANCE, "a constant proves nothing"
    content = (folder / "model.onnx").read_bytes()
    assert not [word for word in (b".py", b"/src/", str(tmp_path).encode()) if word in content], "no paths from here"
    assert json.loads((folder / "labels.json").read_text()) == list(prompt.classes)
    assert sorted(path.name for path in folder.iterdir()) == [
        "labels.json", "model.onnx", "predict.py", "preprocess.json", "prompt.safetensors",
    ]  # fmt: skip
    if kind == "clip":
        printed = alone(folder, tmp_path / "environment", images)
        for line, path in zip(printed, images, strict=True):
            file, *top = line.split("\t")
            assert file == str(path)
            for said, (label, probability) in zip(top, prompt.predict(path).top, strict=True):
                name, _, value = said.rpartition(" ")
                assert (name, float(value)) == (label, pytest.approx(probability, abs=TOLERANCE))


def alone(folder, home, images):
    """Run an export's program in an environment that has onnxruntime, NumPy and Pillow alone; return its lines."""
    python = bare_environment.linked(home, *NEEDED)
    assert bare_environment.contents(python) == bare_environment.needed(NEEDED).keys()
    return bare_environment.lines(python, folder / "predict.py", *images)


@pytest.mark.parametrize("kind", ["emoji_clip", "vit", "mobile", "clip", "siglip"])
def test_the_programs_lines_make_the_pixels_that_the_backbone_sees(kind, tmp_path):
    pytest.importorskip("open_clip")
    pytest.importorskip("transformers")
    model = choose("backbone", backbone_of(kind, tmp_path / "model")).load()
    tower, recipe = model.image_graph()
    rng = np.random.default_rng(1)
    for width, height in [(32, 32), (64, 64), (33, 47), (101, 64), (19, 90), (300, 77), (37, 30)]:
        image = Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8))
        pixels = torch.from_numpy(onnx_file.pixels_of(recipe, image))
        with torch.no_grad():
            torch.testing.assert_close(tower(pixels), model.encode_images([np.asarray(image)]), rtol=0, atol=2e-5)


def test_a_program_has_ten_lines():
    cut = onnx_file.script(PixelRecipe(short_side=8, size=(8, 8)))
    body = [line for line in cut.splitlines() if line and not line.startswith(('"""', "import", "from"))]
    assert len(body) == 10
    assert max(map(len, cut.splitlines())) <= 120


def test_a_preprocessing_that_the_program_could_not_repeat_is_refused(tmp_path):
    said = {**tiny_models.PIXELS, "size": {"height": 8, "width": 8}}
    assert recipe_of(said) == PixelRecipe(size=(8, 8), mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    for change in ({"do_normalize": False}, {"rescale_factor": 1.0}, {"size": {"shortest_edge": 8}}, {"do_pad": True}):
        with pytest.raises(ConfigError, match="does more than resize, cut the center and standardize"):
            recipe_of({**said, **change})


def test_a_file_that_disagrees_is_not_left_behind(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    written(TOY["method"], tmp_path / "prompts")
    prompt = hp.load_prompt(tmp_path / "prompts")
    wrong = np.full((4, 6), 0.5, np.float32)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: type("", (), {"run": lambda *_: [wrong]})())
    with pytest.raises(DataError, match=r"differ from those of the prompt by up to 0\.\d+, where 1e-05 is allowed"):
        onnx_file._check(prompt, PixelRecipe(size=(8, 8)), tmp_path / "model.onnx")
