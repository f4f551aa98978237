"""Class statistics: one private release of sums, and a classifier, embeddings or contexts that follow from it.

Source: ours; docs/methods/class-statistics.md has formulas, theorem, traps, and what is from whom. A client sends two
messages: the sum of all its images in a public metric, and, once the shared mean is known, the sum of each class's
residuals; on request a third one, the squares of what class means leave of them. Together they are one Gaussian
mechanism (`privacy/mechanisms/class_sums.py`). All else is post-processing.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hushprompt import checks
from hushprompt.errors import ConfigError
from hushprompt.methods.base import Batch, PublicTask, Published, StepInfo, Upload
from hushprompt.methods.linear_head import OneReleaseHead, ReleasedSums, head_file, own_classes
from hushprompt.models.base import Model, TextKind
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import ClassRows, Mechanism
from hushprompt.privacy.statements import CLASSES_DECLARED
from hushprompt.prompts.layout import NamePosition
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS
from hushprompt.statistics.contexts import EstimatedClasses, fit_class_contexts, fit_shared_context
from hushprompt.statistics.covariance import own_precision
from hushprompt.statistics.head import Head, check_text_prior, make_head, prompt_embeddings
from hushprompt.statistics.metric import Metric, choose_rank, metrics_of
from hushprompt.statistics.posterior import ClassPosterior, SharedMean, class_posterior, shared_mean
from hushprompt.statistics.sums import MEAN_SHARE, Expected, expected, mean_rows, residual_rows, text_guess


@dataclass(frozen=True)
class OwnClasses:
    """What a client's own prompt knows beside the statistics; public."""

    is_own: Bool[Tensor, " c"]
    """The classes that it is declared to have; none before its first step, or where nobody declared any."""


@dataclass(frozen=True)
class _Ground:
    """What is public of a task in a model's metric."""

    metric: Metric
    texts: Float[Tensor, "c d"] | None
    """Unit-norm text features; None where the backbone has none."""
    guess: Float[Tensor, "c r"] | None
    expected: Expected
    first: Expected
    """Of those who were there from the start alone."""

    @property
    def radii(self) -> tuple[float, float, float]:
        """Bounds of a row of each message."""
        return self.metric.clip_mean, self.metric.clip_residual, self.metric.clip_residual


class _Found(NamedTuple):
    """What follows from the sums."""

    mean: SharedMean
    posterior: ClassPosterior
    head: Head


MOST_KNOWN = 16
"""Things that are kept; an audit makes states by the thousands."""


class _Memo:
    """What was computed of the latest states and models: several threads ask, and each thing is made once."""

    def __init__(self) -> None:
        self._lock, self._known = threading.RLock(), {}  # type: ignore[var-annotated]

    def __reduce__(self) -> tuple[type[_Memo], tuple[()]]:
        """Start anew in another process, to which an arm is sent."""
        return _Memo, ()

    def once(self, what: str, of: ReleasedSums | PromptModel, make: Callable[[], Any]) -> Any:
        """Return what was made of this before, or make it."""
        key = (what, (of.backbone.fingerprint, of.class_names) if isinstance(of, PromptModel) else _digest(of))
        with self._lock:
            if key not in self._known:
                self._known[key] = make()
            self._known[key] = self._known.pop(key)  # the latest stands last
            while len(self._known) > MOST_KNOWN:
                del self._known[next(iter(self._known))]
            return self._known[key]


def _digest(state: ReleasedSums) -> str:
    """Return a digest of what was released."""
    content = state.sums.cpu().contiguous().numpy().tobytes() + bytes([int(state.stage)])
    return hashlib.sha256(content).hexdigest()


def _expected(task: PublicTask, num_classes: int) -> Expected:
    """Return what is publicly expected of each class: a client that declares none may have all."""
    everything = tuple(range(num_classes))
    sets = [everything if own is None else own for own in task.client_classes]
    return expected(task.client_sizes, sets, num_classes)


CONTEXT_FORMS = ("contexts", "shared_context")
"""Forms that need a text tower."""


