"""The policy of a data owner: what a client refuses whatever the server asks, and the budget of all its runs."""

from __future__ import annotations

from pathlib import Path

from hushprompt import files
from hushprompt.config.schema import EvaluationConfig
from hushprompt.deployment.agreement import read_agreement
from hushprompt.deployment.config import OwnerConfig
from hushprompt.deployment.server_record import AGREEMENT
from hushprompt.deployment.store import rounds_of_state, run_folders
from hushprompt.errors import PrivacyError, ResumeError
from hushprompt.privacy.config import Channel
from hushprompt.privacy.plan import PrivacyPlan
from hushprompt.runs import ledger as ledger_file
from hushprompt.runs import metrics, records
from hushprompt.runs.arm import Arm

STRENGTH = ("any", "auto", "server", "shares", "client")
"""Where the noise is added, the more protected from the server the later."""


UNITS = ("any", "example", "group", "client")
"""Privacy units, the larger the later."""


def check_plan(
    owner: OwnerConfig, arm: Arm, evaluation: EvaluationConfig, client_id: int, store: Path, folder: Path
) -> None:
    """Refuse a plan that the owner does not allow, before any training.

    Raises:
        PrivacyError: with all that is wrong.
    """
    plan, wrong = arm.plan, []
    least = {Channel.LOCAL: owner.min_noise_multiplier_local, Channel.GLOBAL: owner.min_noise_multiplier_global}
    most = {Channel.LOCAL: owner.max_clip_norm_local, Channel.GLOBAL: owner.max_clip_norm_global}
    for channel in sorted(plan.channels):
        z = plan.release_plan.sum_multiplier(channel)
        if z < least[channel]:
            wrong.append(f"{channel} noise multiplier {z:.4g} is below {least[channel]:g}")
        if plan.release_plan.clip_norms[channel] > most[channel]:
            wrong.append(f"{channel} clip norm {plan.release_plan.clip_norms[channel]:g} is above {most[channel]:g}")
    if Channel.GLOBAL in plan.channels:
        wrong += _of_noise_at(owner, plan)
    unit = plan.config.privacy_unit
    if plan.channels and UNITS.index(unit) < UNITS.index(owner.require_unit):
        wrong.append(f'what is protected is one {unit}, and the owner asks for privacy_unit = "{owner.require_unit}"')
    is_secure = plan.release_plan.noise_source == "secure" or not plan.channels
    if not is_secure and (owner.require_noise_source == "secure" or owner.require_noise_at != "any"):
        wrong.append("noise would come from a seed that the server knows")
    release = plan.release_plan
    has_noise = any(release.noise_multipliers.values())
    if owner.require_rounding and has_noise and release.num_rounded and not plan.config.rounding:
        wrong.append("the noise does not account for rounding of the model (privacy.rounding = 0)")
    rounds = int(arm.cohorts.rounds_of_clients()[client_id]) if arm.num_rounds else 0
    wrong += _of_evaluation_images(owner, evaluation, store, folder)
    reason = _over(owner, epsilon(plan, rounds, client_id), plan.config.delta if rounds else 0.0, store, folder)
    if reason is not None:
        wrong.append(f"the whole run would bring {reason}")
    if wrong:
        raise PrivacyError(f"The owner of these data does not allow this plan: {'; '.join(wrong)}.")


def _of_noise_at(owner: OwnerConfig, plan: PrivacyPlan) -> list[str]:
    """Say what is wrong with who adds the noise of what is shared, and with whom this client's sum is hidden among."""
    wrong, noise_at = [], plan.config.noise_at
    if STRENGTH.index(noise_at) < STRENGTH.index(owner.require_noise_at):
        reach = "with a share of the noise alone, under masks" if noise_at == "shares" else "without noise"
        wrong.append(f"clipped sums would reach the server {reach}")
    if noise_at != "shares":
        return wrong
    terms = plan.terms()
    if terms.least < owner.min_clients:
        wrong.append(f"a sum may be over {terms.least} clients, fewer than min_clients = {owner.min_clients}")
    if terms.max_colluding < owner.min_colluding:
        wrong.append(f"max_colluding = {terms.max_colluding} is below min_colluding = {owner.min_colluding}")
    return wrong


