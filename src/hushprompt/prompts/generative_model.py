"""A frozen generative model that knows its classes: a `PromptedModel` whose scores are likelihoods of their names.

One example is the sequence `[start][media][question][PROMPT][answer header][answer][end]` ("tail"), or has the prompt
before everything ("front"). Media are the tokens of an image or sound. At the tail, media and question never see the
prompt: their keys and values are read once, without a record for autograd.

Exact gradients of all examples cost one backward pass: each example has its own copy of the prompt, and no example's
loss depends on another one's copy, so the gradient of the sum of all losses in the copies has one example's own
gradient in each row.
"""

from __future__ import annotations

import string
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hushprompt.errors import ConfigError, DataError
from hushprompt.models.generative import GenerativeBackbone, KeysAndValues
from hushprompt.prompts.answers import PADDING, TRUNK, Answers, pack
from hushprompt.prompts.layout import NamePosition
from hushprompt.prompts.prefix_cache import PrefixCache
from hushprompt.prompts.prompted_model import LabeledExamples

TOKENS_AT_ONCE = 512
"""Tokens of class names that are read together when examples are scored."""


@dataclass(frozen=True)
class Reading:
    """A part of the sequences of b examples, ready to be read."""

    embedded: Float[Tensor, "b l e"]
    positions: Int[Tensor, "d b l"]
    is_there: Bool[Tensor, "b l"]
    """False for padding."""
    end: Int[Tensor, " b"]
    """Position of what follows."""


