"""Serving a trained prompt over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hushprompt.errors import ConfigError
from hushprompt.extras import require
from hushprompt.serving.limits import ServingLimits
from hushprompt.serving.loading import load_prompt
from hushprompt.serving.promise import HOLDERS, check_promise, in_plain_words
from hushprompt.serving.prompt import Prompt

if TYPE_CHECKING:
    from hushprompt.models.placing import Device

RATE = 10.0
"""Requests per second of one address, unless another rate is set, for a server that other machines reach."""


@dataclass(frozen=True)
class ServedPrompt:
    """A prompt that is being served."""

    url: str
    """Where its page and endpoints are."""
    privacy: str
    """Its guarantee, in a sentence: that of every caller."""
    meaning: tuple[str, ...]
    """What follows for callers, and for the people whose data trained it."""
    stop: Callable[[], None]
    """Has the server answer what was asked, and end; from any thread."""


def serve(
    source: Prompt | str | Path,
    *,
    client: int | str | None = None,
    backbone: Any = None,
    device: Device = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    names: Sequence[str] = (),
    token_file: str | Path | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
    insecure: bool = False,
    max_epsilon: float | None = None,
    allow_no_guarantee: bool = False,
    rate_limit: float | None = None,
    on_ready: Callable[[ServedPrompt], None] = lambda served: None,
) -> None:
    """Answer over HTTP what images, or sounds, are, with a page for people; until Ctrl-C or SIGTERM.

    Whoever can ask may learn what the prompt tells of the data that trained it: every caller is its holder. Nothing
    that comes in is written or logged.

    Args:
        source: a prompt, or what `load_prompt` reads.
        client: as for `load_prompt`.
        backbone: as for `load_prompt`.
        device: as for `load_prompt`.
        host: name or address to listen at. Beyond this machine a token and TLS are needed.
        port: 0 takes a free one.
        names: host names, beside the machine's own, that callers use.
        token_file: file of mode 600 with the token that callers must send.
        tls_cert: certificate chain, PEM.
        tls_key: its key, PEM, of mode 600.
        insecure: listen to other machines without token or TLS, as behind a proxy that has them.
        max_epsilon: refuse a prompt whose holder has a larger epsilon.
        allow_no_guarantee: serve a prompt with epsilon = inf, too.
        rate_limit: requests per second of one address; None: 10, and any number on this machine alone.
        on_ready: called once requests are answered.

    Raises:
        ConfigError: a setting is wrong, the port is in use, or the extra "serve" is missing.
        PrivacyError: the prompt promises less than its owner wants.
        DataError: there is no such prompt.
    """
    require("serve", "A server", "starlette", "uvicorn")
    from hushprompt.serving.listening import Listener, ListenerConfig
    from hushprompt.serving.replies import PromptAnswers
    from hushprompt.serving.server import PromptService, application

    config = ListenerConfig(
        host=host, port=port, names=tuple(names), token_file=_path(token_file), tls_cert=_path(tls_cert),
        tls_key=_path(tls_key), insecure=insecure,
    )  # fmt: skip
    door, limits = config.door(), ServingLimits(rate=_rate(rate_limit, is_local=config.is_local))
    prompt = (
        source if isinstance(source, Prompt) else load_prompt(source, client=client, backbone=backbone, device=device)
    )
    check_promise(prompt, max_epsilon=max_epsilon, allow_no_guarantee=allow_no_guarantee)
    listener = Listener(application(PromptService(PromptAnswers(prompt), limits), door, limits), config, limits)
    meaning = (HOLDERS, in_plain_words(prompt))
    listener.run(lambda: on_ready(ServedPrompt(listener.url, prompt.privacy, meaning, listener.stop)))


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()


def _rate(wanted: float | None, *, is_local: bool) -> float | None:
    """Return requests per second of one address; None: any number."""
    if wanted is None:
        return None if is_local else RATE
    if not 0 < wanted < float("inf"):
        raise ConfigError(f"--rate-limit must be a number of requests a second, greater than 0, got {wanted}.")
    return wanted
