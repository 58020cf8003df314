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
from features.partitions import EVENT_GROWTH, partitions_for
from features.sequences import SCORE, cutoffs_for, encode_events, moved_back, user_windows
from features.window_rows import Cutoffs
from jobs import histories
from jobs.cli import run_job, say, show, stage_parser
from jobs.history import events_until
from jobs.packing import SplitSummary, pack_split
from jobs.settings import Settings, config_hash, load_settings
from jobs.spark import spark_session
from jobs.store import Lineage, Manifest, Store


def build_sequences(
    spark: SparkSession, settings: Settings, root: str, date: date, into: str | None = None, back_days: int = 0
) -> tuple[Manifest, Manifest]:
    """Write sequences_v1 and training_sequences_v1 of a day; returns their manifests.

    into: another root to write them to. back_days: how far before the day's own cutoffs these lie; nothing of the days
    after them is used but for the vocabulary.

    Raises:
        ContractError: an input is missing, or a split is empty or breaks the cutoff.
    """
    spec, gap_s = settings.sequences, settings.sessions.gap_s
    store, out = Store(root), Store(into or root)
    cutoffs = moved_back(cutoffs_for(spec, date), back_days)
    events, inputs, n_bytes = events_until(spark, store, date)
    vocabulary = store.read(spark, VOCABULARY, date, "jobs/vocabulary.py")
    inputs[f"{VOCABULARY.name}/{date}"] = store.manifest(VOCABULARY.name, date, "jobs/vocabulary.py").hash
    least = spark.sparkContext.defaultParallelism
    n_partitions = partitions_for(n_bytes * EVENT_GROWTH, spec.partition_mib, least)
    encoded = encode_events(events, vocabulary, before=_instant(cutoffs.end_us))
    windows = user_windows(encoded, spec, cutoffs, n_partitions)

    staged = out.staging(TRAINING_SEQUENCES.name, f"{date}-windows")
    windows.write.partitionBy(c.SPLIT).parquet(staged)
    packed = out.staging(TRAINING_SEQUENCES.name, date)
    splits = {split: pack_split(spark, out, staged, packed, split, spec) for split in c.SPLITS}
    _check_splits(splits, settings, date, cutoffs)
    coding: dict[str, Any] = spec.coding(gap_s)
    counters = {
        **coding,
        "splits": {split: asdict(summary) for split, summary in splits.items()},
        "protocol": spec.split.protocol,
        "valid_cutoff": _iso(cutoffs.valid_us),
        "test_cutoff": _iso(cutoffs.test_us),
        "end_cutoff": _iso(cutoffs.end_us),
        "embargo_days": spec.split.embargo_days,
        "world_sizes": list(spec.world_sizes),
        "horizons_days": list(spec.horizons_days),
        "ahead_events": spec.ahead_events,
    }
    hashed = config_hash(spec, settings.sessions)
    scoring = spark.read.schema(TRAINING_SEQUENCES.schema).parquet(f"{staged}/{c.SPLIT}={SCORE}")
    sequences = out.write(
        conform(scoring, SEQUENCES), SEQUENCES, date, Lineage(inputs, hashed, coding), time_column=c.LAST_TIME
    )
    training = out.publish(TRAINING_SEQUENCES, date, packed, Lineage(inputs, hashed, counters), time_column=c.LAST_TIME)
    out.fs.rm(staged, recursive=True)
    return sequences, training


def _check_splits(splits: dict[str, SplitSummary], settings: Settings, date: date, cutoffs: Cutoffs) -> None:
    """No split empty; under global_time every input lies before its cutoff and every label at or after it."""
    split_spec = settings.sequences.split
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
    return run_job(_work, parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The flags of the stage."""
    flags = stage_parser("sequences")
    flags.add_argument(
        "--scoring-only",
        action="store_true",
        help="sequences_v1 alone, of the users with new events; nights without training need no more",
    )
    return flags


def _work(arguments: argparse.Namespace) -> None:
    settings, store = load_settings(arguments.conf, arguments.set), Store(arguments.root)
    spark = spark_session("sequences")
    if arguments.scoring_only:
        manifest = histories.build_scoring_sequences(spark, settings, arguments.root, arguments.date)
        say(histories.summary(manifest))
        show(arguments, [store.facts(manifest)])
        return
    manifests = build_sequences(spark, settings, arguments.root, arguments.date)
    say(summary(*manifests))
    show(arguments, [store.facts(manifest) for manifest in manifests])


def summary(sequences: Manifest, training: Manifest) -> str:
    """One line for people."""
    splits = ", ".join(f"{name} {found['rows']:,}" for name, found in training.counters["splits"].items())
    return f"{sequences.rows:,} users; windows: {splits}; {training.row_groups} row groups"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
