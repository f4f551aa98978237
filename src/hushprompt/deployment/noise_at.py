"""Where a federation's noise is added, if its config leaves that open: shares of it at the clients, if possible."""

from __future__ import annotations

import dataclasses

from hushprompt.config.schema import RunConfig
from hushprompt.errors import PrivacyError
from hushprompt.methods.base import ClipsBatches
from hushprompt.privacy.config import SHARES_ONLY, Channel
from hushprompt.privacy.shares import ShareTerms


def settled(run: RunConfig, quorum: int) -> tuple[RunConfig, str]:
    """Return a config with noise shares, or one with the server's noise and why, where shares are impossible.

    Args:
        run: with `privacy.noise_at = "shares"`.
        quorum: clients without which training does not start.
    """
    if Channel.GLOBAL not in run.method.channels:  # nothing is shared, so there is nothing to say either
        return _at_server(run), ""
    reason = _why_not(run, min(quorum, run.training.cohort_size or quorum)).rstrip(".")
    if not reason:
        return run, ""
    return _at_server(run), (
        f"Noise is added by the server, which sees each client's clipped sum without it: {reason}. If that is meant, "
        'privacy.noise_at = "server" says so.'
    )


def _why_not(run: RunConfig, num_clients: int) -> str:
    """Say why so many clients a round cannot add shares of the noise; "" where they can."""
    if run.training.local_steps > 1:
        return (
            f"training.local_steps = {run.training.local_steps} would need all of the noise at each client, which is "
            'privacy.noise_at = "client"'
        )
    if isinstance(run.method, ClipsBatches) and run.method.batch_clipping is not None:
        return "clipped batches are for comparison alone"
    try:
        ShareTerms(num_clients=num_clients, **{name: getattr(run.privacy, name) for name in SHARES_ONLY})
    except PrivacyError as error:
        return str(error)
    return ""


def _at_server(run: RunConfig) -> RunConfig:
    return dataclasses.replace(run, privacy=dataclasses.replace(run.privacy, noise_at="server", **SHARES_ONLY))
