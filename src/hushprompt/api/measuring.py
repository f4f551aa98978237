"""What privacy costs and what it holds: noise of a budget, epsilon of noise, a run's audit and verification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hushprompt.api.run import Run
from hushprompt.audits import audit as audits
from hushprompt.audits import verify as verifying
from hushprompt.audits.audit_record import AuditRecord
from hushprompt.audits.exposure import Exposure
from hushprompt.audits.verify import Verification
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.errors import files_told
from hushprompt.privacy.calibration import plan_training
from hushprompt.privacy.config import Audience
from hushprompt.privacy.guarantee import Guarantee
from hushprompt.registry import METHODS


@dataclass(frozen=True, repr=False)
class Noise:
    """The noise of each release of a method, and what it guarantees to whom."""

    multipliers: Mapping[str, float]
    """Noise standard deviation over clip norm, by channel: "local", "global"."""
    guarantees: Mapping[str, Guarantee]
    """By audience."""

    def __repr__(self) -> str:
        """Return the noise, and every audience's guarantee in a sentence."""
        noise = [
            f"noise_multiplier_{channel} = {value:.6g}   (noise std over clip norm)"
            for channel, value in self.multipliers.items()
        ]
        return "\n".join([*noise, *(f"{who}: {held.statement()}" for who, held in self.guarantees.items())])


def calibrate(budget: float, *, rounds: int, method: str = "dp_fpl", **training: Any) -> Noise:
    """Return the noise that a budget needs, and who then has which epsilon.

    Args:
        budget: target epsilon of `audience`; inf needs no noise.
        rounds: communication rounds.
        method: name of the method, which decides what is released.
        training: delta, sampling_prob, steps_per_round, audience, noise_at, local_share, relation, unit, clients,
            max_colluding, max_dropouts, rescue: as `hushprompt.privacy.calibration.plan_training` takes them.

    Raises:
        PrivacyError: no theorem covers such a training.
        ConfigError: a value is out of range.

    >>> calibrate(8.0, rounds=20, sampling_prob=0.05).guarantees["personal"].epsilon <= 8.0
    True
    """
    plan = plan_training(rounds=rounds, epsilon=budget, channels=METHODS.get(method).channels, **training)
    return Noise(
        {str(channel): value for channel, value in plan.release_plan.noise_multipliers.items()},
        {str(who): held for who, held in plan.guarantees().items()},
    )


def epsilon(
    noise: Noise | Mapping[str, float] | float,
    *,
    rounds: int,
    audience: str = "personal",
    method: str = "dp_fpl",
    **training: Any,
) -> Guarantee:
    """Return what noise guarantees to an audience.

    Args:
        noise: standard deviation over clip norm: one number for all releases, one by channel, or what `calibrate` gave.
        rounds: communication rounds.
        audience: "personal", "public" or "server".
        method: name of the method, which decides what is released.
        training: as for `calibrate`.

    Raises:
        PrivacyError: no theorem covers such a training.
        ConfigError: a value is out of range.

    >>> epsilon(calibrate(8.0, rounds=20), rounds=20).statement()[:15]
    'epsilon = 8 at '
    """
    multipliers = noise.multipliers if isinstance(noise, Noise) else noise
    channels = METHODS.get(method).channels
    plan = plan_training(rounds=rounds, noise_multipliers=multipliers, channels=channels, audience=audience, **training)
    return plan.guarantees()[Audience(audience)]


@files_told()
def audit(
    what: Run | RunConfig | str | Path,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    workers: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> AuditRecord:
    """Attack what a run publishes, measure a lower bound on epsilon, and set it beside the claim.

    Called again with the same folder, it goes on where it was stopped.

    Args:
        what: a run, a config, a run folder, a TOML file, or the name of a preset.
        out: folder of the audit; None: `audit` in the run folder, or audit/NAME.
        overrides: settings of the form "section.key=value"; not for a config that is given as such.
        workers: processes, each with one thread; 0: one a core.
        on_progress: called with how many federations are trained, and how many are wanted.
        settings: fields of `hushprompt.audits.audit.AuditSettings`, such as epsilons=(2.0, math.inf).

    Raises:
        ConfigError: a setting is impossible, or the method publishes no prompt that is trained.
        ResumeError: the folder holds another audit, or another process is at work in it.
    """
    place = what if isinstance(what, RunConfig) else Path(what)
    return audits.audit(place, out=out, overrides=overrides, workers=workers, on_progress=on_progress, **settings)


@files_told()
def secret_exposures(config: RunConfig | Mapping[str, Any] | str | Path, **settings: Any) -> tuple[Exposure, ...]:
    """Train once with secret digits in some of a client's answers, and say how much each prompt tells of them.

    Args:
        config: of a run on questions; as for `run`.
        settings: as for `audit`, such as num_secrets=8, num_repeats=3 or epsilons=(8.0, math.inf).

    Returns:
        Exposure in bits, one for each audience that holds a prompt, and each budget. No file is left.

    Raises:
        ConfigError: the data have no questions, the client too few, or the method trains no context.
    """
    alone: dict[str, Any] = {"attacks": (), "num_canaries": 0, "num_gradient_canaries": 0, "workers": 1}
    with TemporaryDirectory() as folder:
        record = audits.audit(configs.resolve(config, {}), out=folder, **{"num_secrets": 4, **alone, **settings})
    return tuple(one.secrets for budget in record.budgets for one in budget.audiences if one.secrets is not None)


@files_told()
def verify(run: Run | str | Path, *, digest: str = "") -> Verification:
    """Compute noise, releases and epsilon of a run again, and compare everything that it published.

    Noise multipliers, releases and epsilon follow from config, clients' sizes and ledger, and are held against
    dp_accounting; stored numbers are only compared. Nothing is written, and the data are not needed.

    Args:
        run: a run folder, also a copy; of a federation the server's folder, or that of one run in a client's store.
        digest: as an earlier call printed it, kept elsewhere: the folder must be the same to the last bit. A folder
            that was rewritten as a whole cannot be told from inside.

    Returns:
        What was checked, what differs, and what is not recorded; it shows itself in sentences.

    Raises:
        DataError: it is no run folder, or a file cannot be read.
    """
    return verifying.verify(Path(run), digest)
