"""The days ahead as part of an evaluation: what is judged of them, beside which baselines, where it can be."""

from collections.abc import Mapping
from typing import Any

from features import columns as c
from jobs.cli import say
from jobs.evaluation_inputs import micros
from jobs.evaluation_models import MODEL
from jobs.future_inputs import future_rows, model_futures, period_end_us, true_futures
from jobs.store import Manifest, Store
from model.baselines import TrainEvents, Windows
from model.evaluation import Evaluation, EvaluationRows, EvaluationSpec, Ranker, SplitProtocol
from model.future_baselines import fit_future_baselines
from model.future_evaluation import FutureSource, evaluate_futures

_DAY_US = c.DAY_S * c.MICROS


def evaluate_future(
    store: Store,
    manifest: Manifest,
    ranker: Ranker,
    rows: EvaluationRows,
    protocol: SplitProtocol,
    windows: Windows,
    events: TrainEvents,
    rankers: Mapping[str, Ranker],
    spec: EvaluationSpec,
) -> tuple[Evaluation, tuple[str, ...]]:
    """Judge what is said of the days ahead, where the split has days ahead and the bundle says something of them."""
    nothing = Evaluation((), (), {})
    if protocol.cutoff is None or protocol.embargo_days:
        return nothing, ("Days ahead are not judged: they need labels from one cutoff on, without embargo.",)
    predictor: Any = ranker
    if not hasattr(predictor, "future"):
        return nothing, ("Days ahead are not judged: of several bundles as one only the next event is.",)
    cutoff_us, counters = micros(protocol.cutoff), manifest.counters
    period_days = (period_end_us(counters, protocol) - cutoff_us) // _DAY_US
    horizons = tuple(int(days) for days in counters["horizons_days"] if days <= period_days)
    if not predictor.heads or not horizons:
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
