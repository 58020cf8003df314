"""Sessions as Parquet files that the tasks write themselves: nested rows never go back through the JVM."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame

from features import columns as c
from features.contracts import SESSIONS
from features.sessions import CutRules, digest_of, sessions_of
from jobs.store import Store

_ROWS_PER_GROUP = 131_072
_WRITTEN = "path string, events long, digest string"
_WRITTEN_ARROW = pa.schema([("path", pa.string()), ("events", pa.int64()), ("digest", pa.string())])


@dataclass(frozen=True)
class Staged:
    """Where the finished and open sessions of a run lie, before they are published; their events and digest."""

    finished: str
    opened: str
    events: int
    events_open: int
    digest: str


def write_sessions(by_user: DataFrame, rules: CutRules, store: Store, folder: str) -> Staged:
    """Cut the events of each partition into sessions and write them below an empty folder.

    by_user: `events_by_user`. A file is kept only if the attempt that wrote it is the one that Spark counted: what a
    lost or repeated task left behind is removed.
    """
    finished, opened = f"{folder}/finished", f"{folder}/open"
    for path in (finished, opened):
        store.fs.makedirs(path, exist_ok=True)
    written = by_user.mapInArrow(partial(_write_partition, rules=rules, places=(finished, opened)), _WRITTEN).collect()
    events = {row["path"]: int(row["events"]) for row in written}
    for path in (finished, opened):
        store.keep_only(path, events)
        store.write_empty(SESSIONS, path)
    by_state = [sum(n for path, n in events.items() if path.startswith(place)) for place in (finished, opened)]
    digest = sum(int(row["digest"], 16) for row in written) % (1 << 64)
    return Staged(finished, opened, sum(by_state), by_state[1], f"{digest:016x}")


def _write_partition(
    batches: Iterator[pa.RecordBatch], rules: CutRules, places: tuple[str, str]
) -> Iterator[pa.RecordBatch]:
    """Write the sessions of one partition → path, number of events and digest of each file. Held whole."""
    held = [batch for batch in batches if batch.num_rows]
    if not held:
        return
    events = pa.Table.from_batches(held)
    del held
    context = TaskContext.get()
    name = f"part-{context.partitionId():05d}-{context.taskAttemptId()}.parquet" if context else "part.parquet"
    paths, counts, digests = [], [], []
    for sessions, place in zip(sessions_of(events, rules), places, strict=True):
        if sessions.num_rows:
            _write(sessions, f"{place}/{name}")
            paths.append(f"{place}/{name}")
            counts.append(int(sessions[c.N_EVENTS].to_numpy().sum()))
            digests.append(f"{digest_of(sessions):x}")
    yield from pa.table([paths, counts, digests], schema=_WRITTEN_ARROW).to_batches()


def _write(sessions: pa.Table, path: str) -> None:
    with fsspec.open(path, "wb") as file:
        pq.write_table(sessions, file, row_group_size=_ROWS_PER_GROUP, compression="snappy", store_schema=False)
