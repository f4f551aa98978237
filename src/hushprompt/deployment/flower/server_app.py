"""Flower's ServerApp: the coordinator, with Flower's Grid as its transport."""

from __future__ import annotations

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from hushprompt.deployment.config import load_server
from hushprompt.deployment.coordinator import check, serve
from hushprompt.deployment.flower import environment
from hushprompt.deployment.flower.grid_transport import GridTransport
from hushprompt.privacy.statements import beside_epsilon
from hushprompt.runs.arm import Arm
from hushprompt.runs.records import RoundRecord

_LOG = logging.getLogger("flwr.hushprompt")
"""Below Flower's logger: `flwr run --stream` and `flwr log` show its lines."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve the federation of this machine's `server.toml`; a run can only ask to check it, or to leave out a step."""
    config = load_server(environment.path_of(environment.SERVER_CONFIG))
    transport = GridTransport(grid, environment.node_names())
    if context.run_config.get("only-check"):
        check(config, transport)
    else:
        serve(config, transport, LoggingObserver(), leave_step=bool(context.run_config.get("leave-step")))


class LoggingObserver:
    """An observer that writes a line for each thing that happens."""

    def on_setup(self, what: str, done: int, total: int) -> None:
        """Say that images are encoded."""
        if done == total:
            _LOG.info("%s: %d", what, total)

    def on_arm(self, arm: Arm, index: int, num_arms: int, num_rounds_done: int) -> None:
        """Say what is trained."""
        _LOG.info("%s: %d of %d rounds done", arm.label, num_rounds_done, arm.num_rounds)

    def on_round(self, record: RoundRecord) -> None:
        """Say what a round cost."""
        epsilons = ", ".join(f"{who} {epsilon:.3f}" for who, epsilon in record.epsilon.items())
        _LOG.info(
            "round %d: %s of %s clients, %d bytes up, %d down, %.1f s, epsilon%s at delta %g: %s",
            record.round_index,
            record.num_clients,
            record.cohort_size,
            record.bytes_up,
            record.bytes_down,
            record.seconds,
            beside_epsilon(record.noise_source),
            record.delta,
            epsilons,
        )
