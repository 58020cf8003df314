"""Denoising on a real Spark, night after night: bots, heavy users, bursts and bounces, with late events among them."""

import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import (
    FLAGGED_USERS,
    HELD_EVENTS,
    OPEN_SESSIONS,
    REJECTED_EVENTS,
    SESSIONS,
    Contract,
    ContractError,
)
from jobs.histories import build_scoring_sequences
from jobs.layers import read_sequences
from jobs.sessionize import DENOISED, Sessionized, sessionize, summary
from jobs.settings import Settings, load_settings
from jobs.store import Store
from jobs.vocabulary import build_vocabulary
from tests.logs import HEADER, SOURCE, line, write_log

MADE_BY = "jobs/sessionize.py"
FIRST, SECOND, THIRD, FOURTH = (date(2024, 3, day) for day in (1, 2, 3, 4))
LIMITS = {
    "bot_events_per_day": 8,
    "bot_events_per_minute": 4,
    "bot_hours_per_day": 6,
    "max_user_day_events": 6,
    "burst_s": 1,
}


def settings(lateness_days: int = 1, **limits: int) -> Settings:
    limits = dict.fromkeys(LIMITS, 0) | limits
    assignments = [f"denoising.{name}={value}" for name, value in limits.items()]
    return load_settings(assignments=[*assignments, f"sessions.lateness_days={lateness_days}"])


def run(
    spark: SparkSession, settings: Settings, root: Path, log: str, day: date, first: date | None = None
) -> Sessionized:
    first = first or day
    return sessionize(spark, settings, SOURCE, [log], str(root), first, day, first == FIRST)


def rows(spark: SparkSession, root: Path, contract: Contract, day: date) -> list[dict[str, Any]]:
    frame = Store(str(root)).read(spark, contract, day, MADE_BY)
    return [row.asDict(recursive=True) for row in frame.collect()]


def flags(spark: SparkSession, root: Path, *days: date) -> set[tuple[str, str, str, int, int, bool]]:
    """(user, day, rule, value, events, closed) of the runs of some days."""
    found = [row for day in days for row in rows(spark, root, FLAGGED_USERS, day)]
    return {(r[c.USER_ID], str(r[c.DAY]), r[c.RULE], r[c.VALUE], r[c.EVENTS], r[c.CLOSED]) for r in found}


def counters(root: Path, day: date) -> dict[str, int]:
    return dict(Store(str(root)).manifest(SESSIONS.name, day, MADE_BY).counters)


def minutes(user: str, day: date, *times: str, item: str = "i") -> list[str]:
    return [line(user, f"{item}{k}", when=f"{day} {time}") for k, time in enumerate(times)]


def test_a_bot_is_listed_and_its_events_lie_among_the_rejected_ones(spark: SparkSession, tmp_path: Path) -> None:
    crawler = [line("bot", f"i{k}", when=f"2024-03-01 12:{k // 6:02d}:{k % 6:02d}") for k in range(12)]
    people = [*minutes("ann", FIRST, "09:00", "09:10"), *minutes("bot", SECOND, "09:00")]
    log = write_log(tmp_path / "1.csv", *crawler, crawler[0], *people[:2])
    done = run(spark, settings(0, **{**LIMITS, "max_user_day_events": 0}), tmp_path / "out", log, FIRST)
    assert flags(spark, tmp_path / "out", FIRST) == {
        ("bot", "2024-03-01", "events_per_day", 12, 12, True),
        ("bot", "2024-03-01", "events_per_minute", 6, 12, True),
    }
    assert {row[c.USER_ID] for row in rows(spark, tmp_path / "out", SESSIONS, FIRST)} == {"ann"}
    rejected = rows(spark, tmp_path / "out", REJECTED_EVENTS, FIRST)
    assert {row[c.REASON] for row in rejected} == {"bot"}
    events = [json.loads(row[c.RAW]) for row in rejected]
    assert sorted(event[c.ITEM_ID] for event in events) == sorted(f"i{k}" for k in range(12))
    (event,) = (event for event in events if event[c.ITEM_ID] == "i7")
    del event[c.EVENT_ID]
    assert event == {
        c.USER_ID: "bot", c.ITEM_ID: "i7", c.CATEGORY_ID: "c1", c.ACTION: "view",
        c.EVENT_TIME: "2024-03-01T12:01:01.000000Z",
    }  # fmt: skip
    found = counters(tmp_path / "out", FIRST)
    assert (found["flagged_users"], found["events_flagged"], found["rejected_bot"], found["events_held"]) == (
        1, 12, 12, 0,
    )  # fmt: skip
    assert (done.duplicates, done.rejected, found["events"]) == (1, {}, 2)
    assert summary(done).endswith("; 1 users flagged; events taken out: 12 flagged for good")

    # The next day it is judged anew.
    log = write_log(tmp_path / "2.csv", *people[2:])
    run(spark, settings(0, **LIMITS), tmp_path / "out", log, SECOND)
    assert flags(spark, tmp_path / "out", SECOND) == set()
    assert {row[c.USER_ID] for row in rows(spark, tmp_path / "out", SESSIONS, SECOND)} == {"bot"}


