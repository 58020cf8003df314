"""Vocabulary of a day: every known token keeps its id, new ones are appended by falling frequency."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from math import ceil

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import VOCABULARY, ContractError, conform
from features.events import midnight
from features.vocabulary import (
    VocabularySpec,
    count_tokens,
    new_tokens,
    partition_sizes,
    plan_ids,
    recounted,
    with_ids,
)
from jobs.cli import run_job, say, show, stage_parser
from jobs.history import events_until
from jobs.settings import Settings, config_hash, load_settings
from jobs.spark import spark_session
from jobs.store import Lineage, Manifest, Store

_JOB = "jobs/vocabulary.py"
_KINDS = (c.KIND_ITEM, c.KIND_CATEGORY)
_FILE_ROWS = 2_000_000  # some 15 MiB of Parquet, in one row group


def build_vocabulary(spark: SparkSession, settings: Settings, root: str, date: date) -> Manifest:
    """Write vocabulary_v1 of a day from all events before its end and the latest earlier vocabulary.

    Only numbers pass through the driver: how many new tokens each partition holds. The rows lie in no order.

    Raises:
        ContractError: sessions of that day are missing, or no token is frequent enough.
    """
    store = Store(root)
    spec = settings.vocabulary
    events, inputs, _ = events_until(spark, store, date)
    end = midnight(date + timedelta(days=1))
    earlier = [day for day in store.dates(VOCABULARY.name) if day < str(date)]
    known, taken = None, dict.fromkeys(_KINDS, 0)
    if earlier:
        known = store.read(spark, VOCABULARY, earlier[-1], _JOB)
        manifest = store.manifest(VOCABULARY.name, earlier[-1], _JOB)
        taken = {kind: int(manifest.counters[kind]) for kind in _KINDS}
        inputs[f"{VOCABULARY.name}/{earlier[-1]}"] = manifest.hash

    # Ids are right only in the partitions that were counted, and Spark samples other bounds for every new plan of a
    # sort. Persisted, there is one plan: even a lost block comes back with its rows in their places.
    with (
        _persisted(count_tokens(events.where(F.col(c.EVENT_TIME) < F.lit(end)))) as counts,
        _persisted(new_tokens(counts, known, spec.min_count), StorageLevel.DISK_ONLY) as fresh,
    ):
        most = {c.KIND_ITEM: spec.max_items, c.KIND_CATEGORY: spec.max_categories}
        plan = plan_ids([tuple(row) for row in partition_sizes(fresh).collect()], taken, most)
        by_kind = {kind: taken[kind] + plan.n_new[kind] for kind in _KINDS}
        _check_kinds(by_kind, spec, date)
        rows = with_ids(fresh, plan)
        if known is not None:
            rows = recounted(known, counts).unionByName(rows)
        n_files = ceil(sum(by_kind.values()) / _FILE_ROWS)
        # By token: the same rows give the same files, whatever the partitions were.
        rows = rows.coalesce(1) if n_files == 1 else rows.repartition(n_files, c.TOKEN)
        counters = {**by_kind, "new": sum(plan.n_new.values())}
        lineage = Lineage(inputs, config_hash(spec), counters)
        return store.write(conform(rows, VOCABULARY), VOCABULARY, date, lineage)


@contextmanager
def _persisted(frame: DataFrame, level: StorageLevel = StorageLevel.MEMORY_AND_DISK) -> Iterator[DataFrame]:
    """Let go also after an error: a later run in this session would take the old rows for its own."""
    try:
        yield frame.persist(level)
    finally:
        frame.unpersist()


def _check_kinds(by_kind: Mapping[str, int], spec: VocabularySpec, date: date) -> None:
    for kind, n in by_kind.items():
        if not n:
            raise ContractError(
                f"No {kind} of the log up to {date} occurs vocabulary.min_count = {spec.min_count} times or more, so "
                f"there is nothing to predict. Lower min_count, take a longer log"
                + (", or map category_id to the item column in the source map." if kind == c.KIND_CATEGORY else ".")
            )


def main(argv: Sequence[str]) -> int:
    """Command line of the stage."""
    return run_job(_work, parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The flags of the stage."""
    return stage_parser("vocabulary")


def _work(arguments: argparse.Namespace) -> None:
    settings = load_settings(arguments.conf, arguments.set)
    manifest = build_vocabulary(spark_session("vocabulary"), settings, arguments.root, arguments.date)
    say(summary(manifest))
    show(arguments, Store(arguments.root).facts(manifest))


def summary(manifest: Manifest) -> str:
    """One line for people."""
    counters = manifest.counters
    return f"{counters[c.KIND_ITEM]:,} items, {counters[c.KIND_CATEGORY]:,} categories, {counters['new']:,} of them new"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
