"""Whether two predictors differ: paired over users, metric by metric.

B rows (users), M metrics, R random sign flips.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from model.metrics import USER_METRICS, Doubles, Floats, bootstrap_means, interval

# Signs drawn at a time: 4 million are 16 MiB as float32.
_SIGN_CELLS = 4_000_000
# Means of flipped differences within this of the observed one count as equal: sums of the same numbers in another order
# differ in their last bits, and the test must not depend on them.
_TOLERANCE = 1e-7


class PairedTest(NamedTuple):
    """One metric of two predictors: difference first - second, its 95 % interval, and how likely chance alone is."""

    target: str
    metric: str
    k: int
    first: str
    second: str
    first_value: float
    second_value: float
    difference: float
    low: float
    high: float
    p_value: float
    n: int
    n_differ: int  # users whose value of the metric is not the same with both


def paired_tests(
    target: str, names: tuple[str, str], per_user: tuple[Floats, Floats], ks: Sequence[int], spec: tuple[int, int, int]
) -> Iterator[PairedTest]:
    """Compare two predictors on the same users, for every metric and K.

    per_user: [B, len(ks), len(USER_METRICS)] each; spec: (bootstrap replicates, permutations, seed). Interval: paired
    bootstrap over users (Efron & Tibshirani 1993). p: two-sided sign-flip test of `sign_flip_p`.
    """
    n_bootstrap, n_permutations, seed = spec
    first, second = (values.reshape(len(values), -1) for values in per_user)  # [B, K·M]
    differences = first.astype(np.float64) - second
    means = differences.mean(axis=0)
    low, high = interval(bootstrap_means(differences.astype(np.float32), n_bootstrap, seed))
    p_values = sign_flip_p(differences, n_permutations, seed)
    n_differ = np.count_nonzero(differences, axis=0)
    values = first.mean(axis=0, dtype=np.float64), second.mean(axis=0, dtype=np.float64)
    figures = np.round(np.stack([*values, means, low, high, p_values], axis=1), 6)  # [K·M, 6]
    for m, metric in enumerate(USER_METRICS):
        for i, k in enumerate(ks):
            at = i * len(USER_METRICS) + m
            a, b, difference, least, most, p = figures[at].tolist()
            counts = len(differences), int(n_differ[at])
            yield PairedTest(target, metric, k, *names, a, b, difference, least, most, p, *counts)


def sign_flip_p(differences: Doubles, n_permutations: int, seed: int) -> Doubles:
    """Two-sided p-values of the hypothesis that a user's difference is as likely to have either sign, [M].

    Fisher's randomisation test, recommended for comparisons of rankers by Smucker, Allan & Carterette (CIKM 2007): each
    user's difference keeps its size and gets a random sign; p = (1 + flips whose mean is at least as far from 0) /
    (1 + R), which is never 0 (Phipson & Smyth 2010). differences: [B, M]; users that do not differ change nothing. All
    metrics share the signs. Equal predictors: 1.
    """
    kept = differences[np.any(differences != 0, axis=1)]  # [b, M]
    observed = np.abs(kept.sum(axis=0))
    if not len(kept):
        return np.ones(differences.shape[1])
    rng = np.random.default_rng(seed)
    slack = _TOLERANCE * np.maximum(np.abs(kept).sum(axis=0), 1e-300)
    reached = np.zeros(differences.shape[1])
    step = max(1, _SIGN_CELLS // len(kept))
    for start in range(0, n_permutations, step):
        size = min(step, n_permutations - start)
        signs = rng.integers(0, 2, size=(size, len(kept)), dtype=np.int8).astype(np.float64) * 2 - 1
        reached += np.count_nonzero(np.abs(signs @ kept) >= observed - slack, axis=0)
    return np.asarray((1 + reached) / (1 + n_permutations))
