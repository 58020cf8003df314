"""Vocabulary: token ↔ id for items and categories, by falling frequency, append-only from version to version."""

from pydantic import BaseModel, ConfigDict, Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from features import columns as c


class VocabularySpec(BaseModel):
    """Which tokens get an id; the others are unknown (OOV)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_count: int = Field(ge=1, description="events a token needs to get an id")
    max_items: int = Field(gt=0, description="most item ids")
    max_categories: int = Field(gt=0, description="most category ids")


def count_tokens(events: DataFrame) -> DataFrame:
    """(kind, token, count) over events: one row for each item and each known category."""
    pairs = F.array(
        F.struct(F.lit(c.KIND_ITEM).alias(c.KIND), F.col(c.ITEM_ID).alias(c.TOKEN)),
        F.struct(F.lit(c.KIND_CATEGORY).alias(c.KIND), F.col(c.CATEGORY_ID).alias(c.TOKEN)),
    )
    return (
        events.select(F.inline(pairs))
        .where(F.col(c.TOKEN).isNotNull())
        .groupBy(c.KIND, c.TOKEN)
        .agg(F.count(F.lit(1)).alias(c.COUNT))
    )


def new_tokens(counts: DataFrame, known: DataFrame, kind: str, min_count: int, room: int) -> DataFrame:
    """(token, count) of one kind that get an id for the first time, in the order in which they get it.

    counts: (kind, token, count), unique by (kind, token). known: `vocabulary_v1`, unique likewise.
    Order: falling count, then token. At most `room` rows.
    """
    return (
        counts.where((F.col(c.KIND) == kind) & (F.col(c.COUNT) >= min_count))
        .join(known, on=[c.KIND, c.TOKEN], how="left_anti")
        .orderBy(F.desc(c.COUNT), c.TOKEN)
        .limit(room)
        .select(c.TOKEN, c.COUNT)
    )


def recounted(known: DataFrame, counts: DataFrame) -> DataFrame:
    """Known tokens with their ids as they are and their counts of today (0 where a token is gone).

    known: `vocabulary_v1`; counts: (kind, token, count); both unique by (kind, token).
    """
    today = counts.select(c.KIND, c.TOKEN, F.col(c.COUNT).alias("_today"))
    return known.join(today, on=[c.KIND, c.TOKEN], how="left").select(
        c.KIND, c.TOKEN, c.ID, F.coalesce("_today", F.lit(0)).cast("long").alias(c.COUNT)
    )