@METHODS.register("class_statistics")
@dataclass(frozen=True, kw_only=True)
class ClassStatistics(OneReleaseHead):
    """The `method` section of class statistics: every example, once, no sampling."""

    title: ClassVar[str] = "Class statistics"
    mechanism: ClassVar[str] = "class_sums"

    form: Literal["head", "embeddings", "contexts", "shared_context"] = "head"
    """What images are scored with: a weight and a bias a class; unit-norm class embeddings, as a text tower makes them;
    class-specific contexts that were fitted to these embeddings through the text tower; or one context for all classes,
    trained on images that are drawn from the estimated classes, which tells what a shared prompt can hold."""
    metric: str = "auto"
    """File of the backbone's public metric, made by `hushprompt features metric`; "auto": the one that the package or
    the cache has for it."""
    text_prior: bool = True
    """Whether class texts say where images of a class are expected before any was counted. false: image statistics
    alone, as for a backbone without text; a metric that was made without texts serves no other runs."""
    class_prior: float = 1.0
    """Odds of a class that the client is declared to have against one of the others, in the client's own prompt. Above
    1 needs client classes that are public, as with partition.name = "disjoint_classes"."""
    covariance_share: float = 0.0
    """Share of the release, as 1 / noise multiplier^2, for a third message: how the task's own images spread within
    classes, which the metric has from public images alone. 0: no such message. 0.1 pays at epsilon 8 where the
    noise is added once on the sum."""
    _known: ClassVar[_Memo]
    """Set by `of_task`."""

    def __post_init__(self) -> None:
        checks.positive(class_prior=self.class_prior)
        checks.finite(class_prior=self.class_prior)
        checks.in_range(0.0, 0.9, covariance_share=self.covariance_share)
        if self.form in CONTEXT_FORMS and not self.text_prior:
            raise ConfigError(
                f'method.form = "{self.form}" fits contexts to embeddings near the class texts, so it needs '
                'method.text_prior = true. Without a text prior use method.form = "head" or "embeddings".'
            )

    @property
    def takes_late(self) -> bool:  # type: ignore[override]
        """Whether a client may join after the release: not where its last part is no sum of classes."""
        return not self.covariance_share

    @property
    def parts(self) -> tuple[float, ...]:
        """Shares of the messages."""
        left = 1 - self.covariance_share
        return (MEAN_SHARE * left, (1 - MEAN_SHARE) * left, *[self.covariance_share] * (self.covariance_share > 0))

    @property
    def needs_text(self) -> TextKind:
        """Contexts need a text tower; a head takes text features where there are some."""
        return "tower" if self.form in CONTEXT_FORMS else "none"

    def check_backbone(self, backbone: Model) -> None:
        """Refuse a backbone without a public metric, or with class texts where the metric was made without."""
        metrics = metrics_of(backbone, self.metric)
        if self._uses_text(backbone):
            check_text_prior(metrics.at(max(metrics.of_rank)))

    def of_task(self, task: PublicTask) -> ClassStatistics:
        """Return the method for a task, which its post-processing needs to know.

        Raises:
            ConfigError: a class prior, and classes of a client that nobody declared.
        """
        if self.class_prior != 1 and None in task.client_classes:
            raise ConfigError(
                f"method.class_prior = {self.class_prior:g} shows which classes a client has, and nobody declared "
                'them, so they are private. Use partition.name = "disjoint_classes", or class_prior = 1.'
            )
        bound = super().of_task(task)
        object.__setattr__(bound, "_known", _Memo())  # no setting
        return bound

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[ReleasedSums, OwnClasses]:
        """Return a state without any release: a row for all images, one of residuals for each class, a Gram matrix."""
        none = torch.zeros(model.num_classes, dtype=torch.bool, device=model.device)
        rank = self._ground(model).metric.rank
        num_rows = 1 + model.num_classes + (rank if self.covariance_share else 0)
        return self.before_release(model, num_rows, rank), OwnClasses(none)

    def client_step(
        self,
        model: PromptModel,
        shared: ReleasedSums,
        personal: OwnClasses,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, OwnClasses, StepInfo]:
        """Sum all images, then the residuals of each class, then the squares of what class means leave of them."""
        ground, stage = self._ground(model), int(shared.stage)
        features, labels = batch.image_features.cpu(), batch.labels.cpu()
        is_own = own_classes(batch, model.num_classes)
        is_public = torch.zeros(len(shared.sums), dtype=torch.bool)
        is_public[self.rows_of(stage, shared.sums.shape)] = is_own if stage == 1 else True
        if stage == 0:
            values, rows = mean_rows(features, ground.metric), torch.zeros_like(labels)
        else:
            centers, mean = ground.guess, self._mean(ground, shared).value
            if stage == 2:  # what was released of the classes: their estimated means
                learned = self._found(model, shared).posterior.estimate
                centers = learned if centers is None else centers + learned
            values, rows = residual_rows(features, labels, ground.metric, mean, centers), labels + 1
            values = values * is_own[labels, None]  # images of other classes entered the mean alone
        sent = ClassRows(values / ground.radii[stage], rows, is_public, squares=stage == 2)
        own = OwnClasses((is_own & (batch.classes is not None)).to(model.device))
        return Upload(mechanism.clip_in_classes(Channel.GLOBAL, sent)), own, StepInfo(math.nan)

    def rows_of(self, stage: int, shape: torch.Size) -> slice:
        """The sum of all images comes first, then those of the classes, then the squares, [r, r]."""
        ends = (0, 1, shape[0] - (shape[1] if self.covariance_share else 0), shape[0])
        return slice(ends[stage], ends[stage + 1])

    def public_file(self, model: PromptModel, shared: ReleasedSums) -> Published:
        """Return the classifier, or contexts and what they give."""
        return self._file(model, shared, None)

    def personal_file(self, model: PromptModel, shared: ReleasedSums, personal: OwnClasses) -> Published | None:
        """Return the classifier with the client's class prior; None without one."""
        return (
            None if self.class_prior == 1 else replace(self._file(model, shared, personal), declared=CLASSES_DECLARED)
        )

    def logits(
        self,
        model: PromptModel,
        shared: ReleasedSums,
        personal: OwnClasses,
        image_features: Float[Tensor, "n d"],
    ) -> Float[Tensor, "n c"]:
        """Score images with what the statistics give, and the client's class prior."""
        scores = self.head(model, shared).logits(image_features.cpu())
        return (scores + self._log_prior(personal).cpu()).float().to(image_features.device)

    def head(self, model: PromptModel, shared: ReleasedSums) -> Head:
        """Return the classifier of a state, in the wanted form, without a class prior."""
        found = self._found(model, shared)
        if self.form == "head":
            return found.head
        embeddings = found.head.unit_norm(self._ground(model).metric, found.mean)
        if self.form == "embeddings":
            return embeddings
        with torch.no_grad():
            features = model.text_features(self.contexts(model, shared)).cpu().double()
        return Head(features, embeddings.logit_scale)

    def contexts(self, model: PromptModel, shared: ReleasedSums) -> Float[Tensor, "*c t e"]:
        """Return class-specific contexts, or a shared one, that say what the statistics say."""
        return self._known.once("contexts", shared, lambda: self.fitted(model, shared))

    def fitted(
        self,
        model: PromptModel,
        shared: ReleasedSums,
        start: Float[Tensor, "*c t e"] | None = None,
        name_position: NamePosition = "end",
    ) -> Float[Tensor, "*c t e"]:
        """Fit class-specific contexts, or a shared one, from a start; None: from the hand template's words."""
        ground, found = self._ground(model), self._found(model, shared)
        assert ground.texts is not None, "a text tower has text features"
        assert ground.guess is not None
        if self.form == "shared_context":
            means = found.mean.value + ground.guess + found.posterior.estimate
            classes = EstimatedClasses(ground.metric, means, ground.metric.within + found.posterior.variance)
            return fit_shared_context(model, classes, start, name_position=name_position)
        embeddings = prompt_embeddings(ground.metric, found.mean, found.posterior, ground.texts, found.head)
        wanted = embeddings.float().to(model.device)
        return fit_class_contexts(model, wanted, start, name_position=name_position)

    def _found(self, model: PromptModel, shared: ReleasedSums) -> _Found:
        """Return what follows from the sums: post-processing."""
        return self._known.once("found", shared, lambda: self._find(model, shared))

    def _find(self, model: PromptModel, shared: ReleasedSums) -> _Found:
        ground, mean = self._ground(model), self._mean(self._ground(model), shared)
        counts, holders = ground.expected
        draws = holders if self._of.noise_at == "client" else self._of.num_draws + holders - ground.first.holders
        std = self._noise_std(ground, 1) * draws.sqrt()
        sums = shared.sums[self.rows_of(1, shared.sums.shape)].cpu().double() * ground.metric.clip_residual
        if int(shared.stage) < 2:  # nothing is known of a class yet
            counts = torch.zeros_like(counts)
        texts = None if ground.texts is None else ground.metric.texts(ground.texts)
        posterior = class_posterior(sums, std, counts, ground.metric, mean, texts)
        precision = self._precision(ground, shared)
        head = make_head(ground.metric, mean, posterior, ground.texts, model.logit_scale, precision)
        return _Found(mean, posterior, head)

    def _precision(self, ground: _Ground, shared: ReleasedSums) -> Float[Tensor, "r r"] | None:
        """Return what the third message says of the spread within classes; None before it, or without one."""
        task, area = self._of, ground.metric.clip_residual**2
        if int(shared.stage) < 3:
            return None
        gram = shared.sums[self.rows_of(2, shared.sums.shape)].cpu().double() * area
        std = task.noise_multiplier * area * math.sqrt(self._num_draws / self.parts[2])
        return own_precision(gram, sum(task.first.client_sizes), std, float(ground.metric.within.mean()))

    @property
    def _num_draws(self) -> float:
        """Noises that are in a sum over all clients, each of the planned variance."""
        return len(self._of.first.client_sizes) if self._of.noise_at == "client" else self._of.num_draws

    def _mean(self, ground: _Ground, shared: ReleasedSums) -> SharedMean:
        """Return the shared mean that the first message gives."""
        task, metric = self._of.first, ground.metric
        if int(shared.stage) == 0:
            return shared_mean(torch.zeros(metric.rank, dtype=torch.float64), 1.0, 1.0, metric)
        total = shared.sums[0].cpu().double() * metric.clip_mean
        return shared_mean(
            total, sum(task.client_sizes), self._noise_std(ground, 0) * math.sqrt(self._num_draws), metric
        )

    def _noise_std(self, ground: _Ground, stage: int) -> float:
        """Return the standard deviation of one party's noise in a message, in the metric's units."""
        return self._of.noise_multiplier * ground.radii[stage] / math.sqrt(self.parts[stage])

    def _ground(self, model: PromptModel) -> _Ground:
        """Return what is public of the task in the model's metric."""
        return self._known.once("ground", model, lambda: self._made_ground(model))

    def _made_ground(self, model: PromptModel) -> _Ground:
        task, public = self._of, _expected(self._of, model.num_classes)
        first = _expected(task.first, model.num_classes)  # sums have their width for good
        held = first.counts > 0
        num_draws = float(first.holders[held].mean()) if task.noise_at == "client" else task.num_draws
        rank = choose_rank(float(first.counts[held].mean()), task.noise_multiplier, num_draws)
        metric = metrics_of(model.backbone, self.metric).at(rank)
        texts = None
        if self._uses_text(model.backbone):
            check_text_prior(metric)
            texts = model.template_features.cpu().double()
        return _Ground(metric, texts, None if texts is None else text_guess(texts, metric), public, first)

    def _uses_text(self, backbone: Model) -> bool:
        """Tell whether class texts say where images are expected."""
        return self.text_prior and backbone.capabilities.text != "none"

    def _log_prior(self, personal: OwnClasses) -> Float[Tensor, " c"]:
        """Return the class prior of a client, in logits."""
        return math.log(self.class_prior) * personal.is_own

    def _file(self, model: PromptModel, shared: ReleasedSums, personal: OwnClasses | None) -> Published:
        """Put the classifier, and what it was made from, into a file."""
        file = head_file(self.head(model, shared))
        more, how = {}, file.prompt
        if personal is not None:
            more["log_prior"] = self._log_prior(personal)
        if self.form in CONTEXT_FORMS:
            more["context"] = self.contexts(model, shared)
            how += f"; text_features are those of prompts: {model.layout(more['context'])}"
        return Published(file.tensors | {name: each.float().cpu().contiguous() for name, each in more.items()}, how)
