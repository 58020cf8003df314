import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.columns import FIRST_ID, OOV, PAD
from model.errors import ModelError
from model.metrics import (
    UNRANKED,
    USER_METRICS,
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


def ragged(*lists):
    values = np.array([value for row in lists for value in row], dtype=np.int32)
    return Ragged(values, np.cumsum([0, *map(len, lists)]))


def scores(*rows):
    """Scores of ids 2, 3, …; PAD and OOV get the best ones, which must not matter."""
    return np.array([[9.0, 9.0, *row] for row in rows], dtype=np.float32)


def ids(*values):
    return np.array(values, dtype=np.int32)


def metric(ranking, ks, name, k, row=0):
    return user_metrics(ranking, ks)[row, ks.index(k), USER_METRICS.index(name)]


def test_values_of_one_user_by_hand():
    # Order: 4 (.9), 2 (.5), 5 (.4), 3 (.1). The next item is 2 (rank 2); the period holds 2, 5 and 3.
    ranking = rank_labels(scores([0.5, 0.1, 0.9, 0.4]), ids(2), ragged([2, 3, 5]), None, depth=3)
    assert ranking.rank.tolist() == [2]
    assert ranking.top.tolist() == [[4, 2, 5]]
    assert ranking.hit.tolist() == [[False, True, True]]
    ks = [1, 2, 3]
    assert [metric(ranking, ks, "hr", k) for k in ks] == [0, 1, 1]
    assert metric(ranking, ks, "ndcg", 2) == pytest.approx(1 / np.log2(3))
    assert metric(ranking, ks, "mrr", 3) == pytest.approx(1 / 2)
    assert metric(ranking, ks, "recall", 3) == pytest.approx(2 / 3)
    assert metric(ranking, ks, "precision", 2) == pytest.approx(1 / 2)
    assert metric(ranking, ks, "f1", 2) == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))


def test_precision_divides_by_k_even_beyond_the_candidates():
    ranking = rank_labels(scores([0.5, 0.1]), ids(2), ragged([2]), None, depth=10)
    assert metric(ranking, [10], "precision", 10) == pytest.approx(1 / 10)
    assert metric(ranking, [10], "recall", 10) == 1


def test_ties_count_against_the_label():
    ranking = rank_labels(scores([0.5, 0.5, 0.5, 0.1]), ids(2), ragged([2]), None, depth=2)
    assert ranking.rank.tolist() == [3]
    assert ranking.top.tolist() == [[3, 4]]
    assert not ranking.hit.any()


def test_negative_zero_ties_with_zero():
    ranking = rank_labels(scores([0.0, -0.0]), ids(2), ragged([2]), None, depth=1)
    assert ranking.rank.tolist() == [2]
    assert ranking.top.tolist() == [[3]]


def test_negative_scores_keep_their_order():
    ranking = rank_labels(scores([-3.0, -1.0, -2.0, 0.5]), ids(2), ragged([2]), None, depth=4)
    assert ranking.top.tolist() == [[5, 3, 4, 2]]


def test_an_unknown_label_is_a_miss_and_keeps_its_row():
    ranking = rank_labels(scores([0.5, 0.1]), ids(OOV), ragged([OOV, 2]), None, depth=2)
    assert ranking.rank.tolist() == [UNRANKED]
    assert ranking.hit.tolist() == [[True, False]]
    assert metric(ranking, [2], "hr", 2) == 0
    assert metric(ranking, [2], "recall", 2) == pytest.approx(1 / 2)


def test_removed_items_leave_the_list_and_a_removed_label_is_a_miss():
    ranking = rank_labels(scores([0.5, 0.9, 0.1], [0.5, 0.9, 0.1]), ids(2, 3), ragged([2], [3]), ragged([3], [3]), 3)
    assert ranking.rank.tolist() == [1, UNRANKED]
    assert ranking.top.tolist() == [[2, 4, PAD], [2, 4, PAD]]
    assert ranking.hit.tolist() == [[True, False, False], [False] * 3]


