"""The likeliest columns found block by block, against a sort of all scores."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from model.top import GROUP, top_columns

FOUND = tf.function(
    top_columns,
    input_signature=[
        tf.TensorSpec([None, 3]),
        tf.TensorSpec([None, 3]),
        tf.TensorSpec([None]),
        *[tf.TensorSpec([], tf.int32)] * 2,
    ],
)


def _check(answers: np.ndarray, table: np.ndarray, bias: np.ndarray, k: int, block_cells: int) -> None:
    found = FOUND(answers, table, bias, k, block_cells)
    scores = answers @ table.T + bias
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.columns, order)
    wide = scores.astype(np.float64)
    total = np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    log_p = wide - wide.max(axis=1, keepdims=True) - total
    np.testing.assert_allclose(found.log_p, np.take_along_axis(log_p, order, axis=1), rtol=1e-5, atol=1e-5)


@settings(max_examples=60)
@given(
    n_rows=st.integers(1, 5),
    n_columns=st.integers(1, 12 * GROUP + 5),
    share=st.floats(0, 1),
    block_groups=st.integers(0, 5),
    n_values=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)
def test_equals_a_stable_sort_with_many_ties(
    n_rows: int, n_columns: int, share: float, block_groups: int, n_values: int, seed: int
):
    """Whole numbers, so that products are exact and equal scores are equal; any k, blocks of any size."""
    rng = np.random.default_rng(seed)
    answers, table = (rng.integers(-3, 4, (n, 3)).astype(np.float32) for n in (n_rows, n_columns))
    bias = rng.integers(0, n_values, n_columns).astype(np.float32)
    k = max(1, round(share * n_columns))
    _check(answers, table, bias, k, block_groups * GROUP * n_rows + 1)


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_large_scores_neither_overflow_nor_vanish(shift: float):
    rng = np.random.default_rng(1)
    bias = (shift + rng.permutation(1000) / 10).astype(np.float32)
    found = FOUND(np.zeros((2, 3), np.float32), np.zeros((1000, 3), np.float32), bias, 10, 2 * 4 * GROUP)
    np.testing.assert_array_equal(found.columns[0], np.argsort(-bias, kind="stable")[:10])
    wide = bias.astype(np.float64) - bias.max()
    np.testing.assert_allclose(found.log_p[0], np.sort(wide)[::-1][:10] - np.log(np.exp(wide).sum()), atol=1e-3)


def test_no_rows_give_no_rows():
    none = FOUND(np.zeros((0, 3), np.float32), np.zeros((70, 3), np.float32), np.zeros(70, np.float32), 4, 100)
    assert none.columns.shape == none.log_p.shape == (0, 4)
