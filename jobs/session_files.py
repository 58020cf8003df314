"""Sessions as Parquet files that the tasks write themselves: nested rows never go back through the JVM."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame

from features import columns as c
from features.contracts import FLAGGED_USERS, HELD_EVENTS, SESSIONS, Contract, ContractError
from features.denoising import OFF, DenoisingSpec
from features.sessions import Cut, CutRules, denoised_sessions, digest_of
from features.workers import in_worker
from jobs.observing import task_line
from jobs.store import Store

_ROWS_PER_GROUP = 131_072
_FINISHED, _OPEN, _HELD, _FLAGGED, _BOTS = "finished", "open", "held", "flagged", "bots"
_USERS, _CAPPED, _BURST = "users", "capped", "burst"  # counted, no file
_READ, _DISTINCT = "read", "distinct"
_CONTRACTS: dict[str, Contract] = {_FINISHED: SESSIONS, _OPEN: SESSIONS, _HELD: HELD_EVENTS, _FLAGGED: FLAGGED_USERS}
_WRITTEN = "kind string, path string, n long, digest string"
_WRITTEN_ARROW = pa.schema([("kind", pa.string()), ("path", pa.string()), ("n", pa.int64()), ("digest", pa.string())])


@dataclass(frozen=True)
class Staged:
    """Where the tables of a run lie before they are published, and what became of its events.

    Of `read` rows `distinct` events are left; of these `events` are in sessions (`events_open` of them in open ones),
    `events_held` are held back; the flagged, capped and burst ones are gone. `digest` is of those in sessions and held.
    """

    finished: str
    opened: str
    held: str
    flagged: str
    events: int
    events_open: int
    events_held: int
    events_flagged: int
    events_capped: int
    events_burst: int
    read: int
    distinct: int
    flagged_users: int
    digest: str


def write_sessions(
    by_user: DataFrame,
    n_partitions: int,
    rules: CutRules,
    store: Store,
    folder: str,
    denoising: DenoisingSpec = OFF,
    rejected: str | None = None,
) -> Staged:
    """Cut the events of each partition into sessions and write them below an empty folder.

    by_user: `events_by_user`, in n_partitions, which the names of the files repeat (`shard_of`). rejected: empty folder
    that bots' events are written into (default: below `folder`). A file is kept only if the attempt that wrote it is
    the one that Spark counted: what a lost or repeated task left behind is removed.
    """
    places = {kind: f"{folder}/{kind}" for kind in _CONTRACTS} | {_BOTS: rejected or f"{folder}/{_BOTS}"}
    for path in places.values():
        store.fs.makedirs(path, exist_ok=True)
    task = partial(_write_partition, n_partitions=n_partitions, rules=rules, denoising=denoising, places=places)
    written = by_user.mapInArrow(task, _WRITTEN).collect()
    counted = {row["path"] for row in written}
    for kind, place in places.items():
        store.keep_only(place, counted)
        if kind in _CONTRACTS:
            store.write_empty(_CONTRACTS[kind], place)
    n: Counter[str] = Counter()
    for row in written:
        n[row["kind"]] += int(row["n"])
    digest = sum(int(row["digest"], 16) for row in written) % (1 << 64)
    return Staged(
        places[_FINISHED],
        places[_OPEN],
        places[_HELD],
        places[_FLAGGED],
        events=n[_FINISHED] + n[_OPEN],
        events_open=n[_OPEN],
        events_held=n[_HELD],
        events_flagged=n[_BOTS],
        events_capped=n[_CAPPED],
        events_burst=n[_BURST],
        read=n[_READ],
        distinct=n[_DISTINCT],
        flagged_users=n[_USERS],
        digest=f"{digest:016x}",
    )


@in_worker
def _write_partition(
    batches: Iterator[pa.RecordBatch],
    n_partitions: int,
    rules: CutRules,
    denoising: DenoisingSpec,
    places: Mapping[str, str],
) -> Iterator[pa.RecordBatch]:
    """Write what comes of one partition → kind, path, number of events and digest of each file. Held whole.

    What is counted and not written is a row without a path.
    """
    held = [batch for batch in batches if batch.num_rows]
    if not held:
        return
    events = pa.Table.from_batches(held)
    del held
    context = TaskContext.get()
    assert context is not None
    name = f"part-{context.partitionId():05d}-of-{n_partitions:05d}-{context.taskAttemptId()}.parquet"
    cut = denoised_sessions(events, rules, denoising)
    tables = (cut.finished, cut.opened, cut.held, cut.flagged, cut.bots)
    rows: list[tuple[str, str | None, int, str]] = []
    for kind, table in zip((_FINISHED, _OPEN, _HELD, _FLAGGED, _BOTS), tables, strict=True):
        if table.num_rows:
            path = f"{places[kind]}/{_BOTS}-{name}" if kind == _BOTS else f"{places[kind]}/{name}"
            _write(table, path)
            is_event_kept = kind in (_FINISHED, _OPEN, _HELD)
            n_rows = int(table[c.N_EVENTS].to_numpy().sum()) if kind in (_FINISHED, _OPEN) else table.num_rows
            rows.append((kind, path, n_rows, f"{digest_of(table):x}" if is_event_kept else "0"))
    task_line(f"{name}: {events.num_rows:,} events, {cut.n_distinct:,} of them distinct", "sessionize")
    rows += [(kind, None, n, "0") for kind, n in {_READ: events.num_rows, **_counts(cut)}.items()]
    yield from pa.table([list(column) for column in zip(*rows, strict=True)], schema=_WRITTEN_ARROW).to_batches()


def shard_of(path: str) -> tuple[int, int]:
    """Which users a file of sessions holds: those with pmod(hash(user_id), n) = k, as (k, n).

    Raises:
        ContractError: the name does not say so; the file is of an older version.
    """
    found = re.search(r"part-(\d+)-of-(\d+)-\d+\.parquet$", path)
    if found is None:
        raise ContractError(f"{path} does not say which users it holds. Run jobs/sessionize.py for its day again.")
    return int(found.group(1)), int(found.group(2))


def _counts(cut: Cut) -> dict[str, int]:
    n_users = pc.count_distinct(cut.flagged[c.USER_ID]).as_py()  # each user is in one partition
    return {_USERS: n_users, _CAPPED: cut.n_capped, _BURST: cut.n_burst, _DISTINCT: cut.n_distinct}


def _write(table: pa.Table, path: str) -> None:
    with fsspec.open(path, "wb") as file:
        pq.write_table(table, file, row_group_size=_ROWS_PER_GROUP, compression="snappy", store_schema=False)