def test_scores_are_not_changed_and_must_be_finite():
    given_scores = scores([0.5, 0.1])
    before = given_scores.copy()
    rank_labels(given_scores, ids(2), ragged([2]), ragged([3]), 1)
    np.testing.assert_array_equal(given_scores, before)
    given_scores[0, 3] = np.nan
    with pytest.raises(ModelError, match=r"id 3 in row 0 .* nan"):
        rank_labels(given_scores, ids(2), ragged([2]), None, 1)


def test_constant_scores_rank_every_label_last():
    n_candidates = 50
    ranking = rank_labels(np.ones((3, n_candidates + FIRST_ID)), ids(2, 20, 51), ragged([2], [20], [51]), None, 10)
    assert ranking.rank.tolist() == [n_candidates] * 3


def test_random_scores_hit_k_in_v():
    rng = np.random.default_rng(1)
    n_rows, n_candidates, k = 4000, 200, 10
    first = rng.integers(FIRST_ID, n_candidates + FIRST_ID, n_rows).astype(np.int32)
    labels = Ragged(first, np.arange(n_rows + 1))
    ranking = rank_labels(rng.random((n_rows, n_candidates + FIRST_ID)), first, labels, None, k)
    hit_rate = user_metrics(ranking, [k])[:, 0, 0].mean()
    assert hit_rate == pytest.approx(k / n_candidates, abs=4 * np.sqrt(0.05 * 0.95 / n_rows))


def test_distinct_sorts_and_joins_repeats_within_a_row():
    lists = distinct(ragged([5, 2, 5], [], [OOV, OOV, 2]))
    assert lists.values.tolist() == [2, 5, OOV, 2]
    assert lists.offsets.tolist() == [0, 2, 2, 4]
    part = lists.rows(1, 3)
    assert (part.values.tolist(), part.offsets.tolist()) == ([OOV, 2], [0, 0, 2])


@settings(max_examples=150)
@given(st.data())
def test_rankings_equal_a_slow_obvious_oracle(data):
    n_ids = data.draw(st.integers(FIRST_ID + 1, 9))
    n_rows = data.draw(st.integers(1, 3))
    depth = data.draw(st.integers(1, 6))
    some_ids = st.integers(OOV, n_ids - 1)
    values = [data.draw(st.lists(st.integers(-2, 2), min_size=n_ids, max_size=n_ids)) for _ in range(n_rows)]
    labels = [data.draw(st.lists(some_ids, min_size=1, max_size=5)) for _ in range(n_rows)]
    removed = [data.draw(st.lists(some_ids, max_size=4)) for _ in range(n_rows)]
    given_scores = np.array(values, dtype=np.float32) / 4
    first = ids(*(row[0] for row in labels))
    ranking = rank_labels(given_scores, first, distinct(ragged(*labels)), ragged(*removed), depth)
    ks = sorted({1, depth})
    found = user_metrics(ranking, ks)
    for row in range(n_rows):
        expected = _slow_metrics(values[row], labels[row], set(removed[row]), ks)
        np.testing.assert_allclose(found[row], expected, rtol=1e-6)
        candidates = [i for i in range(FIRST_ID, n_ids) if i not in removed[row]]
        order = sorted(candidates, key=lambda i, at=row: (-values[at][i], i in labels[at], i))
        listed = (order + [PAD] * depth)[: min(depth, n_ids)]
        assert ranking.top[row].tolist() == listed


@pytest.mark.parametrize("n_levels", [2, 12, 100_000])
def test_lists_of_large_vocabularies_are_in_order_whatever_the_ties(n_levels):
    rng = np.random.default_rng(n_levels)
    n_rows, n_ids, depth = 40, 437, 5
    given_scores = rng.integers(0, n_levels, (n_rows, n_ids)).astype(np.float32) - n_levels / 2
    given_scores[0, FIRST_ID + 3 :] = -np.float32(n_levels)  # one row with three distinct good ids
    first = rng.integers(FIRST_ID, n_ids, n_rows).astype(np.int32)
    removed = ragged(*(rng.integers(OOV, n_ids, 30).tolist() for _ in range(n_rows)))
    labels = Ragged(first, np.arange(n_rows + 1))
    ranking = rank_labels(given_scores, first, labels, removed, depth)
    for row in range(n_rows):
        candidates = set(range(FIRST_ID, n_ids)) - set(removed.rows(row, row + 1).values.tolist())
        order = sorted(candidates, key=lambda i, at=row: (-given_scores[at, i], i == first[at], i))
        assert ranking.top[row].tolist() == order[:depth]
        assert ranking.hit[row].tolist() == [i == first[row] for i in order[:depth]]


