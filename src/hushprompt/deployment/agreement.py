"""What server and clients agree on before training, and both build the same privacy plan from."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig, RuntimeConfig
from hushprompt.deployment.envelope import PROTOCOL, canonical
from hushprompt.errors import ConfigError, ProtocolError
from hushprompt.extras import version_of
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.questions import check_answers
from hushprompt.methods.base import StartsFromRelease, check_needs
from hushprompt.models.placing import place, step_memory_mb
from hushprompt.prompts.prompted import prompted
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.runs.arm import Arm

KEY_HEX, SIGNATURE_HEX = re.compile("[0-9a-f]{64}"), re.compile("(?:[0-9a-f]{2}){8,104}")
"""32 bytes of X25519; at most 104 of ECDSA on P-384."""
OfferT = TypeVar("OfferT", bound="Offer")
OPTIONAL = {"client_classes", "num_late", "keys", "signatures"}
"""Fields of an agreement that are left out where they say nothing."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What the server offers before it knows who joins."""

    federation: str
    """Name of the federation."""
    run: str
    """Name of the run, drawn once by the server; a resumed run keeps it."""
    config: str
    """The run config as TOML, without a runtime section of anybody's."""
    class_names: tuple[str, ...]
    """In label order."""
    backbone: str
    """Fingerprint of the backbone."""

    @functools.cached_property
    def run_config(self) -> RunConfig:
        """The run config; ConfigError if this version cannot read it."""
        try:
            return configs.parse(tomllib.loads(self.config))
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError("The config that was offered is no TOML that can be read.") from error

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Agreement(Offer):
    """The offer with its clients: nothing of it changes once training began."""

    clients: tuple[str, ...]
    """Names; a client's place is its id."""
    sizes: tuple[int, ...]
    """Public number of training examples of each, or of groups where these are the unit."""
    client_classes: tuple[tuple[int, ...] | None, ...] = ()
    """Labels of which alone each may have training examples, sorted; None: not declared. Empty: nobody declared any."""
    num_late: int = 0
    """The last so many clients joined after the one release was made, and make its last part alone. A late client
    agrees on a plan of its own: that of the others, and itself."""
    keys: tuple[str, ...] = ()
    """Public run key of each client in hex, where they add noise shares under masks; see `roster.py`."""
    signatures: tuple[str, ...] = ()
    """Of each client, by its own long-lived key, that its run key is its own."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, the last ones only where they say something: agreements had none once."""
        return {name: value for name, value in super().to_json().items() if value or name not in OPTIONAL}

    @functools.cached_property
    def first(self) -> Agreement:
        """What those who were there from the start agreed on."""
        return self.among(())

    def among(self, late: Collection[str]) -> Agreement:
        """Return the agreement with those alone of its late clients that are named."""
        num_first = len(self.clients) - self.num_late
        kept = [at for at, name in enumerate(self.clients) if at < num_first or name in late]
        sets = tuple(self.client_classes[at] for at in kept) if self.client_classes else ()
        clients, sizes = tuple(self.clients[at] for at in kept), tuple(self.sizes[at] for at in kept)
        num_late = len(kept) - num_first
        return dataclasses.replace(
            self, clients=clients, sizes=sizes, client_classes=sets if any(sets) else (), num_late=num_late
        )

    def with_late(self, name: str, size: int, classes: tuple[int, ...] | None) -> Agreement:
        """Return the agreement with one more late client."""
        sets = (*(self.client_classes or (None,) * len(self.clients)), classes)
        return dataclasses.replace(
            self,
            clients=(*self.clients, name),
            sizes=(*self.sizes, size),
            client_classes=sets if any(sets) else (),
            num_late=self.num_late + 1,
        )

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all of it: every later message names it."""
        return hashlib.sha256(canonical(self.to_json())).hexdigest()

    @functools.cached_property
    def arm(self) -> Arm:
        """Method, privacy plan and cohorts, which follow from the agreement alone.

        Raises:
            ConfigError: the config is impossible for so many clients, or outside the privacy theorem.
        """
        _refuse_start(self.run_config)
        return plan_arms(self.run_config, list(self.sizes), self.client_classes or None, self.num_late)[-1]


def make_offer(federation: str, run: str, config: RunConfig, class_names: tuple[str, ...], backbone: str) -> Offer:
    """Return the server's offer; its own runtime stays with it.

    Raises:
        ConfigError: the config is for simulations alone.
    """
    _refuse_start(config)
    text = dataclasses.replace(config, runtime=RuntimeConfig()).to_toml()
    return Offer(federation=federation, run=run, config=text, class_names=class_names, backbone=backbone)


def read_offer(values: Any) -> Offer:
    """Read an offer from JSON values; ProtocolError if it is none."""
    return _read(Offer, values)


def read_agreement(values: Any) -> Agreement:
    """Read an agreement from JSON values; ProtocolError if it is none."""
    agreement = _read(Agreement, values)
    if len(agreement.clients) != len(agreement.sizes) or len(set(agreement.clients)) < len(agreement.clients):
        raise ProtocolError("An agreement must name each client once, with its number of training examples.")
    if not 0 <= agreement.num_late < len(agreement.clients):
        raise ProtocolError("An agreement must have clients that did not join late.")
    every, sets = set(range(len(agreement.class_names))), agreement.client_classes
    are_sets = all(own is None or (own and list(own) == sorted(every & set(own))) for own in sets)
    if not are_sets or len(sets) not in (0, len(agreement.clients)) or (sets and not any(sets)):
        raise ProtocolError("Declared classes must be a sorted list of labels, or null, for each client of the plan.")
    _check_keys(agreement)
    return agreement


def _check_keys(agreement: Agreement) -> None:
    """Raise ProtocolError unless each client has a run key and a signature, in the one form that there is, or none."""
    keys, signatures, num_clients = agreement.keys, agreement.signatures, len(agreement.clients)
    if not (keys or signatures):
        return
    if agreement.num_late:
        raise ProtocolError("A client that joins late would be alone under its mask: run keys are for all or nobody.")
    is_hex = all(map(KEY_HEX.fullmatch, keys)) and all(map(SIGNATURE_HEX.fullmatch, signatures))
    if not (len(keys) == len(signatures) == num_clients) or not is_hex:
        raise ProtocolError("An agreement must have a run key and a signature in hex of each client, or of none.")


def _refuse_start(config: RunConfig) -> None:
    """Raise ConfigError where rounds would follow a release of another kind, which no message here is for."""
    method = config.method
    if isinstance(method, StartsFromRelease) and method.first_release() is not None:
        raise ConfigError(
            'method.start = "class_statistics" is for simulations: a federation on separate machines makes one kind of '
            'release. Use method.start = "public", or method.name = "class_statistics".'
        )


def open_model(config: RunConfig, class_names: tuple[str, ...]) -> PromptedModel:
    """Load the backbone of a config for these classes; ConfigError if the method needs one that can do more."""
    backbone = config.backbone.load()
    check_needs(config.method, backbone)
    if not class_names:
        check_answers(backbone, config.method)
    device = place(backbone, config.runtime.device)
    memory_mb = step_memory_mb(config.runtime.memory_mb, device)
    model = prompted(backbone, class_names, device, memory_mb, config.runtime.prefix_cache_mb)
    model.check_scores()
    return model


def version() -> dict[str, Any]:
    """Return what both ends must have in common to understand each other."""
    return {"protocol": PROTOCOL, "package": version_of("hushprompt")}


def check_version(meta: Mapping[str, Any], own: str, other: str) -> None:
    """Raise ProtocolError unless what the other end says of itself is this version."""
    for key, here in version().items():
        if meta.get(key) != here:
            raise ProtocolError(f"{own} has {key} version {here}, {other} {meta.get(key)}. Use the same everywhere.")


def _read(cls: type[OfferT], values: Any) -> OfferT:
    """Read a dataclass from JSON values that another machine sent: exactly its fields, of exactly their types."""
    fields = {f.name for f in dataclasses.fields(cls)}
    if not isinstance(values, Mapping) or not fields - OPTIONAL <= set(values) <= fields:
        raise ProtocolError(f"What was offered is not what this version agrees on: {', '.join(sorted(fields))}.")
    try:
        return msgspec.convert(values, type=cls, strict=True)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"What was offered has a value of the wrong type: {error}.") from error
