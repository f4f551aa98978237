"""A sweep on a Ray cluster: every run is a Ray task, and its folder comes back as bytes.

Nodes need not share a folder with the driver (the process that asks for the sweep) or with each other. The driver sends
a config as text and writes what comes back. A node has its own data and feature cache, so before the first run every
node is asked what it sees, and nodes that would not give the same results are refused. A run whose worker is killed
runs again; on the same node it goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import os
import platform
import shutil
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hushprompt import extras
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.errors import ConfigError
from hushprompt.extras import version_of
from hushprompt.jobs import job
from hushprompt.jobs.pool import TaskEnd, TaskProgress, attempt, prepare_training
from hushprompt.runs.identity import identity_of

PACKAGES = ("dp-accounting", "hushprompt", "numpy", "torch")
SOURCE = Path(__file__).parent.parent
MAX_RETRIES = 3
"""Times that a run is tried again whose worker died."""
POLL_SECONDS = 0.5
"""Between two looks at how the runs get on."""
LISTED = 12
"""Letters of a fingerprint that a message shows."""
Description = dict[str, str]
"""What a node sees: versions, and fingerprints of code, data sets and backbones, by what they are of."""


class RayCluster:
    """The nodes of a Ray cluster."""

    def __init__(self, ray: Any) -> None:
        """Look at the nodes of the cluster that this process is connected to."""
        self._ray = ray
        alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        self._cores = {node["NodeID"]: int(node["Resources"]["CPU"]) for node in alive}
        self._names = {node["NodeID"]: f"{node['NodeName']} ({node['NodeID'][:8]})" for node in alive}
        self._mailbox = ray.remote(num_cpus=0, max_restarts=-1)(Mailbox).remote()
        self.contents: list[tuple[str, str] | None] = []
        """Digests of data and backbone of each config that `prepare` was given; None where nothing could be encoded."""

    def threads(self, jobs: int) -> int:
        """Return the threads of each of `jobs` runs side by side; 0 jobs: one thread a run."""
        return max(1, min(sum(self._cores.values()) // jobs, *self._cores.values())) if jobs else 1

    def num_workers(self, num_threads: int) -> int:
        """Return how many runs of so many threads go side by side."""
        return sum(cores // num_threads for cores in self._cores.values())

    def prepare(self, config_tomls: Sequence[str]) -> Iterator[TaskProgress]:
        """Check every node, then have each encode the features that it lacks, and yield how that gets on.

        Raises:
            ConfigError: a node has other packages, data or backbones than another, or other code than this process.
        """
        descriptions = self._on_every_node(describe, config_tomls)
        first = next(iter(self._cores))
        own = {what: seen for what, seen in versions().items() if "hushprompt" in what}  # all that is done with here
        for node, seen in descriptions.items():
            refuse_difference(self._names[node], seen, "this machine", own)
            refuse_difference(self._names[node], seen, self._names[first], descriptions[first])
        refs = [
            self._pinned(encode_on_node, node, num_cpus=cores).remote(self._mailbox, config_tomls, cores)
            for node, cores in self._cores.items()
        ]
        self.contents = [None] * len(config_tomls)
        while refs:
            ended, refs = self._ray.wait(refs, timeout=POLL_SECONDS)
            for ref in ended:
                with contextlib.suppress(self._ray.exceptions.RayError):  # a node that died; the others answer
                    seen = self._ray.get(ref)
                    self.contents = [known or new for known, new in zip(self.contents, seen, strict=True)]
            yield from self._told()
        self._seen = self._ray.put((frozenset(self._cores), descriptions[first], config_tomls))

    def run(self, tasks: Sequence[tuple[str, bytes]], num_threads: int) -> Iterator[TaskProgress | TaskEnd]:
        """Make a run for every task, and yield how they get on; the end of one has its folder and its scores.

        Args:
            tasks: config as TOML, and what is there of its run folder, as `pack` gives it.
            num_threads: of each run.
        """
        remote = self._ray.remote(num_cpus=num_threads, max_retries=MAX_RETRIES, retry_exceptions=False)(train_on_node)
        running = {
            remote.options(num_gpus=_num_gpus(toml)).remote(self._mailbox, index, toml, begun, self._seen): index
            for index, (toml, begun) in enumerate(tasks)
        }
        try:
            while running:
                done, _ = self._ray.wait(list(running), timeout=POLL_SECONDS)
                for event in self._told():
                    if event.task in running.values():
                        yield event
                for ref in done:
                    yield self._end(running.pop(ref), ref)
            with contextlib.suppress(ConfigError):  # a node has died in the meantime
                self._on_every_node(remove_left, [toml for toml, _ in tasks])
        finally:  # left early, such as by Ctrl-C
            for ref in running:
                self._ray.cancel(ref, force=True)

    def _end(self, index: int, ref: Any) -> TaskEnd:
        try:
            value, error = self._ray.get(ref)
        except self._ray.exceptions.RayError as problem:  # its worker died again and again, or was never one
            return TaskEnd(index, error=f"Ray gave it up: {problem}")
        return TaskEnd(index, value, error)

    def _told(self) -> list[TaskProgress]:
        """Return what the nodes told since the last call."""
        with contextlib.suppress(self._ray.exceptions.RayError):  # the mailbox's node died; it starts again elsewhere
            return self._ray.get(self._mailbox.take.remote())
        return []

    def _on_every_node(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """Call a function on every node, and return what each answers."""
        refs = {node: self._pinned(function, node).remote(*args) for node in self._cores}
        answers = {}
        for node, ref in refs.items():
            try:
                answers[node] = self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                raise ConfigError(
                    f"The node {self._names[node]} cannot make runs: {error}. Does it have the same hushprompt?"
                ) from error
        return answers

    def _pinned(self, function: Callable[..., Any], node: str, num_cpus: int = 0) -> Any:
        """Return a remote function that runs on one node."""
        where = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        return self._ray.remote(num_cpus=num_cpus, scheduling_strategy=where)(function)


@contextlib.contextmanager
def connected(address: str) -> Iterator[RayCluster]:
    """Connect to a cluster for the time of the block, unless this process is connected already.

    Raises:
        ConfigError: ray is missing, or no cluster answers.
    """
    extras.require("ray", "A sweep on a Ray cluster", "ray")
    import ray
    import ray.util.scheduling_strategies

    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            except ConnectionError as error:
                raise ConfigError(f"No Ray cluster answers at {address!r}: {error}") from error
            stack.callback(ray.shutdown)
        yield RayCluster(ray)


def refuse_difference(node: str, seen: Mapping[str, str], other: str, expected: Mapping[str, str]) -> None:
    """Raise ConfigError if a node sees something else than another; what only one of them names is passed over."""
    for what in seen.keys() & expected.keys():
        if seen[what] != expected[what]:
            raise ConfigError(
                f"The nodes of the cluster differ: {what} is {seen[what]} on {node}, but {expected[what]} on {other}. "
                "Make them alike, so that results do not depend on where a run is made."
            )


def pack(folder: Path) -> bytes:
    """Return a folder as bytes; nothing of it is nothing."""
    if not folder.exists():
        return b""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder))
    return buffer.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """Write a folder that `pack` packed in the place of what is there; after a crash it is the old or the new one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".", suffix=".part") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            archive.extractall(new)  # keeps all names below the folder
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)


