"""How rows are cut into batches: of falling length, at what cost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.row_batches import BATCH_CELLS, BATCH_ROWS, ROW_STEP, batches_of


def cost(n_positions: np.ndarray, batches: list[slice]) -> int:
    """Cells read, rows filled up, and what starting each batch costs."""
    rows = [-(-(some.stop - some.start) // ROW_STEP) * ROW_STEP for some in batches]
    return sum(BATCH_CELLS + n * int(n_positions[some.start]) for n, some in zip(rows, batches, strict=True))


@given(st.lists(st.integers(1, 7), max_size=900))
def test_batches_hold_every_row_once_and_cost_no_more_than_full_ones(eighths: list[int]) -> None:
    n_positions = np.sort(np.array(eighths, np.int32) * 8)[::-1]
    batches = list(batches_of(n_positions))
    assert [row for some in batches for row in range(len(n_positions))[some]] == list(range(len(n_positions)))
    assert all(0 < some.stop - some.start <= BATCH_ROWS and some.start % ROW_STEP == 0 for some in batches)
    full = [slice(at, min(at + BATCH_ROWS, len(eighths))) for at in range(0, len(eighths), BATCH_ROWS)]
    assert cost(n_positions, batches) <= cost(n_positions, full)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([48] * 600, [256, 256, 88]),
        ([48] * 100 + [8] * 156, [128, 128]),  # the long ones by themselves, filled up with short ones
        ([16] * 32 + [8] * 64, [96]),  # not worth a batch more
        ([], []),
    ],
)
def test_long_rows_do_not_make_short_ones_wait(lengths: list[int], expected: list[int]) -> None:
    assert [some.stop - some.start for some in batches_of(np.array(lengths, np.int32))] == expected
