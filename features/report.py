"""What the report shows of interests and activity: few rows, aggregated over users before anything leaves Spark."""

import math
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from features import columns as c
from features.report_sums import (
    EVENT_SUMS,
    FLOWS,
    FROM,
    INTEREST_SUMS,
    STEP,
    TO,
    USERS,
    WEEK,
    event_sums,
    flow_counts,
    interest_sums,
)
from features.rungs import BY_MODEL

_Z = 1.96  # two-sided 95 % of a normal distribution: means over thousands of users are close to one

Row = dict[str, Any]


class ReportSpec(BaseModel):
    """How much a report looks at and shows. Units and reasons are in conf/base.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int = Field(ge=1)
    people: int = Field(ge=0)
    sessions_per_person: int = Field(ge=1)
    weeks: int = Field(ge=1)
    top_interests: int = Field(ge=2, le=25)
    movers: int = Field(ge=1)
    rejected_samples: int = Field(ge=0)
    nights: int = Field(ge=2)
    images: bool


def population_shares(scores: DataFrame, background: Mapping[str, float]) -> list[Row]:
    """Interests of the mean user: rows of category_id, step, share, share_low, share_high, move, low, high, users.

    A user's row lists some interests only. What is left to 1 belongs to those not listed, in proportion to the
    background; so shares of a step sum to 1 over the categories of the background. share: mean over users. move: mean
    of (share at the step - share in the past), 0 for PAST itself; low, high and share_low, share_high: 95 % intervals
    of the two means over users (normal approximation). users: who list the interest. Steps ahead are there where the
    model has heads for them.

    scores: `scores_v1`; users whom the model does not know are left out. background: category → share, summing to 1;
    an interest that it does not hold has a background of 0.
    """
    sums = partial(interest_sums, background=dict(background))
    rows = _added(_interests(scores).mapInArrow(sums, from_arrow_schema(INTEREST_SUMS)), c.CATEGORY_ID, STEP)
    of = {(row[c.CATEGORY_ID], row[STEP]): row for row in rows}
    return [
        _mean_user(name, step, mine, of[None, step], background.get(name, 0.0))
        for (name, step), mine in of.items()
        if name is not None
    ]


def _mean_user(name: str, step: int, mine: Mapping[str, float], every: Mapping[str, float], base: float) -> Row:
    """mine: sums over the users who list the interest; every: over all who list any."""
    n = every[USERS]

    def interval(value: str, rest: str) -> tuple[float, float, float]:
        """Mean over users of the value where listed, else base · rest, and the ends of its interval."""
        mean, square = ((mine[f"{value}{p}"] + f * (every[f"{rest}{p}"] - mine[f"{rest}{p}"])) / n for p, f in powers)
        half = _Z * math.sqrt(max(square - mean * mean, 0.0) / n)
        return mean, mean - half, mean + half

    powers = (("", base), ("2", base * base))
    share, move = interval("share", "rest"), interval("move", "rest_move")
    columns = (c.SHARE, "share_low", "share_high", c.MOVE, "low", "high")
    return {c.CATEGORY_ID: name, STEP: step, **dict(zip(columns, share + move, strict=True)), USERS: mine[USERS]}


def interest_flows(scores: DataFrame, route: Sequence[int], shown: Sequence[str]) -> list[Row]:
    """Main interests of users, at each step of the route and at the one after it: rows of step, from, to, users.

    A user's main interest at a step is the one of the greatest share, ties broken by name; OTHERS for those that are
    not shown. route: two steps or more. step: where the flow starts. Users without an interest at the step after are
    left out there. scores: as for `population_shares`.
    """
    counts = partial(flow_counts, route=tuple(route), shown=frozenset(shown))
    return _added(_interests(scores).mapInArrow(counts, from_arrow_schema(FLOWS)), STEP, FROM, TO)


def _interests(scores: DataFrame) -> DataFrame:
    return scores.where(F.col(c.PROVENANCE).isin(*BY_MODEL)).select(c.INTERESTS)


def _added(parts: DataFrame, *keys: str) -> list[Row]:
    """What the tasks found, added up over them: where categories are many, each task has met others."""
    values = (F.sum(name).alias(name) for name in parts.columns if name not in keys)
    return [row.asDict() for row in parts.groupBy(*keys).agg(*values).collect()]


def weeks_and_hours(events: DataFrame, n_partitions: int) -> tuple[list[Row], list[Row]]:
    """Rows of week, category_id, share, events, and rows of hour, count.

    share: the mean over the users active in a week of the share of their events, both without those that have no
    category. week: its Monday, a date (UTC). hour: 0 = Monday 00:00 UTC … 167. events: as `flat_events`; n_partitions:
    of users, each held whole in a Python worker.
    """
    narrow = events.select(c.USER_ID, c.CATEGORY_ID, F.unix_micros(c.EVENT_TIME).alias("time_us"))
    parts = narrow.repartition(n_partitions, c.USER_ID).mapInArrow(event_sums, from_arrow_schema(EVENT_SUMS))
    rows = _added(parts, WEEK, c.CATEGORY_ID, c.HOUR)
    hours = [{c.HOUR: row[c.HOUR], "count": row[c.EVENTS]} for row in rows if row[c.HOUR] is not None]
    active = {row[WEEK]: row[USERS] for row in rows if row[WEEK] is not None and row[c.CATEGORY_ID] is None}
    weeks = [
        {
            WEEK: date(1970, 1, 1) + timedelta(days=row[WEEK]),
            c.CATEGORY_ID: row[c.CATEGORY_ID],
            c.SHARE: row[c.SHARE] / active[row[WEEK]],
            c.EVENTS: row[c.EVENTS],
        }
        for row in rows
        if row[c.CATEGORY_ID] is not None
    ]
    return weeks, hours


def activity(events: DataFrame) -> DataFrame:
    """(events, users): how many users have so many events. events: with user_id."""
    counts = events.groupBy(c.USER_ID).agg(F.count(F.lit(1)).alias(c.EVENTS))
    return counts.groupBy(c.EVENTS).agg(F.count(F.lit(1)).alias(USERS))


def reason_samples(rejected: DataFrame, n: int) -> DataFrame:
    """(reason, raw): at most n rows of each reason, always the same ones. rejected: `rejected_events_v1`."""
    order = Window.partitionBy(c.REASON).orderBy(F.xxhash64(c.RAW), c.RAW)
    return rejected.withColumn("_rank", F.row_number().over(order)).where(F.col("_rank") <= n).select(c.REASON, c.RAW)
