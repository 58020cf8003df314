"""Agreement with a log's own sessions, against a plain double loop over pairs of events."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.session_agreement import Agreement, agreement, agreements, main, read_events
from features import columns as c
from jobs.inputs import load_source

MINUTE_US = 60 * c.MICROS
Event = tuple[int, int, int, int]  # user, minute, item, the log's session

# ann: the log has one session where we cut (0 and 40 min), and two where we don't (41 min); bob: we agree.
LITERAL = [(0, 0, 1, 7), (0, 40, 2, 7), (0, 41, 3, 8), (1, 0, 1, 7), (1, 5, 2, 7), (1, 5, 2, 7)]


def slow_agreement(events: list[Event], gap_min: int) -> Agreement:
    """Every pair of every user's distinct events, looked at one by one."""
    once = sorted(set(events))
    ours = {}
    for user in {event[0] for event in once}:
        of_user = [event for event in once if event[0] == user]
        number = 0
        ours[of_user[0]] = (user, number)
        for before, event in pairwise(of_user):
            number += event[1] - before[1] > gap_min
            ours[event] = (user, number)
    counts = [0, 0, 0]
    for position, one in enumerate(once):
        for other in once[position + 1 :]:
            mine, theirs = ours[one] == ours[other], (one[0], one[3]) == (other[0], other[3])
            counts = [n + here for n, here in zip(counts, (mine, theirs, mine and theirs), strict=True)]
    return Agreement(len(set(ours.values())), len({(event[0], event[3]) for event in once}), *counts)


def fast_agreement(events: list[Event], gap_min: int) -> Agreement:
    user, minute, item, session = np.array(events, np.int64).T
    return agreement(user.astype(np.int32), minute * MINUTE_US, item * 10 + session, session, gap_min * MINUTE_US)


def test_a_literal_log() -> None:
    found = fast_agreement(LITERAL, 30)
    assert found == slow_agreement(LITERAL, 30) == Agreement(3, 3, 2, 2, 1)
    assert (found.precision, found.recall, found.f1) == (0.5, 0.5, 0.5)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 90), st.integers(0, 2), st.integers(0, 3)), min_size=1),
    st.integers(1, 60),
)
def test_group_sizes_equal_the_double_loop(events: list[Event], gap_min: int) -> None:
    assert fast_agreement(events, gap_min) == slow_agreement(events, gap_min)


def test_without_any_pair_nothing_disagrees() -> None:
    found = fast_agreement([(0, 0, 1, 1), (0, 90, 1, 2)], 30)
    assert found == Agreement(2, 2, 0, 0, 0)
    assert found.f1 == 1.0


def write_csv(path: Path) -> Path:
    rows = [f"{minute * 60},VIEW,i{item},u{user},s{session}" for user, minute, item, session in LITERAL]
    header = "timestamp,eventType,contentId,personId,sessionId"
    path.write_text("\n".join([header, *rows, "never,VIEW,i1,u0,s7", "60,VIEW,i1,u0,", "60,VI"]) + "\n")
    return path


def test_a_log_as_it_lies_with_repeated_and_torn_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "log.csv")
    events, n_rows = read_events(path, load_source("deskdrop"), "sessionId")
    assert (n_rows, len(events)) == (9, 6)
    assert agreements(events, [30]) == {30: Agreement(3, 3, 2, 2, 1)}

    assert main(["--input", str(path), "--gap-min", "30", "--json", str(tmp_path / "rows.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "9 rows: 3 without user, item, time or session id, 1 repeated; 5 events of 2 users" in said
    assert "| 30 min | 3 | 0.500 | 0.500 | 0.500 |" in said
    assert "| the log's own | 3 |" in said
    found = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["metric"], row["ours"], row["peer"]) for row in found] == [
        ("precision", 0.5, 1.0),
        ("recall", 0.5, 1.0),
        ("f1", 0.5, 1.0),
        ("sessions", 3, 3),
    ]


def test_times_as_text(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "event_time,event_type,product_id,user_id,user_session\n"
        "2019-11-01 00:00:00 UTC,view,1,5,a\n"
        "2019-11-01 00:10:00 UTC,view,2,5,a\n"
        "12:30,view,2,5,a\n"
    )
    events, n_rows = read_events(path, load_source("rees46"), "user_session")
    assert n_rows == 3
    assert np.diff(events["time_us"]).tolist() == [10 * MINUTE_US]
    assert agreements(events, [9, 10]) == {9: Agreement(2, 1, 0, 1, 0), 10: Agreement(1, 1, 1, 1, 1)}


def test_a_missing_column_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "log.csv")
    assert main(["--input", str(path), "--session-column", "visit"]) == 2
    assert "has no column visit; its columns are: timestamp, eventType" in capsys.readouterr().err
