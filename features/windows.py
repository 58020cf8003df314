"""The kernel behind sequences: all events of some users in, their windows by split out. NumPy and Arrow only.

Letters: n events, u users, r rows, L sequence length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features import columns as c
from features.sessions import ordered

SCORE = "score"  # value of SPLIT for a row of `sequences_v1`
_ROWS_PER_BATCH = 8_192
_STAMPS = pa.timestamp("us", tz="UTC")

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
    cutoff_us: int | None  # the instant of prediction, where the split has one
    split: str


def build_partition(
    batches: Iterator[pa.RecordBatch],
    length: int,
    history_events: int,
    gap_edges_s: tuple[int, ...],
    protocol: str,
    cutoffs: Cutoffs,
) -> Iterator[pa.RecordBatch]:
    """Encoded events of some users → rows of `training_sequences_v1` for every split, and of SCORE."""
    held = [batch for batch in batches if batch.num_rows]
    if not held:
        return
    events = pa.Table.from_batches(held)
    names, history = _histories(events, history_events, gap_edges_s)
    del held, events
    plans = _global_time_rows(history, length, cutoffs)
    if protocol == c.LEAVE_ONE_OUT:
        plans = _leave_one_out_rows(history, length)
    for rows in [*plans, _score_rows(history, cutoffs.end_us)]:
        for part in _in_batches(_shuffled(rows, history)):
            yield _batch(part, names, history, length, gap_edges_s)


def scoring_rows(
    events: pa.Table, length: int, history_events: int, gap_edges_s: tuple[int, ...], end_us: int
) -> Iterator[pa.RecordBatch]:
    """Encoded events of some users before end_us → their SCORE rows, as `build_partition` makes them."""
    names, history = _histories(events, history_events, gap_edges_s)
    for part in _in_batches(_shuffled(_score_rows(history, end_us), history)):
        yield _batch(part, names, history, length, gap_edges_s)


def gap_codes(gap_us: Ints, edges_s: tuple[int, ...]) -> NDArray[np.int32]:
    """FIRST_GAP + number of edges below each gap. gap_us: [n] microseconds → [n] int32."""
    edges_us = np.asarray(edges_s, np.int64) * c.MICROS
    return (c.FIRST_GAP + np.searchsorted(edges_us, gap_us, side="left")).astype(np.int32)


def hour_codes(time_us: Ints) -> NDArray[np.int32]:
    """Hour of the week, UTC, Monday 00:00 = FIRST_HOUR. 1970-01-01 was a Thursday. time_us: [n] → [n] int32."""
    hours = time_us // (3_600 * c.MICROS)
    return (c.FIRST_HOUR + (hours + 3 * 24) % (7 * 24)).astype(np.int32)


def _histories(events: pa.Table, history_events: int, gap_edges_s: tuple[int, ...]) -> tuple[pa.Array, Histories]:
    users = events[c.USER_ID].combine_chunks().dictionary_encode()
    user = users.indices.to_numpy()
    time_us, event_id = events["time_us"].to_numpy(), events[c.EVENT_ID].to_numpy()
    order = ordered(user, time_us, event_id)
    user, time_us, event_id = user[order], time_us[order], event_id[order]
    codes = {name: events[name].to_numpy()[order] for name in (c.ITEM, c.CATEGORY, c.ACTION_CODE)}
    codes[c.HOUR] = hour_codes(time_us)
    start = np.flatnonzero(np.append(True, user[1:] != user[:-1]))
    end = np.append(start[1:], len(user))
    gap = gap_codes(np.diff(time_us, prepend=time_us[0]), gap_edges_s)
    gap[start] = c.UNKNOWN_GAP
    codes[c.GAP] = gap
    names = users.dictionary.take(pa.array(user[start]))
    return names, Histories(time_us, event_id, codes, gap, start, end, history_events)


def _events_before(history: Histories, time_us: int) -> Ints:
    """Index of each user's first event at or after a time → [u]."""
    earlier = np.append(0, np.cumsum(history.time_us < time_us))
    first: Ints = history.start + earlier[history.end] - earlier[history.start]
    return first


