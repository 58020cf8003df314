"""Full-ranking metrics in which ties count against us, and their bootstrap intervals. Arrays in, arrays out.

B rows (users), V ids of a vocabulary, D depth of the lists that are counted, K cut-offs, M metrics, R replicates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.columns import FIRST_ID, PAD
from model.errors import ModelError

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Metrics of one user, in the order of the last axis of `user_metrics`.
HR, NDCG, MRR, RECALL, PRECISION, F1 = "hr", "ndcg", "mrr", "recall", "precision", "f1"
USER_METRICS = (HR, NDCG, MRR, RECALL, PRECISION, F1)

# The rank of a label that is no candidate: below every cut-off, so the row is a miss.
UNRANKED = np.iinfo(np.int64).max

_NOT_A_LABEL = np.uint64(1 << 31)
_ID_MASK = np.uint64((1 << 31) - 1)
_LOW_BITS = np.uint64(32)
_PARTS_PER_PLACE = 16
# Bootstrap weights drawn at a time: 4 million counts are 32 MiB.
_BOOTSTRAP_CELLS = 4_000_000


class Ragged(NamedTuple):
    """One list of ids for each row: row b holds values[offsets[b]:offsets[b + 1]]."""

    values: Ints  # [n]
    offsets: Longs  # [B + 1]

    def rows(self, start: int, stop: int) -> "Ragged":
        """The rows start..stop - 1 as lists of their own."""
        offsets = self.offsets[start : stop + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def row_of_value(self) -> Longs:
        """The row of each value, [n]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


class Ranking(NamedTuple):
    """Where the labels of B rows stand in their full ranking."""

    rank: Longs  # [B] rank of the first label, 1 = best; UNRANKED where it is no candidate
    top: Ints  # [B, D] the D best candidates, best first; PAD where there are fewer
    hit: Bools  # [B, D] whether the one at this place is a label
    n_labels: Longs  # [B] distinct labels


def distinct(lists: Ragged) -> Ragged:
    """Each row's distinct values, rising. All unknown ids of a row are the one id OOV."""
    rows, span = lists.row_of_value(), int(lists.values.max(initial=0)) + 1
    pairs = np.unique(rows * span + lists.values)
    n_rows = len(lists.offsets) - 1
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs // span, minlength=n_rows))]).astype(np.int64)
    return Ragged((pairs % span).astype(np.int32), offsets)


def rank_labels(scores: Floats, first: Ints, labels: Ragged, removed: Ragged | None, depth: int) -> Ranking:
    """Rank every candidate of every row.

    Candidates are all ids from FIRST_ID on, less the row's `removed` ids. A label that is no candidate (unknown, or
    removed) is a miss; the row stays. The rank of the first label is 1 + the number of other candidates whose score is
    at least its own. The list puts, at equal scores, other candidates before labels and smaller ids first.

    scores: [B, V], finite; first: [B]; labels: B distinct lists. A constant score ranks every label last.

    Raises:
        ModelError: a score is not a finite number.
    """
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise ModelError(
            f"The score of id {column} in row {row} of the block is {scores[row, column]}; rankings need finite "
            "numbers. If the model wrote it, its training diverged: lower training.learning_rate and train again."
        )
    candidates = scores.astype(np.float32) + np.float32(0)  # a copy in which -0 is 0
    candidates[:, :FIRST_ID] = -np.inf
    if removed is not None:
        candidates[removed.row_of_value(), removed.values] = -np.inf
    own = candidates[np.arange(len(first)), first]  # [B]
    at_least = np.count_nonzero(candidates >= own[:, None], axis=1)
    rank = np.where(np.isneginf(own), UNRANKED, at_least)
    top, hit = _best(candidates, labels, min(depth, scores.shape[1]))
    return Ranking(rank, top, hit, np.diff(labels.offsets))


def user_metrics(ranking: Ranking, ks: Sequence[int]) -> Floats:
    """USER_METRICS of every row at every cut-off, [B, len(ks), len(USER_METRICS)].

    With r the rank of the first label, h the labels among the first K and n the distinct labels:
    HR@K = [r ≤ K]; NDCG@K = [r ≤ K] / log2(1 + r); MRR@K = [r ≤ K] / r (Järvelin & Kekäläinen 2002, one relevant
    item); Recall@K = h / n; Precision@K = h / K; F1@K = 2 h / (K + n), their harmonic mean. At random scores
    HR@K ≈ K / number of candidates.
    """
    hits = np.cumsum(ranking.hit, axis=1)  # [B, D]
    n_labels = np.maximum(ranking.n_labels, 1)
    by_k = []
    for k in ks:
        found = ranking.rank <= k
        rank = np.where(found, ranking.rank, 1)
        n_hits = hits[:, min(k, hits.shape[1]) - 1]
        by_k.append(
            np.stack(
                [
                    found,
                    found / np.log2(1.0 + rank),
                    found / rank,
                    n_hits / n_labels,
                    n_hits / k,
                    2.0 * n_hits / (k + n_labels),
                ],
                axis=1,
            )
        )
    return np.asarray(np.stack(by_k, axis=1), dtype=np.float32)


