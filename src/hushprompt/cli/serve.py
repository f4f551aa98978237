"""The command that serves a trained prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import hushprompt as hp
from hushprompt.cli.console import Tower, Whose, console, sentence
from hushprompt.cli.predict import Where
from hushprompt.process import importing

if TYPE_CHECKING:
    from hushprompt.api.serve import ServedPrompt


def serve(
    source: Annotated[Path, typer.Argument(help="Run folder, prompt file, a client's store, or an export.")],
    client: Whose = None,
    backbone: Tower = None,
    device: Annotated[Where, typer.Option(help="Where the backbone runs.")] = Where.AUTO,
    host: Annotated[str, typer.Option(help="Name or address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    name: Annotated[list[str] | None, typer.Option(help="A host name that callers use; may be repeated.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File of mode 600 with the token callers must send.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM, of mode 600.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen to other machines without token or TLS.")
    ] = False,
    max_epsilon: Annotated[
        float | None, typer.Option(help="Refuse a prompt whose holder has a larger epsilon.")
    ] = None,
    allow_no_guarantee: Annotated[
        bool, typer.Option("--allow-no-guarantee", help="Serve a prompt with epsilon = inf, too.")
    ] = False,
    rate_limit: Annotated[
        float | None, typer.Option(help="Requests a second of one address; none: 10, on this machine any number.")
    ] = None,
) -> None:
    """Answer over HTTP what images or sounds are, with a page for people; Ctrl-C or SIGTERM ends it."""
    with importing():
        from hushprompt.api import serve as _  # noqa: F401 - torch and what it needs

    hp.serve(
        source, client=client, backbone=backbone, device=device.value, host=host, port=port, names=name or (),
        token_file=token_file, tls_cert=tls_cert, tls_key=tls_key, insecure=insecure, max_epsilon=max_epsilon,
        allow_no_guarantee=allow_no_guarantee, rate_limit=rate_limit, on_ready=_show,
    )  # fmt: skip
    console.print("Stopped; what was asked has been answered.")


def _show(served: ServedPrompt) -> None:
    """Print where the server is, and what its callers may learn."""
    sentence(served.privacy)
    for line in served.meaning:
        sentence(line)
    console.print(f"  {served.url}", soft_wrap=True)
