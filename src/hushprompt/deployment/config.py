"""The config files of the two ends: `server.toml` and a `client.toml` each, read like every other config.

Paths in a file are relative to its folder. What is trained, and under which privacy, is in the run config that
`server.toml` names; what a client's owner allows is in `client.toml`, and no message can change it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hushprompt import checks
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig, RuntimeConfig
from hushprompt.config.values import refuse_unknown
from hushprompt.errors import ConfigError
from hushprompt.user_text import nfc, read_lines

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What a federation, a run and a client may be called: names of folders everywhere."""
FLOWER, CACHE, REFUSALS = "flwr", "cache", "refusals.jsonl"
"""What a client's store holds beside its runs: Flower's own files, cached features, and a line for each refusal."""
MOST_REFUSALS = 2**20
"""Bytes of these lines; beyond it the older half goes."""
PATHS = ("root", "file", "validation_file", "test_file", "classes_file", "text_features")
"""Settings of data and backbones that are files or folders, and may be relative to the file that they stand in."""
RESERVED = frozenset({FLOWER, CACHE, REFUSALS, "bin", "con", "prn", "aux", "nul"})
"""Names that mean something already, in a store, among Flower's files, or on some file systems."""


@dataclass(frozen=True, kw_only=True)
class FederationConfig:
    """The `federation` section of `server.toml`."""

    name: str
    """Of the federation; clients keep what they have by it."""
    run: str
    """Run config: method, privacy, sampling, training, backbone, seed. Where clients bring their own data, its data
    and partition sections may be left out."""
    folder: str
    """Run folder: records, ledger, checkpoint, prompts. The same folder again goes on where it stopped."""
    clients: tuple[str, ...]
    """Names of the clients that may join, in an order that stays: it numbers them."""
    classes: tuple[str, ...] = ()
    """Class names in label order; empty: those of the run's data set."""
    classes_file: str = ""
    """Text file with one class a line, instead of the list."""
    client_classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By client, the classes of which alone it may have training examples, where that may be public: it is part of what
    all agree on. Of an example of another class no class sum takes anything; its client alone is told. A client that is
    not named may have any class, and nobody learns which."""
    min_clients: int = 0
    """Clients without which training does not start, and answers without which a round does not end (as far as its
    cohort has so many); 0 takes all of `clients`."""
    max_examples: int = 1_000_000
    """Largest number of training examples that a client is believed to have: the public sizes of all clients decide
    the noise and every client's weight, so one that says more is left out."""
    join_deadline_s: float = 600.0
    """Seconds to wait for clients to come online and join."""
    round_deadline_s: float = 600.0
    """Seconds that a client has for an update; where nothing is shared, for each round of its training."""

    def __post_init__(self) -> None:
        check_name("federation.name", self.name)
        for name in self.clients:
            check_name("a name in federation.clients", name)
        if len(set(self.clients)) < len(self.clients) or not self.clients:
            raise ConfigError(f"federation.clients must name at least one client, each once, got {self.clients}.")
        if self.classes and self.classes_file:
            raise ConfigError("federation.classes and federation.classes_file exclude each other. Keep one.")
        if unknown := sorted(self.client_classes.keys() - set(self.clients)):
            raise ConfigError(f"federation.client_classes names {', '.join(unknown)}, not in federation.clients.")
        checks.in_range(0, len(self.clients), min_clients=self.min_clients)
        checks.positive(
            max_examples=self.max_examples, join_deadline_s=self.join_deadline_s, round_deadline_s=self.round_deadline_s
        )

    def class_sets(self, clients: Sequence[str], class_names: Sequence[str]) -> tuple[tuple[int, ...] | None, ...]:
        """Return the declared classes of each client as sorted labels, None for one that declares none; () for nobody.

        Raises:
            ConfigError: a declared class is none of the federation's, or a client declares an empty list.
        """
        sets = [None if (own := self.client_classes.get(client)) is None else {*map(nfc, own)} for client in clients]
        for client, names in zip(clients, sets, strict=True):
            if names is not None and (not names or names - set(class_names)):
                raise ConfigError(
                    f"federation.client_classes.{client} must name classes of the federation, at least one, got "
                    f"{', '.join(sorted(names - set(class_names))) or 'none'}. Leave the client out to keep it private."
                )
        if not any(sets):
            return ()
        every = tuple(enumerate(class_names))
        return tuple(None if own is None else tuple(label for label, name in every if name in own) for own in sets)

    @property
    def quorum(self) -> int:
        """The number that `min_clients` stands for."""
        return self.min_clients or len(self.clients)


