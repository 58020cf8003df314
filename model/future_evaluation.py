"""Judging what is said of the days ahead: interests, categories touched, the next session and what it holds.

B rows (users), b rows of a block, H horizons, V ids of categories, E hours of the label period, 5 actions.
Every metric is a ratio of two sums over users, so that one bootstrap of the sums serves all; those of the whole table
(macro means, average precision, AUC) have no interval.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from features.columns import ACTIONS, DAY_S, FIRST_ID
from model.evaluation import KEEP, Channels, Comparison, Evaluation, EvaluationSpec, MetricRow, SplitProtocol
from model.metrics import Bools, Doubles, Floats, Ints, Longs, Ragged, bootstrap_means, interval

CROSS_ENTROPY, PERPLEXITY, NDCG_SHARE, JENSEN_SHANNON = "cross_entropy", "perplexity", "ndcg", "jensen_shannon"
PRECISION, RECALL, F1, ACCURACY, BRIER = "precision", "recall", "f1", "accuracy", "brier"
MACRO = "macro_"
AVERAGE_PRECISION, AUC, LOG_LOSS, LOG_LIKELIHOOD = "average_precision", "auc", "log_loss", "log_likelihood"
INTERESTS, TOUCHED, RETURN, ACTION = "interests", "touched", "return", "action"
# What the best row of a table is chosen by, and whether more of it is better.
MAIN = {
    INTERESTS: (CROSS_ENTROPY, False),
    TOUCHED: (BRIER, False),
    RETURN: (LOG_LIKELIHOOD, True),
    ACTION: (LOG_LOSS, False),
}
NDCG_DEPTH = 10
THRESHOLD = 0.5  # a category is called touched from here on: likelier than not
HOUR_S = 3600
# No probability counts as less: a log-likelihood of -∞ for one user would be that of the table.
_LEAST = 1e-6
_BINS = 0x3F81  # upper halves of the float32 numbers 0 … 1
_DECIMALS = 6


@dataclass(frozen=True)
class FutureRows:
    """Users at one instant, and what they did in the period after it. Events without a category id are left out."""

    user_id: tuple[str, ...]
    channels: Channels
    length: Ints  # [B]
    next_gap: Ints  # [B]
    silence_s: Ints  # [B] seconds from the last event to the instant
    categories: Ragged  # events of the period, in order
    actions: Ragged  # their action codes
    after_s: Ragged  # seconds from the instant to each
    period_s: int
    session_gap_s: int  # a longer silence starts a session

    def events(self) -> tuple[Longs, Longs]:
        """Row and seconds of each event, [n]."""
        return self.after_s.row_of_value(), self.after_s.values.astype(np.int64)


class Answers(NamedTuple):
    """What a source says of the rows of a block; None where it says nothing."""

    interests: Floats | None = None  # [b, H, V]
    touched: Floats | None = None  # [b, H, V]
    survival: Doubles | None = None  # [b, E + 1] P(no session within 0, 1, … E hours | silent so far)
    returns: Floats | None = None  # [b, H] P(a session within the horizon), where there is no survival
    actions: Floats | None = None  # [b, 5]


FutureSource = Callable[[int, int], Answers]
Ratio = tuple[Doubles, Doubles]  # numerator and denominator of each row, [B]


class NextSession(NamedTuple):
    """The first session that starts in the period."""

    start_s: Longs  # [B] seconds after the instant; the period where there is none
    is_back: Bools  # [B]
    holds: Bools  # [B, 5] actions seen in it


def next_session(rows: FutureRows) -> NextSession:
    """The first event after a silence of more than session_gap_s, and those that follow it without another one."""
    row, at = rows.events()
    before = np.where(np.diff(row, prepend=-1) > 0, -rows.silence_s[row].astype(np.int64), np.roll(at, 1))
    opens = at - before > rows.session_gap_s
    number = np.cumsum(opens)
    first_of_row = np.concatenate([[0], number])[rows.after_s.offsets[:-1]]  # sessions opened before the row
    n_rows = len(rows.user_id)
    is_first = number - first_of_row[row] == 1
    start = np.full(n_rows, rows.period_s, dtype=np.int64)
    start[row[is_first & opens]] = at[is_first & opens]
    back = np.zeros(n_rows, dtype=np.bool_)
    back[row[is_first]] = True
    holds = np.zeros((n_rows, len(ACTIONS)), dtype=np.bool_)
    known = is_first & (rows.actions.values >= FIRST_ID)
    holds[row[known], rows.actions.values[known] - FIRST_ID] = True
    return NextSession(start, back, holds)


def evaluate_futures(
    rows: FutureRows,
    split: SplitProtocol,
    sources: Mapping[str, FutureSource],
    horizons_days: tuple[int, ...],
    n_categories: int,
    spec: EvaluationSpec,
    model: str,
) -> Evaluation:
    """Judge every source on the same users and draws. horizons_days: those of the answers, none beyond the period."""
    ahead = next_session(rows)
    tables: dict[str, dict[str, _Judged]] = {}
    for name, source in sources.items():
        for target, judged in _judge(rows, ahead, source, horizons_days, n_categories, spec.block_cells).items():
            tables.setdefault(target, {})[name] = judged
    table: list[MetricRow] = []
    comparisons: list[Comparison] = []
    for target, by_source in tables.items():
        replicates = _replicates(by_source, spec)
        for name, judged in by_source.items():
            table += _rows_of(target, name, judged, replicates[name], rows, split, n_categories)
        if model in by_source:
            comparisons += _compare(target, by_source, replicates, model)
    return Evaluation(tuple(table), tuple(comparisons), {})


class _Judged(NamedTuple):
    ratios: dict[str, Ratio]
    whole: dict[str, float]  # metrics of the whole table


class _Touches:
    """Counts over all users for the metrics of a whole table: by category, and by probability."""

    def __init__(self, n_categories: int) -> None:
        self.by_category = np.zeros((3, n_categories))  # right, said, true
        self.by_probability = np.zeros((2, _BINS))  # touched, all

    def add(self, probability: Floats, is_touched: Bools) -> None:
        said = probability >= THRESHOLD
        self.by_category += np.stack([(said & is_touched).sum(0), said.sum(0), is_touched.sum(0)])
        self.by_probability += binned(probability.ravel(), is_touched.ravel())

    def metrics(self) -> dict[str, float]:
        right, said, true = self.by_category[:, self.by_category[1:].sum(axis=0) > 0]
        return {
            f"{MACRO}{PRECISION}": float(np.mean(right / np.maximum(said, 1))) if len(right) else 0.0,
            f"{MACRO}{RECALL}": float(np.mean(right / np.maximum(true, 1))) if len(right) else 0.0,
            f"{MACRO}{F1}": float(np.mean(2 * right / (said + true))) if len(right) else 0.0,
            AVERAGE_PRECISION: average_precision(self.by_probability),
        }


def binned(probability: Floats, is_true: Bools) -> Doubles:
    """How many are true, and how many there are, by probability to 8 bits → [2, bins], rising."""
    place = np.clip(probability, 0.0, 1.0).astype(np.float32).view(np.uint32) >> 16
    return np.stack([np.bincount(place[is_true], minlength=_BINS), np.bincount(place, minlength=_BINS)]).astype(float)


def average_precision(counts: Doubles) -> float:
    """Σ (R_n − R_{n−1})·P_n over falling thresholds (Manning et al. 2008, 8.4); at random the share of true ones."""
    right, said = np.cumsum(counts[:, ::-1], axis=1)
    if right[-1] == 0:
        return 0.0
    return float((np.diff(right, prepend=0.0) / right[-1]) @ (right / np.maximum(said, 1.0)))


def area_under_curve(counts: Doubles) -> float:
    """P(a true one has the greater probability), ties count half (Hanley & McNeil 1982); 0.5 at random."""
    true, false = counts[0], counts[1] - counts[0]
    pairs = true.sum() * false.sum()
    below = np.cumsum(false) - false
    return float(true @ (below + false / 2) / pairs) if pairs else 0.5


def _judge(
    rows: FutureRows,
    ahead: NextSession,
    source: FutureSource,
    horizons_days: tuple[int, ...],
    n_categories: int,
    block_cells: int,
) -> dict[str, _Judged]:
    n_rows, n_hours = len(rows.user_id), rows.period_s // HOUR_S
    n_blocks_of = max(1, block_cells // (n_categories * len(horizons_days)))
    found: dict[str, dict[str, Ratio]] = {}
    touches = {days: _Touches(n_categories - FIRST_ID) for days in horizons_days}

    def put(target: str, metric: str, at: slice, numerator: Doubles, denominator: Doubles | float = 1.0) -> None:
        ratio = found.setdefault(target, {}).setdefault(metric, (np.zeros(n_rows), np.zeros(n_rows)))
        ratio[0][at], ratio[1][at] = numerator, denominator

    actions: list[Floats] = []
    says_touched = False
    for start in range(0, n_rows, n_blocks_of):
        at = slice(start, min(start + n_blocks_of, n_rows))
        answers = source(at.start, at.stop)
        for place, days in enumerate(horizons_days):
            counts = _counts(rows, at, days * DAY_S, n_categories)  # [b, V]
            if answers.interests is not None:
                for metric, (above, below) in interest_metrics(answers.interests[:, place], counts).items():
                    put(f"{INTERESTS}_{days}d", metric, at, above, below)
            if answers.touched is not None:
                says_touched = True
                said, is_touched = answers.touched[:, place, FIRST_ID:], counts[:, FIRST_ID:] > 0
                for metric, (above, below) in touch_metrics(said, is_touched).items():
                    put(f"{TOUCHED}_{days}d", metric, at, above, below)
                touches[days].add(said, is_touched)
            returns = _returns(answers, place, days)
            if returns is not None:
                is_back = ahead.is_back[at] & (ahead.start_s[at] < days * DAY_S)
                put(RETURN, f"{BRIER}_{days}d", at, (returns - is_back) ** 2)
        if answers.survival is not None:
            put(RETURN, LOG_LIKELIHOOD, at, hour_log_likelihood(answers.survival, ahead, at, n_hours))
        if answers.actions is not None:
            actions.append(answers.actions)
    judged = {target: _Judged(ratios, {}) for target, ratios in found.items()}
    if says_touched:
        for days in horizons_days:
            judged[f"{TOUCHED}_{days}d"].whole.update(touches[days].metrics())
    if actions:
        judged |= _action_tables(np.concatenate(actions), ahead)
    return judged


def interest_metrics(said: Floats, counts: Doubles) -> dict[str, Ratio]:
    """Of the users with an event, said against their shares p: −Σ p log q; NDCG with gains p; Jensen–Shannon distance.

    The distance is the square root of the divergence in bits, 0 … 1 (Endres & Schindelin 2003). [b, V] each. The
    cross-entropy is at least the entropy of the shares; at equal probabilities log V.
    """
    total = counts.sum(axis=1)
    is_any = (total > 0).astype(np.float64)
    share = counts / np.maximum(total, 1.0)[:, None]
    q = np.maximum(said.astype(np.float64), _LEAST)
    middle = (share + said) / 2

    def bits(p: Doubles) -> Doubles:
        ratio = np.where(p > 0, p, 1.0) / np.where(p > 0, middle, 1.0)
        return np.asarray((p * np.log2(ratio)).sum(axis=1))

    divergence = np.clip((bits(share) + bits(said.astype(np.float64))) / 2, 0.0, 1.0)
    depth = min(NDCG_DEPTH, counts.shape[1])
    discount = 1.0 / np.log2(2.0 + np.arange(depth))
    # Among equal scores the smaller gains come first: ties count against.
    order = np.lexsort((share, -said), axis=1)[:, :depth]
    gained = np.take_along_axis(share, order, axis=1) @ discount
    ideal = -np.sort(-share, axis=1)[:, :depth] @ discount
    return {
        CROSS_ENTROPY: (-(share * np.log(q)).sum(axis=1), is_any),
        NDCG_SHARE: (gained / np.where(ideal > 0, ideal, 1.0) * is_any, is_any),
        JENSEN_SHANNON: (np.sqrt(divergence) * is_any, is_any),
    }


def touch_metrics(said: Floats, is_touched: Bools) -> dict[str, Ratio]:
    """Over pairs of user and category, [b, V] each: precision, recall and F1 at THRESHOLD, accuracy, Brier score."""
    called = said >= THRESHOLD
    right, n_called, n_true = (x.sum(axis=1).astype(float) for x in (called & is_touched, called, is_touched))
    n_pairs = np.full(len(said), float(said.shape[1]))
    return {
        F1: (2 * right, n_called + n_true),
        PRECISION: (right, n_called),
        RECALL: (right, n_true),
        ACCURACY: ((called == is_touched).sum(axis=1).astype(float), n_pairs),
        BRIER: (((said - is_touched).astype(np.float64) ** 2).sum(axis=1), n_pairs),
    }


def hour_log_likelihood(survival: Doubles, ahead: NextSession, at: slice, n_hours: int) -> Doubles:
    """Log-probability of the hour in which the next session starts, or of none in the period → [b]."""
    hour = np.minimum(ahead.start_s[at] // HOUR_S, n_hours - 1)
    everyone = np.arange(len(hour))
    inside = survival[everyone, hour] - survival[everyone, hour + 1]
    likely = np.where(ahead.is_back[at], inside, survival[:, -1])
    return np.asarray(np.log(np.maximum(likely, _LEAST)))


def _action_tables(said: Floats, ahead: NextSession) -> dict[str, _Judged]:
    """One table an action, over the users whose next session starts in the period."""
    tables = {}
    is_back = ahead.is_back.astype(np.float64)
    for place, action in enumerate(ACTIONS):
        p = np.clip(said[:, place].astype(np.float64), _LEAST, 1.0 - _LEAST)
        holds = ahead.holds[:, place]
        counts = binned(said[ahead.is_back, place], holds[ahead.is_back])
        ratios = {
            LOG_LOSS: (-np.log(np.where(holds, p, 1.0 - p)) * is_back, is_back),
            BRIER: ((p - holds) ** 2 * is_back, is_back),
        }
        whole = {AUC: area_under_curve(counts), AVERAGE_PRECISION: average_precision(counts)}
        tables[f"{ACTION}_{action}"] = _Judged(ratios, whole)
    return tables


def _returns(answers: Answers, place: int, days: int) -> Doubles | Floats | None:
    if answers.survival is not None:
        return np.asarray(1.0 - answers.survival[:, days * DAY_S // HOUR_S])
    return None if answers.returns is None else answers.returns[:, place]


def _counts(rows: FutureRows, at: slice, horizon_s: int, n_categories: int) -> Doubles:
    """Events of each known category within the horizon → [b, V]."""
    part, after = rows.categories.rows(at.start, at.stop), rows.after_s.rows(at.start, at.stop)
    kept = (after.values < horizon_s) & (part.values >= FIRST_ID)
    cells = part.row_of_value()[kept] * n_categories + part.values[kept]
    n_rows = at.stop - at.start
    return np.bincount(cells, minlength=n_rows * n_categories).reshape(n_rows, n_categories).astype(np.float64)


def _replicates(by_source: Mapping[str, _Judged], spec: EvaluationSpec) -> dict[str, dict[str, Doubles]]:
    """Each source's metrics under the same draws of users, [R] each."""
    columns = [side for judged in by_source.values() for ratio in judged.ratios.values() for side in ratio]
    means = iter(bootstrap_means(np.stack(columns, axis=1).astype(np.float32), spec.n_bootstrap, spec.seed).T)
    return {
        name: {metric: _divided(next(means), next(means)) for metric in judged.ratios}
        for name, judged in by_source.items()
    }


