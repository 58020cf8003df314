"""What an evaluation reads: rows of a split, training windows, and on simulated data the truth beside them."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features import columns as c
from features.contracts import SIMULATED_TRUTH, TRAINING_SEQUENCES
from jobs.store import Manifest, Store
from model.baselines import Windows
from model.errors import ModelError
from model.evaluation import EvaluationRows, ScoreBlock, SplitProtocol, stored_scores
from model.metrics import Floats, Ints, Longs, Ragged

ORACLE, LATENT = "oracle", "latent truth"
TRUTHS = (ORACLE, LATENT)


def read_split(
    store: Store, manifest: Manifest, split: str, columns: Sequence[str], max_users: int
) -> tuple[pa.Table, int]:
    """Rows of a split, ordered by user and window, and its number of users; at most max_users, chosen by hash."""
    paths = files_of(store, manifest, split)
    if not paths:
        folder = store.path(TRAINING_SEQUENCES.name, manifest.dt)
        raise ModelError(
            f"{folder}: split {split} has no rows, so there is nothing to judge. Write the sequences of {manifest.dt} "
            "again with cutoffs that have events on both sides (sequences.split in the configuration)."
        )
    wanted = [name for name in columns if name != c.SPLIT]
    users = read_files(store, paths, [c.USER_ID])[c.USER_ID].unique()
    kept = users
    if len(users) > max_users:
        hashes = [hashlib.blake2b(user.encode(), digest_size=8).digest() for user in users.to_pylist()]
        chosen = sorted(range(len(users)), key=lambda position: hashes[position])[:max_users]
        kept = users.take(pa.array(chosen))
    tables = []
    for path in paths:
        table = read_files(store, [path], wanted)
        tables.append(table if kept is users else table.filter(pc.is_in(table[c.USER_ID], value_set=kept)))
    order = [(c.USER_ID, "ascending"), (c.WINDOW, "ascending")]
    return pa.concat_tables(tables).sort_by(order).combine_chunks(), len(users)


def rows_of_users(
    store: Store, manifest: Manifest, split: str, columns: Sequence[str], users: Sequence[str]
) -> pa.Table:
    """The rows of a split that belong to the given users; a table without rows where they have none."""
    wanted = pa.array(users, pa.string())
    tables = [read_files(store, [path], columns) for path in files_of(store, manifest, split)]
    kept = [table.filter(pc.is_in(table[c.USER_ID], value_set=wanted)) for table in tables]
    return pa.concat_tables(kept).combine_chunks() if kept else pa.table({name: [] for name in columns})


def files_of(store: Store, manifest: Manifest, split: str) -> list[str]:
    """Paths of a split's files."""
    folder = store.path(TRAINING_SEQUENCES.name, manifest.dt)
    return [f"{folder}/{file['path']}" for file in manifest.files if file["path"].startswith(f"{c.SPLIT}={split}/")]


def truths_of(
    store: Store, rows: EvaluationRows, protocol: SplitProtocol, vocabulary: Mapping[str, Sequence[str]]
) -> tuple[dict[str, ScoreBlock], tuple[str, ...]]:
    """The simulation's truth for the rows, where it was written for exactly this cutoff; and what to say about it."""
    if not store.dates(SIMULATED_TRUTH.name):
        return {}, ()
    if protocol.cutoff is None or protocol.embargo_days:
        return {}, ("No oracle row: the simulated truth is for the first event after a cutoff, without embargo.",)
    truth = truth_as_of(store, rows.user_id, protocol)
    if truth is None:
        return {}, (f"No oracle row: no partition of {SIMULATED_TRUTH.name} is as of the cutoff {protocol.cutoff}.",)
    return _truth_sources(truth, rows, vocabulary)


def truth_as_of(store: Store, user_id: Sequence[str], protocol: SplitProtocol) -> pa.Table | None:
    """The simulation's truth of these users, where it was written for exactly this cutoff."""
    cutoff_us = micros(str(protocol.cutoff))
    eve = str(datetime.fromisoformat(str(protocol.cutoff)).date() - timedelta(days=1))
    for day in sorted({protocol.date, eve} & set(store.dates(SIMULATED_TRUTH.name)), reverse=True):
        manifest = store.check(SIMULATED_TRUTH, day, "jobs/simulate.py")
        folder = store.path(SIMULATED_TRUTH.name, day)
        tables = []
        for file in manifest.files:
            table = read_files(store, [f"{folder}/{file['path']}"])
            tables.append(table.filter(pc.is_in(table[c.USER_ID], value_set=pa.array(user_id))))
        truth = pa.concat_tables(tables).combine_chunks()
        if truth.num_rows and (times_of(truth, c.AS_OF) == cutoff_us).all():
            return truth
    return None


