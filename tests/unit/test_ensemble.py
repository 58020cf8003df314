import numpy as np
import pytest

from features import columns as c
from model.ensemble import Ensemble, Widened
from model.errors import ModelError


class Fixed:
    """The same distributions for every row; remembers the channels it saw."""

    def __init__(self, items, categories):
        self.scores = tuple(np.array(row, dtype=np.float32) for row in (items, categories))
        self.seen = None

    def probabilities(self, channels, length, _next_gap):
        self.seen = channels
        return tuple(np.tile(row, (len(length), 1)) for row in self.scores)


FIRST = Fixed([0, 0, 0.5, 0.3, 0.1, 0.1], [0, 0, 0.9, 0.1])
SECOND = Fixed([0, 0, 0.1, 0.2, 0.6, 0.1], [0, 0, 0.2, 0.8])
ROWS = {c.ITEM: np.array([[2, 5], [3, 0]], dtype=np.int32), c.CATEGORY: np.array([[2, 3], [2, 0]], dtype=np.int32)}
LENGTH = np.array([2, 1], dtype=np.int32)


def ask(ranker):
    return ranker.probabilities(ROWS, LENGTH, LENGTH)


def test_probabilities_are_averaged():
    items, categories = ask(Ensemble([FIRST, SECOND], "probabilities"))
    np.testing.assert_allclose(items, [[0, 0, 0.3, 0.25, 0.35, 0.1]] * 2, rtol=1e-6)
    np.testing.assert_allclose(categories, [[0, 0, 0.55, 0.45]] * 2, rtol=1e-6)
    three = ask(Ensemble([FIRST, FIRST, SECOND], "probabilities"))[0]
    np.testing.assert_allclose(three[0], (2 * FIRST.scores[0] + SECOND.scores[0]) / 3, rtol=1e-6)


def test_reciprocal_ranks_are_averaged_and_equal_scores_share_a_place():
    items, categories = ask(Ensemble([FIRST, SECOND], "ranks"))
    # Ranks: first 1 2 3 3, second 3 2 1 3 (0.1 twice: both third).
    wanted = [(1 / 61 + 1 / 63) / 2, 1 / 62, (1 / 63 + 1 / 61) / 2, 1 / 63]
    np.testing.assert_allclose(items[0], [0, 0, *wanted], rtol=1e-6)
    np.testing.assert_allclose(categories[1], [0, 0, (1 / 61 + 1 / 62) / 2, (1 / 62 + 1 / 61) / 2], rtol=1e-6)


def test_ranks_are_those_of_a_slow_count():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 5, 12).astype(np.float32) for _ in range(3)]
    members = [Fixed(np.concatenate([[0, 0], part]), [0, 0, 1]) for part in parts]
    found = ask(Ensemble(members, "ranks"))[0][0, 2:]
    slow = [np.mean([1 / (60 + 1 + sum(other > part[at] for other in part)) for part in parts]) for at in range(12)]
    np.testing.assert_allclose(found, slow, rtol=1e-6)


def test_the_ensemble_of_one_model_with_itself_is_that_model():
    same = ask(Ensemble([FIRST, FIRST], "probabilities"))
    np.testing.assert_array_equal(same[0], ask(FIRST)[0])
    ranked = ask(Ensemble([FIRST, FIRST], "ranks"))[0]
    assert np.argsort(-ranked[0], kind="stable").tolist() == np.argsort(-FIRST.scores[0], kind="stable").tolist()


def test_the_top_is_that_of_the_mean_as_scoring_reads_it():
    top = Ensemble([FIRST, SECOND], "probabilities").top(ROWS, LENGTH, LENGTH, 3, 9)
    assert top.item_ids.tolist() == [[4, 2, 3]] * 2
    np.testing.assert_allclose(top.item_p[0], [0.35, 0.3, 0.25], rtol=1e-6)
    assert top.category_ids.tolist() == [[2, 3]] * 2
    assert (top.item_ids.dtype, top.item_p.dtype) == (np.int32, np.float32)
    with pytest.raises(ModelError, match="An ensemble of ranks has no probabilities"):
        Ensemble([FIRST, SECOND], "ranks").top(ROWS, LENGTH, LENGTH, 3, 9)


def test_a_smaller_vocabulary_is_widened_and_does_not_see_what_it_cannot_know():
    small = Fixed([0, 0, 0.7, 0.3], [0, 0, 1.0])
    items, categories = ask(Widened(small, (4, 3), (6, 4)))
    np.testing.assert_allclose(items[0], [0, 0, 0.7, 0.3, 0, 0])
    np.testing.assert_allclose(categories[0], [0, 0, 1, 0])
    assert small.seen[c.ITEM].tolist() == [[2, c.OOV], [3, 0]]
    assert small.seen[c.CATEGORY].tolist() == [[2, c.OOV], [2, 0]]
    assert ROWS[c.ITEM].tolist() == [[2, 5], [3, 0]]


def test_one_model_or_an_unknown_mean_is_no_ensemble():
    with pytest.raises(ModelError, match="two models or more, not 1"):
        Ensemble([FIRST], "ranks")
    with pytest.raises(ModelError, match="No ensemble of votes; there are probabilities and ranks"):
        Ensemble([FIRST, SECOND], "votes")
