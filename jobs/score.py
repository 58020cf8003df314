"""Score every user of a day: sequences_v1 and a model bundle in, scores_v1 out, one row a user.

Driver and executors read the bundle by the same path: a local folder when Spark runs on one machine, a shared mount or
a URI that fsspec understands on a cluster. Each Python worker process loads it once.
"""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, Observation, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import SCORES, SEQUENCES, VOCABULARY, ContractError
from features.scoring import FROM_MODEL, FROM_POPULARITY, Names, Scorer, score_users
from features.trends import TRENDS
from jobs.cli import run_job, say, stage_parser
from jobs.encoded import check_vocabulary
from jobs.layers import earlier_layer, read_sequences
from jobs.settings import Settings, config_hash, load_settings
from jobs.spark import spark_session
from jobs.store import MANIFEST, Lineage, Manifest, Store
from model.bundle import Bundle, load_bundle, vocabulary_lists
from model.errors import ModelError

_MADE_BY = "jobs/sequences.py"


def score(spark: SparkSession, settings: Settings, root: str, date: date, bundle_path: str | None = None) -> Manifest:
    """Write scores_v1 of a day with the bundle of that day, or with the one at `bundle_path`.

    Raises:
        ContractError: sequences are missing or made with another vocabulary than the day's, or rows were lost;
            then nothing is published.
        ModelError: the bundle is damaged or was not made for these sequences; raised before any row is scored.
    """
    store = Store(root)
    path = bundle_path or store.path("bundle", date)
    sequences = store.check(SEQUENCES, date, _MADE_BY)
    model_version = _check_fit(store, path, sequences)

    rows = read_sequences(spark, store, date)
    n_users = sequences.rows if earlier_layer(sequences) is None else rows.count()
    as_of = datetime.combine(date + timedelta(days=1), time(), UTC)
    threads = int(spark.sparkContext.getConf().get("spark.task.cpus", "1") or "1")
    scored = score_users(
        rows,
        LoadBundle(path, model_version, threads),
        settings.scoring,
        as_of,
        model_version,
    )
    observed = Observation("scores")
    staged = store.staging(SCORES.name, date)
    try:
        scored.observe(observed, *_counts()).write.mode("error").parquet(staged)
    except (PySparkException, Py4JJavaError) as error:
        raise _raised_by_worker(error) from error
    counters: dict[str, Any] = {name: int(n or 0) for name, n in observed.get.items()}
    if counters["rows"] != n_users:
        raise ContractError(
            f"{SCORES.name} of {date} would have {counters['rows']:,} rows, but {SEQUENCES.name} has "
            f"{n_users:,} users. Nothing was published. This is a defect of the scorer, not of the data."
        )
    del counters["rows"]
    counters |= {"model_version": model_version, **settings.scoring.model_dump(include={"top_k_items", "seen_items"})}
    inputs = {f"{SEQUENCES.name}/{date}": sequences.hash, f"bundle/{model_version}": _file_hash(f"{path}/{MANIFEST}")}
    lineage = Lineage(inputs, config_hash(settings.scoring), counters)
    return store.publish(SCORES, date, staged, lineage, time_column=c.AS_OF)


