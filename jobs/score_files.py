"""What a task of scoring does: take the new rows of its bucket, join them with last night's, write the result itself.

Users are dealt to buckets by pmod(hash(user_id), n), as Spark's repartition does it. So a task finds what the last run
left of its users in one file of scores and one of states, and neither goes through the JVM.
"""

import gc
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contracts import SEQUENCES, ContractError
from features.histories import buckets_of
from features.rungs import FALLBACK, FALLBACK_TYPE
from features.score_feeds import exploded, most_drifted, outlook_sums
from features.scoring import FALLBACK_ARROW, HISTORY_COLUMNS, SCORES_ARROW, Scorer
from features.scoring_spec import ScoringSpec
from features.states import STATES_ARROW, Before, Run, Scored, score_share
from features.workers import in_worker
from jobs.bucket_files import bucket_file
from jobs.observing import task_line

_ROWS, _READ = "rows", "read"
_SEQUENCES = to_arrow_schema(SEQUENCES.schema)
_ROWS_ARROW = pa.schema([*(_SEQUENCES.field(name) for name in HISTORY_COLUMNS), (FALLBACK, FALLBACK_ARROW)])
_DONE = "bucket int, paths array<string>, digests array<string>, counts string"
_TEXTS = pa.list_(pa.string())
_DONE_ARROW = pa.schema([("bucket", pa.int32()), ("paths", _TEXTS), ("digests", _TEXTS), ("counts", pa.string())])


@dataclass(frozen=True)
class Earlier:
    """What an earlier day left of each bucket, by the name of its files, and that day's cutoff.

    scores: each user's row; states: layers, the latest first, of which the first that has a user counts.
    """

    scores: Mapping[str, "Left"]
    states: Mapping[str, Sequence["Left"]]
    as_of: datetime


class Left(NamedTuple):
    """A file. digest: of its content, "" where its manifest has none."""

    path: str
    digest: str


@dataclass(frozen=True)
class ScorePlan:
    """What all tasks share. is_everyone: rows of all users come, so who has none is gone.

    whole_states: states of all users are written; else a layer with those of the users who were scored.
    exploded, drift: folders of the feeds, None where they are not written; of each bucket its `drift_users`.
    """

    make_scorer: Callable[[], Scorer]
    spec: ScoringSpec
    run: Run
    n_buckets: int
    scores: str
    states: str
    earlier: Earlier | None
    is_everyone: bool
    whole_states: bool = True
    exploded: str | None = None
    drift: str | None = None
    drift_users: int = 0


def write_scores(
    sequences: DataFrame, plan: ScorePlan, fallbacks: DataFrame | None = None
) -> tuple[dict[str, str], Counter[str]]:
    """Write scores and states of all users below two empty folders → files that count with digests, and counts.

    sequences: rows of sequences_v1; fallbacks: those of users of whom the model knows nothing (features.fallbacks).

    Counts: `rows` written, `read` of the sequences; rows by outcome, by provenance and interests by trend.

    plan.make_scorer travels to the Python workers and is called once in each worker process; it is hashable, and equal
    ones make equal scorers.

    Raises:
        ContractError: a bucket did not report: a defect.
    """
    rows = sequences.select(*HISTORY_COLUMNS, F.lit(None).cast(FALLBACK_TYPE).alias(FALLBACK))
    if fallbacks is not None:  # no join: Spark would deal the rows for it, and leave out the dealing below as done
        rows = rows.unionByName(fallbacks.select(c.USER_ID, FALLBACK), allowMissingColumns=True)
    by_bucket = rows.repartition(plan.n_buckets, c.USER_ID)
    done = by_bucket.mapInArrow(partial(_score_bucket, plan=plan), _DONE).collect()
    if sorted(row["bucket"] for row in done) != list(range(plan.n_buckets)):
        raise ContractError(
            f"{len(done)} tasks reported for {plan.n_buckets} buckets. Nothing was published. This is a defect of the "
            "scorer, not of the data."
        )
    counts: Counter[str] = Counter()
    for row in done:
        counts.update(json.loads(row["counts"]))
    return {path: digest for row in done for path, digest in zip(row["paths"], row["digests"], strict=True)}, counts


@in_worker
def _score_bucket(batches: Iterator[pa.RecordBatch], plan: ScorePlan) -> Iterator[pa.RecordBatch]:
    """Score and write one bucket, held whole → one row of _DONE."""
    context = TaskContext.get()
    assert context is not None
    number = context.partitionId()
    held = [batch for batch in batches if batch.num_rows]
    rows = _joined(pa.Table.from_batches(held)) if held else _ROWS_ARROW.empty_table()
    del held
    _check_dealt(rows, number, plan)
    before = _before(number, plan)
    counts: Counter[str] = Counter({_ROWS: 0, _READ: rows.num_rows})
    written: dict[str, str] = {}
    if rows.num_rows or before is not None:
        scorer = loaded(plan.make_scorer)
        scored = score_share(rows, before, plan.is_everyone, scorer, plan.spec, plan.run, plan.whole_states)
        counts.update(_counts(scored))
        tables = [(plan.scores, scored.scores), (plan.states, scored.states)]
        if plan.exploded:
            tables.append((plan.exploded, exploded(scored.scores)))
        if plan.drift:
            tables.append((plan.drift, most_drifted(scored.scores, plan.drift_users)))
        for folder, table in tables:
            if table.num_rows:
                path = f"{folder}/{bucket_file(number)}"
                written[path] = _write(table, path)
    task_line(f"{bucket_file(number)}: {counts[_READ]:,} rows read, {counts[_ROWS]:,} written", "score")
    yield pa.RecordBatch.from_pylist(
        [
            {
                "bucket": number,
                "paths": list(written),
                "digests": list(written.values()),
                "counts": json.dumps(dict(counts)),
            }
        ],
        schema=_DONE_ARROW,
    )


