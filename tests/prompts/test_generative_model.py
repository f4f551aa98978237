"""Prompts of tiny models of all families, against the libraries' own forward passes, one example at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")

from helpers import tiny_generative
from hushprompt.errors import ConfigError
from hushprompt.methods.base import Batch
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.prompts.packed_answers import pack
from hushprompt.registry import BACKBONES

FAMILIES = [
    "smolvlm", "idefics3", "llava", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen2_audio", "voxtral",
]  # fmt: skip
NAMES = ("cat", "dog and ox", "ox")
LABELS = torch.tensor([1, 0, 2])
EXACT = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return tiny_generative.write(request.param, tmp_path_factory.mktemp("hub") / request.param)


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory):
    return tiny_generative.write("smolvlm", tmp_path_factory.mktemp("hub") / "smolvlm")


def load(folder, **settings):
    size = {"image_size": 32} if folder.name in ("qwen2_vl", "qwen2_5_vl") else {}
    return BACKBONES.get(folder.name)(model=str(folder), **{**size, **settings}).load()


def examples(backbone):
    """Three images, or sounds of different lengths."""
    rng = np.random.default_rng(0)
    if backbone.capabilities.modality == "audio":
        return [rng.normal(size=size).astype(np.float32) for size in (8000, 3000, 5001)]
    return [rng.integers(0, 256, size=(32, 32, 3), dtype=np.uint8) for _ in range(3)]


def context_of(backbone, num=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(num, backbone.token_width, generator=generator)


class Library:
    """One example at a time by the library's own network, with everything in one sequence and nothing kept."""

    def __init__(self, model):
        self.model, self.backbone = model, model.backbone
        self.network, self.family = self.backbone._network, self.backbone.config.family
        self.media_id = tiny_generative.ID[self.family.placeholder]

    def log_prob(self, context, media, answer, question=""):
        """Mean log-likelihood of an answer's tokens; differentiable in the context."""
        log_probs = self.log_probs(context, media, answer, question)[-len(answer) - 1 : -1]
        return log_probs[torch.arange(len(answer)), torch.tensor(answer)].mean()

    def log_probs(self, context, media, answer, question=""):
        """Log-probabilities of the next token at every place."""
        backbone, media = self.backbone, media[media.ne(0).any(-1)]
        turn, tokenize = backbone.turn, backbone.tokenize
        question = tokenize(turn.between + (question or self.model._question))
        first = [*backbone.start_ids, *tokenize(turn.before), *[self.media_id] * len(media), *question]
        is_tail, hole = backbone.config.prompt_position == "tail", [ord("x")] * len(context)
        ids = [*first, *hole] if is_tail else [*hole, *first]
        start = len(ids) - len(context) if is_tail else 0
        ids = torch.tensor([[*ids, *tokenize(turn.header), *answer]])
        embedded = self.network.get_input_embeddings()(ids)[0]
        embedded = torch.cat([embedded[:start], context, embedded[start + len(context) :]])
        at = int((ids[0] == self.media_id).nonzero()[0])
        embedded = torch.cat([embedded[:at], media, embedded[at + len(media) :]])
        positions = {}
        if self.family.positions == "3d":
            side = self.backbone._media.grid * self.network.config.vision_config.spatial_merge_size
            grid = torch.tensor([[1, side, side]])
            kinds = (ids == self.media_id).int()
            positions["position_ids"] = self.network.model.get_rope_index(ids, kinds, image_grid_thw=grid)[0]
        return self.network(inputs_embeds=embedded[None], use_cache=False, **positions).logits[0].log_softmax(-1)

    def decoded(self, context, media, question, max_tokens):
        """The most likely tokens, each from the whole sequence."""
        answer = []
        while len(answer) < max_tokens:
            answer.append(int(self.log_probs(context, media, answer, question)[-1].argmax()))
            if answer[-1] in self.backbone.stop_ids:
                return answer[:-1]
        return answer

    def answers(self):
        space, end = (" " if self.backbone.turn.has_space else ""), self.backbone.end_ids
        if self.backbone.config.loss == "letters":
            return [self.backbone.tokenize(space + letter) for letter in "ABC"]
        return [[*self.backbone.tokenize(space + name), *end] for name in NAMES]

    def scores(self, context, media):
        return torch.stack([self.log_prob(context, media, answer) for answer in self.answers()])

    def gradient(self, context, media, label):
        leaf = context.clone().requires_grad_()
        if self.backbone.config.loss == "answer":
            loss = -self.log_prob(leaf, media, self.answers()[label])
        else:
            loss = F.cross_entropy(self.scores(leaf, media)[None], label[None])
        return torch.autograd.grad(loss, leaf)[0], loss.detach()