class GenerativeModel:
    """A frozen generative model with the names of some classes. All functions are pure."""

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
            class_names: names in label order.
            device: where the contexts will live.
            memory_mb: what the backward passes of one step may take; None: as much as they need.
            prefix_cache_mb: memory in which keys and values of what comes before the prompt are kept, where it stands
                at the tail; 0: they are read anew in every step.

        Raises:
            ConfigError: a name has no token, two names have the same, or there are too many for their letters.
        """
        self.backbone, self.class_names, self.device, self.memory_mb = backbone, class_names, device, memory_mb
        self._loss, self._is_tail = backbone.config.loss, backbone.config.prompt_position == "tail"
        self.prefix_cache_mb = prefix_cache_mb
        self._kept = PrefixCache(prefix_cache_mb) if prefix_cache_mb else None
        turn, tokenize = backbone.turn, backbone.tokenize
        question = backbone.config.question.replace("{classes}", ", ".join(class_names))
        spoken, end = list(class_names), list(backbone.end_ids)
        if self._loss == "letters":
            question, spoken, end = *_with_letters(question, class_names), []
        self._question = question
        self._before = self._embedded([*backbone.start_ids, *tokenize(turn.before)])
        self._between = self._embedded(tokenize(turn.between + question))
        self._header = self._embedded(tokenize(turn.header))
        answers = [[*tokenize(" " + name if turn.has_space else name), *end] for name in spoken]
        self._check_answers(answers, has_end=bool(end))
        self._longest = max(map(len, answers))
        self._groups = [pack([group], device) for group in _groups(answers)]
        self._all = pack([answers], device)
        self._each = pack([[answer] for answer in answers], device)

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
        num_media, window = self.backbone.capabilities.num_tokens or 0, self.backbone.capabilities.context_window
        fixed = sum(map(len, (self._before, self._between, self._header)))
        needed = fixed + num_media + num_ctx + self._longest
        if needed > window:
            raise ConfigError(
                f"An example needs {needed} tokens with num_ctx = {num_ctx}, {num_media} of an image or sound and "
                f"{fixed} of the question, but the model takes {window}. Use a smaller num_ctx or a shorter question."
            )

    def check_scores(self) -> None:
        """Raise DataError unless the weights score every class."""
        num_tokens = self.backbone.capabilities.num_tokens or 0
        scores = self.template_scores(torch.full((1, num_tokens, self.token_width), 0.01, device=self.device))
        if not bool(scores.isfinite().all()):
            raise DataError(
                "The backbone gives no finite score for the class names. The checkpoint is damaged or needs a higher "
                "backbone.precision; get it again, or choose another backbone."
            )

    def words(self, text: str, name_position: NamePosition) -> Float[Tensor, "t e"]:
        """Embed the words of a hand-written context, as they are spelled behind another word."""
        return self._embedded(self.backbone.tokenize(f" {text.strip()}"))

    def layout(self, context: Float[Tensor, "t e"], name_position: NamePosition = "end") -> str:
        """Say how a prompt is put together, for someone who wants to use a context without this package."""
        turn, start = self.backbone.turn, "[start]" if self.backbone.start_ids else ""
        media = f"[{self.backbone.capabilities.num_tokens} tokens of the image or sound]"
        first = f"{start}{turn.before}{media}{turn.between}{self._question}"
        space = " " if turn.has_space else ""
        prompt = f"{first}[context]" if self._is_tail else f"[context]{first}"
        return f"{prompt}{turn.header}{space}[name]{turn.end or '[end]'}, scored by mean log-likelihood"

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
        num_read = self._each.num_read if self._loss == "answer" else self._all.num_read
        chunk = self.examples_at_once(len(context) + num_read, 1 + num_read, is_recorded=True)
        grads, losses = [], []
        for media, labels in zip(batch.image_features.split(chunk), batch.labels.split(chunk), strict=True):
            copies = context.detach().expand(len(media), -1, -1).clone().requires_grad_()
            with torch.enable_grad():
                each = self.losses(copies, media, labels)
                grads.append(torch.autograd.grad(each.sum(), copies)[0])
            losses.append(each.detach())
        return torch.cat(grads), torch.cat(losses)

    def losses(
        self, contexts: Float[Tensor, "b t e"], media: Float[Tensor, "b m e"], labels: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Return the loss of each example with a context of its own; differentiable in the contexts."""
        past, trunk = self._start(contexts, media)
        if self._loss == "answer":
            return -self._scores(past, trunk, self._each.of(labels))[:, 0]
        return F.cross_entropy(self._scores(past, trunk, self._all), labels, reduction="none")

    @torch.no_grad()
    def scores(
        self,
        context: Float[Tensor, "t e"],
        image_features: Float[Tensor, "n m e"],
        name_position: NamePosition = "end",
    ) -> Float[Tensor, "n c"]:
        """Return the mean log-likelihood of the tokens of every class's name, or of its letter."""
        widest = max(group.num_read for group in self._groups)
        chunk = self.examples_at_once(len(context) + widest, 1 + widest, is_recorded=False)
        rows = []
        for media in image_features.split(chunk):
            past, trunk = self._start(context.expand(len(media), -1, -1), media)
            rows.append(torch.cat([self._scores(past, trunk, group) for group in self._groups], dim=1))
        return torch.cat(rows) if rows else context.new_zeros(0, self.num_classes)

    def template_scores(self, image_features: Float[Tensor, "n m e"]) -> Float[Tensor, "n c"]:
        """Score examples with the written question alone."""
        return self.scores(torch.zeros(0, self.token_width, device=self.device), image_features)

    @property
    def how_asked(self) -> tuple[str, ...]:
        """What decides gradients beside the weights: question, place of the prompt, loss, whether prefixes are kept."""
        config = self.backbone.config
        return self._question, config.prompt_position, config.loss, "alone" if self._kept else "together"

    @property
    def template_origin(self) -> str:
        """Say where `template_scores` come from."""
        return f"the written question {self._question!r}"

    def examples_at_once(self, num_tokens: int, num_predictions: int, *, is_recorded: bool) -> int:
        """Return how many examples one pass may take at most within `memory_mb`; at least 1.

        Args:
            num_tokens: that an example adds behind what is read without a record.
            num_predictions: places where the next token's probabilities are computed.
            is_recorded: whether autograd keeps what the layers make.
        """
        if self.memory_mb is None:
            return sys.maxsize
        backbone, media = self.backbone, self.backbone.capabilities.num_tokens or 0
        fixed = len(self._before) + media + len(self._between)
        num_tokens += len(self._header) + (0 if self._is_tail else fixed)
        of_layers = num_tokens * backbone.floats_per_token * (backbone.num_layers if is_recorded else 1)
        of_prefix = fixed * (backbone.floats_per_token + 2 * backbone.num_layers * self.token_width)
        floats = of_layers + of_prefix + 3 * num_predictions * backbone.vocabulary_size
        return max(1, self.memory_mb * 2**20 // (4 * floats))

    def _start(
        self, contexts: Float[Tensor, "b t e"], media: Float[Tensor, "b m e"]
    ) -> tuple[tuple[KeysAndValues, Bool[Tensor, "b p"]], Reading]:
        """Return keys and values of what never sees the context, and what is read next, up to the answer."""
        num, header = len(media), self._header.expand(len(media), -1, -1)
        if self._is_tail:
            prefix = self._prefix(media, 0)
            past = self._read_prefix(media) if self._kept is None else self._kept.read(media, self._read_prefix)
            text = torch.cat([contexts, header], dim=1)
            return (past, prefix.is_there), self._follow(text, prefix.end, len(prefix.positions))
        prefix = self._prefix(media, contexts.shape[1])
        dims = len(prefix.positions)
        first = self._follow(contexts, torch.zeros_like(prefix.end), dims)
        last = self._follow(header, prefix.end, dims)
        parts = (first, prefix, last)
        whole = Reading(
            torch.cat([part.embedded for part in parts], dim=1),
            torch.cat([part.positions for part in parts], dim=2),
            torch.cat([part.is_there for part in parts], dim=1),
            last.end,
        )
        return ((), prefix.is_there.new_zeros(num, 0)), whole

    @torch.no_grad()
    def _read_prefix(self, media: Float[Tensor, "b m e"]) -> KeysAndValues:
        """Return keys and values of start, media and question."""
        prefix = self._prefix(media, 0)
        allowed = _allowed(prefix.is_there, torch.zeros_like(prefix.positions[0]))
        return self.backbone.read(prefix.embedded, prefix.positions, allowed)[1]

    def _prefix(self, media: Float[Tensor, "b m e"], start: int) -> Reading:
        """Lay out start, media and question from a position on; media tokens that are all zero are padding."""
        num, is_media = len(media), media.ne(0).any(dim=-1)
        own, span = self.backbone.media_positions(is_media)
        dims = len(own)
        before = self._follow(self._before.expand(num, -1, -1), torch.full_like(span, start), dims)
        middle = before.end[None, :, None] + own[:, None]
        after = self._follow(self._between.expand(num, -1, -1), before.end + span, dims)
        return Reading(
            torch.cat([before.embedded, media, after.embedded], dim=1),
            torch.cat([before.positions, middle, after.positions], dim=2),
            torch.cat([before.is_there, is_media, after.is_there], dim=1),
            after.end,
        )

    def _follow(self, embedded: Float[Tensor, "b l e"], start: Int[Tensor, " b"], dims: int) -> Reading:
        """Lay out text from each example's own position on."""
        num, length = embedded.shape[:2]
        steps = torch.arange(length, device=start.device)
        positions = (start[:, None] + steps).expand(dims, -1, -1)
        return Reading(embedded, positions, start.new_ones(num, length, dtype=torch.bool), start + length)

    def _scores(
        self, past: tuple[KeysAndValues, Bool[Tensor, "b p"]], trunk: Reading, answers: Answers
    ) -> Float[Tensor, "b c"]:
        """Return the mean log-likelihood of the tokens of each answer."""
        num, length = trunk.is_there.shape
        ids, branch, depth = (each.expand(num, -1) for each in (answers.ids, answers.branch, answers.depth))
        embedded = torch.cat([trunk.embedded, self.backbone.embed(ids)], dim=1)
        positions = torch.cat(
            [trunk.positions, (trunk.end[:, None] + depth).expand(len(trunk.positions), -1, -1)], dim=2
        )
        is_there = torch.cat([trunk.is_there, branch != PADDING], dim=1)
        branches = torch.cat([torch.full_like(trunk.positions[0], TRUNK), branch], dim=1)
        known, is_known = past
        earlier = is_known[:, None].expand(-1, embedded.shape[1], -1)
        allowed = torch.cat([earlier, _allowed(is_there, branches)], dim=2)
        hidden, _ = self.backbone.read(embedded, positions, allowed, known)
        return answers.mean_log_probs(self.backbone.log_probs(hidden[:, length - 1 :]))

    def _embedded(self, ids: list[int]) -> Float[Tensor, "l e"]:
        """Embed tokens."""
        return self.backbone.embed(torch.tensor(ids, dtype=torch.long, device=self.device))

    def _check_answers(self, answers: list[list[int]], *, has_end: bool) -> None:
        """Raise ConfigError unless each class has tokens, and no other class has the same."""
        known: dict[tuple[int, ...], str] = {}
        for name, answer in zip(self.class_names, answers, strict=True):
            if len(answer) <= has_end:
                raise ConfigError(
                    f"The class name {name!r} has no token under this tokenizer. Give it a name in words."
                )
            if tuple(answer) in known:
                same = known[tuple(answer)]
                raise ConfigError(f"The classes {same!r} and {name!r} have the same tokens. Give one another name.")
            known[tuple(answer)] = name


def _allowed(is_there: Bool[Tensor, "b l"], branch: Int[Tensor, "b l"]) -> Bool[Tensor, "b l l"]:
    """Return what each token sees: itself, and of what stands before it the trunk and its own branch."""
    length = branch.shape[1]
    is_before = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    is_own = (branch[:, None] == TRUNK) | (branch[:, None] == branch[:, :, None])
    itself = torch.eye(length, dtype=torch.bool, device=branch.device)
    return (is_before & is_own & is_there[:, None]) | itself


def _groups(answers: list[list[int]]) -> list[list[list[int]]]:
    """Cut answers into groups of at most `TOKENS_AT_ONCE` tokens."""
    groups: list[list[list[int]]] = [[]]
    for answer in answers:
        if groups[-1] and sum(map(len, groups[-1])) + len(answer) > TOKENS_AT_ONCE:
            groups.append([])
        groups[-1].append(answer)
    return groups


def _with_letters(question: str, class_names: tuple[str, ...]) -> tuple[str, list[str]]:
    """Return the question with a list of the names, and the letters that stand for them."""
    if len(class_names) > len(string.ascii_uppercase):
        raise ConfigError(
            f'backbone.loss = "letters" has a letter for each of at most 26 classes, and there are {len(class_names)}. '
            'Use backbone.loss = "answer" or "classes".'
        )
    letters = list(string.ascii_uppercase[: len(class_names)])
    listed = "\n".join(f"{letter}. {name}" for letter, name in zip(letters, class_names, strict=True))
    return f"{question}\n{listed}\nAnswer with the letter.", letters
