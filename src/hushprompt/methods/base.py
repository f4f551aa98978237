"""The contract of a method: what a client learns, what it sends, what the server does with it.

All functions are pure. Data enters a state only through `Mechanism.release`: an `Upload` is clipped but not yet
private and goes to the aggregation alone; `StepInfo` is not private and goes to the simulation's record alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.errors import UnfitError
from hushprompt.features.cache import check_kind
from hushprompt.models.base import FeatureKind, Model, TextKind, no_tower, no_towers
from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.privacy.release_plan import BatchClipping
from hushprompt.prompts.texts import TextTokens

AnyModel = Any
"""A `PromptedModel`; for a method that does not say `needs_two_towers = False`, a `PromptModel`."""
Shared = Any
"""Frozen dataclass of tensors that the server holds and every client receives."""
Personal = Any
"""Frozen dataclass of tensors that never leaves its client."""


@dataclass(frozen=True)
class Batch:
    """One client's examples of one step; b may be 0."""

    image_features: Float[Tensor, "b *m d"]
    """[b, d], or [b, m, d] for a method whose `feature_kind` is "patches"."""
    labels: Int[Tensor, " b"]
    classes: tuple[int, ...] | None = None
    """Classes that the client is publicly declared to have; None: nobody declared any, so which ones it has is
    private."""
    texts: TextTokens | None = None
    """Question and answer of each example, as tokens; None in classification."""

    def of(self, rows: Int[Tensor, " m"]) -> Batch:
        """Return some of the examples."""
        texts = None if self.texts is None else self.texts.of(rows)
        return Batch(self.image_features[rows], self.labels[rows], self.classes, texts)


@dataclass(frozen=True)
class NoState:
    """The state of a method that keeps nothing on this side."""


@dataclass(frozen=True)
class Upload:
    """A client's contribution to the aggregation: a clipped sum, or None where nothing is shared."""

    shared_grad: ClippedSum | None


@dataclass(frozen=True)
class StepInfo:
    """Diagnostics of a step, for the record of a simulation alone. Not private."""

    loss: float
    """Mean cross-entropy of the batch before the step; NaN for an empty batch."""
    next_norms: Mapping[Channel, float] = field(default_factory=dict)
    """`Release.next_norms` of the step's LOCAL release, handed on; empty without one."""


@dataclass(frozen=True)
class Published:
    """Contents of a prompt file: enough to use what a method learned without this package."""

    tensors: dict[str, Tensor]
    """By name. A method with one context calls it "context"."""
    prompt: str
    """Sentence that says how class names and tensors make the text features that images are compared with."""
    text_features_fn: Callable[[], Float[Tensor, "c d"]] | None = None
    """Computes, from the tensors, the text features whose products with an image's feature are the scores, over the
    logit scale; None where scores are not linear, or the tensors have them."""
    declared: str = ""
    """Sentence on what of a client the file shows that is public by declaration, where there is something."""


