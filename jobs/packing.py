"""Pack the windows of one split into equal row groups, one a file, so that every rank gets its share."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import TRAINING_SEQUENCES
from features.partitions import plan_row_groups
from features.sequences import SequencesSpec
from jobs.store import Store


@dataclass(frozen=True)
class SplitSummary:
    """One split as written: rows, row groups, sizes of the groups, and the times at its edges (µs since 1970)."""

    rows: int
    row_groups: int
    smallest_group: int
    largest_group: int
    last_input_us: int
    first_label_us: int
    last_label_us: int


@dataclass(frozen=True)
class _Piece:
    """Rows [start, stop) of one staged file."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class _Group:
    path: str
    pieces: tuple[_Piece, ...]


def window_bytes(spec: SequencesSpec) -> int:
    """About the bytes of the events of one row in memory; ages and what lies ahead come on top in training."""
    return 4 * (len(c.CHANNELS) * spec.length + 8)


def pack_split(
    spark: SparkSession, store: Store, staged: str, packed: str, split: str, spec: SequencesSpec
) -> SplitSummary:
    """Copy `staged/split=X` to `packed/split=X` as equal row groups; each task writes its files by itself.

    Raises:
        ContractError: the split has rows, but fewer than the ranks need row groups.
    """
    files = store.row_counts(f"{staged}/{c.SPLIT}={split}")
    n_rows = sum(rows for _, rows in files)
    if n_rows == 0:
        return SplitSummary(0, 0, 0, 0, 0, 0, 0)
    name = f"{TRAINING_SEQUENCES.name}, split {split}"
    plan = plan_row_groups(n_rows, window_bytes(spec), spec.world_sizes, spec.row_group_mib, name)
    folder = f"{packed}/{c.SPLIT}={split}"
    store.fs.makedirs(folder, exist_ok=True)
    groups = [
        _Group(f"{folder}/group-{index:05d}.parquet", _pieces(files, start, start + size))
        for index, (start, size) in enumerate(zip(plan.starts, plan.sizes, strict=True))
    ]
    context = spark.sparkContext
    n_tasks = min(len(groups), 4 * context.defaultParallelism)
    edges = context.parallelize(groups, n_tasks).mapPartitions(_write_groups).collect()
    return SplitSummary(
        n_rows,
        len(groups),
        min(plan.sizes),
        max(plan.sizes),
        max(edge[0] for edge in edges),
        min(edge[1] for edge in edges),
        max(edge[2] for edge in edges),
    )


def _pieces(files: list[tuple[str, int]], start: int, stop: int) -> tuple[_Piece, ...]:
    """Where rows [start, stop) of the joined files lie."""
    bounds = [0]
    for _, rows in files:
        bounds.append(bounds[-1] + rows)
    return tuple(
        _Piece(path, max(start, low) - low, min(stop, high) - low)
        for (path, _), (low, high) in zip(files, pairwise(bounds), strict=True)
        if low < stop and start < high
    )


def _write_groups(groups: Iterable[_Group]) -> Iterator[tuple[int, int, int]]:
    """Write each group as one file of one row group → (last input, first label, last label) in µs."""
    for group in groups:
        rows = pa.concat_tables([_read(piece) for piece in group.pieces]).combine_chunks()
        with fsspec.open(group.path, "wb") as file:
            pq.write_table(rows, file, row_group_size=rows.num_rows, compression="snappy")
        last = rows[c.LAST_TIME].cast(pa.int64()).to_numpy()
        following = rows[c.NEXT_TIME].cast(pa.int64()).to_numpy()
        yield int(last.max()), int(following.min()), int(following.max())


def _read(piece: _Piece) -> pa.Table:
    columns = [name for name in TRAINING_SEQUENCES.schema.names if name != c.SPLIT]
    with fsspec.open(piece.path, "rb") as file:
        source = pq.ParquetFile(file)
        at, parts = 0, []
        for index in range(source.num_row_groups):
            rows = source.metadata.row_group(index).num_rows
            low, high = max(piece.start - at, 0), min(piece.stop - at, rows)
            if low < high:
                parts.append(source.read_row_group(index, columns=columns).slice(low, high - low))
            at += rows
        return pa.concat_tables(parts)
