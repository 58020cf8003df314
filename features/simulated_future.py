"""What a simulated user does within the days after the cutoff, in truth. Derivations: docs/simulation.md.

Letters in shapes: S hidden states, C categories, G rates of the grid, K most sessions, T steps of a horizon.
"""

import math
from typing import NamedTuple

import numpy as np

from features.simulated_lives import EPOCH_HOUR, Life, Window
from features.simulated_process import HOUR_MS, WEEK_H, Floats, Ints, Process
from features.simulated_truth import session_goes_on

_STEP_MS = 900_000  # steps in which sessions ahead are counted; an hour, the unit of the rhythm, is a multiple
_DAY_STEPS = 24 * HOUR_MS // _STEP_MS
# Grid of a user's activity in standard deviations of its logarithm; beyond 4 lie 6 of 100,000 users.
_DEVIATIONS = np.linspace(-4.0, 4.0, 81)


class Future(NamedTuple):
    """One user's days up to a horizon, as expected at the cutoff."""

    days: int
    returns: float  # P(a session starts)
    counts: Floats  # [C] expected number of events
    interests: Floats  # [C] expected share of the user's events, given that there are any
    touched: Floats  # [C] P(at least one event of the category)


class Rest(NamedTuple):
    """What a session that goes on still holds: at least one event."""

    survives: Floats  # [n] P(at least 1, 2, … n further events)
    wait_ms: float  # expected time to the last of them