@runtime_checkable
class Method(Protocol):
    """The interface of a method. Implementations are frozen dataclasses; their fields are the config section."""

    title: ClassVar[str]
    """Name of the method in tables."""
    channels: ClassVar[frozenset[Channel]]
    """The releases that `client_step` (LOCAL) and the server (GLOBAL) make each step; empty: nothing is trained."""
    feature_kind: ClassVar[FeatureKind]
    """What it needs to know of an image: "pooled", or "patches", which takes a backbone that has them."""
    payload: ClassVar[tuple[str, ...]]
    """Fields of the shared state that a client's step reads: they are sent to the clients, and clients have the other
    fields as `init` made them. The first is what the clients' gradient is of. Where clients step copies of the shared
    state (training.local_steps > 1), all fields are sent."""

    def init(self, model: AnyModel, rng: np.random.Generator) -> tuple[Shared, Personal]:
        """Return the state of the server and the state that every client starts with; data-independent."""

    def begin_round(self, shared: Shared) -> Shared:
        """Get the shared state ready for a round, before its first step; knows no data.

        Here a method keeps what a round starts from, such as the context that FedProx stays close to.
        """

    def client_step(
        self,
        model: AnyModel,
        shared: Shared,
        personal: Personal,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, Personal, StepInfo]:
        """Learn from one batch.

        Args:
            model: frozen backbone and class names.
            shared: the server's state as of now.
            personal: this client's state.
            batch: examples drawn by the plan's sampler.
            mechanism: clips for both channels, releases on LOCAL.
            rng: stream for data-independent randomness; never for privacy noise.
        """

    def server_step(self, shared: Shared, released: Tensor) -> Shared:
        """Move the shared state by the released (noisy) mean gradient."""

    def public_file(self, model: AnyModel, shared: Shared) -> Published | None:
        """Return what everybody sees, other clients among them; None where nothing is trained that is shared.

        A function of the shared state, which moves by GLOBAL releases alone. Whatever more a method would show, such as
        clients' prompts to each other, has to be accounted for first: `privacy/plan.py` says who is charged for what.
        """

    def personal_file(self, model: AnyModel, shared: Shared, personal: Personal) -> Published | None:
        """Return what the holder of one client's prompt sees, and may use; None where nothing is personal.

        A function of both states. The holder is charged for GLOBAL and LOCAL releases.
        """

    def logits(
        self, model: AnyModel, shared: Shared, personal: Personal, image_features: Float[Tensor, "n *m d"]
    ) -> Float[Tensor, "n c"]:
        """Score images against all classes."""


@runtime_checkable
class ClipsBatches(Protocol):
    """A method, for comparison only, that clips the mean gradient of a batch instead of each example's."""

    @property
    def batch_clipping(self) -> BatchClipping:
        """What the plan must know to say the epsilon that can be proven."""


@runtime_checkable
class NamesMechanism(Protocol):
    """A method whose sums are clipped and released by another mechanism than "gaussian"."""

    mechanism: ClassVar[str]
    """Name in MECHANISMS, of this package or of another one."""


Scorer = Callable[[Float[Tensor, "n *m d"]], Float[Tensor, "n c"]]
"""Scores image features against all classes; with the text tower's work done."""


@runtime_checkable
class ScoresFromFile(Protocol):
    """A method whose scores are not linear in the image features, so that its file needs more than a product."""

    def file_scorer(self, model: AnyModel, tensors: Mapping[str, Tensor]) -> Scorer:
        """Return what scores images as `logits` does, from the tensors of either file and the frozen model."""


@dataclass(frozen=True, kw_only=True)
class PublicTask:
    """What is public of a federation before anything is released."""

    client_sizes: tuple[int, ...]
    """Training examples of each client."""
    client_classes: tuple[tuple[int, ...] | None, ...]
    """Classes that each client is declared to have; None: not declared."""
    noise_multiplier: float
    """Of the GLOBAL release, over the clip norm."""
    clip_norm: float
    noise_at: Literal["server", "client"]
    num_late: int = 0
    """The last so many clients joined after the release and made its last part alone, each with noise of its own."""
    num_draws: float = 1.0
    """Variance of the noise on a sum over all clients, over the planned one, where `noise_at` is not "client": above 1
    with noise shares, which those on the server's side add too."""

    @property
    def first(self) -> PublicTask:
        """The task of those who were there from the start: what was fixed then."""
        num = len(self.client_sizes) - self.num_late
        sizes, sets = self.client_sizes[:num], self.client_classes[:num]
        return replace(self, client_sizes=sizes, client_classes=sets, num_late=0)


@runtime_checkable
class OneRelease(Protocol):
    """A method that makes one release from every example, in as many parts as a round has steps, and no other."""

    mechanism: ClassVar[str]
    parts: ClassVar[tuple[float, ...]]
    """Share of the release that each step makes; see `ReleasePlan.parts`."""

    def of_task(self, task: PublicTask) -> Method:
        """Return the method as it runs on a task; its settings stay the same."""


