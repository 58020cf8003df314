"""Judge a bundle on held-out rows beside its baselines, and on simulated data beside the truth."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from typing import Any

from pydantic import BaseModel

from features import columns as c
from features.contexts import Ids, contexts
from features.contracts import TRAINING_SEQUENCES
from features.scoring import Floats
from jobs.cli import run_job, say, show, stage_parser
from jobs.evaluation_details import calibration_notes, detail_records, details_of
from jobs.evaluation_files import write_evaluation
from jobs.evaluation_future import evaluate_future
from jobs.evaluation_inputs import read_split, rows_of, truths_of, windows_of
from jobs.evaluation_models import MODEL, load_judged
from jobs.evaluation_table import EvaluationResult, format_table
from jobs.evaluation_texts import detail_texts
from jobs.future_table import future_headline
from jobs.leak_audit import audit
from jobs.settings import Settings, UsageError, config_hash, load_settings
from jobs.store import Store
from model.baselines import VocabularySizes, events_of, fit_baselines
from model.calibration import FirstChoices, observed
from model.ensemble import ENSEMBLES, RANKS
from model.evaluation import MetricRow, Ranker, ScoreBlock, SplitProtocol, evaluate_rankings, scores_of

TABLES = {c.TEST: "evaluation", c.VALID: "evaluation_valid"}
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


@dataclass(frozen=True)
class Choice:
    """Which bundles are judged; by default the day's. Several: as one, by the mean of what `ensemble` names."""

    bundles: tuple[str, ...] = ()
    ensemble: str | None = None
    against: str | None = None


