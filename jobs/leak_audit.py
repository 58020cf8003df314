"""The leak audit of an evaluation: all rows by their times, and those that are judged event by event."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features import columns as c
from features.contracts import TRAINING_SEQUENCES
from jobs.evaluation_inputs import (
    channels_of,
    files_of,
    ints_of,
    micros,
    ragged_of,
    read_files,
    rows_of_users,
    times_of,
)
from jobs.store import Manifest, Store
from model.errors import ModelError
from model.evaluation import EvaluationRows
from model.leaks import (
    Cuts,
    Known,
    Times,
    check_ages,
    check_label_times,
    check_labels,
    check_past,
    check_times,
    check_windows,
    joined,
)
from model.metrics import Ints, Longs, Ragged

_TIME_COLUMNS = (c.USER_ID, c.LAST_TIME, c.NEXT_TIME, c.NEXT_GAP)
_PAST_COLUMNS = (c.USER_ID, c.WINDOW, c.ITEM, c.LENGTH, c.LABEL_ITEMS)


def cuts_of(counters: Mapping[str, Any], split: str) -> Cuts:
    """The instants of a split, as the manifest of the sequences counts them."""
    before_us, embargo_us = None, 0
    if counters["protocol"] == c.GLOBAL_TIME:
        before_us = micros(counters[f"{c.VALID if split == c.TRAIN else split}_cutoff"])
        embargo_us = 0 if split == c.TRAIN else int(counters["embargo_days"]) * c.DAY_S * c.MICROS
    return Cuts(split, before_us, embargo_us, counters["gap_edges_s"])


def audit(
    store: Store, manifest: Manifest, split: str, held_out: pa.Table, rows: EvaluationRows, train: pa.Table
) -> str:
    """Refuse an evaluation whose rows hold their labels, or anything else that was not known at their cutoff.

    By their times: every row of the split and of train, sampled or not. Event by event: `rows`, those of `held_out`,
    against the training
    windows in `train` and, for the test, the valid split. Returns a line for people.

    Raises:
        ModelError: names the first row that leaks, the column and the value.
    """
    _check_lineage(manifest)
    for name in (split, c.TRAIN):
        cuts = cuts_of(manifest.counters, name)
        for path in files_of(store, manifest, name):
            _check_file(store, path, cuts)
    cuts = cuts_of(manifest.counters, split)
    check_label_times(rows.user_id, rows.label_times_us, rows.next_time_us, cuts)
    check_windows(rows.user_id, rows.channels, rows.length, rows.last_time_us, split)
    ages = channels_of(held_out, (c.AGE,))[c.AGE]
    check_ages(rows.user_id, ages, rows.channels[c.HOUR], rows.length, rows.last_time_us, split)
    check_labels(rows.user_id, rows.next_item, rows.label_items, "item", split)
    check_labels(rows.user_id, rows.next_category, rows.label_categories, "category", split)
    line = f"evaluate: no leak in any row of {split} and {c.TRAIN}"
    if split == c.TEST and cuts.embargo_us:
        return f"{line}; windows not compared event by event: no earlier split has the events of the embargo"
    known = _known(store, manifest, split, rows, train)
    n_compared = check_past(rows.user_id, (rows.channels[c.ITEM], rows.length), rows.last_time_us, known, split)
    return f"{line}; {n_compared:,} of {len(rows.user_id):,} windows are, event by event, the past in earlier splits"


def _check_lineage(manifest: Manifest) -> None:
    """No input of the sequences may be of a later day than theirs."""
    for name, _ in sorted(manifest.inputs.items()):
        table, _, day = name.rpartition("/")
        if day > manifest.dt:
            raise ModelError(
                f"Leak: {TRAINING_SEQUENCES.name} of {manifest.dt} was made from {table} of {day}, a later day: events "
                "that were not known yet may be among its inputs. Write the sequences again with jobs.sequences."
            )


def _check_file(store: Store, path: str, cuts: Cuts) -> None:
    table = read_files(store, [path], _TIME_COLUMNS)
    times = Times(times_of(table, c.LAST_TIME), times_of(table, c.NEXT_TIME), ints_of(table, c.NEXT_GAP))
    check_times(times, cuts, lambda row: str(table[c.USER_ID][row].as_py()), path)


def _known(store: Store, manifest: Manifest, split: str, rows: EvaluationRows, train: pa.Table) -> Known:
    """The past of each row as the earlier splits have it.

    A user's latest training window and its target end with the last event before the valid cutoff. The valid row's
    labels are what follows up to the test cutoff; a user without one has nothing there.
    """
    latest = train.filter(pc.equal(train[c.WINDOW], 0))
    past, at = _aligned(rows, latest, _following(ints_of(latest, c.NEXT_ITEM)))
    last_time_us = np.where(at >= 0, times_of(latest, c.NEXT_TIME)[at] if len(latest) else -1, -1)
    if split == c.VALID:
        return Known(past, last_time_us)
    valid = rows_of_users(store, manifest, c.VALID, _PAST_COLUMNS, rows.user_id)
    by_valid, found = _aligned(rows, valid, _labels_of(valid))
    counts = np.diff(past.offsets) * (found < 0)  # a valid row knows all that the training window knows, and more
    kept = Ragged(past.values[(found < 0)[past.row_of_value()]], np.concatenate([[0], np.cumsum(counts)]))
    return Known(joined(kept, by_valid), np.where(found < 0, last_time_us, -1))


def _aligned(rows: EvaluationRows, table: pa.Table, following: Ragged) -> tuple[Ragged, Longs]:
    """For each row its user's window in `table` and what follows it; and that window's place there, -1: none."""
    index = pc.index_in(pa.array(rows.user_id), value_set=table[c.USER_ID].combine_chunks())
    at = pc.fill_null(index, -1).to_numpy().astype(np.int64)  # [B]
    if not table.num_rows:
        return Ragged(np.zeros(0, np.int32), np.zeros(len(at) + 1, np.int64)), at
    items, length = channels_of(table, (c.ITEM,))[c.ITEM], ints_of(table, c.LENGTH)
    offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    inside = np.arange(items.shape[1]) < length[:, None]
    return _taken(joined(Ragged(items[inside], offsets), following), at), at


def _labels_of(valid: pa.Table) -> Ragged:
    return ragged_of(valid, c.LABEL_ITEMS) if valid.num_rows else Ragged(np.zeros(0, np.int32), np.zeros(1, np.int64))


def _taken(lists: Ragged, at: Longs) -> Ragged:
    """The lists at the given places, an empty one for -1."""
    starts = np.where(at >= 0, lists.offsets[at], 0)
    counts = np.where(at >= 0, lists.offsets[at + 1] - starts, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    return Ragged(lists.values[index], offsets)


def _following(items: Ints) -> Ragged:
    """What follows each training window: one item, or nothing where the window ends with what is known."""
    is_there = items != c.PAD
    return Ragged(items[is_there], np.concatenate([[0], np.cumsum(is_there)]).astype(np.int64))
