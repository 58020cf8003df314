"""Score every user of a day: sequences_v1 and a model bundle in, scores_v1 out, one row a user.

Beside the scores lie the users' states. A later day goes on from them where model, vocabulary, coding, configuration
and code are the same, and then costs what the days since brought: docs/adr/0011.

Driver and executors read the bundle by the same path: a local folder when Spark runs on one machine, a shared mount or
a URI that fsspec understands on a cluster. Each Python worker process loads it once.
"""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
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
from features.contracts import (
    DRIFT,
    SCORES,
    SCORES_EXPLODED,
    SEQUENCES,
    USER_STATES,
    VOCABULARY,
    ContractError,
)
from features.outlook_columns import OutlookModel
from features.partitions import power_of_two
from features.rungs import BY_MODEL, RUNGS, SHORT_HISTORY
from features.score_feeds import outlook_means
from features.scoring import Names, Scorer
from features.states import ADVANCED, ASKED_AGAIN, CARRIED, GONE, NEWCOMERS, OUTCOMES, REPLAYED, Run
from features.trends import TRENDS
from jobs.cli import run_job, say, show, stage_parser
from jobs.encoded import check_vocabulary
from jobs.fallbacks import below_the_model, fallbacks_of
from jobs.feeds import feed_tables, publish_feeds, remove_feeds
from jobs.layers import layers_of, read_sequences, rows_since
from jobs.score_files import ScorePlan, write_scores
from jobs.settings import Settings, config_hash, load_settings
from jobs.spark import lost_worker, spark_session
from jobs.store import MANIFEST, Lineage, Manifest, Store
from jobs.user_states import Carry, as_of, basis_of, latest_carry
from model.bundle import Bundle, load_bundle, vocabulary_lists
from model.errors import ModelError
from model.spec import HORIZON, TOUCHED, WHEN

_MADE_BY = "jobs/sequences.py"
_MEANS = {
    c.BACK: "back within {mean_back_hours:.0f} h {mean_back:.0%}; ",
    c.CONTACTS_PER_WEEK: "{mean_contacts_per_week:.2f} contacts a week; ",
    c.DRIFT: "mean drift {mean_drift:.2f}; ",
}
_COUNTED = (*(f"from_{name}" for name in RUNGS), *TRENDS, *OUTCOMES)


