"""The stages as functions over Spark frames, for a job of your own.

    from datetime import date
    from jobs.api import load_settings, read_table, score_users, sessionize, spark_session

    spark = spark_session("mine")
    settings = load_settings(assignments=["sessions.gap_s=3600"])
    sessions = sessionize(events, settings, date(2024, 5, 2))           # events: a frame as events_v1 has it
    sequences = read_table(spark, "out/shop", "sequences_v1", date(2024, 5, 2))
    scores = score_users(sequences, "out/shop/bundle/dt=2024-05-01", settings, date(2024, 5, 2))

Nothing here writes: what comes back is a lazy frame, to be joined, filtered or written by the caller. The commands add
what a nightly run needs: manifests, atomic publication, states carried from night to night. Columns and units of every
table: docs/contracts.md.
"""

from collections.abc import Iterator
from datetime import date
from functools import partial

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contracts import CONTRACTS, SCORES, SEQUENCES, SESSIONS
from features.denoising import DenoisingSpec
from features.scoring import HISTORY_COLUMNS, SCORES_ARROW
from features.scoring_spec import ScoringSpec
from features.sessions import CutRules, denoised_sessions, events_by_user
from features.states import Run, score_share
from features.workers import in_worker
from jobs.layers import at_the_end_of, read_sequences
from jobs.score import LoadBundle
from jobs.score_files import loaded
from jobs.settings import Settings, UsageError, load_settings
from jobs.spark import spark_session
from jobs.store import Store
from jobs.user_states import as_of
from model.bundle import Bundle, load_bundle

__all__ = [
    "Bundle",
    "Settings",
    "load_bundle",
    "load_settings",
    "read_table",
    "score_users",
    "sessionize",
    "spark_session",
]

IS_OPEN = "is_open"
_SESSIONS = T.StructType([*SESSIONS.schema.fields, T.StructField(IS_OPEN, T.BooleanType(), False)])


def sessionize(events: DataFrame, settings: Settings, last_day: date, n_partitions: int | None = None) -> DataFrame:
    """Cut events into sessions; one row a session, as `sessions_v1` has it, and `is_open`.

    A session ends where a user is silent for more than `settings.sessions.gap_s` seconds; events with one
    (user_id, event_time, event_id) are one; bots' days and bursts go by `settings.denoising`.

    Args:
        events: one row an event, as `events_v1` has it (docs/contracts.md): user_id, event_id, event_time, item_id,
            category_id and action. In any order; all events of a user whose sessions are wanted.
        settings: the sections `sessions` and `denoising` count.
        last_day: the UTC day after which nothing was collected. A session whose end lies less than
            `gap_s` plus `lateness_days` before the end of that day may still grow: `is_open`.
        n_partitions: of the shuffle by user; each is held whole in a Python worker. Default: Spark's parallelism.

    Returns:
        A lazy frame, in no order.

    Raises:
        pyspark.errors.AnalysisException: a column of events is missing.
    """
    n = n_partitions or events.sparkSession.sparkContext.defaultParallelism
    rules = CutRules.of(settings.sessions, last_day)
    cut = partial(_cut, rules=rules, denoising=settings.denoising)
    return events_by_user(events, None, n).mapInArrow(cut, _SESSIONS)


def score_users(
    sequences: DataFrame, bundle: str, settings: Settings, day: date, n_partitions: int | None = None
) -> DataFrame:
    """Future interests of every user; one row a user with a history, as `scores_v1` has it.

    Each Python worker loads the model once; TensorFlow takes as many threads as a task has cores (spark.task.cpus).

    Args:
        sequences: one row a user, as `sequences_v1` has it, encoded with the vocabulary that the bundle was trained
            for (`read_table` of a root and `interest score` know; a frame can't).
        bundle: folder or URI of a model bundle, seen by every executor under the same path.
        settings: the section `scoring` counts.
        day: the scores are as of the end of this UTC day; the silence since a user's last event counts up to there.
        n_partitions: each is held whole in a Python worker. Default: Spark's parallelism.

    Returns:
        A lazy frame, in no order.

    Raises:
        model.errors.ModelError: the bundle is missing or damaged; when the frame is computed, also that the
            sequences are longer or shorter than those of the bundle.
    """
    known = load_bundle(bundle)
    loader = LoadBundle(
        bundle,
        known.model_version,
        int(sequences.sparkSession.sparkContext.getConf().get("spark.task.cpus") or "1"),
        settings.scoring.probes,
    )
    run = Run(as_of(day), known.model_version, known.sizes.session_gap_s)
    n = n_partitions or sequences.sparkSession.sparkContext.defaultParallelism
    rows = at_the_end_of(sequences, day, known.gap_edges_s).select(*HISTORY_COLUMNS)
    rows = rows.where(F.col(c.LENGTH) > 0).repartition(n, c.USER_ID)
    return rows.mapInArrow(partial(_scored, loader=loader, spec=settings.scoring, run=run), SCORES.schema)


def read_table(spark: SparkSession, root: str, table: str, day: date) -> DataFrame:
    """One day of a table, refused where it is missing, torn or of another version.

    `sequences_v1` comes with every user as of that day, though a night writes those with new events alone.

    Args:
        spark: see `spark_session`.
        root: folder or URI of all tables.
        table: a name of docs/contracts.md, e.g. `scores_v1`.
        day: the partition.

    Returns:
        A lazy frame.

    Raises:
        jobs.settings.UsageError: there is no such table.
        features.contracts.ContractError: that day of it can't be read; the message says which job makes it.
    """
    contracts = {contract.name: contract for contract in CONTRACTS}
    if table not in contracts:
        raise UsageError(f"There is no table {table}; there are {', '.join(contracts)}.")
    if table == SEQUENCES.name:
        return read_sequences(spark, Store(root), day)
    return Store(root).read(spark, contracts[table], day, "the job that writes it (docs/contracts.md)")


@in_worker
def _cut(batches: Iterator[pa.RecordBatch], rules: CutRules, denoising: DenoisingSpec) -> Iterator[pa.RecordBatch]:
    held = [batch for batch in batches if batch.num_rows]
    if not held:
        return
    cut = denoised_sessions(pa.Table.from_batches(held), rules, denoising)
    schema = to_arrow_schema(_SESSIONS)
    for sessions, is_open in ((cut.finished, False), (cut.opened, True)):
        marked = sessions.append_column(IS_OPEN, pa.array([is_open] * sessions.num_rows, pa.bool_()))
        yield from marked.select(schema.names).cast(schema).to_batches()


@in_worker
def _scored(
    batches: Iterator[pa.RecordBatch], loader: LoadBundle, spec: ScoringSpec, run: Run
) -> Iterator[pa.RecordBatch]:
    held = [batch for batch in batches if batch.num_rows]
    if held:
        scored = score_share(pa.Table.from_batches(held), None, True, loaded(loader), spec, run)
        yield from scored.scores.select(SCORES_ARROW.names).cast(SCORES_ARROW).to_batches()
