"""How far one distribution over names has moved from another: the population stability index (PSI)."""

from collections.abc import Mapping

import numpy as np

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
