"""Sessions: a user's events cut where the user was silent for longer than the gap, each event once.

Letters: n events, m events without repeated ones and noise, s sessions.
"""

from dataclasses import dataclass
from datetime import date
from typing import NamedTuple, Self

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
from features.contracts import EVENT_FIELDS, HELD_EVENTS, SESSIONS
from features.denoising import (
    DAY_US,
    OFF,
    DenoisingSpec,
    Flags,
    burst_events,
    flag_days,
    flagged_users,
    is_closed,
    rejected_as_bot,
)

Ids = NDArray[np.int64]

_EVENT_NAMES = [field.name for field in EVENT_FIELDS]
_SESSIONS_SCHEMA = to_arrow_schema(SESSIONS.schema)
_HELD_SCHEMA = to_arrow_schema(HELD_EVENTS.schema)
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


class Cut(NamedTuple):
    """What becomes of the events of some users: `n_distinct` of them, each in one place or counted as gone."""

    finished: pa.Table  # SESSIONS
    opened: pa.Table  # SESSIONS
    held: pa.Table  # HELD_EVENTS: out of the sessions, but judged again tomorrow
    bots: pa.Table  # REJECTED_EVENTS: bots' events of closed days
    flagged: pa.Table  # FLAGGED_USERS
    n_capped: int  # events beyond the cap, of closed days
    n_burst: int
    n_distinct: int


def events_by_user(
    events: DataFrame, carried: DataFrame | None, n_partitions: int, held: DataFrame | None = None
) -> DataFrame:
    """Events of the run, of the sessions carried over and those held back, each user in one partition, in no order.

    events: `events_v1`. carried, held: yesterday's `open_sessions_v1` and `held_events_v1`, or None at a bootstrap.
    """
    columns = [c.USER_ID, *_EVENT_NAMES]
    together = events.select(*columns)
    if carried is not None:
        inside = carried.select(c.USER_ID, F.explode(c.EVENTS).alias("event")).select(c.USER_ID, "event.*")
        together = together.unionByName(inside.select(*columns))
    if held is not None:
        together = together.unionByName(held.select(*columns))
    return together.repartition(n_partitions, c.USER_ID)


def sessions_of(events: pa.Table, rules: CutRules) -> tuple[pa.Table, pa.Table]:
    """All events of some users, nothing of them noise → their finished and their open sessions, both as SESSIONS."""
    cut = denoised_sessions(events, rules, OFF)
    return cut.finished, cut.opened


def denoised_sessions(events: pa.Table, rules: CutRules, denoising: DenoisingSpec) -> Cut:
    """All events of some users → their finished and their open sessions, and what denoising takes out.

    events: user_id and the event's own columns, in any order. Two rows with the same (user_id, event_time,
    event_id) are one event. Noisy days go before sessions are cut; those that are not closed are held back, those that
    are closed are gone for good. Events of a session are ordered by (event_time, event_id). A session is finished when
    no event that is still allowed could join it: session_end + gap + lateness lies before the end of the run. Only
    then are its bursts thinned out, because a late event may come between two; session_end is that of the last kept.
    """
    events = events.combine_chunks()
    users = _array(events, c.USER_ID).dictionary_encode()
    user = users.indices.to_numpy()  # [n]
    time_us = _array(events, c.EVENT_TIME).cast(pa.int64()).to_numpy()  # [n]
    order = distinct_events(user, time_us, _array(events, c.EVENT_ID).to_numpy())
    user, time_us, n_distinct = user[order], time_us[order], len(order)  # [m]
    flags = flag_days(user, time_us, denoising)
    held, bots, flagged, n_capped = _taken_out(events, users.dictionary, order, time_us, flags, rules)
    if flags is not None:
        noise = np.concatenate([flags.bot, flags.capped])
        order, user, time_us = np.delete(order, noise), np.delete(user, noise), np.delete(time_us, noise)
    first = session_starts(user, time_us, rules.gap_us)
    may_grow = time_us[_last(first, len(order))] + rules.gap_us + rules.lateness_us >= rules.end_us  # [s]
    n_burst = 0
    if denoising.burst_s:
        order, user, time_us, first, n_burst = _thinned(events, order, user, time_us, first, may_grow, denoising)
    last = _last(first, len(order))  # [s]
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
    finished, opened = sessions.filter(pa.array(~may_grow)), sessions.filter(pa.array(may_grow))
    return Cut(finished, opened, held, bots, flagged, n_capped, n_burst, n_distinct)


