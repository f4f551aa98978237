"""The server's end of a federation: who joins, rounds with whoever answers, and a checkpoint before anything leaves."""

from __future__ import annotations

from hushprompt.deployment.config import ServerConfig
from hushprompt.deployment.transport import Transport
from hushprompt.federation.simulate import Observer


def serve(config: ServerConfig, transport: Transport, observer: Observer) -> None:
    """Gather the clients, train, and leave a run folder; go on where a checkpoint in the folder stopped.

    Args:
        config: of the server; the folder is made if it is missing.
        transport: reaches the clients.
        observer: who watches; `on_round` gets a record without losses and scores, which never travel.

    Raises:
        ConfigError: the run is impossible for the clients that joined, or outside the privacy theorem.
        ProtocolError: too few clients joined, or answered. Call again to go on.
        ResumeError: the folder is in use, damaged, or belongs to another config.
    """
    raise NotImplementedError
