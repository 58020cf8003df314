"""Vocabulary of a day: every known token keeps its id, new ones are appended by falling frequency."""

import argparse
import sys
from collections.abc import Sequence
from datetime import date, timedelta

import numpy as np
import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import VOCABULARY, ContractError, conform
from features.events import midnight
from features.vocabulary import count_tokens, new_tokens, recounted
from jobs.cli import run_job, say, stage_parser
from jobs.history import events_until
from jobs.settings import Settings, config_hash, load_settings
from jobs.spark import spark_session
from jobs.store import Lineage, Manifest, Store


def build_vocabulary(spark: SparkSession, settings: Settings, root: str, date: date) -> Manifest:
    """Write vocabulary_v1 of a day from all events before its end and the latest earlier vocabulary.

    The kept tokens pass through the driver; the log does not.

    Raises:
        ContractError: sessions of that day are missing, or no token is frequent enough.
    """
    store = Store(root)
    spec = settings.vocabulary
    events, inputs, _ = events_until(spark, store, date)
    end = midnight(date + timedelta(days=1))
    counts = count_tokens(events.where(F.col(c.EVENT_TIME) < F.lit(end))).persist()
    earlier = [day for day in store.dates(VOCABULARY.name) if day < str(date)]
    known = spark.createDataFrame([], VOCABULARY.schema)
    if earlier:
        known = store.read(spark, VOCABULARY, earlier[-1], "jobs/vocabulary.py")
        inputs[f"{VOCABULARY.name}/{earlier[-1]}"] = store.manifest(VOCABULARY.name, earlier[-1], "").hash

    parts = [recounted(known, counts).toPandas()]
    for kind, most in ((c.KIND_ITEM, spec.max_items), (c.KIND_CATEGORY, spec.max_categories)):
        taken = parts[0].loc[parts[0][c.KIND] == kind, c.ID].max()
        last_id = c.FIRST_ID - 1 if pd.isna(taken) else int(taken)
        room = max(0, most - (last_id - c.FIRST_ID + 1))
        fresh = new_tokens(counts, known, kind, spec.min_count, room).toPandas()
        fresh.insert(0, c.KIND, kind)
        fresh[c.ID] = np.arange(last_id + 1, last_id + 1 + len(fresh), dtype=np.int32)
        parts.append(fresh)
    counts.unpersist()
    vocabulary = pd.concat(parts, ignore_index=True)[VOCABULARY.schema.names]
    by_kind = {kind: int((vocabulary[c.KIND] == kind).sum()) for kind in (c.KIND_ITEM, c.KIND_CATEGORY)}
    for kind, n in by_kind.items():
        if not n:
            raise ContractError(
                f"No {kind} of the log up to {date} occurs vocabulary.min_count = {spec.min_count} times or more, so "
                f"there is nothing to predict. Lower min_count, take a longer log"
                + (", or map category_id to the item column in the source map." if kind == c.KIND_CATEGORY else ".")
            )
    rows = conform(spark.createDataFrame(vocabulary, VOCABULARY.schema), VOCABULARY).coalesce(1)
    counters = {**by_kind, "new": len(vocabulary) - len(parts[0])}
    return store.write(rows, VOCABULARY, date, Lineage(inputs, config_hash(spec), counters))


def main(argv: Sequence[str]) -> int:
    """Command line of the stage."""
    parser = stage_parser("vocabulary", "Give every frequent item and category an id that never moves.")

    def work(arguments: argparse.Namespace) -> None:
        settings = load_settings(arguments.conf, arguments.set)
        manifest = build_vocabulary(spark_session("vocabulary"), settings, arguments.root, arguments.date)
        say(summary(manifest))

    return run_job(work, parser, argv)


def summary(manifest: Manifest) -> str:
    """One line for people."""
    counters = manifest.counters
    return f"{counters[c.KIND_ITEM]:,} items, {counters[c.KIND_CATEGORY]:,} categories, {counters['new']:,} of them new"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
