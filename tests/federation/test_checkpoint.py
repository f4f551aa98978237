import dataclasses

import pytest
import torch

from hushprompt import files
from hushprompt.errors import ResumeError
from hushprompt.federation import checkpoint
from hushprompt.federation.checkpoint import Progress, flatten, load_progress, load_state, save
from hushprompt.federation.simulate import State
from hushprompt.methods.base import NoState
from hushprompt.methods.context import ContextState
from hushprompt.methods.optimizer import Optimizer

PROGRESS = Progress(
    config_identity="abc",
    row_index=2,
    num_rounds_done=5,
    row_seconds=1.5,
    records_size=77,
    finished_rows=[{"row": "a"}],
)


def state(value=1.0, clients=2):
    context = torch.full((3, 4), value)
    return State(NoState(), (ContextState(context, Optimizer().init(context)),) * clients)


def test_what_is_saved_is_read_back_bit_by_bit(tmp_path):
    saved = state(torch.pi)
    save(tmp_path, saved, PROGRESS)
    loaded = load_state(tmp_path, state(0.0))
    assert flatten(loaded).keys() == flatten(saved).keys()
    for name, tensor in flatten(saved).items():
        assert torch.equal(tensor, flatten(loaded)[name])
    assert load_progress(tmp_path) == PROGRESS


def test_no_checkpoint_is_no_progress(tmp_path):
    assert load_progress(tmp_path) is None


def test_a_state_of_another_shape_is_refused(tmp_path):
    save(tmp_path, state(clients=3), PROGRESS)
    with pytest.raises(ResumeError, match="does not fit"):
        load_state(tmp_path, state(clients=2))


def test_a_damaged_checkpoint_is_named(tmp_path):
    save(tmp_path, state(), PROGRESS)
    path = tmp_path / checkpoint.FILE
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ResumeError, match="is damaged"):
        load_progress(tmp_path)


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, state(1.0), PROGRESS)

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, state(2.0), dataclasses.replace(PROGRESS, num_rounds_done=6))
    assert load_progress(tmp_path) == PROGRESS
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == ["state.safetensors"]


def test_a_state_with_anything_but_tensors_is_refused():
    with pytest.raises(TypeError, match="made of frozen dataclasses"):
        flatten({"a": torch.zeros(1)})
