"""`privacy.json`: who sees what of a run at which epsilon, and what that follows from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from hushprompt.methods.base import StartsFromRelease
from hushprompt.privacy import statements
from hushprompt.privacy.config import Channel
from hushprompt.privacy.ledger import Account
from hushprompt.privacy.metrics import LOCAL_SENSITIVITY, MetricsPlan, neighbor_sensitivity
from hushprompt.privacy.plan import PrivacyPlan
from hushprompt.runs.arm import Arm
from hushprompt.words import counted


def privacy_record(
    arms: list[Arm],
    accounts: Mapping[str, list[Account]] | None = None,
    metrics: MetricsPlan | None = None,
    num_released: int | None = None,
    *,
    in_one_process: bool = True,
) -> dict[str, Any]:
    """Return `privacy.json`: per arm the mechanisms, their composed event, and the guarantee of every audience.

    Args:
        arms: with plans that say what was spent, or, for a run that is not trained, what is planned.
        accounts: by arm, each distinct guarantee and its clients, from the ledger; None before training.
        metrics: how evaluation counts get noise; None: accuracies are exact.
        num_released: evaluations that were released; None: all that are planned.
        in_one_process: whether clients and server are simulated; false in a federation of separate machines.
    """
    plan = arms[-1].plan
    terms = plan.terms() if plan.release_plan.has_shares else None
    source = plan.release_plan.noise_source
    return {
        "arms": [_arm(arm, accounts or {}) for arm in arms],
        "other_client": statements.OTHER_CLIENT,
        "server": statements.server_statement(plan.config.noise_at, terms, source, in_one_process=in_one_process),
        "not_private": statements.NOT_PRIVATE if metrics is None else statements.LOSSES_NOT_PRIVATE,
        **({} if metrics is None else _evaluation_images(metrics, num_released)),
        "noise_source": statements.NOISE_SOURCE[source],
        "several_arms": statements.SEVERAL_ARMS,
    }


def _arm(arm: Arm, accounts: Mapping[str, list[Account]]) -> dict[str, Any]:
    releases = arm.plan.release_plan
    return {
        "arm": arm.label,
        "method": arm.method_name,
        "channels": sorted(arm.plan.channels),
        "clip_norms": {str(c): value for c, value in releases.clip_norms.items()},
        "clipped": "examples" if releases.batch_clipping is None else "batches",
        "sensitivities": {str(c): releases.sensitivity(c) for c in releases.clip_norms},
        "rounding": statements.rounding_statement(
            releases.num_rounded if arm.plan.channels else 0,
            releases.config.rounding,
            is_most=releases.config.privacy_unit == "group",
        ),
        **_groups(arm.plan),
        "one_release": _one_release(arm.plan),
        "noise_multipliers": {str(c): value for c, value in releases.noise_multipliers.items()},
        "adaptive_clipping": _adaptive_clipping(arm),
        "sampling": statements.in_units(arm.plan.sampler.description, arm.plan.config.unit_word),
        "num_rounds": arm.num_rounds,
        "limit": arm.plan.limit,
        "delta": arm.plan.config.delta,
        "noise_source": releases.noise_source,
        "clients": [dataclasses.asdict(account) for account in accounts.get(arm.label, [])],
        "participation": participation(arm),
        "audiences": {
            str(audience): {**guarantee.to_json(), "statement": guarantee.statement()}
            for audience, guarantee in arm.plan.guarantees().items()
        },
        **_start(arm, accounts),
    }


def _groups(plan: PrivacyPlan) -> dict[str, str]:
    """Say what holds for groups, where these are the unit."""
    if plan.config.privacy_unit != "group":
        return {}
    return {"groups": statements.GROUPS.format(most=plan.config.max_group_examples)}


def _one_release(plan: PrivacyPlan) -> str:
    """Say what follows from one release: for those who leave, and for those who join late."""
    if not plan.release_plan.parts:
        return ""
    late = [client_id for client_id, share in enumerate(plan.client_shares) if share < 1]
    if not late:
        return statements.ONE_RELEASE
    audience = plan.config.audience
    held = plan.of_client(late[0]).guarantees()[audience]
    told = statements.LATE.format(
        clients=counted(len(late), "client") if len(late) < len(plan.client_shares) else "This client",
        multiplier=held.releases.noise_multiplier,
        whole=plan.release_plan.noise_multipliers[Channel.GLOBAL],
        epsilon=held.epsilon,
        simulated=statements.beside_epsilon(held.noise_source),
        unit=plan.config.unit_word,
        delta=held.delta,
        sampling=held.sampling,
        relation=held.neighboring_relation,
        audience=statements.AUDIENCES[str(audience)],
        accountant=held.accountant,
    )
    return f"{statements.ONE_RELEASE} {told}"


def _start(arm: Arm, accounts: Mapping[str, list[Account]]) -> dict[str, Any]:
    """Return the entry of the release that an arm starts from, where it does."""
    if arm.start is None:
        return {}
    assert isinstance(arm.method, StartsFromRelease), "or it would have no start"
    return {"start": {**_arm(arm.start, accounts), "share": arm.method.start_share}}


def _evaluation_images(metrics: MetricsPlan, num_released: int | None) -> dict[str, Any]:
    """Return the guarantee of evaluation images in words, and what it follows from."""
    guarantee = metrics.guarantee(num_released)
    words = statements.EVALUATION_IMAGES.format(
        statement=guarantee.statement(),
        local=metrics.std_local,
        neighbor=metrics.std_neighbor,
        counted=metrics.counted,
    )
    return {
        "evaluation_images": words,
        "evaluation": {
            "guarantee": {**guarantee.to_json(), "statement": guarantee.statement()},
            "num_clients": metrics.num_clients,
            "num_planned": metrics.num_releases,
            "sensitivities": {"local": LOCAL_SENSITIVITY, "neighbor": neighbor_sensitivity(metrics.num_clients)},
            "noise_stds": {"local": metrics.std_local, "neighbor": metrics.std_neighbor},
        },
    }


def _adaptive_clipping(arm: Arm) -> dict[str, Any] | None:
    """Say how clip norms follow the data, and how each release's noise is shared between sum and count."""
    config, releases = arm.plan.config, arm.plan.release_plan
    if config.adaptive_quantile is None:
        return None
    return {
        "quantile": config.adaptive_quantile,
        "rate": config.adaptive_rate,
        "sum_noise_multipliers": {str(c): releases.sum_multiplier(c) for c in sorted(arm.plan.channels)},
        "count_noise_std": {str(c): releases.count_std(c) for c in sorted(releases.noise_multipliers)},
        "note": statements.ADAPTIVE_CLIPPING,
    }


def participation(arm: Arm) -> dict[str, Any]:
    """Say who takes part how often: clients counted by their number of rounds, each with its own epsilon."""
    cohorts = arm.cohorts
    rounds, num_clients = np.unique(cohorts.rounds_of_clients(), return_counts=True)
    own = [{str(who): arm.plan.epsilon(who, count) for who in arm.plan.audiences} for count in rounds.tolist()]
    statement = ""
    if cohorts.is_partial and len(cohorts):
        statement = statements.PARTICIPATION.format(
            cohort_size=cohorts.cohort_size,
            take="takes" if cohorts.cohort_size == 1 else "take",
            num_clients=cohorts.num_clients,
            most=rounds.max(),
            num_rounds=len(cohorts),
        )
    return {
        "cohort_size": cohorts.cohort_size,
        "num_clients": cohorts.num_clients,
        "statement": statement,
        "clients_by_rounds": [
            {"rounds": count, "num_clients": number, "epsilon": epsilon}
            for count, number, epsilon in zip(rounds.tolist(), num_clients.tolist(), own, strict=True)
        ],
    }
