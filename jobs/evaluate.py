"""Judge a bundle on held-out rows beside its baselines, and on simulated data beside the truth."""

import argparse
import hashlib
import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features import columns as c
from features.contracts import SIMULATED_TRUTH, TRAINING_SEQUENCES
from jobs.cli import run_job, say, stage_parser
from jobs.settings import Settings, config_hash, load_settings
from jobs.store import MANIFEST, Manifest, Store, code_version
from model.baselines import VocabularySizes, Windows, events_of, fit_baselines
from model.errors import ModelError
from model.evaluation import (
    ACCURACY,
    CATEGORY_TARGET,
    COVERAGE,
    ITEM_TARGET,
    MACRO_F1,
    REMOVE,
    TARGETS,
    Comparison,
    Evaluation,
    EvaluationRows,
    MetricRow,
    Ranker,
    ScoreBlock,
    SplitProtocol,
    check_no_leak,
    evaluate_rankings,
    scores_of,
    stored_scores,
)
from model.metrics import F1, HR, MRR, NDCG, PRECISION, RECALL, Floats, Ints, Longs, Ragged

MODEL, ORACLE, LATENT = "model", "oracle", "latent truth"
TRUTHS = (ORACLE, LATENT)
_TABLES = {c.TEST: "evaluation", c.VALID: "evaluation_valid"}
_WINDOW_COLUMNS = (c.USER_ID, c.WINDOW, c.LENGTH, c.ITEM, c.CATEGORY, c.GAP, c.NEXT_GAP, c.LAST_TIME)
_LABEL_COLUMNS = (c.NEXT_ITEM, c.NEXT_CATEGORY, c.NEXT_TIME)
_DAY_US = c.DAY_S * c.MICROS
_TEXT_WIDTH = 110


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluation as written: its rows, how they were made, and what a reader must know beside them."""

    evaluation: Evaluation
    split: SplitProtocol
    ks: tuple[int, ...]
    model_version: str
    notes: tuple[str, ...]
    path: str


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
    held_out, n_users_in_split = _read_split(store, manifest, split, TRAINING_SEQUENCES.schema.names, spec.max_users)
    train, n_train_in_split = _read_split(
        store, manifest, c.TRAIN, (*_WINDOW_COLUMNS, *_LABEL_COLUMNS), spec.max_train_users
    )
    rows, windows = _rows(held_out), _windows(train)
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
    rankers: dict[str, Ranker] = fit_baselines(
        events_of(windows, manifest.counters["gap_edges_s"], manifest.counters["new_session_gap"]),
        VocabularySizes(*n_ids),
        recent_days=spec.recent_days,
        markov_prior=spec.markov_prior,
        knn_neighbours=spec.knn_neighbours,
        knn_sample=spec.knn_sample,
        knn_last_items=spec.knn_last_items,
        knn_idf=spec.knn_idf,
    )
    rankers[MODEL] = predictor
    truths, notes = _truths(store, rows, protocol, vocabulary)
    sources: dict[str, ScoreBlock] = {name: scores_of(ranker, rows) for name, ranker in rankers.items()} | truths
    say(f"evaluate: ranking {n_ids[0] - 2:,} items for {protocol.n_users:,} users, {len(sources)} rows of the table")
    evaluation = evaluate_rankings(rows, protocol, sources, n_ids, spec, model=MODEL)
    inputs = {f"{TRAINING_SEQUENCES.name}/{date}": manifest.hash, "bundle": predictor.model_version}
    path = store.path(_TABLES[split], date)
    result = EvaluationResult(evaluation, protocol, spec.ks, predictor.model_version, notes, path)
    _write(store, result, inputs, config_hash(spec))
    return result


def format_table(result: EvaluationResult, markdown: bool = False) -> str:
    """The table for people: the protocol above it, one row a model, the best honest row marked."""
    parts = [_wrapped(_protocol_text(result), markdown)]
    for target in TARGETS:
        rows = [row for row in result.evaluation.rows if row.target == target]
        title = f"Next {target}, {rows[0].candidates:,} candidates"
        if rows[0].n_label_unknown or rows[0].n_label_removed:
            title += f" (misses by rule: {rows[0].n_label_unknown} unknown labels, {rows[0].n_label_removed} seen ones)"
        parts.append(f"{title}\n\n{_render(_cells(rows, target, result.ks, markdown), markdown)}")
        parts.append(_headline_text(headline(result, target)))
    return "\n\n".join([*parts, *(_wrapped(note, markdown) for note in result.notes)])


def headline(result: EvaluationResult, target: str) -> dict[str, Any]:
    """The model against the best baseline by NDCG, with the paired interval, and against the oracle if there is one."""
    k = _main_k(result.ks)
    value = {r.model: r.value for r in result.evaluation.rows if (r.target, r.metric, r.k) == (target, NDCG, k)}
    best = max((name for name in value if name not in (MODEL, *TRUTHS)), key=lambda name: value[name])
    pair: Comparison = next(
        x for x in result.evaluation.comparisons if (x.target, x.metric, x.k, x.second) == (target, NDCG, k, best)
    )
    said = {
        "target": target,
        "metric": NDCG,
        "k": k,
        "model": value[MODEL],
        "best_baseline": best,
        "baseline": value[best],
        "difference": pair.difference,
        "low": pair.low,
        "high": pair.high,
    }
    if ORACLE in value:
        gap = value[ORACLE] - value[best]
        said["oracle"] = value[ORACLE]
        said["share_of_gap"] = round((value[MODEL] - value[best]) / gap, 4) if gap > 0 else None
    return said


def _check_trained_on(bundle: Any, manifest: Manifest, where: str) -> None:
    """Refuse a bundle of other sequences: other ids, or other cutoffs, with these labels among its training events."""
    bundle.check_sequences(manifest.counters)
    if bundle.data_hash != manifest.hash:
        raise ModelError(
            f"Model {bundle.model_version} in {where} was trained on {TRAINING_SEQUENCES.name} with manifest hash "
            f"{bundle.data_hash}, those of {manifest.dt} have {manifest.hash}: its training events may hold the labels "
            f"to be predicted. Train on these sequences first (jobs.train --date {manifest.dt})."
        )


def _read_files(store: Store, paths: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
    tables = []
    for path in paths:
        with store.fs.open(path, "rb") as file:
            tables.append(pq.ParquetFile(file).read(columns=None if columns is None else list(columns)))
    return pa.concat_tables(tables)


def _read_split(
    store: Store, manifest: Manifest, split: str, columns: Sequence[str], max_users: int
) -> tuple[pa.Table, int]:
    """Rows of a split, ordered by user and window, and its number of users; at most max_users, chosen by hash."""
    folder = store.path(TRAINING_SEQUENCES.name, manifest.dt)
    paths = [f"{folder}/{file['path']}" for file in manifest.files if file["path"].startswith(f"{c.SPLIT}={split}/")]
    if not paths:
        raise ModelError(
            f"{folder}: split {split} has no rows, so there is nothing to judge. Write the sequences of {manifest.dt} "
            "again with cutoffs that have events on both sides (sequences.split in the configuration)."
        )
    wanted = [name for name in columns if name != c.SPLIT]
    users = _read_files(store, paths, [c.USER_ID])[c.USER_ID].unique()
    kept = users
    if len(users) > max_users:
        hashes = [hashlib.blake2b(user.encode(), digest_size=8).digest() for user in users.to_pylist()]
        chosen = sorted(range(len(users)), key=lambda position: hashes[position])[:max_users]
        kept = users.take(pa.array(chosen))
    tables = []
    for path in paths:
        table = _read_files(store, [path], wanted)
        tables.append(table if kept is users else table.filter(pc.is_in(table[c.USER_ID], value_set=kept)))
    order = [(c.USER_ID, "ascending"), (c.WINDOW, "ascending")]
    return pa.concat_tables(tables).sort_by(order).combine_chunks(), len(users)


def _rows(table: pa.Table) -> EvaluationRows:
    return EvaluationRows(
        user_id=tuple(table[c.USER_ID].to_pylist()),
        channels=_channels(table, c.CHANNELS),
        length=_ints(table, c.LENGTH),
        next_gap=_ints(table, c.NEXT_GAP),
        last_time_us=_times(table, c.LAST_TIME),
        next_time_us=_times(table, c.NEXT_TIME),
        next_item=_ints(table, c.NEXT_ITEM),
        next_category=_ints(table, c.NEXT_CATEGORY),
        label_items=_ragged(table, c.LABEL_ITEMS),
        label_categories=_ragged(table, c.LABEL_CATEGORIES),
        seen_items=_ragged(table, c.SEEN_ITEMS),
    )


def _windows(table: pa.Table) -> Windows:
    users = _one_chunk(table[c.USER_ID]).dictionary_encode()
    return Windows(
        user=users.indices.to_numpy().astype(np.int64),
        window=_ints(table, c.WINDOW),
        channels=_channels(table, (c.ITEM, c.CATEGORY, c.GAP)),
        length=_ints(table, c.LENGTH),
        next_gap=_ints(table, c.NEXT_GAP),
        next_item=_ints(table, c.NEXT_ITEM),
        next_category=_ints(table, c.NEXT_CATEGORY),
        last_time_us=_times(table, c.LAST_TIME),
        next_time_us=_times(table, c.NEXT_TIME),
    )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _channels(table: pa.Table, names: Sequence[str]) -> dict[str, Ints]:
    return {name: _one_chunk(table[name]).flatten().to_numpy().reshape(table.num_rows, -1) for name in names}


def _ints(table: pa.Table, name: str) -> Ints:
    return np.asarray(table[name].to_numpy(), dtype=np.int32)


def _times(table: pa.Table, name: str) -> Longs:
    return np.asarray(table[name].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy())


def _ragged(table: pa.Table, name: str) -> Ragged:
    column = _one_chunk(table[name])
    offsets = column.offsets.to_numpy().astype(np.int64)
    return Ragged(column.flatten().to_numpy(), offsets - offsets[0])


def _check_times(
    counters: Mapping[str, Any], split: str, rows: EvaluationRows, windows: Windows, train_users: Sequence[str]
) -> dict[str, Any]:
    """Refuse leaking rows of both splits; returns the times that the protocol states."""
    train_before_us = cutoff_us = None
    embargo_us = 0
    if counters["protocol"] == c.GLOBAL_TIME:
        train_before_us = _us(counters["valid_cutoff"])
        cutoff_us = _us(counters[f"{split}_cutoff"])
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


def _us(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp()) * c.MICROS


def _truths(
    store: Store, rows: EvaluationRows, protocol: SplitProtocol, vocabulary: Mapping[str, Sequence[str]]
) -> tuple[dict[str, ScoreBlock], tuple[str, ...]]:
    """The simulation's truth for the rows, where it was written for exactly this cutoff; and what to say about it."""
    days = store.dates(SIMULATED_TRUTH.name)
    if not days:
        return {}, ()
    if protocol.cutoff is None or protocol.embargo_days:
        return {}, ("No oracle row: the simulated truth is for the first event after a cutoff, without embargo.",)
    cutoff_us = _us(protocol.cutoff)
    eve = str(datetime.fromisoformat(protocol.cutoff).date() - timedelta(days=1))
    for day in sorted({protocol.date, eve} & set(days), reverse=True):
        manifest = store.check(SIMULATED_TRUTH, day, "jobs/simulate.py")
        folder = store.path(SIMULATED_TRUTH.name, day)
        tables = []
        for file in manifest.files:
            table = _read_files(store, [f"{folder}/{file['path']}"])
            tables.append(table.filter(pc.is_in(table[c.USER_ID], value_set=pa.array(rows.user_id))))
        truth = pa.concat_tables(tables).combine_chunks()
        if truth.num_rows and (_times(truth, c.AS_OF) == cutoff_us).all():
            return _truth_sources(truth, rows, vocabulary)
    return {}, (f"No oracle row: no partition of {SIMULATED_TRUTH.name} is as of the cutoff {protocol.cutoff}.",)


