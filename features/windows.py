"""The kernel behind sequences: all events of some users in, their windows by split out. NumPy and Arrow only.

Letters: n events, u users, r rows, L sequence length.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features import columns as c
from features.ahead import ages, events_ahead
from features.sessions import ordered
from features.window_rows import (
    Cutoffs,
    Histories,
    Ints,
    Rows,
    global_time_rows,
    in_batches,
    leave_one_out_rows,
    score_rows,
    shuffled,
)
from features.workers import in_worker

_STAMPS = pa.timestamp("us", tz="UTC")


@in_worker
def build_partition(
    batches: Iterator[pa.RecordBatch],
    length: int,
    history_events: int,
    gap_edges_s: tuple[int, ...],
    protocol: str,
    cutoffs: Cutoffs,
    n_ahead: int,
    horizon_s: int,
) -> Iterator[pa.RecordBatch]:
    """Encoded events of some users → rows of `training_sequences_v1` for every split, and of SCORE.

    n_ahead, horizon_s: how many events after a window are listed, and how long after its last event they may come.
    """
    held = [batch for batch in batches if batch.num_rows]
    if not held:
        return
    events = pa.Table.from_batches(held)
    names, history = _histories(events, history_events, gap_edges_s, n_ahead, horizon_s)
    del held, events
    plans = global_time_rows(history, length, cutoffs)
    if protocol == c.LEAVE_ONE_OUT:
        plans = leave_one_out_rows(history, length)
    for rows in [*plans, score_rows(history, cutoffs.end_us)]:
        for part in in_batches(shuffled(rows, history)):
            yield _batch(part, names, history, length, gap_edges_s)


def scoring_rows(
    events: pa.Table, length: int, history_events: int, gap_edges_s: tuple[int, ...], end_us: int
) -> Iterator[pa.RecordBatch]:
    """Encoded events of some users before end_us → their SCORE rows, as `build_partition` makes them."""
    names, history = _histories(events, history_events, gap_edges_s, 0, 0)
    for part in in_batches(shuffled(score_rows(history, end_us), history)):
        yield _batch(part, names, history, length, gap_edges_s)


def gap_codes(gap_us: Ints, edges_s: tuple[int, ...]) -> NDArray[np.int32]:
    """FIRST_GAP + number of edges below each gap. gap_us: [n] microseconds → [n] int32."""
    edges_us = np.asarray(edges_s, np.int64) * c.MICROS
    return (c.FIRST_GAP + np.searchsorted(edges_us, gap_us, side="left")).astype(np.int32)


def hour_codes(time_us: Ints) -> NDArray[np.int32]:
    """Hour of the week, UTC, Monday 00:00 = FIRST_HOUR. 1970-01-01 was a Thursday. time_us: [n] → [n] int32."""
    hours = time_us // (3_600 * c.MICROS)
    return (c.FIRST_HOUR + (hours + 3 * 24) % (7 * 24)).astype(np.int32)


def _histories(
    events: pa.Table, history_events: int, gap_edges_s: tuple[int, ...], n_ahead: int, horizon_s: int
) -> tuple[pa.Array, Histories]:
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
    return names, Histories(time_us, event_id, codes, gap, start, end, history_events, n_ahead, horizon_s)


def _batch(
    rows: Rows, names: pa.Array, history: Histories, length: int, gap_edges_s: tuple[int, ...]
) -> pa.RecordBatch:
    n_rows = len(rows.user)
    first = np.maximum(rows.start, rows.stop - length)
    filled = (rows.stop - first).astype(np.int32)  # [r]
    index = first[:, None] + np.arange(length)  # [r, L]
    valid = np.arange(length) < filled[:, None]  # [r, L]
    index[~valid] = 0
    last_us = history.time_us[rows.stop - 1]
    ahead = events_ahead(
        history.time_us, rows.ahead_start, rows.ahead_stop, last_us, rows.known_us, history.n_ahead, history.horizon_s
    )
    matrices = {name: np.where(valid, codes[index], c.PAD) for name, codes in history.codes.items()}
    matrices[c.AGE] = np.where(valid, ages(history.time_us[index], last_us), 0)
    for name, of in ((c.AHEAD_CATEGORY, c.CATEGORY), (c.AHEAD_ACTION, c.ACTION_CODE)):
        matrices[name] = np.where(ahead.is_there, history.codes[of][ahead.place], c.PAD)
    matrices[c.AHEAD] = ahead.seconds
    arrays: dict[str, pa.Array] = {name: _lists(matrix) for name, matrix in matrices.items()}
    has_next = rows.following >= 0
    following = np.where(has_next, rows.following, 0)
    next_us = np.where(has_next, history.time_us[following], last_us if rows.cutoff_us is None else rows.cutoff_us)
    if rows.cutoff_us is not None:
        next_gap = gap_codes(rows.cutoff_us - last_us, gap_edges_s)
    elif rows.split == c.TRAIN:
        next_gap = np.where(has_next, history.gap[following], np.int32(c.UNKNOWN_GAP))
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
        c.AHEAD_LENGTH: pa.array(ahead.length),
        c.KNOWN: pa.array(ahead.known_s),
        **{
            name: pa.ListArray.from_arrays(pa.array(label_offsets), pa.array(history.codes[of][labels], pa.int32()))
            for name, of in (
                (c.LABEL_ITEMS, c.ITEM),
                (c.LABEL_CATEGORIES, c.CATEGORY),
                (c.LABEL_ACTIONS, c.ACTION_CODE),
            )
        },
        c.LABEL_TIMES: pa.ListArray.from_arrays(pa.array(label_offsets), pa.array(history.time_us[labels], _STAMPS)),
        c.SPLIT: pa.array([rows.split] * n_rows),
    }
    return pa.RecordBatch.from_arrays([arrays[name] for name in _ORDER], names=list(_ORDER))


def _lists(matrix: NDArray[np.int32]) -> pa.ListArray:
    """[r, k] → r lists of k entries."""
    offsets = np.arange(matrix.shape[0] + 1, dtype=np.int32) * matrix.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(matrix.ravel(), pa.int32()))


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
    c.LABEL_ACTIONS,
    c.LABEL_TIMES,
    c.AGE,
    *c.AHEAD_CHANNELS,
    c.AHEAD_LENGTH,
    c.KNOWN,
    c.SPLIT,
)