def _slow_metrics(values, labels, removed, ks):
    candidates = [i for i in range(FIRST_ID, len(values)) if i not in removed]
    rank = None
    if labels[0] in candidates:
        rank = 1 + sum(values[i] >= values[labels[0]] for i in candidates if i != labels[0])
    wanted = set(labels)
    order = sorted(candidates, key=lambda i: (-values[i], i in wanted, i))
    rows = []
    for k in ks:
        found = rank is not None and rank <= k
        hits = len(wanted & set(order[:k]))
        recall, precision = hits / len(wanted), hits / k
        f1 = 0 if hits == 0 else 2 * recall * precision / (recall + precision)
        rows.append([found, 1 / np.log2(1 + rank) if found else 0, 1 / rank if found else 0, recall, precision, f1])
    return rows


def test_top_choice_is_the_label_only_where_it_leads_alone():
    # Row 0: 2 leads. Row 1: both labels 2 and 3 lead together, so the list starts with a label that has rank 2.
    ranking = rank_labels(scores([0.9, 0.1, 0.2], [0.5, 0.5, 0.2]), ids(2, 2), ragged([2], [2, 3]), None, depth=2)
    assert ranking.rank.tolist() == [1, 2]
    assert top_choice(ranking, ids(2, 2)).tolist() == [2, 3]


def test_macro_f1_by_hand():
    # 2: TP 2, FP 1, FN 0 → .8; 3: TP 0, FN 1, FP 0 → 0; 4: TP 0, FP 1 → 0; OOV: FN 1 → 0.
    assert macro_f1(ids(2, 2, 3, OOV), ids(2, 2, 2, 4)) == pytest.approx(0.8 / 4)


def test_macro_f1_of_one_constant_guess_is_two_over_c_times_c_plus_one():
    labels = np.repeat(np.arange(2, 7), 20).astype(np.int32)  # 5 classes
    assert macro_f1(labels, np.full(100, 2, dtype=np.int32)) == pytest.approx(2 / (5 * 6))


def test_coverage_counts_ids_of_any_list_and_never_padding():
    ranking = rank_labels(scores([0.9, 0.1, 0.2], [0.5, 0.6, 0.2]), ids(2, 2), ragged([2], [2]), ragged([4], [4]), 3)
    covered = np.zeros((2, 5), dtype=np.bool_)
    mark_covered(covered, ranking, [1, 3])
    assert covered.tolist() == [[False, False, True, True, False], [False, False, True, True, False]]


def test_bootstrap_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(2)
    n_rows, n_trials, share = 400, 300, 0.3
    samples = (rng.random((n_rows, n_trials)) < share).astype(np.float32)
    low, high = interval(bootstrap_means(samples, n_bootstrap=400, seed=3))
    covered = np.mean((low <= share) & (share <= high))
    assert 0.90 <= covered <= 0.99
    assert np.mean(high - low) == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / n_rows), rel=0.05)


def test_bootstrap_is_seeded_and_its_columns_share_their_draws():
    values = np.random.default_rng(4).random((50, 2)).astype(np.float32)
    twice = np.stack([values[:, 0], values[:, 0]], axis=1)
    means = bootstrap_means(twice, 200, seed=5)
    np.testing.assert_array_equal(means[:, 0], means[:, 1])
    np.testing.assert_array_equal(means, bootstrap_means(twice, 200, seed=5))
    assert not np.array_equal(means, bootstrap_means(twice, 200, seed=6))


def test_bootstrap_in_small_pieces_equals_one_piece(monkeypatch):
    values = np.random.default_rng(7).random((30, 3)).astype(np.float32)
    whole = bootstrap_means(values, 120, seed=8)
    monkeypatch.setattr("model.metrics._BOOTSTRAP_CELLS", 7 * 30)
    np.testing.assert_allclose(bootstrap_means(values, 120, seed=8), whole, rtol=1e-6)
