"""What the gate is told: two models on the same held-out rows, and the interests of the population against last night.

Also the last look at a night's scores before they are published.
"""

import os
from collections import Counter
from collections.abc import Collection
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
from pyspark.sql import DataFrame, SparkSession

from features import columns as c
from features.contracts import SCORES, TRAINING_SEQUENCES, ContractError
from features.drift import stability_index
from features.score_checks import degenerate_count, interest_mass, sample_of
from jobs.evaluation_inputs import read_split, rows_of
from jobs.layers import read_sequences
from jobs.published import Release
from jobs.settings import Settings
from jobs.store import Manifest, Store
from model.evaluation import COVERAGE, ITEM_TARGET, EvaluationRows, Scores, SplitProtocol, evaluate_rankings
from model.gate import CHALLENGER, CHAMPION, Decision, K, OutputRecord, calibration_error, decide

if TYPE_CHECKING:  # TensorFlow is loaded when a gate is due, not with the job
    from model.predict import Predictor


def judge_challenger(
    spark: SparkSession, settings: Settings, store: Store, dt: date, bundle: str, champion: Release | None
) -> Decision:
    """Compare the bundle of a day with the model in use on the test rows of the day.

    The champion was trained before those days, on a vocabulary that the challenger's goes on from: ids that it does not
    know are unknown to it as input, and misses as labels.

    Raises:
        ContractError: the sequences are missing or torn.
        ModelError: a bundle does not fit them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow loads: errors, not build notes
    from model.predict import Predictor

    manifest = store.check(TRAINING_SEQUENCES, dt, "jobs/sequences.py")
    spec = settings.evaluation.model_copy(update={"ks": (1, K)})
    held_out, n_users = read_split(store, manifest, c.TEST, TRAINING_SEQUENCES.schema.names, spec.max_users)
    rows = rows_of(held_out)
    models = {CHALLENGER: Predictor.load(bundle)}
    if champion is not None:
        models[CHAMPION] = Predictor.load(f"{store.root}/{champion.bundle}")
    for model in models.values():
        model.bundle.check_sequences(manifest.counters)
    n_ids = (models[CHALLENGER].sizes.items, models[CHALLENGER].sizes.categories)
    records = {name: OutputRecord(len(rows.user_id)) for name in models}
    sources = {name: records[name].watch(_Padded(model, rows, n_ids)) for name, model in models.items()}
    judged = evaluate_rankings(rows, _protocol(manifest, len(rows.user_id), n_users), sources, n_ids, spec, CHALLENGER)
    coverage = {
        row.model: row.value for row in judged.rows if (row.target, row.metric, row.k) == (ITEM_TARGET, COVERAGE, K)
    }
    record = records[CHALLENGER]
    return decide(
        settings.gate,
        (models[CHALLENGER].model_version, champion.model_version if champion else None),
        judged.comparisons,
        (coverage[CHALLENGER], coverage.get(CHAMPION)),
        calibration_error(record.confidence, record.choice == rows.next_category, settings.gate.ece_bins),
        record.degenerate_share,
        _drift(spark, settings, store, dt, models[CHALLENGER], champion),
    )


def check_scores(
    spark: SparkSession, settings: Settings, store: Store, dt: date, before: Release | None, accepted: Collection[str]
) -> str:
    """Look at scores_v1 of a day as a whole → one line for people.

    Raises:
        ContractError: more rows say nothing than allowed, or the population's interests moved too far since `before`,
            and neither was accepted.
    """
    scores = store.read(spark, SCORES, dt, "jobs/score.py")
    counted = degenerate_count(scores).collect()[0]
    n_rows, n_bad = int(counted["rows"]), int(counted["degenerate"])
    share, most = n_bad / max(n_rows, 1), settings.gate.max_degenerate_share
    problems = []
    if share > most:
        problems.append(
            f"{n_bad:,} of {n_rows:,} rows say nothing ({share:.4g}, at most gate.max_degenerate_share = {most:g})"
        )
    said = f"{n_rows:,} users, {n_bad:,} rows that say nothing"
    if before is not None:
        k = settings.scoring.top_k_interests
        psi = _psi(_mass(interest_mass(_released(spark, store, before), k)), _mass(interest_mass(scores, k)), settings)
        if psi is not None:
            said += f"; PSI of interests {psi:.3f} since {before.date}"
            if psi > settings.gate.max_interest_psi:
                problems.append(
                    f"the PSI of the population's interests since {before.date} is {psi:.4g} "
                    f"(at most gate.max_interest_psi = {settings.gate.max_interest_psi:g})"
                )
    if problems and SCORES_CHECK not in accepted:
        raise ContractError(
            f"{store.path(SCORES.name, dt)} is not published: {'; '.join(problems)}. What is published stays. Look at "
            f"the rows; where they are right as they are, run the night again with --accept {SCORES_CHECK}."
        )
    return said


SCORES_CHECK = "scores"  # what `--accept` calls it


class _Padded:
    """A predictor's scores of any block of rows, over the ids of a vocabulary that may be larger than its own."""

    def __init__(self, predictor: "Predictor", rows: EvaluationRows, n_ids: tuple[int, int]) -> None:
        self._predictor, self._rows, self._n_ids = predictor, rows, n_ids
        own = (predictor.sizes.items, predictor.sizes.categories)
        self._own = dict(zip((c.ITEM, c.CATEGORY), own, strict=True))

    def __call__(self, start: int, stop: int) -> Scores:
        channels = {name: values[start:stop] for name, values in self._rows.channels.items()}
        for name, size in self._own.items():
            channels[name] = np.where(channels[name] < size, channels[name], np.int32(c.OOV))
        scores = self._predictor.probabilities(channels, self._rows.length[start:stop], self._rows.next_gap[start:stop])
        items, categories = (
            np.pad(values, ((0, 0), (0, max(0, size - values.shape[1]))))
            for values, size in zip(scores, self._n_ids, strict=True)
        )
        return items, categories


