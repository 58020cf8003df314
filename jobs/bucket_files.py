"""What a task does with the buckets it holds: join past and new events, write histories and sequences by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark import TaskContext
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contracts import HISTORIES, SEQUENCES
from features.histories import (
    EVENT_COLUMNS,
    TEXT_COLUMNS,
    buckets_of,
    encoded,
    flattened,
    latest_events,
    of_users,
    with_dictionaries,
)
from features.windows import scoring_rows
from jobs.session_files import shard_of

# What a file of sessions says of its users
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


@dataclass(frozen=True)
class BucketPlan:
    """What is read, written and kept. histories: None where there are none yet, or none are to be written."""

    histories: str | None
    n_buckets: int
    bucket_files: frozenset[str]
    new_histories: str | None
    sequences: str
    vocabulary: tuple[str, ...]
    everyone: bool
    keep: int
    length: int
    gap_edges_s: tuple[int, ...]
    session_gap_s: int
    end_us: int


@dataclass(frozen=True)
class Share:
    """What one task holds: the users with pmod(hash(user_id), n) = k, where their sessions lie, and their buckets."""

    k: int
    n: int
    files: tuple[tuple[int, str], ...]  # (kind, path)
    buckets: tuple[int, ...]


def shares_of(files: Sequence[tuple[int, str]], n: int, n_buckets: int) -> list[Share]:
    """All users dealt to n tasks. n, n_buckets: powers of two, n at most n_buckets; files: (kind, path) of sessions."""
    shares = []
    for k in range(n):
        mine = [(kind, path) for kind, path in files if _meets(k, n, path)]
        shares.append(Share(k, n, tuple(mine), tuple(range(k, n_buckets, n))))
    return shares


def write_buckets(spark: SparkSession, shares: Sequence[Share], plan: BucketPlan) -> set[str]:
    """Write the sequences, and with `new_histories` the histories, of all users → paths of the files that count."""
    tasks = spark.sparkContext.parallelize(shares, len(shares))
    return set(tasks.flatMap(partial(_write_share, plan=plan)).collect())


def _write_share(share: Share, plan: BucketPlan) -> list[str]:
    written: list[str] = []
    by_kind = {kind: _read_sessions(share, kind) for kind in (EARLIER, NEW, OPEN)}
    gone = [_users_in(share, path) for kind, path in share.files if kind == GONE]
    now = [pc.unique(by_kind[kind][c.USER_ID]).cast(pa.string()) for kind in (NEW, OPEN)]
    touched = pc.unique(pa.chunked_array([*now, *gone], pa.string()))
    finished = _joined(by_kind[EARLIER], by_kind[NEW])
    users = None if plan.everyone or plan.new_histories is not None else touched
    past = {number: _read_bucket(plan, number, users) for number in share.buckets}
    if plan.new_histories is not None:
        column = finished[c.USER_ID].combine_chunks()
        bucket = buckets_of(column.dictionary, plan.n_buckets)[column.indices.to_numpy()]
        order = np.argsort(bucket, kind="stable")
        edges = np.searchsorted(bucket[order], [*share.buckets, plan.n_buckets])
        for number, start, stop in zip(share.buckets, edges, edges[1:], strict=False):
            _write_bucket(plan, number, past[number], finished.take(pa.array(order[start:stop])), written)
    of_all = _joined(*past.values(), finished, by_kind[OPEN])
    del past, finished, by_kind
    _write_sequences(plan, share.k, of_all if plan.everyone else of_users(of_all, touched), touched, written)
    return written


def _meets(k: int, n: int, path: str) -> bool:
    """Whether a file of sessions may hold users of share k of n."""
    shard, m = shard_of(path)
    least = min(m, n)
    return shard % least == k % least


def _read_sessions(share: Share, kind: int) -> pa.Table:
    """The events of the share's users in its files of one kind, `with_dictionaries`."""
    tables = [_TEXT_AS_IDS.empty_table()]
    for path in [path for of, path in share.files if of == kind]:
        with fsspec.open(path, "rb") as file:
            events = with_dictionaries(flattened(pq.ParquetFile(file).read(columns=[c.USER_ID, c.EVENTS])))
        tables.append(of_users(events, _of_share(share, path, events[c.USER_ID].combine_chunks().dictionary)))
    return _joined(*(table.cast(_TEXT_AS_IDS) for table in tables))


def _users_in(share: Share, path: str) -> pa.Array:
    with fsspec.open(path, "rb") as file:
        users = pq.ParquetFile(file).read(columns=[c.USER_ID])[c.USER_ID]
    return _of_share(share, path, pc.unique(users))


def _of_share(share: Share, path: str, users: pa.Array) -> pa.Array:
    """Those of the users in a file who belong to the share."""
    _, m = shard_of(path)
    return users if m >= share.n else users.filter(pa.array(buckets_of(users, share.n) == share.k))


def _write_bucket(plan: BucketPlan, number: int, past: pa.Table, new: pa.Table, written: list[str]) -> None:
    """Write a bucket of the new histories: past events and new finished ones."""
    name = bucket_file(number)
    path = f"{plan.new_histories}/{name}"
    if name in plan.bucket_files and not new.num_rows:  # the file as it is
        fs, source = fsspec.core.url_to_fs(f"{plan.histories}/{name}")
        fs.cp_file(source, fsspec.core.url_to_fs(path)[1])
        written.append(path)
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
    written.append(path)


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


def _write_sequences(plan: BucketPlan, k: int, events: pa.Table, touched: pa.Array, written: list[str]) -> None:
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
    attempt = context.taskAttemptId() if context else 0
    path = f"{plan.sequences}/part-{k:05d}-{attempt}.parquet"
    write_sequences(found, path, plan.end_us - plan.session_gap_s * c.MICROS)
    written.append(path)


def write_sequences(rows: pa.Table, path: str, recent_us: int) -> None:
    """Rows of sequences_v1, those of users heard of since then in a row group of their own.

    The next night asks for these alone (jobs.layers.rows_since), and Spark passes over row groups by their times.
    """
    is_recent = pc.greater_equal(rows[c.LAST_TIME].cast(pa.int64()), recent_us)
    with fsspec.open(path, "wb") as file, pq.ParquetWriter(file, rows.schema, store_schema=False) as writer:
        for part in (rows.filter(is_recent), rows.filter(pc.invert(is_recent))):
            if part.num_rows:
                writer.write_table(part)


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