def close(found, expected, tolerance=1e-5):
    """Equal up to a relative error of the whole row."""
    error = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert float(error.max()) < tolerance, error


@pytest.mark.parametrize("position", ["tail", "front"])
def test_gradients_and_scores_are_those_of_a_loop_over_examples_and_names(folder, position):
    backbone = load(folder, prompt_position=position, loss="answer" if position == "tail" else "classes")
    model, context = GenerativeModel(backbone, NAMES), context_of(backbone)
    media, library = backbone.encode_tokens(examples(backbone)), Library(model)
    if folder.name == "qwen2_audio":
        assert media.ne(0).any(-1).sum(1).unique().numel() == 3  # padded
    pairs = [library.gradient(context, *pair) for pair in zip(media, LABELS, strict=True)]
    grads, losses = model.gradients(context, Batch(media, LABELS), "end")
    close(grads, torch.stack([grad for grad, _ in pairs]))
    torch.testing.assert_close(losses, torch.stack([loss for _, loss in pairs]), **EXACT)
    expected = torch.stack([library.scores(context, one) for one in media])
    torch.testing.assert_close(model.scores(context, media), expected, **EXACT)
    # Other rows, and clients with other prompts in the same pass, change nothing.
    for rows in ([0], [2, 0], [2, 1, 0, 0, 2]):
        close(model.gradients(context, Batch(media[rows], LABELS[rows]), "end")[0], grads[rows], 1e-6)
    others = torch.stack([context, context_of(backbone, seed=2), context])
    torch.testing.assert_close(model.losses(others, media, LABELS)[[0, 2]], losses[[0, 2]], **EXACT)


def test_an_empty_prompt_is_the_librarys_answer_to_the_image_itself(folder):
    """From pixels on: the library's processor, its tokens in place of the image, its mask and positions."""
    from transformers import AutoFeatureExtractor, AutoImageProcessor

    backbone = load(folder)
    model, seen = GenerativeModel(backbone, NAMES), examples(backbone)
    network, family, turn = backbone._network, backbone.config.family, backbone.turn
    tokens = backbone.encode_tokens(seen)
    expected = []
    for example, own in zip(seen, tokens, strict=True):
        if family.modality == "audio":
            extractor = AutoFeatureExtractor.from_pretrained(folder)
            how = {"sampling_rate": 8000, "padding": "max_length", "return_attention_mask": True}
            inputs = extractor(example, return_tensors="pt", **how)
            inputs["feature_attention_mask"] = inputs.pop("attention_mask")
            if folder.name == "voxtral":
                del inputs["feature_attention_mask"]
        else:
            inputs = AutoImageProcessor.from_pretrained(folder, backend="pil")(
                images=[example] * (2 if folder.name == "llava_onevision" else 1), return_tensors="pt",
                **({"crop_to_patches": False} if folder.name == "internvl" else {}),
            )  # fmt: skip
        num = int(own.ne(0).any(-1).sum())
        media = [tiny_generative.ID[family.placeholder]] * num
        first = [*backbone.start_ids, *backbone.tokenize(turn.before), *media]
        answer = Library(model).answers()[1]
        ids = [*first, *backbone.tokenize(turn.between + model._question + turn.header), *answer]
        ids = torch.tensor([ids])
        if folder.name == "llava_onevision":  # without tiles, as where there are two pictures
            inputs["mm_encoder_outputs"] = {"image": network.model.get_image_features(
                pixel_values=inputs.pop("pixel_values"), image_sizes=inputs["image_sizes"],
                batch_num_images=torch.tensor([2]),
            )}  # fmt: skip
            inputs["mm_encoder_outputs"]["image"].pooler_output = inputs["mm_encoder_outputs"]["image"].pooler_output[
                :1
            ]
            del inputs["image_sizes"]
            inputs.pop("batch_num_images", None)
        if family.positions == "3d":
            inputs["mm_token_type_ids"] = (ids == media[0]).int()
        inputs.pop("pixel_attention_mask", None)
        logits = network(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs).logits[0]
        log_probs = logits[-len(answer) - 1 : -1].log_softmax(-1)
        expected.append(log_probs[torch.arange(len(answer)), torch.tensor(answer)].mean())
    torch.testing.assert_close(model.template_scores(tokens)[:, 1], torch.stack(expected), **EXACT)


