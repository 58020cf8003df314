"""What the report shows of interests and activity: small frames, aggregated over users before anything leaves Spark."""

import math
from collections import Counter
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
    SUM_NAMES,
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
    rows = _interests(scores).mapInArrow(sums, from_arrow_schema(INTEREST_SUMS)).collect()
    of: dict[tuple[str | None, int], dict[str, float]] = {}
    for row in rows:
        added = of.setdefault((row[c.CATEGORY_ID], row[STEP]), dict.fromkeys((USERS, *SUM_NAMES), 0))
        for name in added:
            added[name] += row[name]
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
    users: Counter[tuple[int, str, str]] = Counter()
    for row in _interests(scores).mapInArrow(counts, from_arrow_schema(FLOWS)).collect():
        users[row[STEP], row[FROM], row[TO]] += row[USERS]
    return [{STEP: step, FROM: name, TO: to, USERS: n} for (step, name, to), n in users.items()]


def _interests(scores: DataFrame) -> DataFrame:
    return scores.where(F.col(c.PROVENANCE).isin(*BY_MODEL)).select(c.INTERESTS)


def weeks_and_hours(events: DataFrame) -> tuple[list[Row], list[Row]]:
    """Rows of week, category_id, share, events, and rows of hour, count.

    share: the mean over the users active in a week of the share of their events, both without those that have no
    category. week: its Monday, a date (UTC). hour: 0 = Monday 00:00 UTC … 167. events: as `flat_events`.
    """
    narrow = events.select(c.USER_ID, c.CATEGORY_ID, F.unix_micros(c.EVENT_TIME).alias("time_us"))
    weeks: dict[tuple[int, str], list[float]] = {}
    active: Counter[int] = Counter()
    hours: Counter[int] = Counter()
    for row in narrow.repartition(c.USER_ID).mapInArrow(event_sums, from_arrow_schema(EVENT_SUMS)).collect():
        if row[WEEK] is None:
            hours[row[c.HOUR]] += row[c.EVENTS]
        elif row[c.CATEGORY_ID] is None:
            active[row[WEEK]] += row[USERS]
        else:
            of = weeks.setdefault((row[WEEK], row[c.CATEGORY_ID]), [0.0, 0])
            weeks[row[WEEK], row[c.CATEGORY_ID]] = [of[0] + row[c.SHARE], of[1] + row[c.EVENTS]]
    by_week = [
        {
            WEEK: date(1970, 1, 1) + timedelta(days=week), c.CATEGORY_ID: name, c.SHARE: share / active[week],
            c.EVENTS: int(n),
        }
        for (week, name), (share, n) in weeks.items()
    ]  # fmt: skip
    return by_week, [{c.HOUR: hour, "count": n} for hour, n in hours.items()]


def activity(events: DataFrame) -> DataFrame:
    """(events, users): how many users have so many events. events: with user_id."""
    counts = events.groupBy(c.USER_ID).agg(F.count(F.lit(1)).alias(c.EVENTS))
    return counts.groupBy(c.EVENTS).agg(F.count(F.lit(1)).alias(USERS))


def reason_samples(rejected: DataFrame, n: int) -> DataFrame:
    """(reason, raw): at most n rows of each reason, always the same ones. rejected: `rejected_events_v1`."""
    order = Window.partitionBy(c.REASON).orderBy(F.xxhash64(c.RAW), c.RAW)
    return rejected.withColumn("_rank", F.row_number().over(order)).where(F.col("_rank") <= n).select(c.REASON, c.RAW)
