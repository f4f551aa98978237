"""Recordings of a tower, played by the function itself: what is kept, filled up and cut off needs no GPU."""

from typing import ClassVar

import pytest
import torch

from hushprompt.models.text_pass import AutogradPass
from hushprompt.prompts import cuda_graphs
from hushprompt.prompts.cuda_graphs import MULTIPLE, RecordedPass, Recorder, Recording
from hushprompt.prompts.prompt_model import PromptModel


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
    monkeypatch.setattr(recorded_pass, "Recording", Played)
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
        assert torch.equal(ours.features, plain.features)
        for count in (1, 7, 8, 9):
            weights = torch.randn(count, model.num_classes, generator=generator)
            directions = torch.randn(count, model.backbone.feature_dim, generator=generator)
            rows = ours.pull_back(weights, directions)
            assert rows.shape == (count, *ours._context.shape)
            torch.testing.assert_close(rows, plain.pull_back(weights, directions), rtol=1e-5, atol=1e-6)


def test_batches_of_like_size_and_other_contexts_share_a_recording(recorder, model):
    for seed in (0, 1):
        ours, _ = pair(recorder, model, seed)
        for count in range(1, 2 * MULTIPLE + 1):
            ours.pull_back(torch.ones(count, model.num_classes), torch.ones(count, model.backbone.feature_dim))
    assert [shapes[-1][0] for shapes in Played.made] == [4, MULTIPLE, 2 * MULTIPLE]


def test_a_stack_of_contexts_is_recorded_as_one(recorder, model):
    stacked = PromptModel(model.backbone, model.class_names)
    stacked._recorder = recorder
    generator = torch.Generator().manual_seed(1)
    contexts = 0.1 * torch.randn(3, 5, model.token_width, generator=generator)
    weights = torch.randn(7, 3, model.num_classes, generator=generator)
    directions = torch.randn(7, 3, model.backbone.feature_dim, generator=generator)
    joint = stacked.stacked_pass(contexts)
    rows = joint.pull_back(weights, directions)
    assert [shapes[0] for shapes in Played.made] == [contexts.shape] * 2
    assert Played.made[1][1] == (MULTIPLE, 3, model.num_classes, model.backbone.feature_dim)
    for slot, context in enumerate(contexts):
        alone = model.text_pass(context)
        torch.testing.assert_close(joint.features[slot], alone.features)
        expected = alone.pull_back(weights[:, slot], directions[:, slot])
        torch.testing.assert_close(rows[:, slot], expected, rtol=1e-5, atol=1e-6)


def test_a_stack_and_the_contexts_of_as_many_classes_are_told_apart(recorder, model):
    """A stack of five contexts has the shape of one context a class, and is another function."""
    both = PromptModel(model.backbone, model.class_names)
    both._recorder = recorder
    contexts = torch.randn(model.num_classes, 4, model.token_width, generator=torch.Generator().manual_seed(2))
    assert both.stacked_pass(contexts).features.shape == (model.num_classes, *both.text_pass(contexts).features.shape)


def test_the_oldest_recording_goes_first(recorder, monkeypatch):
    monkeypatch.setattr(recorded_pass, "NUM_KEPT", 2)
    for size in (1, 2, 1, 3, 1, 2):
        recorder.run("double", lambda x: 2 * x, torch.ones(size))
    assert [shape[0][0] for shape in Played.made] == [1, 2, 3, 2]


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so(recorder, monkeypatch, caplog):
    def refuse(work, inputs, pool):
        refused.append(inputs)
        raise RuntimeError("operation not permitted when stream is capturing")

    refused = []
    monkeypatch.setattr(recorded_pass, "Recording", refuse)
    monkeypatch.setattr(cuda_graphs.torch.cuda, "synchronize", lambda: None)
    for value in (1.0, 2.0):
        assert recorder.run("double", lambda x: 2 * x, torch.tensor(value)) == 2 * value
    assert len(refused) == len(caplog.records) == 1
    assert "cannot be recorded" in caplog.text
    with pytest.raises(RuntimeError, match="too large"):
        recorder.run("broken", lambda x: (_ for _ in ()).throw(RuntimeError("too large")), torch.ones(1))