def test_letters_are_one_token_each_and_the_question_lists_the_names(smolvlm):
    backbone = load(smolvlm, loss="letters", question="Which of {classes}?")
    model, context = GenerativeModel(backbone, NAMES), context_of(backbone)
    media, library = backbone.encode_tokens(examples(backbone)), Library(model)
    assert model._question.startswith("Which of cat, dog and ox, ox?\nA. cat\nB. dog and ox\nC. ox\n")
    expected = [library.gradient(context, *pair)[0] for pair in zip(media, LABELS, strict=True)]
    close(model.gradients(context, Batch(media, LABELS), "end")[0], torch.stack(expected))
    assert model.scores(context, media).argmax(1).tolist() == [
        int(library.scores(context, one).argmax()) for one in media
    ]


def test_memory_and_groups_of_names_change_nothing(smolvlm, monkeypatch):
    backbone = load(smolvlm)
    whole, context = GenerativeModel(backbone, NAMES), context_of(backbone)
    media = backbone.encode_tokens(examples(backbone))
    monkeypatch.setattr("hushprompt.prompts.packed_answers.TOKENS_AT_ONCE", 4)
    parts = GenerativeModel(backbone, NAMES, memory_mb=1)
    assert len(parts._groups) > 1
    assert parts.examples_at_once(10, 3, is_recorded=True) < parts.examples_at_once(10, 3, is_recorded=False)
    monkeypatch.setattr(parts, "examples_at_once", lambda *_, **__: 1)
    torch.testing.assert_close(parts.scores(context, media), whole.scores(context, media), **EXACT)
    batch = Batch(media, LABELS)
    close(parts.gradients(context, batch, "end")[0], whole.gradients(context, batch, "end")[0], 1e-6)
    empty = parts.gradients(context, Batch(media[:0], LABELS[:0]), "end")
    assert empty[0].shape == (0, 3, backbone.token_width)


QUESTIONS = ("what is the picture", "ox", "is the dog the cat or the ox")
ANSWERS = ("dog", "the ox is the cat", "ox")


@pytest.mark.parametrize("position", ["tail", "front"])
def test_each_example_has_a_question_and_an_answer_of_its_own(folder, position):
    backbone = load(folder, prompt_position=position)
    model, context = GenerativeModel(backbone, ()), context_of(backbone)
    model.check_scores()
    media, library = backbone.encode_tokens(examples(backbone)), Library(model)
    texts = model.texts(QUESTIONS, ANSWERS)
    batch = Batch(media, LABELS, texts=texts)
    grads, losses = model.gradients(context, batch, "end")
    for at, question in enumerate(QUESTIONS):
        leaf, answer = context.clone().requires_grad_(), texts.answers[at][texts.answers[at] >= 0].tolist()
        loss = -library.log_prob(leaf, media[at], answer, question)
        torch.testing.assert_close(losses[at], loss.detach(), **EXACT)
        close(grads[at][None], torch.autograd.grad(loss, leaf)[0][None])
    for rows in ([0], [2, 0], [2, 1, 0, 0, 2]):
        close(model.gradients(context, batch.of(torch.tensor(rows)), "end")[0], grads[rows], 1e-6)
    alone = Batch(media[1:2], LABELS[1:2], texts=model.texts(QUESTIONS[1:2], ANSWERS[1:2]))  # no padding
    close(model.gradients(context, alone, "end")[0], grads[1:2], 2e-6)
    if position == "tail":  # kept: the same bits, whoever asked before and however long others' questions are
        kept = GenerativeModel(backbone, (), prefix_cache_mb=8)
        first = kept.gradients(context, batch, "end")[0]
        close(first, grads, 2e-6)
        assert len(kept._kept._known) == 3
        close(kept.gradients(context, alone, "end")[0], grads[1:2], 2e-6)
        assert len(kept._kept._known) == 3
        other = Batch(media[:1], LABELS[:1], texts=model.texts(QUESTIONS[1:2], ANSWERS[:1]))
        kept.gradients(context, other, "end")
        assert len(kept._kept._known) == 4  # another question on one image
        assert torch.equal(kept.gradients(context, batch, "end")[0], first)