def _joined(came: pa.Table) -> pa.Table:
    """Rows of sequences, each with its user's fallback, which came as a row of its own, without a length."""
    is_row = came[c.LENGTH].is_valid()
    rows, others = came.filter(is_row), came.filter(pc.invert(is_row))
    at = pc.index_in(rows[c.USER_ID].combine_chunks(), others[c.USER_ID].combine_chunks())
    return pa.table(
        [*rows.select(HISTORY_COLUMNS), others[FALLBACK].combine_chunks().take(at)], names=_ROWS_ARROW.names
    ).cast(_ROWS_ARROW)


def loaded(make_scorer: Callable[[], Scorer]) -> Scorer:
    """The process's scorer. A Python worker lives over many tasks; it keeps one model and drops it for another."""
    if make_scorer not in _loaded:
        _loaded.clear()
        gc.unfreeze()
        _loaded[make_scorer] = make_scorer()
        gc.collect()
        gc.freeze()  # else Spark's worker looks through a million objects of TensorFlow after each task, for 0.25 s
    return _loaded[make_scorer]


_loaded: dict[Callable[[], Scorer], Scorer] = {}


def _check_dealt(rows: pa.Table, number: int, plan: ScorePlan) -> None:
    first = rows[c.USER_ID].slice(0, 1).combine_chunks()
    if len(first) and buckets_of(first, plan.n_buckets)[0] != number:
        raise ContractError(
            f"User {first[0].as_py()} came to bucket {number} of {plan.n_buckets}. Nothing was published. This is a "
            "defect of the scorer, not of the data."
        )


def _before(number: int, plan: ScorePlan) -> Before | None:
    name = bucket_file(number)
    if plan.earlier is None or name not in plan.earlier.scores:
        return None
    scores = _read(*plan.earlier.scores[name], SCORES_ARROW)
    layers = plan.earlier.states[name]
    states = [_read(*left, STATES_ARROW) for left in layers]
    where = " over ".join(left.path for left in layers)
    return Before(scores, _of_users(scores[c.USER_ID], states, where), plan.earlier.as_of, where)


def _of_users(users: pa.ChunkedArray, layers: Sequence[pa.Table], where: str) -> pa.Table:
    """Each user's row of the first layer that has one."""
    if len(layers) == 1 and layers[0][c.USER_ID].equals(users):
        return layers[0]
    rows = pa.concat_tables([*layers, STATES_ARROW.empty_table()]).combine_chunks()
    at = pc.index_in(users.combine_chunks(), rows[c.USER_ID].combine_chunks())
    if at.null_count:
        user = users.filter(at.is_null())[0].as_py()
        raise ContractError(
            f"{where}: no state of user {user}, who was scored with it. Score everyone anew with jobs/score.py --full."
        )
    return rows.take(at)


def _read(path: str, digest: str, schema: pa.Schema) -> pa.Table:
    with fsspec.open(path, "rb") as file:
        content = file.read()
    if digest and digest_of(content) != digest:
        raise ContractError(
            f"{path} is damaged: its {len(content):,} bytes are not those that were written. Nothing was published. "
            "Score everyone anew: jobs/score.py --full for this day."
        )
    return pq.ParquetFile(pa.BufferReader(content)).read().select(schema.names).cast(schema)


def digest_of(content: bytes) -> str:
    """What a manifest keeps of a file's content; against damage, which it need not resist on purpose."""
    return f"{zlib.crc32(content):08x}"


def _write(table: pa.Table, path: str) -> str:
    """Under one name whoever writes it: a repeated task writes the same rows → digest."""
    leaves = [leaf for field in table.schema for leaf in _leaves(field.name, field.type)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression={name: "none" if name == c.STATE else "snappy" for name, _ in leaves},  # states hardly shrink
        use_dictionary=[name for name, kind in leaves if kind == pa.string() and name != c.USER_ID],
        store_schema=False,
    )
    content = sink.getvalue()
    with fsspec.open(path, "wb") as file:
        file.write(content)
    return digest_of(content)


def _leaves(name: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Parquet's columns behind a column, by path."""
    if pa.types.is_list(kind):
        yield from _leaves(f"{name}.list.element", kind.value_type)
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{name}.{field.name}", field.type)
    else:
        yield name, kind


def _counts(scored: Scored) -> Counter[str]:
    counts: Counter[str] = Counter(scored.outcomes)
    counts[_ROWS] = scored.scores.num_rows
    counts.update(outlook_sums(scored.scores))
    provenance = scored.scores[c.PROVENANCE]
    trends = pc.struct_field(pc.list_flatten(scored.scores[c.INTERESTS]), c.TREND)
    for column, prefix in ((provenance, "from_"), (trends, "")):
        for value in pc.value_counts(column).to_pylist():
            counts[f"{prefix}{value['values']}"] += value["counts"]
    return counts
