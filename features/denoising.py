"""Noise among one user's events: days of bots, more events than a day can say, and bursts of one action.

A rule about a (user, UTC day) is monotone: further events can only break it, never mend it. So a day that is judged
again whenever late events join it ends with the same verdict as a day that is judged once.

Letters: m distinct events in order of (user, time, id), d (user, day) pairs among them, k broken rules, x events out.
"""

import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contracts import FLAGGED_USERS, REJECTED_EVENTS

Ids = NDArray[np.int64]

# Rules, as `flagged_users_v1` names them. The first three make a bot.
EVENTS_PER_DAY, EVENTS_PER_MINUTE, HOURS_PER_DAY = "events_per_day", "events_per_minute", "hours_per_day"
CAPPED = "capped"
BOT = "bot"  # why a bot's events stand in `rejected_events_v1`

DAY_US, HOUR_US, MINUTE_US = (seconds * c.MICROS for seconds in (c.DAY_S, 3_600, 60))
_BATCH_ROWS = 65_536  # events of one array of JSON; all in one would not fit its 32-bit offsets


class DenoisingSpec(BaseModel):
    """Which events are noise. 0 switches a rule off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bot_events_per_day: int = Field(ge=0, description="a user with more events in a UTC day is a bot that day")
    bot_events_per_minute: int = Field(ge=0, description="… with more events in a clock minute of that day")
    bot_hours_per_day: int = Field(ge=0, le=24, description="… active in as many different UTC hours of it, or more")
    max_user_day_events: int = Field(ge=0, description="of a user's UTC day only the latest so many are kept")
    burst_s: int = Field(ge=0, description="the same item and action again within so many seconds is one event")


OFF = DenoisingSpec(
    bot_events_per_day=0, bot_events_per_minute=0, bot_hours_per_day=0, max_user_day_events=0, burst_s=0
)


class Flags(NamedTuple):
    """The rules that (user, day) pairs break, and the events that go for it."""

    user: Ids  # [k] as given
    day: Ids  # [k] days since 1970
    rule: list[str]  # [k]
    value: Ids  # [k] what was measured: events, events in the busiest minute, hours, or events found
    events: Ids  # [k] events of that day that are taken out, the same for each rule it breaks: of a bot all
    bot: Ids  # [x] positions of the events of bots, rising
    capped: Ids  # [x] positions of other users' events before the latest so many, rising


def flag_days(user: NDArray[np.int32], time_us: Ids, spec: DenoisingSpec) -> Flags | None:
    """Judge each (user, UTC day) of distinct events in order of (user, time, id); None where nothing is noise.

    user, time_us: [m]. Only days with as many events as a rule needs are looked at more closely.
    """
    if not any((*_bot_limits(spec), spec.max_user_day_events)):
        return None
    day = time_us // DAY_US
    first = np.flatnonzero(np.append(True, (user[1:] != user[:-1]) | (day[1:] != day[:-1]))[: len(user)])  # [d]
    n = np.diff(np.append(first, len(user)))  # [d]
    broken = _bot_rules(time_us, first, n, spec)
    is_bot = np.zeros(len(n), np.bool_)
    for _, pair, _ in broken:
        is_bot[pair] = True
    excess = np.maximum(n - spec.max_user_day_events, 0) if spec.max_user_day_events else np.zeros_like(n)  # [d]
    over = np.flatnonzero(excess)
    broken.append((CAPPED, over, n[over]))
    pair = np.concatenate([pairs for _, pairs, _ in broken])
    if not len(pair):
        return None
    n_out = np.where(is_bot, n, excess)  # [d]
    capped = ~is_bot & (excess > 0)  # [d]
    return Flags(
        user[first[pair]].astype(np.int64),
        day[first[pair]],
        [rule for rule, pairs, _ in broken for _ in range(len(pairs))],
        np.concatenate([values for _, _, values in broken]),
        n_out[pair],
        _ranges(first[is_bot], n[is_bot]),
        _ranges(first[capped], n_out[capped]),
    )


def is_closed(day: Ids, lateness_us: int, end_us: int) -> NDArray[np.bool_]:
    """Whether no event of a day (since 1970) may come after a run that ends at `end_us`. [n] → [n]."""
    return (day + 1) * DAY_US + lateness_us <= end_us


def burst_events(events: pa.Table, order: Ids, time_us: Ids, first: Ids, burst_us: int) -> Ids:
    """Positions of events that repeat the one before them in their session: same item, same action, within burst_us.

    order: [m] rows of `events` by (user, time, id), time_us: [m] their times, first: [s] where each session starts
    → rising. So a chain of repetitions leaves its first event.
    """
    near = np.diff(time_us) <= burst_us
    near[first[1:] - 1] = False
    later = np.flatnonzero(near) + 1
    same = np.ones(len(later), np.bool_)
    for name in (c.ITEM_ID, c.ACTION):
        column = events[name]
        same &= _equal(column.take(pa.array(order[later])), column.take(pa.array(order[later - 1])))
    return later[same]


def flagged_users(names: pa.Array, flags: Flags, closed: NDArray[np.bool_]) -> pa.Table:
    """Flags as FLAGGED_USERS. names: text of each user; closed: [k]."""
    columns = {
        c.USER_ID: names.take(pa.array(flags.user)),
        c.DAY: pa.array(flags.day.astype("datetime64[D]")),
        c.RULE: pa.array(flags.rule, pa.string()),
        c.VALUE: pa.array(flags.value, pa.int64()),
        c.EVENTS: pa.array(flags.events, pa.int64()),
        c.CLOSED: pa.array(closed),
    }
    return pa.table(columns).cast(to_arrow_schema(FLAGGED_USERS.schema))


def rejected_as_bot(events: pa.Table) -> pa.Table:
    """Events as REJECTED_EVENTS, each whole as JSON; a column that is null is left out, as Spark does."""
    raw = pa.chunked_array([_as_json(batch) for batch in events.to_batches(max_chunksize=_BATCH_ROWS)], pa.string())
    return pa.table({c.REASON: pa.repeat(BOT, len(raw)), c.RAW: raw}).cast(to_arrow_schema(REJECTED_EVENTS.schema))


def _as_json(events: pa.RecordBatch) -> pa.Array:
    """Each row as a JSON object without its nulls, event_time last. A bot has millions: no step in Python a row."""
    names = [name for name in events.schema.names if name != c.EVENT_TIME] + [c.EVENT_TIME]
    members = [pc.binary_join_element_wise(f'"{name}":', _json_values(events.column(name)), "") for name in names]
    return pc.binary_join_element_wise("{", pc.binary_join_element_wise(*members, ",", null_handling="skip"), "}", "")


def _json_values(column: pa.Array) -> pa.Array:
    """Texts, whole numbers or times as JSON; null where there is none. A time is text of ISO 8601, UTC."""
    if pa.types.is_timestamp(column.type):
        stamps = pc.replace_substring(column.cast(pa.timestamp("us")).cast(pa.string()), " ", "T")
        return pc.binary_join_element_wise('"', stamps, 'Z"', "")
    if pa.types.is_integer(column.type):
        return column.cast(pa.string())
    words = column.dictionary_encode()
    quoted = [json.dumps(word, ensure_ascii=False) for word in words.dictionary.to_pylist()]
    return pa.array(quoted, pa.string()).take(words.indices)


def _bot_rules(time_us: Ids, first: Ids, n: Ids, spec: DenoisingSpec) -> list[tuple[str, Ids, Ids]]:
    """(rule, pairs that break it, what was measured) for each rule that is on. time_us: [m]; first, n: [d]."""
    broken = []
    if spec.bot_events_per_day:
        pair = np.flatnonzero(n > spec.bot_events_per_day)
        broken.append((EVENTS_PER_DAY, pair, n[pair]))
    if spec.bot_events_per_minute:
        pair = np.flatnonzero(n > spec.bot_events_per_minute)
        of_pair, in_minute = _by_unit(time_us, first[pair], n[pair], MINUTE_US)
        busiest = np.zeros(len(pair), np.int64)
        np.maximum.at(busiest, of_pair, in_minute)
        caught = busiest > spec.bot_events_per_minute
        broken.append((EVENTS_PER_MINUTE, pair[caught], busiest[caught]))
    if spec.bot_hours_per_day:
        # From the first of h different hours to the last lie more than h - 2 hours.
        span_us = time_us[first + n - 1] - time_us[first]
        long = span_us > (spec.bot_hours_per_day - 2) * HOUR_US
        pair = np.flatnonzero((n >= spec.bot_hours_per_day) & long)
        of_pair, _ = _by_unit(time_us, first[pair], n[pair], HOUR_US)
        hours = np.bincount(of_pair, minlength=len(pair)).astype(np.int64)
        caught = hours >= spec.bot_hours_per_day
        broken.append((HOURS_PER_DAY, pair[caught], hours[caught]))
    return broken


def _bot_limits(spec: DenoisingSpec) -> tuple[int, int, int]:
    return spec.bot_events_per_day, spec.bot_events_per_minute, spec.bot_hours_per_day


def _by_unit(time_us: Ids, first: Ids, n: Ids, unit_us: int) -> tuple[Ids, Ids]:
    """The units of time (minutes, hours) in which some pairs were active: (position of the pair, events) of each.

    first, n: [p] where the events of each pair start, and how many they are → [u] each.
    """
    of_pair = np.repeat(np.arange(len(first)), n)
    unit = time_us[_ranges(first, n)] // unit_us
    starts = np.append(True, (np.diff(of_pair) != 0) | (np.diff(unit) != 0))[: len(unit)]
    at = np.flatnonzero(starts)
    return of_pair[at], np.diff(np.append(at, len(unit)))


def _ranges(first: Ids, n: Ids) -> Ids:
    """first[0], first[0] + 1, … n[0] numbers, then those of first[1], …: [p] each → [Σ n]."""
    before = np.cumsum(n) - n
    shift: Ids = np.repeat(first - before, n)
    return shift + np.arange(len(shift))


def _equal(left: pa.ChunkedArray, right: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Where two columns without nulls are equal. [n] each → [n]."""
    equal: NDArray[np.bool_] = pc.equal(left, right).to_numpy()
    return equal
