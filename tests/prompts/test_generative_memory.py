"""What a step of a generative model takes, as all tensors that are alive at once, against `runtime.memory_mb`."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

pytest.importorskip("transformers")

from helpers import tiny_generative
from hushprompt.methods.base import Batch
from hushprompt.models.generative import SmolVLM
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.prompts.passes import RESIDENT

NAMES = ("cat", "dog and ox", "ox", "the cat is what", "what is the dog")
MEMORY_MB = 2


class Alive(TorchDispatchMode):
    """Counts bytes of tensors that operators made and that are not gone."""

    def __init__(self, network):
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()
        for parameter in network.parameters():
            self._known[parameter.untyped_storage()] = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage):
        if storage in self._known or storage.nbytes() == 0:
            return
        self._known[storage] = True
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage.nbytes())

    def _remove(self, num_bytes):
        self.now -= num_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_generative.write("smolvlm", tmp_path_factory.mktemp("hub") / "smolvlm")


@pytest.mark.parametrize("keeps", [False, True], ids=["anew", "kept"])
@pytest.mark.parametrize("loss", ["answer", "classes"])
@pytest.mark.parametrize("position", ["tail", "front"])
def test_a_step_stays_below_its_memory_and_uses_it(folder, position, loss, keeps):
    backbone = SmolVLM(model=str(folder), prompt_position=position, loss=loss).load()
    model = GenerativeModel(backbone, NAMES, memory_mb=MEMORY_MB, prefix_cache_mb=64 * keeps)
    num = 60
    media = 0.1 * torch.randn(num, backbone.capabilities.num_tokens, backbone.token_width)
    batch, context = Batch(media, torch.arange(num) % len(NAMES)), 0.1 * torch.randn(6, backbone.token_width)
    model.scores(context, media)  # what is kept is no part of a step

    def taken(work):
        with Alive(backbone._network) as alive:
            work()
        return alive.peak / 2**20

    copy = context[None].clone().requires_grad_()
    forward = taken(lambda: model.losses(copy, media[:1], batch.labels[:1]))
    assert taken(lambda: model.scores(context, media)) < MEMORY_MB + forward
    step = taken(lambda: model.gradients(context, batch))
    assert 0.35 * MEMORY_MB < step < MEMORY_MB / RESIDENT + forward, (step, forward)
    model.memory_mb = None
    assert taken(lambda: model.gradients(context, batch)) > 2 * MEMORY_MB