def test_someone_active_at_every_hour_is_a_bot(spark: SparkSession, tmp_path: Path) -> None:
    steady = minutes("bot", FIRST, *(f"{hour:02d}:30" for hour in range(6)))
    human = minutes("ann", FIRST, *(f"{hour:02d}:{minute}" for hour in range(5) for minute in (10, 50)))
    log = write_log(tmp_path / "1.csv", *steady, *human)
    run(spark, settings(0, bot_hours_per_day=6), tmp_path / "out", log, FIRST)
    assert flags(spark, tmp_path / "out", FIRST) == {("bot", "2024-03-01", "hours_per_day", 6, 6, True)}


def test_of_a_heavy_users_day_the_latest_events_stay(spark: SparkSession, tmp_path: Path) -> None:
    log = write_log(tmp_path / "1.csv", *minutes("ann", FIRST, *(f"12:{k:02d}" for k in range(9))))
    run(spark, settings(0, max_user_day_events=6), tmp_path / "out", log, FIRST)
    (session,) = rows(spark, tmp_path / "out", SESSIONS, FIRST)
    assert [event[c.ITEM_ID] for event in session[c.EVENTS]] == [f"i{k}" for k in range(3, 9)]
    assert flags(spark, tmp_path / "out", FIRST) == {("ann", "2024-03-01", "capped", 9, 3, True)}
    assert counters(tmp_path / "out", FIRST)["events_capped"] == 3
    assert counters(tmp_path / "out", FIRST)["duplicates"] == 0


def test_bursts_leave_their_first_event_once_the_session_is_finished(spark: SparkSession, tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "1.csv",
        line(item="a", when="2024-03-01 12:00:00"),
        line(item="a", when="2024-03-01 12:00:01"),
        line(item="a", when="2024-03-01 12:00:02"),
        line(item="a", what="order", when="2024-03-01 12:00:03"),
        line(item="b", when="2024-03-01 12:00:04"),
        line(item="b", when="2024-03-01 12:00:06"),
        line(item="b", when="2024-03-01 12:00:07"),
    )
    run(spark, settings(1, burst_s=1), tmp_path / "out", log, FIRST)
    assert rows(spark, tmp_path / "out", OPEN_SESSIONS, FIRST)[0][c.N_EVENTS] == 7
    run(spark, settings(1, burst_s=1), tmp_path / "out", write_log(tmp_path / "2.csv"), SECOND)
    (session,) = rows(spark, tmp_path / "out", SESSIONS, SECOND)
    kept = [(event[c.ITEM_ID], event[c.ACTION], event[c.EVENT_TIME].second) for event in session[c.EVENTS]]
    assert kept == [("a", "view", 0), ("a", "buy", 3), ("b", "view", 4), ("b", "view", 6)]
    assert (session[c.N_EVENTS], session[c.SESSION_END].second) == (4, 6)
    found = counters(tmp_path / "out", SECOND)
    assert (found["events_burst"], found["events"], found["duplicates"]) == (3, 4, 0)


