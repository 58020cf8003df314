"""Timelines of the people in a report, worked out on rows given literally."""

from datetime import datetime

from features import columns as c
from jobs.report_people import sessions_of


def _event(minute: int, action: str, category: str | None) -> dict[str, object]:
    return {c.EVENT_TIME: datetime(2024, 3, 4, 0, minute), c.ACTION: action, c.CATEGORY_ID: category}


def test_a_silence_beyond_the_gap_starts_a_session():
    events = [_event(0, "view", "b"), _event(10, "view", "a"), _event(20, "buy", "a"), _event(31, "view", "b")]
    first, second = sessions_of(events, gap_s=600)
    assert first == {
        "start": "2024-03-04T00:00", "n": 3, "categories": ["a", "b"], "actions": ["buy", "view"],
    }  # fmt: skip
    assert second["start"] == "2024-03-04T00:31"


def test_the_three_most_frequent_categories_ties_by_name():
    events = [_event(0, "view", name) for name in ("d", "c", None, "b", "a", "d")]
    assert sessions_of(events, gap_s=600)[0]["categories"] == ["d", "", "a"]


def test_nobody_has_no_sessions():
    assert sessions_of([], gap_s=600) == []
