"""What an evaluation says beyond its table: cohorts, calibration, and the paired tests against a second bundle."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import columns as c
from features.rungs import n_known
from jobs.evaluation_models import AGAINST, MODEL
from model.baselines import TrainEvents
from model.calibration import Calibration, FirstChoices, calibration
from model.cohorts import Cohorts, CohortValue, by_action, by_history, by_popularity, by_rung, cohort_values
from model.evaluation import CATEGORY_TARGET, ITEM_TARGET, TARGETS, Evaluation, EvaluationRows, EvaluationSpec
from model.metrics import HR, NDCG, USER_METRICS
from model.paired import PairedTest, paired_tests

ECE, COHORT = "ece", "cohort_"
_COHORT_METRICS = (NDCG, HR)


@dataclass(frozen=True)
class CohortRow:
    """A number of one group of users, beside the target, metric and K that it is of."""

    target: str
    metric: str
    k: int
    found: CohortValue


@dataclass(frozen=True)
class Details:
    """Everything beyond the table's rows. `calibrations`: by source and target."""

    cohorts: tuple[CohortRow, ...]
    calibrations: Mapping[tuple[str, str], Calibration]
    tests: tuple[PairedTest, ...]


def details_of(
    evaluation: Evaluation,
    rows: EvaluationRows,
    trained: TrainEvents,
    n_ids: tuple[int, int],
    choices: Mapping[str, Mapping[str, FirstChoices]],
    spec: EvaluationSpec,
    short_events: int,
) -> Details:
    """Work out all details of one evaluation. choices: source → target → first choices, where it has probabilities.

    short_events: known events from which a history is no longer a short one, as in scoring.
    """
    k = main_k(spec.ks)
    at_k = spec.ks.index(k)
    cohorts: list[CohortRow] = []
    for target, labels, events, size in (
        (CATEGORY_TARGET, rows.next_category, trained.category, n_ids[1]),
        (ITEM_TARGET, rows.next_item, trained.item, n_ids[0]),
    ):
        divisions = _divisions(rows, labels, np.bincount(events, minlength=size), spec, short_events)
        for metric in _COHORT_METRICS:
            m = USER_METRICS.index(metric)
            values = {source: found[:, at_k, m] for source, found in evaluation.per_user[target].items()}
            for division in divisions:
                found = cohort_values(division, values, spec.n_bootstrap, spec.seed)
                cohorts += [CohortRow(target, metric, k, value) for value in found]
    calibrations = {
        (source, target): calibration(found[target], spec.calibration_bins)
        for source, found in choices.items()
        for target in TARGETS
    }
    return Details(tuple(cohorts), calibrations, tuple(_tests(evaluation, spec)))


def detail_records(
    details: Details, protocol: Mapping[str, Any], versions: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Lines of metrics.jsonl: metric `cohort_…` with cohort and group, metric `ece` with the reliability curve."""

    def shared(source: str) -> dict[str, Any]:
        return {**protocol, "model_version": versions.get(source)}

    for row in details.cohorts:
        value = row.found._asdict()
        yield {"target": row.target, "metric": f"{COHORT}{row.metric}", "k": row.k, **value, **shared(value["model"])}
    for (source, target), found in details.calibrations.items():
        yield {
            "target": target,
            "model": source,
            "metric": ECE,
            "k": 1,
            "value": found.ece,
            "n": sum(part.n for part in found.bins),
            "confidence": found.confidence,
            "accuracy": found.accuracy,
            "bins": [part._asdict() for part in found.bins],
            **shared(source),
        }


def calibration_notes(details: Details) -> tuple[str, ...]:
    """How far the model's probabilities can be taken at their word; nothing where it gives none."""
    if (MODEL, CATEGORY_TARGET) not in details.calibrations:
        return ()
    said = []
    for target in TARGETS:
        found = details.calibrations[MODEL, target]
        said.append(
            f"next {target} ECE {found.ece:.3f} (mean probability {found.confidence:.3f}, right {found.accuracy:.3f})"
        )
    n_bins = len(details.calibrations[MODEL, CATEGORY_TARGET].bins)
    return (f"Calibration of the first choice, {n_bins} bins of equally many users: {'; '.join(said)}.",)


def main_k(ks: Sequence[int]) -> int:
    """The cut-off that the tables show: 10, or the greatest one there is."""
    return 10 if 10 in ks else max(ks)


def _divisions(
    rows: EvaluationRows,
    labels: NDArray[np.int32],
    train_counts: NDArray[np.int64],
    spec: EvaluationSpec,
    short_events: int,
) -> tuple[Cohorts, ...]:
    return (
        by_rung(n_known(rows.channels[c.ITEM], rows.channels[c.CATEGORY]), short_events),
        by_history(rows.length, spec.history_edges),
        by_popularity(labels, train_counts, spec.popularity_shares),
        by_action(rows.label_actions.values[rows.label_actions.offsets[:-1]]),
    )


def _tests(evaluation: Evaluation, spec: EvaluationSpec) -> Iterator[PairedTest]:
    for target in TARGETS:
        values = evaluation.per_user[target]
        if AGAINST in values:
            draws = spec.n_bootstrap, spec.n_permutations, spec.seed
            yield from paired_tests(target, (MODEL, AGAINST), (values[MODEL], values[AGAINST]), spec.ks, draws)
