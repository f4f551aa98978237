"""The command that finds the noise of a budget."""

from __future__ import annotations

from typing import Annotated

import typer

from hushprompt.cli.console import console, sentence
from hushprompt.privacy import statements
from hushprompt.privacy.config import Audience
from hushprompt.registry import METHODS
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
    noise_at: Annotated[str, typer.Option(help="Where the global noise is added: server or client.")] = "server",
    local_share: Annotated[float, typer.Option(help="Share of the budget for the local release.")] = 0.5,
    relation: Annotated[str, typer.Option(help="add_remove or replace_one.")] = "add_remove",
    unit: Annotated[str, typer.Option(help="Who is protected: example or client.")] = "example",
    clients: Annotated[
        int, typer.Option(help="Number of clients; delta must lie below 1 / this with --unit client.")
    ] = 1,
    method: Annotated[str, typer.Option(help="Method, which decides what is released.")] = "dp_fpl",
) -> None:
    """Return the noise multipliers that a budget needs, and who then has which epsilon."""
    from hushprompt.privacy.calibration import plan_training

    plan = plan_training(
        epsilon=epsilon,
        rounds=rounds,
        delta=delta,
        sampling_prob=sampling_prob,
        steps_per_round=steps_per_round,
        channels=METHODS.get(method).channels,
        audience=audience,
        noise_at=noise_at,  # type: ignore[arg-type]
        local_share=local_share,
        relation=relation,  # type: ignore[arg-type]
        unit=unit,  # type: ignore[arg-type]
        clients=clients,
    )
    for channel, value in plan.release_plan.noise_multipliers.items():
        console.print(f"noise_multiplier_{channel} = {value:.6g}   (noise std over clip norm)")
    guarantees = plan.guarantees()
    for name, guarantee in guarantees.items():
        sentence(f"{statements.AUDIENCES[name]}:\n  {guarantee.statement()}")
    for line in statements.cross_check_lines(
        {"audiences": {str(n): records.to_json(g) for n, g in guarantees.items()}}
    ):
        sentence(line)