def late_log() -> dict[date, list[str]]:
    """Rows by day of arrival; an event of the day before is late by one."""
    hours = [f"{hour:02d}:00" for hour in range(10, 18)]
    return {
        FIRST: [
            *minutes("late", FIRST, *hours[:5]),  # 5 hours of the 6 that make a bot …
            *minutes("bot", FIRST, *(f"12:00:{k:02d}" for k in range(5))),
            *minutes("heavy", FIRST, *(f"12:{k:02d}" for k in range(7))),
            *minutes("ann", FIRST, "12:00", "23:50"),
            line("ann", "a", when="2024-03-01 12:00:00"),
            line("ann", "a", when="2024-03-01 12:00:01"),
        ],
        SECOND: [
            *minutes("late", FIRST, *hours[5:6], item="late"),  # … and the sixth, late
            *minutes("bot", FIRST, "12:00:30", "20:00", item="late"),  # after the flag
            *minutes("bot", FIRST, "12:00:00"),  # a repeated event of a flagged day
            *minutes("bot", SECOND, "12:00", "23:59"),
            *minutes("heavy", FIRST, "11:59", "23:40", item="late"),
            *minutes("ann", SECOND, "00:10", "12:00"),
        ],
        THIRD: [
            *minutes("late", THIRD, "09:00"),
            *minutes("bot", THIRD, *(f"12:00:{k:02d}" for k in range(6))),
            *minutes("heavy", SECOND, "00:05", item="late"),
        ],
        FOURTH: [*minutes("bot", THIRD, "13:00"), *minutes("ann", FOURTH, *(f"12:{k:02d}" for k in range(7)))],
    }


def test_a_backfill_in_one_pass_equals_day_by_day(spark: SparkSession, tmp_path: Path) -> None:
    source = SOURCE.model_copy(update={"columns": {**SOURCE.columns, "ingest_time": "got"}})
    for day, lines in late_log().items():
        got = int(line(when=f"{day} 23:59:59").rsplit(",", 1)[1])
        folder = tmp_path / "raw" / f"dt={day}"
        write_log(folder / "log.csv", *(f"{text},{got}" for text in lines), header=f"{HEADER},got")
    patient, days = settings(1, **LIMITS), (FIRST, SECOND, THIRD, FOURTH)
    log, daily, backfill = str(tmp_path / "raw" / "dt={date}"), tmp_path / "daily", tmp_path / "backfill"
    for day in days:
        sessionize(spark, patient, source, [log], str(daily), day, day, day == FIRST)
    sessionize(spark, patient, source, [log], str(backfill), FIRST, FOURTH, True)

    def text(root: Path, contract: Contract, *runs: date) -> list[str]:
        return sorted(str(row) for day in runs for row in rows(spark, root, contract, day))

    assert text(daily, SESSIONS, *days) == text(backfill, SESSIONS, FOURTH)
    assert text(daily, OPEN_SESSIONS, FOURTH) == text(backfill, OPEN_SESSIONS, FOURTH)
    assert text(daily, HELD_EVENTS, FOURTH) == text(backfill, HELD_EVENTS, FOURTH)
    assert text(daily, REJECTED_EVENTS, *days) == text(backfill, REJECTED_EVENTS, FOURTH)
    whole = flags(spark, backfill, FOURTH)
    assert {flag[:3] for flag in flags(spark, daily, *days)} == {flag[:3] for flag in whole}
    assert {flag for flag in flags(spark, daily, *days) if flag[-1]} == {flag for flag in whole if flag[-1]}
    assert whole == {
        ("late", "2024-03-01", "hours_per_day", 6, 6, True),
        ("bot", "2024-03-01", "events_per_minute", 6, 7, True),
        ("bot", "2024-03-01", "capped", 7, 7, True),
        ("heavy", "2024-03-01", "events_per_day", 9, 9, True),
        ("heavy", "2024-03-01", "capped", 9, 9, True),
        ("bot", "2024-03-03", "events_per_minute", 6, 7, True),
        ("bot", "2024-03-03", "capped", 7, 7, True),
        ("ann", "2024-03-04", "capped", 7, 1, False),
    }
    # What is known at once: the bot and the heavy user by the first night, the late one by the second.
    assert {flag[:3] for flag in flags(spark, daily, FIRST)} == {
        ("bot", "2024-03-01", "events_per_minute"),
        ("heavy", "2024-03-01", "capped"),
    }
    assert {row[c.USER_ID] for row in rows(spark, daily, OPEN_SESSIONS, FIRST)} == {"late", "heavy", "ann"}
    assert {row[c.USER_ID] for row in rows(spark, daily, OPEN_SESSIONS, SECOND)} == {"bot", "ann"}
    summed: Counter[str] = Counter()
    for day in days:
        summed.update({name: counters(daily, day)[name] for name in (*DENOISED, "duplicates", "rows_read")})
    gone = ("events_flagged", "events_capped", "events_burst", "duplicates", "rows_read")
    assert {name: summed[name] for name in gone} == {name: counters(backfill, FOURTH)[name] for name in gone}
    assert [counters(backfill, FOURTH)[name] for name in gone[:4]] == [29, 0, 1, 1]


