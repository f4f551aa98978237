"""Clients who go through the text tower together get what each gets alone."""

import functools

import pytest
import torch

from helpers import tiny_models
from helpers.reference import slow_gradients
from hushprompt.methods.base import Batch
from hushprompt.models.embedded import EmojiClip
from hushprompt.models.text_pass import AutogradPass, bytes_held
from hushprompt.models.toy import Toy
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.prompts.stack import run_stacked

COUNTS = (3, 7, 1, 0)


def contexts(model, count, shape=(4,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(*shape, model.token_width, generator=generator) for _ in range(count)]


def batches(model, counts=COUNTS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(
            torch.nn.functional.normalize(torch.randn(count, model.backbone.feature_dim, generator=generator), dim=-1),
            torch.randint(model.num_classes, (count,), generator=generator),
        )
        for count in counts
    ]


def works(of_clients, position="end"):
    """What each client does with the model that it is given."""
    return [
        functools.partial(lambda context, batch, model: per_example_gradients(model, context, batch, position), *each)
        for each in of_clients
    ]


def assert_alike(found, expected, tolerance=5e-6):
    for ours, theirs in zip(found, expected, strict=True):
        for mine, its in zip(ours, theirs, strict=True):
            assert mine.shape == its.shape
            assert (mine - its).norm() <= tolerance * its.norm()


@pytest.fixture
def read(monkeypatch):
    """Counts the contexts of every pass that is made."""
    made, init = [], AutogradPass.__init__

    def spy(self, encode, context):
        made.append(tuple(context.shape))
        init(self, encode, context)

    monkeypatch.setattr(AutogradPass, "__init__", spy)
    return made


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("shape", [(4,), (5, 3)])
@pytest.mark.parametrize("kind", [{}, {"is_causal": False, "sees_padding": True}])
@pytest.mark.parametrize("memory_mb", [1, 1000])
def test_every_client_gets_its_own_gradients(model, read, kind, shape, position, memory_mb):
    model = PromptModel(Toy(**kind).load(), model.class_names)
    clients = list(zip(contexts(model, len(COUNTS), shape), batches(model), strict=True))
    found = run_stacked(model, works(clients, position), memory_mb)
    num_asking = sum(count > 0 for count in COUNTS)
    assert read == [(num_asking, *shape, model.token_width)]
    assert_alike(found, [work(model) for work in works(clients, position)])
    for (context, batch), (grads, _) in zip(clients[:3], found, strict=False):
        slow = slow_gradients(model, context, batch, position)
        assert (grads - slow).norm() < 1e-5 * slow.norm()


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_batches_may_go_in_parts(model, chunk, monkeypatch):
    clients = list(zip(contexts(model, len(COUNTS)), batches(model), strict=True))
    expected = [work(model) for work in works(clients)]
    monkeypatch.setattr("hushprompt.prompts.gradients.examples_per_pass", lambda *_: chunk)
    assert_alike(run_stacked(model, works(clients), 1000), expected)


def test_clients_of_one_context_are_one_batch(model, read, monkeypatch):
    (context,), pulled = contexts(model, 1), []
    pull_back = AutogradPass.pull_back

    def spy(self, weights, directions):
        pulled.append(len(weights))
        return pull_back(self, weights, directions)

    clients = [(context.clone(), batch) for batch in batches(model)]
    expected = [work(model) for work in works(clients)]
    read.clear()
    monkeypatch.setattr(AutogradPass, "pull_back", spy)
    found = run_stacked(model, works(clients), 1000)
    assert read == [tuple(context.shape)]
    assert pulled == [sum(COUNTS)]
    assert_alike(found, expected)


@pytest.mark.parametrize("num_alike", [0, 1000])
@pytest.mark.parametrize("is_shared", [True, False])
def test_the_embedded_model_joins_what_shares_a_context_and_takes_the_rest_in_turn(num_alike, is_shared):
    model = PromptModel(EmojiClip().load(), ("cat", "wild cat", "ox"))
    each = contexts(model, 1) * len(COUNTS) if is_shared else contexts(model, len(COUNTS))
    if not is_shared:
        assert not model.can_stack(each[0])
    clients = [
        (context, Batch(batch.image_features, batch.labels, num_alike))
        for context, batch in zip(each, batches(model), strict=True)
    ]
    found = run_stacked(model, works(clients), 1000)
    assert_alike(found, [work(model) for work in works(clients)])


def test_clients_may_ask_for_several_contexts_and_different_forms(model):
    first, second = contexts(model, 2, (4,)), contexts(model, 2, (5, 3), seed=2)
    of_clients = batches(model)

    def work(client_id, given):
        one = per_example_gradients(given, first[client_id], of_clients[client_id])[0]
        if client_id == 0:
            return [one]
        return [one, per_example_gradients(given, second[client_id], of_clients[client_id], "middle")[0]]

    both = [functools.partial(work, client_id) for client_id in (0, 1)]
    assert_alike(run_stacked(model, both, 1000), [each(model) for each in both])


def test_a_client_that_fails_is_reported_when_the_others_are_done(model):
    (context,), (batch, *_) = contexts(model, 1), batches(model)
    done = []

    def fail(given):
        raise ArithmeticError("this client cannot")

    def work(given):
        done.append(per_example_gradients(given, context, batch))

    with pytest.raises(ArithmeticError, match="this client cannot"):
        run_stacked(model, [fail, work, work], 1000)
    assert len(done) == 2


def test_the_model_itself_stays_as_it_is(model, read):
    clients = list(zip(contexts(model, 2), batches(model, (2, 2)), strict=True))
    memory_mb = model.memory_mb
    run_stacked(model, works(clients), 7)
    assert model.memory_mb == memory_mb
    read.clear()
    model.text_pass(clients[0][0])
    assert read == [(4, model.token_width)]


def test_the_template_is_encoded_once_for_all_clients(model, monkeypatch):
    calls, backbone = [], model.backbone
    encode_prompts = backbone.encode_prompts
    monkeypatch.setattr(backbone, "encode_prompts", lambda *args: calls.append(1) or encode_prompts(*args))
    features = run_stacked(model, [lambda given: given.template_features] * 2, 10)
    assert torch.equal(features[0], model.template_features)
    assert len(calls) == 1


def test_what_a_pass_holds_grows_with_the_contexts(model):
    (context,) = contexts(model, 1)
    one = model.held_bytes(context)
    assert one > 4 * model.num_tokens(context) * model.token_width
    assert model.held_bytes(torch.cat([context, context])) > one
    encode = torch.vmap(model.text_features)
    two, three = (bytes_held(encode, context.expand(count, -1, -1)) for count in (2, 3))
    assert one == three - two  # the weights are there once
    assert one < two / 2


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Small models of the real families, as backbones."""
    open_clip = pytest.importorskip("open_clip")
    pytest.importorskip("transformers")
    from safetensors.torch import save_file

    from hushprompt.models.open_clip import OpenClip
    from hushprompt.models.transformers import Transformers

    folder = tmp_path_factory.mktemp("towers")
    tiny_models.write_open_clip_configs(folder)
    open_clip.add_model_config(folder)

    def load(kind):
        if kind == "clip":
            (folder / kind).mkdir(exist_ok=True)
            tiny_models.clip(folder / kind)
            return Transformers(model=str(folder / kind), template="a {}").load()
        save_file(tiny_models.open_clip_model(kind).state_dict(), folder / f"{kind}.safetensors")
        checkpoint = str(folder / f"{kind}.safetensors")
        return OpenClip(architecture=f"tiny-{kind}", checkpoint=checkpoint, template="a {}").load()

    return load


@pytest.mark.parametrize("kind", ["vit", "vit-quickgelu", "coca", "siglip", "clipa", "worldwide", "roberta", "clip"])
@pytest.mark.parametrize("position", ["end", "front"])
def test_real_towers_can_be_stacked(towers, kind, position):
    model = PromptModel(towers(kind), tiny_models.NAMES)
    clients = list(zip(contexts(model, len(COUNTS), (2,)), batches(model), strict=True))
    found = run_stacked(model, works(clients, position), 1000)
    assert_alike(found, [work(model) for work in works(clients, position)], 3e-5)  # that of CoCa is 8e-6