@dataclass(frozen=True, kw_only=True)
class ServerLinkConfig:
    """The `link` section of `server.toml`: where clients find the server, and how it proves who it is."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    ca: str = ""
    """Certificate of the authority that signed the server's."""
    certificate: str = ""
    """The server's certificate."""
    key: str = ""
    """Private key of that certificate."""
    node_keys: str = ""
    """Folder with the public key of each client, NAME.pub: who may connect, and as whom."""
    database: str = ""
    """File in which the carrier keeps its nodes and runs across restarts."""

    def __post_init__(self) -> None:
        checks.in_range(1, 65535, port=self.port)


@dataclass(frozen=True, kw_only=True)
class ServerProcessConfig:
    """All of `server.toml`: what the server's process needs, which trains nothing."""

    federation: FederationConfig
    link: ServerLinkConfig = field(default_factory=ServerLinkConfig)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.federation.folder)


@dataclass(frozen=True, kw_only=True)
class ServerConfig(ServerProcessConfig):
    """All of `server.toml`, and the run config that it names."""

    run: RunConfig
    """What `federation.run` names."""
    why_not_shares: str | None = None
    """Where that leaves `privacy.noise_at` open: why it became "server"; empty: it is "shares", or nothing is shared.
    None: the run config says it."""

    def __post_init__(self) -> None:
        """Refuse what a federation of separate machines does not do."""
        if self.run.references:
            raise ConfigError(
                "A federation trains one method: the run config's references would be trained on the same data. Leave "
                "them out."
            )
        if getattr(self.run.data, "client_classes", ()):
            raise ConfigError(
                "data.client_classes is for simulations. A federation declares classes in server.toml, by client: "
                "federation.client_classes."
            )
        if self.run.training.dropout_rate > 0:
            raise ConfigError(
                "training.dropout_rate simulates clients that fail. Real ones do it themselves: set it 0."
            )
        if self.run.evaluation.base_classes is not None:
            raise ConfigError(
                "Clients score their own images: evaluation.base_classes means nothing in a federation. Leave it out."
            )

    def class_names(self) -> tuple[str, ...]:
        """Return the class names in label order, () where clients have questions.

        Reads the run's data set where the config names none.

        Raises:
            ConfigError: questions have none.
            DataError: the file of classes or the data set cannot be read.
        """
        if not getattr(self.run.data, "needs_classes", True):
            if self.federation.classes or self.federation.classes_file:
                raise ConfigError("Questions have no classes. Leave federation.classes and classes_file out.")
            return ()
        if self.federation.classes:
            return tuple(nfc(name) for name in self.federation.classes)
        if not self.federation.classes_file:
            names: tuple[str, ...] = self.run.data.load().class_names
            return names
        return read_lines(Path(self.federation.classes_file), "federation.classes_file")


@dataclass(frozen=True, kw_only=True)
class ClientSection:
    """The `client` section of `client.toml`."""

    name: str
    """One of the server's `federation.clients`."""
    store: str
    """Folder of this client: its prompts, ledgers and caches. One process at a time writes to it."""

    def __post_init__(self) -> None:
        check_name("client.name", self.name)


@dataclass(frozen=True, kw_only=True)
class ShareConfig:
    """The `share` section of `client.toml`: for a trial, one client's part of the run's own data set."""

    client: int
    """Which client of the run's partition this is, from 0."""

    def __post_init__(self) -> None:
        checks.non_negative(client=self.client)


