"""Which windows of a history become rows of which split, and what each of them may know. NumPy only.

Letters: n events, u users, r rows, L sequence length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import columns as c

SCORE = "score"  # value of SPLIT for a row of `sequences_v1`
_ROWS_PER_BATCH = 8_192

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Cutoffs:
    """Microseconds since 1970. Inputs lie before a cutoff, its labels at or after it plus the embargo."""

    valid_us: int
    test_us: int
    end_us: int
    embargo_us: int


class Histories(NamedTuple):
    """Events of all users of a partition, ordered by (user, time, id); user k owns [start[k], end[k])."""

    time_us: Ints  # [n]
    event_id: Ints  # [n]
    codes: dict[str, NDArray[np.int32]]  # channel → [n]
    gap: NDArray[np.int32]  # [n] code of the time since the user's previous event
    start: Ints  # [u]
    end: Ints  # [u]
    kept: int  # latest events before a stop that are used
    n_ahead: int  # A, events after a window that are listed
    horizon_s: int  # and how long after its last event they may come

    def start_at(self, user: Ints, stop: Ints) -> Ints:
        """First event used of a history that ends before `stop`: what comes later never shortens it. [r] → [r]."""
        first: Ints = np.maximum(self.start[user], stop - self.kept)
        return first


class Rows(NamedTuple):
    """Windows to cut: of user `user`, the L events before index `stop`; what comes next; the label events."""

    user: Ints  # [r]
    window: Ints  # [r]
    start: Ints  # [r] no event before it is used
    stop: Ints  # [r] exclusive
    following: Ints  # [r] index of the next event, or -1
    label_start: Ints  # [r]
    label_stop: Ints  # [r] exclusive
    ahead_start: Ints  # [r] the events after the window that this split may see
    ahead_stop: Ints  # [r] exclusive
    known_us: Ints  # [r] the last microsecond of which it may know
    cutoff_us: int | None  # the instant of prediction, where the split has one
    split: str


def _events_before(history: Histories, time_us: int) -> Ints:
    """Index of each user's first event at or after a time → [u]."""
    earlier = np.append(0, np.cumsum(history.time_us < time_us))
    first: Ints = history.start + earlier[history.end] - earlier[history.start]
    return first


def _train_rows(history: Histories, stop: Ints, length: int, known_us: int | None = None) -> Rows:
    """Windows back to back from the end of [start, stop), so that each event but the first is a target once.

    known_us: the last microsecond of which training knows. Then a user's newest window ends with the last event before
    `stop`, and nothing follows it: the silence up to there is all that is known. Without it nothing is known after
    that event, which then is a target only.
    """
    start = history.start_at(np.arange(len(stop)), stop)
    n_held = np.maximum(stop - start - (known_us is None), 0)  # events that lie in windows
    n_windows = -(-n_held // length)
    user = np.repeat(np.arange(len(stop)), n_windows)
    window = np.arange(len(user)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    ends = (start + n_held)[user] - window * length
    following = np.where(ends < stop[user], ends, -1)
    none = np.zeros_like(user)
    known = history.time_us[stop[user] - 1] if known_us is None else np.full_like(user, known_us)
    return Rows(user, window, start[user], ends, following, none, none, ends, stop[user], known, None, c.TRAIN)


def _held_out_rows(
    history: Histories,
    user: Ints,
    stop: Ints,
    labels: tuple[Ints, Ints],
    known_us: Ints,
    at: int | None,
    split: str,
) -> Rows:
    start = history.start_at(user, stop)
    return Rows(user, np.zeros_like(user), start, stop, labels[0], *labels, *labels, known_us, at, split)


def global_time_rows(history: Histories, length: int, cutoffs: Cutoffs) -> list[Rows]:
    """All cut at the same instants: windows before the validation cutoff, and held-out rows at each cutoff."""
    plans = [_train_rows(history, _events_before(history, cutoffs.valid_us), length, cutoffs.valid_us - 1)]
    for split, at, until in (
        (c.VALID, cutoffs.valid_us, cutoffs.test_us),
        (c.TEST, cutoffs.test_us, cutoffs.end_us),
    ):
        stop = _events_before(history, at)
        label_start = _events_before(history, at + cutoffs.embargo_us)
        label_stop = _events_before(history, until)
        user = np.flatnonzero((stop > history.start) & (label_stop > label_start))
        labels, known_us = (label_start[user], label_stop[user]), np.full_like(user, until - 1)
        plans.append(_held_out_rows(history, user, stop[user], labels, known_us, at, split))
    return plans


def leave_one_out_rows(history: Histories, length: int) -> list[Rows]:
    """Each user's last event tests and the one before validates; those with fewer than three only train."""
    enough = history.end - history.start >= 3
    plans = [_train_rows(history, np.where(enough, history.end - 2, history.end), length)]
    user = np.flatnonzero(enough)
    for split, from_end in ((c.VALID, 2), (c.TEST, 1)):
        label = history.end[user] - from_end
        plans.append(_held_out_rows(history, user, label, (label, label + 1), history.time_us[label], None, split))
    return plans


def score_rows(history: Histories, end_us: int) -> Rows:
    """One row a user, at the end of everything."""
    user = np.arange(len(history.start))
    nothing, known_us = np.full_like(user, -1), np.full_like(user, end_us - 1)
    return _held_out_rows(history, user, history.end, (nothing, nothing), known_us, end_us, SCORE)


def shuffled(rows: Rows, history: Histories) -> Rows:
    """Rows in an order that mixes users and windows and depends on each row's own content."""
    last = history.event_id[rows.stop - 1].astype(np.uint64)
    mixed = (last ^ (last >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    return _pick(rows, np.argsort(mixed, kind="stable"))


def _pick(rows: Rows, index: Ints | slice) -> Rows:
    return Rows(
        rows.user[index],
        rows.window[index],
        rows.start[index],
        rows.stop[index],
        rows.following[index],
        rows.label_start[index],
        rows.label_stop[index],
        rows.ahead_start[index],
        rows.ahead_stop[index],
        rows.known_us[index],
        rows.cutoff_us,
        rows.split,
    )


def in_batches(rows: Rows) -> Iterator[Rows]:
    """The rows in runs of a few thousand."""
    for at in range(0, len(rows.user), _ROWS_PER_BATCH):
        yield _pick(rows, slice(at, at + _ROWS_PER_BATCH))
