import dataclasses

import numpy as np
import pytest
import torch

from hushprompt import files
from hushprompt.errors import ResumeError
from hushprompt.methods.base import NoState
from hushprompt.methods.context import ContextState
from hushprompt.prompts.optimizer import Optimizer
from hushprompt.runs import checkpoint
from hushprompt.runs.checkpoint import Checkpoints, Progress, load_progress, load_state
from hushprompt.runs.state import State, flatten

PROGRESS = Progress(
    config_identity="abc",
    arm_index=2,
    num_rounds_done=5,
    arm_seconds=1.5,
    records_size=77,
    finished_arms=[{"arm": "a"}],
    last_scores=[{"local": float("inf")}],
)


def own(value):
    context = torch.full((3, 4), value)
    return ContextState(context, Optimizer().init(context))


def state(value=1.0, clients=2):
    return State(NoState(), (own(value),) * clients)


def save(folder, saved, progress=PROGRESS, changed=None):
    changed = range(len(saved.personal)) if changed is None else changed
    return Checkpoints(folder, load_progress(folder) or PROGRESS).save(saved, progress, changed)


def assert_same(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def segments(folder):
    return sorted(path.name for path in (folder / "checkpoint").glob("personal*"))


def test_what_is_saved_is_read_back_bit_by_bit(tmp_path):
    saved = state(torch.pi)
    written = save(tmp_path, saved)
    assert_same(load_state(tmp_path, state(0.0)), saved)
    assert load_progress(tmp_path) == written
    assert written == dataclasses.replace(PROGRESS, segments=["personal-2-00005.safetensors"])


def test_no_checkpoint_is_no_progress(tmp_path):
    assert load_progress(tmp_path) is None


@pytest.mark.parametrize("resumes", [False, True])
def test_a_log_of_changes_is_the_state_and_stays_in_bounds(tmp_path, resumes):
    """Against the obvious twin, a list that is kept in memory, over many rounds and two arms."""
    rng, clients = np.random.default_rng(0), 7
    writer = Checkpoints(tmp_path, dataclasses.replace(PROGRESS, arm_index=0, num_rounds_done=0))
    for arm_index in (0, 1):
        personal = [own(-1.0)] * clients
        for done in range(1, 15):
            changed = sorted(rng.choice(clients, size=rng.integers(0, 4), replace=False).tolist())
            for client_id in changed:
                personal[client_id] = own(float(rng.normal()))
            if resumes and done > 1:
                writer = Checkpoints(tmp_path, load_progress(tmp_path))
            progress = dataclasses.replace(PROGRESS, arm_index=arm_index, num_rounds_done=done)
            writer.save(State(NoState(), tuple(personal)), progress, changed)
            assert_same(load_state(tmp_path, state(-1.0, clients)), State(NoState(), tuple(personal)))
            names = load_progress(tmp_path).segments
            assert segments(tmp_path) == names
            stored = sum(len(checkpoint._keys(tmp_path / "checkpoint" / name)) for name in names)
            assert stored <= 2 * clients * len(flatten(own(0.0)))


def test_a_round_writes_its_own_clients_and_not_all(tmp_path, monkeypatch):
    written = []
    true_write = files.write_tensors
    monkeypatch.setattr(files, "write_tensors", lambda p, t, m: written.append((p.name, len(t))) or true_write(p, t, m))
    writer = Checkpoints(tmp_path, PROGRESS)
    for done in range(1, 40):
        writer.save(state(float(done), 100), dataclasses.replace(PROGRESS, num_rounds_done=done), [done % 100, 99])
    per_client = len(flatten(own(0.0)))
    assert max(count for name, count in written if name.startswith("personal")) < 45 * per_client
    assert sum(count for name, count in written if name.startswith("personal")) < 3 * 39 * 2 * per_client


def test_a_segment_without_its_commit_is_ignored_and_later_removed(tmp_path, monkeypatch):
    save(tmp_path, state(1.0))
    true_replace = files.os.replace

    def broken(source, target):
        if str(target).endswith("state.safetensors"):
            raise OSError("killed")
        true_replace(source, target)

    later = dataclasses.replace(PROGRESS, num_rounds_done=6)
    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(OSError, match="killed"):
        save(tmp_path, state(2.0), later)
    monkeypatch.undo()
    assert len(segments(tmp_path)) == 2
    assert_same(load_state(tmp_path, state(0.0)), state(1.0))
    for done in (6, 7):
        save(tmp_path, state(3.0), dataclasses.replace(PROGRESS, num_rounds_done=done))
    assert_same(load_state(tmp_path, state(0.0)), state(3.0))
    assert segments(tmp_path) == load_progress(tmp_path).segments


def test_a_finished_arm_keeps_its_states_until_the_next_one_moves(tmp_path):
    save(tmp_path, state(1.0))
    closed = dataclasses.replace(PROGRESS, arm_index=3, num_rounds_done=0)
    save(tmp_path, state(1.0), closed, changed=())
    assert_same(load_state(tmp_path, state(0.0)), state(1.0))
    save(tmp_path, state(0.0), dataclasses.replace(closed, num_rounds_done=1), changed=())  # everybody failed
    assert_same(load_state(tmp_path, state(0.0)), state(0.0))
    assert segments(tmp_path) == []


def test_a_state_of_another_shape_is_refused(tmp_path):
    save(tmp_path, state(clients=3))
    with pytest.raises(ResumeError, match="does not fit"):
        load_state(tmp_path, state(clients=2))
    with pytest.raises(ResumeError, match="does not fit"):
        load_state(tmp_path, State(own(0.0), state(clients=3).personal))


@pytest.mark.parametrize("name", ["state.safetensors", "personal-2-00005.safetensors"])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    save(tmp_path, state())
    path = tmp_path / "checkpoint" / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ResumeError, match="is damaged"):
        load_state(tmp_path, state())


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    written = save(tmp_path, state(1.0))

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, state(2.0), dataclasses.replace(PROGRESS, num_rounds_done=6))
    assert load_progress(tmp_path) == written
    names = sorted(p.name for p in (tmp_path / "checkpoint").iterdir())
    assert names == ["personal-2-00005.safetensors", "state.safetensors"]


def test_a_state_with_anything_but_tensors_is_refused():
    with pytest.raises(TypeError, match="made of frozen dataclasses"):
        flatten({"a": torch.zeros(1)})
