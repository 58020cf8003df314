"""Sequences of a day: for scoring, and for training with splits, in row groups planned for the ranks."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Any

from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import SEQUENCES, TRAINING_SEQUENCES, VOCABULARY, ContractError, conform
from features.partitions import partitions_for
from features.sequences import SCORE, cutoffs_for, encode_events, user_windows
from jobs import histories
from jobs.cli import run_job, say, stage_parser
from jobs.history import events_until
from jobs.packing import SplitSummary, pack_split
from jobs.settings import Settings, config_hash, load_settings
from jobs.spark import spark_session
from jobs.store import Lineage, Manifest, Store

_EVENT_GROWTH = 4  # an encoded event in memory against its compressed bytes in sessions_v1


def build_sequences(spark: SparkSession, settings: Settings, root: str, date: date) -> tuple[Manifest, Manifest]:
    """Write sequences_v1 and training_sequences_v1 of a day; returns their manifests.

    Raises:
        ContractError: an input is missing, or a split is empty or breaks the cutoff.
    """
    spec, gap_s = settings.sequences, settings.sessions.gap_s
    store = Store(root)
    cutoffs = cutoffs_for(spec, date)
    events, inputs, n_bytes = events_until(spark, store, date)
    vocabulary = store.read(spark, VOCABULARY, date, "jobs/vocabulary.py")
    inputs[f"{VOCABULARY.name}/{date}"] = store.manifest(VOCABULARY.name, date, "jobs/vocabulary.py").hash
    least = spark.sparkContext.defaultParallelism
    n_partitions = partitions_for(n_bytes * _EVENT_GROWTH, spec.partition_mib, least)
    encoded = encode_events(events, vocabulary, before=_instant(cutoffs.end_us))
    windows = user_windows(encoded, spec, cutoffs, n_partitions)

    staged = store.staging(TRAINING_SEQUENCES.name, f"{date}-windows")
    windows.write.partitionBy(c.SPLIT).parquet(staged)
    packed = store.staging(TRAINING_SEQUENCES.name, date)
    splits = {split: pack_split(spark, store, staged, packed, split, spec) for split in c.SPLITS}
    _check_splits(splits, settings, date)
    coding: dict[str, Any] = spec.coding(gap_s)
    counters = {
        **coding,
        "splits": {split: asdict(summary) for split, summary in splits.items()},
        "protocol": spec.split.protocol,
        "valid_cutoff": _iso(cutoffs.valid_us),
        "test_cutoff": _iso(cutoffs.test_us),
        "embargo_days": spec.split.embargo_days,
        "world_sizes": list(spec.world_sizes),
        "horizons_days": list(spec.horizons_days),
        "ahead_events": spec.ahead_events,
    }
    hashed = config_hash(spec, settings.sessions)
    scoring = spark.read.schema(TRAINING_SEQUENCES.schema).parquet(f"{staged}/{c.SPLIT}={SCORE}")
    sequences = store.write(
        conform(scoring, SEQUENCES), SEQUENCES, date, Lineage(inputs, hashed, coding), time_column=c.LAST_TIME
    )
    training = store.publish(
        TRAINING_SEQUENCES, date, packed, Lineage(inputs, hashed, counters), time_column=c.LAST_TIME
    )
    store.fs.rm(staged, recursive=True)
    return sequences, training


def _check_splits(splits: dict[str, SplitSummary], settings: Settings, date: date) -> None:
    """No split empty; under global_time every input lies before its cutoff and every label at or after it."""
    split_spec, cutoffs = settings.sequences.split, cutoffs_for(settings.sequences, date)
    for name, found in splits.items():
        if found.rows == 0:
            raise ContractError(
                f"training_sequences_v1 of {date} would have no {name} rows (protocol {split_spec.protocol}, "
                f"valid_days {split_spec.valid_days}, test_days {split_spec.test_days}). Users need events before and "
                f"after each cutoff: take a longer log, or other days with --set sequences.split.test_days=…."
            )
    if split_spec.protocol != c.GLOBAL_TIME:
        return
    for name, at in ((c.TRAIN, cutoffs.valid_us), (c.VALID, cutoffs.valid_us), (c.TEST, cutoffs.test_us)):
        found = splits[name]
        leaks = found.last_label_us >= at if name == c.TRAIN else found.first_label_us < at
        if found.last_input_us >= at or leaks:
            raise ContractError(
                f"training_sequences_v1 of {date}, split {name}: inputs reach to {_iso(found.last_input_us)} and "
                f"labels go from {_iso(found.first_label_us)} to {_iso(found.last_label_us)}, but the cutoff is "
                f"{_iso(at)}. This is a defect of features/windows.py, not of the data; nothing was published."
            )


def _instant(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us / c.MICROS, UTC).replace(tzinfo=None)


def _iso(time_us: int) -> str:
    return _instant(time_us).isoformat() + "Z"


def main(argv: Sequence[str]) -> int:
    """Command line of the stage."""
    parser = stage_parser(
        "sequences", "Encode each user's latest events for scoring, and windows with targets for training."
    )

    parser.add_argument(
        "--scoring-only",
        action="store_true",
        help="sequences_v1 alone, of the users with new events; nights without training need no more",
    )

    def work(arguments: argparse.Namespace) -> None:
        settings = load_settings(arguments.conf, arguments.set)
        if arguments.scoring_only:
            spark = spark_session("sequences")
            say(histories.summary(histories.build_scoring_sequences(spark, settings, arguments.root, arguments.date)))
            return
        say(summary(*build_sequences(spark_session("sequences"), settings, arguments.root, arguments.date)))

    return run_job(work, parser, argv)


def summary(sequences: Manifest, training: Manifest) -> str:
    """One line for people."""
    splits = ", ".join(f"{name} {found['rows']:,}" for name, found in training.counters["splits"].items())
    return f"{sequences.rows:,} users; windows: {splits}; {training.row_groups} row groups"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