def score(
    spark: SparkSession,
    settings: Settings,
    root: str,
    date: date,
    bundle_path: str | None = None,
    full: bool = False,
) -> Manifest:
    """Write scores_v1 and user_states_v1 of a day with the bundle of that day, or with the one at `bundle_path`.

    Beside them the feeds that the configuration asks for.

    full: score everyone anew, whatever earlier days left.

    Raises:
        ContractError: sequences are missing or made with another vocabulary than the day's, what an earlier day left
            is torn, or rows were lost; then nothing is published.
        ModelError: the bundle is damaged or was not made for these sequences; raised before any row is scored.
    """
    store = Store(root)
    path = bundle_path or store.path("bundle", date)
    sequences = store.check(SEQUENCES, date, _MADE_BY)
    bundle = _check_fit(store, path, sequences)
    model_version, sizes = bundle.model_version, (bundle.sizes.items, bundle.sizes.categories)
    basis = basis_of(sequences, model_version)
    carry = None if full else latest_carry(store, date, basis, settings)
    is_layer = carry is not None and carry.bears_layer(settings.scoring)

    layers = layers_of(store, date)
    session_gap_s = _session_gap_s(sequences)
    if carry is not None and carry.lies_below(layers):
        always = below_the_model(spark, store, carry)
        rows, is_everyone = rows_since(spark, store, layers, carry.day, session_gap_s, always), False
        scored_layers = [layer for layer in layers if layer.dt > carry.day]
    else:
        rows, is_everyone, always, scored_layers = read_sequences(spark, store, date), True, None, layers
    unknown = fallbacks_of(spark, store, date, scored_layers, always, sizes, settings.scoring)
    run = Run(as_of(date), model_version, session_gap_s, unknown.popular if unknown else None)
    feeds = feed_tables(settings.feeds)
    folders = {contract: store.staging(contract.name, date) for contract in (SCORES, USER_STATES, *feeds)}
    for folder in folders.values():
        store.fs.makedirs(folder, exist_ok=True)
    plan = ScorePlan(
        LoadBundle(
            path,
            model_version,
            int(spark.sparkContext.getConf().get("spark.task.cpus", "1") or "1"),
            settings.scoring.probes,
        ),
        settings.scoring,
        run,
        int(carry.states[0].counters["buckets"]) if carry else _n_buckets(spark, layers, settings),
        folders[SCORES],
        folders[USER_STATES],
        carry.earlier(store) if carry else None,
        is_everyone,
        not is_layer,
        folders.get(SCORES_EXPLODED),
        folders.get(DRIFT),
        settings.feeds.drift_users,
    )
    came = Observation("sequences")
    try:
        written, counts = write_scores(rows.observe(came, *_came()), plan, unknown.users if unknown else None)
    except (PySparkException, Py4JJavaError) as error:
        raise _raised_by_worker(error) from error
    there = came.get
    if there["rows"] != counts["read"]:  # tasks that ran again after a lost executor are observed again: count anew
        there = rows.agg(*_came()).collect()[0].asDict()
    _check_rows(counts, there, carry, is_everyone, date)

    for contract, folder in folders.items():
        store.keep_only(folder, written)
        store.write_empty(contract, folder)
    inputs = {f"{SEQUENCES.name}/{date}": sequences.hash, f"bundle/{model_version}": _file_hash(f"{path}/{MANIFEST}")}
    if carry is not None:
        inputs |= {f"{manifest.table}/{manifest.dt}": manifest.hash for manifest in (carry.scores, carry.states[0])}
    hashed = config_hash(settings.scoring)
    counters: dict[str, Any] = {name: counts[name] for name in _COUNTED} | outlook_means(counts)
    told = {"top_k_items", "top_k_interests", "seen_items"}
    counters |= {"model_version": model_version, **settings.scoring.model_dump(include=told)}
    remove_feeds(store, date)
    scores = store.publish(SCORES, date, folders[SCORES], Lineage(inputs, hashed, counters), c.AS_OF, written)
    publish_feeds(spark, store, date, {table: folders[table] for table in feeds}, scores, settings.feeds)
    inputs[f"{SCORES.name}/{date}"] = scores.hash
    if carry is not None and not is_layer:  # whole: who reads it needs no other; what it was made of, the scores know
        del inputs[f"{USER_STATES.name}/{carry.day}"]
    lineage = Lineage(inputs, hashed, {**basis, "buckets": plan.n_buckets})
    store.publish(USER_STATES, date, folders[USER_STATES], lineage, c.LAST_TIME, written)
    return scores


def _session_gap_s(sequences: Manifest) -> int:
    """The silence that ends a session, as the codes of these sequences have it."""
    edges_s, new_session_gap = sequences.counters["gap_edges_s"], sequences.counters["new_session_gap"]
    return int(edges_s[new_session_gap - c.FIRST_GAP - 1])


