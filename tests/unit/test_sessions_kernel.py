"""The session kernel against the slow oracle: ties, repeats, midnights, year's ends, times before 1970."""

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features import columns as c
from features.sessions import CutRules, order_events, session_ids, sessions_of
from tests.oracles import DAY_US, US, Event, Session, slow_sessions

GAP_S = 1_800
NEW_YEAR_US = 1_704_067_200 * US  # 2024-01-01
TIMES = st.one_of(
    st.integers(-3, 3).map(lambda k: NEW_YEAR_US + k * GAP_S * US),
    st.integers(-4, 4).map(lambda k: NEW_YEAR_US + k * DAY_US),
    st.integers(-5, 5).map(lambda k: NEW_YEAR_US + DAY_US - GAP_S * US + k),
    st.integers(-10 * DAY_US, 10 * DAY_US),
    st.integers(NEW_YEAR_US - 2 * DAY_US, NEW_YEAR_US + 2 * DAY_US),
    st.just(4_102_444_800 * US),  # the year 2100
)
LOGS = st.lists(
    st.builds(Event, st.sampled_from(["ann", "bob", "", "é"]), TIMES, st.integers(-2, 2)), min_size=1, max_size=40
)


def table_of(events: list[Event]) -> pa.Table:
    return pa.table(
        {
            c.USER_ID: pa.array([e.user for e in events]),
            c.EVENT_ID: pa.array([e.event_id for e in events], pa.int64()),
            c.ITEM_ID: pa.array([e.item for e in events]),
            c.CATEGORY_ID: pa.array([None] * len(events), pa.string()),
            c.ACTION: pa.array(["view"] * len(events)),
            c.EVENT_TIME: pa.array([e.time_us for e in events], pa.timestamp("us", tz="UTC")),
        }
    )


def kernel_sessions(events: list[Event], lateness_days: int, last_day: date) -> list[Session]:
    end_us = ((last_day - date(1970, 1, 1)).days + 1) * DAY_US
    rules = CutRules(GAP_S * US, lateness_days * DAY_US, end_us)
    found = []
    for state, out in zip(("finished", "open"), sessions_of(table_of(events), rules), strict=True):
        starts, ends = (out[name].cast(pa.int64()).to_pylist() for name in (c.SESSION_START, c.SESSION_END))
        for row, start, end in zip(out.to_pylist(), starts, ends, strict=True):
            ids = tuple(event[c.EVENT_ID] for event in row[c.EVENTS])
            assert row[c.N_EVENTS] == len(ids)
            found.append(Session(row[c.USER_ID], start, end, ids, state))
    return found


@settings(max_examples=300, deadline=None)
@given(log=LOGS, lateness_days=st.integers(0, 3), days=st.integers(-2, 2))
@example(log=[Event("ann", NEW_YEAR_US, 1)] * 3, lateness_days=0, days=0)
def test_kernel_equals_the_slow_oracle(log: list[Event], lateness_days: int, days: int) -> None:
    last_day = date(2024, 1, 1) + timedelta(days=days)
    fast = kernel_sessions(log, lateness_days, last_day)
    assert len(fast) == len(set(fast))
    assert set(fast) == slow_sessions(log, GAP_S, lateness_days, last_day)


@settings(max_examples=50, deadline=None)
@given(log=LOGS, data=st.data())
def test_order_of_the_input_does_not_matter(log: list[Event], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(log))
    assert set(kernel_sessions(log, 1, date(2024, 1, 1))) == set(kernel_sessions(shuffled, 1, date(2024, 1, 1)))


def test_a_silence_of_exactly_the_gap_continues_the_session() -> None:
    log = [Event("ann", NEW_YEAR_US, 1), Event("ann", NEW_YEAR_US + GAP_S * US, 2)]
    assert len(kernel_sessions(log, 0, date(2024, 1, 1))) == 1
    log[1] = log[1]._replace(time_us=log[1].time_us + 1)
    assert len(kernel_sessions(log, 0, date(2024, 1, 1))) == 2


def test_session_ids_are_16_hex_digits_of_user_and_start_alone() -> None:
    names, start_us = pa.array(["ann", "bob"]), np.array([NEW_YEAR_US, NEW_YEAR_US, NEW_YEAR_US + 1])
    ids = session_ids(names, np.array([0, 1, 0], np.int32), start_us).to_pylist()
    assert len(set(ids)) == 3
    assert all(len(text) == 16 and set(text) <= set("0123456789abcdef") for text in ids)
    other = session_ids(pa.array(["bob", "cid", "ann"]), np.array([2], np.int32), start_us[:1]).to_pylist()
    assert other == ids[:1]  # the same on every machine, whoever else is in the log
    assert ids[0] == "c1ddfedd35ddb26a"  # written down: a new version must not rename old sessions


def test_order_events_breaks_ties_by_id_and_leaves_out_repeats() -> None:
    user = np.array([0, 0, 0, 1], np.int32)
    time_us, event_id = np.array([5, 5, 5, 5]), np.array([9, 3, 9, 9])
    order, first = order_events(user, time_us, event_id, GAP_S * US)
    assert event_id[order].tolist() == [3, 9, 9]
    assert first.tolist() == [0, 2]
