"""Flower's ClientApp: passes one message to the client node and returns its answer; one process per message."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from hushprompt.deployment.client_node import ClientNode, open_client_node
from hushprompt.deployment.config import load_client
from hushprompt.deployment.flower import environment, messages
from hushprompt.deployment.transport import answer_bytes

_LOG = logging.getLogger("flwr.hushprompt")
FAILED = 2
"""Flower's code for an exception in a ClientApp."""


def client_app(config_of: Callable[[Context], Path]) -> ClientApp:
    """Return the app of a client, or of all clients of a simulation.

    Args:
        config_of: gives the path of the `client.toml` of whom a message is for.
    """
    app = ClientApp()

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        """Answer one message. What went wrong in detail stays here: it could tell of the data."""
        try:
            node = client_node(config_of(context))
            return messages.reply(answer_bytes(node, messages.content_of(message)), message)
        except Exception as error:
            _LOG.exception("A message could not be answered.")
            return Message(Error(FAILED, type(error).__name__), reply_to=message)

    return app


def client_node(config: Path) -> ClientNode:
    """Return the client node of a config: the one that this process has, unless `client.toml` was changed."""
    return _client_node(config, config.stat().st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _client_node(config: Path, changed: int) -> ClientNode:
    """Open a client node; a simulation's processes answer for several clients, many times."""
    return open_client_node(load_client(config))


app = client_app(lambda context: environment.path_of(environment.CLIENT_CONFIG))
