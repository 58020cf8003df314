"""The time to a user's next session as a hazard in bins. NumPy only, so whoever judges forecasts needs no TensorFlow.

Discrete-time logistic hazard (Brown 1975; Kvamme & Borgan 2021, section 3.1), with a constant rate within each bin as
in their section 4; after the last edge the last bin's rate goes on.

Letters: n rows, K bins. hazards: [n, K] float, P(back in the bin | not before), in (0, 1); edges_s: [K + 1] seconds
from the end of the last session, from 0 up; times in seconds.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def log_survival(hazards: NDArray[np.floating[Any]], edges_s: Floats, time_s: Floats) -> Floats:
    """Log of P(not back by `time_s`). time_s: [n] → [n]; log-likelihood of a return not seen by then."""
    start, width = edges_s[:-1], np.diff(edges_s)
    passed = np.clip((np.asarray(time_s, np.float64)[:, None] - start) / width, 0.0, None)  # [n, K] share of each bin
    passed[:, :-1] = np.minimum(passed[:, :-1], 1.0)
    survived: Floats = (passed * np.log1p(-hazards.astype(np.float64))).sum(axis=1)
    return survived


def back(hazards: NDArray[np.floating[Any]], edges_s: Floats, silence_s: Floats, within_s: Floats) -> Floats:
    """P(back within each time after now | not back yet). silence_s: [n] so far; within_s: [R] → [n, R]."""
    silence_s = np.asarray(silence_s, np.float64)
    now = log_survival(hazards, edges_s, silence_s)
    later = [log_survival(hazards, edges_s, silence_s + each) for each in np.asarray(within_s, np.float64)]
    return np.stack([-np.expm1(each - now) for each in later], axis=1)


def log_likelihood(
    hazards: NDArray[np.floating[Any]],
    edges_s: Floats,
    silence_s: Floats,
    time_s: Floats,
    is_observed: NDArray[np.bool_],
) -> Floats:
    """Log-likelihood of each return time, given the silence so far → [n]; densities are per second.

    time_s: [n] from the end of the last session to the return, or to where nothing more is known (not `is_observed`).
    Observed: log f(t) − log S(s), f the density; else log S(t) − log S(s). silence_s ≤ time_s.
    """
    time_s = np.asarray(time_s, np.float64)
    at = np.clip(np.searchsorted(edges_s, time_s, side="left") - 1, 0, len(edges_s) - 2)  # bin (edge, edge]
    own = np.take_along_axis(hazards.astype(np.float64), at[:, None], axis=1)[:, 0]
    log_rate = np.log(-np.log1p(-own) / np.diff(edges_s)[at])
    gone = log_survival(hazards, edges_s, time_s) - log_survival(hazards, edges_s, silence_s)
    likelihood: Floats = gone + np.where(is_observed, log_rate, 0.0)
    return likelihood
