"""Renyi differential privacy of Gaussian releases: dp_accounting's bound, and sums that no rounding can make too small.

dp_accounting sums the moments of a sampled release in a way that loses all digits where sampling leaves next to
nothing of a release (a probability of 1e-9, a noise multiplier of 10,000): a moment of 1 + 1e-18 becomes 1, and the
bound 0. Orders where that could happen are left out, and whole orders are summed here without the 1.

Source: Mironov, Talwar, Zhang 2019 (arXiv:1908.10530), Section 3.3. With q the sampling probability and z the noise
multiplier, A(a) = sum over k of C(a, k) (1 - q)^(a-k) q^k exp(k (k - 1) / (2 z^2)). The weights sum to 1, and for k = 0
and 1 the exponential is 1, so A(a) - 1 is the same sum over k >= 2 with exp - 1 in place of exp: positive terms alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dp_accounting
import numpy as np
from dp_accounting import rdp
from jaxtyping import Float, Int
from scipy.special import gammaln, logsumexp

from hushprompt.privacy.losses import is_narrow
from hushprompt.privacy.releases import GaussianReleases

RDP_ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64))
"""Renyi orders of every cross-check."""
LARGE_RDP_ORDERS = [2 ** (k / 4) for k in range(24, 73)]
"""More orders, needed for a small epsilon; only without sampling, where they cost nothing."""
SAMPLED_RDP_ORDERS = [64, 128, 256]
"""More orders with sampling, by dp_accounting."""
WHOLE_ORDERS = np.array([*range(2, 64), *(round(2 ** (k / 2)) for k in range(12, 33))])
"""Orders of the sums that are made here."""
LOST = 1e-9
"""A logarithm of a moment below this may be rounding alone."""
ROUND_UP = 1 + 1e-8
"""What rounding of the sums that are made here could take away."""


class RenyiBound:
    """Epsilon and delta from Renyi divergences, by the conversion of dp_accounting."""

    smallest_delta = 1e-300
    """Every delta may be asked for; this one only keeps logarithms finite."""

    def __init__(self, parts: Sequence[GaussianReleases], event: dp_accounting.DpEvent) -> None:
        """Compose the parts, whose event is given; under add/remove."""
        is_sampled = any(part.sampling_prob < 1 for part in parts)
        orders = np.array(RDP_ORDERS + (SAMPLED_RDP_ORDERS if is_sampled else LARGE_RDP_ORDERS))
        if is_narrow(parts):
            orders = orders[:0]
        with quiet():
            divergences = rdp.RdpAccountant(orders).compose(event).rdp
        if is_sampled:
            num_steps = sum(part.num_steps for part in parts)
            is_lost = divergences * (orders - 1) < LOST * num_steps
            own = WHOLE_ORDERS if not len(orders) or is_lost.any() else WHOLE_ORDERS[:0]
            orders = np.concatenate([orders[~is_lost], own])
            divergences = np.concatenate([divergences[~is_lost], sum(_divergences(part, own) for part in parts)])
        self._orders, self._divergences = orders, divergences

    def get_epsilon(self, delta: float) -> float:
        """Return the epsilon for a delta."""
        with quiet():
            return float(rdp.rdp_privacy_accountant.compute_epsilon(self._orders, self._divergences, delta)[0])

    def get_delta(self, epsilon: float) -> float:
        """Return the delta for an epsilon; dp_accounting's formulas, which fail there for a divergence below 1e-16."""
        orders, divergences = self._orders, self._divergences
        by_order = (orders - 1) * (divergences - epsilon + np.log1p(-1 / orders)) - np.log(orders)
        by_kl = 0.5 * np.log(-np.expm1(-divergences))
        return float(np.exp(min(by_order.min(), by_kl.min(), 0.0)))


def _divergences(part: GaussianReleases, orders: Int[np.ndarray, " a"]) -> Float[np.ndarray, " a"]:
    """Return [a] the Renyi divergences of all releases of a part, at whole orders of 2 and more."""
    if part.sampling_prob == 1:
        return np.asarray(part.num_steps * orders / (2 * part.noise_multiplier**2))
    excesses = np.array([_log_excess(part.noise_multiplier, part.sampling_prob, int(order)) for order in orders])
    return np.asarray(part.num_steps * np.logaddexp(0.0, excesses) / (orders - 1) * ROUND_UP)


def _log_excess(z: float, q: float, order: int) -> float:
    """Return ln(A(order) - 1) of one release; see the module docstring."""
    k = np.arange(2.0, order + 1)
    exponent = k * (k - 1) / (2 * z**2)
    weights = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1) + k * math.log(q)
    terms = weights + (order - k) * math.log1p(-q) + exponent + np.log(-np.expm1(-exponent))
    return float(logsumexp(terms))


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back dp_accounting's warnings about Renyi orders that do not converge; they do not affect the bound."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
