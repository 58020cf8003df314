"""Answers for users of whom the model knows nothing: from what they and others did in the last days, by token.

Their items and categories are younger than the model, so they have no ids; tokens of recent sessions take their place.
"""

from pydantic import BaseModel, ConfigDict, Field
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.window import Window

from features import columns as c
from features.rungs import (
    FALLBACK,
    FALLBACK_TYPE,
    LIKED_ITEMS,
    NEAR_CATEGORIES,
    NEAR_ITEMS,
    OWN_CATEGORIES,
    OWN_ITEMS,
    WEIGHT,
    Popular,
)

_DIGITS = 9  # sums of a shuffle differ behind that with the order of their parts
_OF, _BOTH, _REACH, _RANK = "_of", "_both", "_reach", "_rank"


class FallbackSpec(BaseModel):
    """What is looked at for users of whom the model knows nothing. Units and reasons are in conf/base.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recent_days: int = Field(ge=1)
    neighbours: int = Field(ge=1)
    least_users: int = Field(ge=1)
    session_items: int = Field(ge=2)
    back_off: float = Field(gt=0, lt=1)


def recent_events(sessions: DataFrame, since_us: int, until_us: int) -> DataFrame:
    """Events of sessions from one instant to before another: user_id, session_id, item_id, category_id."""
    events = sessions.select(c.USER_ID, c.SESSION_ID, F.explode(c.EVENTS).alias("event"))
    at_us = F.unix_micros(f"event.{c.EVENT_TIME}")
    recent = events.where((at_us >= F.lit(since_us)) & (at_us < F.lit(until_us)))
    return recent.select(c.USER_ID, c.SESSION_ID, f"event.{c.ITEM_ID}", f"event.{c.CATEGORY_ID}")


def popular(events: DataFrame, k_items: int, k_categories: int) -> Popular:
    """The most frequent tokens of recent events, with their shares; so many rows and no more come to the driver."""

    def most(token: str, k: int) -> tuple[tuple[str, float], ...]:
        counts = events.where(F.col(token).isNotNull()).groupBy(token).agg(F.count(F.lit(1)).alias(WEIGHT))
        share = F.col(WEIGHT) / F.lit(counts.agg(F.sum(WEIGHT)).collect()[0][0] or 1)
        rows = counts.withColumn(WEIGHT, share).orderBy(F.desc(WEIGHT), token).limit(k).collect()
        return tuple((row[token], float(row[WEIGHT])) for row in rows)

    return Popular(most(c.ITEM_ID, k_items), most(c.CATEGORY_ID, k_categories))


def fallbacks(users: DataFrame, events: DataFrame, spec: FallbackSpec, k_items: int) -> DataFrame:
    """What is known of each of some users: (user_id, fallback). users: user_id, unique; events: `recent_events`.

    own_items, own_categories: what they did, with counts of events. near_items: items that others had in one session
    with theirs, by the sum of similarities, and near_categories, those of these items. category_items: what is popular
    in their categories, by P(category | user) P(item | category). Lists hold k_items entries at most; a user without
    recent events has empty ones.
    """
    own = events.join(users, on=c.USER_ID, how="left_semi")
    votes = _votes(own, events, spec)
    parts = {
        OWN_ITEMS: own.groupBy(c.USER_ID).agg(F.array_sort(F.collect_set(c.ITEM_ID)).alias(OWN_ITEMS)),
        OWN_CATEGORIES: _listed(_counts(own), c.CATEGORY_ID, OWN_CATEGORIES, k_items),
        NEAR_ITEMS: _listed(votes, c.ITEM_ID, NEAR_ITEMS, k_items),
        NEAR_CATEGORIES: _listed(_categories_of(votes, events), c.CATEGORY_ID, NEAR_CATEGORIES, k_items),
        LIKED_ITEMS: _listed(_in_categories(own, events, k_items), c.ITEM_ID, LIKED_ITEMS, k_items),
    }
    joined = users
    for part in parts.values():
        joined = joined.join(part, on=c.USER_ID, how="left")
    filled = [
        F.coalesce(F.col(name), F.array().cast(FALLBACK_TYPE[name].dataType)).alias(name)
        for name in FALLBACK_TYPE.names
    ]
    return joined.select(c.USER_ID, F.struct(*filled).alias(FALLBACK))


def _votes(own: DataFrame, events: DataFrame, spec: FallbackSpec) -> DataFrame:
    """(user_id, item_id, weight): the similarities of items to the user's own ones, summed.

    Similarity is the cosine of the items' sets of users, counted within sessions: n(i, j) / sqrt(n(i) n(j)) (Sarwar et
    al. 2001, "Item-based collaborative filtering recommendation algorithms").
    """
    baskets = events.select(c.SESSION_ID, c.USER_ID, c.ITEM_ID).distinct()
    sizes = baskets.groupBy(c.SESSION_ID).agg(F.count(F.lit(1)).alias("_size"))
    baskets = baskets.join(sizes.where(F.col("_size") <= spec.session_items), on=c.SESSION_ID, how="left_semi")
    mine = own.select(c.USER_ID, F.col(c.ITEM_ID).alias(_OF)).distinct()
    asked = baskets.select(c.SESSION_ID, F.col(c.ITEM_ID).alias(_OF)).join(
        mine.select(_OF).distinct(), on=_OF, how="left_semi"
    )
    pairs = asked.join(baskets, on=c.SESSION_ID, how="inner").where(F.col(_OF) != F.col(c.ITEM_ID))
    counts = pairs.groupBy(_OF, c.ITEM_ID).agg(F.countDistinct(c.USER_ID).alias(_BOTH))
    reach = events.groupBy(c.ITEM_ID).agg(F.countDistinct(c.USER_ID).alias(_REACH))
    reach_of = reach.select(F.col(c.ITEM_ID).alias(_OF), F.col(_REACH).alias("_reach_of"))
    found = counts.where(F.col(_BOTH) >= spec.least_users).join(reach, on=c.ITEM_ID, how="inner")
    similar = found.join(reach_of, on=_OF, how="inner").select(
        _OF, c.ITEM_ID, (F.col(_BOTH) / F.sqrt(F.col(_REACH) * F.col("_reach_of"))).alias(WEIGHT)
    )
    ranked = Window.partitionBy(_OF).orderBy(F.desc(WEIGHT), c.ITEM_ID)
    near = similar.withColumn(_RANK, F.row_number().over(ranked)).where(F.col(_RANK) <= spec.neighbours)
    return mine.join(near, on=_OF, how="inner").groupBy(c.USER_ID, c.ITEM_ID).agg(F.sum(WEIGHT).alias(WEIGHT))


def _counts(own: DataFrame) -> DataFrame:
    """(user_id, category_id, weight): events of each category."""
    known = own.where(F.col(c.CATEGORY_ID).isNotNull())
    return known.groupBy(c.USER_ID, c.CATEGORY_ID).agg(F.count(F.lit(1)).cast("double").alias(WEIGHT))


def _categories_of(votes: DataFrame, events: DataFrame) -> DataFrame:
    """(user_id, category_id, weight): votes for items, given to the category that each item has most often."""
    pairs = events.where(F.col(c.CATEGORY_ID).isNotNull()).groupBy(c.ITEM_ID, c.CATEGORY_ID)
    counted = pairs.agg(F.count(F.lit(1)).alias("_n"))
    main = counted.groupBy(c.ITEM_ID).agg(F.max_by(c.CATEGORY_ID, F.struct("_n", c.CATEGORY_ID)).alias(c.CATEGORY_ID))
    return (
        votes.join(main, on=c.ITEM_ID, how="inner").groupBy(c.USER_ID, c.CATEGORY_ID).agg(F.sum(WEIGHT).alias(WEIGHT))
    )


def _in_categories(own: DataFrame, events: DataFrame, k_items: int) -> DataFrame:
    """(user_id, item_id, weight): P(category | user) P(item | category), over each category's k_items likeliest."""
    counts = _counts(own)
    shares = counts.withColumn("_share", F.col(WEIGHT) / F.sum(WEIGHT).over(Window.partitionBy(c.USER_ID))).drop(WEIGHT)
    asked = events.join(counts.select(c.CATEGORY_ID).distinct(), on=c.CATEGORY_ID, how="left_semi")
    reach = asked.groupBy(c.CATEGORY_ID, c.ITEM_ID).agg(F.countDistinct(c.USER_ID).alias(_REACH))
    of_category = Window.partitionBy(c.CATEGORY_ID)
    ranked = of_category.orderBy(F.desc(_REACH), c.ITEM_ID)
    best = reach.select(
        c.CATEGORY_ID,
        c.ITEM_ID,
        (F.col(_REACH) / F.sum(_REACH).over(of_category)).alias("_within"),
        F.row_number().over(ranked).alias(_RANK),
    ).where(F.col(_RANK) <= k_items)
    weight = F.sum(F.col("_share") * F.col("_within")).alias(WEIGHT)
    return shares.join(best, on=c.CATEGORY_ID, how="inner").groupBy(c.USER_ID, c.ITEM_ID).agg(weight)


def _listed(weights: DataFrame, token: str, name: str, k: int) -> DataFrame:
    """(user_id, list): each user's k heaviest tokens, ties by token. weights: (user_id, token, weight)."""
    entry = F.struct((-F.round(WEIGHT, _DIGITS)).alias("_falling"), F.col(token).alias(token))

    def turned(falling: Column) -> Column:
        return F.struct(falling[token].alias(token), (-falling["_falling"]).alias(WEIGHT))

    ordered = F.slice(F.array_sort(F.collect_list(entry)), 1, k)
    return weights.groupBy(c.USER_ID).agg(F.transform(ordered, turned).alias(name))