def _truth_sources(
    truth: pa.Table, rows: EvaluationRows, vocabulary: Mapping[str, Sequence[str]]
) -> tuple[dict[str, ScoreBlock], tuple[str, ...]]:
    position = pc.index_in(pa.array(rows.user_id), value_set=_one_chunk(truth[c.USER_ID]))
    aligned = truth.take(position)  # a user without a truth: null lists, which score nothing
    n_ids = (len(vocabulary[c.KIND_ITEM]), len(vocabulary[c.KIND_CATEGORY]))

    def stored(column: str, token: str, kind: str) -> tuple[Ragged, Floats]:
        lists = _one_chunk(aligned[column])
        entries = lists.flatten()
        ids = pc.fill_null(
            pc.index_in(entries.field(token), value_set=pa.array(vocabulary[kind], pa.string())), c.OOV
        ).to_numpy()
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Ragged(ids.astype(np.int32), offsets), entries.field(c.PROBABILITY).to_numpy()

    sources = {
        name: stored_scores(stored(items, c.ITEM_ID, c.KIND_ITEM), stored(cats, c.CATEGORY_ID, c.KIND_CATEGORY), n_ids)
        for name, items, cats in (
            (ORACLE, c.ORACLE_ITEMS, c.ORACLE_CATEGORIES),
            (LATENT, c.LATENT_ITEMS, c.LATENT_CATEGORIES),
        )
    }
    note = "oracle: the best prediction from the observed history; latent truth: from the hidden state itself."
    if position.null_count:
        note += f" {position.null_count} users have no truth and count as misses in both."
    return sources, (note,)


