"""Sums over users that the report is made of, worked out where Spark's tasks hold the rows; they add up over tasks.

A step is where an interest stands: PAST (the user's latest events), NEXT (the next event), or a number of days ahead.

Letters: n listed interests at steps.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features import columns as c
from features.windows import hour_codes
from features.workers import in_worker

PAST, NEXT = -1, 0
OTHERS = "all others"
_DAY_US = c.DAY_S * c.MICROS
_MONDAY_DAYS = 3  # from a Monday to 1970-01-01

STEP, FROM, TO, USERS, WEEK = "step", "from", "to", "users", "week"
_OF_SUMS = ("share", "move", "rest", "rest_move")  # each with its sum and its sum of squares
SUM_NAMES = tuple(f"{name}{power}" for name in _OF_SUMS for power in ("", "2"))
_TEXT, _CODE, _COUNT, _SUM = pa.string(), pa.int32(), pa.int64(), pa.float64()
# category_id is null in the sums over all users who have the step: there `share` and `move` are 0.
INTEREST_SUMS = pa.schema(
    [(c.CATEGORY_ID, _TEXT), (STEP, _CODE), (USERS, _COUNT), *((name, _SUM) for name in SUM_NAMES)]
)
FLOWS = pa.schema([(STEP, _CODE), (FROM, _TEXT), (TO, _TEXT), (USERS, _COUNT)])
# Of a week (days since 1970) and category: share, events; of a week: users active; of an hour of the week: events.
EVENT_SUMS = pa.schema(
    [(WEEK, _CODE), (c.CATEGORY_ID, _TEXT), (c.HOUR, _CODE), (c.SHARE, _SUM), (c.EVENTS, _COUNT), (USERS, _COUNT)]
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Points(NamedTuple):
    """Every listed interest of some users at every step that is told."""

    names: list[str]  # categories
    category: Ints  # [n] places in names
    user: Ints  # [n]
    step: Ints  # [n]
    share: Floats  # [n]
    past: Floats  # [n] share of the same interest at PAST


def points_of(interests: pa.Array) -> Points:
    """interests: the column of `scores_v1`, one list a user."""
    listed = interests.flatten()
    owner = np.repeat(np.arange(len(interests)), pc.list_value_length(interests).to_numpy(zero_copy_only=False))
    names = listed.field(c.CATEGORY_ID).dictionary_encode()
    past, following = (_floats(listed.field(name)) for name in (c.PAST_SHARE, c.PROBABILITY))
    days = listed.field(c.DAYS_AHEAD)
    ahead = days.flatten()
    of = np.repeat(np.arange(len(listed)), pc.list_value_length(days).to_numpy(zero_copy_only=False))
    told = ahead.field(c.SHARE).is_valid().to_numpy(zero_copy_only=False)
    entry = np.concatenate([np.arange(len(listed)), np.arange(len(listed)), of[told]])
    horizons = ahead.field(c.DAYS).to_numpy(zero_copy_only=False)[told]
    step = np.concatenate([np.full(len(listed), PAST), np.full(len(listed), NEXT), horizons]).astype(np.int64)
    share = np.concatenate([past, following, _floats(ahead.field(c.SHARE))[told]])
    codes = names.indices.to_numpy().astype(np.int64)
    return Points(names.dictionary.to_pylist(), codes[entry], owner[entry], step, share, past[entry])


def _floats(values: pa.Array) -> Floats:
    found: Floats = values.to_numpy(zero_copy_only=False).astype(np.float64)
    return found


@in_worker
def interest_sums(batches: Iterable[pa.RecordBatch], background: Mapping[str, float]) -> Iterator[pa.RecordBatch]:
    """Rows of scores_v1 by the model → INTEREST_SUMS.

    What a user's list leaves to 1 at a step belongs to the categories that it does not hold, in proportion to the
    background. rest: what such a category gets for each unit of its background; move: from PAST to the step.
    """
    for batch in batches:
        points = points_of(batch.column(c.INTERESTS))
        if len(points.share):
            yield pa.RecordBatch.from_pylist(list(_sums(points, background)), schema=INTEREST_SUMS)


def _sums(points: Points, background: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    steps, at = np.unique(points.step, return_inverse=True)
    pairs, pair = np.unique(points.user * len(steps) + at, return_inverse=True)
    base = np.array([background.get(name, 0.0) for name in points.names])[points.category]
    room = 1.0 - np.bincount(pair, base)

    def rest(share: Floats) -> Floats:
        left = np.maximum(1.0 - np.bincount(pair, share), 0.0)
        return np.divide(left, room, out=np.zeros_like(left), where=room > 1e-9)

    of_pair = rest(points.share)
    moved = of_pair - rest(points.past)
    cells = points.category * len(steps) + at
    values = (points.share, points.share - points.past, of_pair[pair], moved[pair])
    yield from _added(cells, values, lambda cell: (points.names[cell // len(steps)], int(steps[cell % len(steps)])))
    nothing = np.zeros(len(pairs))
    yield from _added(pairs % len(steps), (nothing, nothing, of_pair, moved), lambda cell: (None, int(steps[cell])))


def _added(cells: Ints, values: Sequence[Floats], named: Any) -> Iterator[dict[str, Any]]:
    """Count, sums and sums of squares of each cell. named: cell → category and step."""
    counts = np.bincount(cells)
    sums = [np.bincount(cells, of) for value in values for of in (value, value * value)]
    for cell in np.flatnonzero(counts).tolist():
        category, step = named(cell)
        row = {c.CATEGORY_ID: category, STEP: step, USERS: int(counts[cell])}
        yield row | {name: float(of[cell]) for name, of in zip(SUM_NAMES, sums, strict=True)}


@in_worker
def flow_counts(
    batches: Iterable[pa.RecordBatch], route: Sequence[int], shown: frozenset[str]
) -> Iterator[pa.RecordBatch]:
    """Rows of scores_v1 by the model → FLOWS, for each step of the route to the one after it.

    A user's main interest at a step is the one of the greatest share, ties broken by name; OTHERS where not shown.
    """
    for batch in batches:
        points = points_of(batch.column(c.INTERESTS))
        place = {name: rank for rank, name in enumerate(sorted(points.names))}
        rank = np.array([place[name] for name in points.names], np.int64)
        mains: list[dict[int, str]] = []
        for step in route:
            some = np.flatnonzero(points.step == step)
            order = some[np.lexsort((rank[points.category[some]], -points.share[some], points.user[some]))]
            users, first = np.unique(points.user[order], return_index=True)
            names = [points.names[code] for code in points.category[order[first]].tolist()]
            mains.append({u: n if n in shown else OTHERS for u, n in zip(users.tolist(), names, strict=True)})
        counts: dict[tuple[int, str, str], int] = {}
        for step, (before, after) in zip(route, pairwise(mains), strict=False):
            for user in before.keys() & after.keys():
                key = (step, before[user], after[user])
                counts[key] = counts.get(key, 0) + 1
        rows = [dict(zip(FLOWS.names, (*key, n), strict=True)) for key, n in counts.items()]
        yield pa.RecordBatch.from_pylist(rows, schema=FLOWS)


@in_worker
def event_sums(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """(user_id, category_id, time_us) of all events of some users → EVENT_SUMS; the partition is held whole.

    share: over users, of the share that the category has of a user's events of the week; events without a category
    count for their hour only.
    """
    some = [batch for batch in batches if batch.num_rows]
    if not some:
        return
    held = pa.Table.from_batches(some)
    time_us = held["time_us"].to_numpy()
    hours = np.bincount(hour_codes(time_us) - c.FIRST_HOUR)
    rows: list[dict[str, Any]] = [{c.HOUR: at, c.EVENTS: int(hours[at])} for at in np.flatnonzero(hours).tolist()]
    known = held[c.CATEGORY_ID].is_valid().to_numpy()
    if known.any():
        named = held.select([c.USER_ID, c.CATEGORY_ID])
        rows += _weeks(named.filter(pa.array(known)), time_us[known] // _DAY_US)
    yield pa.RecordBatch.from_pylist(rows, schema=EVENT_SUMS)


def _weeks(events: pa.Table, day: Ints) -> Iterator[dict[str, Any]]:
    user, category = (
        pc.dictionary_encode(events[name]).unify_dictionaries().combine_chunks() for name in (c.USER_ID, c.CATEGORY_ID)
    )
    names, weeks = category.dictionary.to_pylist(), day - (day + _MONDAY_DAYS) % 7
    first, n_weeks = int(weeks.min()), int(weeks.max() - weeks.min()) // 7 + 1
    week = (weeks - first) // 7
    of_user = user.indices.to_numpy().astype(np.int64) * n_weeks + week
    codes = category.indices.to_numpy().astype(np.int64)
    cells, counts = np.unique(of_user * len(names) + codes, return_counts=True)
    active, all_of = np.unique(of_user, return_counts=True)
    share = counts / all_of[np.searchsorted(active, cells // len(names))]
    place = (cells // len(names)) % n_weeks * len(names) + cells % len(names)  # of week and category
    shares, events_of = np.bincount(place, share), np.bincount(place, counts).astype(np.int64)
    for at in np.flatnonzero(events_of).tolist():
        monday, name = first + 7 * (at // len(names)), names[at % len(names)]
        yield {WEEK: monday, c.CATEGORY_ID: name, c.SHARE: float(shares[at]), c.EVENTS: int(events_of[at])}
    for at, n in enumerate(np.bincount(active % n_weeks).tolist()):
        if n:
            yield {WEEK: first + 7 * at, USERS: n}