def _divided(above: Doubles, below: Doubles) -> Doubles:
    return np.asarray(np.where(below > 0, above / np.where(below > 0, below, 1.0), 0.0))


def _value(ratio: Ratio) -> float:
    below = float(ratio[1].sum())
    return float(ratio[0].sum()) / below if below > 0 else 0.0


def _rows_of(
    target: str,
    name: str,
    judged: _Judged,
    replicates: Mapping[str, Doubles],
    rows: FutureRows,
    split: SplitProtocol,
    n_categories: int,
) -> Iterator[MetricRow]:
    shared = {f.name: getattr(split, f.name) for f in fields(split) if f.name != "n_users"}
    n_unknown = int((rows.categories.values < FIRST_ID).sum())

    def row(metric: str, value: float, n: int, bounds: tuple[float, float] | None) -> MetricRow:
        return MetricRow(
            target=target,
            model=name,
            metric=metric,
            k=NDCG_DEPTH if metric == NDCG_SHARE else 0,
            value=round(value, _DECIMALS),
            low=None if bounds is None else round(bounds[0], _DECIMALS),
            high=None if bounds is None else round(bounds[1], _DECIMALS),
            n=n,
            seen_items=KEEP,
            candidates=n_categories - FIRST_ID,
            n_label_unknown=n_unknown,
            n_label_removed=0,
            **shared,
        )

    for metric, ratio in judged.ratios.items():
        low, high = (float(bound[0]) for bound in interval(replicates[metric][:, None]))
        n = int(np.count_nonzero(ratio[1]))
        yield row(metric, _value(ratio), n, (low, high))
        if metric == CROSS_ENTROPY:
            yield row(PERPLEXITY, math.exp(_value(ratio)), n, (math.exp(low), math.exp(high)))
    n_judged = max((int(np.count_nonzero(ratio[1])) for ratio in judged.ratios.values()), default=len(rows.user_id))
    for metric, value in judged.whole.items():
        yield row(metric, value, n_judged, None)


def _compare(
    target: str, by_source: Mapping[str, _Judged], replicates: Mapping[str, Mapping[str, Doubles]], model: str
) -> Iterator[Comparison]:
    """The model against each other source, by every ratio that both have, on the same draws."""
    for name, judged in by_source.items():
        for metric, ratio in judged.ratios.items():
            if name == model or metric not in by_source[model].ratios:
                continue
            difference = _value(by_source[model].ratios[metric]) - _value(ratio)
            low, high = interval((replicates[model][metric] - replicates[name][metric])[:, None])
            bounds = (round(float(x), _DECIMALS) for x in (difference, low[0], high[0]))
            k = NDCG_DEPTH if metric == NDCG_SHARE else 0
            yield Comparison(target, metric, k, model, name, *bounds)