def _train_rows(history: Histories, stop: Ints, length: int) -> Rows:
    """Windows back to back from the end of [start, stop), so that each event but the first is a target once."""
    start = history.start_at(np.arange(len(stop)), stop)
    n_targets = np.maximum(stop - start - 1, 0)
    n_windows = -(-n_targets // length)
    user = np.repeat(np.arange(len(stop)), n_windows)
    window = np.arange(len(user)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    following = stop[user] - 1 - window * length
    none = np.zeros_like(user)
    return Rows(user, window, start[user], following, following, none, none, None, c.TRAIN)


def _held_out_rows(
    history: Histories, user: Ints, stop: Ints, labels: tuple[Ints, Ints], at: int | None, split: str
) -> Rows:
    start = history.start_at(user, stop)
    return Rows(user, np.zeros_like(user), start, stop, labels[0], *labels, at, split)


def _global_time_rows(history: Histories, length: int, cutoffs: Cutoffs) -> list[Rows]:
    plans = [_train_rows(history, _events_before(history, cutoffs.valid_us), length)]
    for split, at, until in (
        (c.VALID, cutoffs.valid_us, cutoffs.test_us),
        (c.TEST, cutoffs.test_us, cutoffs.end_us),
    ):
        stop = _events_before(history, at)
        label_start = _events_before(history, at + cutoffs.embargo_us)
        label_stop = _events_before(history, until)
        user = np.flatnonzero((stop > history.start) & (label_stop > label_start))
        plans.append(_held_out_rows(history, user, stop[user], (label_start[user], label_stop[user]), at, split))
    return plans


def _leave_one_out_rows(history: Histories, length: int) -> list[Rows]:
    enough = history.end - history.start >= 3
    plans = [_train_rows(history, np.where(enough, history.end - 2, history.end), length)]
    user = np.flatnonzero(enough)
    for split, from_end in ((c.VALID, 2), (c.TEST, 1)):
        label = history.end[user] - from_end
        plans.append(_held_out_rows(history, user, label, (label, label + 1), None, split))
    return plans


def _score_rows(history: Histories, end_us: int) -> Rows:
    user = np.arange(len(history.start))
    nothing = np.full_like(user, -1)
    return _held_out_rows(history, user, history.end, (nothing, nothing), end_us, SCORE)


def _shuffled(rows: Rows, history: Histories) -> Rows:
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
        rows.cutoff_us,
        rows.split,
    )


def _in_batches(rows: Rows) -> Iterator[Rows]:
    for at in range(0, len(rows.user), _ROWS_PER_BATCH):
        yield _pick(rows, slice(at, at + _ROWS_PER_BATCH))


def _batch(
    rows: Rows, names: pa.Array, history: Histories, length: int, gap_edges_s: tuple[int, ...]
) -> pa.RecordBatch:
    n_rows = len(rows.user)
    first = np.maximum(rows.start, rows.stop - length)
    filled = (rows.stop - first).astype(np.int32)  # [r]
    index = first[:, None] + np.arange(length)  # [r, L]
    valid = np.arange(length) < filled[:, None]  # [r, L]
    index[~valid] = 0
    offsets = pa.array(np.arange(n_rows + 1, dtype=np.int32) * length)
    arrays: dict[str, pa.Array] = {
        name: pa.ListArray.from_arrays(offsets, pa.array(np.where(valid, codes[index], c.PAD).ravel(), pa.int32()))
        for name, codes in history.codes.items()
    }
    last_us = history.time_us[rows.stop - 1]
    has_next = rows.following >= 0
    following = np.where(has_next, rows.following, 0)
    next_us = history.time_us[following] if rows.split != SCORE else np.full(n_rows, rows.cutoff_us)
    if rows.cutoff_us is not None:
        next_gap = gap_codes(rows.cutoff_us - last_us, gap_edges_s)
    elif rows.split == c.TRAIN:
        next_gap = history.gap[following]
    else:
        next_gap = np.full(n_rows, c.UNKNOWN_GAP, np.int32)
    held_out = rows.split != c.TRAIN
    seen_offsets, seen = _distinct_items(history, rows) if held_out else (np.zeros(n_rows + 1, np.int32), [])
    label_offsets, labels = _ranges(rows.label_start, rows.label_stop)
    arrays |= {
        c.USER_ID: names.take(pa.array(rows.user)),
        c.WINDOW: pa.array(rows.window, pa.int32()),
        c.LENGTH: pa.array(filled),
        c.NEXT_GAP: pa.array(next_gap, pa.int32()),
        c.LAST_TIME: pa.array(last_us, _STAMPS),
        c.SEEN_ITEMS: pa.ListArray.from_arrays(pa.array(seen_offsets), pa.array(seen, pa.int32())),
        c.NEXT_ITEM: pa.array(np.where(has_next, history.codes[c.ITEM][following], c.PAD), pa.int32()),
        c.NEXT_CATEGORY: pa.array(np.where(has_next, history.codes[c.CATEGORY][following], c.PAD), pa.int32()),
        c.NEXT_TIME: pa.array(next_us, _STAMPS),
        c.LABEL_ITEMS: pa.ListArray.from_arrays(
            pa.array(label_offsets), pa.array(history.codes[c.ITEM][labels], pa.int32())
        ),
        c.LABEL_CATEGORIES: pa.ListArray.from_arrays(
            pa.array(label_offsets), pa.array(history.codes[c.CATEGORY][labels], pa.int32())
        ),
        c.SPLIT: pa.array([rows.split] * n_rows),
    }
    return pa.RecordBatch.from_arrays([arrays[name] for name in _ORDER], names=list(_ORDER))


def _ranges(start: Ints, stop: Ints) -> tuple[NDArray[np.int32], Ints]:
    """Indices of many ranges, joined. start, stop: [r] → (offsets [r + 1], indices [sum])."""
    sizes = stop - start
    offsets = np.append(0, np.cumsum(sizes))
    indices = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], sizes)
    return offsets.astype(np.int32), indices


def _distinct_items(history: Histories, rows: Rows) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Each row's known items before `stop`, each once, rising → (offsets [r + 1], items [sum])."""
    _, indices = _ranges(rows.start, rows.stop)
    row = np.repeat(np.arange(len(rows.start)), rows.stop - rows.start)
    item = history.codes[c.ITEM][indices]
    known = item >= c.FIRST_ID
    pairs = np.unique((row[known] << 32) | item[known])
    counts = np.bincount(pairs >> 32, minlength=len(rows.start))
    return np.append(0, np.cumsum(counts)).astype(np.int32), (pairs & 0xFFFFFFFF).astype(np.int32)


_ORDER = (
    c.USER_ID,
    c.WINDOW,
    c.LENGTH,
    *c.CHANNELS,
    c.NEXT_GAP,
    c.LAST_TIME,
    c.SEEN_ITEMS,
    c.NEXT_ITEM,
    c.NEXT_CATEGORY,
    c.NEXT_TIME,
    c.LABEL_ITEMS,
    c.LABEL_CATEGORIES,
    c.SPLIT,
)