@dataclass(frozen=True, kw_only=True)
class OwnerConfig:
    """The `owner` section of `client.toml`: what the owner of the data allows, whatever the server asks."""

    max_epsilon: float
    """Largest epsilon that all runs in this store may spend together, added up: towards everyone who sees the shared
    prompt, towards the server where clients add the noise or shares of it, and towards whoever gets this client's
    prompt, where the run protects examples. inf sets no limit."""
    max_delta: float = 1e-4
    """Largest delta of all these runs, added up."""
    max_metrics_epsilon: float = 0.0
    """Largest epsilon of an evaluation image that all runs may spend together on telling, with noise, how many of the
    own images are right (`evaluation.metrics_epsilon` of the run); 0 refuses runs that ask for it."""
    min_noise_multiplier_local: float = 0.0
    """Smallest noise std over clip norm of what trains the personal prompt."""
    min_noise_multiplier_global: float = 0.0
    """Smallest noise std over clip norm of what trains the shared prompt. With noise_at = "server" it is the server
    that adds it, and the client has to trust that."""
    max_clip_norm_local: float = float("inf")
    """Largest clip norm of what trains the personal prompt."""
    max_clip_norm_global: float = float("inf")
    """Largest clip norm of what trains the shared prompt."""
    require_noise_at: Literal["any", "shares", "client"] = "any"
    """"shares" refuses runs in which clipped sums would reach the server without noise: it may see this client's with
    the client's own full noise, or under masks with a share of the noise. "client" takes the full noise alone. Both
    refuse noise from a seed, which the server could take away, and want own `data` with `classes`: whether data fit a
    list of classes that the server chose would tell it which there are."""
    min_clients: int = 0
    """Fewest clients in any sum that the server can open, where clients add shares of the noise: it is among them that
    this client's sum is hidden. 0: as few as the run allows."""
    min_colluding: int = 1
    """Fewest clients that may work with the server and still not take the noise away, where clients add shares of it
    (`privacy.max_colluding` of the run must be at least this)."""
    require_unit: Literal["any", "group", "client"] = "any"
    """"group" refuses plans that protect single examples, and not all of a patient, customer or document. "client"
    refuses all that do not protect this client's data as a whole."""
    require_noise_source: Literal["any", "secure"] = "any"
    """"secure" refuses noise from a seed that the server knows: it could take that noise away."""
    max_image_kb: float = 2048.0
    """Largest size in KB of the features that a plan has this client keep of one image (`features.num_views`, patches
    or tokens decide it). Of plans that a server proposes the features of the last four are kept."""
    require_rounding: bool = True
    """Refuse runs whose noise leaves out that the model rounds (`privacy.rounding` = 0), where it could matter."""

    def __post_init__(self) -> None:
        checks.positive(max_epsilon=self.max_epsilon, max_delta=self.max_delta, max_image_kb=self.max_image_kb)
        checks.positive(max_clip_norm_local=self.max_clip_norm_local, max_clip_norm_global=self.max_clip_norm_global)
        checks.non_negative(
            max_metrics_epsilon=self.max_metrics_epsilon,
            min_noise_multiplier_local=self.min_noise_multiplier_local,
            min_noise_multiplier_global=self.min_noise_multiplier_global,
            min_clients=self.min_clients,
        )
        checks.positive(min_colluding=self.min_colluding)


