"""What the report shows of interests and activity: small frames, aggregated over users before anything leaves Spark.

A step is where an interest stands: PAST (the user's latest events), NEXT (the next event), or a number of days ahead.
"""

from collections.abc import Sequence
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from features import columns as c
from features.rungs import BY_MODEL

STEP, SHARE, MOVE, WEEK, USERS = "step", c.SHARE, c.MOVE, "week", "users"
PAST, NEXT = -1, 0
FROM, TO = "from", "to"
OTHERS = "all others"
_Z = 1.96  # two-sided 95 % of a normal distribution: means over thousands of users are close to one


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


def interest_steps(scores: DataFrame) -> DataFrame:
    """(user_id, category_id, step, share) of every listed interest of the users whom the model knows.

    scores: `scores_v1`. Steps ahead are there where the model has heads for them; an interest that is listed twice
    within one step would be counted twice, which the table rules out.
    """
    known = scores.where(F.col(c.PROVENANCE).isin(*BY_MODEL))
    listed = known.select(c.USER_ID, F.explode(c.INTERESTS).alias("i"))

    def at(step: Column, share: Column) -> Column:
        return F.struct(step.cast("int").alias(STEP), share.cast("double").alias(SHARE))

    points = F.array(at(F.lit(PAST), F.col(f"i.{c.PAST_SHARE}")), at(F.lit(NEXT), F.col(f"i.{c.PROBABILITY}")))
    told = F.filter(f"i.{c.DAYS_AHEAD}", lambda a: a[c.SHARE].isNotNull())
    points = F.concat(points, F.transform(told, lambda a: at(a[c.DAYS], a[c.SHARE])))
    rows = listed.select(c.USER_ID, F.col(f"i.{c.CATEGORY_ID}").alias(c.CATEGORY_ID), F.explode(points).alias("p"))
    return rows.select(c.USER_ID, c.CATEGORY_ID, f"p.{STEP}", f"p.{SHARE}")


