"""Train the network on a day's sequences and write its bundle; alone, as one of several ranks, or starting them."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from features import columns as c
from features.contracts import TRAINING_SEQUENCES, VOCABULARY
from jobs import launchers
from jobs.cli import show, stage_parser
from jobs.encoded import check_vocabulary
from jobs.ranks import run_rank, start_ranks
from jobs.settings import Settings, UsageError, config_hash, load_settings
from jobs.store import MANIFEST, Manifest, Store, code_version
from jobs.watching import Watch
from model.spec import Sizes, TrainingSpec
from model.watch import Watcher

if TYPE_CHECKING:  # TensorFlow is loaded by the ranks, not by what starts them
    from model.training import Outcome, Task

BUNDLE, CHECKPOINTS = "bundle", "_checkpoints"
_SEQUENCES_JOB = "jobs.sequences"


def train(
    load: Callable[[], Settings],
    root: str,
    date: date,
    fresh: bool = False,
    elastic: bool = False,
    into: str | None = None,
    watchers: Sequence[Watcher] = (),
) -> str | None:
    """Train on training_sequences_v1 of a day and write `bundle/dt=D`. Goes on from an interrupted training of it.

    Under a launcher this is one rank; rank 0 alone writes, speaks, and returns the version of the model. `load` reads
    the configuration, on every rank. `fresh`: forget earlier checkpoints. `elastic`: go on when one of the ranks is
    lost or added. `into`: another root for bundle, checkpoints and curves. `watchers`: who else looks on.

    Raises:
        UsageError: the configuration is wrong, or elastic ranks were not started as such.
        ContractError: an input is missing or torn.
        ModelError: the data does not fit the network or the ranks.
    """
    if elastic and os.environ.get("HOROVOD_ELASTIC") != "1":
        raise UsageError(
            "--elastic needs ranks that an elastic horovodrun has started, and this process was not. Start it as "
            "horovodrun --gloo -np 2 --min-np 1 -H host1:1,host2:1 python -m jobs.train --elastic ..., or leave "
            "--elastic out."
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow loads: errors, not build notes
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # its matrix products are faster on CPUs without AVX-512 too
    from model import training, workers
    from model.checkpoint import Checkpoints

    started = time.monotonic()
    ranks = workers.connect_workers(_training_spec(load), elastic)
    store, out = Store(root), Store(into or root)

    def prepared() -> tuple[_Day, int, Watch | None]:
        settings = load()
        day, threads = _day(settings, store, date), workers.use_threads(settings.training.threads)
        shown = elastic or ranks.rank == 0
        return day, threads, Watch(settings, out, str(date), threads, watchers) if shown else None

    # Ranks that are added to elastic ones cannot meet them before the training itself.
    day, threads, watch = prepared() if elastic else workers.together(ranks, prepared)
    checkpoints = Checkpoints(f"{out.root}/{CHECKPOINTS}/dt={date}", day.settings.training.checkpoints_kept)

    def tell(message: str) -> None:
        if watch and ranks.rank == 0:  # asked anew each time: elastic ranks change places
            watch.tell(message)

    if fresh and ranks.rank == 0:
        checkpoints.clear()
    n_train, n_valid = (sum(file.rows for file in files) for files in (day.task.train, day.task.valid))
    tell(
        f"training: {ranks.size} x {threads} (ranks x threads), {n_train:,} train rows, {n_valid:,} valid rows, "
        f"{day.task.sizes.items - c.FIRST_ID:,} items, {day.task.sizes.categories - c.FIRST_ID:,} categories"
    )
    try:
        outcome = training.train(day.task, ranks, checkpoints, tell, watch.watcher if watch else None)
        if watch and ranks.rank == 0:
            figures = {"ranks": ranks.size, "seconds": round(time.monotonic() - started, 1)}
            version, closing = _write_bundle(out.path(BUNDLE, date), day, outcome, figures)
            tell(watch.finish(version, outcome.best_epoch, len(outcome.history), figures["seconds"]))
            tell(closing)
            return version
        return None
    finally:
        if watch:
            watch.close()


def _training_spec(load: Callable[[], Settings]) -> TrainingSpec | None:
    """How ranks are to be connected. A configuration that is wrong is told when they are, by one of them."""
    try:
        return load().training
    except UsageError:
        return None


def launch(
    ranks: int,
    root: str,
    date: date,
    conf: Sequence[str] = (),
    assignments: Sequence[str] = (),
    min_ranks: int | None = None,
    fresh: bool = False,
    hosts: str | None = None,
) -> None:
    """Train in `ranks` processes of their own, on this machine or on `hosts`; their progress is shown here.

    With `min_ranks` the loss of a rank ends nothing as long as so many are left.

    Raises:
        UsageError, ContractError, ModelError: what stopped a rank, once.
        RuntimeError: anything else that ended a rank.
    """
    options = [part for path in conf for part in ("--conf", str(path))]
    options += [part for text in assignments for part in ("--set", text)]
    options += ["--fresh"] if fresh else []
    elastic = min_ranks is not None and ranks > 1
    options += ["--elastic"] if elastic else []
    arguments = ["--root", root, "--date", str(date), *options]
    start_ranks(ranks, "jobs.train", arguments, min_ranks if elastic else None, hosts)


@dataclass(frozen=True)
class _Day:
    """All that a rank knows of the day before it trains."""

    settings: Settings
    manifest: Manifest
    vocabulary_hash: str
    tokens: Mapping[str, Sequence[str]]
    counts: Mapping[str, Sequence[int]]
    task: "Task"


def _day(settings: Settings, store: Store, date: date) -> _Day:
    """Read and check the day's inputs, all but the rows."""
    manifest = store.check(TRAINING_SEQUENCES, date, _SEQUENCES_JOB)
    vocabulary = check_vocabulary(store, manifest)
    tokens, counts = _vocabulary(store, date)
    task = _task(settings, store, manifest, vocabulary.hash, {kind: len(names) for kind, names in tokens.items()})
    return _Day(settings, manifest, vocabulary.hash, tokens, counts, task)