def _n_buckets(spark: SparkSession, layers: Sequence[Manifest], settings: Settings) -> int:
    """A power of two, so that each bucket has about `bucket_users` users or fewer, and each core a bucket."""
    n_users = layers[-1].rows  # the layer that holds everyone; newcomers since are few
    wanted = -(-n_users // settings.scoring.bucket_users)
    return power_of_two(max(spark.sparkContext.defaultParallelism, wanted))


def _came() -> list[Column]:
    """What came from the sequences: rows, and users who are still there."""
    return [F.count(F.lit(1)).alias("rows"), F.count(F.when(F.col(c.LENGTH) > 0, 1)).alias("users")]


def _check_rows(
    counts: Mapping[str, int], came: Mapping[str, int], carry: Carry | None, is_everyone: bool, date: date
) -> None:
    """Every row that came was read, and everyone is there who came or was there before and has not gone."""
    n_came, expected = int(came["rows"] or 0), int(came["users"] or 0)
    if carry is not None and not is_everyone:
        expected = carry.scores.rows - counts[GONE] + counts[NEWCOMERS]
    if counts["read"] != n_came or counts["rows"] != expected:
        raise ContractError(
            f"{SCORES.name} of {date} would have {counts['rows']:,} rows, of {counts['read']:,} rows of "
            f"{SEQUENCES.name}, but there are {expected:,} users, and {n_came:,} such rows. Nothing was published. "
            "This is a defect of the scorer, not of the data."
        )


@dataclass(frozen=True)
class LoadBundle:
    """Makes a Scorer of a bundle, on an executor. Equal ones share one model in a worker process.

    item_probes: see model.predict.Predictor.
    """

    path: str
    model_version: str
    threads: int
    item_probes: int | None = None

    def __call__(self) -> Scorer:
        """Load the model; a ModelError where it can't be, or the bundle is not the one that the run started with."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow loads: errors, not build notes
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # its matrix products are faster on CPUs
        from model.predict import Predictor  # TensorFlow: in the worker only

        predictor = Predictor.load(self.path, self.threads, self.item_probes)
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
        self.state_floats: int = predictor.state_floats
        self.is_recurrent: bool = predictor.is_recurrent
        self.new_session_gap = bundle.sizes.new_session_gap
        self.items, self.categories = (
            Names(pa.array(bundle.vocabulary[kind], pa.string()), np.array(bundle.counts[kind], np.int64))
            for kind in (c.KIND_ITEM, c.KIND_CATEGORY)
        )
        self.advance, self.top_of, self.log_p_of = predictor.advance, predictor.top_of, predictor.log_p_of
        self.outlook: OutlookModel | None = _BundleOutlook(predictor) if predictor.heads else None


class _BundleOutlook:
    """A predictor's heads for the time ahead."""

    def __init__(self, predictor: Any) -> None:
        heads, bundle = predictor.heads, predictor.bundle
        self.horizons_days: tuple[int, ...] = tuple(bundle.sizes.horizons_days) if {HORIZON, TOUCHED} & {*heads} else ()
        self.back_hours: tuple[int, ...] = tuple(bundle.spec.back_hours) if WHEN in heads else ()
        self.silence_edges_s = predictor.back_bins.astype(np.int64)
        self.answers, self.back = predictor.future_of, predictor.back_of


def _check_fit(store: Store, path: str, sequences: Manifest) -> Bundle:
    """The bundle; an error where these sequences were encoded in another way."""
    bundle = load_bundle(path)
    bundle.check_sequences(sequences.counters)
    manifest = check_vocabulary(store, sequences)
    if manifest.hash != bundle.vocabulary_hash:
        folder = store.path(VOCABULARY.name, manifest.dt)
        of_day, _ = vocabulary_lists(pa.concat_tables([_rows(store, f"{folder}/{f['path']}") for f in manifest.files]))
        for kind, tokens in bundle.vocabulary.items():
            _check_prefix(kind, tokens, of_day[kind], path, folder)
    return bundle


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


def _file_hash(path: str) -> str:
    with fsspec.open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()[:16]


def _raised_by_worker(error: Exception) -> Exception:
    """The error that a Python worker raised, where it is one of ours; what its loss means; else Spark's own."""
    ours = {kind.__name__: kind for kind in (ContractError, ModelError)}
    found = re.search(rf"^\S*({'|'.join(ours)}): (.+)$", str(error), re.MULTILINE)
    if found:
        return ours[found.group(1)](found.group(2))
    if lost_worker(error):
        return RuntimeError(
            "A Python worker of Spark ended without a word while it scored, most often killed for memory. Nothing was "
            "published; what was published before stays. Run again, with more memory for each core, or with smaller "
            "buckets: lower scoring.bucket_users, and everyone is scored anew."
        )
    return error


def summary(manifest: Manifest) -> str:
    """One line for people."""
    counted = manifest.counters
    unknown = manifest.rows - sum(counted[f"from_{name}"] for name in BY_MODEL)
    trends = ", ".join(f"{counted[trend]:,} {trend}" for trend in TRENDS)
    ahead = "".join(text.format(**counted) for name, text in _MEANS.items() if f"mean_{name}" in counted)
    return (
        f"{manifest.rows:,} users, {counted[f'from_{SHORT_HISTORY}']:,} with a short history, "
        f"{unknown:,} unknown to the model; interests: {trends}; "
        f"{ahead}"
        f"{counted[CARRIED]:,} carried, {counted[ASKED_AGAIN] + counted[ADVANCED]:,} scored from their states, "
        f"{counted[REPLAYED]:,} from their sequences"
    )


def main(argv: Sequence[str]) -> int:
    """Command line of the stage."""
    return run_job(_work, parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The flags of the stage."""
    flags = stage_parser("score")
    flags.add_argument("--bundle", metavar="DIR", help="the model bundle (default: ROOT/bundle/dt=DATE)")
    flags.add_argument(
        "--full", action="store_true", help="score everyone anew, whatever scores and states of earlier days there are"
    )
    return flags


def _work(arguments: argparse.Namespace) -> None:
    settings = load_settings(arguments.conf, arguments.set)
    spark = spark_session("score")
    manifest = score(spark, settings, arguments.root, arguments.date, arguments.bundle, arguments.full)
    say(summary(manifest))
    show(arguments, Store(arguments.root).facts(manifest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
