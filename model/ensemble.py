"""Several predictors as one. Loads no TensorFlow itself.

B rows, V ids of a vocabulary, K kept.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from features import columns as c
from model.errors import ModelError
from model.evaluation import Channels, Ranker, Scores
from model.metrics import Floats, Ints

PROBABILITIES, RANKS = "probabilities", "ranks"
ENSEMBLES = (PROBABILITIES, RANKS)

# k of reciprocal rank fusion: how little the very first places stand out. 60 as in Cormack, Clarke & Büttcher 2009.
_RANK_OFFSET = 60


class Ensemble:
    """Answers with the mean over its members, all of equal weight.

    probabilities: the mean of their distributions (the linear opinion pool; Lakshminarayanan et al. 2017 for networks),
    which is a distribution again. ranks: the mean of 1 / (60 + rank), rank 1 = best and equal scores share the best
    place (reciprocal rank fusion, Cormack et al. 2009); scores only, their order counts.
    """

    def __init__(self, members: Sequence[Ranker], how: str) -> None:
        """Members must be two or more, and have one vocabulary; wrap others in `Widened`."""
        if len(members) < 2:
            raise ModelError(f"An ensemble needs two models or more, not {len(members)}: repeat --bundle.")
        if how not in ENSEMBLES:
            raise ModelError(f"No ensemble of {how}; there are {' and '.join(ENSEMBLES)}.")
        self._members, self._how = tuple(members), how

    def probabilities(self, channels: Channels, length: Ints, next_gap: Ints) -> Scores:
        """As Ranker's: ([B, V items], [B, V categories])."""
        seen = [member.probabilities(channels, length, next_gap) for member in self._members]
        combine = _mean if self._how == PROBABILITIES else _mean_reciprocal_rank
        return combine([items for items, _ in seen]), combine([categories for _, categories in seen])

    def top(self, channels: Channels, length: Ints, next_gap: Ints, k_items: int, k_categories: int) -> Any:
        """The likeliest ids and their probabilities, as Predictor.top. Only of probabilities.

        Raises:
            ModelError: the ensemble is one of ranks, which has no probabilities.
        """
        if self._how != PROBABILITIES:
            raise ModelError("An ensemble of ranks has no probabilities to score with; take one of probabilities.")
        from model.predict import Top  # here: it loads TensorFlow

        items, categories = self.probabilities(channels, length, next_gap)
        return Top(*_best(items, k_items), *_best(categories, k_categories))


class Widened:
    """A predictor of fewer ids among those of more: ids never move in a root, so the others follow, with score 0."""

    def __init__(self, ranker: Ranker, own: tuple[int, int], n_ids: tuple[int, int]) -> None:
        """own: numbers of items and categories that the predictor knows; n_ids: those that are ranked."""
        self._ranker, self._own, self._n_ids = ranker, own, n_ids

    def probabilities(self, channels: Channels, length: Ints, next_gap: Ints) -> Scores:
        """As Ranker's. Ids that the predictor does not know go in as unknown."""
        understood = dict(channels)
        for name, size in zip((c.ITEM, c.CATEGORY), self._own, strict=True):
            understood[name] = np.where(channels[name] < size, channels[name], np.int32(c.OOV))
        known = self._ranker.probabilities(understood, length, next_gap)
        items, categories = (
            np.pad(scores, ((0, 0), (0, size - scores.shape[1])))
            for scores, size in zip(known, self._n_ids, strict=True)
        )
        return items, categories


def _mean(parts: list[Floats]) -> Floats:
    return np.asarray(np.mean(parts, axis=0), dtype=np.float32)


def _mean_reciprocal_rank(parts: list[Floats]) -> Floats:
    from scipy.stats import rankdata  # here: it takes most of a second to load, and every job knows of ensembles

    total = np.zeros(parts[0].shape, dtype=np.float64)
    for scores in parts:
        ranks = rankdata(-scores[:, c.FIRST_ID :], method="min", axis=1)  # [B, V - FIRST_ID]
        total[:, c.FIRST_ID :] += 1.0 / (_RANK_OFFSET + ranks)
    return np.asarray(total / len(parts), dtype=np.float32)


def _best(probabilities: Floats, k: int) -> tuple[Ints, Floats]:
    """Ids and probabilities of the k likeliest known ids, falling; ties by smaller id."""
    known = probabilities[:, c.FIRST_ID :]
    order = np.argsort(-known, axis=1, kind="stable")[:, :k]
    return (order + c.FIRST_ID).astype(np.int32), np.take_along_axis(known, order, axis=1)
