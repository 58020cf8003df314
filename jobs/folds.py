"""Rolling-origin cross-validation: the cutoffs moved back fold by fold, each with sequences and a model of its own.

Every fold is a root of its own, `_folds/dt=D/fold=K`, in which the stages work as in any other. What a fold has
finished is not done again; a fold made from other inputs, settings or code is made anew.
"""

import json
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np
from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import OPEN_SESSIONS, TRAINING_SEQUENCES, VOCABULARY
from jobs.cli import say
from jobs.evaluate import TABLES, evaluate, evaluation_hash
from jobs.evaluation_details import main_k
from jobs.evaluation_files import read_metrics, write_evaluation
from jobs.evaluation_table import columns_shown, render, title
from jobs.history import session_chain
from jobs.sequences import build_sequences
from jobs.settings import Settings, UsageError, config_hash
from jobs.store import MANIFEST, Manifest, Store, code_version
from jobs.train import BUNDLE, launch
from model.evaluation import TARGETS

FOLDS = "_folds"  # `<root>/_folds/dt=D/fold=K`
_IDENTITY = "_FOLD.json"  # in a fold's root: the hash of all that it is made from
_FOLD_TABLES = {split: f"{table}_folds" for split, table in TABLES.items()}
_Key = tuple[str, str, str, int]  # target, model, metric, k


@dataclass(frozen=True)
class FoldRow:
    """One number over all folds. sd: standard deviation, n - 1 in the denominator; none of a single fold."""

    target: str
    model: str
    metric: str
    k: int
    mean: float
    sd: float | None
    low: float  # least value of a fold
    high: float  # greatest
    values: tuple[float, ...]  # fold 0 first, whose cutoffs are those of the day itself


@dataclass(frozen=True)
class FoldsResult:
    """A finished cross-validation; `cutoffs`: of each fold, the split's."""

    rows: tuple[FoldRow, ...]
    date: str
    split: str
    cutoffs: tuple[str, ...]
    users: tuple[int, ...]
    ks: tuple[int, ...]
    path: str


def cross_validate(
    settings: Settings,
    root: str,
    date: date,
    split: str,
    n_folds: int,
    spark: Callable[[], SparkSession],
    overlays: tuple[Sequence[str], Sequence[str]],
) -> FoldsResult:
    """Evaluate n_folds models; writes `evaluation_folds/dt=D`.

    Fold K's cutoffs lie K times test_days before those of the day. spark: makes a session, where one is needed.
    overlays: the --conf and --set that `settings` came from, for the processes that train.

    Raises:
        UsageError: the split has no common cutoffs, or fewer than two folds are asked for.
        ContractError, ModelError: as the stages raise them.
    """
    if settings.sequences.split.protocol != c.GLOBAL_TIME:
        raise UsageError(
            "--folds moves the cutoffs back in time, and sequences.split.protocol = "
            f"{settings.sequences.split.protocol} has none. Set it to {c.GLOBAL_TIME}."
        )
    if n_folds < 2:
        raise UsageError(f"--folds {n_folds}: a spread needs two folds or more; without --folds there is one.")
    store = Store(root)
    manifests = [
        _fold(settings, store, date, split, fold, spark, overlays, f"fold {fold + 1} of {n_folds}")
        for fold in range(n_folds)
    ]
    records = [read_metrics(Store(_fold_root(store, date, fold)), TABLES[split], str(date)) for fold in range(n_folds)]
    result = FoldsResult(
        rows=tuple(spread(records)),
        date=str(date),
        split=split,
        cutoffs=tuple(found[0]["cutoff"] for found in records),
        users=tuple(int(manifest.counters["users"]) for manifest in manifests),
        ks=settings.evaluation.ks,
        path=store.path(_FOLD_TABLES[split], date),
    )
    inputs = {f"fold={fold}": manifest.hash for fold, manifest in enumerate(manifests)}
    summary = {"split": split, "cutoffs": list(result.cutoffs), "users": list(result.users), "folds": n_folds}
    names = list(FoldRow.__dataclass_fields__)
    rows, hashed = [asdict(row) for row in result.rows], config_hash(settings.evaluation)
    write_evaluation(store, _FOLD_TABLES[split], str(date), rows, summary, names, {"folds": n_folds}, inputs, hashed)
    return result