@runtime_checkable
class StartsFromRelease(Protocol):
    """A method that may start from another method's one release, made before its rounds with a share of the budget."""

    start_share: float
    """Share of the budget, of 1/z^2, in (0, 1)."""

    def first_release(self) -> OneRelease | None:
        """Return the method of that release; None where the start knows no data."""

    def started(self, model: AnyModel, shared: Shared, release: Any, released: Shared) -> Shared:
        """Return the shared state moved to where a release points: post-processing.

        Args:
            model: frozen backbone and class names.
            shared: as `init` made it.
            release: the method of the release, as it runs on its task.
            released: its shared state at the end.
        """


@runtime_checkable
class TakesLate(Protocol):
    """A method with one release that a client may join after it, to make its last part alone."""

    takes_late: ClassVar[bool]
    """Whether it does."""

    def before_last(self, shared: Shared) -> Shared:
        """Return what a client that joins late makes the last part from: what was released before it, of all others."""

    def with_late(self, shared: Shared, released: Tensor, num_images: int, classes: tuple[int, ...] | None) -> Shared:
        """Add the last part of a client that joined late.

        Args:
            shared: the released state.
            released: its noisy sums over `num_images`.
            num_images: its public number of training examples.
            classes: that it is declared to have; None: not declared.
        """


@runtime_checkable
class NeedsLessText(Protocol):
    """A method that trains no prompt, and so runs on a backbone without a text tower. All others need one."""

    needs_text: ClassVar[TextKind]
    """"features": one text feature a class, as `PromptModel.template_features` has them; "none": no text at all."""


@runtime_checkable
class SaysTowers(Protocol):
    """A method that says whether it needs two towers, whose features are compared. One that does not say so does."""

    needs_two_towers: ClassVar[bool]
    """False: all that it uses of a model is in `PromptedModel`, so it also runs on a generative one."""


@runtime_checkable
class NeedsMore(Protocol):
    """A method that needs more of a backbone than features and text."""

    def check_backbone(self, backbone: Model) -> None:
        """Raise UnfitError if the backbone lacks it."""


def check_needs(method: Method, backbone: Model) -> None:
    """Raise UnfitError if a backbone lacks what a method needs, such as features of patches or two towers."""
    if backbone.capabilities.num_tokens is not None:
        if not isinstance(method, SaysTowers) or method.needs_two_towers:
            raise no_towers(method.title)
        return
    check_kind(backbone, method.feature_kind)
    if isinstance(method, NeedsMore):
        method.check_backbone(backbone)
    needed = method.needs_text if isinstance(method, NeedsLessText) else "tower"
    kinds = get_args(TextKind)
    if kinds.index(needed) <= kinds.index(backbone.capabilities.text):
        return
    if needed == "tower":
        raise no_tower(f"{method.title} trains or encodes prompts, and this")
    raise UnfitError(
        f"{method.title} needs text features of the classes, and this backbone has no text. Set backbone.text_features "
        "to a file of them, or backbone.text_tower to the backbone that made the features."
    )


class Untrained:
    """A method without releases: the loop takes no step, so a call of one is a bug."""

    channels: ClassVar[frozenset[Channel]] = frozenset()
    feature_kind: ClassVar[FeatureKind] = "pooled"
    payload: ClassVar[tuple[str, ...]] = ()

    def begin_round(self, shared: Shared) -> Shared:
        """Return the state as it is; no round ever begins."""
        return shared

    def client_step(
        self,
        model: AnyModel,
        shared: Shared,
        personal: Personal,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, Personal, StepInfo]:
        """Learn nothing."""
        return Upload(None), personal, StepInfo(float("nan"))

    def server_step(self, shared: Shared, released: Tensor) -> Shared:
        """Learn nothing."""
        return shared

    def public_file(self, model: AnyModel, shared: Shared) -> None:
        """Nothing is trained, so nothing is published."""

    def personal_file(self, model: AnyModel, shared: Shared, personal: Personal) -> None:
        """Nothing is trained, so nothing is published."""