def order_events(user: NDArray[np.int32], time_us: Ids, event_id: Ids, gap_us: int) -> tuple[Ids, Ids]:
    """Order events by (user, time, id), leave out repeated ones, and cut where a user was silent for more than gap_us.

    user, time_us, event_id: [n] → (order [m], m ≤ n: positions of the kept events; first [s]: where in `order`
    each session starts, rising, first[0] = 0).
    """
    order = distinct_events(user, time_us, event_id)
    return order, session_starts(user[order], time_us[order], gap_us)


def distinct_events(user: NDArray[np.int32], time_us: Ids, event_id: Ids) -> Ids:
    """Order events by (user, time, id) and leave out repeated ones. [n] each → [m], m ≤ n: positions of the kept."""
    order = ordered(user, time_us, event_id)
    user, time_us, event_id = user[order], time_us[order], event_id[order]
    repeated = (user[1:] == user[:-1]) & (time_us[1:] == time_us[:-1]) & (event_id[1:] == event_id[:-1])
    return order[np.append(True, ~repeated)] if repeated.any() else order


def session_starts(user: NDArray[np.int32], time_us: Ids, gap_us: int) -> Ids:
    """Where sessions start: a user's first event, and each after a silence of more than gap_us. [m] each → [s], rising.

    user, time_us: in order of (user, time).
    """
    starts = (user[1:] != user[:-1]) | (np.diff(time_us) > gap_us)
    return np.flatnonzero(np.append(True, starts)[: len(user)])


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


def digest_of(rows: pa.Table) -> int:
    """A number that tells sets of events apart, whatever their order: Σ mixed event_id modulo 2^64.

    rows: SESSIONS or HELD_EVENTS.
    """
    if c.EVENTS in rows.column_names:
        event_id = pc.struct_field(pc.list_flatten(rows[c.EVENTS].combine_chunks()), c.EVENT_ID)
    else:
        event_id = rows[c.EVENT_ID]
    return int(_mixed(event_id.to_numpy().astype(np.uint64)).sum(dtype=np.uint64))


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer: every bit of the input moves every bit of the output."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _last(first: Ids, n_events: int) -> Ids:
    """Where each session ends. first: [s] → [s]."""
    return np.append(first, n_events)[1:] - 1


def _taken_out(
    events: pa.Table, names: pa.Array, order: Ids, time_us: Ids, flags: Flags | None, rules: CutRules
) -> tuple[pa.Table, pa.Table, pa.Table, int]:
    """Held events, rejected events, flagged users, and the number of events that the cap takes for good.

    order, time_us: [m] distinct events, of which the flags speak.
    """
    if flags is None:
        none = np.zeros(0, np.int64)
        flags = Flags(none, none, [], none, none, none, none)
    noise = np.concatenate([flags.bot, flags.capped])
    closed = is_closed(time_us[noise] // DAY_US, rules.lateness_us, rules.end_us)
    is_bot = np.arange(len(noise)) < len(flags.bot)
    columns = events.select(_HELD_SCHEMA.names)
    held = columns.take(pa.array(order[noise[~closed]])).cast(_HELD_SCHEMA)
    bots = rejected_as_bot(columns.take(pa.array(order[noise[closed & is_bot]])))
    flagged = flagged_users(names, flags, is_closed(flags.day, rules.lateness_us, rules.end_us))
    return held, bots, flagged, int((closed & ~is_bot).sum())


def _thinned(
    events: pa.Table,
    order: Ids,
    user: NDArray[np.int32],
    time_us: Ids,
    first: Ids,
    may_grow: NDArray[np.bool_],
    denoising: DenoisingSpec,
) -> tuple[Ids, NDArray[np.int32], Ids, Ids, int]:
    """Order, user, time [m] and first [s] without the bursts of finished sessions, and how many events that were."""
    repeats = burst_events(events, order, time_us, first, denoising.burst_s * c.MICROS)
    session = np.searchsorted(first, repeats, side="right") - 1
    repeats = repeats[~may_grow[session]]
    if not len(repeats):
        return order, user, time_us, first, 0
    first = first - np.searchsorted(repeats, first)
    return np.delete(order, repeats), np.delete(user, repeats), np.delete(time_us, repeats), first, len(repeats)


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
