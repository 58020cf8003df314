import itertools

import numpy as np
import pytest

from model.metrics import USER_METRICS
from model.paired import paired_tests, sign_flip_p


def exact_p(differences):
    """All 2^n sign flips, counted one by one."""
    observed = abs(sum(differences))
    flips = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in _signs(len(differences))]
    return sum(abs(total) >= observed - 1e-9 for total in flips) / len(flips)


def _signs(n):
    return itertools.product((-1, 1), repeat=n)


@pytest.mark.parametrize(
    "differences",
    [[0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [0.3, -0.1, 0.4, 0.2, -0.2, 0.1, 0.6, 0.5], [1.0, -1.0, 1.0, 1.0], [0.1, -0.1]],
)
def test_p_is_that_of_all_sign_flips(differences):
    n_permutations = 20_000
    (p,) = sign_flip_p(np.array(differences)[:, None], n_permutations, seed=3)
    exact = exact_p(differences)
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / n_permutations) + 1e-4)


def test_p_is_never_zero_and_one_where_nothing_differs():
    sure = np.ones((100, 1))
    assert sign_flip_p(sure, 500, seed=0)[0] == 1 / 501
    assert sign_flip_p(np.zeros((5, 2)), 500, seed=0).tolist() == [1, 1]
    mixed = sign_flip_p(np.stack([np.ones(100), np.zeros(100)], axis=1), 500, seed=0)
    assert mixed.tolist() == [1 / 501, 1]


def test_users_that_do_not_differ_change_nothing():
    differences = np.array([[0.5], [0.2], [-0.1], [0.4]])
    with_others = np.concatenate([np.zeros((50, 1)), differences, np.zeros((7, 1))])
    assert sign_flip_p(with_others, 999, seed=1) == sign_flip_p(differences, 999, seed=1)


def test_p_is_uniform_where_chance_alone_decides():
    """A test of level 5 % rejects 5 % of the time: 400 pairs of equally good predictors, 60 users each."""
    rng = np.random.default_rng(5)
    p = sign_flip_p(rng.normal(size=(60, 400)), 2_000, seed=9)
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(p <= 0.5) == pytest.approx(0.5, abs=0.08)


def test_every_metric_and_k_is_compared_with_figures_of_its_own():
    rng = np.random.default_rng(2)
    first, second = (rng.random((40, 2, len(USER_METRICS)), dtype=np.float32) for _ in range(2))
    second[:, 1, 3] = first[:, 1, 3]
    found = list(paired_tests("item", ("a", "b"), (first, second), (1, 10), (400, 500, 4)))
    assert {(test.metric, test.k) for test in found} == set(itertools.product(USER_METRICS, (1, 10)))
    for test in found:
        i, m = (1, 10).index(test.k), USER_METRICS.index(test.metric)
        assert test.first_value == pytest.approx(first[:, i, m].mean(), abs=1e-5)
        assert test.difference == pytest.approx(test.first_value - test.second_value, abs=3e-6)
        assert test.low <= test.difference <= test.high
        assert (test.target, test.first, test.second, test.n) == ("item", "a", "b", 40)
        same = (i, m) == (1, 3)
        assert test.n_differ == (0 if same else 40)
        assert (test.p_value == 1 and test.low == test.high == 0) == same
        # Interval and test agree, but for users near the border.
        assert (test.p_value < 0.02) <= (test.low > 0 or test.high < 0)
