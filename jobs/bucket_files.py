"""What a task does with the buckets it holds: join past and new events, write histories and sequences by itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contracts import HISTORIES, SEQUENCES
from features.histories import EVENT_COLUMNS, TEXT_COLUMNS, encoded, latest_events, of_users, with_dictionaries
from features.windows import scoring_rows

# What a row says of its user's events
KIND = "_kind"
EARLIER, NEW, OPEN, GONE = range(4)  # finished before the last layer, since then, open; open on the last layer's day

_HISTORIES = to_arrow_schema(HISTORIES.schema)
_SEQUENCES = to_arrow_schema(SEQUENCES.schema)
# Ids and times hardly shrink, and every night reads them all: as they are, that takes half the time.
_COMPRESSION = {name: "none" if name in (c.EVENT_ID, c.EVENT_TIME) else "snappy" for name in EVENT_COLUMNS}
_BIGGEST_DICTIONARY = 64 << 20  # bytes; beyond it Parquet would store each text again, which is slower to read
_TEXT_AS_IDS = pa.schema(
    [
        pa.field(field.name, pa.dictionary(pa.int32(), pa.string()) if field.name in TEXT_COLUMNS else field.type)
        for field in _HISTORIES
    ]
)
_WRITTEN = "path string, rows long"


@dataclass(frozen=True)
class BucketPlan:
    """What is read, written and kept. histories: None where there are none yet, or none are to be written."""

    histories: str | None
    bucket_files: frozenset[str]
    new_histories: str | None
    sequences: str
    vocabulary: tuple[str, ...]
    everyone: bool
    keep: int
    length: int
    gap_edges_s: tuple[int, ...]
    end_us: int


def write_buckets(rows: DataFrame, plan: BucketPlan) -> set[str]:
    """Write the sequences, and with `new_histories` the histories, of all buckets → paths of the files that count.

    rows: EVENT_COLUMNS, BUCKET and KIND, all rows of a bucket in one partition; a row without a user only says that its
    bucket exists.
    """
    written = rows.mapInArrow(partial(_write_partition, plan=plan), _WRITTEN).collect()
    return {row["path"] for row in written}


def _write_partition(batches: Iterator[pa.RecordBatch], plan: BucketPlan) -> Iterator[pa.RecordBatch]:
    held = [batch for batch in batches if batch.num_rows]
    if not held:
        return
    rows = pa.Table.from_batches(held)
    del held
    counts: dict[str, int] = {}
    kind = rows[KIND].to_numpy()
    buckets = np.unique(rows[c.BUCKET].to_numpy())
    has_user = rows[c.USER_ID].is_valid().to_numpy()
    touched = pc.unique(rows[c.USER_ID].filter(pa.array((kind != EARLIER) & has_user)))
    rows = rows.filter(pa.array((kind != GONE) & has_user))
    finished, bucket = rows[KIND].to_numpy() != OPEN, rows[c.BUCKET].to_numpy()
    events = with_dictionaries(rows.select(EVENT_COLUMNS)).cast(_TEXT_AS_IDS)
    del rows
    whole = plan.everyone or plan.new_histories is not None
    past = {int(number): _read_bucket(plan, int(number), None if whole else touched) for number in buckets}
    if plan.new_histories is not None:
        new = np.flatnonzero(finished)
        new = new[np.argsort(bucket[new], kind="stable")]
        edges = np.searchsorted(bucket[new], np.append(buckets, buckets[-1] + 1))
        for number, start, stop in zip(buckets, edges, edges[1:], strict=False):
            _write_bucket(plan, int(number), past[int(number)], events.take(pa.array(new[start:stop])), counts)
    of_all = _joined(*past.values(), events)
    del past, events
    scored = of_all if plan.everyone else of_users(of_all, touched)
    _write_sequences(plan, scored, touched, counts)
    yield from pa.table({"path": list(counts), "rows": list(counts.values())}).to_batches()


def _write_bucket(plan: BucketPlan, number: int, past: pa.Table, new: pa.Table, counts: dict[str, int]) -> None:
    """Write a bucket of the new histories: past events and new finished ones."""
    name = bucket_file(number)
    path = f"{plan.new_histories}/{name}"
    if name in plan.bucket_files and not new.num_rows:  # the file as it is
        fs, source = fsspec.core.url_to_fs(f"{plan.histories}/{name}")
        fs.cp_file(source, fsspec.core.url_to_fs(path)[1])
        counts[path] = past.num_rows
        return
    kept = latest_events(_joined(past, new), plan.keep)
    if not kept.num_rows:
        return
    with fsspec.open(path, "wb") as file:
        pq.write_table(
            kept.cast(_HISTORIES),
            file,
            row_group_size=kept.num_rows,
            compression=_COMPRESSION,
            use_dictionary=list(TEXT_COLUMNS),
            store_schema=False,
            dictionary_pagesize_limit=_BIGGEST_DICTIONARY,
        )
    counts[path] = kept.num_rows


def _read_bucket(plan: BucketPlan, number: int, users: pa.Array | None) -> pa.Table:
    """The past events of a bucket, or of some of its users. A bucket is one row group."""
    name = bucket_file(number)
    if name not in plan.bucket_files:
        return _TEXT_AS_IDS.empty_table()
    with fsspec.open(f"{plan.histories}/{name}", "rb") as file:
        source = pq.ParquetFile(file, read_dictionary=list(TEXT_COLUMNS))
        if users is not None:
            known = pc.unique(source.read(columns=[c.USER_ID])[c.USER_ID].combine_chunks().dictionary)
            if not pc.is_in(known, users).to_numpy(zero_copy_only=False).any():
                return _TEXT_AS_IDS.empty_table()
        events = with_dictionaries(source.read()).cast(_TEXT_AS_IDS)
    return events if users is None else of_users(events, users)


def _joined(*parts: pa.Table) -> pa.Table:
    return with_dictionaries(pa.concat_tables(parts))


def _write_sequences(plan: BucketPlan, events: pa.Table, touched: pa.Array, counts: dict[str, int]) -> None:
    rows = []
    if events.num_rows:
        coded = encoded(events, partial(_ids_in, plan.vocabulary))
        coded = coded.filter(pa.array(coded["time_us"].to_numpy() < plan.end_us))
        if coded.num_rows:
            made = scoring_rows(coded, plan.length, plan.keep, plan.gap_edges_s, plan.end_us)
            rows = [pa.Table.from_batches([batch]).select(_SEQUENCES.names).cast(_SEQUENCES) for batch in made]
    if not plan.everyone:
        rows.append(_nothing_left(touched, [table[c.USER_ID] for table in rows], plan.length))
    found = pa.concat_tables(rows) if rows else _SEQUENCES.empty_table()
    if not found.num_rows:
        return
    context = TaskContext.get()
    name = f"part-{context.partitionId():05d}-{context.taskAttemptId()}.parquet" if context else "part.parquet"
    with fsspec.open(f"{plan.sequences}/{name}", "wb") as file:
        pq.write_table(found, file, compression="snappy", store_schema=False)
    counts[f"{plan.sequences}/{name}"] = found.num_rows


def _nothing_left(touched: pa.Array, with_rows: list[pa.ChunkedArray], length: int) -> pa.Table:
    """Rows of length 0 for touched users without an event: they hide the users' rows in earlier layers."""
    there = pa.chunked_array([chunk for column in with_rows for chunk in column.chunks], pa.string())
    gone = touched.filter(pc.invert(pc.is_in(touched, there)))
    n_rows = len(gone)
    padding = pa.ListArray.from_arrays(
        pa.array(np.arange(n_rows + 1, dtype=np.int32) * length), pa.array(np.full(n_rows * length, c.PAD, np.int32))
    )
    none = pa.ListArray.from_arrays(pa.array(np.zeros(n_rows + 1, np.int32)), pa.array([], pa.int32()))
    columns = {
        c.USER_ID: gone,
        c.LENGTH: pa.array(np.zeros(n_rows, np.int32)),
        **dict.fromkeys(c.CHANNELS, padding),
        c.NEXT_GAP: pa.array(np.full(n_rows, c.UNKNOWN_GAP, np.int32)),
        c.LAST_TIME: pa.array(np.zeros(n_rows, np.int64), pa.timestamp("us", tz="UTC")),
        c.SEEN_ITEMS: none,
    }
    return pa.table([columns[name] for name in _SEQUENCES.names], names=_SEQUENCES.names).cast(_SEQUENCES)


def _ids_in(paths: tuple[str, ...], tokens: Mapping[str, pa.Array]) -> dict[str, NDArray[np.int32]]:
    """Ids of tokens by kind, OOV where the vocabulary has none; the vocabulary goes by one row group at a time."""
    ids = {kind: np.full(len(of_kind), c.OOV, np.int32) for kind, of_kind in tokens.items()}
    for path in paths:
        with fsspec.open(path, "rb") as file:
            source = pq.ParquetFile(file)
            for group in range(source.num_row_groups):
                rows = source.read_row_group(group, columns=[c.KIND, c.TOKEN, c.ID])
                for kind, of_kind in tokens.items():
                    mine = rows.filter(pc.equal(rows[c.KIND], kind))
                    at = pc.index_in(mine[c.TOKEN], of_kind).combine_chunks()
                    known = at.is_valid().to_numpy(zero_copy_only=False)
                    ids[kind][at.drop_null().to_numpy()] = mine[c.ID].to_numpy()[known]
    return ids


def bucket_file(number: int) -> str:
    """Name of the file of one bucket in a partition of `histories_v1`."""
    return f"bucket-{number:05d}.parquet"
