"""What the network reads off the gap codes besides their own: where sessions start, and how far into one an event is.

Letters: B rows, L positions.
"""

from typing import Any

import tensorflow as tf

from features import columns as c
from model.spec import Sizes

Tensor = Any  # TensorFlow 2.15 carries no types

SESSION_START, SESSION_POSITION = "session_start", "session_position"
N_START_CODES = 2


def starts(gaps: Tensor, sizes: Sizes) -> Tensor:
    """1 where an event is the first of its session, or a user's first at all; else 0. gaps: [B, L] → [B, L] int32."""
    return tf.cast((gaps >= sizes.new_session_gap) | (gaps == c.UNKNOWN_GAP), tf.int32)


def positions(gaps: Tensor, sizes: Sizes, n_codes: int) -> Tensor:
    """Events of the same session before each event, as far as the row shows them, at most n_codes - 1.

    gaps: [B, L] codes → [B, L] int32. Nothing behind an event has a say in its number.
    """
    session = tf.cumsum(starts(gaps, sizes), axis=1)  # [B, L], rising: a session's first place is where it would go in
    first = tf.searchsorted(session, session, side="left")
    return tf.minimum(tf.range(tf.shape(gaps)[1])[None, :] - first, n_codes - 1)
