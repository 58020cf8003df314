"""Judge a bundle on held-out rows beside its baselines, and on simulated data beside the truth."""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import date
from typing import Any

from features import columns as c
from features.contracts import TRAINING_SEQUENCES
from jobs.cli import run_job, say, stage_parser
from jobs.evaluation_inputs import micros, read_split, rows_of, truths_of, windows_of
from jobs.evaluation_table import MODEL, EvaluationResult, format_table, headline
from jobs.future_inputs import future_rows, model_futures, period_end_us, true_futures
from jobs.future_table import future_headline
from jobs.settings import Settings, config_hash, load_settings
from jobs.store import MANIFEST, Manifest, Store, code_version
from model.baselines import TrainEvents, VocabularySizes, Windows, events_of, fit_baselines
from model.errors import ModelError
from model.evaluation import (
    TARGETS,
    Evaluation,
    EvaluationRows,
    EvaluationSpec,
    MetricRow,
    Ranker,
    ScoreBlock,
    SplitProtocol,
    check_no_leak,
    evaluate_rankings,
    scores_of,
)
from model.future_baselines import fit_future_baselines
from model.future_evaluation import FutureSource, evaluate_futures
from model.spec import HEADS

_TABLES = {c.TEST: "evaluation", c.VALID: "evaluation_valid"}
_WINDOW_COLUMNS = (
    c.USER_ID,
    c.WINDOW,
    c.LENGTH,
    c.ITEM,
    c.CATEGORY,
    c.ACTION_CODE,
    c.GAP,
    c.AGE,
    c.NEXT_GAP,
    c.LAST_TIME,
)
_LABEL_COLUMNS = (c.NEXT_ITEM, c.NEXT_CATEGORY, c.NEXT_TIME)
_DAY_US = c.DAY_S * c.MICROS