# ---- on a node


class Mailbox:
    """Takes what nodes tell, until the driver asks; lives in a process of its own."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._events: list[TaskProgress] = []

    def put(self, event: TaskProgress) -> None:
        """Keep what a node tells."""
        self._events.append(event)

    def take(self) -> list[TaskProgress]:
        """Return what was told since the last call."""
        events, self._events = self._events, []
        return events


def versions() -> Description:
    """Return the versions of what makes results here, and a fingerprint of our own code."""
    code = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*.py")):
        code.update(path.read_bytes())
    installed = {package: version_of(package) for package in PACKAGES}
    return {"python": platform.python_version(), **installed, "the code of hushprompt": code.hexdigest()[:LISTED]}


def describe(config_tomls: Sequence[str]) -> Description:
    """Return versions, and the fingerprints of what configs name as this node sees it, or why it cannot."""
    _prepare()
    found: dict[str, list[str]] = {}
    for toml in config_tomls:
        config, values = configs.parse(tomllib.loads(toml)), tomllib.loads(toml)
        for kind, fingerprint_of in (("data set", data_fingerprint), ("backbone", backbone_fingerprint)):
            fingerprint, error = attempt(functools.partial(fingerprint_of, config))
            what = f"the {kind} {values['data' if kind == 'data set' else kind]['name']}"
            found.setdefault(what, []).append(fingerprint if error is None else f"not there ({error})")
    return versions() | {what: " ".join(dict.fromkeys(seen)) for what, seen in found.items()}


def data_fingerprint(config: RunConfig) -> str:
    """Return a fingerprint of the examples that a config reads, by their content, and of their labels and names."""
    dataset = config.data.load()  # anew: another process may have changed it since the last sweep
    names = repr((dataset.domain_names, dataset.client_names))
    return hashlib.sha256((identity_of(config, dataset, ()).data_digest + names).encode()).hexdigest()[:LISTED]


def backbone_fingerprint(config: RunConfig) -> str:
    """Return the fingerprint of a config's backbone."""
    fingerprint: str = job.load_kept(config.backbone).fingerprint
    return fingerprint[:LISTED]