def _protocol(manifest: Manifest, n_users: int, n_users_in_split: int) -> SplitProtocol:
    counters = manifest.counters
    by_time = counters["protocol"] == c.GLOBAL_TIME
    return SplitProtocol(
        date=manifest.dt,
        split=c.TEST,
        protocol=counters["protocol"],
        train_before=counters["valid_cutoff"] if by_time else None,
        cutoff=counters["test_cutoff"] if by_time else None,
        embargo_days=int(counters["embargo_days"]) if by_time else None,
        n_users=n_users,
        n_users_in_split=n_users_in_split,
        n_train_users=0,  # nothing is fitted here
        n_train_users_in_split=0,
    )


def _drift(
    spark: SparkSession, settings: Settings, store: Store, dt: date, model: "Predictor", published: Release | None
) -> float | None:
    """PSI of what the model says of tonight's users against what is published, on the same sample of users."""
    if published is None:
        return None
    k = settings.scoring.top_k_interests
    share = settings.gate.drift_users / max(published.rows, 1)
    before = _mass(interest_mass(sample_of(_released(spark, store, published), share), k))
    columns = [c.LENGTH, c.NEXT_GAP, *c.CHANNELS]
    rows = sample_of(read_sequences(spark, store, dt), share).select(*columns).toPandas()
    if rows.empty:
        return None
    channels = {name: np.stack(rows[name].to_list()).astype(np.int32) for name in c.CHANNELS}  # [B, L]
    for name, size in ((c.ITEM, model.sizes.items), (c.CATEGORY, model.sizes.categories)):
        channels[name] = np.where(channels[name] < size, channels[name], np.int32(c.OOV))
    known = ((channels[c.ITEM] > c.OOV) | (channels[c.CATEGORY] > c.OOV)).any(axis=1)  # [B]
    length, next_gap = (rows[name].to_numpy(np.int32)[known] for name in (c.LENGTH, c.NEXT_GAP))
    top = model.top({name: values[known] for name, values in channels.items()}, length, next_gap, 1, k)
    mass: Counter[str] = Counter()
    tokens = model.bundle.vocabulary[c.KIND_CATEGORY]
    weights = np.zeros(len(tokens))
    np.add.at(weights, top.category_ids, np.nan_to_num(top.category_p))
    mass.update({token: float(weight) for token, weight in zip(tokens, weights, strict=True) if weight > 0})
    return _psi(before, mass, settings)


def _released(spark: SparkSession, store: Store, release: Release) -> DataFrame:
    return spark.read.schema(SCORES.schema).parquet(f"{store.root}/{release.path}")


def _mass(rows: DataFrame) -> dict[str, float]:
    return {row[c.CATEGORY_ID]: float(row["mass"]) for row in rows.collect()}


def _psi(before: dict[str, float], now: "dict[str, float] | Counter[str]", settings: Settings) -> float | None:
    """None where either side holds nothing that the model said."""
    if not sum(before.values()) or not sum(now.values()):
        return None
    return stability_index(before, now, settings.gate.interest_bins)