def test_whoever_a_late_event_makes_a_bot_is_scored_no_more(spark: SparkSession, tmp_path: Path) -> None:
    root, patient = tmp_path / "out", settings(1, bot_hours_per_day=6)
    scored = []
    for day in (FIRST, SECOND):
        run(spark, patient, root, write_log(tmp_path / f"{day}.csv", *late_log()[day]), day)
        if day == FIRST:
            build_vocabulary(spark, patient, str(root), day)
        build_scoring_sequences(spark, patient, str(root), day)
        scored.append({row[c.USER_ID] for row in read_sequences(spark, Store(str(root)), day).collect()})
    assert scored[0] == {"late", "bot", "heavy", "ann"}
    assert scored[1] == {"bot", "heavy", "ann"}


def test_a_day_without_what_its_predecessor_held_back_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    root, patient = tmp_path / "out", settings(1, **LIMITS)
    run(spark, patient, root, write_log(tmp_path / "1.csv", line()), FIRST)
    log = write_log(tmp_path / "2.csv", line(when="2024-03-02 12:00"))
    run(spark, patient, root, log, SECOND)
    found = Store(str(root)).manifest(SESSIONS.name, SECOND, MADE_BY)
    held = Store(str(root)).manifest(HELD_EVENTS.name, FIRST, MADE_BY)
    assert found.inputs[f"{HELD_EVENTS.name}/{FIRST}"] == held.hash
    Store(str(root)).retract(HELD_EVENTS, FIRST)
    with pytest.raises(ContractError, match="held_events_v1 has no finished partition for 2024-03-01"):
        run(spark, patient, root, log, SECOND)


def test_denoising_is_part_of_the_configuration_hash(spark: SparkSession, tmp_path: Path) -> None:
    log, hashes = write_log(tmp_path / "1.csv", line()), set()
    for burst_s in (0, 1):
        run(spark, settings(0, burst_s=burst_s), tmp_path / str(burst_s), log, FIRST)
        hashes.add(Store(str(tmp_path / str(burst_s))).manifest(SESSIONS.name, FIRST, MADE_BY).config_hash)
    assert len(hashes) == 2


def test_short_views_are_refused_as_bounces(spark: SparkSession, tmp_path: Path) -> None:
    source = SOURCE.model_copy(update={"columns": {**SOURCE.columns, "dwell_s": "stayed"}})
    dwell = {"short": "1.9", "long": "2", "unknown": "", "none": "-1", "text": "n/a"}
    texts = [f"{line(item=item)},{stayed}" for item, stayed in dwell.items()]
    log = write_log(tmp_path / "1.csv", *texts, f"{line(item='bought', what='order')},0", header=f"{HEADER},stayed")
    for min_dwell_s, expected in ((2, {"bounce": 1}), (0, {})):
        spec = load_settings(assignments=[f"cleaning.min_dwell_s={min_dwell_s}"])
        root = tmp_path / str(min_dwell_s)
        done = sessionize(spark, spec, source, [log], str(root), FIRST, FIRST, True)
        assert done.rejected == expected
        assert counters(root, FIRST)["events"] == 6 - len(expected)
    (row,) = rows(spark, tmp_path / "2", REJECTED_EVENTS, FIRST)
    assert json.loads(row[c.RAW])["item"] == "short"
