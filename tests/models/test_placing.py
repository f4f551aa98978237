import pytest

from hushprompt.config import parse as config
from hushprompt.errors import ConfigError
from hushprompt.models import placing
from hushprompt.models.embedded import EmojiClip
from hushprompt.models.placing import place
from hushprompt.models.toy import Toy


@pytest.fixture
def has_gpu(monkeypatch):
    monkeypatch.setattr(placing.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(placing, "load_linear_algebra", lambda: None)


@pytest.mark.parametrize(("wanted", "expected"), [("auto", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_a_backbone_goes_where_it_is_wanted(has_gpu, monkeypatch, wanted, expected):
    backbone, moved = EmojiClip().load(), ["cpu"]
    monkeypatch.setattr(backbone, "to", moved.append)
    assert place(backbone, wanted) == moved[-1] == expected


def test_a_backbone_that_cannot_move_stays(has_gpu):
    toy = Toy().load()
    assert not toy.capabilities.runs_on_gpu
    assert place(toy, "auto") == "cpu"
    with pytest.raises(ConfigError, match="this backbone runs on the CPU only"):
        place(toy, "cuda")


def test_without_a_gpu_only_a_plain_wish_for_one_is_refused(monkeypatch):
    monkeypatch.setattr(placing.torch.cuda, "is_available", lambda: False)
    assert place(EmojiClip().load(), "auto") == "cpu"
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        place(EmojiClip().load(), "cuda")


def test_the_device_is_no_part_of_what_a_run_is_and_the_precision_is():
    preset = config.locate(None)
    plain = config.load(preset).identity()
    assert config.load(preset, ["runtime.device=auto"]).identity() == plain
    clip = ["backbone.name=open_clip", "backbone.architecture=ViT-B-32"]
    exact, lower = (config.load(preset, [*clip, f"backbone.precision={p}"]) for p in ("float32", "bfloat16"))
    assert exact.identity() != lower.identity()