def population_shares(steps: DataFrame, background: DataFrame) -> DataFrame:
    """(category_id, step, share, share_low, share_high, move, low, high, users): interests of the mean user.

    A user's row lists some interests only. What is left to 1 belongs to those not listed, in proportion to the
    background; so shares of a step sum to 1 over the categories of the background. share: mean over users. move: mean
    of (share at the step - share in the past), 0 for PAST itself; low, high and share_low, share_high: 95 % intervals
    of the two means over users (normal approximation). users: who list the interest.

    steps: as `interest_steps`. background: (category_id, share), unique, summing to 1; an interest that it does not
    hold has a background of 0.
    """
    # Spread by user once, which serves both windows; a join for each sum would shuffle as often as there are sums.
    past = F.max(F.when(F.col(STEP) == PAST, F.col(SHARE))).over(Window.partitionBy(c.USER_ID, c.CATEGORY_ID))
    of_user = Window.partitionBy(c.USER_ID, STEP)

    def rest(share: str) -> Column:
        """What an unlisted category gets for each unit of its background."""
        left = F.greatest(F.lit(1.0) - F.sum(share).over(of_user), F.lit(0.0))
        room = F.lit(1.0) - F.sum("base").over(of_user)
        return F.when(room > 1e-9, left / room).otherwise(F.lit(0.0))

    rows = (
        steps.repartition(c.USER_ID)
        .withColumn("past", past)
        .where(F.col("past").isNotNull())
        .join(F.broadcast(background.select(c.CATEGORY_ID, F.col(SHARE).alias("base"))), on=c.CATEGORY_ID, how="left")
        .withColumn("base", F.coalesce("base", F.lit(0.0)))
        .withColumn(MOVE, F.col(SHARE) - F.col("past"))
        .withColumn("w", rest(SHARE))
        .withColumn("dw", F.col("w") - rest("past"))
        .withColumn("once", (F.row_number().over(of_user.orderBy(c.CATEGORY_ID)) == 1).cast("double"))
    )
    listed = rows.groupBy(c.CATEGORY_ID, STEP).agg(
        F.first("base").alias("base"),
        F.count(F.lit(1)).alias(USERS),
        *(F.sum(x).alias(f"sum_{x}") for x in (SHARE, MOVE, "w", "dw")),
        *(F.sum(F.col(x) * F.col(x)).alias(f"sum_{x}2") for x in (SHARE, MOVE, "w", "dw")),
        F.sum("once").alias("n"),
        *(F.sum(F.col("once") * F.col(x)).alias(f"all_{x}") for x in ("w", "dw")),
        *(F.sum(F.col("once") * F.col(x) * F.col(x)).alias(f"all_{x}2") for x in ("w", "dw")),
    )
    of_step = Window.partitionBy(STEP)  # each user counted once, in whichever category that was
    every = ("n", "all_w", "all_dw", "all_w2", "all_dw2")
    listed = listed.withColumns({name: F.sum(name).over(of_step) for name in every})

    def mean_and_half(mine: str, rest_of: str) -> tuple[Column, Column]:
        b, n = F.col("base"), F.col("n")
        total = F.col(f"sum_{mine}") + b * (F.col(f"all_{rest_of}") - F.col(f"sum_{rest_of}"))
        squares = F.col(f"sum_{mine}2") + b * b * (F.col(f"all_{rest_of}2") - F.col(f"sum_{rest_of}2"))
        mean = total / n
        variance = F.greatest(squares / n - mean * mean, F.lit(0.0))
        return mean, F.lit(_Z) * F.sqrt(variance / n)

    (share, share_half), (move, move_half) = mean_and_half(SHARE, "w"), mean_and_half(MOVE, "dw")
    return listed.select(
        c.CATEGORY_ID, STEP, share.alias(SHARE), (share - share_half).alias("share_low"),
        (share + share_half).alias("share_high"), move.alias(MOVE), (move - move_half).alias("low"),
        (move + move_half).alias("high"), USERS,
    )  # fmt: skip


def interest_flows(steps: DataFrame, route: Sequence[int], shown: Sequence[str]) -> DataFrame:
    """(step, from, to, users): main interests of users, at each step of the route and at the one after it.

    A user's main interest at a step is the one of the greatest share, ties broken by name; OTHERS for those that are
    not shown. route: two steps or more. step: where the flow starts. Users without an interest at the step after are
    left out there.
    """
    name = F.when(F.col(c.CATEGORY_ID).isin(list(shown)), F.col(c.CATEGORY_ID)).otherwise(F.lit(OTHERS))
    greatest = F.min(F.struct(-F.col(SHARE), c.CATEGORY_ID))[c.CATEGORY_ID]
    mains = (
        steps.where(F.col(STEP).isin(list(route)))
        .groupBy(c.USER_ID, STEP)
        .agg(greatest.alias(c.CATEGORY_ID))
        .groupBy(c.USER_ID)
        .agg(F.map_from_entries(F.collect_list(F.struct(STEP, name))).alias("main"))
    )

    def flow(at: int, after: int) -> Column:
        main = F.col("main")
        return F.struct(F.lit(at).alias(STEP), main[F.lit(at)].alias(FROM), main[F.lit(after)].alias(TO))

    flows = mains.select(F.inline(F.array(*(flow(at, after) for at, after in pairwise(route)))))
    known = flows.where(F.col(FROM).isNotNull() & F.col(TO).isNotNull())
    return known.groupBy(STEP, FROM, TO).agg(F.count(F.lit(1)).alias(USERS))


