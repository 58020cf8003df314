"""How often a user comes: the silences between sessions so far, counted and added up, for the head `when`.

For sessions that start at a constant rate, the number of silences n and their sum T hold all that a history says of it
(sufficient statistics of the exponential distribution). A recurrent state learns them only roughly, so they are kept
beside it, exactly, and go on from night to night as it does. A silence is known by its gap code: the geometric middle
of its bucket stands for it.

Letters: B rows, L positions.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features import columns as c
from model.draws import Tensor

N_SUMS = 2  # n and T, T in days
N_FEATURES = 2
_PRIOR_DAYS = 1.0  # one silence of a day before the first one


def silence_days(gap_edges_s: Sequence[float], new_session_gap: int) -> NDArray[np.float32]:
    """Days that stand for each gap code, 0 for codes within a session; one number a code."""
    edges = np.asarray(gap_edges_s, np.float64)
    middles = np.concatenate([np.zeros(c.FIRST_GAP + 1), np.sqrt(edges[:-1] * edges[1:]), edges[-1:]])
    middles[:new_session_gap] = 0.0
    days: NDArray[np.float32] = (middles / c.DAY_S).astype(np.float32)
    return days


def increments(gap_codes: Tensor, is_event: Tensor, days: NDArray[np.float32], new_session_gap: int) -> Tensor:
    """What each event adds to n and T. gap_codes: [B, L]; is_event: [B, L] bool → [B, L, 2]."""
    opens = is_event & (gap_codes >= new_session_gap)
    return tf.stack([tf.cast(opens, tf.float32), tf.where(opens, tf.gather(days, gap_codes), 0.0)], axis=-1)


def features(sums: Tensor) -> Tensor:
    """What the head reads of n and T: log of the mean silence in days, one of a day beside them; log(1 + n). […, 2]."""
    n, total = sums[..., 0], sums[..., 1]
    return tf.stack([tf.math.log((total + _PRIOR_DAYS) / (n + 1.0)), tf.math.log1p(n)], axis=-1)
