"""Every trained method on a few of the embedded drawings: without noise it beats the untrained context."""

import dataclasses

import numpy as np
import pytest
import torch

from helpers.toy_metric import task_of
from hushprompt.config import parse as configs
from hushprompt.methods.base import Batch, ClipsBatches, OneRelease
from hushprompt.methods.random_prompt import RandomPrompt
from hushprompt.privacy.config import Channel
from hushprompt.prompts.optimizer import Optimizer
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS

NUM_CLASSES, NUM_CLIENTS, NUM_TRAIN, NUM_TEST, NUM_ROUNDS = 12, 2, 4, 15, 6
TRAINED = [name for name in METHODS.names() if METHODS.get(name)().channels]


@dataclasses.dataclass(frozen=True)
class Data:
    """A few classes; client i holds every second one, from the i-th on. Batches by kind of features."""

    model: PromptModel
    train: dict[str, tuple[Batch, ...]]
    test: dict[str, tuple[Batch, ...]]


@pytest.fixture(scope="module")
def data():
    preset = configs.load(configs.locate(None))
    dataset = preset.data.load()
    model = PromptModel(preset.backbone.load(), dataset.class_names[:NUM_CLASSES])

    def batches(split, count, encode):
        source = dataset.splits[split]
        parts = []
        for client_id in range(NUM_CLIENTS):
            classes = range(client_id, NUM_CLASSES, NUM_CLIENTS)
            index = np.concatenate([np.flatnonzero(source.labels == label)[:count] for label in classes])
            parts.append(Batch(encode(source.read(index)), torch.from_numpy(source.labels[index])))
        return tuple(parts)

    encoders = {"pooled": model.backbone.encode_images, "patches": model.backbone.encode_patches}
    train = {kind: batches("train", NUM_TRAIN, encode) for kind, encode in encoders.items()}
    return Data(model, train, {kind: batches("test", NUM_TEST, encode) for kind, encode in encoders.items()})


def accuracy(method, data, shared, personal):
    """Mean over clients of the accuracy on their own test images, all classes competing."""
    hits = []
    for batch, own in zip(data.test[method.feature_kind], personal, strict=True):
        predicted = method.logits(data.model, shared, own, batch.image_features).argmax(dim=1)
        hits.append((predicted == batch.labels).double().mean())
    return float(torch.stack(hits).mean())


def fast(name):
    """The method with short prompts and rates for few rounds."""
    cls = METHODS.get(name)
    wanted = {"num_ctx": 4, "rank": 2}
    wanted |= dict.fromkeys(("optimizer", "global_optimizer", "local_optimizer"), Optimizer(learning_rate=0.1))
    return cls(**{field.name: wanted[field.name] for field in dataclasses.fields(cls) if field.name in wanted})


@pytest.mark.parametrize("name", TRAINED)
def test_training_without_noise_beats_the_untrained_context(name, data, make_mechanism):
    method, random = fast(name), RandomPrompt(num_ctx=4)
    start, nothing = random.init(data.model, np.random.default_rng(0))
    untrained = accuracy(random, data, start, [nothing] * NUM_CLIENTS)
    clips = {"batch_clipping": method.batch_clipping} if isinstance(method, ClipsBatches) else {}
    places = [(round_index, 0) for round_index in range(NUM_ROUNDS)]
    if isinstance(method, OneRelease):
        places = [(0, step) for step in range(len(method.parts))]
        clips = {"mechanism": method.mechanism, "parts": method.parts}
        sizes = [len(batch.labels) for batch in data.train[method.feature_kind]]
        method = method.of_task(task_of(sizes, noise=0.0, clip_norm=4.0))
    shared, first = method.init(data.model, np.random.default_rng(0))
    personal = [first] * NUM_CLIENTS
    batches = data.train[method.feature_kind]
    for round_index, step in places:
        how = {"noise": 0.0, "clip_norm": 4.0, "step": step, **clips}
        shared = method.begin_round(shared)
        sums = []
        for client_id, batch in enumerate(batches):
            count = float(len(batch.labels))
            client = make_mechanism(method.channels, Channel.LOCAL, count=count, **how)
            rng = np.random.default_rng([round_index, client_id])
            upload, personal[client_id], _ = method.client_step(
                data.model, shared, personal[client_id], batch, client, rng
            )
            sums.append(upload.shared_grad)
        if sums[0] is not None:
            total = dataclasses.replace(sums[0], value=sum(part.value for part in sums))
            count = float(sum(len(batch.labels) for batch in batches))
            server = make_mechanism(method.channels, Channel.GLOBAL, count=count, **how)
            shared = method.server_step(shared, server.release(Channel.GLOBAL, total).value)
    trained = accuracy(method, data, shared, personal)
    assert trained > untrained + 0.03, (trained, untrained)
