import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from petastorm.workers_pool.thread_pool import ThreadPool
from petastorm.workers_pool.ventilator import ConcurrentVentilator

from features import columns as c
from model import feed
from model.batches import COLUMNS, Bucket
from model.errors import ModelError
from tests.model import tables

N_ROWS = 61
ONE_BUCKET = (Bucket(positions=tables.LENGTH, rows=10),)


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    numbered = tables.ruled_rows(N_ROWS, seed=1)
    numbered[c.HOUR][:, 0] = 1 + np.arange(N_ROWS)  # names the row
    return numbered


@pytest.fixture(scope="module")
def files(rows: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> tuple[feed.DataFile, ...]:
    return tables.write_split(tmp_path_factory.mktemp("feed") / "dt=2024-01-01" / "split=train", rows, groups=4)


def _shard(files: tuple[feed.DataFile, ...], rank: int = 0, size: int = 1) -> feed.Shard:
    return feed.planned_shard(c.TRAIN, files, rank, size)


def _names(batch: dict[str, np.ndarray]) -> list[int]:
    return batch[c.HOUR][:, 0].tolist()


def _training(files: tuple[feed.DataFile, ...], n_batches: int, **changes: int) -> list[dict[str, np.ndarray]]:
    options = {"shuffle_rows": 1000, "seed": 5} | changes
    return list(islice(feed.training_batches(_shard(files), tables.LENGTH, ONE_BUCKET, **options), n_batches))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_row_comes_exactly_once_over_all_ranks(files, size: int):
    seen: Counter[int] = Counter()
    n_real = []
    for rank in range(size):
        for batch, n_rows in feed.evaluation_batches(_shard(files, rank, size), tables.LENGTH, 8):
            assert batch[c.ITEM].shape == (8, tables.LENGTH)
            assert not batch[c.LENGTH][n_rows:].any()
            seen.update(_names(batch)[:n_rows])
            n_real.append(n_rows)
    assert seen == Counter(range(1, N_ROWS + 1))
    assert sum(n_real) == N_ROWS


def test_no_row_is_lost_when_the_reader_looks_at_the_wrong_moment(files, monkeypatch: pytest.MonkeyPatch):
    """Petastorm's own end of a pass drops what is handed out between its two looks; here all of it is."""
    look, hand_out = ThreadPool.all_workers_done, ConcurrentVentilator._ventilate

    def slow_look(pool: ThreadPool) -> bool:
        done = look(pool)
        time.sleep(0.1)
        return done

    def late_hand_out(ventilator: ConcurrentVentilator) -> None:
        time.sleep(0.05)
        hand_out(ventilator)

    monkeypatch.setattr(ThreadPool, "all_workers_done", slow_look)
    monkeypatch.setattr(ConcurrentVentilator, "_ventilate", late_hand_out)
    batches = list(feed.evaluation_batches(_shard(files, 0, 2), tables.LENGTH, 8))
    assert sum(n_rows for _, n_rows in batches) == files[0].rows + files[2].rows


def test_files_with_other_rows_than_the_manifest_says_are_refused(files):
    wrong = tuple(feed.DataFile(path, rows - 1) for path, rows in files)
    with pytest.raises(ModelError, match=r"other numbers of rows than their manifest says \(57 for this rank\)"):
        feed.target_counts(_shard(wrong), tables.SIZES)


def test_values_arrive_unchanged(files, rows):
    found = tables.concatenated(list(feed.blocks(_shard(files), tables.LENGTH, passes=1)))
    for name in COLUMNS:
        assert found[name].dtype == np.int32
        np.testing.assert_array_equal(found[name], rows[name], err_msg=name)


def test_each_pass_of_training_gives_each_row_once_in_an_order_of_its_own(files):
    names = [name for batch in _training(files, 19) for name in _names(batch)]
    first, second, third = names[:N_ROWS], names[N_ROWS : 2 * N_ROWS], names[2 * N_ROWS : 3 * N_ROWS]
    everyone = set(range(1, N_ROWS + 1))
    assert set(first) == set(second) == set(third) == everyone
    assert first != second != third


@pytest.mark.parametrize("shuffle_rows", [1, 20, 1000])
def test_a_small_buffer_loses_no_row_either(files, shuffle_rows: int):
    names = [name for batch in _training(files, 13, shuffle_rows=shuffle_rows) for name in _names(batch)]
    assert Counter(names[: 2 * N_ROWS]) == Counter(dict.fromkeys(range(1, N_ROWS + 1), 2))


def test_the_same_seed_gives_the_same_batches_and_another_others(files):
    one, again, other = _training(files, 8), _training(files, 8), _training(files, 8, seed=6)
    assert [_names(batch) for batch in one] == [_names(batch) for batch in again]
    assert [_names(batch) for batch in one] != [_names(batch) for batch in other]


def test_without_shuffling_rows_come_in_the_order_of_the_files(files):
    names = [name for batch in _training(files, 7, shuffle_rows=0) for name in _names(batch)]
    assert names[:N_ROWS] == list(range(1, N_ROWS + 1))


def test_skipping_goes_on_where_the_other_run_stopped(files):
    whole, rest = _training(files, 12), _training(files, 5, skip_batches=7)
    assert [_names(batch) for batch in whole[7:]] == [_names(batch) for batch in rest]


def test_targets_are_counted_once_each(files, rows):
    counts = feed.target_counts(_shard(files), tables.SIZES)
    wanted: Counter[int] = Counter(rows[c.NEXT_ITEM].tolist())
    for items, length in zip(rows[c.ITEM], rows[c.LENGTH], strict=True):
        wanted.update(items[1:length].tolist())
    assert Counter({item: n for item, n in enumerate(counts[c.ITEM].tolist()) if n}) == wanted
    assert counts[c.CATEGORY].sum() == rows[c.LENGTH].sum()


def test_streams_that_do_not_divide_the_row_groups_are_refused_with_the_way_out(files):
    with pytest.raises(ModelError, match=r"4 row groups for 3 streams.*for 1, 2, 4 streams.*sequences\.world_sizes"):
        _shard(files, 0, 3)
    with pytest.raises(ModelError, match="fewer row groups than streams"):
        _shard(files, 0, 8)


def test_an_empty_split_is_refused():
    with pytest.raises(ModelError, match=r"train split .* has no rows"):
        _shard((feed.DataFile("group-00000.parquet", 0),))


@pytest.mark.parametrize("kept_bytes", [5, 300, 1500])
def test_a_torn_file_is_named(files, tmp_path: Path, kept_bytes: int):
    torn = tmp_path / "group-00000.parquet"
    torn.write_bytes(Path(files[0].path).read_bytes()[:kept_bytes])
    shard = feed.Shard(c.TRAIN, (feed.DataFile(files[1].path, files[1].rows), feed.DataFile(str(torn), 16)))
    with pytest.raises(ModelError, match=r"group-00000\.parquet cannot be read"):
        feed.target_counts(shard, tables.SIZES)


def test_damaged_pages_are_named_too(files, tmp_path: Path):
    damaged = tmp_path / "group-00000.parquet"
    content = bytearray(Path(files[0].path).read_bytes())
    content[4 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4)
    damaged.write_bytes(bytes(content))
    with pytest.raises(ModelError, match=r"group-00000\.parquet cannot be read"):
        feed.target_counts(feed.Shard(c.TRAIN, (feed.DataFile(str(damaged), 16),)), tables.SIZES)


def test_a_value_outside_the_vocabulary_is_named(rows, tmp_path: Path):
    files = tables.write_split(tmp_path, {**rows, c.NEXT_ITEM: rows[c.NEXT_ITEM] + 5}, groups=1)
    with pytest.raises(ModelError, match=r"Column next_item .* holds 26; allowed are 0 to 21"):
        feed.target_counts(_shard(files), tables.SIZES)


def test_another_sequence_length_is_named(files):
    with pytest.raises(ModelError, match=r"Column item .* is int32\[8\], expected int32\[9\]"):
        next(feed.blocks(_shard(files), tables.LENGTH + 1, passes=1))


def test_a_missing_column_is_named(tmp_path: Path):
    path = tmp_path / "group-00000.parquet"
    pq.write_table(pa.table({c.NEXT_GAP: pa.array([1, 2], pa.int32())}), path)
    with pytest.raises(ModelError, match=r"group-00000\.parquet has no column item"):
        next(feed.blocks(feed.Shard(c.TRAIN, (feed.DataFile(str(path), 2),)), tables.LENGTH, passes=1))