def encode_on_node(mailbox: Any, config_tomls: Sequence[str], num_threads: int) -> list[tuple[str, str] | None]:
    """Encode the features that this node lacks, and return the digests of data and backbone of each config.

    What goes wrong is None, and said by the runs that need it.
    """
    _prepare()
    found = []
    for toml in config_tomls:
        values = tomllib.loads(toml)
        values["runtime"]["num_threads"] = num_threads
        config = configs.parse(values).to_toml()
        found.append(attempt(functools.partial(job.encode_features, _teller(mailbox, -1), config))[0])
    return found


def train_on_node(
    mailbox: Any, index: int, config_toml: str, begun: bytes, seen: tuple[Collection[str], Description, Sequence[str]]
) -> tuple[tuple[bytes, str] | None, str | None]:
    """Make a run in a folder of this node's cache; return the folder and the scores, or what went wrong."""
    _prepare()

    def train() -> tuple[bytes, str]:
        import ray

        checked, expected, all_tomls = seen
        if ray.get_runtime_context().get_node_id() not in checked:  # it joined the cluster later
            refuse_difference("a new node", describe(all_tomls), "the others", expected)
        folder = folder_on_node(config_toml)
        if begun and not folder.exists():
            unpack(begun, folder)
        folder.mkdir(parents=True, exist_ok=True)
        scores = job.train_run(_teller(mailbox, index), config_toml, folder)
        packed = pack(folder)
        shutil.rmtree(folder)
        return packed, scores

    return attempt(train)


def folder_on_node(config_toml: str) -> Path:
    """Return where a run lies on this node until it is done."""
    config = configs.parse(tomllib.loads(config_toml))
    return config.runtime.cache_path / "runs" / config.identity()


def remove_left(config_tomls: Sequence[str]) -> None:
    """Remove what is left here of runs that were killed here and went on elsewhere."""
    for toml in config_tomls:
        shutil.rmtree(folder_on_node(toml), ignore_errors=True)


def _teller(mailbox: Any, index: int) -> Callable[[str, int, int], None]:
    """Return a function that tells the driver how a task gets on."""
    import ray

    worker = f"node {ray.get_runtime_context().get_node_id()[:8]}, process {os.getpid()}"
    return lambda what, done, total: mailbox.put.remote(TaskProgress(index, worker, what, done, total)) and None


@functools.cache
def _prepare() -> None:
    """Make a worker of Ray ready, which may do several tasks."""
    prepare_training()


def _num_gpus(config_toml: str) -> int:
    """Return how many GPUs a run wants to itself."""
    return 1 if tomllib.loads(config_toml)["runtime"]["device"] == "cuda" else 0