@pytest.mark.parametrize("position", ["tail", "front"])
def test_answers_are_those_of_decoding_one_by_one_with_nothing_kept(folder, position, monkeypatch):
    backbone = load(folder, prompt_position=position)
    model, context = GenerativeModel(backbone, NAMES), context_of(backbone)
    media, library = backbone.encode_tokens(examples(backbone)), Library(model)
    pairs = list(zip(media, QUESTIONS, strict=True))
    longest = library.decoded(context, *pairs[0], 4)
    stops = backbone.stop_ids | {longest[2]}  # one stops before the others
    monkeypatch.setattr(type(backbone), "stop_ids", stops)
    expected = [backbone.spell(library.decoded(context, *pair, 4)) for pair in pairs]
    (said,) = model.answers_of_each([context], media, QUESTIONS, 4)
    assert [answer.text for answer in said] == expected
    assert [answer.is_complete for answer in said] == [len(library.decoded(context, *pair, 4)) < 4 for pair in pairs]
    assert {answer.is_complete for answer in said} == {True, False}
    monkeypatch.setattr(model, "examples_at_once", lambda *_, **__: 2)
    assert model.answers_of_each([context], media, QUESTIONS, 4) == [said]
    assert model.answers_of_each([context], media[:0], ()) == [[]]
    (own,) = model.answers_of_each([context], media, [""] * len(media), max_tokens=2)
    assert [answer.text for answer in own] == [backbone.spell(library.decoded(context, one, "", 2)) for one in media]


def test_a_prefix_that_is_kept_changes_nothing_whoever_asked_before(folder):
    backbone = load(folder)
    media, context = backbone.encode_tokens(examples(backbone)), context_of(backbone)
    batch = Batch(media, LABELS)
    expected = GenerativeModel(backbone, NAMES).gradients(context, batch, "end")[0]
    whole, short = (GenerativeModel(backbone, NAMES, prefix_cache_mb=size) for size in (8, 8))
    short._kept._left = 40_000  # room for little
    first = whole.gradients(context, batch, "end")[0]
    close(first, expected, 2e-6)
    assert len(whole._kept._known) == 3
    for model in (whole, short):
        for rows in ([1], [2, 0], [0, 1, 2]):
            few = model.gradients(context, Batch(media[rows], LABELS[rows]), "end")[0]
        assert torch.equal(few, first)
    assert short._kept._left >= 0
    calls = []
    whole._read_prefix = calls.append
    whole.scores(context, media)
    assert not calls


@pytest.mark.parametrize("kept", [0, 8])
def test_a_row_is_a_function_of_its_own_example_alone(tmp_path, kept):
    backbone = load(tiny_generative.write("smolvlm", tmp_path / "smolvlm"))
    model, context = GenerativeModel(backbone, NAMES, prefix_cache_mb=kept), context_of(backbone)
    media = backbone.encode_tokens(examples(backbone))
    alone = [model.gradients(context, Batch(media[[at]], LABELS[[at]]), "end")[0] for at in range(3)]
    close(model.gradients(context, Batch(media, LABELS), "end")[0], torch.cat(alone), 1e-6)
    close(alone[0], GenerativeModel(backbone, NAMES).gradients(context, Batch(media[:1], LABELS[:1]), "end")[0], 1e-5)
    assert (alone[0] - alone[1]).norm() > 0.1 * alone[0].norm()
    # Two questions on one image are two examples, whatever is kept.
    asked, fresh = GenerativeModel(backbone, (), prefix_cache_mb=kept), GenerativeModel(backbone, ())
    both = Batch(media[[0, 0]], LABELS[[0, 0]], texts=asked.texts(("ox", "is it the cat"), ("dog", "dog")))
    alone = [asked.gradients(context, both.of(torch.tensor([at])), "end")[0] for at in range(2)]
    close(torch.cat(alone), fresh.gradients(context, both, "end")[0], 2e-6)


