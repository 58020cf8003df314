"""The session kernel against the slow oracle: ties, repeats, noise, midnights, year's ends, times before 1970."""

import json
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features import columns as c
from features.denoising import DenoisingSpec
from features.sessions import Cut, CutRules, denoised_sessions, order_events, session_ids, sessions_of
from tests.oracles import DAY_US, US, Event, Flag, Limits, Session, slow_denoised, slow_sessions

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
    st.tuples(st.sampled_from(["ann", "bob", "", "é"]), TIMES, st.integers(-2, 2)).map(lambda event: Event(*event)),
    min_size=1,
    max_size=40,
)
# Few users and close times, so that small limits are met; an event's item and action follow from its id.
NOISY_TIMES = st.one_of(
    st.integers(-30, 30).map(lambda k: NEW_YEAR_US + k * US // 2),
    st.integers(-30, 30).map(lambda k: NEW_YEAR_US + k * 1_200 * US),
    st.integers(-3, 3).map(lambda k: NEW_YEAR_US + DAY_US + k),
)
NOISY_LOGS = st.lists(
    st.builds(
        lambda user, time_us, k: Event(user, time_us, k, f"i{k // 2 % 2}", ("view", "buy")[k // 4]),
        st.sampled_from(["ann", "bob"]),
        NOISY_TIMES,
        st.integers(0, 7),
    ),
    min_size=1,
    max_size=60,
)
LIMITS = st.builds(
    Limits, st.integers(0, 12), st.integers(0, 8), st.integers(0, 8), st.integers(0, 10), st.sampled_from([0, 1, 2])
)


def table_of(events: list[Event]) -> pa.Table:
    return pa.table(
        {
            c.USER_ID: pa.array([e.user for e in events], pa.string()),
            c.EVENT_ID: pa.array([e.event_id for e in events], pa.int64()),
            c.ITEM_ID: pa.array([e.item for e in events], pa.string()),
            c.CATEGORY_ID: pa.array([None] * len(events), pa.string()),
            c.ACTION: pa.array([e.action for e in events], pa.string()),
            c.EVENT_TIME: pa.array([e.time_us for e in events], pa.timestamp("us", tz="UTC")),
        }
    )


def rules_of(lateness_days: int, last_day: date) -> CutRules:
    end_us = ((last_day - date(1970, 1, 1)).days + 1) * DAY_US
    return CutRules(GAP_S * US, lateness_days * DAY_US, end_us)


def spec_of(limits: Limits) -> DenoisingSpec:
    return DenoisingSpec(
        bot_events_per_day=limits.events_per_day,
        bot_events_per_minute=limits.events_per_minute,
        bot_hours_per_day=limits.hours_per_day,
        max_user_day_events=limits.kept_per_day,
        burst_s=limits.burst_s,
    )


def sessions_in(finished: pa.Table, opened: pa.Table) -> list[Session]:
    found = []
    for state, out in zip(("finished", "open"), (finished, opened), strict=True):
        starts, ends = (out[name].cast(pa.int64()).to_pylist() for name in (c.SESSION_START, c.SESSION_END))
        for row, start, end in zip(out.to_pylist(), starts, ends, strict=True):
            ids = tuple(event[c.EVENT_ID] for event in row[c.EVENTS])
            assert row[c.N_EVENTS] == len(ids)
            found.append(Session(row[c.USER_ID], start, end, ids, state))
    return found


def events_in(table: pa.Table) -> list[Event]:
    times = table[c.EVENT_TIME].cast(pa.int64()).to_pylist()
    rows = zip(table.to_pylist(), times, strict=True)
    return [Event(row[c.USER_ID], time, row[c.EVENT_ID], row[c.ITEM_ID], row[c.ACTION]) for row, time in rows]


def flags_in(table: pa.Table) -> list[Flag]:
    found = []
    for row in table.to_pylist():
        day = (row[c.DAY] - date(1970, 1, 1)).days
        found.append(Flag(row[c.USER_ID], day, row[c.RULE], row[c.VALUE], row[c.EVENTS], row[c.CLOSED]))
    return found


def kernel_sessions(events: list[Event], lateness_days: int, last_day: date) -> list[Session]:
    return sessions_in(*sessions_of(table_of(events), rules_of(lateness_days, last_day)))


@settings(max_examples=300)
@given(log=LOGS, lateness_days=st.integers(0, 3), days=st.integers(-2, 2))
@example(log=[Event("ann", NEW_YEAR_US, 1)] * 3, lateness_days=0, days=0)
def test_kernel_equals_the_slow_oracle(log: list[Event], lateness_days: int, days: int) -> None:
    last_day = date(2024, 1, 1) + timedelta(days=days)
    fast = kernel_sessions(log, lateness_days, last_day)
    assert len(fast) == len(set(fast))
    assert set(fast) == slow_sessions(log, GAP_S, lateness_days, last_day)


@settings(max_examples=300)
@given(log=NOISY_LOGS, limits=LIMITS, lateness_days=st.integers(0, 2), days=st.integers(-2, 2))
def test_denoising_equals_the_slow_oracle(log: list[Event], limits: Limits, lateness_days: int, days: int) -> None:
    last_day = date(2024, 1, 1) + timedelta(days=days)
    cut = denoised_sessions(table_of(log), rules_of(lateness_days, last_day), spec_of(limits))
    expected = slow_denoised(log, limits, lateness_days, last_day)
    sessions, held, flags = sessions_in(cut.finished, cut.opened), events_in(cut.held), flags_in(cut.flagged)
    assert (len(sessions), len(held), len(flags)) == (len(set(sessions)), len(set(held)), len(set(flags)))
    assert (set(held), set(flags), cut.n_capped) == (expected.held, expected.flags, expected.n_capped)
    assert set(sessions) == slow_sessions(expected.kept, GAP_S, lateness_days, last_day, limits.burst_s)
    assert sorted(raw_ids(cut)) == sorted((event.user, event.event_id) for event in expected.bots)
    in_sessions = sum(len(session.events) for session in sessions)
    gone = len(held) + cut.bots.num_rows + cut.n_capped + cut.n_burst
    assert in_sessions + gone == cut.n_distinct == len(set(log))


def raw_ids(cut: Cut) -> list[tuple[str, int]]:
    rows = [json.loads(raw) for raw in cut.bots[c.RAW].to_pylist()]
    return [(row[c.USER_ID], row[c.EVENT_ID]) for row in rows]


@settings(max_examples=200)
@given(log=NOISY_LOGS, limits=LIMITS, data=st.data())
def test_day_by_day_with_late_events_equals_one_pass(log: list[Event], limits: Limits, data: st.DataObject) -> None:
    lateness, spec = 1, spec_of(limits)
    arrival = [event.time_us // DAY_US + data.draw(st.integers(0, lateness)) for event in log]
    first, last = min(arrival), max(arrival) + lateness + 2
    days = [date(1970, 1, 1) + timedelta(days=day) for day in range(first, last)]
    whole = denoised_sessions(table_of(log), rules_of(lateness, days[-1]), spec)
    finished: list[Session] = []
    flags: set[Flag] = set()
    bots: list[tuple[str, int]] = []
    n_capped = n_burst = 0
    carried = table_of([])
    for day in days:
        new = [event for event, at in zip(log, arrival, strict=True) if at == (day - date(1970, 1, 1)).days]
        events = pa.concat_tables([carried, table_of(new)])
        if not events.num_rows:
            continue
        cut = denoised_sessions(events, rules_of(lateness, day), spec)
        finished += [session for session in sessions_in(cut.finished, cut.opened) if session.state == "finished"]
        flags |= set(flags_in(cut.flagged))
        bots += raw_ids(cut)
        n_capped, n_burst = n_capped + cut.n_capped, n_burst + cut.n_burst
        schema = carried.schema
        carried = pa.concat_tables([carried_events(cut.opened), cut.held.select(schema.names).cast(schema)])
    assert carried.num_rows == whole.opened.num_rows == whole.held.num_rows == 0
    assert sorted(finished) == sorted(sessions_in(whole.finished, whole.opened))
    assert {flag[:3] for flag in flags} == {flag[:3] for flag in flags_in(whole.flagged)}
    assert {flag for flag in flags if flag.closed} == set(flags_in(whole.flagged))
    assert (sorted(bots), n_capped, n_burst) == (sorted(raw_ids(whole)), whole.n_capped, whole.n_burst)


def carried_events(sessions: pa.Table) -> pa.Table:
    """The events of open sessions, flat, as Spark gives them to the next run."""
    rows = [{c.USER_ID: row[c.USER_ID], **event} for row in sessions.to_pylist() for event in row[c.EVENTS]]
    return pa.Table.from_pylist(rows, schema=table_of([]).schema)


@settings(max_examples=50)
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


def test_events_are_ordered_by_id_where_times_are_equal_and_repeats_left_out() -> None:
    user = np.array([0, 0, 0, 1], np.int32)
    time_us, event_id = np.array([5, 5, 5, 5]), np.array([9, 3, 9, 9])
    order, first = order_events(user, time_us, event_id, GAP_S * US)
    assert event_id[order].tolist() == [3, 9, 9]
    assert first.tolist() == [0, 2]