def _of_evaluation_images(owner: OwnerConfig, evaluation: EvaluationConfig, store: Path, folder: Path) -> list[str]:
    """Say what is wrong with counts of right answers that would leave; runs that made theirs add up."""
    if evaluation.metrics_epsilon is None:
        return []
    total = evaluation.metrics_epsilon
    for run in run_folders(store):
        if run != folder and (run / metrics.FILE).exists():
            total += read_agreement(records.read_json(run / AGREEMENT)).run_config.evaluation.metrics_epsilon or 0.0
    if total <= owner.max_metrics_epsilon:
        return []
    return [
        f"counts of right answers would bring epsilon of an evaluation image over all runs here to {total:.4g}, above "
        f"max_metrics_epsilon = {owner.max_metrics_epsilon:g}"
    ]


def epsilon(plan: PrivacyPlan, num_rounds: int, client_id: int) -> float:
    """Return the largest epsilon of anyone from whom the plan protects, after so many rounds of a client.

    Where the unit is a client nothing is claimed of personal prompts, and nothing is counted: they stay here.
    """
    audiences = [who for who in plan.audiences if not plan.is_outside(who)]
    return max(plan.epsilon(who, num_rounds, client_id) for who in audiences) if num_rounds else 0.0


def total(
    owner: OwnerConfig, plan: PrivacyPlan, num_rounds: int, client_id: int, store: Path, folder: Path
) -> dict[str, float]:
    """Return (epsilon, delta) of `num_rounds` rounds of this run, which the ledger's line of the last one then states.

    Runs add up (basic composition): what others spent and this run's new total must stay within the owner's limits.

    Raises:
        PrivacyError: they would not: the round must not be charged.
        ResumeError: it is not known what another run spent.
    """
    now = epsilon(plan, num_rounds, client_id)
    reason = _over(owner, now, plan.config.delta, store, folder)
    if reason is not None:
        raise PrivacyError(f"The owner's privacy budget forbids this round: it would bring {reason}.")
    return {"epsilon": now, "delta": plan.config.delta}


def spent(folder: Path) -> tuple[float, float]:
    """Return the (epsilon, delta) that a run in a store was charged for, from its ledger.

    The ledger's last line says it; where an older version wrote that, it follows from the agreement and the rounds.

    Raises:
        ResumeError: the ledger is lost or damaged, so nobody knows.
    """
    path = folder / ledger_file.FILE
    lines = files.whole_lines_of(path)
    num_rounds, stated = ledger_file.stated(lines)
    if num_rounds < rounds_of_state(folder):
        raise ResumeError(f"The ledger in {folder} lacks rounds: what was spent is not known.")
    if stated is not None:
        return stated
    agreement = read_agreement(records.read_json(folder / AGREEMENT))
    ledger = ledger_file.read_ledgers(path, lines, agreement.clients)[agreement.arm.label]
    (client_id,) = {client_id for charge in ledger.charges for client_id in charge.clients}
    plan = agreement.arm.plan
    return epsilon(plan, ledger.rounds(client_id), client_id), plan.config.delta


def _over(owner: OwnerConfig, epsilon: float, delta: float, store: Path, folder: Path) -> str | None:
    """Say which limit would be passed with this much of the run in `folder`; None: neither."""
    for run in run_folders(store):
        if run != folder:
            epsilon, delta = (now + before for now, before in zip((epsilon, delta), spent(run), strict=True))
    if epsilon > owner.max_epsilon:
        return f"epsilon of all runs here to {epsilon:.4g}, above {owner.max_epsilon:g}"
    if delta > owner.max_delta * (1 + 1e-9):
        return f"delta of all runs here to {delta:.4g}, above {owner.max_delta:g}"
    return None
