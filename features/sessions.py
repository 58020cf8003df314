"""Sessions: a user's events cut where the user was silent for longer than the gap, each event once."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from features import columns as c
from features.contracts import EVENT_FIELDS, SESSIONS

STATE = "state"
FINISHED, OPEN = "finished", "open"  # values of STATE; an OPEN session may still grow

_EVENT_NAMES = [field.name for field in EVENT_FIELDS]
_CUT_SCHEMA = T.StructType(
    [
        *(field for field in SESSIONS.schema.fields if field.name != c.SESSION_ID),
        T.StructField(STATE, T.StringType(), False),
    ]
)


class SessionsSpec(BaseModel):
    """Where a session ends, and how late an event may come."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gap_s: int = Field(gt=0, description="a longer silence ends the session")
    lateness_days: int = Field(ge=0, description="an event may arrive this many days after its own day")
    partition_mib: int = Field(gt=0, description="input bytes in one shuffle partition")


@dataclass(frozen=True)
class _Cut:
    """The rules of one run, in microseconds (since 1970)."""

    gap_us: int
    lateness_us: int
    end_us: int


def cut_sessions(
    events: DataFrame, carried: DataFrame | None, spec: SessionsSpec, last_day: date, n_partitions: int
) -> DataFrame:
    """Sessions of all users as SESSIONS, plus STATE: FINISHED or OPEN at the end of `last_day`.

    events: `events_v1` of the run. carried: yesterday's `open_sessions_v1`, or None at a bootstrap. Two rows
    with the same (user_id, event_time, event_id) are one event. Events are ordered by (event_time, event_id).
    A session is finished when no event that is still allowed could join it: session_end + gap + lateness lies
    before the end of `last_day`.
    """
    columns = [c.USER_ID, *_EVENT_NAMES]
    together = events.select(*columns)
    if carried is not None:
        together = together.unionByName(
            carried.select(c.USER_ID, F.explode(c.EVENTS).alias("event")).select(c.USER_ID, "event.*").select(*columns)
        )
    cut = _Cut(
        gap_us=spec.gap_s * c.MICROS,
        lateness_us=spec.lateness_days * c.DAY_S * c.MICROS,
        end_us=((last_day - date(1970, 1, 1)).days + 1) * c.DAY_S * c.MICROS,
    )
    sessions = together.repartition(n_partitions, c.USER_ID).mapInArrow(partial(_cut_partition, cut=cut), _CUT_SCHEMA)
    session_id = F.lower(F.lpad(F.hex(F.xxhash64(c.USER_ID, c.SESSION_START)), 16, "0"))
    return sessions.select(session_id.alias(c.SESSION_ID), *_CUT_SCHEMA.names)


def _cut_partition(batches: Iterator[pa.RecordBatch], cut: _Cut) -> Iterator[pa.RecordBatch]:
    """All events of some users → their sessions. A partition's size is bounded by plan: it is held whole."""
    held = list(batches)
    if not held or not any(batch.num_rows for batch in held):
        return
    events = pa.Table.from_batches(held).combine_chunks()
    del held
    users = events[c.USER_ID].combine_chunks().dictionary_encode()
    user = users.indices.to_numpy()  # [n]
    time_us = events[c.EVENT_TIME].cast(pa.int64()).to_numpy()  # [n]
    event_id = events[c.EVENT_ID].to_numpy()  # [n]

    order, first = order_events(user, time_us, event_id, cut.gap_us)
    user, time_us = user[order], time_us[order]
    last = np.append(first[1:], len(order)) - 1  # [s]
    ordered = events.select(_EVENT_NAMES).take(pa.array(order))
    offsets = pa.array(np.append(first, len(order)), pa.int32())
    structs = pa.StructArray.from_arrays(
        [_single(ordered[name]) for name in _EVENT_NAMES],
        fields=[pa.field(f.name, ordered[f.name].type, f.nullable) for f in EVENT_FIELDS],
    )
    may_grow = time_us[last] + cut.gap_us + cut.lateness_us >= cut.end_us
    stamps = pa.timestamp("us", tz="UTC")
    table = pa.table(
        {
            c.USER_ID: users.dictionary.take(pa.array(user[first])),
            c.SESSION_START: pa.array(time_us[first], stamps),
            c.SESSION_END: pa.array(time_us[last], stamps),
            c.N_EVENTS: pa.array((last - first + 1).astype(np.int32)),
            c.EVENTS: pa.ListArray.from_arrays(offsets, structs),
            STATE: pa.array([FINISHED, OPEN]).take(pa.array(may_grow.astype(np.int8))),
        }
    )
    yield from table.to_batches(max_chunksize=20_000)


def order_events(
    user: NDArray[np.int32], time_us: NDArray[np.int64], event_id: NDArray[np.int64], gap_us: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order events by (user, time, id), leave out repeated ones, and cut where a user was silent for more than gap_us.

    user, time_us, event_id: [n] → (order [m], m ≤ n: positions of the kept events; first [s]: where in `order`
    each session starts, rising, first[0] = 0).
    """
    order = np.lexsort((event_id, time_us, user))
    user, time_us, event_id = user[order], time_us[order], event_id[order]
    same_user = user[1:] == user[:-1]
    repeated = same_user & (time_us[1:] == time_us[:-1]) & (event_id[1:] == event_id[:-1])
    if repeated.any():
        kept = np.append(True, ~repeated)
        order, user, time_us = order[kept], user[kept], time_us[kept]
        same_user = user[1:] == user[:-1]
    starts = ~same_user | (np.diff(time_us) > gap_us)
    return order, np.flatnonzero(np.append(True, starts))


def _single(column: pa.ChunkedArray) -> pa.Array:
    """A chunked column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
