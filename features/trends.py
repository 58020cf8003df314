"""Past share and trend: how the probability of an interest moved against the user's own past.

Shapes: B rows, W categories looked at.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Trends, by code
TRENDS = ("new", "rising", "steady", "fading")
NEW, RISING, STEADY, FADING = range(len(TRENDS))

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def past_shares(counts: Counts, n_known: Counts, global_shares: Floats, smoothing_events: float) -> Floats:
    """Share of the user's past events, as if `smoothing_events` further events had followed everyone's taste.

    counts: [B, W] events of the user in a category; n_known: [B, 1] events in any known category; global_shares:
    [B, W] of the same categories. Additive smoothing towards the global shares: the shares of all categories sum to 1.
    """
    shares: Floats = (counts + smoothing_events * global_shares) / (n_known + smoothing_events)
    return shares


def trend_codes(
    probabilities: NDArray[np.floating[Any]],
    shares: Floats,
    counts: Counts,
    n_known: Counts,
    new_probability_floor: float,
    rising_ratio: float,
    fading_ratio: float,
) -> NDArray[np.int8]:
    """Index into TRENDS of the move from past share to probability; [B, W], the same shapes as for `past_shares`.

    A category that the sequence holds is rising from rising_ratio × past share on, fading up to fading_ratio × past
    share, else steady. One that it does not hold is new from new_probability_floor on, else steady. Without any known
    category in the past nothing is new.
    """
    trends = np.full(probabilities.shape, STEADY, np.int8)
    held = counts > 0
    trends[held & (probabilities >= rising_ratio * shares)] = RISING
    trends[held & (probabilities <= fading_ratio * shares)] = FADING
    trends[~held & (n_known > 0) & (probabilities >= new_probability_floor)] = NEW
    return trends
