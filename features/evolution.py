"""How users' interests evolved: their events month by month, and what the model expected at the end of each month.

Letters: n events, r rows, Z numbers of a state, K kept.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features import columns as c
from features.left_out import ENCODED, Coding, states_at
from features.scoring import Scorer

Weighted = tuple[tuple[str, float], ...]  # categories with shares or probabilities, falling, ties by name


class Month(NamedTuple):
    """One month of one user, UTC. `shares` are of the events with a category, `expected` of the event after the month.

    expected is empty before the first event. The month of the cutoff ends there.
    """

    month: str  # YYYY-MM
    events: int
    shares: Weighted
    expected: Weighted


def months_of(
    events: pa.Table, as_of_us: int, n_months: int, k: int, scorer: Scorer, coding: Coding
) -> dict[str, list[Month]]:
    """The latest months of each user up to a cutoff, from his first event on, oldest first; the k greatest of each.

    events: columns ENCODED and CATEGORY_ID (null where none), all before as_of_us.
    """
    expected = _expected(events, as_of_us, n_months, k, scorer, coding)
    counts: dict[tuple[str, str], Counter[str | None]] = defaultdict(Counter)
    named = pc.strftime(events["time_us"].cast(pa.timestamp("us", "UTC")), "%Y-%m")
    columns = (events[c.USER_ID], named, events[c.CATEGORY_ID])
    first: dict[str, str] = {}
    for user, month, category in zip(*(column.to_pylist() for column in columns), strict=True):
        counts[user, month][category] += 1
        first[user] = min(month, first.get(user, month))
    return {
        user: [
            _month(month, counts[user, month], expected.get((user, month), ()), k)
            for month, _ in _ends(as_of_us, n_months)
            if month >= since
        ]
        for user, since in first.items()
    }


def _month(month: str, counts: Counter[str | None], expected: Weighted, k: int) -> Month:
    known = {category: n for category, n in counts.items() if category is not None}
    n_known = sum(known.values())
    shares = sorted(((category, n / n_known) for category, n in known.items()), key=lambda entry: (-entry[1], entry[0]))
    return Month(month, sum(counts.values()), tuple(shares[:k]), expected)


def _expected(
    events: pa.Table, as_of_us: int, n_months: int, k: int, scorer: Scorer, coding: Coding
) -> dict[tuple[str, str], Weighted]:
    """(user, month) → the likeliest categories after the events until its end."""
    users = events[c.USER_ID].combine_chunks().dictionary_encode()
    numbered = events.select(list(ENCODED)).set_column(0, c.USER_ID, users.indices.cast(pa.string()))
    names, tokens, found = users.dictionary.to_pylist(), scorer.categories.tokens, {}
    for month, end_us in _ends(as_of_us, n_months):
        before = numbered.filter(pc.less(numbered["time_us"], end_us))
        if not len(before):
            continue
        number, histories, state = states_at(before, end_us, scorer, coding)
        _, _, ids, p = scorer.top_of(
            state, histories.next_gap, histories.channels, histories.length, 1, min(k, len(tokens) - c.FIRST_ID)
        )
        listed = np.array(tokens.take(pa.array(ids.ravel())).to_pylist()).reshape(ids.shape)
        for at, user in enumerate(number.tolist()):
            found[names[user], month] = tuple(zip(listed[at].tolist(), p[at].tolist(), strict=True))
    return found


def _ends(as_of_us: int, n_months: int) -> Iterator[tuple[str, int]]:
    """The latest months that began before an instant, oldest first, and when they end: at the instant at the latest."""
    last = datetime.fromtimestamp((as_of_us - 1) // c.MICROS, UTC)
    for back in reversed(range(n_months)):
        month = last.year * 12 + last.month - 1 - back
        start, end = (datetime(at // 12, at % 12 + 1, 1, tzinfo=UTC) for at in (month, month + 1))
        yield f"{start:%Y-%m}", min(as_of_us, round(end.timestamp()) * c.MICROS)