def top_choice(ranking: Ranking, first: Ints) -> Ints:
    """The id predicted for each row, [B]: the first label only where it has rank 1, so that ties count against us."""
    best = ranking.top[:, 0]
    if ranking.top.shape[1] == 1:
        return best
    shared = (best == first) & (ranking.rank > 1)
    return np.asarray(np.where(shared, ranking.top[:, 1], best), dtype=np.int32)


def macro_f1(labels: Ints, predicted: Ints) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN); classes are all ids that occur in either, OOV included.

    Always the largest of C equally frequent classes: about 2 / (C (C + 1)).
    """
    size = int(max(labels.max(initial=0), predicted.max(initial=0))) + 1
    true_count = np.bincount(labels, minlength=size)
    predicted_count = np.bincount(predicted, minlength=size)
    both = np.bincount(labels[labels == predicted], minlength=size)
    occurs = (true_count + predicted_count) > 0
    return float(np.mean(2.0 * both[occurs] / (true_count + predicted_count)[occurs]))


def mark_covered(covered: Bools, ranking: Ranking, ks: Sequence[int]) -> None:
    """Mark in `covered` [len(ks), V], in place, the ids that appear in a list cut at each K."""
    for position, k in enumerate(ks):
        covered[position, ranking.top[:, :k]] = True
    covered[:, PAD] = False


def bootstrap_means(values: Floats, n_bootstrap: int, seed: int) -> Doubles:
    """Means of the columns under resampling of the rows with replacement, [R, M]; all columns share the draws.

    Efron & Tibshirani 1993, ch. 6 and 13. Each replicate is a multinomial weight for each row, so that
    a replicate's means are one matrix product; shared draws make differences between columns paired.
    """
    n_rows = len(values)
    rng = np.random.default_rng(seed)
    step = max(1, _BOOTSTRAP_CELLS // n_rows)
    means = np.empty((n_bootstrap, values.shape[1]))
    for start in range(0, n_bootstrap, step):
        size = min(step, n_bootstrap - start)
        draws = rng.integers(0, n_rows, size=(size, n_rows)) + n_rows * np.arange(size)[:, None]
        weights = np.bincount(draws.ravel(), minlength=size * n_rows).reshape(size, n_rows)
        means[start : start + size] = weights.astype(np.float32) @ values / n_rows
    return means


def interval(replicates: Doubles) -> tuple[Doubles, Doubles]:
    """Percentile 95 % interval of each column of [R, M] replicates: (low [M], high [M])."""
    low, high = np.percentile(replicates, [2.5, 97.5], axis=0)
    return low, high


def _best(candidates: Floats, labels: Ragged, depth: int) -> tuple[Ints, Bools]:
    """The `depth` best of each row and whether they are labels, in the order that `rank_labels` states.

    The order is packed into one integer per candidate, most significant first: score, "not a label", falling id.
    So sorting plain integers gives the list, and the ids are read back from the low bits. Only what reaches a
    lower bound of the list's last score is packed: a few more than `depth` in most rows.
    """
    rows, columns = np.nonzero(candidates >= _reached_by(candidates, depth)[:, None])
    n_reached = np.bincount(rows, minlength=len(candidates))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(n_reached) - n_reached, n_reached)
    is_label = np.zeros(candidates.shape, dtype=np.bool_)
    is_label[labels.row_of_value(), labels.values] = True

    bits = candidates[rows, columns].view(np.uint32)
    rising = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # unsigned order = order of the floats
    packed = rising.astype(np.uint64) << _LOW_BITS
    packed |= np.where(is_label[rows, columns], np.uint64(0), _NOT_A_LABEL) | (_ID_MASK - columns.astype(np.uint64))
    keys = np.zeros((len(candidates), int(n_reached.max(initial=depth))), dtype=np.uint64)  # 0 is below every key
    keys[rows, place] = packed
    keys.partition(keys.shape[1] - depth, axis=1)
    best = np.sort(keys[:, keys.shape[1] - depth :], axis=1)[:, ::-1]

    lowest = ~np.array([-np.inf], dtype=np.float32).view(np.uint32)[0]
    present = (best >> _LOW_BITS) > lowest
    ids = np.where(present, _ID_MASK - (best & _ID_MASK), PAD).astype(np.int32)
    return ids, present & ((best & _NOT_A_LABEL) == 0)


def _reached_by(candidates: Floats, depth: int) -> Floats:
    """A score that at least `depth` candidates of the row reach, [B]: the depth-th greatest maximum of disjoint parts.

    The more parts, the fewer candidates reach it; `_PARTS_PER_PLACE` times depth parts let about depth + 2 % through.
    """
    n_parts = _PARTS_PER_PLACE * depth
    part = candidates.shape[1] // n_parts
    if part < 2:
        return np.full(len(candidates), -np.inf, dtype=np.float32)
    maxima = candidates[:, : part * n_parts].reshape(len(candidates), part, n_parts).max(axis=1)
    return np.asarray(np.partition(maxima, n_parts - depth, axis=1)[:, n_parts - depth])
