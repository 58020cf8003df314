"""Histories: each user's latest events, kept by bucket of users so that a night touches little of them.

Letters: n events, t tokens of a dictionary.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features import columns as c
from features.contracts import HISTORIES
from features.sessions import order_events

EVENT_COLUMNS = HISTORIES.schema.names
TEXT_COLUMNS = (c.USER_ID, c.ITEM_ID, c.CATEGORY_ID, c.ACTION)
TokenIds = Callable[[Mapping[str, pa.Array]], Mapping[str, NDArray[np.int32]]]

_WHOLE_PAST_US = np.iinfo(np.int64).max  # no silence is longer: order_events then cuts between users only


def buckets_of(users: pa.Array, n_buckets: int) -> NDArray[np.int64]:
    """The bucket of each user: pmod(hash(user_id), n_buckets), as Spark computes it. users: [u] text → [u]."""
    buckets: NDArray[np.int64] = spark_hash(users).astype(np.int64) % n_buckets
    return buckets


def spark_hash(texts: pa.Array) -> NDArray[np.int32]:
    """Spark's `hash` of texts: MurmurHash3_x86_32, seed 42, but each of the last bytes mixed in as a word of its own.

    texts: [u] → [u]. Appleby, MurmurHash3, 2011; Spark: Murmur3_x86_32.hashUnsafeBytes.
    """
    octets = [text.encode() for text in texts.to_pylist()]
    n_bytes = np.array([len(text) for text in octets], np.int64)
    width = -(-int(n_bytes.max(initial=0)) // 4) * 4
    table = np.frombuffer(b"".join(text.ljust(width, b"\0") for text in octets), np.uint8).reshape(len(octets), width)
    words = np.ascontiguousarray(table).view("<u4")
    state = np.full(len(octets), 42, np.uint32)
    for k in range(width // 4):
        state = np.where(4 * (k + 1) <= n_bytes, _mixed_in(state, words[:, k]), state)
    for k in range(width):
        is_rest = (k >= n_bytes // 4 * 4) & (k < n_bytes)
        if is_rest.any():
            state = np.where(is_rest, _mixed_in(state, table[:, k].astype(np.int8).astype(np.uint32)), state)
    state = state ^ n_bytes.astype(np.uint32)
    state = (state ^ (state >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    state = (state ^ (state >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return (state ^ (state >> np.uint32(16))).view(np.int32)


def _mixed_in(state: NDArray[np.uint32], word: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """One round of MurmurHash3_x86_32. [u] each → [u]."""
    word = _rotated(word * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
    return _rotated(state ^ word, 13) * np.uint32(5) + np.uint32(0xE6546B64)


def _rotated(word: NDArray[np.uint32], n_bits: int) -> NDArray[np.uint32]:
    return (word << np.uint32(n_bits)) | (word >> np.uint32(32 - n_bits))


def flattened(sessions: pa.Table) -> pa.Table:
    """The events of sessions as EVENT_COLUMNS, in their order. sessions: user_id and events."""
    events = sessions[c.EVENTS].combine_chunks()
    session = np.repeat(np.arange(len(events)), events.value_lengths().to_numpy())
    fields = events.flatten()
    columns = {c.USER_ID: _array(sessions, c.USER_ID).dictionary_encode().take(pa.array(session))}
    columns |= {name: pc.struct_field(fields, name) for name in EVENT_COLUMNS if name != c.USER_ID}
    return pa.table([columns[name] for name in EVENT_COLUMNS], names=EVENT_COLUMNS)


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
