"""Is Poisson adequate? Dispersion of counts around their rates, and the negative binomial for where it is not.

Counts and rates per bin are ``(…, time, unit)``; NaN counts are not recorded and never count. The negative binomial is
NB2, variance ``μ + α μ²`` with dispersion α ≥ 0, and Poisson at α = 0 (others write 1/α, or variance φ μ: NB1).
Source: Cameron & Trivedi, Regression Analysis of Count Data, 2nd ed. (2013), ch. 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from sciml.domains.spikes.metrics import FLOOR, Array, evaluation_mean, poisson_log_likelihood, rates_and_counts
from sciml.errors import InputError

LARGEST = 1e3


@dataclass(frozen=True)
class DispersionTest:
    """Pearson's χ², its degrees of freedom and two-sided p value."""

    chi2: float
    dof: int
    p_value: float

    @property
    def ratio(self) -> float:
        """χ²/dof: 1 for Poisson, above where counts vary more. NaN without degrees of freedom."""
        return self.chi2 / self.dof if self.dof > 0 else float("nan")

    @property
    def adequate(self) -> bool:
        """Poisson isn't rejected at 5 %. False, too, where there is nothing to judge by. Long recordings reject any
        model in the end: read the ratio beside it."""
        return self.p_value >= 0.05


def fano_factor(counts: ArrayLike) -> Array:
    """``(unit,)`` variance (n − 1) over mean of the known counts, unit 1; 1 for Poisson at a constant rate.

    NaN with fewer than two known bins or without spikes; 0 if constant. Variation of the rate counts as variance, too.
    Source: Fano, Phys. Rev. 72 (1947).
    """
    n = rates_and_counts(counts, counts)[1]
    known = np.isfinite(n)
    size, mean = known.sum(1), evaluation_mean(counts)
    squares = np.where(known, (n - mean[:, None]) ** 2, 0.0).sum(1)
    defined = (size > 1) & (mean > 0)
    return np.where(defined, squares / np.maximum(size - 1, 1) / np.where(defined, mean, 1.0), np.nan)


def dispersion_test(rate: ArrayLike, counts: ArrayLike, fitted: int = 0) -> DispersionTest:
    """Pearson's ``χ² = Σ (n − μ)²/μ`` over known bins of all units pooled, dof = bins − parameters fitted to them.

    p value from a scaled χ² of the mean and exact variance ``Σ (2 + 1/μ)`` under Poisson (Satterthwaite, Biometrics
    Bulletin 2, 1946): the textbook's χ² of dof where μ is large, right also for bins of few spikes, where that is not.
    It still asks for some tens of spikes. Empty bins at rates up to 1e-9 don't count; spikes there reject outright.
    NaN rates at known counts, and no degrees of freedom, give NaN. Source: McCullagh & Nelder (1989), §6.2.
    """
    mu, n = rates_and_counts(rate, counts)
    return _test(mu.ravel(), n.ravel(), fitted)


def unit_dispersion_tests(rate: ArrayLike, counts: ArrayLike, fitted: int = 0) -> tuple[DispersionTest, ...]:
    """`dispersion_test` of each unit; `fitted` parameters each."""
    return tuple(_test(mu, n, fitted) for mu, n in zip(*rates_and_counts(rate, counts)))


def nb_log_likelihood(rate: ArrayLike, dispersion: ArrayLike, counts: ArrayLike) -> Array:
    """``(unit,)`` nats of the negative binomial over known bins; dispersion a number or ``(unit,)``.

    ``Σ [Σ_{j<n} ln(1 + α j)] + n ln μ − (n + 1/α) ln(1 + α μ) − ln n!``, which keeps its digits as α → 0, where it is
    Poisson's. Rates are floored at 1e-9. InputError unless counts are integers ≥ 0 and dispersions finite and ≥ 0.
    """
    mu, n = rates_and_counts(rate, counts)
    alpha = np.asarray(dispersion, np.float64)
    if alpha.shape not in ((), (len(n),)) or not (np.isfinite(alpha) & (alpha >= 0)).all():
        raise InputError("dispersion", found=alpha, expected=f"1 or {len(n)} finite values ≥ 0",
                         fix="estimate it with nb_dispersion")
    rows = [_nb(*_known(m, c), a) for m, c, a in zip(mu, n, np.broadcast_to(alpha, len(n)))]
    return np.array(rows, np.float64)