class Outlook:
    """Tables of one process, cutoff and set of horizons, from which any user's `Future` is read."""

    def __init__(self, process: Process, window: Window, cutoff_ms: int, horizons_days: tuple[int, ...]) -> None:
        self.process, self.window, self.cutoff_ms = process, window, cutoff_ms
        spread = process.activity_spread
        self.rates = process.sessions_per_hour * np.exp(spread * _DEVIATIONS - spread**2 / 2)  # [G] per mean hour
        self._joined_late = self._late_joiners()
        self.starts = {days: self._starts(days) for days in horizons_days}  # [T + 1, G, K + 1] each
        most = max(table.shape[2] for table in self.starts.values())
        # An event that is not of category c, after another such: repeated, or fresh. [S, C]
        self._other = process.repeat + (1.0 - process.repeat) * (1.0 - process.taste)
        spared = (1.0 - process.taste) * _powers(self._other, process.length[1:])
        tastes, untouched = [process.taste], [np.ones_like(process.taste)]
        for _ in range(most - 1):
            tastes.append(process.step @ tastes[-1])
            untouched.append(process.step @ (spared * untouched[-1]))
        self.tastes = np.stack(tastes)  # [K + 1, S, C] taste in the k-th session ahead, given the latest one's state
        self.untouched = np.stack(untouched)  # [K + 1, S, C] P(none of k sessions touches the category)

    def observed_rate(self, life: Life) -> Floats:
        """Posterior of the user's rate given the times of his sessions up to the cutoff → [G], sum 1."""
        opens = np.flatnonzero(np.diff(life.session, prepend=-1) > 0)
        start_ms = life.time_ms[opens]
        end_ms = life.time_ms[np.append(opens[1:], len(life.time_ms)) - 1]
        until = _mean_hours(self.process, np.append(start_ms[1:], self.cutoff_ms))
        free = _mean_hours(self.process, end_ms + self.process.gap_max_ms + 2)
        log_weight = len(opens) * np.log(self.rates) - self.rates * np.maximum(until - free, 0.0).sum()
        log_weight += np.log(self._until_first(int(start_ms[0]))) - _DEVIATIONS**2 / 2.0
        weight: Floats = np.exp(log_weight - log_weight.max())
        weight /= weight.sum()
        return weight

    def true_rate(self, life: Life) -> Floats:
        """The user's own rate as weights of the two nearest of the grid → [G], sum 1."""
        spread = self.process.activity_spread
        deviation = 0.0
        if spread > 0.0:
            deviation = (math.log(life.rate / self.process.sessions_per_hour) + spread**2 / 2) / spread
        place = np.interp(deviation, _DEVIATIONS, np.arange(len(_DEVIATIONS)))
        weight: Floats = np.maximum(1.0 - np.abs(np.arange(len(_DEVIATIONS)) - place), 0.0)
        return weight

    def futures(self, state: Floats, rate: Floats, life: Life) -> list[Future]:
        """The user's future in each horizon.

        state: [S], belief over the latest session's state; rate: [G], belief over the user's rate; life: what he did
        before the cutoff, at least one event.
        """
        return [self._future(days, state, rate, life) for days in self.starts]

    def _future(self, days: int, state: Floats, rate: Floats, life: Life) -> Future:
        process, last = self.process, int(life.category[-1])
        goes_on = session_goes_on(process, life, self.cutoff_ms)
        ended_ms = int(life.time_ms[-1]) - self.cutoff_ms + process.gap_max_ms + 2
        starts = self._starts_from(days, rate, ended_ms)  # [K + 1]
        untouched = self._untouched(state, starts)
        shares = (1.0 - goes_on) * (state @ self._shares(starts, 0.0))
        counts = np.zeros(process.categories)
        if goes_on > 0.0:
            rest = rest_of_session(process, life)
            later = self._starts_from(days, rate, rest.wait_ms + process.gap_max_ms + 2)
            keeps = process.repeat ** np.arange(1, len(rest.survives) + 1)
            counts += goes_on * float(rest.survives @ (1.0 - keeps)) * (state @ process.taste)
            counts[last] += goes_on * float(rest.survives @ keeps)
            size = float(rest.survives.sum()) / process.mean_length  # in sessions
            own = float(_exactly(later) @ (size / (size + np.arange(len(later)))))
            shares += goes_on * (state @ self._shares(later, size)) + own * counts / (size * process.mean_length)
            ends = -np.diff(rest.survives, append=0.0)  # P(1, 2, … further events)
            first = self._other.copy()
            first[:, last] -= process.repeat
            spared = first * _powers(self._other, ends)
            untouched = (1.0 - goes_on) * untouched + goes_on * self._untouched(state[:, None] * spared, later)
            starts = (1.0 - goes_on) * starts + goes_on * later
        ahead = np.tensordot(starts[1:], self.tastes[1 : len(starts)], axes=1)  # [S, C]
        counts += process.mean_length * (state @ ahead)
        return Future(days, float(starts[1]), counts, shares / shares.sum(), 1.0 - untouched)

    def _shares(self, starts: Floats, present: float) -> Floats:
        """What the sessions ahead add to the expected shares, beside `present` sessions' worth of events → [S, C].

        Lengths are alike and independent: of j sessions each holds the share 1/j of the events, in expectation.
        """
        number = np.arange(1, len(starts))
        each = np.cumsum((_exactly(starts)[1:] / (number + present))[::-1])[::-1]  # share of the k-th, k = 1 … K
        shares: Floats = np.tensordot(each, self.tastes[1 : len(starts)], axes=1)
        return shares

    def _untouched(self, state: Floats, starts: Floats) -> Floats:
        """P(no session ahead touches the category) → [C]; state: [S], or [S, C] where it hangs on the category."""
        ahead = np.tensordot(_exactly(starts), self.untouched[: len(starts)], axes=1)  # [S, C]
        untouched: Floats = (state.reshape(len(state), -1) * ahead).sum(axis=0)
        return untouched

    def _starts_from(self, days: int, rate: Floats, free_ms: float) -> Floats:
        """P(at least k sessions start in the horizon), k = 0 … K, where none can for `free_ms` from the cutoff."""
        table = self.starts[days]
        place = min(max(free_ms, 0.0) / _STEP_MS, len(table) - 1.0)
        below = min(int(place), len(table) - 2)
        share = place - below
        starts: Floats = rate @ ((1.0 - share) * table[below] + share * table[below + 1])
        return starts

    def _starts(self, days: int) -> Floats:
        """P(at least k sessions start in the horizon | free at step i, rate) → [T + 1, G, K + 1].

        Backward in time: in each step one starts with probability 1 - exp(-rate × intensity); then nothing can for
        the mean length of a session and the gap after it.
        """
        process, n_steps = self.process, days * _DAY_STEPS
        edges = _mean_hours(process, self.cutoff_ms + _STEP_MS * np.arange(n_steps + 1))
        quiet = np.exp(-self.rates * np.diff(edges)[:, None])  # [T, G]
        busy = ((process.mean_length - 1.0) * process.mean_gap_ms + process.gap_max_ms + 2) / _STEP_MS
        mean = float(self.rates[-1] * (edges[-1] - edges[0]))
        most = min(math.ceil(mean + 6.0 * math.sqrt(mean)) + 4, int(n_steps / busy) + 1)
        table = np.zeros((n_steps + 1, len(self.rates), most + 1))
        table[:, :, 0] = 1.0
        for step in range(n_steps - 1, -1, -1):
            place = step + max(0.5 + busy, 1.0)  # from the middle of the step
            below, share = min(int(place), n_steps), place - int(place)
            after = (1.0 - share) * table[below] + share * table[min(below + 1, n_steps)]
            stays = quiet[step][:, None]
            table[step, :, 1:] = stays * table[step + 1, :, 1:] + (1.0 - stays) * after[:, :-1]
        return table

    def _late_joiners(self) -> Floats:
        """∫ exp(-rate × (intensity from j to the hour)) dj over the moments of joining up to each hour → [hours, G]."""
        hours = self.window.start_ms + HOUR_MS * np.arange((self.cutoff_ms - self.window.start_ms) // HOUR_MS + 1)
        passed = self.rates * np.diff(_mean_hours(self.process, hours))[:, None]
        upto = np.zeros((len(hours), len(self.rates)))
        for hour, spent in enumerate(passed):
            upto[hour + 1] = upto[hour] * np.exp(-spent) - np.expm1(-spent) / spent
        return upto

    def _until_first(self, start_ms: int) -> Floats:
        """Likelihood of no session before the first one: here from the start, or joined at a random moment → [G]."""
        late, window = self.process.late_joiners, self.window
        hour = (start_ms - window.start_ms) // HOUR_MS
        known = np.array([window.start_ms, window.start_ms + hour * HOUR_MS, start_ms])
        begin, whole, end = _mean_hours(self.process, known)
        spent = self.rates * (end - whole)
        part = (start_ms - known[1]) / HOUR_MS
        safe = np.where(spent > 0.0, spent, 1.0)
        rest = np.where(spent > 0.0, -np.expm1(-spent) / safe, 1.0) * part
        joined_late = self._joined_late[hour] * np.exp(-spent) + rest
        hours = (window.end_ms - window.start_ms) / HOUR_MS
        likelihood: Floats = (1.0 - late) * np.exp(-self.rates * (end - begin)) + late / hours * joined_late
        return np.maximum(likelihood, np.finfo(np.float64).tiny)


def rest_of_session(process: Process, life: Life) -> Rest:
    """What the latest session still holds if it goes on; there must be a longer one at all."""
    n_events = int(np.count_nonzero(life.session == life.session[-1]))
    length = process.length[n_events + 1 :]
    survives: Floats = np.cumsum(length[::-1])[::-1] / length.sum()
    return Rest(survives, float(survives.sum()) * process.mean_gap_ms)


def _exactly(starts: Floats) -> Floats:
    """P(exactly k sessions start), from P(at least k); [K + 1] each."""
    exactly: Floats = starts - np.append(starts[1:], 0.0)
    return exactly


def _mean_hours(process: Process, time_ms: Ints) -> Floats:
    """Hours at mean intensity from a fixed Monday to each time; an hour with intensity 2 counts twice."""
    week, hour = np.divmod(time_ms / HOUR_MS + EPOCH_HOUR, WEEK_H)
    upto = np.concatenate([[0.0], np.cumsum(process.rhythm)])
    hours: Floats = week * upto[-1] + np.interp(hour, np.arange(WEEK_H + 1), upto)
    return hours


def _powers(base: Floats, weight: Floats) -> Floats:
    """Σ_j weight[j]·base^j by Horner's rule; base: [S, C]."""
    total = np.zeros_like(base)
    for factor in weight[::-1]:
        total = total * base + factor
    return total
