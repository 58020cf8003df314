"""Slow, obvious forms of the kernels, in plain Python: what the fast ones are compared with."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import date, timedelta
from typing import NamedTuple

US = 1_000_000
DAY_US = 86_400 * US


class Event(NamedTuple):
    user: str
    time_us: int
    event_id: int
    item: str = "i"
    action: str = "view"


class Session(NamedTuple):
    user: str
    start_us: int
    end_us: int
    events: tuple[int, ...]
    state: str


class Limits(NamedTuple):
    """The rules of denoising; 0 is off."""

    events_per_day: int = 0
    events_per_minute: int = 0
    hours_per_day: int = 0
    kept_per_day: int = 0
    burst_s: int = 0


class Flag(NamedTuple):
    user: str
    day: int
    rule: str
    value: int
    events: int
    closed: bool


class Denoised(NamedTuple):
    """What is left of some events, what is out for now and for good, and why."""

    kept: set[Event]
    held: set[Event]
    bots: set[Event]
    n_capped: int
    flags: set[Flag]


def slow_denoised(events: list[Event], limits: Limits, lateness_days: int, last_day: date) -> Denoised:
    """One user and day at a time, one rule at a time."""
    kept, held, bots, flags, n_capped = set(events), set(), set(), set(), 0
    by_day: dict[tuple[str, int], list[Event]] = defaultdict(list)
    for event in set(events):
        by_day[event.user, event.time_us // DAY_US].append(event)
    for (user, day), found in by_day.items():
        closed = day + lateness_days <= (last_day - date(1970, 1, 1)).days
        minutes = Counter(event.time_us // (60 * US) for event in found)
        hours = {event.time_us // (3600 * US) for event in found}
        broken = []
        if limits.events_per_day and len(found) > limits.events_per_day:
            broken.append(("events_per_day", len(found)))
        if limits.events_per_minute and max(minutes.values()) > limits.events_per_minute:
            broken.append(("events_per_minute", max(minutes.values())))
        if limits.hours_per_day and len(hours) >= limits.hours_per_day:
            broken.append(("hours_per_day", len(hours)))
        is_bot, out = bool(broken), set[Event]()
        if limits.kept_per_day and len(found) > limits.kept_per_day:
            by_time = sorted(found, key=lambda event: (event.time_us, event.event_id))
            out = set(by_time[: -limits.kept_per_day])
            broken.append(("capped", len(found)))
        if is_bot:
            out = set(found)
        flags |= {Flag(user, day, rule, value, len(out), closed) for rule, value in broken}
        kept -= out
        if not closed:
            held |= out
        elif is_bot:
            bots |= out
        else:
            n_capped += len(out)
    return Denoised(kept, held, bots, n_capped, flags)


def slow_sessions(
    events: Iterable[Event], gap_s: int, lateness_days: int, last_day: date, burst_s: int = 0
) -> set[Session]:
    """One user at a time, one event at a time."""
    by_user: dict[str, set[Event]] = defaultdict(set)
    for event in events:
        by_user[event.user].add(event)
    sessions = set()
    for known in by_user.values():
        current: list[Event] = []
        for event in sorted(known, key=lambda event: (event.time_us, event.event_id)):
            if current and event.time_us - current[-1].time_us > gap_s * US:
                sessions.add(_close(current, gap_s, lateness_days, last_day, burst_s))
                current = []
            current.append(event)
        sessions.add(_close(current, gap_s, lateness_days, last_day, burst_s))
    return sessions


def _close(events: list[Event], gap_s: int, lateness_days: int, last_day: date, burst_s: int) -> Session:
    may_grow_until = events[-1].time_us + gap_s * US + lateness_days * DAY_US
    midnight = (last_day + timedelta(days=1) - date(1970, 1, 1)).days * DAY_US
    kept = events
    if may_grow_until < midnight:
        kept = [
            event for before, event in zip([None, *events], events, strict=False) if not _again(before, event, burst_s)
        ]
    state = "finished" if may_grow_until < midnight else "open"
    user, start, end = events[0].user, events[0].time_us, kept[-1].time_us
    return Session(user, start, end, tuple(event.event_id for event in kept), state)


def _again(before: Event | None, event: Event, burst_s: int) -> bool:
    if before is None or not burst_s:
        return False
    near = event.time_us - before.time_us <= burst_s * US
    return near and (before.item, before.action) == (event.item, event.action)
