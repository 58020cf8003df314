"""The evaluation protocol: rows of a split and rankers in, table rows that carry their protocol out.

B rows (users), L time, V ids of a vocabulary, K cut-offs, M metrics, R bootstrap replicates.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from features.columns import FIRST_ID, OOV, PAD, TRAIN
from model.errors import ModelError
from model.metrics import (
    HR,
    USER_METRICS,
    Bools,
    Doubles,
    Floats,
    Ints,
    Longs,
    Ragged,
    bootstrap_means,
    distinct,
    interval,
    macro_f1,
    mark_covered,
    rank_labels,
    top_choice,
    user_metrics,
)

Channels = dict[str, Ints]  # each [B, L], oldest event first, PAD at the end
Scores = tuple[Floats, Floats]  # [B, V items], [B, V categories]
ScoreBlock = Callable[[int, int], Scores]  # scores of the rows start..stop - 1

ITEM_TARGET, CATEGORY_TARGET = "item", "category"
TARGETS = (CATEGORY_TARGET, ITEM_TARGET)
KEEP, REMOVE = "keep", "remove"
ACCURACY, MACRO_F1, COVERAGE = "accuracy", "macro_f1", "coverage"

# Values are written with six decimals: fewer than a metric needs, more than float32 sums are reproducible to.
_DECIMALS = 6


class EvaluationSpec(BaseModel):
    """How rankings are judged and baselines fitted; values and reasons stand in conf/base.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ks: tuple[int, ...] = Field(min_length=1)
    seen_items: Literal["keep", "remove"]
    max_users: int = Field(gt=0)
    max_train_users: int = Field(gt=0)
    n_bootstrap: int = Field(ge=100)
    seed: int = Field(ge=0)
    block_cells: int = Field(ge=1000)
    recent_days: float = Field(gt=0)
    markov_prior: float = Field(gt=0)
    knn_neighbours: int = Field(gt=0)
    knn_sample: int = Field(gt=0)
    knn_last_items: int = Field(gt=0)
    knn_idf: bool

    @field_validator("ks")
    @classmethod
    def _rising(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if list(ks) != sorted(set(ks)) or ks[0] < 1:
            raise ValueError("expected distinct cut-offs from 1 on, rising, for example [1, 5, 10, 20]")
        return ks


class Ranker(Protocol):
    """Whatever scores all items and categories for a batch: the model's Predictor, and every baseline."""

    def probabilities(self, channels: Channels, length: Ints, next_gap: Ints, /) -> Scores:
        """Finite scores, higher is likelier: ([B, V items], [B, V categories])."""


@dataclass(frozen=True)
class EvaluationRows:
    """The rows of one split, one per user: what is known before the cutoff and what came after it."""

    user_id: tuple[str, ...]
    channels: Channels
    length: Ints  # [B]
    next_gap: Ints  # [B]
    last_time_us: Longs  # [B]
    next_time_us: Longs  # [B]
    next_item: Ints  # [B]
    next_category: Ints  # [B]
    label_items: Ragged
    label_categories: Ragged
    label_actions: Ragged
    label_times_us: Ragged
    seen_items: Ragged


@dataclass(frozen=True)
class SplitProtocol:
    """How the rows were made; repeated in every table row. Times are UTC, ISO 8601."""

    date: str
    split: str  # valid or test
    protocol: str  # global_time or leave_one_out
    train_before: str | None  # global_time: training events lie before it
    cutoff: str | None  # global_time: inputs lie before it; those after train_before were never trained on
    embargo_days: int | None  # global_time: labels lie at or after cutoff + embargo
    n_users: int
    n_users_in_split: int  # more than n_users where only a sample is evaluated
    n_train_users: int  # whose training events the baselines were fitted on
    n_train_users_in_split: int


@dataclass(frozen=True)
class MetricRow:
    """One number and everything needed to compare it with another. low and high: 95 % interval, over users."""

    target: str
    model: str
    metric: str
    k: int
    value: float
    low: float | None
    high: float | None
    n: int
    seen_items: str
    candidates: int  # ids that are ranked, before a user's seen items are removed
    n_label_unknown: int  # rows whose first label has no id: misses
    n_label_removed: int  # rows whose first label was removed with the seen items: misses
    date: str
    split: str
    protocol: str
    train_before: str | None
    cutoff: str | None
    embargo_days: int | None
    n_users_in_split: int
    n_train_users: int
    n_train_users_in_split: int


class Comparison(NamedTuple):
    """Difference first - second of one metric, with its paired 95 % bootstrap interval."""

    target: str
    metric: str
    k: int
    first: str
    second: str
    difference: float
    low: float
    high: float


class Evaluation(NamedTuple):
    """All rows of one table, ordered by target, model, metric and k, and differences from the model's row."""

    rows: tuple[MetricRow, ...]
    comparisons: tuple[Comparison, ...]


class _Target(NamedTuple):
    name: str
    first: Ints  # [B]
    labels: Ragged  # distinct
    removed: Ragged | None
    n_ids: int


class _Result(NamedTuple):
    per_user: Floats  # [B, len(ks), len(USER_METRICS)]
    predicted: Ints  # [B]
    covered: Bools  # [len(ks), V]


def evaluate_rankings(
    rows: EvaluationRows,
    split: SplitProtocol,
    sources: Mapping[str, ScoreBlock],
    n_ids: tuple[int, int],
    spec: EvaluationSpec,
    model: str | None = None,
) -> Evaluation:
    """Judge every source on the same rows, users and bootstrap draws.

    sources: by the name of their table row; n_ids: V of items and of categories; model: the source that is compared
    with each other one. Memory: blocks of `spec.block_cells` scores, and 4 bytes a user, metric and source.

    With seen_items = remove, a user's seen items are no candidates for the item target (S3-Rec, Zhou et al. 2020).
    A label that was seen before is then a miss as well: to keep only that one seen item would name the answer.
    """
    if not rows.user_id:
        raise ModelError(
            f"Split {split.split} of {split.date} has no rows to evaluate. Choose cutoffs with events after them "
            "(sequences section of the configuration) or a later --date."
        )
    targets = _targets(rows, n_ids, spec.seen_items)
    table: list[MetricRow] = []
    comparisons: list[Comparison] = []
    results = {name: _judge(source, targets, spec) for name, source in sources.items()}
    for position, target in enumerate(targets):
        per_user = np.stack([results[name][position].per_user for name in sources])  # [sources, B, K, M]
        n_sources, n_rows, n_ks, n_metrics = per_user.shape
        flat = np.moveaxis(per_user, 1, 0).reshape(n_rows, -1)
        shape = (spec.n_bootstrap, n_sources, n_ks, n_metrics)
        replicates = bootstrap_means(flat, spec.n_bootstrap, spec.seed).reshape(shape)
        for number, name in enumerate(sources):
            result = results[name][position]
            table += _table_rows(name, target, result, replicates[:, number], split, spec)
        if model is not None:
            comparisons += _compare(list(sources), target.name, per_user, replicates, model, spec.ks)
    return Evaluation(tuple(table), tuple(comparisons))


def scores_of(ranker: Ranker, rows: EvaluationRows) -> ScoreBlock:
    """A ranker's scores of any block of the rows."""

    def block(start: int, stop: int) -> Scores:
        channels = {name: channel[start:stop] for name, channel in rows.channels.items()}
        return ranker.probabilities(channels, rows.length[start:stop], rows.next_gap[start:stop])

    return block


def stored_scores(
    items: tuple[Ragged, Floats], categories: tuple[Ragged, Floats], n_ids: tuple[int, int]
) -> ScoreBlock:
    """Scores that were stored for each row as (ids, weights), for example a simulation's truth.

    Ids that were not stored score 0: they stand behind the stored ones, all tied, and so all misses.
    """

    def dense(stored: tuple[Ragged, Floats], size: int, start: int, stop: int) -> Floats:
        lists, weights = stored
        part = lists.rows(start, stop)
        scores = np.zeros((stop - start, size), dtype=np.float32)
        scores[part.row_of_value(), part.values] = weights[lists.offsets[start] : lists.offsets[stop]]
        return scores

    return lambda start, stop: (dense(items, n_ids[0], start, stop), dense(categories, n_ids[1], start, stop))


def check_no_leak(
    user_id: Sequence[str],
    last_time_us: Longs,
    next_time_us: Longs,
    split: str,
    cutoff_us: int | None,
    embargo_us: int = 0,
) -> None:
    """Refuse rows whose inputs reach past their labels, or past the cutoff.

    last_time ≤ next_time always. With a cutoff (global time), valid and test rows also keep last_time < cutoff and
    cutoff + embargo ≤ next_time; train rows keep next_time < cutoff, the end of training.

    Raises:
        ModelError: names the first such user and the times.
    """
    problems = [(last_time_us > next_time_us, "the last input event is later than the label")]
    if cutoff_us is not None and split == TRAIN:
        problems.append((next_time_us >= cutoff_us, "a training event is not before the end of training"))
    elif cutoff_us is not None:
        problems.append((last_time_us >= cutoff_us, "an input event is not before the cutoff"))
        problems.append((next_time_us < cutoff_us + embargo_us, "the label is before the cutoff and its embargo"))
    for wrong, what in problems:
        if wrong.any():
            row = int(np.argmax(wrong))
            cutoff = "none" if cutoff_us is None else utc_text(cutoff_us)
            raise ModelError(
                f"Leak in split {split}, user {user_id[row]}: {what}. last_time "
                f"{utc_text(int(last_time_us[row]))}, next_time {utc_text(int(next_time_us[row]))}, cutoff {cutoff}; "
                f"{int(wrong.sum())} rows of {len(wrong)}. Write the sequences again with jobs.sequences."
            )


def utc_text(time_us: int) -> str:
    """A time in microseconds as ISO 8601, UTC."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat()


def _targets(rows: EvaluationRows, n_ids: tuple[int, int], seen_items: str) -> tuple[_Target, _Target]:
    """Category and item target; every id is checked against its vocabulary once."""
    for name, values, size in (
        ("next_item", rows.next_item, n_ids[0]),
        ("label_items", rows.label_items.values, n_ids[0]),
        ("seen_items", rows.seen_items.values, n_ids[0]),
        ("next_category", rows.next_category, n_ids[1]),
        ("label_categories", rows.label_categories.values, n_ids[1]),
    ):
        if len(values) and not PAD < values.min() <= values.max() < size:
            worst = values.max() if values.max() >= size else values.min()
            raise ModelError(
                f"Column {name} holds id {worst}; ids go from {OOV} to {size - 1} in the bundle's vocabulary. The "
                "sequences and the bundle do not belong together: train on these sequences, or evaluate its own."
            )
    removed = rows.seen_items if seen_items == REMOVE else None
    return (
        _Target(CATEGORY_TARGET, rows.next_category, distinct(rows.label_categories), None, n_ids[1]),
        _Target(ITEM_TARGET, rows.next_item, distinct(rows.label_items), removed, n_ids[0]),
    )


def _judge(source: ScoreBlock, targets: tuple[_Target, _Target], spec: EvaluationSpec) -> tuple[_Result, _Result]:
    """Score the rows block by block, once for both targets."""
    n_rows, n_ks = len(targets[0].first), len(spec.ks)
    results = tuple(
        _Result(
            np.zeros((n_rows, n_ks, len(USER_METRICS)), dtype=np.float32),
            np.zeros(n_rows, dtype=np.int32),
            np.zeros((n_ks, target.n_ids), dtype=np.bool_),
        )
        for target in targets
    )
    for start, stop in _blocks(n_rows, max(target.n_ids for target in targets), spec.block_cells):
        items, categories = source(start, stop)
        for target, result, scores in zip(targets, results, (categories, items), strict=True):
            if scores.shape != (stop - start, target.n_ids):
                raise ModelError(
                    f"The scores of rows {start}..{stop - 1} have shape {scores.shape} for target {target.name}; "
                    f"expected {(stop - start, target.n_ids)}, one for each id of the bundle's vocabulary."
                )
            first, labels = target.first[start:stop], target.labels.rows(start, stop)
            removed = None if target.removed is None else target.removed.rows(start, stop)
            ranking = rank_labels(scores, first, labels, removed, max(spec.ks[-1], 2))
            result.per_user[start:stop] = user_metrics(ranking, spec.ks)
            result.predicted[start:stop] = top_choice(ranking, first)
            mark_covered(result.covered, ranking, spec.ks)
    return results[0], results[1]


def _blocks(n_rows: int, n_ids: int, block_cells: int) -> Iterator[tuple[int, int]]:
    step = max(1, block_cells // n_ids)
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)


def _table_rows(
    name: str, target: _Target, result: _Result, replicates: Doubles, split: SplitProtocol, spec: EvaluationSpec
) -> Iterator[MetricRow]:
    """The rows of one source and target: per-user metrics with intervals, then those of the whole table."""
    n_rows, n_candidates = len(target.first), target.n_ids - FIRST_ID
    rows_of_seen = () if target.removed is None else _holds(target.removed, target.first)
    n_unknown, n_removed = int((target.first < FIRST_ID).sum()), int(np.sum(rows_of_seen))
    means = result.per_user.mean(axis=0, dtype=np.float64)  # [K, M]
    low, high = interval(replicates.reshape(len(replicates), -1))
    shared = {f.name: getattr(split, f.name) for f in fields(split) if f.name != "n_users"}

    def row(metric: str, k: int, value: float, bounds: tuple[float, float] | None) -> MetricRow:
        return MetricRow(
            target=target.name,
            model=name,
            metric=metric,
            k=k,
            value=round(value, _DECIMALS),
            low=None if bounds is None else round(float(bounds[0]), _DECIMALS),
            high=None if bounds is None else round(float(bounds[1]), _DECIMALS),
            n=n_rows,
            seen_items=KEEP if target.removed is None else REMOVE,
            candidates=n_candidates,
            n_label_unknown=n_unknown,
            n_label_removed=n_removed,
            **shared,
        )

    bounds = np.stack([low, high], axis=1).reshape(*means.shape, 2)  # [K, M, 2]
    for m, metric in enumerate(USER_METRICS):
        for i, k in enumerate(spec.ks):
            yield row(metric, k, float(means[i, m]), (bounds[i, m, 0], bounds[i, m, 1]))
    for i, k in enumerate(spec.ks):
        yield row(COVERAGE, k, float(result.covered[i].sum() / max(n_candidates, 1)), None)
    if target.name == CATEGORY_TARGET:
        if spec.ks[0] == 1:
            m = USER_METRICS.index(HR)
            yield row(ACCURACY, 1, float(means[0, m]), (bounds[0, m, 0], bounds[0, m, 1]))
        yield row(MACRO_F1, 1, macro_f1(target.first, result.predicted), None)


def _holds(lists: Ragged, values: Ints) -> Bools:
    """Whether each row's list holds the row's value, a known id; [B]."""
    rows = lists.row_of_value()
    found = np.bincount(rows[lists.values == values[rows]], minlength=len(values)) > 0
    return np.asarray(found & (values >= FIRST_ID))


def _compare(
    names: list[str], target: str, per_user: Floats, replicates: Doubles, model: str, ks: tuple[int, ...]
) -> Iterator[Comparison]:
    """The model against each other source, every per-user metric and K; both share users and draws."""
    own = names.index(model)
    means = per_user.mean(axis=1, dtype=np.float64)  # [sources, K, M]
    for other, name in enumerate(names):
        if other == own:
            continue
        low, high = np.percentile(replicates[:, own] - replicates[:, other], [2.5, 97.5], axis=0)  # [K, M] each
        difference = means[own] - means[other]
        for m, metric in enumerate(USER_METRICS):
            for i, k in enumerate(ks):
                bounds = (round(float(x[i, m]), _DECIMALS) for x in (difference, low, high))
                yield Comparison(target, metric, k, model, name, *bounds)
