"""What a report is made of: small plain values, read from the tables of one root. What is not there is left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from math import ceil
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features import report as aggregates
from features.contracts import FLAGGED_USERS, REJECTED_EVENTS, SCORES, ContractError
from features.partitions import EVENT_GROWTH, partitions_for
from features.report import ReportSpec
from features.report_sums import NEXT, PAST, STEP
from features.score_checks import sample_of
from jobs.history import events_until
from jobs.report_night import NightFile, night_facts
from jobs.report_people import people_facts
from jobs.report_quality import quality_facts
from jobs.settings import Settings
from jobs.store import Store

_MADE_BY = "jobs/score.py"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class ReportFacts:
    """Everything that is shown, as plain values. Lists are empty where a table or a column of it is missing."""

    date: str
    night: NightFile
    quality: Mapping[str, Any]
    shares: Sequence[Row] = ()  # see population_shares
    flows: Sequence[Row] = ()  # see interest_flows
    route: Sequence[int] = ()  # the steps of the flows
    weekly: Sequence[Row] = ()  # see weeks_and_hours
    hours: Sequence[Row] = ()  # see weeks_and_hours
    weeks: int = 0  # calendar weeks that these look back over, the day's own included
    activity: Sequence[Row] = ()  # see activity
    samples: Mapping[str, Sequence[str]] = field(default_factory=dict)  # reason → raw rows
    rules: Sequence[Row] = ()  # days that a rule of denoising flags
    people: Sequence[Row] = ()
    provenance: Mapping[str, int] = field(default_factory=dict)
    sampled_users: int = 0
    notes: Sequence[str] = ()  # what is missing, and why


def gather(
    spark: SparkSession, settings: Settings, store: Store, dt: date, stages: Sequence[tuple[str, float]] = ()
) -> ReportFacts:
    """Read and aggregate. stages: names and seconds of a run that keeps no record of its own.

    Raises:
        ContractError: the day has no scores, or a table that they were made from is torn.
    """
    spec = settings.report
    made = store.check(SCORES, dt, _MADE_BY)
    every = store.read(spark, SCORES, dt, _MADE_BY)
    provenance = {r[c.PROVENANCE]: int(r["count"]) for r in every.groupBy(c.PROVENANCE).count().collect()}
    share = min(1.0, spec.users / max(made.rows, 1))
    scores = sample_of(every, share).persist()
    since = dt + timedelta(days=1) - timedelta(weeks=spec.weeks)
    monday = since - timedelta(days=since.weekday())
    all_events, _, n_bytes = events_until(spark, store, dt, since=monday)
    events = sample_of(all_events, share).persist()
    n_partitions = partitions_for(
        ceil(n_bytes * share * EVENT_GROWTH), settings.sequences.partition_mib, spark.sparkContext.defaultParallelism
    )
    try:
        weekly, hours = aggregates.weeks_and_hours(events, n_partitions)
        shown = _interests(scores, weekly, spec)
        people, notes = people_facts(spark, settings, store, dt, scores, events)
        sampled = scores.count()
    finally:
        scores.unpersist()
        events.unpersist()
    return ReportFacts(
        date=str(dt),
        night=night_facts(store, settings, dt, stages),
        quality=quality_facts(store, dt, spec.nights),
        weekly=weekly,
        weeks=(dt - monday).days // 7 + 1,
        hours=hours,
        activity=_rows(aggregates.activity(all_events)),
        samples=_samples(spark, store, dt, spec.rejected_samples),
        rules=_rules(spark, store, dt),
        people=people,
        provenance=provenance,
        sampled_users=sampled,
        notes=tuple(notes),
        **shown,
    )


def _interests(scores: DataFrame, weekly: Sequence[Row], spec: ReportSpec) -> dict[str, Any]:
    """Shares and flows of interests. The background of categories that a user does not list is the weeks' events."""
    mass: Counter[str] = Counter()
    for row in weekly:
        mass[row[c.CATEGORY_ID]] += row[c.EVENTS]
    background = {name: n / mass.total() for name, n in mass.items()}
    shares = aggregates.population_shares(scores, background)
    found = {row[STEP] for row in shares}
    wanted = [h for h in (7, 30) if h in found] or sorted(h for h in found if h > NEXT)[-2:]
    route = [PAST, *(wanted or ([NEXT] if NEXT in found else []))]
    past = [row for row in shares if row[STEP] == PAST]
    past.sort(key=lambda row: (-row[c.SHARE], row[c.CATEGORY_ID]))
    names = [row[c.CATEGORY_ID] for row in past[: spec.top_interests]]
    flows = aggregates.interest_flows(scores, route, names) if len(route) > 1 else []
    return {"shares": shares, "flows": flows, "route": route}


def _samples(spark: SparkSession, store: Store, dt: date, n: int) -> dict[str, list[str]]:
    try:
        rejected = store.read(spark, REJECTED_EVENTS, dt, "")
    except ContractError:
        return {}
    found: dict[str, list[str]] = {}
    for row in aggregates.reason_samples(rejected, n).orderBy(c.REASON, c.RAW).collect():
        found.setdefault(row[c.REASON], []).append(row[c.RAW][:400])
    return found


def _rules(spark: SparkSession, store: Store, dt: date) -> list[Row]:
    try:
        flagged = store.read(spark, FLAGGED_USERS, dt, "")
    except ContractError:
        return []
    counted = flagged.groupBy(c.RULE).agg(
        F.count_distinct(c.USER_ID).alias("users"), F.count(F.lit(1)).alias("days"), F.sum(c.EVENTS).alias(c.EVENTS)
    )
    return _rows(counted.orderBy(c.RULE))


def _rows(frame: DataFrame) -> list[Row]:
    return [row.asDict() for row in frame.collect()]