@dataclass(frozen=True)
class LoadBundle:
    """Makes a Scorer of a bundle, on an executor. Equal ones share one model in a worker process."""

    path: str
    model_version: str
    threads: int

    def __call__(self) -> Scorer:
        """Load the model; a ModelError where the bundle is not the one that the run started with."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow loads: errors, not build notes
        from model.predict import Predictor  # TensorFlow: in the worker only

        predictor = Predictor.load(self.path, self.threads)
        if predictor.model_version != self.model_version:
            raise ModelError(
                f"The bundle {self.path} holds model {predictor.model_version}, the run started with "
                f"{self.model_version}. It was replaced meanwhile, or this machine sees another folder; run again."
            )
        return _BundleScorer(predictor)


class _BundleScorer:
    """A predictor with the names of its ids."""

    def __init__(self, predictor: Any) -> None:
        bundle: Bundle = predictor.bundle
        self.length = bundle.sizes.length
        self.items, self.categories = (
            Names(pa.array(bundle.vocabulary[kind], pa.string()), np.array(bundle.counts[kind], np.int64))
            for kind in (c.KIND_ITEM, c.KIND_CATEGORY)
        )
        self.top = predictor.top


def _check_fit(store: Store, path: str, sequences: Manifest) -> str:
    """The bundle's model_version; an error where these sequences were encoded in another way."""
    bundle = load_bundle(path)
    bundle.check_sequences(sequences.counters)
    manifest = check_vocabulary(store, sequences)
    if manifest.hash != bundle.vocabulary_hash:
        folder = store.path(VOCABULARY.name, manifest.dt)
        of_day, _ = vocabulary_lists(pa.concat_tables([_rows(store, f"{folder}/{f['path']}") for f in manifest.files]))
        for kind, tokens in bundle.vocabulary.items():
            _check_prefix(kind, tokens, of_day[kind], path, folder)
    return bundle.model_version


def _check_prefix(kind: str, ours: Sequence[str], theirs: Sequence[str], path: str, folder: str) -> None:
    """Ids never move, so the tokens of the bundle must be the first of the day's."""
    differ = (i for i, (our, their) in enumerate(zip(ours, theirs, strict=False)) if our != their)
    first = next(differ, None)
    if first is not None or len(ours) > len(theirs):
        what = "the day's has fewer" if first is None else f"id {first} is {ours[first]} there and {theirs[first]} here"
        raise ModelError(
            f"The bundle {path} was not trained for this vocabulary: of {len(ours)} {kind} ids there and {len(theirs)} "
            f"in {folder}, {what}. Take the bundle of this root, or train again (jobs/train.py)."
        )


def _rows(store: Store, path: str) -> pa.Table:
    with store.fs.open(path, "rb") as file:
        return pq.ParquetFile(file).read(columns=[c.KIND, c.TOKEN, c.ID, c.COUNT])


def _counts() -> list[Column]:
    """What the manifest says about the rows: how many, by provenance, and how many interests by trend."""
    by_provenance = [
        F.count(F.when(F.col(c.PROVENANCE) == name, 1)).alias(f"from_{name}") for name in (FROM_MODEL, FROM_POPULARITY)
    ]

    def interests(trend: str) -> Column:
        return F.sum(F.size(F.filter(c.INTERESTS, lambda interest: interest[c.TREND] == trend))).alias(trend)

    by_trend = [interests(trend) for trend in TRENDS]
    return [F.count(F.lit(1)).alias("rows"), *by_provenance, *by_trend]


def _file_hash(path: str) -> str:
    with fsspec.open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()[:16]


def _raised_by_worker(error: Exception) -> Exception:
    """The error that a Python worker raised, where it is one of ours; else Spark's own."""
    ours = {kind.__name__: kind for kind in (ContractError, ModelError)}
    found = re.search(rf"^\S*({'|'.join(ours)}): (.+)$", str(error), re.MULTILINE)
    return ours[found.group(1)](found.group(2)) if found else error


def summary(manifest: Manifest) -> str:
    """One line for people."""
    trends = ", ".join(f"{manifest.counters[trend]:,} {trend}" for trend in TRENDS)
    return (
        f"{manifest.rows:,} users, {manifest.counters[f'from_{FROM_POPULARITY}']:,} by popularity; interests: {trends}"
    )


def main(argv: Sequence[str]) -> int:
    """Command line of the stage."""
    parser = stage_parser("score", "Score every user with a model bundle; writes scores_v1.")
    parser.add_argument("--bundle", metavar="DIR", help="the model bundle (default: ROOT/bundle/dt=DATE)")

    def work(arguments: argparse.Namespace) -> None:
        settings = load_settings(arguments.conf, arguments.set)
        spark = spark_session("score")
        say(summary(score(spark, settings, arguments.root, arguments.date, arguments.bundle)))

    return run_job(work, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
