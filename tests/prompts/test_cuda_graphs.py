"""Recordings of a tower, played by the function itself: what is kept, filled up and cut off needs no GPU."""

from typing import ClassVar

import pytest
import torch

from hushprompt.prompts import cuda_graphs
from hushprompt.prompts.cuda_graphs import MULTIPLE, RecordedPass, Recorder, Recording
from hushprompt.prompts.text_pass import AutogradPass


class Played(Recording):
    """A recording that does its work anew; keeps the shapes for which it was made."""

    made: ClassVar[list] = []

    def __init__(self, work, inputs, pool):
        self.work = work
        self.made.append(tuple(each.shape for each in inputs))

    def __call__(self, *inputs):
        return self.work(*inputs)


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "Recording", Played)
    monkeypatch.setattr(Recorder, "_pool", None)
    monkeypatch.setattr(Played, "made", [])
    return Recorder()


def pair(recorder, model, seed=0):
    """The recorded pass of a context, and the plain one."""
    context = torch.randn(4, model.token_width, generator=torch.Generator().manual_seed(seed))
    return RecordedPass(recorder, "end", model.text_features, context), AutogradPass(model.text_features, context)


def test_it_gives_what_the_plain_pass_gives(recorder, model):
    generator = torch.Generator().manual_seed(1)
    for seed in (0, 1):
        ours, plain = pair(recorder, model, seed)
        torch.testing.assert_close(ours.features, plain.features)
        for count in (1, 7, 8, 9):
            cotangents = torch.randn(count, *ours.features.shape, generator=generator)
            rows = ours.pull_back(cotangents)
            assert rows.shape == (count, *ours._context.shape)
            torch.testing.assert_close(rows, plain.pull_back(cotangents), rtol=1e-5, atol=1e-6)


def test_batches_of_like_size_and_other_contexts_share_a_recording(recorder, model):
    for seed in (0, 1):
        ours, _ = pair(recorder, model, seed)
        for count in range(1, 2 * MULTIPLE + 1):
            ours.pull_back(torch.ones(count, *ours.features.shape))
    assert [shapes[-1][0] for shapes in Played.made] == [4, MULTIPLE, 2 * MULTIPLE]


def test_the_oldest_recording_goes_first(recorder, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "NUM_KEPT", 2)
    for size in (1, 2, 1, 3, 1, 2):
        recorder.run("double", lambda x: 2 * x, torch.ones(size))
    assert [shape[0][0] for shape in Played.made] == [1, 2, 3, 2]


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so(recorder, monkeypatch, caplog):
    def refuse(work, inputs, pool):
        refused.append(inputs)
        raise RuntimeError("operation not permitted when stream is capturing")

    refused = []
    monkeypatch.setattr(cuda_graphs, "Recording", refuse)
    monkeypatch.setattr(cuda_graphs.torch.cuda, "synchronize", lambda: None)
    for value in (1.0, 2.0):
        assert recorder.run("double", lambda x: 2 * x, torch.tensor(value)) == 2 * value
    assert len(refused) == len(caplog.records) == 1
    assert "cannot be recorded" in caplog.text
    with pytest.raises(RuntimeError, match="too large"):
        recorder.run("broken", lambda x: (_ for _ in ()).throw(RuntimeError("too large")), torch.ones(1))
