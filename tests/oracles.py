"""Slow, obvious forms of the kernels, in plain Python: what the fast ones are compared with."""

from collections import defaultdict
from datetime import date, timedelta
from typing import NamedTuple

US = 1_000_000
DAY_US = 86_400 * US


class Event(NamedTuple):
    user: str
    time_us: int
    event_id: int
    item: str = "i"


class Session(NamedTuple):
    user: str
    start_us: int
    end_us: int
    events: tuple[int, ...]
    state: str


def slow_sessions(events: list[Event], gap_s: int, lateness_days: int, last_day: date) -> set[Session]:
    """One user at a time, one event at a time."""
    by_user: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for event in events:
        by_user[event.user].add((event.time_us, event.event_id))
    sessions = set()
    for user, known in by_user.items():
        current: list[tuple[int, int]] = []
        for time_us, event_id in sorted(known):
            if current and time_us - current[-1][0] > gap_s * US:
                sessions.add(_close(user, current, gap_s, lateness_days, last_day))
                current = []
            current.append((time_us, event_id))
        sessions.add(_close(user, current, gap_s, lateness_days, last_day))
    return sessions


def _close(user: str, events: list[tuple[int, int]], gap_s: int, lateness_days: int, last_day: date) -> Session:
    start, end = events[0][0], events[-1][0]
    may_grow_until = end + gap_s * US + lateness_days * DAY_US
    midnight = (last_day + timedelta(days=1) - date(1970, 1, 1)).days * DAY_US
    state = "finished" if may_grow_until < midnight else "open"
    return Session(user, start, end, tuple(event_id for _, event_id in events), state)