@dataclass(frozen=True, kw_only=True)
class ClientLinkConfig:
    """The `link` section of `client.toml`: where the server is, and how the two know each other."""

    superlink: str = "127.0.0.1:8000"
    """Host and port of the server."""
    ca: str = ""
    """Certificate of the authority that signed the server's."""
    key: str = ""
    """Private key of this client, whose public half the server knows."""
    peers: str = ""
    """Folder with the public keys of all other clients, NAME.pub, as their owners gave them, not the server: whose
    noise shares this client's may be added to. Owners compare `hushprompt federation fingerprint`."""


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """All of `client.toml`."""

    client: ClientSection
    owner: OwnerConfig
    data: Any = None
    """Data section as in a run config: all of it is this client's. Its classes may be left out: the server's then."""
    share: ShareConfig | None = None
    """For a trial: a part of `data`; without `data`, of a data set that the package has in it."""
    backbone: Any = None
    """Backbone section as in a run config: what this client loads. It must be the federation's model, by its
    fingerprint. May be left out where the model is in the package; no other is loaded on the server's word."""
    link: ClientLinkConfig = field(default_factory=ClientLinkConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        """Check that there are data."""
        if self.data is None and self.share is None:
            raise ConfigError("A client needs data: the section data for its own, or share for a part of the run's.")

    @property
    def store(self) -> Path:
        """The client's folder."""
        return Path(self.client.store)


def load_server_process(path: Path) -> ServerProcessConfig:
    """Read `server.toml` alone, without the run config: what names a method or a model takes seconds to import.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, or a value is wrong.
    """
    values = configs.read(path)
    refuse_unknown("", values, {"federation", "link"})
    federation = configs.build(FederationConfig, values.get("federation", {}), "federation")
    federation = _placed(federation, path, "run", "folder", "classes_file")
    link = _placed(
        configs.build(ServerLinkConfig, values.get("link", {}), "link"),
        path,
        "ca",
        "certificate",
        "key",
        "node_keys",
        "database",
    )
    return ServerProcessConfig(federation=federation, link=link)


def load_server(path: Path) -> ServerConfig:
    """Read `server.toml` and the run config that it names.

    Raises:
        ConfigError: a file is missing or no TOML, a key is unknown, or a value is wrong.
    """
    process = load_server_process(path)
    federation, run = process.federation, configs.read(Path(process.federation.run))
    if "data" not in run and "partition" not in run and (federation.classes or federation.classes_file):
        # Every client brings its own folder; nobody loads the run's.
        run |= {"data": {"name": "folder"}, "partition": {"name": "by_client"}}
    run["privacy"] = {"noise_source": "secure", **run.get("privacy", {})}  # machines of several owners simulate nothing
    if run["privacy"].get("noise_at", "auto") != "auto":
        return ServerConfig(federation=federation, run=configs.parse(run), link=process.link)
    from hushprompt.deployment.noise_at import settled  # knows methods, which need torch, as the config does by now

    run["privacy"]["noise_at"] = "shares"
    config, why = settled(configs.parse(run), federation.quorum)
    return ServerConfig(federation=federation, run=config, link=process.link, why_not_shares=why)


def load_client(path: Path) -> ClientConfig:
    """Read `client.toml`.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, or a value is wrong.
    """
    values = configs.read(path)
    refuse_unknown("", values, {f.name for f in dataclasses.fields(ClientConfig)})
    client = _placed(configs.build(ClientSection, values.get("client", {}), "client"), path, "store")
    data = None
    if "data" in values:
        data = _placed_files(configs.choose("data", values["data"]), path)
    backbone = None
    if "backbone" in values:
        backbone = _placed_files(configs.choose("backbone", values["backbone"]), path)
    return ClientConfig(
        client=client,
        owner=configs.build(OwnerConfig, values.get("owner", {}), "owner"),
        data=data,
        backbone=backbone,
        share=configs.build(ShareConfig, values["share"], "share") if "share" in values else None,
        link=_placed(configs.build(ClientLinkConfig, values.get("link", {}), "link"), path, "ca", "key", "peers"),
        runtime=configs.build(RuntimeConfig, values.get("runtime", {}), "runtime"),
    )


def check_name(what: str, name: str) -> None:
    """Raise ConfigError unless a name can be that of a folder everywhere."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(
            f"{what} must begin with a letter or digit and have at most 64 letters, digits, dots, dashes and "
            f"underscores, got {name!r}."
        )
    if name.lower() in RESERVED or name.endswith("."):
        raise ConfigError(f"{what} must not be {name!r}, which has a meaning of its own. Use another name.")


def _placed_files(section: Any, file: Path) -> Any:
    """Return a data or backbone section with the paths that are files or folders relative to the folder of its file."""
    return _placed(section, file, *(name for name in PATHS if hasattr(section, name)))


def _placed(section: Any, file: Path, *names: str) -> Any:
    """Return a section with its paths relative to the folder of its file; empty ones stay empty."""
    paths = {name: getattr(section, name) for name in names}
    folder = file.parent.resolve()
    return dataclasses.replace(
        section, **{name: str(folder / Path(path).expanduser()) for name, path in paths.items() if path}
    )
