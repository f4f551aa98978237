"""SuperLink's Control API, as far as the server's operator needs it: which keys may connect, and runs.

It answers processes on the server's own machine only. A client's name is the one under which its public key lies at
the server. It is not what a client says.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from hushprompt.errors import LinkError

REGISTERED = ("registered", "online", "offline")
"""States of a node that may connect."""
OVER, COMPLETED = "finished", "completed"
"""State of a run that has ended, and how it should have."""


@dataclass(frozen=True)
class Node:
    """A client, as SuperLink knows it."""

    node_id: str
    public_key: bytes
    """PEM."""
    is_online: bool


@dataclass(frozen=True)
class FlowerRun:
    """A run as SuperLink knows it."""

    run_id: int
    begun: str
    """When it was asked for, ISO 8601."""
    status: str
    """pending, starting, running or finished."""
    outcome: str
    """Once finished: completed, failed or stopped."""
    details: str
    bytes_in: int
    bytes_out: int
    """All that SuperLink received and sent for it, envelopes and all."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.status == OVER

    @property
    def is_completed(self) -> bool:
        """Whether it has ended as it should."""
        return self.is_over and self.outcome == COMPLETED


class Control:
    """A connection to the SuperLink on this machine. Every method raises LinkError if it does not answer."""

    def __init__(self, host: str, port: int, ca: Path | None) -> None:
        """Connect when something is asked.

        Args:
            host: address of this machine at which the SuperLink listens.
            port: of the SuperLink.
            ca: certificate of the authority that signed the server's; None: without TLS.
        """
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._client = ControlHttpClient.from_server_address(
            server_address=self._address,
            insecure=ca is None,
            root_certificates=None if ca is None else ca.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def nodes(self) -> list[Node]:
        """Return the nodes whose keys are registered."""
        with self._asking("list clients"):
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [
            Node(str(node.node_id), bytes(node.public_key), node.status == "online")
            for node in found
            if node.status in REGISTERED
        ]

    def admit(self, keys: Mapping[str, bytes]) -> dict[str, str]:
        """Let the holders of these keys connect, and nobody else.

        Args:
            keys: public keys (PEM) by client name.

        Returns:
            Client names by node id.

        Raises:
            LinkError: also for a key that was taken out before.
        """
        wanted = {key: name for name, key in keys.items()}
        names: dict[str, str] = {}
        for node in self.nodes():
            if node.public_key in wanted:
                names[node.node_id] = wanted.pop(node.public_key)
            else:
                with self._asking("take a client out"):
                    self._client.UnregisterNode(UnregisterNodeRequest(node_id=int(node.node_id)))
        for key, name in wanted.items():
            with self._asking(f"let {name} in (a key that was taken out cannot come back: {name} needs a new one)"):
                response = self._client.RegisterNode(RegisterNodeRequest(public_key=key))
            names[str(response.node_id)] = name
        return names

    def start(self, bundle: Path, settings: Mapping[str, bool]) -> int:
        """Start a run, and return its id.

        Args:
            bundle: folder that names the two apps.
            settings: of the server's app, by the names in the bundle; the others are as they are there.
        """
        content = build_fab_from_disk(bundle)
        fab = Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(settings)))
        with self._asking("start a run"):
            response = self._client.StartRun(request)
        if not response.HasField("run_id"):
            raise LinkError("The SuperLink did not start the run; its log says why.")
        return int(response.run_id)

    def stop(self, run_id: int) -> None:
        """Stop a run."""
        with self._asking("stop a run"):
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def runs(self) -> list[FlowerRun]:
        """Return all runs, the newest first."""
        with self._asking("list runs"):
            found = self._client.ListRuns(ListRunsRequest()).run_dict.values()
        states = [
            FlowerRun(
                run_id=int(run.run_id),
                begun=run.pending_at,
                status=run.status.status,
                outcome=run.status.sub_status,
                details=run.status.details,
                bytes_in=int(run.bytes_recv),
                bytes_out=int(run.bytes_sent),
            )
            for run in found
        ]
        return sorted(states, key=lambda run: run.begun, reverse=True)

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Say plainly what could not be done."""
        try:
            yield
        except httpx.HTTPStatusError as error:
            raise LinkError(f"The SuperLink refused to {what}: {error.response.text or error}.") from error
        except httpx.HTTPError as error:
            raise LinkError(
                f"The SuperLink does not answer at {self._address} ({error}). Is `hushprompt federation server` "
                "running on this machine, with the same server.toml?"
            ) from error