def rows_of(table: pa.Table) -> EvaluationRows:
    """Rows of a held-out split as arrays."""
    return EvaluationRows(
        user_id=tuple(table[c.USER_ID].to_pylist()),
        channels=channels_of(table, c.CHANNELS),
        length=ints_of(table, c.LENGTH),
        next_gap=ints_of(table, c.NEXT_GAP),
        last_time_us=times_of(table, c.LAST_TIME),
        next_time_us=times_of(table, c.NEXT_TIME),
        next_item=ints_of(table, c.NEXT_ITEM),
        next_category=ints_of(table, c.NEXT_CATEGORY),
        label_items=ragged_of(table, c.LABEL_ITEMS),
        label_categories=ragged_of(table, c.LABEL_CATEGORIES),
        label_actions=ragged_of(table, c.LABEL_ACTIONS),
        label_times_us=_ragged_times(table, c.LABEL_TIMES),
        seen_items=ragged_of(table, c.SEEN_ITEMS),
    )


def windows_of(table: pa.Table) -> Windows:
    """Training windows as arrays; users numbered by appearance."""
    users = one_chunk(table[c.USER_ID]).dictionary_encode()
    return Windows(
        user=users.indices.to_numpy().astype(np.int64),
        window=ints_of(table, c.WINDOW),
        channels=channels_of(table, (c.ITEM, c.CATEGORY, c.ACTION_CODE, c.GAP, c.AGE)),
        length=ints_of(table, c.LENGTH),
        next_gap=ints_of(table, c.NEXT_GAP),
        next_item=ints_of(table, c.NEXT_ITEM),
        next_category=ints_of(table, c.NEXT_CATEGORY),
        last_time_us=times_of(table, c.LAST_TIME),
        next_time_us=times_of(table, c.NEXT_TIME),
    )


def _truth_sources(
    truth: pa.Table, rows: EvaluationRows, vocabulary: Mapping[str, Sequence[str]]
) -> tuple[dict[str, ScoreBlock], tuple[str, ...]]:
    position = pc.index_in(pa.array(rows.user_id), value_set=one_chunk(truth[c.USER_ID]))
    aligned = truth.take(position)  # a user without a truth: null lists, which score nothing
    n_ids = (len(vocabulary[c.KIND_ITEM]), len(vocabulary[c.KIND_CATEGORY]))

    def stored(column: str, token: str, kind: str) -> tuple[Ragged, Floats]:
        lists = one_chunk(aligned[column])
        entries = lists.flatten()
        ids = pc.fill_null(
            pc.index_in(entries.field(token), value_set=pa.array(vocabulary[kind], pa.string())), c.OOV
        ).to_numpy()
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Ragged(ids.astype(np.int32), offsets), entries.field(c.PROBABILITY).to_numpy()

    sources = {
        name: stored_scores(stored(items, c.ITEM_ID, c.KIND_ITEM), stored(cats, c.CATEGORY_ID, c.KIND_CATEGORY), n_ids)
        for name, items, cats in (
            (ORACLE, c.ORACLE_ITEMS, c.ORACLE_CATEGORIES),
            (LATENT, c.LATENT_ITEMS, c.LATENT_CATEGORIES),
        )
    }
    note = "oracle: the best prediction from the observed history; latent truth: from the hidden state itself."
    if position.null_count:
        note += f" Users without a truth, who count as misses in both: {position.null_count}."
    return sources, (note,)


def read_files(store: Store, paths: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of Parquet files, in the order of the paths; `columns`: only these."""
    tables = []
    for path in paths:
        with store.fs.open(path, "rb") as file:
            tables.append(pq.ParquetFile(file).read(columns=None if columns is None else list(columns)))
    return pa.concat_tables(tables)


def channels_of(table: pa.Table, names: Sequence[str]) -> dict[str, Ints]:
    """Columns of fixed-length lists, [B, L] each."""
    return {name: one_chunk(table[name]).flatten().to_numpy().reshape(table.num_rows, -1) for name in names}


def ints_of(table: pa.Table, name: str) -> Ints:
    """An integer column, [B]."""
    return np.asarray(table[name].to_numpy(), dtype=np.int32)


def times_of(table: pa.Table, name: str) -> Longs:
    """A column of times in microseconds since 1970, [B]."""
    return np.asarray(table[name].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy())


def ragged_of(table: pa.Table, name: str) -> Ragged:
    """A column of lists of any length."""
    column = one_chunk(table[name])
    offsets = column.offsets.to_numpy().astype(np.int64)
    return Ragged(column.flatten().to_numpy(), offsets - offsets[0])


def _ragged_times(table: pa.Table, name: str) -> Ragged:
    """Lists of times as microseconds since 1970."""
    column = one_chunk(table[name])
    offsets = column.offsets.to_numpy().astype(np.int64)
    times = column.flatten().cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return Ragged(times.to_numpy(), offsets - offsets[0])


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def micros(iso: str) -> int:
    """Microseconds since 1970 of an ISO 8601 time with its zone."""
    return int(datetime.fromisoformat(iso).timestamp()) * c.MICROS