def spread(folds: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[FoldRow]:
    """Mean and spread of every number that all folds have. folds: the records of metrics.jsonl, fold 0 first."""
    tables: list[dict[_Key, float]] = [
        {(r["target"], r["model"], r["metric"], r["k"]): r["value"] for r in records if "cohort" not in r}
        for records in folds
    ]
    for key in tables[0]:
        if all(key in table for table in tables):
            values = [table[key] for table in tables]
            sd = round(float(np.std(values, ddof=1)), 6) if len(values) > 1 else None
            yield FoldRow(*key, round(float(np.mean(values)), 6), sd, min(values), max(values), tuple(values))


def folds_text(result: FoldsResult, markdown: bool) -> str:
    """The table for people: mean ± standard deviation over folds, and the range of the first column."""
    ends = f"{result.cutoffs[-1]} to {result.cutoffs[0]}"
    parts = [
        f"{len(result.cutoffs)} folds of split {result.split} of {result.date}, cutoffs {ends}, users "
        f"{', '.join(f'{n:,}' for n in result.users)}. Mean ± standard deviation over folds; in brackets their range."
    ]
    for target in TARGETS:
        value = {(row.model, row.metric, row.k): row for row in result.rows if row.target == target}
        shown = [column for column in columns_shown(target, result.ks) if any(key[1:] == column for key in value)]
        lines = [["", *(title(metric, k) for metric, k in shown)]]
        for model in dict.fromkeys(key[0] for key in value):
            cells = [value[model, metric, k] for metric, k in shown]
            texts = [f"{cell.mean:.4f} ± {cell.sd or 0:.4f}" for cell in cells]
            lines.append([model, f"{texts[0]} [{cells[0].low:.4f}, {cells[0].high:.4f}]", *texts[1:]])
        parts.append(f"Next {target}, NDCG@{main_k(result.ks)} and others\n\n{render(lines, markdown)}")
    return "\n\n".join(parts)


def _fold(
    settings: Settings,
    store: Store,
    date: date,
    split: str,
    number: int,
    spark: Callable[[], SparkSession],
    overlays: tuple[Sequence[str], Sequence[str]],
    name: str,
) -> Manifest:
    """Do what is left to do of one fold; the manifest of its evaluation."""
    root, back_days = _fold_root(store, date, number), number * settings.sequences.split.test_days
    fold = Store(root)
    _take_up(fold, root, _identity(settings, store, date, back_days))
    if str(date) not in fold.dates(TRAINING_SEQUENCES.name):
        say(f"{name}: sequences, cutoffs {back_days} days back")
        _copy_vocabulary(store, fold, date)
        build_sequences(spark(), settings, store.root, date, root, back_days)
    sequences = fold.check(TRAINING_SEQUENCES, date, "jobs/sequences.py")
    if _bundle_of(fold, date) != sequences.hash:
        say(f"{name}: training")
        launch(1, root, date, *overlays)
    if not _is_evaluated(settings, fold, date, split, sequences):
        say(f"{name}: evaluation")
        evaluate(settings, root, date, split)
    return fold.manifest(TABLES[split], date, "jobs/evaluate.py")


def _fold_root(store: Store, date: date, number: int) -> str:
    return f"{store.root}/{FOLDS}/dt={date}/fold={number}"


def _identity(settings: Settings, store: Store, date: date, back_days: int) -> dict[str, Any]:
    """All that a fold is made from, but for the evaluation's own settings."""
    opened = store.manifest(OPEN_SESSIONS.name, date, "jobs/sessionize.py")
    made_from = [*session_chain(store, date), opened, store.check(VOCABULARY, date, "jobs/vocabulary.py")]
    return {
        "inputs": {f"{manifest.table}/{manifest.dt}": manifest.hash for manifest in made_from},
        "settings": config_hash(settings.sessions, settings.sequences, settings.network, settings.training),
        "code": code_version(),
        "back_days": back_days,
    }


def _take_up(fold: Store, root: str, identity: Mapping[str, Any]) -> None:
    """Keep what the fold's root holds if it was made from the same; else empty it."""
    path = f"{root}/{_IDENTITY}"
    if fold.fs.exists(path):
        with fold.fs.open(path, "r") as file:
            if json.load(file) == identity:
                return
    if fold.fs.exists(root):
        fold.fs.rm(root, recursive=True)
    fold.fs.makedirs(root, exist_ok=True)
    fold.write_json(path, identity)


def _copy_vocabulary(store: Store, fold: Store, date: date) -> None:
    """The day's vocabulary beside the fold's sequences, its manifest last: ids are the same in every fold."""
    there, here = store.path(VOCABULARY.name, date), fold.path(VOCABULARY.name, date)
    names = [str(file["path"]) for file in store.check(VOCABULARY, date, "jobs/vocabulary.py").files]
    for name in [*names, MANIFEST]:
        fold.fs.makedirs(posixpath.dirname(f"{here}/{name}"), exist_ok=True)
        fold.fs.cp_file(f"{there}/{name}", f"{here}/{name}")


def _bundle_of(fold: Store, date: date) -> str | None:
    """Hash of the sequences that the fold's bundle was trained on; None where there is no finished one."""
    path = f"{fold.path(BUNDLE, date)}/{MANIFEST}"
    return str(json.loads(fold.fs.cat_file(path))["data_hash"]) if fold.fs.exists(path) else None


def _is_evaluated(settings: Settings, fold: Store, date: date, split: str, sequences: Manifest) -> bool:
    if str(date) not in fold.dates(TABLES[split]):
        return False
    manifest = fold.manifest(TABLES[split], date, "jobs/evaluate.py")
    bundle = json.loads(fold.fs.cat_file(f"{fold.path(BUNDLE, date)}/{MANIFEST}"))["model_version"]
    wanted = {f"{TRAINING_SEQUENCES.name}/{date}": sequences.hash, "bundle": bundle}
    return manifest.inputs == wanted and manifest.config_hash == evaluation_hash(settings)
