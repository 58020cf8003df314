"""What a simulated user does next, in truth: given the hidden state, and given the observed history alone.

Letters in shapes: S hidden states, C categories, I items, n events and m sessions of one user.
"""

import numpy as np

from features.simulated_lives import Life
from features.simulated_process import Floats, Ints, Process


def belief(process: Process, life: Life) -> Floats:
    """Forward filter: probability of each hidden state of the user's latest session, given all events → [S].

    Only observed events are used. Sessions are visible (a gap within one is always shorter than a gap
    between two), and times, lengths, actions and the item within a category say nothing about the state.
    `life` has at least one event.
    """
    fresh = (1.0 - process.repeat) * process.taste.T[life.category]  # [n, S]
    opens = np.diff(life.session, prepend=-1) > 0
    repeats = ~opens & (np.diff(life.category, prepend=-1) == 0)
    likelihood = fresh + process.repeat * repeats[:, None]
    likelihood[opens] = process.taste.T[life.category[opens]]
    of_session = np.add.reduceat(np.log(likelihood), np.flatnonzero(opens), axis=0)  # [m, S]
    prior = process.start
    now = prior
    for weight in np.exp(of_session - of_session.max(axis=1, keepdims=True)):
        now = prior * weight
        now /= now.sum()
        prior = now @ process.step
    return now


def certain(process: Process, life: Life) -> Floats:
    """The true hidden state of the user's latest session, as a belief → [S]."""
    state = np.zeros(len(process.start))
    state[life.state[-1]] = 1.0
    return state


def next_categories(process: Process, state: Floats, life: Life, cutoff_ms: int) -> Floats:
    """Category of the first event at or after the cutoff, given a belief over the latest session's state → [C]."""
    goes_on = session_goes_on(process, life, cutoff_ms)
    starts = state @ process.step @ process.taste
    continues = (1.0 - process.repeat) * (state @ process.taste)
    continues[life.category[-1]] += process.repeat
    return goes_on * continues + (1.0 - goes_on) * starts


def session_goes_on(process: Process, life: Life, cutoff_ms: int) -> float:
    """Probability that the latest session has a further event, given that none came before the cutoff.

    A new session cannot start within the session gap, so the silence itself has probability 1 if the
    session has ended.
    """
    silence_ms = cutoff_ms - int(life.time_ms[-1])
    n_events = int(np.count_nonzero(life.session == life.session[-1]))
    ends = process.ends_after(n_events)
    waits = (1.0 - ends) * process.gap_at_least(silence_ms)
    return waits / (waits + ends) if waits > 0.0 else 0.0


def next_items(process: Process, categories: Floats, life: Life) -> Floats:
    """Item of the next event, given the distribution of its category → [I]."""
    sizes = np.diff(process.first_item)
    visited, reverse = np.unique(life.category[::-1], return_index=True)
    last = life.item[::-1][reverse]
    low = process.first_item[visited]
    successor = low + (last - low + 1) % sizes[visited]
    drawn = categories.copy()
    drawn[visited] *= 1.0 - process.successor
    items = np.repeat(drawn, sizes) * process.popularity
    items[successor] += process.successor * categories[visited]
    return items


def strongest(probability: Floats, k: int) -> Ints:
    """Positions of the k greatest values as float32, falling, ties by position → [min(k, len)]."""
    rounded = probability.astype(np.float32)
    k = min(k, len(rounded))
    least = np.partition(rounded, len(rounded) - k)[len(rounded) - k]
    chosen = np.flatnonzero(rounded >= least)
    return chosen[np.argsort(-rounded[chosen], kind="stable")][:k]
