"""The command that finds the noise of a budget."""

from __future__ import annotations

from typing import Annotated

import typer

import hushprompt as hp
from hushprompt.cli.console import console, sentence
from hushprompt.privacy import statements
from hushprompt.privacy.config import Audience
from hushprompt.runs import records


def calibrate(
    epsilon: Annotated[float, typer.Option(help="Target epsilon of the audience.")],
    rounds: Annotated[int, typer.Option(help="Communication rounds.")],
    delta: Annotated[float, typer.Option(help="Target delta.")] = 1e-5,
    sampling_prob: Annotated[
        float | None, typer.Option(help="Poisson sampling probability; none: disjoint batches.")
    ] = None,
    steps_per_round: Annotated[int, typer.Option(help="Steps (batches) a round.")] = 1,
    audience: Annotated[Audience, typer.Option(help="Whom the target is for.")] = Audience.PERSONAL,
    noise_at: Annotated[
        str, typer.Option(help="Where the global noise is added: server, client or shares.")
    ] = "server",
    local_share: Annotated[float, typer.Option(help="Share of the budget for the local release.")] = 0.5,
    relation: Annotated[str, typer.Option(help="add_remove or replace_one.")] = "add_remove",
    unit: Annotated[str, typer.Option(help="Who is protected: example, group or client.")] = "example",
    clients: Annotated[
        int, typer.Option(help="Number of clients; delta must lie below 1 / this with --unit client.")
    ] = 1,
    max_colluding: Annotated[int, typer.Option(help="With shares: clients that may be with the server.")] = 1,
    max_dropouts: Annotated[int, typer.Option(help="With shares: clients that may be gone from a step.")] = 0,
    rescue: Annotated[bool, typer.Option(help="With shares: clients may also be lost in a step.")] = False,
    method: Annotated[str, typer.Option(help="Method, which decides what is released.")] = "dp_fpl",
) -> None:
    """Return the noise multipliers that a budget needs, and who then has which epsilon."""
    noise = hp.calibrate(
        epsilon,
        rounds=rounds,
        method=method,
        delta=delta,
        sampling_prob=sampling_prob,
        steps_per_round=steps_per_round,
        audience=audience,
        noise_at=noise_at,
        local_share=local_share,
        relation=relation,
        unit=unit,
        clients=clients,
        max_colluding=max_colluding,
        max_dropouts=max_dropouts,
        rescue=rescue,
    )
    for channel, value in noise.multipliers.items():
        console.print(f"noise_multiplier_{channel} = {value:.6g}   (noise std over clip norm)")
    for name, guarantee in noise.guarantees.items():
        sentence(f"{statements.AUDIENCES[name]}:\n  {guarantee.statement()}")
    guarantees = {name: records.to_json(guarantee) for name, guarantee in noise.guarantees.items()}
    for line in statements.cross_check_lines({"audiences": guarantees}):
        sentence(line)
