from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from features import columns as c
from model.batches import COLUMNS, Block, Bucket, batches_a_pass, buckets_of, cut
from tests.model import tables

N_ROWS, L = 61, tables.LENGTH


def _rows() -> Block:
    rows = tables.ruled_rows(N_ROWS, seed=1)
    rows[c.HOUR][:, 0] = 1 + np.arange(N_ROWS)  # names the row
    return rows


def _blocks() -> Iterator[Block]:
    """Passes without end over the rows, in blocks of 17."""
    rows = _rows()
    while True:
        for start in range(0, N_ROWS, 17):
            yield {name: values[start : start + 17] for name, values in rows.items()}


def _cut(n_batches: int, buckets: tuple[Bucket, ...], buffer_rows: int, seed: int = 3) -> list[Block]:
    stream = cut(_blocks(), buckets, N_ROWS, buffer_rows, np.random.default_rng(seed))
    return list(islice(stream, n_batches))


def test_buckets_hold_as_many_positions_whatever_the_length_of_their_rows():
    assert buckets_of((2, 4, 99), 8, 16) == (Bucket(2, 64), Bucket(4, 32), Bucket(8, 16))
    assert buckets_of((), 8, 16) == (Bucket(8, 16),)


@pytest.mark.parametrize("buffer_rows", [0, 20, 1000])
def test_batches_of_a_bucket_have_one_shape_and_hold_its_rows_whole(buffer_rows: int):
    buckets = buckets_of((3, 5), L, 4)
    shapes = {bucket.positions: bucket.rows for bucket in buckets}
    rows = _rows()
    for batch in _cut(40, buckets, buffer_rows):
        positions = batch[c.ITEM].shape[1]
        assert batch[c.ITEM].shape[0] == shapes[positions]
        assert batch[c.LENGTH].max() <= positions
        assert batch[c.LENGTH].min() > max([0, *(bound for bound in shapes if bound < positions)])
        own = batch[c.HOUR][:, 0] - 1
        for name in COLUMNS:
            wanted = rows[name][own]
            np.testing.assert_array_equal(batch[name], wanted[:, :positions] if wanted.ndim == 2 else wanted)
            assert not wanted[:, positions:].any() if wanted.ndim == 2 and name == c.ITEM else True


@pytest.mark.parametrize("buffer_rows", [0, 1, 20, 1000])
def test_every_row_comes_as_often_as_any_other_up_to_what_fills_no_batch(buffer_rows: int):
    buckets = buckets_of((3, 5), L, 4)
    passes = 6
    n_batches = batches_a_pass(np.bincount(_rows()[c.LENGTH], minlength=L + 1), buckets) * passes
    seen = Counter(row for batch in _cut(n_batches, buckets, buffer_rows) for row in batch[c.HOUR][:, 0].tolist())
    assert set(seen) == set(range(1, N_ROWS + 1))
    assert min(seen.values()) >= passes - 2
    assert max(seen.values()) <= passes + 1


def test_batches_of_a_pass_count_leftovers_together():
    buckets = (Bucket(2, 10), Bucket(4, 5))
    assert batches_a_pass(np.array([0, 3, 4, 0, 6]), buckets) == 1  # 0.7 + 1.2
    assert batches_a_pass(np.array([0, 0, 30, 10, 0]), buckets) == 5


def test_short_rows_do_not_all_come_first():
    positions = [batch[c.ITEM].shape[1] for batch in _cut(40, buckets_of((3, 5), L, 4), 1000)]
    assert positions != sorted(positions)
    assert len(set(positions[:8])) > 1


def test_the_seed_decides():
    one, again, other = (_cut(9, buckets_of((3,), L, 4), 1000, seed) for seed in (3, 3, 4))
    names = [[batch[c.HOUR][:, 0].tolist() for batch in found] for found in (one, again, other)]
    assert names[0] == names[1] != names[2]
