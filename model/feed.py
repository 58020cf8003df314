"""Rows from Parquet to batches of fixed shapes. The only module that imports Petastorm."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from petastorm.arrow_reader_worker import ArrowReaderWorker
from petastorm.fs_utils import get_filesystem_and_path_or_paths
from petastorm.reader import Reader
from petastorm.workers_pool import EmptyResultError
from petastorm.workers_pool.thread_pool import ThreadPool

from features import columns as c
from model.batches import BY_POSITION, COLUMNS, SCALARS, Block, Bucket, cut, in_order
from model.errors import ModelError
from model.spec import Sizes

# One reader thread keeps the order of rows the same in every run: with more, Petastorm skips a thread that is idle at
# that moment. One decodes far more rows than a training step consumes (docs/model.md).
_READER_THREADS = 1
_RESULTS_QUEUE = 4

# Petastorm 0.13 calls what pyarrow 14 calls legacy; the pins keep the two together.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"petastorm\.")


class DataFile(NamedTuple):
    """One Parquet file of a split: one row group, as the sequences stage writes it."""

    path: str
    rows: int


@dataclass(frozen=True)
class Shard:
    """What one stream, or one rank, reads of one split."""

    split: str
    files: tuple[DataFile, ...]

    @property
    def rows(self) -> int:
        """Rows of one pass."""
        return sum(file.rows for file in self.files)


def planned_shard(split: str, files: Sequence[DataFile], stream: int, streams: int) -> Shard:
    """Files stream, stream + streams, … in order of path: Petastorm's own deal by row group, made by us.

    So a rank opens its own files only, and how many rows a stream has is known before anything is read.

    Raises:
        ModelError: the split is empty, or its row groups do not divide among the streams.
    """
    groups = len(files)
    if sum(file.rows for file in files) == 0:
        raise ModelError(
            f"The {split} split of training_sequences_v1 has no rows, so there is nothing to learn from or to stop by. "
            "Use a longer log, or move the split (section sequences of the configuration); run jobs.sequences again."
        )
    if groups % streams != 0:
        planned = ", ".join(str(number) for number in range(1, groups + 1) if groups % number == 0)
        why = "fewer row groups than streams" if groups < streams else "some streams would get more than others"
        raise ModelError(
            f"The {split} split has {groups} row groups for {streams} streams: {why}, and every stream must take the "
            f"same number of steps. It was written for {planned} streams: set training.streams to one of these (0 "
            f"takes as many streams as ranks), or add {streams} to sequences.world_sizes and run jobs.sequences again."
        )
    return Shard(split, tuple(sorted(files)[stream::streams]))


def blocks(shard: Shard, length: int, passes: int | None, seed: int | None = None) -> Iterator[Block]:
    """Row groups of a shard, one block each. `passes` None: without end. `seed`: row groups in a shuffled order.

    The reader always runs without end and the passes are counted here: at the end of a finite one Petastorm 0.13 may
    drop row groups, where its consumer looks at the queue just before the last ones are handed out.

    Raises:
        ModelError: a file is torn, has other rows than the manifest says, or a column is not what the contract says.
    """
    paths = [_url(file.path) for file in shard.files if file.rows > 0]
    if not paths:
        return
    n_read, n_passes = 0, 0
    try:
        filesystem, places = get_filesystem_and_path_or_paths(paths)
        reader = Reader(
            filesystem,
            places,
            schema_fields=[f"^{name}$" for name in COLUMNS],
            reader_pool=ThreadPool(_READER_THREADS, _RESULTS_QUEUE),
            worker_class=_BlockWorker,
            shuffle_row_groups=seed is not None,
            seed=None if seed is None else 1 + seed,  # Petastorm takes seed 0 for "no seed"
            num_epochs=None,
            is_batched_reader=True,
        )
        try:
            for columns in reader:
                block = _block(columns, shard, length)
                n_read += len(block[c.LENGTH])
                if n_read > shard.rows:
                    raise ModelError(
                        f"The files of the {shard.split} split, from {shard.files[0].path} on, hold other numbers of "
                        f"rows than their manifest says ({shard.rows:,} for this rank). Run jobs.sequences for that "
                        "day again."
                    )
                yield block
                if n_read == shard.rows:
                    n_read, n_passes = 0, n_passes + 1
                    if n_passes == passes:
                        break
        finally:  # not `with reader`: that prints a line about its cache each time
            reader.stop()
            reader.join()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{_suspect(shard)} cannot be read: {error}. Run jobs.sequences for that day again."
        ) from error


def training_batches(
    shard: Shard, length: int, buckets: Sequence[Bucket], shuffle_rows: int, seed: int, skip_batches: int = 0
) -> Iterator[Block]:
    """Batches without end. Each pass gives every row of the shard once; batches run on across the end of a pass.

    Row groups come in one seeded order; rows are mixed within a buffer of `shuffle_rows` anew in each pass. With
    `shuffle_rows` = 0 nothing is mixed. `skip_batches` reads and drops the first ones: where an earlier run stopped.
    """
    stream = blocks(shard, length, passes=None, seed=seed if shuffle_rows else None)
    return islice(cut(stream, buckets, shard.rows, shuffle_rows, np.random.default_rng(seed)), skip_batches, None)


def evaluation_batches(shard: Shard, length: int, batch_rows: int) -> Iterator[tuple[Block, int]]:
    """One pass in order: each row once. Yields a batch and how many of its rows are real; the rest is zeros."""
    left = shard.rows
    for batch in in_order(blocks(shard, length, passes=1), batch_rows, left):
        yield batch, min(left, batch_rows)
        left -= batch_rows


def target_counts(shard: Shard, sizes: Sizes) -> dict[str, NDArray[np.int64]]:
    """How often each id is a target, by kind [items], [categories], and rows by length [L + 1], from one pass.

    The shard is checked on the way.

    Raises:
        ModelError: a row that the network cannot take; it names the column and value.
    """
    counts = no_counts(sizes)
    limits = {
        c.ITEM: sizes.items,
        c.NEXT_ITEM: sizes.items,
        c.CATEGORY: sizes.categories,
        c.NEXT_CATEGORY: sizes.categories,
        c.AHEAD_CATEGORY: sizes.categories,
        c.ACTION_CODE: c.N_ACTION_CODES,
        c.AHEAD_ACTION: c.N_ACTION_CODES,
        c.GAP: sizes.gap_codes,
        c.NEXT_GAP: sizes.gap_codes,
        c.HOUR: c.N_HOUR_CODES,
        c.LENGTH: sizes.length + 1,
        c.AHEAD_CATEGORY: sizes.categories,
        c.AHEAD_ACTION: c.N_ACTION_CODES,
    }
    for block in blocks(shard, sizes.length, passes=1):
        for name, limit in limits.items():
            low, high = int(block[name].min()), int(block[name].max())
            if low < 0 or high >= limit or (name == c.LENGTH and low < 1):
                found, least = high if high >= limit else low, int(name == c.LENGTH)
                raise ModelError(
                    f"Column {name} of the {shard.split} split holds {found}; allowed are {least} to {limit - 1}. The "
                    "sequences were encoded with another vocabulary or configuration than this training: run "
                    "jobs.vocabulary and jobs.sequences for that day again."
                )
        for kind, after in ((c.ITEM, c.NEXT_ITEM), (c.CATEGORY, c.NEXT_CATEGORY)):
            targets = np.concatenate([block[kind][:, 1:].ravel(), block[after]])
            counts[kind] += np.bincount(targets, minlength=len(counts[kind]))
        counts[c.LENGTH] += np.bincount(block[c.LENGTH], minlength=sizes.length + 1)
    for kind in (c.ITEM, c.CATEGORY):
        counts[kind][: c.FIRST_ID] = 0
    return counts


def no_counts(sizes: Sizes) -> dict[str, NDArray[np.int64]]:
    """What `target_counts` says of no rows."""
    widths = {c.ITEM: sizes.items, c.CATEGORY: sizes.categories, c.LENGTH: sizes.length + 1}
    return {name: np.zeros(width, np.int64) for name, width in widths.items()}


class _BlockWorker(ArrowReaderWorker):  # type: ignore[misc]
    """Petastorm's worker, with its queues, order and errors, and a row group handed on as whole arrays.

    Its own worker copies the table, makes an array of every list and stacks those (docs/performance.md, the feed).
    """

    @staticmethod
    def new_results_queue_reader() -> "_BlockReader":
        return _BlockReader()

    def process(self, piece_index: int, **_predicate_and_drops: Any) -> None:
        """Read one row group and publish its columns, as Arrow has them."""
        piece = self._split_pieces[piece_index]
        with self._filesystem.open(piece.path, "rb") as file:
            source = pq.ParquetFile(file)
            names = [name for name in COLUMNS if name in source.schema_arrow.names]
            self.publish_func(source.read_row_group(piece.row_group or 0, columns=names))


class _BlockReader:
    """Takes from the queue what a worker published."""

    batched_output = True

    def read_next(self, workers_pool: Any, _schema: Any, _ngram: Any) -> pa.Table:
        """The columns of the next row group; StopIteration after the last."""
        try:
            return workers_pool.get_results()
        except EmptyResultError:
            raise StopIteration from None


def _block(columns: pa.Table, shard: Shard, length: int) -> Block:
    """The arrays behind a row group's columns, without copying them."""
    block: Block = {}
    for name in COLUMNS:
        if name not in columns.column_names:
            raise ModelError(f"{shard.files[0].path} has no column {name}. Run jobs.sequences for that day again.")
        chunks = columns[name]
        column = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()  # which would copy
        is_list = pa.types.is_list(column.type)
        values = column.flatten() if is_list else column
        lengths = _lengths(column) if is_list else []
        wanted = [] if name in SCALARS else [length] if name in BY_POSITION else lengths[:1]
        if values.type != pa.int32() or lengths != wanted or is_list == (name in SCALARS):
            raise ModelError(
                f"Column {name} of the {shard.split} split is {values.type}{lengths}, expected int32{wanted}. Run "
                "jobs.sequences for that day again with the length of this configuration."
            )
        if column.null_count or values.null_count:
            raise ModelError(
                f"Column {name} of the {shard.split} split holds nulls. Run jobs.sequences for that day again."
            )
        block[name] = values.to_numpy().reshape(-1, lengths[0]) if is_list else values.to_numpy()
    return block


def _lengths(column: pa.ListArray) -> list[int]:
    """The different lengths of its lists."""
    lengths = np.diff(column.offsets.to_numpy())
    alike = len(lengths) > 0 and (lengths == lengths[0]).all()
    return [int(lengths[0])] if alike else np.unique(lengths).tolist()


def _suspect(shard: Shard) -> str:
    """The first file of the shard whose pages cannot be read, for a message; the whole shard where all can."""
    for file in shard.files:
        try:
            pq.read_table(file.path, columns=list(COLUMNS))
        except Exception:
            return file.path
    return f"The {shard.split} split"


def _url(path: str) -> str:
    return path if "://" in path else f"file://{path}"
