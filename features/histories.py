"""Histories: each user's latest events, kept by bucket of users so that a night touches little of them.

Letters: n events, t tokens of a dictionary.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import Column
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import HISTORIES
from features.sessions import order_events

EVENT_COLUMNS = HISTORIES.schema.names
TEXT_COLUMNS = (c.USER_ID, c.ITEM_ID, c.CATEGORY_ID, c.ACTION)
TokenIds = Callable[[Mapping[str, pa.Array]], Mapping[str, NDArray[np.int32]]]

_WHOLE_PAST_US = np.iinfo(np.int64).max  # no silence is longer: order_events then cuts between users only


def bucket_of(n_buckets: int) -> Column:
    """The bucket of a row's user, 0 to n_buckets - 1."""
    return F.pmod(F.xxhash64(c.USER_ID), F.lit(n_buckets)).cast("int").alias(c.BUCKET)


def with_dictionaries(events: pa.Table) -> pa.Table:
    """The same rows with TEXT_COLUMNS dictionary-encoded and each column in one piece."""
    for name in TEXT_COLUMNS:
        index = events.schema.get_field_index(name)
        if not pa.types.is_dictionary(events.schema.field(index).type):
            events = events.set_column(index, name, events[name].dictionary_encode())
    return events.unify_dictionaries().combine_chunks()


def of_users(events: pa.Table, users: pa.Array) -> pa.Table:
    """The rows of some users. events: `with_dictionaries`."""
    column = _array(events, c.USER_ID)
    wanted = pc.is_in(column.dictionary, users).to_numpy(zero_copy_only=False)
    return events.filter(pa.array(wanted[column.indices.to_numpy()]))


def latest_events(events: pa.Table, keep: int) -> pa.Table:
    """Each event once, each user's rows together and ordered by (event_time, event_id), the latest `keep` of each.

    events: EVENT_COLUMNS, `with_dictionaries`. Applied to a part, then to the result and the rest, it gives the same.
    """
    if not events.num_rows:
        return events
    user = _array(events, c.USER_ID).indices.to_numpy()
    time_us = _array(events, c.EVENT_TIME).cast(pa.int64()).to_numpy()
    order, first = order_events(user, time_us, _array(events, c.EVENT_ID).to_numpy(), _WHOLE_PAST_US)
    n_events = np.diff(np.append(first, len(order)))
    from_end = np.repeat(first + n_events, n_events) - np.arange(len(order))  # [n] 1 = the user's latest
    return events.take(pa.array(order[from_end <= keep]))


def encoded(events: pa.Table, ids_of: TokenIds) -> pa.Table:
    """Events as ENCODED_EVENT of `features/sequences.py`, whose `encode_events` does the same in Spark.

    events: EVENT_COLUMNS, `with_dictionaries`. ids_of: tokens [t] by kind → their ids [t] by kind, OOV where unknown.
    """
    items, categories, actions = (_array(events, name) for name in (c.ITEM_ID, c.CATEGORY_ID, c.ACTION))
    ids = ids_of({c.KIND_ITEM: items.dictionary, c.KIND_CATEGORY: categories.dictionary})
    action_ids = pc.index_in(actions.dictionary, pa.array(c.ACTIONS)).fill_null(c.OOV - c.FIRST_ID)
    return pa.table(
        {
            c.USER_ID: _array(events, c.USER_ID).cast(pa.string()),
            "time_us": _array(events, c.EVENT_TIME).cast(pa.int64()),
            c.EVENT_ID: _array(events, c.EVENT_ID),
            c.ITEM: _coded(items, ids[c.KIND_ITEM]),
            c.CATEGORY: _coded(categories, ids[c.KIND_CATEGORY]),
            c.ACTION_CODE: _coded(actions, action_ids.to_numpy().astype(np.int32) + c.FIRST_ID),
        }
    )


def _coded(column: pa.DictionaryArray, ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """Ids of the values; OOV where there is none. ids: [t] → [n]."""
    index = column.indices.fill_null(len(ids)).to_numpy()
    coded: NDArray[np.int32] = np.append(ids, np.int32(c.OOV))[index].astype(np.int32)
    return coded


def _array(events: pa.Table, name: str) -> pa.Array:
    column = events[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