def weekly_shares(events: DataFrame) -> DataFrame:
    """(week, category_id, share, events): the mean over the users active in a week of the share of their events.

    week: its Monday, a date (UTC). Events without a category are left out. events: as `flat_events`.
    """
    week = F.to_date(F.date_trunc("week", c.EVENT_TIME))
    known = events.where(F.col(c.CATEGORY_ID).isNotNull()).withColumn(WEEK, week)
    mine = known.groupBy(WEEK, c.USER_ID, c.CATEGORY_ID).count()
    one = F.struct(c.CATEGORY_ID, F.col("count").alias(c.EVENTS))
    users = mine.groupBy(WEEK, c.USER_ID).agg(F.collect_list(one).alias("of"), F.sum("count").alias("all"))
    rows = users.select(WEEK, "all", F.posexplode("of").alias("place", "one")).select(WEEK, "all", "place", "one.*")
    sums = rows.groupBy(WEEK, c.CATEGORY_ID).agg(
        F.sum(F.col(c.EVENTS) / F.col("all")).alias("sum"),
        F.sum(c.EVENTS).alias(c.EVENTS),
        F.sum((F.col("place") == 0).cast("long")).alias(USERS),  # each user once, in whichever category
    )
    active = F.sum(USERS).over(Window.partitionBy(WEEK))
    return sums.select(WEEK, c.CATEGORY_ID, (F.col("sum") / active).alias(SHARE), c.EVENTS)


def hour_counts(events: DataFrame) -> DataFrame:
    """(hour, count): events of each hour of the week, 0 = Monday 00:00 UTC … 167. events: with event_time."""
    hour = F.weekday(c.EVENT_TIME) * 24 + F.hour(c.EVENT_TIME)
    return events.groupBy(hour.alias(c.HOUR)).count()


def activity(events: DataFrame) -> DataFrame:
    """(events, users): how many users have so many events. events: with user_id."""
    counts = events.groupBy(c.USER_ID).agg(F.count(F.lit(1)).alias(c.EVENTS))
    return counts.groupBy(c.EVENTS).agg(F.count(F.lit(1)).alias(USERS))


def reason_samples(rejected: DataFrame, n: int) -> DataFrame:
    """(reason, raw): at most n rows of each reason, always the same ones. rejected: `rejected_events_v1`."""
    order = Window.partitionBy(c.REASON).orderBy(F.xxhash64(c.RAW), c.RAW)
    return rejected.withColumn("_rank", F.row_number().over(order)).where(F.col("_rank") <= n).select(c.REASON, c.RAW)


def sessions_of(events: DataFrame, users: Sequence[str], gap_s: int) -> DataFrame:
    """Sessions of a few users, for a timeline. See `flat_events` for events; a silence beyond gap_s starts one.

    (user_id, start, n_events, categories: the three most frequent of them, actions: distinct ones, last_item).
    """
    mine = events.where(F.col(c.USER_ID).isin(list(users)))
    order = Window.partitionBy(c.USER_ID).orderBy(c.EVENT_TIME, c.EVENT_ID)
    silent = F.unix_micros(c.EVENT_TIME) - F.unix_micros(F.lag(c.EVENT_TIME).over(order)) > gap_s * c.MICROS
    numbered = mine.withColumn("_s", F.sum(F.coalesce(silent.cast("int"), F.lit(0))).over(order))
    by_category = numbered.groupBy(c.USER_ID, "_s", c.CATEGORY_ID).agg(
        F.count(F.lit(1)).alias("n"),
        F.min(c.EVENT_TIME).alias("start"),
        F.collect_set(c.ACTION).alias("did"),
        F.max(F.struct(c.EVENT_TIME, c.EVENT_ID, c.ITEM_ID)).alias("last"),
    )
    ranked = F.sort_array(F.collect_list(F.struct(-F.col("n"), c.CATEGORY_ID)))
    return by_category.groupBy(c.USER_ID, "_s").agg(
        F.min("start").alias("start"),
        F.sum("n").alias(c.N_EVENTS),
        F.transform(F.slice(ranked, 1, 3), lambda pair: pair[c.CATEGORY_ID]).alias(c.CATEGORIES),
        F.array_sort(F.array_distinct(F.flatten(F.collect_list("did")))).alias("actions"),
        F.max("last")[c.ITEM_ID].alias("last_item"),
    )