def _vocabulary(store: Store, date: date) -> tuple[dict[str, list[str]], dict[str, list[int]]]:
    """Tokens and counts of vocabulary_v1 by kind and id."""
    from model.bundle import vocabulary_lists

    folder = store.path(VOCABULARY.name, date)
    names = sorted(entry for entry in store.fs.find(folder) if entry.endswith(".parquet"))
    columns = [c.KIND, c.TOKEN, c.ID, c.COUNT]
    tables = []
    for name in names:
        with store.fs.open(name, "rb") as file:
            tables.append(pq.read_table(file, columns=columns))
    return vocabulary_lists(pa.concat_tables(tables))


def _task(
    settings: Settings, store: Store, manifest: Manifest, vocabulary_hash: str, n_tokens: Mapping[str, int]
) -> "Task":
    from model.feed import DataFile
    from model.training import Task

    base = store.path(TRAINING_SEQUENCES.name, manifest.dt)
    files = {
        split: tuple(
            DataFile(f"{base}/{file['path']}", int(file["rows"]))
            for file in manifest.files
            if str(file["path"]).startswith(f"{c.SPLIT}={split}/")
        )
        for split in (c.TRAIN, c.VALID)
    }
    coding = manifest.counters
    sizes = Sizes(
        items=max(n_tokens.get(c.KIND_ITEM, 0), c.FIRST_ID + 1),
        categories=max(n_tokens.get(c.KIND_CATEGORY, 0), c.FIRST_ID + 1),
        length=coding["length"],
        gap_codes=c.FIRST_GAP + len(coding["gap_edges_s"]) + 1,
        new_session_gap=coding["new_session_gap"],
        session_gap_s=coding["gap_edges_s"][coding["new_session_gap"] - c.FIRST_GAP - 1],
        gap_edges_s=coding["gap_edges_s"],
        horizons_days=coding["horizons_days"],
    )
    facts = {
        "configuration": config_hash(settings.network, settings.training),
        "vocabulary": vocabulary_hash,
        "data": manifest.hash,
        "code": code_version(),
    }
    return Task(settings.network, settings.training, sizes, files[c.TRAIN], files[c.VALID], facts)


def _write_bundle(path: str, day: _Day, outcome: "Outcome", figures: Mapping[str, float]) -> tuple[str, str]:
    """Write the bundle; returns its version and the closing line."""
    from model.bundle import Bundle, Reports, save_bundle

    best, n_epochs = dict(outcome.history[outcome.best_epoch - 1]), len(outcome.history)
    bundle = Bundle(
        spec=day.settings.network,
        sizes=day.task.sizes,
        gap_edges_s=tuple(day.manifest.counters["gap_edges_s"]),
        vocabulary=day.tokens,
        counts=day.counts,
        weights={name: weight.numpy() for name, weight in outcome.network.weights.items()},
        model_version="",
        data_hash=day.manifest.hash,
        vocabulary_hash=day.vocabulary_hash,
        code_version=code_version(),
    )
    metrics = {**figures, "best_epoch": outcome.best_epoch, "epochs": n_epochs, "best": best}
    config = yaml.safe_dump(day.settings.model_dump(mode="json"), sort_keys=False)
    version = save_bundle(path, day.manifest.dt, bundle, Reports(config, metrics, outcome.history))
    return version, (
        f"model {version}: best epoch {outcome.best_epoch} of {n_epochs}, validation NDCG@10 "
        f"{best['valid_item_ndcg']:.4f} next item, {best['valid_category_ndcg']:.4f} next category; "
        f"{figures['seconds']:.0f} s"
    )


def main(argv: Sequence[str]) -> int:
    """Command line of the stage: one rank, or with --launcher what starts several."""
    flags = parser()
    if flags.parse_args(argv).launcher != launchers.NONE:
        return launchers.run(flags, argv)

    def work(arguments: argparse.Namespace) -> None:
        launchers.check_none(arguments)
        settings = partial(load_settings, arguments.conf, arguments.set)
        into = arguments.into or arguments.root
        if train(settings, arguments.root, arguments.date, arguments.fresh, arguments.elastic, into):
            show(arguments, bundle_facts(Store(into), arguments.date))

    return run_rank(work, flags, argv)


def parser() -> argparse.ArgumentParser:
    """The flags of the stage."""
    flags = stage_parser("train")
    flags.add_argument("--fresh", action="store_true", help="start anew, whatever an interrupted training left")
    flags.add_argument(
        "--elastic", action="store_true", help="go on when a rank is lost or added; needs horovodrun --min-np"
    )
    flags.add_argument(
        "--into",
        metavar="DIR",
        help="another root for the bundle: DIR/bundle/dt=DATE; without a launcher",
    )
    launchers.add_arguments(flags)
    return flags


def bundle_facts(store: Store, date: date) -> dict[str, Any]:
    """What there is to say of a day's bundle: `path`, `model_version`, `metrics`."""
    path = store.path(BUNDLE, date)
    version = json.loads(store.fs.cat_file(f"{path}/{MANIFEST}"))["model_version"]
    metrics = json.loads(store.fs.cat_file(f"{path}/metrics.json"))
    return {"path": path, "model_version": version, "metrics": metrics}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
