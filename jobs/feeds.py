"""What is written beside the scores of a day, where the section feeds of the configuration asks for it."""

from datetime import date

from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import DRIFT, SCORES, SCORES_EXPLODED, Contract
from features.score_feeds import merged
from jobs.nightly_spec import FeedsSpec
from jobs.settings import config_hash
from jobs.store import Lineage, Manifest, Store

_ALL = (SCORES_EXPLODED, DRIFT)


def feed_tables(spec: FeedsSpec) -> tuple[Contract, ...]:
    """The tables that are asked for."""
    wanted = {SCORES_EXPLODED.name: spec.exploded, DRIFT.name: spec.drift_users > 0}
    return tuple(table for table in _ALL if wanted[table.name])


def remove_feeds(store: Store, dt: date) -> None:
    """Take away what was made of a day's scores before these are replaced: manifests first."""
    for table in _ALL:
        store.retract(table, dt)
        if store.fs.exists(store.path(table.name, dt)):
            store.fs.rm(store.path(table.name, dt), recursive=True)


def publish_feeds(
    spark: SparkSession, store: Store, dt: date, staged: dict[Contract, str], scores: Manifest, spec: FeedsSpec
) -> list[Manifest]:
    """Publish what the tasks staged beside the scores: exploded rows as they are, of the most moved users the most."""
    lineage = Lineage({f"{SCORES.name}/{dt}": scores.hash}, config_hash(spec))
    made = []
    if SCORES_EXPLODED in staged:
        made.append(store.publish(SCORES_EXPLODED, dt, staged[SCORES_EXPLODED], lineage))
    if DRIFT in staged:
        candidates = spark.read.schema(DRIFT.schema).parquet(staged[DRIFT])
        staged_top = store.staging(f"{DRIFT.name}", f"{dt}-top")
        merged(candidates, spec.drift_users).coalesce(1).write.parquet(staged_top)
        made.append(store.publish(DRIFT, dt, staged_top, lineage, time_column=c.AS_OF))
        store.fs.rm(staged[DRIFT], recursive=True)
    return made
