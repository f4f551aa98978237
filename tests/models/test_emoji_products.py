import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hushprompt.models import emoji_prefix, emoji_products
from hushprompt.models.embedded import EmojiClip
from hushprompt.prompts.prompt_model import PromptModel

NAMES = ("cat", "wild cat", "ox", "red panda with a hat", "dog")
NUM_EXAMPLES = 7


@pytest.fixture(scope="module")
def model():
    return PromptModel(EmojiClip().load(), NAMES)


@pytest.fixture
def context(model):
    return 0.02 * torch.randn(4, model.token_width, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cotangents(model):
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(NUM_EXAMPLES, len(NAMES), generator=generator)
    directions = torch.randn(NUM_EXAMPLES, model.backbone.feature_dim, generator=generator)
    return weights, torch.nn.functional.normalize(directions, dim=1)


def test_products_change_no_gradient(model, context, cotangents):
    plain = model.text_pass(context)
    many = plain.for_many(1000)
    assert many is not plain
    assert plain.for_many(emoji_prefix.MIN_MANY - 1) is plain
    assert torch.equal(many.features, plain.features)
    expected = plain.pull_back(*cotangents)
    torch.testing.assert_close(
        many.pull_back(*cotangents), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )
    matrices = torch.einsum("bc,bd->bcd", *cotangents)
    found = many.for_many(1000).pull_back_matrices(matrices)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_an_example_has_one_gradient_whoever_else_is_there(model, context, cotangents):
    many = model.text_pass(context).for_many(1000)
    together = many.pull_back(*cotangents)
    for index in range(NUM_EXAMPLES):
        (alone,) = many.pull_back(*(part[index : index + 1] for part in cotangents))
        torch.testing.assert_close(together[index], alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


def test_pairs_without_a_weight_still_need_no_work(model, context, cotangents, monkeypatch):
    weights, directions = cotangents
    weights = weights * (torch.arange(len(NAMES)) == 1)
    monkeypatch.setattr(emoji_prefix.TowerPass, "pull_back_all", None)
    found = model.text_pass(context).for_many(1000).pull_back(weights, directions)
    torch.testing.assert_close(found, model.text_pass(context).pull_back(weights, directions))


def test_threads_share_the_work_and_come_to_the_same_bits(model, context, cotangents, monkeypatch):
    monkeypatch.setattr(emoji_products, "ROWS", 2 * model.token_width)  # many parts

    def gradients(num_threads):
        start = threading.Barrier(num_threads)
        fresh = PromptModel(model.backbone, NAMES).text_pass(context)

        def work(_):
            start.wait()
            return fresh.for_many(1000).pull_back(*cotangents)

        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, range(num_threads)))

    (alone,) = gradients(1)
    assert all(torch.equal(each, alone) for each in gradients(4))


def test_nobody_waits_for_a_part_that_fails_or_takes_it_for_made(model, context, monkeypatch):
    def fail(*_):
        raise MemoryError

    fresh = PromptModel(model.backbone, NAMES).text_pass(context)
    products = fresh._inner.new_products()
    with monkeypatch.context() as patch:
        patch.setattr(emoji_products.BlockPass, "multiply_out", fail)
        for make in (products.make, lambda: fresh.for_many(1000)):
            with pytest.raises(MemoryError):
                make()
    with pytest.raises(RuntimeError, match="could not be made"):
        products.make()
    fresh.for_many(1000)  # makes them anew