def test_half_precision_is_near(smolvlm):
    backbone, half = load(smolvlm), load(smolvlm, precision="bfloat16")
    media, context = backbone.encode_tokens(examples(backbone)), context_of(backbone)
    assert half.fingerprint != backbone.fingerprint
    grads = [GenerativeModel(one, NAMES).gradients(context, Batch(media, LABELS), "end")[0] for one in (backbone, half)]
    assert grads[1].dtype == torch.float32
    close(grads[1], grads[0], 0.1)


def test_what_does_not_fit_is_refused(smolvlm):
    model = GenerativeModel(load(smolvlm), NAMES)
    with pytest.raises(ConfigError, match="a choice between the names of classes"):
        GenerativeModel(load(smolvlm, loss="classes"), ())
    with pytest.raises(ConfigError, match=r"needs 5\d\d tokens with num_ctx = 500, 4 of an image"):
        model.check_context(500)
    for wrong in ({"name_position": "middle"}, {"is_class_specific": True}):
        with pytest.raises(ConfigError, match="one context for all classes"):
            model.check_context(4, **wrong)
    with pytest.raises(ConfigError, match="'ox' and 'ox' have the same tokens"):
        GenerativeModel(load(smolvlm, chat="{media}{question}:{answer}"), ("ox", "cat", "ox"))
    with pytest.raises(ConfigError, match="no token"):
        GenerativeModel(load(smolvlm, chat="{media}{question}:{answer}"), ("ox", ""))
    special = load(smolvlm).turn.end.strip()
    for ask in (lambda: model.question_ids([f"why? {special}"]), lambda: model.texts(["why"], [f"so{special}"])):
        with pytest.raises(ConfigError, match=f"has '{special}', which the model does not read as words"):
            ask()
    with pytest.raises(ConfigError, match="does not read as words"):
        GenerativeModel(load(smolvlm), ("ox", f"cat{special}"))
    with pytest.raises(ConfigError, match="at most 26 classes, and there are 30"):
        GenerativeModel(load(smolvlm, loss="letters"), tuple(map(str, range(30))))


def test_answers_see_themselves_alone():
    packed = pack([[[5, 6, 7], [8], [9, 10]]], "cpu")
    assert packed.ids.tolist() == [[5, 6, 9]]
    assert packed.branch.tolist() == [[1, 1, 3]]
    assert packed.depth.tolist() == [[0, 1, 0]]
    log_probs = torch.arange(4 * 11, dtype=torch.float32).reshape(1, 4, 11)
    expected = [(5 + (11 + 6) + (22 + 7)) / 3, 8.0, (9 + (33 + 10)) / 2]
    torch.testing.assert_close(packed.mean_log_probs(log_probs)[0], torch.tensor(expected))


@pytest.mark.parametrize("position", ["tail", "front"])
def test_several_contexts_read_an_image_once_and_score_as_each_does_alone(smolvlm, position, monkeypatch):
    backbone = load(smolvlm, prompt_position=position)
    model = GenerativeModel(backbone, NAMES)
    media = backbone.encode_tokens(examples(backbone)).half()  # as they are stored
    contexts = [context_of(backbone, seed=seed) for seed in (1, 2, 3)]
    alone = [model.scores(context, media) for context in contexts]
    torch.testing.assert_close(alone[0], model.scores(contexts[0], media.float()), rtol=0, atol=0)
    assert not torch.equal(*alone[:2])
    monkeypatch.setattr(model, "examples_at_once", lambda *_, **__: 2)
    in_parts, read = [model.scores(context, media) for context in contexts], []
    monkeypatch.setattr(model, "_read_prefix", lambda *given: read.append(1) or type(model)._read_prefix(model, *given))
    together = model.scores_of_each(contexts, media)
    assert len(read) == (2 if position == "tail" else 0)
    for row, expected in zip(together, in_parts, strict=True):
        assert torch.equal(row, expected)
    assert [rows.shape for rows in model.scores_of_each(contexts, media[:0])] == [(0, 3)] * 3
