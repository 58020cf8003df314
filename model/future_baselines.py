"""Simple forecasts of the days ahead that a model must beat, fitted on training windows only.

B rows, b rows of a block, W windows, n events, H horizons, V ids of categories, K bins of the hazard, E hours.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from features.columns import ACTION_CODE, ACTIONS, AGE, CATEGORY, DAY_S, FIRST_GAP, FIRST_ID, GAP, MICROS
from model.baselines import TrainEvents, Windows
from model.evaluation import Ranker
from model.future_evaluation import HOUR_S, Answers, FutureRows, FutureSource
from model.metrics import Bools, Doubles, Floats, Ints, Longs
from model.returns import back

POPULARITY, RECENT, HISTORY, LAST, MARKOV = (
    "popularity", "recent popularity", "user history", "last category", "markov",
)  # fmt: skip
GLOBAL_HAZARD, OWN_GAP = "global hazard", "own mean gap"
BASE_RATE, OWN_RATE = "base rate", "own frequency"
# Pseudo-events of popularity, pseudo-gaps and pseudo-sessions of everyone's beside a user's own.
_PRIOR_EVENTS, _PRIOR_GAPS, _PRIOR_SESSIONS = 5.0, 1.0, 3.0
_HAZARD_EDGES_S = (
    np.concatenate([np.arange(0, 24), np.arange(24, 14 * 24, 6), np.arange(14 * 24, 61 * 24, 24)]) * 3600.0
)


class Gaps(NamedTuple):
    """Silences between sessions in training; the last one of each user is cut off by the end of training."""

    seconds: Doubles
    is_observed: Bools


def gaps_of(windows: Windows, new_session_gap: int, train_end_us: int) -> Gaps:
    """Every silence that ended in a session, exact from the ages of a window's events; and each user's last one."""
    age, gap = windows.channels[AGE].astype(np.float64), windows.channels[GAP]
    place = np.arange(age.shape[1])
    inside = (place > 0) & (place < windows.length[:, None]) & (gap >= new_session_gap)
    within = (np.roll(age, 1, axis=1) - age)[inside]
    follows = windows.next_gap >= new_session_gap
    after = ((windows.next_time_us - windows.last_time_us) / MICROS)[follows]
    still = ((train_end_us - windows.next_time_us) / MICROS)[windows.window == 0]
    return Gaps(
        np.concatenate([within, after, still]),
        np.arange(len(within) + len(after) + len(still)) < len(within) + len(after),
    )


def kaplan_meier_hazards(gaps: Gaps, edges_s: Doubles) -> Doubles:
    """Hazard of each bin → [K]: sessions that start in it / silences that reach it, half a pseudo-start in one each.

    Kaplan & Meier 1958, in bins; a silence cut off within a bin counts half in it (actuarial estimate).
    """
    at = np.maximum(np.searchsorted(edges_s, gaps.seconds, side="left") - 1, 0)
    n_bins = len(edges_s) - 1  # and one more, of those that outlast them all
    ended, cut = (np.bincount(at[chosen], minlength=n_bins + 1) for chosen in (gaps.is_observed, ~gaps.is_observed))
    reach = np.cumsum((ended + cut)[::-1])[::-1]
    hazards: Doubles = ((ended + 0.5) / np.maximum(reach - cut / 2 + 1.0, 1.0))[:n_bins]
    return np.minimum(hazards, 0.99)


def action_rates(windows: Windows, new_session_gap: int) -> Doubles:
    """Share of the training sessions that hold each action → [5]. Windows lie back to back; only ends are missing."""
    order = np.lexsort((-windows.window, windows.user))
    valid = np.arange(windows.channels[GAP].shape[1]) < windows.length[order, None]
    user = np.broadcast_to(windows.user[order, None], valid.shape)[valid]
    gap, action = windows.channels[GAP][order][valid], windows.channels[ACTION_CODE][order][valid]
    session = np.cumsum((gap >= new_session_gap) | (np.diff(user, prepend=-1) != 0)) - 1
    return np.asarray(_held(session, action, int(session[-1]) + 1).mean(axis=0))


def fit_future_baselines(
    windows: Windows,
    events: TrainEvents,
    rankers: Mapping[str, Ranker],
    rows: FutureRows,
    horizons_days: tuple[int, ...],
    gap_edges_s: Sequence[float],
    new_session_gap: int,
    train_end_us: int,
) -> dict[str, FutureSource]:
    """All baselines by the name of their row, as sources for the rows; each says one thing only.

    rankers: the fitted baselines of the next event by name; popularity, recent popularity and markov are taken up.
    """
    popularity = _normalised(_categories(rankers[POPULARITY], rows, slice(0, 1)))  # [1, V]
    follows = events.user[1:] == events.user[:-1]
    stays = float(np.mean(events.category[1:][follows] == events.category[:-1][follows])) if follows.any() else 0.0
    per_user = np.array([_events_within(events, days, train_end_us) for days in horizons_days])  # [H]

    def history(at: slice) -> Floats:
        channel = rows.channels[CATEGORY][at]
        row, place = np.nonzero(channel >= FIRST_ID)
        counts = np.tile(_PRIOR_EVENTS * popularity, (len(channel), 1))
        np.add.at(counts, (row, channel[row, place]), 1.0)
        return _normalised(counts)

    def last(at: slice) -> Floats:
        category = rows.channels[CATEGORY][at][np.arange(at.stop - at.start), rows.length[at] - 1]
        said = np.tile((1.0 - stays) * popularity, (len(category), 1))
        known = category >= FIRST_ID
        said[known, category[known]] += stays
        return _normalised(said)

    def ranked(name: str) -> Callable[[slice], Floats]:
        return lambda at: _normalised(_categories(rankers[name], rows, at))

    def interests(said: Callable[[slice], Floats]) -> FutureSource:
        def source(start: int, stop: int) -> Answers:
            shares = said(slice(start, stop))[:, None, :]  # [b, 1, V]
            touched = -np.expm1(-shares * per_user[:, None])  # [b, H, V]: as many events as a mean user's, independent
            return Answers(np.repeat(shares, len(per_user), axis=1), touched.astype(np.float32))

        return source

    return {
        POPULARITY: interests(ranked(POPULARITY)),
        RECENT: interests(ranked(RECENT)),
        HISTORY: interests(history),
        LAST: interests(last),
        MARKOV: interests(ranked(MARKOV)),
        **_return_baselines(gaps_of(windows, new_session_gap, train_end_us), rows, gap_edges_s, new_session_gap),
        **_action_baselines(action_rates(windows, new_session_gap), rows, new_session_gap),
    }


def _return_baselines(
    gaps: Gaps, rows: FutureRows, gap_edges_s: Sequence[float], new_session_gap: int
) -> dict[str, FutureSource]:
    hazards = kaplan_meier_hazards(gaps, _HAZARD_EDGES_S)
    after_s = np.arange(rows.period_s // HOUR_S + 1) * float(HOUR_S)
    everyones = float(gaps.seconds.sum() / max(gaps.is_observed.sum(), 1))  # exponential with censoring
    seconds = _middles_s(gap_edges_s)

    def everyone(start: int, stop: int) -> Answers:
        each = np.broadcast_to(hazards, (stop - start, len(hazards)))
        return Answers(survival=1.0 - back(each, _HAZARD_EDGES_S, rows.silence_s[start:stop].astype(float), after_s))

    def own(start: int, stop: int) -> Answers:
        gap = rows.channels[GAP][start:stop]
        place = np.arange(gap.shape[1])
        opens = (gap >= new_session_gap) & (place > 0) & (place < rows.length[start:stop, None])
        total = np.where(opens, seconds[gap], 0.0).sum(axis=1) + _PRIOR_GAPS * everyones
        mean_s = total / (opens.sum(axis=1) + _PRIOR_GAPS)
        return Answers(survival=np.exp(-after_s / mean_s[:, None]))

    return {GLOBAL_HAZARD: everyone, OWN_GAP: own}


def _action_baselines(rates: Doubles, rows: FutureRows, new_session_gap: int) -> dict[str, FutureSource]:
    def own(start: int, stop: int) -> Answers:
        valid = np.arange(rows.channels[GAP].shape[1]) < rows.length[start:stop, None]
        gap, action = rows.channels[GAP][start:stop], rows.channels[ACTION_CODE][start:stop]
        opens = ((gap >= new_session_gap) | (np.arange(gap.shape[1]) == 0)) & valid
        n_sessions = opens.sum(axis=1)
        held = _held(np.cumsum(opens[valid]) - 1, action[valid], int(n_sessions.sum()))
        of_row = np.add.reduceat(held, np.cumsum(n_sessions) - n_sessions, axis=0)  # [b, 5]; each row has a session
        said = (of_row + _PRIOR_SESSIONS * rates) / (n_sessions + _PRIOR_SESSIONS)[:, None]
        return Answers(actions=said.astype(np.float32))

    def base(start: int, stop: int) -> Answers:
        return Answers(actions=np.tile(rates.astype(np.float32), (stop - start, 1)))

    return {BASE_RATE: base, OWN_RATE: own}


def _held(session: Longs, action: Ints, n_sessions: int) -> Doubles:
    """Whether each session holds each action → [sessions, 5], 0 or 1."""
    held = np.zeros((n_sessions, len(ACTIONS)))
    known = action >= FIRST_ID
    held[session[known], action[known] - FIRST_ID] = 1.0
    return held


def _events_within(events: TrainEvents, days: int, train_end_us: int) -> float:
    """Events in the last days of training of a mean user that was known before them."""
    since = train_end_us - days * DAY_S * MICROS
    known = np.unique(events.user[events.time_us < since])
    late = np.isin(events.user[events.time_us >= since], known).sum()
    return float(late / max(len(known), 1))


def _middles_s(gap_edges_s: Sequence[float]) -> Doubles:
    """Seconds that stand for each gap code: geometric middles of the buckets, as in `model.baselines.events_of`."""
    edges = np.asarray(gap_edges_s, dtype=np.float64)
    return np.concatenate(
        [np.zeros(FIRST_GAP), edges[:1] / 2, np.sqrt(np.maximum(edges[:-1], 1) * edges[1:]), edges[-1:]]
    )


def _categories(ranker: Ranker, rows: FutureRows, at: slice) -> Floats:
    channels = {name: channel[at] for name, channel in rows.channels.items()}
    return ranker.probabilities(channels, rows.length[at], rows.next_gap[at])[1]


def _normalised(scores: Floats) -> Floats:
    total = scores.sum(axis=1, keepdims=True)
    return np.asarray(scores / np.where(total > 0, total, 1.0), dtype=np.float32)
