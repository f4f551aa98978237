"""A frozen generative model that knows its classes: a `PromptedModel` whose scores are likelihoods of their names.

In an open task there are no classes: each example has a question and an answer of its own (`TextTokens`).

One example is the sequence `[start][media][question][PROMPT][answer header][answer][end]` ("tail"), or has the prompt
before everything ("front"). Media are the tokens of an image or sound. At the tail, media and question never see the
prompt: their keys and values are read once, without a record for autograd.

Exact gradients of all examples cost one backward pass: each example has its own copy of the prompt, and no example's
loss depends on another one's copy, so the gradient of the sum of all losses in the copies has one example's own
gradient in each row.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.errors import ConfigError, DataError
from hushprompt.models.generative import GenerativeBackbone
from hushprompt.models.keys_and_values import KeysAndValues
from hushprompt.prompts.decoding import Answer, greedy
from hushprompt.prompts.layout import NamePosition
from hushprompt.prompts.packed_answers import (
    PADDING,
    TRUNK,
    Answers,
    check_names,
    grouped,
    one_each,
    pack,
    with_letters,
)
from hushprompt.prompts.passes import lean_record, most_at_once, num_bytes, parts
from hushprompt.prompts.prefix_cache import PrefixCache
from hushprompt.prompts.prompted_model import LabeledExamples
from hushprompt.prompts.reading import Past, Reading, behind, follow, joined, visible
from hushprompt.prompts.texts import NO_TOKEN, TextTokens, padded


class GenerativeModel:
    """A frozen generative model with the names of some classes, or of none. All functions are pure."""

    def __init__(
        self,
        backbone: GenerativeBackbone,
        class_names: tuple[str, ...],
        device: str = "cpu",
        memory_mb: int | None = None,
        prefix_cache_mb: int = 0,
    ) -> None:
        """Tokenize question and class names once.

        Args:
            backbone: the model.
            class_names: names in label order; none where each example has a question and an answer of its own.
            device: where the contexts will live.
            memory_mb: what the passes of one step may take beside one example's; None: as much as they need.
            prefix_cache_mb: memory in which keys and values of what comes before the prompt are kept, where it stands
                at the tail; 0: they are read anew in every step.

        Raises:
            ConfigError: a name has no token, two names have the same, or there are too many for their letters; a loss
                over names without names.
        """
        self.backbone, self.class_names, self.device, self.memory_mb = backbone, class_names, device, memory_mb
        self._loss, self._is_tail = backbone.config.loss, backbone.config.prompt_position == "tail"
        self.prefix_cache_mb = prefix_cache_mb
        self._kept = PrefixCache(prefix_cache_mb) if prefix_cache_mb else None
        turn, tokenize = backbone.turn, backbone.tokenize
        question = backbone.config.question.replace("{classes}", ", ".join(class_names))
        spoken, end = list(class_names), list(backbone.end_ids)
        if not class_names and self._loss != "answer":
            raise ConfigError(
                f'backbone.loss = "{self._loss}" is a choice between the names of classes, and questions with answers '
                'of their own have none. Use backbone.loss = "answer".'
            )
        if self._loss == "letters":
            question, spoken, end = *with_letters(question, class_names), []
        self._question = question
        self._before = self._embedded([*backbone.start_ids, *tokenize(turn.before)])
        self._asked = self.question_ids([question])
        self._header = self._embedded(tokenize(turn.header))
        self._answers = [self._spelled(name, end) for name in spoken]
        check_names(class_names, self._answers, has_end=bool(end))

    @functools.cached_property
    def _groups(self) -> list[Answers]:
        """All names, packed in groups."""
        return [pack([group], self.device) for group in grouped(self._answers)]

    @functools.cached_property
    def _all(self) -> Answers:
        """All names side by side."""
        return pack([self._answers], self.device)

    @functools.cached_property
    def _each(self) -> Answers:
        """Of each class, its name alone."""
        return pack([[answer] for answer in self._answers], self.device)

    def question_ids(self, questions: Sequence[str]) -> Int[Tensor, "b q"]:
        """Return the tokens of questions with what their turn has before them; -1 behind the shorter ones.

        Args:
            questions: an empty one stands for the question of the config.

        Raises:
            ConfigError: one spells a special token.
        """
        between, tokenize = self.backbone.turn.between, self.backbone.tokenize
        for one in set(questions):
            self.backbone.tokenize_plain(one)
        return padded([tokenize(between + (one or self._question)) for one in questions], self.device)

    def texts(self, questions: Sequence[str], answers: Sequence[str]) -> TextTokens:
        """Return questions and their true answers as tokens."""
        spelled = [self._spelled(answer, self.backbone.end_ids) for answer in answers]
        return TextTokens(self.question_ids(questions), padded(spelled, self.device))

    @property
    def num_classes(self) -> int:
        """Number of classes c."""
        return len(self.class_names)

    @property
    def token_width(self) -> int:
        """Width e of a context vector."""
        return self.backbone.token_width

    @property
    def logit_scale(self) -> float:
        """Scores are no cosines."""
        return self.backbone.logit_scale

    def check_context(
        self, num_ctx: int, name_position: NamePosition = "end", *, is_class_specific: bool = False
    ) -> None:
        """Raise ConfigError if a context does not fit the window, or is of another kind than a generative model has."""
        if name_position != "end" or is_class_specific:
            raise ConfigError(
                "A generative model reads one context for all classes, and their names as answers behind it. Use "
                'method.name_position = "end" and method.is_class_specific = false; backbone.prompt_position says '
                "where the context stands."
            )
        longest = max(map(len, self._answers), default=0)
        self.check_window(num_ctx, self._asked.shape[1], longest)

    def check_question(self, num_ctx: int, question: str, max_tokens: int) -> None:
        """Raise ConfigError unless a question and an answer of so many tokens fit the window."""
        self.check_window(num_ctx, self.question_ids([question]).shape[1], max_tokens)

    def check_window(self, num_ctx: int, num_question: int, num_answer: int) -> None:
        """Raise ConfigError if an example is longer than what the model takes.

        Args:
            num_ctx: tokens of the context.
            num_question: of the question, with what its turn has before it.
            num_answer: of the answer.
        """
        num_media, window = self.backbone.capabilities.num_tokens or 0, self.backbone.capabilities.context_window
        fixed = len(self._before) + num_question + len(self._header)
        needed = fixed + num_media + num_ctx + num_answer
        if needed > window:
            raise ConfigError(
                f"An example needs {needed} tokens with num_ctx = {num_ctx}, {num_media} of an image or sound, "
                f"{fixed} of the question and {num_answer} of the answer, but the model takes {window}. Use a smaller "
                "num_ctx, or a shorter question."
            )

    def check_scores(self) -> None:
        """Raise DataError unless the weights score every class, or, without classes, the end of an answer."""
        num_tokens = self.backbone.capabilities.num_tokens or 0
        media = torch.full((1, num_tokens, self.token_width), 0.01, device=self.device)
        if self.class_names:
            scores = self.template_scores(media)
        else:
            with torch.no_grad():
                scores = self.losses(media[:, :0], media, self._asked[:, 0], self.texts([""], [""]))
        if not bool(scores.isfinite().all()):
            raise DataError(
                "The backbone gives no finite score for an answer. The checkpoint is damaged or needs a higher "
                "backbone.precision; get it again, or choose another backbone."
            )

    def words(self, text: str, name_position: NamePosition) -> Float[Tensor, "t e"]:
        """Embed the words of a hand-written context, as they are spelled behind another word."""
        return self._embedded(self.backbone.tokenize(f" {text.strip()}"))

    def layout(self, context: Float[Tensor, "t e"], name_position: NamePosition = "end") -> str:
        """Say how a prompt is put together, for someone who wants to use a context without this package."""
        turn, start = self.backbone.turn, "[start]" if self.backbone.start_ids else ""
        media = f"[{self.backbone.capabilities.num_tokens} tokens of the image or sound]"
        question, answer = (self._question, "[name]") if self.class_names else ("[question]", "[answer]")
        how = "scored by mean log-likelihood" if self.class_names else "the most likely token each time"
        first = f"{start}{turn.before}{media}{turn.between}{question}"
        space = " " if turn.has_space else ""
        prompt = f"{first}[context]" if self._is_tail else f"[context]{first}"
        return f"{prompt}{turn.header}{space}{answer}{turn.end or '[end]'}, {how}"

    def text_features_fn(self, context: Float[Tensor, "t e"], name_position: NamePosition = "end") -> None:
        """There are no text features."""

    def gradients(
        self, context: Float[Tensor, "t e"], batch: LabeledExamples, name_position: NamePosition = "end"
    ) -> tuple[Float[Tensor, "b t e"], Float[Tensor, " b"]]:
        """Return each example's gradient of the loss in the context, and its loss; b may be 0, neither is private.

        Guarantee: row x is a function of the context and of example x alone, up to rounding.
        """
        if len(batch.labels) == 0:
            return context.new_zeros(0, *context.shape), context.new_zeros(0)
        texts, grads, losses = batch.texts, [], []
        for rows in parts(len(batch.labels), self._losses_at_once(len(context), texts, is_recorded=True)):
            copies = context.detach().expand(len(batch.labels[rows]), -1, -1).clone().requires_grad_()
            with torch.enable_grad():
                own = None if texts is None else texts.of(rows)
                with lean_record():
                    each = self.losses(copies, batch.image_features[rows], batch.labels[rows], own)
                grads.append(torch.autograd.grad(each.sum(), copies)[0])
            losses.append(each.detach())
        return torch.cat(grads), torch.cat(losses)

    def losses(
        self,
        contexts: Float[Tensor, "b t e"],
        media: Float[Tensor, "b m e"],
        labels: Int[Tensor, " b"],
        texts: TextTokens | None = None,
    ) -> Float[Tensor, " b"]:
        """Return the loss of each example with a context of its own; differentiable in the contexts.

        Args:
            contexts: one an example.
            media: tokens of its image or sound.
            labels: its class; not looked at where there are texts.
            texts: its question and answer: the loss is the mean negative log-likelihood of the answer's tokens.
        """
        past, trunk = self._start(contexts, media, None if texts is None else texts.questions)
        if texts is not None:
            return -self._scores(past, trunk, one_each(texts.answers))[:, 0]
        if self._loss == "answer":
            return -self._scores(past, trunk, self._each.of(labels))[:, 0]
        return F.cross_entropy(self._scores(past, trunk, self._all), labels, reduction="none")

    @torch.no_grad()
    def losses_at(
        self,
        context: Float[Tensor, "t e"],
        media: Float[Tensor, "n m e"],
        labels: Int[Tensor, " n"],
        texts: TextTokens | None = None,
    ) -> Float[Tensor, " n"]:
        """Return `losses` of many examples at one context, part by part."""
        rows = [context.new_zeros(0)]
        for part in parts(len(media), self._losses_at_once(len(context), texts, is_recorded=False)):
            some, own = media[part], None if texts is None else texts.of(part)
            rows.append(self.losses(context.expand(len(some), -1, -1), some, labels[part], own))
        return torch.cat(rows)

    @torch.no_grad()
    def likelihoods(
        self,
        context: Float[Tensor, "t e"],
        media: Float[Tensor, "1 m e"],
        question: Int[Tensor, "1 q"],
        answers: Sequence[str],
    ) -> Float[Tensor, " c"]:
        """Return the log-likelihood of each of several answers to one question, all of its tokens together."""
        past, trunk = self._start(context[None], media, question)
        spelled = [self._spelled(answer, self.backbone.end_ids) for answer in answers]
        means = [self._scores(past, trunk, pack([group], self.device))[0] for group in grouped(spelled)]
        return torch.cat(means) * torch.tensor([len(tokens) for tokens in spelled], device=self.device)

    @torch.no_grad()
    def answers_of_each(
        self,
        contexts: Sequence[Float[Tensor, "t e"]],
        media: Float[Tensor, "n m e"],
        questions: Sequence[str],
        max_tokens: int = 32,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> list[list[Answer]]:
        """Answer questions with each of some contexts by the most likely token each time, to the bits of each alone.

        Args:
            contexts: learned prompts; of length 0: none.
            media: tokens of one image or sound a question.
            questions: what is asked about each; an empty one: the question of the config.
            max_tokens: after which an answer is cut off.
            is_wanted: asked before each token; False ends all answers where they are.
        """
        asked = self.question_ids(questions)
        chunk = self.examples_at_once(max(map(len, contexts)) + max_tokens, 1, asked.shape[1], is_recorded=False)
        found: list[list[Answer]] = [[] for _ in contexts]
        for at, _, past, text in self._starts(contexts, media, asked, chunk):
            found[at] += greedy(self.backbone, past, text, max_tokens, is_wanted)
        return found

    @torch.no_grad()
    def answers_and_losses(
        self,
        contexts: Sequence[Float[Tensor, "t e"]],
        media: Float[Tensor, "n m e"],
        texts: TextTokens,
        max_tokens: int,
    ) -> list[tuple[list[Answer], Float[Tensor, " n"]]]:
        """Do the same, with the mean negative log-likelihood of the tokens of each true answer beside."""
        num_read = texts.answers.shape[1] - 1
        chunk = self.examples_at_once(
            max(map(len, contexts)) + max(num_read, max_tokens), 1 + num_read, texts.questions.shape[1],
            is_recorded=False,
        )  # fmt: skip
        said: list[list[Answer]] = [[] for _ in contexts]
        losses = [[context.new_zeros(0)] for context in contexts]
        for at, rows, past, text in self._starts(contexts, media, texts.questions, chunk):
            said[at] += greedy(self.backbone, past, text, max_tokens)
            losses[at].append(-self._scores(past, text, one_each(texts.answers[rows]))[:, 0])
        return list(zip(said, map(torch.cat, losses), strict=True))

    @torch.no_grad()
    def scores(
        self,
        context: Float[Tensor, "t e"],
        image_features: Float[Tensor, "n m e"],
        name_position: NamePosition = "end",
    ) -> Float[Tensor, "n c"]:
        """Return the mean log-likelihood of the tokens of every class's name, or of its letter."""
        return self.scores_of_each([context], image_features)[0]

    @torch.no_grad()
    def scores_of_each(
        self, contexts: Sequence[Float[Tensor, "t e"]], image_features: Float[Tensor, "n m e"]
    ) -> list[Float[Tensor, "n c"]]:
        """Score examples with each of some contexts, as `scores` does, to the same bits."""
        if not self.class_names:
            return [context.new_zeros(len(image_features), 0) for context in contexts]
        widest, longest = max(group.num_read for group in self._groups), max(map(len, contexts))
        chunk = self.examples_at_once(longest + widest, 1 + widest, is_recorded=False)
        found = [[context.new_zeros(0, self.num_classes)] for context in contexts]
        for at, _, past, trunk in self._starts(contexts, image_features, None, chunk):
            found[at].append(torch.cat([self._scores(past, trunk, group) for group in self._groups], dim=1))
        return [torch.cat(each) for each in found]

    def template_scores(self, image_features: Float[Tensor, "n m e"]) -> Float[Tensor, "n c"]:
        """Score examples with the written question alone."""
        return self.scores(torch.zeros(0, self.token_width, device=self.device), image_features)

    @property
    def how_asked(self) -> tuple[str, ...]:
        """What decides gradients beside the weights: question, place of the prompt, loss, prefixes, devices."""
        config, kept = self.backbone.config, "alone" if self._kept else "together"
        return self._question, config.prompt_position, config.loss, kept, config.device_map

    @property
    def template_origin(self) -> str:
        """Say where `template_scores` come from."""
        return f"the written question {self._question!r}"

    def _losses_at_once(self, num_ctx: int, texts: TextTokens | None, *, is_recorded: bool) -> int:
        """Return of how many examples one pass may compute the loss."""
        if texts is not None:
            num_read, num_question = texts.answers.shape[1] - 1, texts.questions.shape[1]
        else:
            num_read, num_question = (self._each if self._loss == "answer" else self._all).num_read, None
        return self.examples_at_once(num_ctx + num_read, 1 + num_read, num_question, is_recorded=is_recorded)

    def examples_at_once(
        self, num_tokens: int, num_predictions: int, num_question: int | None = None, *, is_recorded: bool
    ) -> int:
        """Return how many examples one pass may take at most within `memory_mb` above one's forward pass.

        Args:
            num_tokens: that an example adds behind what is read without a record.
            num_predictions: places where the next token's probabilities are computed.
            num_question: tokens of the longest question; None: of the config's.
            is_recorded: whether autograd keeps what the layers make.
        """
        if self.memory_mb is None:
            return sys.maxsize
        media = self.backbone.capabilities.num_tokens or 0
        fixed = len(self._before) + media + (self._asked.shape[1] if num_question is None else num_question)
        num_before, num_new = (fixed, num_tokens) if self._is_tail else (0, fixed + num_tokens)
        live = num_bytes(
            self.backbone, num_before, num_new + len(self._header), num_predictions,
            is_recorded=is_recorded, is_kept=self._kept is not None,
        )  # fmt: skip
        return most_at_once(self.memory_mb, live)

    def _starts(
        self,
        contexts: Sequence[Float[Tensor, "t e"]],
        media: Float[Tensor, "n m e"],
        questions: Int[Tensor, "n q"] | None,
        chunk: int,
    ) -> Iterator[tuple[int, slice, Past, Reading]]:
        """Yield which context and examples come next, and what `_start` returns for them, part by part.

        Where contexts stand at the tail, image or sound and question of a part are read once for all of them.
        """
        for rows in parts(len(media), chunk):
            known: KeysAndValues | None = None
            for at, context in enumerate(contexts):
                some, asked = media[rows], None if questions is None else questions[rows]
                past, trunk = self._start(context.expand(len(some), -1, -1), some, asked, known)
                known = past[0]
                yield at, rows, past, trunk

    def _start(
        self,
        contexts: Float[Tensor, "b t e"],
        media: Float[Tensor, "b m e"],
        questions: Int[Tensor, "b q"] | None = None,
        known: KeysAndValues | None = None,
    ) -> tuple[Past, Reading]:
        """Return keys and values of what never sees the context, `known` or read now, and what is read next."""
        media = media.to(self.device).float()
        num, header = len(media), self._header.expand(len(media), -1, -1)
        asked = self._asked.expand(num, -1) if questions is None else questions
        if self._is_tail:
            prefix = self._prefix(media, asked, 0)
            if known is None:
                known = (self._read_prefix if self._kept is None else self._read_kept)(media, asked)
            text = torch.cat([contexts, header], dim=1)
            return (known, prefix.is_there), follow(text, prefix.end, len(prefix.positions))
        prefix = self._prefix(media, asked, contexts.shape[1])
        dims = len(prefix.positions)
        first = follow(contexts, torch.zeros_like(prefix.end), dims)
        return ((), prefix.is_there.new_zeros(num, 0)), joined((first, prefix, follow(header, prefix.end, dims)))

    def _read_kept(self, media: Float[Tensor, "b m e"], questions: Int[Tensor, "b q"]) -> KeysAndValues:
        """Return keys and values of start, media and question, from memory where they are kept."""
        assert self._kept is not None, "kept"
        return self._kept.read(media, questions, self._read_prefix)

    @torch.no_grad()
    def _read_prefix(self, media: Float[Tensor, "b m e"], questions: Int[Tensor, "b q"]) -> KeysAndValues:
        """Return keys and values of start, media and question."""
        prefix = self._prefix(media, questions, 0)
        allowed = visible(prefix.is_there, torch.zeros_like(prefix.positions[0]))
        return self.backbone.read(prefix.embedded, prefix.positions, allowed)[1]

    def _prefix(self, media: Float[Tensor, "b m e"], questions: Int[Tensor, "b q"], start: int) -> Reading:
        """Lay out start, media and question from a position on; media tokens that are all zero are padding."""
        is_media, is_asked = media.ne(0).any(dim=-1), questions != NO_TOKEN
        own, span = self.backbone.media_positions(is_media)
        dims = len(own)
        before = follow(self._before.expand(len(media), -1, -1), torch.full_like(span, start), dims)
        middle = Reading(media, before.end[None, :, None] + own[:, None], is_media, before.end + span)
        asked = follow(self.backbone.embed(questions.clamp(min=0)), middle.end, dims, is_asked)
        return joined((before, middle, asked))

    def _scores(self, past: Past, trunk: Reading, answers: Answers) -> Float[Tensor, "b c"]:
        """Return the mean log-likelihood of the tokens of each answer."""
        num, length = trunk.is_there.shape
        ids, branch, depth = (each.expand(num, -1) for each in (answers.ids, answers.branch, answers.depth))
        embedded = torch.cat([trunk.embedded, self.backbone.embed(ids)], dim=1)
        positions = torch.cat(
            [trunk.positions, (trunk.end[:, None] + depth).expand(len(trunk.positions), -1, -1)], dim=2
        )
        is_there = torch.cat([trunk.is_there, branch != PADDING], dim=1)
        branches = torch.cat([torch.full_like(trunk.positions[0], TRUNK), branch], dim=1)
        allowed = behind(past, visible(is_there, branches))
        hidden = self.backbone.read(embedded, positions, allowed, past[0], keeps=False)[0]
        return answers.mean_log_probs(self.backbone.log_probs(hidden[:, length - 1 :]))

    def _spelled(self, answer: str, end: Sequence[int]) -> list[int]:
        """Return the tokens of an answer behind its header."""
        return [*self.backbone.tokenize_plain(" " + answer if self.backbone.turn.has_space else answer), *end]

    def _embedded(self, ids: list[int]) -> Float[Tensor, "l e"]:
        """Embed tokens."""
        return self.backbone.embed(torch.tensor(ids, dtype=torch.long, device=self.device))
