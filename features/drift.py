"""How far one distribution has moved from another: PSI of a population, Jensen-Shannon distance of a user."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_REST = "\u0000rest"  # everything outside the bins; no token of a log begins like this
_PRIOR = 0.5  # pseudo-counts in every bin (Jeffreys), so that a bin that is empty on one side has a finite logarithm


def stability_index(expected: Mapping[str, float], actual: Mapping[str, float], bins: int) -> float:
    """PSI of `actual` against `expected`, less what chance alone brings, not below 0.

    PSI = sum over bins of (a - e) · ln(a / e), with a and e the shares of a bin (Siddiqi, Credit Risk Scorecards, 2006,
    who calls 0.1 a slight move and 0.25 a large one). Two samples of n and m from one distribution have an expected PSI
    of (B - 1) · (1/n + 1/m) in B bins (Yurdakul & Naranjo, Journal of Risk Model Validation 14(4), 2020); it is
    subtracted, or every small night would drift.

    expected, actual: counts, or sums of probabilities, by name. bins: the names with most of `expected` have a bin
    each, all others share one.

    Raises:
        ValueError: one of the two is empty.
    """
    names = sorted(expected, key=lambda name: (-expected[name], name))[:bins]
    e, a = (_by_bin(values, names) for values in (expected, actual))  # [B]
    if not e.sum() or not a.sum():
        raise ValueError("a distribution without any weight cannot be compared")
    chance = (len(e) - 1) * (1 / e.sum() + 1 / a.sum())
    e_share, a_share = ((values + _PRIOR) / (values + _PRIOR).sum() for values in (e, a))
    index = float(np.sum((a_share - e_share) * np.log(a_share / e_share)))
    return max(0.0, index - float(chance))


def _by_bin(values: Mapping[str, float], names: list[str]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    counts = dict.fromkeys([*names, _REST], 0.0)
    for name, value in values.items():
        counts[name if name in counts else _REST] += value
    weights = np.array([counts[name] for name in [*names, _REST]], np.float64)
    return weights


def jensen_shannon_distance(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each row's two distributions, 0 where they are the same, 1 where they have nothing in common.

    The root of the Jensen-Shannon divergence in bits, a metric (Endres & Schindelin, IEEE Transactions on Information
    Theory 49(7), 2003): sqrt(KL(p‖m) / 2 + KL(q‖m) / 2), m = (p + q) / 2. p, q: [n, V], rows sum to 1 → [n].
    """
    mean = (p + q) / 2
    safe = np.where(mean > 0, mean, 1.0)
    divergence = np.zeros(len(p))
    for each in (p, q):
        ratio = each / safe
        divergence += (each * np.log2(np.where(ratio > 0, ratio, 1.0))).sum(axis=1) / 2
    distance: NDArray[np.float64] = np.sqrt(np.clip(divergence, 0.0, 1.0))
    return distance
