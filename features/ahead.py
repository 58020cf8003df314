"""What follows each window, for labels over horizons: the events ahead of its last one, and until when they are known.

NumPy only. Letters: n events, r rows, L sequence length, A events ahead.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import columns as c

Ints = NDArray[np.int64]
_LONGEST_S = np.iinfo(np.int32).max


class Ahead(NamedTuple):
    """The first A events after each window, oldest first, and how far they are all there is."""

    index: Ints  # [r, A] places of the events, 0 where there are fewer
    is_there: NDArray[np.bool_]  # [r, A]
    seconds: NDArray[np.int32]  # [r, A] from the window's last event, 0 where there are fewer
    length: NDArray[np.int32]  # [r]
    known_s: NDArray[np.int32]  # [r] seconds after the window's last event, within which every event is listed


def ages(time_us: Ints, last_us: Ints) -> NDArray[np.int32]:
    """Whole seconds from events to their window's last one, at most what 32 bits hold. [r, L], [r] → [r, L]."""
    return np.minimum((last_us[:, None] - time_us) // c.MICROS, _LONGEST_S).astype(np.int32)


def events_ahead(
    time_us: Ints, start: Ints, stop: Ints, last_us: Ints, known_us: Ints, n_ahead: int, horizon_s: int
) -> Ahead:
    """Of the events start..stop - 1 after each window, those within the horizon, at most A.

    time_us: [n], rising within a user; start, stop: [r]; last_us: [r] time of the window's last event; known_us: [r]
    last microsecond of which everything is known. Where an event is left out, what is known ends the second before it.
    """
    index = start[:, None] + np.arange(n_ahead + 1)  # [r, A + 1]: one more, to see what is left out
    exists = index < stop[:, None]
    index = np.where(exists, index, 0)
    seconds = np.where(exists, (time_us[index] - last_us[:, None]) // c.MICROS, _LONGEST_S)
    is_there = exists & (seconds <= horizon_s)
    is_there[:, n_ahead] = False
    length = is_there.sum(axis=1)
    first_out = np.where(exists, seconds, _LONGEST_S)[np.arange(len(start)), length]  # times rise: the first left out
    known_s = np.minimum((known_us - last_us) // c.MICROS, first_out - 1).clip(0, _LONGEST_S)
    kept = is_there[:, :n_ahead]
    return Ahead(
        np.where(kept, index[:, :n_ahead], 0),
        kept,
        np.where(kept, seconds[:, :n_ahead], 0).astype(np.int32),
        length.astype(np.int32),
        known_s.astype(np.int32),
    )