def _write(store: Store, result: EvaluationResult, inputs: Mapping[str, str], hashed: str) -> None:
    """Stage all files, swap them in, write the manifest last."""
    table, date = _TABLES[result.split.split], result.split.date
    staged = store.staging(table, date)
    store.fs.makedirs(staged, exist_ok=True)
    lines = (json.dumps(_json_row(row, result.model_version)) for row in result.evaluation.rows)
    summary = {
        "protocol": asdict(result.split),
        "model_version": result.model_version,
        "headlines": [headline(result, target) for target in TARGETS],
        "comparisons": [pair._asdict() for pair in result.evaluation.comparisons],
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
        rows=len(result.evaluation.rows),
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


def _main_k(ks: Sequence[int]) -> int:
    """The cut-off that the table shows: 10, or the greatest one there is."""
    return 10 if 10 in ks else max(ks)


def _protocol_text(result: EvaluationResult) -> str:
    split = result.split
    seen = "removed from the candidates" if _seen(result) == REMOVE else "kept among the candidates"
    if split.protocol == c.GLOBAL_TIME:
        how = (
            f"global time: trained before {split.train_before}, inputs before {split.cutoff}, "
            f"embargo {split.embargo_days} days"
        )
    else:
        how = "leave one out: each user's last event but one is for validation, the last for the test"
    return (
        f"Split {split.split} of {split.date}, {how}. n = {split.n_users:,} of {split.n_users_in_split:,} users; "
        f"baselines fitted on {split.n_train_users:,} of {split.n_train_users_in_split:,} training users. "
        f"Every item and category is ranked, seen items {seen}, ties and unknown labels count against. "
        "HR, NDCG, MRR and accuracy: the next event; Recall, Precision and F1: all distinct ones of the label period. "
        f"In brackets: 95 % bootstrap interval over users. Model {result.model_version}."
    )


def _seen(result: EvaluationResult) -> str:
    return next(row.seen_items for row in result.evaluation.rows if row.target == ITEM_TARGET)


def _cells(rows: list[MetricRow], target: str, ks: Sequence[int], markdown: bool) -> list[list[str]]:
    """Header and one line for each model; the best NDCG among those that see no truth is marked."""
    k, deep = _main_k(ks), max(ks)
    columns = [(NDCG, k), (HR, k), (RECALL, k), (PRECISION, k), (F1, k), (MRR, deep)]
    columns += [(ACCURACY, 1), (MACRO_F1, 1)] if target == CATEGORY_TARGET else [(HR, 1), (COVERAGE, k)]
    value = {(row.model, row.metric, row.k): row for row in rows}
    shown = [(metric, at) for metric, at in columns if (rows[0].model, metric, at) in value]
    models = list(dict.fromkeys(row.model for row in rows))
    best = max((name for name in models if name not in TRUTHS), key=lambda name: value[name, NDCG, k].value)
    header = [_title(metric, at) for metric, at in shown]
    lines = [["", *header]]
    for name in models:
        row = value[name, *shown[0]]
        cells = [f"{row.value:.4f} [{row.low:.4f}, {row.high:.4f}]"]
        cells += [f"{value[name, metric, at].value:.4f}" for metric, at in shown[1:]]
        label = name if name != best else f"**{name}**" if markdown else f"{name} *"
        lines.append([label, *cells])
    return lines


def _title(metric: str, k: int) -> str:
    names = {ACCURACY: "accuracy", MACRO_F1: "macro-F1", COVERAGE: f"coverage@{k}"}
    short = {RECALL: "Recall", PRECISION: "Precision"}
    return names.get(metric, f"{short.get(metric, metric.upper())}@{k}")


def _render(lines: list[list[str]], markdown: bool) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in padded)
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def _wrapped(text: str, markdown: bool) -> str:
    return text if markdown else textwrap.fill(text, width=_TEXT_WIDTH)


def _headline_text(said: Mapping[str, Any]) -> str:
    text = (
        f"{said['metric'].upper()}@{said['k']}, model − {said['best_baseline']}: {said['difference']:+.4f} "
        f"[{said['low']:+.4f}, {said['high']:+.4f}], paired over users"
    )
    if said.get("share_of_gap") is not None:
        text += f"; share of the way from there to the oracle: {said['share_of_gap']:.0%}"
    return f"{text}."


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
