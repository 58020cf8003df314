"""Sessions: a user's events cut where the user was silent for longer than the gap, each event once.

Letters: n events, m events without repeated ones, s sessions.
"""

from dataclasses import dataclass
from datetime import date
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contracts import EVENT_FIELDS, SESSIONS

Ids = NDArray[np.int64]

_EVENT_NAMES = [field.name for field in EVENT_FIELDS]
_SESSIONS_SCHEMA = to_arrow_schema(SESSIONS.schema)
_STAMPS = pa.timestamp("us", tz="UTC")


class SessionsSpec(BaseModel):
    """Where a session ends, and how late an event may come."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gap_s: int = Field(gt=0, description="a longer silence ends the session")
    lateness_days: int = Field(ge=0, description="an event may arrive this many days after its own day")
    partition_mib: int = Field(gt=0, description="input bytes in one shuffle partition")


@dataclass(frozen=True)
class CutRules:
    """When a session ends, and which ones may still grow at the end of a run; microseconds (since 1970)."""

    gap_us: int
    lateness_us: int
    end_us: int

    @classmethod
    def of(cls, spec: SessionsSpec, last_day: date) -> Self:
        """The rules of a run whose last day is `last_day`."""
        end_day = (last_day - date(1970, 1, 1)).days + 1
        day_us = c.DAY_S * c.MICROS
        return cls(spec.gap_s * c.MICROS, spec.lateness_days * day_us, end_day * day_us)


def events_by_user(events: DataFrame, carried: DataFrame | None, n_partitions: int) -> DataFrame:
    """Events of the run and of the sessions carried over, each user in one partition, in no order.

    events: `events_v1`. carried: yesterday's `open_sessions_v1`, or None at a bootstrap.
    """
    columns = [c.USER_ID, *_EVENT_NAMES]
    together = events.select(*columns)
    if carried is not None:
        inside = carried.select(c.USER_ID, F.explode(c.EVENTS).alias("event")).select(c.USER_ID, "event.*")
        together = together.unionByName(inside.select(*columns))
    return together.repartition(n_partitions, c.USER_ID)


def sessions_of(events: pa.Table, rules: CutRules) -> tuple[pa.Table, pa.Table]:
    """All events of some users → their finished and their open sessions, both as SESSIONS.

    events: user_id and the event's own columns, in any order. Two rows with the same (user_id, event_time,
    event_id) are one event. Events of a session are ordered by (event_time, event_id). A session is finished when
    no event that is still allowed could join it: session_end + gap + lateness lies before the end of the run.
    """
    events = events.combine_chunks()
    users = _array(events, c.USER_ID).dictionary_encode()
    user = users.indices.to_numpy()  # [n]
    time_us = _array(events, c.EVENT_TIME).cast(pa.int64()).to_numpy()  # [n]
    order, first = order_events(user, time_us, _array(events, c.EVENT_ID).to_numpy(), rules.gap_us)
    user, time_us = user[order], time_us[order]  # [m]
    last = np.append(first[1:], len(order)) - 1  # [s]
    sessions = pa.table(
        {
            c.SESSION_ID: session_ids(users.dictionary, user[first], time_us[first]),
            c.USER_ID: users.dictionary.take(pa.array(user[first])),
            c.SESSION_START: pa.array(time_us[first], _STAMPS),
            c.SESSION_END: pa.array(time_us[last], _STAMPS),
            c.N_EVENTS: pa.array((last - first + 1).astype(np.int32)),
            c.EVENTS: _nested(events, order, first),
        }
    ).cast(_SESSIONS_SCHEMA)
    may_grow = time_us[last] + rules.gap_us + rules.lateness_us >= rules.end_us  # [s]
    return sessions.filter(pa.array(~may_grow)), sessions.filter(pa.array(may_grow))


def order_events(user: NDArray[np.int32], time_us: Ids, event_id: Ids, gap_us: int) -> tuple[Ids, Ids]:
    """Order events by (user, time, id), leave out repeated ones, and cut where a user was silent for more than gap_us.

    user, time_us, event_id: [n] → (order [m], m ≤ n: positions of the kept events; first [s]: where in `order`
    each session starts, rising, first[0] = 0).
    """
    order = ordered(user, time_us, event_id)
    user, time_us, event_id = user[order], time_us[order], event_id[order]
    same_user = user[1:] == user[:-1]
    repeated = same_user & (time_us[1:] == time_us[:-1]) & (event_id[1:] == event_id[:-1])
    if repeated.any():
        kept = np.append(True, ~repeated)
        order, user, time_us = order[kept], user[kept], time_us[kept]
        same_user = user[1:] == user[:-1]
    starts = ~same_user | (np.diff(time_us) > gap_us)
    return order, np.flatnonzero(np.append(True, starts))


def ordered(user: NDArray[np.int32], time_us: Ids, event_id: Ids) -> Ids:
    """Positions in order of (user, time, id): one sort of a joined key, then of the few that tie. [n] each → [n]."""
    low = time_us.min()
    n_bits = int(time_us.max() - low).bit_length()
    if n_bits + int(user.max()).bit_length() > 63:  # centuries of time: no room in one key
        by_all: Ids = np.lexsort((event_id, time_us, user))
        return by_all
    key = (user.astype(np.int64) << n_bits) | (time_us - low)
    order = np.argsort(key)
    key = key[order]
    equal = key[1:] == key[:-1]
    tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    order[tied] = order[tied][np.lexsort((event_id[order[tied]], key[tied]))]
    return order


def session_ids(names: pa.Array, user: NDArray[np.int32], start_us: Ids) -> pa.Array:
    """16 hex digits for each (user, start): SipHash of the name, mixed with the start by SplitMix64's finalizer.

    names: [u] text; user: [s] index into names; start_us: [s] → [s] text. Steele, Lea, Flood, OOPSLA 2014.
    """
    hashed = pd.util.hash_array(names.to_numpy(zero_copy_only=False))  # [u] uint64
    mixed = _mixed(hashed[user] ^ (start_us.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)))
    octets = mixed.astype(">u8").view(np.uint8)  # [8 s]
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.stack([digits[octets >> 4], digits[octets & 15]], axis=1)  # [8 s, 2]
    offsets = np.arange(len(user) + 1, dtype=np.int32) * 16
    return pa.StringArray.from_buffers(len(user), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text)))


def digest_of(sessions: pa.Table) -> int:
    """A number that tells sets of events apart, whatever their order: Σ mixed event_id modulo 2^64."""
    event_id = pc.struct_field(pc.list_flatten(sessions[c.EVENTS].combine_chunks()), c.EVENT_ID)
    return int(_mixed(event_id.to_numpy().astype(np.uint64)).sum(dtype=np.uint64))


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer: every bit of the input moves every bit of the output."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _nested(events: pa.Table, order: Ids, first: Ids) -> pa.Array:
    """The events of each session as one list of structs. order: [m]; first: [s] → [s] lists."""
    index = pa.array(order)
    columns = [_array(events, name).take(index) for name in _EVENT_NAMES]
    fields = [pa.field(f.name, column.type, f.nullable) for f, column in zip(EVENT_FIELDS, columns, strict=True)]
    offsets = pa.array(np.append(first, len(order)), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=fields))


def _array(events: pa.Table, name: str) -> pa.Array:
    """A column of a table with combined chunks, as one array."""
    column = events[name]
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
