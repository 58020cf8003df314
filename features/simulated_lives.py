"""The life of one simulated user: when, in which sessions, and what he acts on. Formulas: docs/simulation.md.

Letters in shapes: S hidden states, C categories, n events and m sessions of one user.
"""

import math
from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from features.simulated_process import HOUR_MS, LIVES, WEEK_H, Floats, Ints, Process, random_numbers

# Hours from Monday 00:00 to the epoch's first hour, a Thursday.
EPOCH_HOUR = 3 * 24


class Window(NamedTuple):
    """The time that a log covers, in milliseconds since the epoch, UTC: start ≤ t < end."""

    start_ms: int
    end_ms: int


class Life(NamedTuple):
    """What one user does, oldest first, and the hidden state behind it."""

    time_ms: Ints  # [n] strictly rising
    item: Ints  # [n]
    category: Ints  # [n]
    action: Ints  # [n] position in columns.ACTIONS
    session: Ints  # [n] position in state, starting at 0, without holes
    state: Ints  # [m]
    rate: float  # sessions an hour, at mean intensity

    def before(self, cutoff_ms: int) -> "Life":
        """The events before the cutoff and the states of their sessions."""
        n = int(np.searchsorted(self.time_ms, cutoff_ms))
        m = int(self.session[n - 1]) + 1 if n else 0
        of_event = (self.time_ms[:n], self.item[:n], self.category[:n], self.action[:n], self.session[:n])
        return Life(*of_event, self.state[:m], self.rate)


def live(process: Process, window: Window, seed: int, user: int) -> Life:
    """Everything user number `user` does in the window; often nothing. Depends on no other user."""
    rng = random_numbers(seed, LIVES, user)
    rate = process.sessions_per_hour * math.exp(
        process.activity_spread * rng.standard_normal() - process.activity_spread**2 / 2
    )
    time_ms, session = _times(process, window, rate, rng)
    n, m = len(time_ms), int(session[-1]) + 1 if len(session) else 0
    state = _states(process, m, rng)
    category = _categories(process, state, session, rng)
    item = _items(process, category, rng)
    action = np.searchsorted(np.cumsum(process.actions)[:-1], rng.random(n), side="right")
    return Life(time_ms, item, category, action, session, state, rate)


def _times(process: Process, window: Window, rate: float, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Times of one user's events and the session of each → ([n], [n])."""
    joins_late, wait = rng.random(2)
    now = window.start_ms
    if joins_late < process.late_joiners:
        now += int(wait * (window.end_ms - window.start_ms))
    clock = _Clock(process.rhythm)
    below = np.cumsum(process.length)
    share = 1.0 - math.exp(-process.gap_max_ms / process.gap_mean_ms)
    block = 8 + int(1.3 * rate * (window.end_ms - now) / HOUR_MS)
    parts: list[Ints] = []
    lengths: list[Ints] = []
    while True:
        length = np.searchsorted(below[:-1], rng.random(block), side="right")
        first = np.cumsum(length) - length
        gap = np.ceil(-process.gap_mean_ms * np.log1p(-share * rng.random(int(length.sum())))).astype(np.int64)
        gap = np.clip(gap, 1, process.gap_max_ms)
        gap[first] = 0
        since = np.cumsum(gap)
        since -= np.repeat(since[first], length)  # time since the session's first event
        lasts = since[first + length - 1].tolist()
        waits = (rng.standard_exponential(block) / rate).tolist()
        starts = []
        for last, pause in zip(lasts, waits, strict=True):
            now = clock.after(now, pause)
            if now >= window.end_ms:
                break
            starts.append(now)
            now += last + process.gap_max_ms + 2
        kept = int(length[: len(starts)].sum())
        parts.append(since[:kept] + np.repeat(np.array(starts, dtype=np.int64), length[: len(starts)]))
        lengths.append(length[: len(starts)])
        if now >= window.end_ms:
            break
    time_ms = np.concatenate(parts)
    session = np.repeat(np.arange(sum(map(len, lengths))), np.concatenate(lengths))
    inside = time_ms < window.end_ms
    return time_ms[inside], session[inside]


class _Clock:
    """Waiting times by the rhythm: an hour with intensity 2 passes twice as fast."""

    def __init__(self, rhythm: Floats) -> None:
        self.rhythm = rhythm.tolist()
        self.upto = [0.0, *np.cumsum(rhythm).tolist()]

    def after(self, now_ms: int, wait: float) -> int:
        """The moment at which `wait` hours at mean intensity have passed since `now_ms`, never before it."""
        hours = now_ms / HOUR_MS + EPOCH_HOUR
        week, hour = divmod(hours, WEEK_H)
        whole = min(int(hour), WEEK_H - 1)
        target = self.upto[whole] + (hour - whole) * self.rhythm[whole] + wait
        weeks, rest = divmod(target, self.upto[-1])
        whole = min(bisect_right(self.upto, rest) - 1, WEEK_H - 1)
        hour = whole + (rest - self.upto[whole]) / self.rhythm[whole]
        then: float = ((week + weeks) * WEEK_H + hour - EPOCH_HOUR) * HOUR_MS
        return max(now_ms, math.ceil(then))


def _states(process: Process, m: int, rng: np.random.Generator) -> Ints:
    """Hidden state of each session → [m]."""
    draws = rng.random(m).tolist()
    rows: dict[int, list[float]] = {}
    below = np.cumsum(process.start)[:-1].tolist()
    states = []
    for draw in draws:
        state = bisect_right(below, draw)
        states.append(state)
        if state not in rows:
            rows[state] = np.cumsum(process.step[state])[:-1].tolist()
        below = rows[state]
    return np.array(states, dtype=np.int64)


def _categories(process: Process, state: Ints, session: Ints, rng: np.random.Generator) -> Ints:
    """Category of each event: its state's taste, or a repetition within the session → [n]."""
    n = len(session)
    n_categories = process.categories
    of_event = state[session]
    below = (np.cumsum(process.taste, axis=1) + np.arange(len(process.taste))[:, None]).ravel()
    fresh = np.searchsorted(below, of_event + rng.random(n), side="right") - of_event * n_categories
    fresh = np.clip(fresh, 0, n_categories - 1)
    repeats = (rng.random(n) < process.repeat) & (np.diff(session, prepend=-1) == 0)
    source = np.maximum.accumulate(np.where(repeats, 0, np.arange(n)))
    category: Ints = fresh[source]
    return category


def _items(process: Process, category: Ints, rng: np.random.Generator) -> Ints:
    """Item of each event: the successor of the user's last item in the category, or by popularity → [n]."""
    n = len(category)
    by_category = np.argsort(category, kind="stable")
    sorted_category = category[by_category]
    low, size = process.first_item[sorted_category], np.diff(process.first_item)[sorted_category]
    follows = (rng.random(n) < process.successor) & (np.diff(sorted_category, prepend=-1) == 0)
    total = np.cumsum(process.popularity)
    before = np.concatenate([[0.0], total])[low]
    drawn = np.searchsorted(total, before + rng.random(n), side="right")
    drawn = np.clip(drawn - low, 0, size - 1)
    source = np.maximum.accumulate(np.where(follows, 0, np.arange(n)))
    item = np.empty(n, dtype=np.int64)
    item[by_category] = low + (drawn[source] + np.arange(n) - source) % size
    return item