def nb_dispersion(rate: ArrayLike, counts: ArrayLike) -> Array:
    """``(unit,)`` maximum-likelihood dispersion at given rates, by a bounded search in ln α between 1e-8 and 1e3.

    0 where ``Σ (n − μ)² ≤ Σ n``: the likelihood then falls from α = 0 on (the score of Dean & Lawless, JASA 84, 1989).
    Estimate it on training bins. NaN for a unit without spikes or with NaN rates.
    """
    return np.array([_dispersion(*_known(mu, n)) for mu, n in zip(*rates_and_counts(rate, counts))], np.float64)


def nb_bits_per_spike(rate: ArrayLike, dispersion: ArrayLike, counts: ArrayLike,
                      null_rate: ArrayLike | None = None) -> float:
    """``(LL_NB(rate, α) − LL_Poisson(null)) / (number of spikes · ln 2)``, units pooled; higher is better.

    The null is `bits_per_spike`'s, so that the two compare: at α = 0 they are equal, and what this exceeds it by is due
    to the dispersion. null_rate: ``(unit,)``, None for the mean of these counts. NaN without spikes.
    """
    n = np.asarray(counts, np.float64)
    null = np.broadcast_to(evaluation_mean(n) if null_rate is None else np.asarray(null_rate), n.shape)
    gain = nb_log_likelihood(rate, dispersion, n).sum() - poisson_log_likelihood(null, n).sum()
    spikes = np.where(np.isfinite(n), n, 0.0).sum()
    return float(gain / (spikes * np.log(2))) if spikes > 0 else float("nan")


def _known(mu: Array, n: Array) -> tuple[Array, Array]:
    known = np.isfinite(n)
    if (n[known] % 1 != 0).any():
        raise InputError("counts", found="fractions", expected="integers", fix="score spikes per bin, unsmoothed")
    return np.maximum(mu[known], FLOOR), n[known].astype(np.int64)


def _test(mu: Array, n: Array, fitted: int) -> DispersionTest:
    counted = np.isfinite(n) & ~((mu <= FLOOR) & (n == 0))
    mu, n = mu[counted], n[counted]
    dof = len(n) - fitted
    if dof < 1 or np.isnan(mu).any():
        return DispersionTest(float("nan"), max(dof, 0), float("nan"))
    if (mu <= FLOOR).any():
        return DispersionTest(float("inf"), dof, 0.0)
    from scipy.stats import chi2 as distribution
    value = float(((n - mu) ** 2 / mu).sum())
    scale = float((2 + 1 / mu).mean()) / 2
    tails = distribution.cdf(value / scale, dof / scale), distribution.sf(value / scale, dof / scale)
    return DispersionTest(value, dof, min(1.0, 2 * float(min(tails))))


def _nb(mu: Array, n: Array, alpha: float) -> float:
    rising = np.concatenate([[0.0], np.cumsum(np.log1p(alpha * np.arange(n.max(initial=0))))])
    factor = mu if alpha == 0 else np.log1p(alpha * mu) / alpha
    return float((rising[n] + n * (np.log(mu) - alpha * factor) - factor - gammaln(n + 1.0)).sum())


def _dispersion(mu: Array, n: Array) -> float:
    if n.sum() == 0 or np.isnan(mu).any():
        return float("nan")
    if ((n - mu) ** 2).sum() <= n.sum():
        return 0.0
    from scipy.optimize import minimize_scalar
    found = minimize_scalar(lambda log: -_nb(mu, n, float(np.exp(log))), bounds=(np.log(1e-8), np.log(LARGEST)),
                            method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