def evaluate(
    settings: Settings, root: str, date: date, split: str = c.TEST, choice: Choice | None = None
) -> EvaluationResult:
    """Judge the bundle of a day on one split of its training_sequences_v1; writes `evaluation/dt=D`.

    The valid split goes to `evaluation_valid/dt=D`, so that neither replaces the other.

    Raises:
        ContractError: the sequences are missing or torn.
        UsageError: the bundles of `choice` do not go together.
        ModelError: a bundle does not fit the sequences, or a row leaks its label.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow loads: errors, not build notes
    spec, store, choice = settings.evaluation, Store(root), choice or Choice()
    manifest = store.check(TRAINING_SEQUENCES, date, "jobs/sequences.py")
    bundles = choice.bundles or (store.path("bundle", date),)
    judged = load_judged(store, manifest, bundles, choice.ensemble, choice.against)
    n_ids = judged.n_ids

    say(f"evaluate: reading split {split} and the training windows of {date}")
    held_out, n_users_in_split = read_split(store, manifest, split, TRAINING_SEQUENCES.schema.names, spec.max_users)
    train, n_train_in_split = read_split(
        store, manifest, c.TRAIN, (*_WINDOW_COLUMNS, *_LABEL_COLUMNS), spec.max_train_users
    )
    rows, windows = rows_of(held_out), windows_of(train)
    say(audit(store, manifest, split, held_out, rows, train))
    protocol = SplitProtocol(
        date=str(date),
        split=split,
        protocol=manifest.counters["protocol"],
        **_times_of(manifest.counters, split),
        n_users=len(rows.user_id),
        n_users_in_split=n_users_in_split,
        n_train_users=int(windows.user.max()) + 1,
        n_train_users_in_split=n_train_in_split,
    )
    trained = events_of(windows, manifest.counters["gap_edges_s"], manifest.counters["new_session_gap"])
    baselines = fit_baselines(
        trained,
        VocabularySizes(*n_ids),
        recent_days=spec.recent_days,
        markov_prior=spec.markov_prior,
        knn_neighbours=spec.knn_neighbours,
        knn_sample=spec.knn_sample,
        knn_last_items=spec.knn_last_items,
        knn_idf=spec.knn_idf,
    )
    truths, notes = truths_of(store, rows, protocol, judged.vocabulary)
    sources: dict[str, ScoreBlock] = {name: scores_of(ranker, rows) for name, ranker in baselines.items()}
    choices: dict[str, dict[str, FirstChoices]] = {}
    for name, ranker in judged.rankers.items():
        as_scored = scores_of(_AsScored(ranker, settings.scoring.anchor_events), rows)
        sources[name], choices[name] = observed(as_scored, rows.next_item, rows.next_category)
    sources |= truths
    say(f"evaluate: ranking {n_ids[0] - 2:,} items for {protocol.n_users:,} users, {len(sources)} rows of the table")
    evaluation = evaluate_rankings(rows, protocol, sources, n_ids, spec, model=MODEL)
    probable = {name: found for name, found in choices.items() if name != MODEL or choice.ensemble != RANKS}
    details = details_of(evaluation, rows, trained, n_ids, probable, spec, settings.scoring.short_history_events)
    inputs = {f"{TRAINING_SEQUENCES.name}/{date}": manifest.hash, "bundle": judged.versions[MODEL]}
    inputs |= {name: version for name, version in judged.versions.items() if name != MODEL}
    path = store.path(TABLES[split], date)
    future, more = evaluate_future(
        store, manifest, judged.rankers[MODEL], rows, protocol, windows, trained, baselines, spec
    )
    notes = (*notes, *calibration_notes(details), *more)
    result = EvaluationResult(evaluation, protocol, spec.ks, judged.versions, notes, path, details, future)
    _write(store, result, inputs, evaluation_hash(settings))
    return result


def evaluation_hash(settings: Settings) -> str:
    """Hash of the settings that an evaluation depends on: its own, and how scoring reads a history."""
    scoring = settings.scoring
    return config_hash(settings.evaluation, _Read(anchor=scoring.anchor_events, short=scoring.short_history_events))


class _Read(BaseModel):
    anchor: int
    short: int


@dataclass(frozen=True)
class _AsScored:
    """The model reading of each row what it reads when users are scored."""

    predictor: Ranker
    anchor_events: int

    def probabilities(self, channels: Mapping[str, Ids], length: Ids, next_gap: Ids) -> tuple[Floats, Floats]:
        """See Ranker."""
        read, n_events, _ = contexts(channels, length, self.anchor_events)
        return self.predictor.probabilities(read, n_events, next_gap)


def _times_of(counters: Mapping[str, Any], split: str) -> dict[str, Any]:
    """The times that the protocol states."""
    if counters["protocol"] != c.GLOBAL_TIME:
        return {"train_before": None, "cutoff": None, "embargo_days": None}
    return {
        "train_before": counters["valid_cutoff"],
        "cutoff": counters[f"{split}_cutoff"],
        "embargo_days": int(counters["embargo_days"]),
    }


def _write(store: Store, result: EvaluationResult, inputs: Mapping[str, str], hashed: str) -> None:
    shared = {name: value for name, value in asdict(result.split).items() if name != "n_users"}
    records: list[dict[str, Any]] = [*evaluation_facts(result)["rows"]]
    records += detail_records(result.details, shared, result.versions)
    ahead = dict.fromkeys(row.target for row in result.future.rows)
    summary = {
        "protocol": asdict(result.split),
        "model_version": result.model_version,
        "headlines": list(result.headlines),
        "future_headlines": [future_headline(result.future, target, MODEL) for target in ahead],
        "comparisons": [pair._asdict() for pair in (*result.evaluation.comparisons, *result.future.comparisons)],
        "against": [test._asdict() for test in result.details.tests],
        "notes": list(result.notes),
    }
    names = [f.name for f in fields(MetricRow)]
    counters = {"users": result.split.n_users}
    write_evaluation(
        store, TABLES[result.split.split], result.split.date, records, summary, names, counters, inputs, hashed
    )


def _json_row(row: MetricRow, versions: Mapping[str, str]) -> dict[str, Any]:
    return asdict(row) | {"model_version": versions.get(row.model)}


def _cross_validate(settings: Settings, arguments: argparse.Namespace, choice: Choice) -> None:
    from jobs import folds  # here: it builds on this module
    from jobs.spark import spark_session

    if choice != Choice() or arguments.cohorts:
        raise UsageError("--folds trains the bundles it judges: drop --bundle, --ensemble, --against and --cohorts.")
    overlays = arguments.conf, arguments.set
    result = folds.cross_validate(
        settings,
        arguments.root,
        arguments.date,
        arguments.split,
        arguments.folds,
        lambda: spark_session("evaluate"),
        overlays,
    )
    show(arguments, asdict(result), folds.folds_text(result, arguments.markdown))
    say(f"evaluate: wrote {result.path}")


def main(argv: Sequence[str]) -> int:
    """Command line of the stage."""
    return run_job(_work, parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The flags of the stage."""
    flags = stage_parser("evaluate")
    flags.add_argument("--split", choices=(c.TEST, c.VALID), default=c.TEST, help="rows to judge (default: test)")
    flags.add_argument(
        "--bundle", action="append", default=[], metavar="DIR", help="bundle to judge (default: ROOT/bundle/dt=DATE)"
    )
    flags.add_argument(
        "--ensemble", choices=ENSEMBLES, help="judge several --bundle as one: by their mean probabilities, or ranks"
    )
    flags.add_argument("--against", metavar="DIR", help="a second bundle on the same rows, with paired tests")
    flags.add_argument(
        "--folds", type=int, metavar="N", help="train and judge N models, their cutoffs moved back by test_days each"
    )
    flags.add_argument("--cohorts", action="store_true", help="print the metrics of groups of users, too")
    flags.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return flags


def _work(arguments: argparse.Namespace) -> None:
    settings = load_settings(arguments.conf, arguments.set)
    choice = Choice(tuple(arguments.bundle), arguments.ensemble, arguments.against)
    if arguments.folds is not None:
        _cross_validate(settings, arguments, choice)
        return
    result = evaluate(settings, arguments.root, arguments.date, arguments.split, choice)
    texts = [format_table(result, arguments.markdown), *detail_texts(result, arguments.cohorts, arguments.markdown)]
    show(arguments, evaluation_facts(result), "\n\n".join(texts))
    say(f"evaluate: wrote {result.path}")


def evaluation_facts(result: EvaluationResult) -> dict[str, Any]:
    """What there is to say of an evaluation: `path`, `model_version`, `users`, and every row of its tables."""
    rows = [_json_row(row, result.versions) for row in (*result.evaluation.rows, *result.future.rows)]
    return {
        "path": result.path,
        "model_version": result.model_version,
        "users": result.split.n_users,
        "headlines": list(result.headlines),
        "rows": rows,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
