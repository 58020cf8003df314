"""Groups of the judged users, and the metrics of each: where a predictor is good, and where it is not.

B rows (users), S sources, M metrics, G groups.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.columns import ACTIONS, FIRST_ID
from model.metrics import Floats, Ints, bootstrap_means, interval

HISTORY, POPULARITY, ACTION, RUNG = "history length", "label popularity", "label action", "rung"
HEAD, MIDDLE, TAIL, UNSEEN = "head", "middle", "tail", "not in training"


class Cohorts(NamedTuple):
    """One way to divide the rows: the name of each group and the group of each row."""

    name: str
    groups: tuple[str, ...]
    of_row: NDArray[np.int64]  # [B]


class CohortValue(NamedTuple):
    """One number of one group. low and high: 95 % bootstrap interval over the group's users."""

    cohort: str
    group: str
    model: str
    value: float
    low: float
    high: float
    n: int


def by_history(length: Ints, edges: Sequence[int]) -> Cohorts:
    """Rows by their number of input events, up to each edge and beyond the last. edges: [] = quartiles of `length`.

    Quartiles that coincide, as where many windows are full, make fewer groups.
    """
    cuts = list(edges)
    if not cuts:
        quartiles = np.quantile(length, [0.25, 0.5, 0.75], method="inverted_cdf").astype(int)
        cuts = sorted({int(cut) for cut in quartiles if cut < length.max()})
    lows = [1, *(cut + 1 for cut in cuts)]
    names = [_span(low, high) for low, high in zip(lows, [*cuts, None], strict=True)]
    return Cohorts(HISTORY, tuple(names), np.searchsorted(cuts, length, side="left").astype(np.int64))


def by_popularity(labels: Ints, train_counts: NDArray[np.int64], shares: tuple[float, float]) -> Cohorts:
    """Rows by how often their label occurs in training.

    Items from the most frequent down (smaller ids first among equals): those that make up the first share of the
    training events are the head, up to the second share the middle, the others the tail. An item belongs where its
    first event falls. labels: [B] ids; train_counts: [V].
    """
    order = np.lexsort((np.arange(len(train_counts)), -train_counts))
    before = np.cumsum(train_counts[order]) - train_counts[order]
    group = np.empty(len(train_counts), dtype=np.int64)
    group[order] = np.searchsorted(np.asarray(shares) * train_counts.sum(), before, side="right")
    group[train_counts == 0] = 3
    group[:FIRST_ID] = 3
    return Cohorts(POPULARITY, (HEAD, MIDDLE, TAIL, UNSEEN), group[labels])


def by_action(codes: Ints) -> Cohorts:
    """Rows by what the label event was. codes: [B] action codes."""
    return Cohorts(ACTION, ("unknown", *ACTIONS), np.maximum(codes.astype(np.int64) - FIRST_ID + 1, 0))


def by_rung(n_known: NDArray[np.int64], short_events: int) -> Cohorts:
    """Rows by how much the model knows of them. n_known: [B] events with a known item or category."""
    of_row = np.where(n_known == 0, 2, np.where(n_known < short_events, 1, 0))
    return Cohorts(RUNG, ("model", "short_history", "unknown to the model"), of_row.astype(np.int64))


def cohort_values(
    cohorts: Cohorts, per_user: Mapping[str, Floats], n_bootstrap: int, seed: int
) -> Iterator[CohortValue]:
    """The mean of one metric in each group that has rows, for every source. per_user: source → [B].

    Sources of a group share the bootstrap draws. The groups' means, weighted by n, give the mean over all rows.
    """
    stacked = np.stack(list(per_user.values()), axis=1)  # [B, S]
    for number, group in enumerate(cohorts.groups):
        rows = stacked[cohorts.of_row == number]
        if not len(rows):
            continue
        low, high = interval(bootstrap_means(rows, n_bootstrap, seed))
        figures = np.round(np.stack([rows.mean(axis=0, dtype=np.float64), low, high], axis=1), 6)  # [S, 3]
        for model, (value, least, most) in zip(per_user, figures.tolist(), strict=True):
            yield CohortValue(cohorts.name, group, model, value, least, most, len(rows))


def _span(low: int, high: int | None) -> str:
    if high is None:
        return f"{low}+ events"
    return f"{low} events" if low == high else f"{low}–{high} events"