def evaluate(settings: Settings, root: str, date: date, split: str = c.TEST) -> EvaluationResult:
    """Judge the bundle of a day on one split of its training_sequences_v1; writes `evaluation/dt=D`.

    The valid split goes to `evaluation_valid/dt=D`, so that neither replaces the other.

    Raises:
        ContractError: the sequences are missing or torn.
        ModelError: the bundle does not fit them, or a row leaks its label.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow loads: errors, not build notes
    from model.predict import Predictor

    spec, store = settings.evaluation, Store(root)
    manifest = store.check(TRAINING_SEQUENCES, date, "jobs/sequences.py")
    predictor = Predictor.load(store.path("bundle", date))
    _check_trained_on(predictor.bundle, manifest, store.path("bundle", date))
    vocabulary = predictor.bundle.vocabulary
    n_ids = (len(vocabulary[c.KIND_ITEM]), len(vocabulary[c.KIND_CATEGORY]))

    say(f"evaluate: reading split {split} and the training windows of {date}")
    held_out, n_users_in_split = read_split(store, manifest, split, TRAINING_SEQUENCES.schema.names, spec.max_users)
    train, n_train_in_split = read_split(
        store, manifest, c.TRAIN, (*_WINDOW_COLUMNS, *_LABEL_COLUMNS), spec.max_train_users
    )
    rows, windows = rows_of(held_out), windows_of(train)
    times = _check_times(manifest.counters, split, rows, windows, train[c.USER_ID].to_pylist())
    protocol = SplitProtocol(
        date=str(date),
        split=split,
        protocol=manifest.counters["protocol"],
        **times,
        n_users=len(rows.user_id),
        n_users_in_split=n_users_in_split,
        n_train_users=int(windows.user.max()) + 1,
        n_train_users_in_split=n_train_in_split,
    )
    events = events_of(windows, manifest.counters["gap_edges_s"], manifest.counters["new_session_gap"])
    rankers: dict[str, Ranker] = fit_baselines(
        events,
        VocabularySizes(*n_ids),
        recent_days=spec.recent_days,
        markov_prior=spec.markov_prior,
        knn_neighbours=spec.knn_neighbours,
        knn_sample=spec.knn_sample,
        knn_last_items=spec.knn_last_items,
        knn_idf=spec.knn_idf,
    )
    rankers[MODEL] = predictor
    truths, notes = truths_of(store, rows, protocol, vocabulary)
    sources: dict[str, ScoreBlock] = {name: scores_of(ranker, rows) for name, ranker in rankers.items()} | truths
    say(f"evaluate: ranking {n_ids[0] - 2:,} items for {protocol.n_users:,} users, {len(sources)} rows of the table")
    evaluation = evaluate_rankings(rows, protocol, sources, n_ids, spec, model=MODEL)
    future, more = _evaluate_future(store, manifest, predictor, rows, protocol, windows, events, rankers, spec)
    notes += more
    inputs = {f"{TRAINING_SEQUENCES.name}/{date}": manifest.hash, "bundle": predictor.model_version}
    path = store.path(_TABLES[split], date)
    result = EvaluationResult(evaluation, protocol, spec.ks, predictor.model_version, notes, path, future)
    _write(store, result, inputs, config_hash(spec))
    return result


def _evaluate_future(
    store: Store,
    manifest: Manifest,
    predictor: Any,
    rows: EvaluationRows,
    protocol: SplitProtocol,
    windows: Windows,
    events: TrainEvents,
    rankers: Mapping[str, Ranker],
    spec: EvaluationSpec,
) -> tuple[Evaluation, tuple[str, ...]]:
    """Judge what is said of the days ahead, where the split has days ahead and the bundle says something of them."""
    nothing = Evaluation((), ())
    if protocol.cutoff is None or protocol.embargo_days:
        return nothing, ("Days ahead are not judged: they need labels from one cutoff on, without embargo.",)
    has_heads = any(f"{head}/bias" in predictor.bundle.weights for head in HEADS)
    cutoff_us, counters = micros(protocol.cutoff), manifest.counters
    period_days = (period_end_us(counters, protocol) - cutoff_us) // _DAY_US
    horizons = tuple(int(days) for days in counters["horizons_days"] if days <= period_days)
    if not has_heads or not horizons:
        return nothing, ("Days ahead are not judged: no head for them, or no horizon within the label period.",)
    ahead, note = future_rows(store, rows, protocol, manifest)
    vocabulary = predictor.bundle.vocabulary[c.KIND_CATEGORY]
    sources: dict[str, FutureSource] = fit_future_baselines(
        windows,
        events,
        rankers,
        ahead,
        horizons,
        counters["gap_edges_s"],
        counters["new_session_gap"],
        micros(str(protocol.train_before)),
    )
    sources[MODEL] = model_futures(predictor, ahead, horizons)
    sources |= true_futures(store, ahead, protocol, vocabulary, horizons)
    say(f"evaluate: the next {horizons[-1]} days of {len(ahead.user_id):,} users, {len(sources)} sources")
    return evaluate_futures(ahead, protocol, sources, horizons, len(vocabulary), spec, MODEL), (note,)


def _check_trained_on(bundle: Any, manifest: Manifest, where: str) -> None:
    """Refuse a bundle of other sequences: other ids, or other cutoffs, with these labels among its training events."""
    bundle.check_sequences(manifest.counters)
    if bundle.data_hash != manifest.hash:
        raise ModelError(
            f"Model {bundle.model_version} in {where} was trained on {TRAINING_SEQUENCES.name} with manifest hash "
            f"{bundle.data_hash}, those of {manifest.dt} have {manifest.hash}: its training events may hold the labels "
            f"to be predicted. Train on these sequences first (jobs.train --date {manifest.dt})."
        )


def _check_times(
    counters: Mapping[str, Any], split: str, rows: EvaluationRows, windows: Windows, train_users: Sequence[str]
) -> dict[str, Any]:
    """Refuse leaking rows of both splits; returns the times that the protocol states."""
    train_before_us = cutoff_us = None
    embargo_us = 0
    if counters["protocol"] == c.GLOBAL_TIME:
        train_before_us = micros(counters["valid_cutoff"])
        cutoff_us = micros(counters[f"{split}_cutoff"])
        embargo_us = int(counters["embargo_days"]) * _DAY_US
    check_no_leak(rows.user_id, rows.last_time_us, rows.next_time_us, split, cutoff_us, embargo_us)
    check_no_leak(train_users, windows.last_time_us, windows.next_time_us, c.TRAIN, train_before_us)
    if cutoff_us is None:
        return {"train_before": None, "cutoff": None, "embargo_days": None}
    return {
        "train_before": counters["valid_cutoff"],
        "cutoff": counters[f"{split}_cutoff"],
        "embargo_days": int(counters["embargo_days"]),
    }


def _write(store: Store, result: EvaluationResult, inputs: Mapping[str, str], hashed: str) -> None:
    """Stage all files, swap them in, write the manifest last."""
    table, date = _TABLES[result.split.split], result.split.date
    staged = store.staging(table, date)
    store.fs.makedirs(staged, exist_ok=True)
    rows = (*result.evaluation.rows, *result.future.rows)
    lines = (json.dumps(_json_row(row, result.model_version)) for row in rows)
    ahead = dict.fromkeys(row.target for row in result.future.rows)
    summary = {
        "protocol": asdict(result.split),
        "model_version": result.model_version,
        "headlines": [headline(result, target) for target in TARGETS],
        "future_headlines": [future_headline(result.future, target, MODEL) for target in ahead],
        "comparisons": [pair._asdict() for pair in (*result.evaluation.comparisons, *result.future.comparisons)],
        "notes": list(result.notes),
    }
    contents = {
        "metrics.jsonl": "".join(f"{line}\n" for line in lines),
        "summary.json": json.dumps(summary, indent=1) + "\n",
    }
    for name, text in contents.items():
        with store.fs.open(f"{staged}/{name}", "w") as file:
            file.write(text)
    names = [f.name for f in fields(MetricRow)]
    manifest = Manifest(
        table=table,
        dt=date,
        schema_hash=hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16],
        rows=len(rows),
        row_groups=0,
        min_time=None,
        max_time=None,
        counters={"users": result.split.n_users},
        inputs=inputs,
        config_hash=hashed,
        code_version=code_version(),
        files=tuple({"path": name, "bytes": len(text.encode())} for name, text in contents.items()),
    )
    if store.fs.exists(f"{result.path}/{MANIFEST}"):
        store.fs.rm(f"{result.path}/{MANIFEST}")
    if store.fs.exists(result.path):
        store.fs.rm(result.path, recursive=True)
    store.fs.mv(staged, result.path, recursive=True)
    store.write_json(f"{result.path}/{MANIFEST}", asdict(manifest))


def _json_row(row: MetricRow, model_version: str) -> dict[str, Any]:
    return asdict(row) | {"model_version": model_version if row.model == MODEL else None}


def main(argv: Sequence[str]) -> int:
    """Command line of the stage."""
    parser = stage_parser("evaluate", "Judge a bundle on held-out events, beside simple baselines.")
    parser.add_argument("--split", choices=(c.TEST, c.VALID), default=c.TEST, help="rows to judge (default: test)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")

    def work(arguments: argparse.Namespace) -> None:
        settings = load_settings(arguments.conf, arguments.set)
        result = evaluate(settings, arguments.root, arguments.date, arguments.split)
        print(format_table(result, arguments.markdown))
        say(f"evaluate: wrote {result.path}")

    return run_job(work, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
