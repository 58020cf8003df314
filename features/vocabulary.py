"""Vocabulary: token ↔ id for items and categories, by falling frequency, append-only from version to version."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from pydantic import BaseModel, ConfigDict, Field
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from features import columns as c

PARTITION = "partition"
_ROW_BITS = (1 << 33) - 1  # monotonically_increasing_id: the partition above, the row within it in the low 33 bits


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


def new_tokens(counts: DataFrame, known: DataFrame | None, min_count: int) -> DataFrame:
    """(kind, token, count) that get an id for the first time, in the order in which they get it.

    counts: (kind, token, count), unique by (kind, token). known: `vocabulary_v1`, unique likewise; None at the start.
    Order: kind, then falling count, then token. It is total, and holds within partitions and from each to the next.
    """
    frequent = counts.where(F.col(c.COUNT) >= min_count)
    if known is not None:
        frequent = frequent.join(known, on=[c.KIND, c.TOKEN], how="left_anti")
    return frequent.orderBy(c.KIND, F.desc(c.COUNT), c.TOKEN).select(c.KIND, c.TOKEN, c.COUNT)


def partition_sizes(tokens: DataFrame) -> DataFrame:
    """(partition, kind, count): how many rows of each kind a partition holds, where it holds any."""
    return tokens.groupBy(F.spark_partition_id().alias(PARTITION), c.KIND).count()


@dataclass(frozen=True)
class IdPlan:
    """The ids of new tokens, known before any of them is given.

    starts: position of each partition's first row among all rows. shifts: by kind, what makes an id of a position.
    ends: by kind, the first id that is not given. n_new: by kind, how many are given.
    """

    starts: tuple[int, ...]
    shifts: Mapping[str, int]
    ends: Mapping[str, int]
    n_new: Mapping[str, int]


def plan_ids(sizes: Iterable[tuple[int, str, int]], taken: Mapping[str, int], most: Mapping[str, int]) -> IdPlan:
    """Ids go on after the known ones and stop at the most there may be, each kind by itself.

    sizes: rows of `partition_sizes`. taken, most: by kind, how many ids are given already and may ever be.
    """
    by_partition, by_kind = Counter[int](), Counter[str]()
    for partition, kind, n_rows in sizes:
        by_partition[partition] += n_rows
        by_kind[kind] += n_rows
    n_partitions = max(by_partition, default=-1) + 1
    starts = accumulate((by_partition[k] for k in range(n_partitions)), initial=0)
    shifts, position = {}, 0
    for kind in sorted(most):  # the order of `new_tokens`
        shifts[kind] = c.FIRST_ID + taken[kind] - position
        position += by_kind[kind]
    ends = {kind: c.FIRST_ID + max(taken[kind], most[kind]) for kind in most}
    n_new = {kind: max(0, min(by_kind[kind], most[kind] - taken[kind])) for kind in most}
    return IdPlan(tuple(starts), shifts, ends, n_new)


def with_ids(tokens: DataFrame, plan: IdPlan) -> DataFrame:
    """New tokens as `vocabulary_v1`; those beyond the plan's ends are dropped. No row moves.

    tokens: rows of `new_tokens`, in the very partitions that the plan was made for.
    """
    in_partition = F.monotonically_increasing_id().bitwiseAND(F.lit(_ROW_BITS))
    position = F.array(*map(F.lit, plan.starts))[F.spark_partition_id()] + in_partition
    return (
        tokens.withColumn(c.ID, (position + _by_kind(plan.shifts)).cast("int"))
        .where(F.col(c.ID) < _by_kind(plan.ends))
        .select(c.KIND, c.TOKEN, c.ID, c.COUNT)
    )


def recounted(known: DataFrame, counts: DataFrame) -> DataFrame:
    """Known tokens with their ids as they are and their counts of today (0 where a token is gone).

    known: `vocabulary_v1`; counts: (kind, token, count); both unique by (kind, token).
    """
    today = counts.select(c.KIND, c.TOKEN, F.col(c.COUNT).alias("_today"))
    return known.join(today, on=[c.KIND, c.TOKEN], how="left").select(
        c.KIND, c.TOKEN, c.ID, F.coalesce("_today", F.lit(0)).cast("long").alias(c.COUNT)
    )


def _by_kind(values: Mapping[str, int]) -> Column:
    return F.when(F.col(c.KIND) == c.KIND_ITEM, F.lit(values[c.KIND_ITEM])).otherwise(F.lit(values[c.KIND_CATEGORY]))
