"""Sequences in layers: a night writes the rows of the users it touched, the rows of the others stay where they are."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import SEQUENCES, ContractError
from features.events import midnight
from jobs.store import Manifest, Store

_MADE_BY = "jobs/sequences.py"


def layers_of(store: Store, dt: date | str) -> list[Manifest]:
    """Manifests of `sequences_v1` from a day back to the last one that holds every user.

    Raises:
        ContractError: one is missing or torn, or was replaced after the next one had been laid on it.
    """
    layers = [store.check(SEQUENCES, dt, _MADE_BY)]
    while (below := earlier_layer(layers[-1])) is not None:
        day, expected = below
        layer = store.check(SEQUENCES, day, _MADE_BY)
        if layer.hash != expected:
            raise ContractError(
                f"{store.path(SEQUENCES.name, layers[-1].dt)} was laid on {SEQUENCES.name} of {day} as it was before "
                f"{day} was run again. Run {_MADE_BY} for {layers[-1].dt} again."
            )
        layers.append(layer)
    return layers


def earlier_layer(sequences: Manifest) -> tuple[str, str] | None:
    """Day and hash of the layer that this one lies on, or None where it holds every user."""
    found = [(key.rpartition("/")[2], value) for key, value in sequences.inputs.items() if key.startswith(_PREFIX)]
    return found[0] if found else None


def read_sequences(spark: SparkSession, store: Store, dt: date) -> DataFrame:
    """`sequences_v1` as of a day, every user once, whatever layers it lies in."""
    layers = layers_of(store, dt)
    frames = _frames(spark, store, layers)
    if len(frames) == 1:
        return frames[0]
    newer = _latest(frames[:-1])
    untouched = frames[-1].join(newer.select(c.USER_ID), c.USER_ID, "left_anti")
    return _as_of(newer.unionByName(untouched).where(F.col(c.LENGTH) > 0), layers[0], dt)


def rows_since(
    spark: SparkSession,
    store: Store,
    layers: Sequence[Manifest],
    day: str,
    silence_s: int,
    always: DataFrame | None = None,
) -> DataFrame:
    """Of `sequences_v1` the rows of users whose events changed since a layer below, or who fell silent since then.

    layers: `layers_of`; day: that of one of them. Silent: the last event lay within silence_s before the end of that
    day. always: user_id of others whose rows are wanted whatever happened. A row of length 0 says that nothing is left
    of a user.
    """
    dt, cutoff = date.fromisoformat(layers[0].dt), midnight(date.fromisoformat(day) + timedelta(days=1))
    newer = _latest(_frames(spark, store, [layer for layer in layers if layer.dt > day]))
    # Who was heard of within that time was touched by the run of its first day or a later one.
    since = cutoff - timedelta(seconds=silence_s)
    below = [layer for layer in layers if layer.dt <= day and (always is not None or str(since.date()) <= layer.dt)]
    wanted = F.col(c.LAST_TIME) >= F.lit(since)
    kept = _latest(_frames(spark, store, below)).where(F.col(c.LENGTH) > 0)
    if always is not None:
        marked = always.select(c.USER_ID, F.lit(True).alias("_always"))
        kept = kept.join(marked, on=c.USER_ID, how="left")
        wanted |= F.col("_always").isNotNull()
    ended = kept.where(wanted).select(*SEQUENCES.schema.names)
    rows = newer.unionByName(ended.join(newer.select(c.USER_ID), c.USER_ID, "left_anti"))
    return _as_of(rows, layers[0], dt)


def unknown_users(
    spark: SparkSession, store: Store, layers: Sequence[Manifest], n_items: int, n_categories: int
) -> DataFrame:
    """user_id of those with a row in one of these layers that holds no known id, perhaps beside one that does.

    n_items, n_categories: sizes of a model's vocabularies; ids from there on are younger than it.
    """

    def knows(channel: str, size: int) -> Column:
        return F.exists(channel, lambda number: (number >= c.FIRST_ID) & (number < size))

    known = knows(c.ITEM, n_items) | knows(c.CATEGORY, n_categories)
    frames = [frame.select(c.USER_ID, c.LENGTH, c.ITEM, c.CATEGORY) for frame in _frames(spark, store, layers)]
    rows = frames[0]
    for frame in frames[1:]:
        rows = rows.unionByName(frame)
    return rows.where((F.col(c.LENGTH) > 0) & ~known).select(c.USER_ID).distinct()


def _frames(spark: SparkSession, store: Store, layers: Sequence[Manifest]) -> list[DataFrame]:
    return [spark.read.schema(SEQUENCES.schema).parquet(store.path(SEQUENCES.name, layer.dt)) for layer in layers]


def _latest(frames: Sequence[DataFrame]) -> DataFrame:
    """Each user's row in the first of these layers that has one; latest layer first."""
    if len(frames) == 1:
        return frames[0]
    rows = frames[0].withColumn("_age", F.lit(0))
    for age, frame in enumerate(frames[1:], start=1):
        rows = rows.unionByName(frame.withColumn("_age", F.lit(age)))
    latest = rows.groupBy(c.USER_ID).agg(F.min("_age").alias("_age"))
    return rows.join(latest, [c.USER_ID, "_age"]).drop("_age")


def _as_of(rows: DataFrame, sequences: Manifest, dt: date) -> DataFrame:
    edges_s = [int(edge) for edge in sequences.counters["gap_edges_s"]]
    return at_the_end_of(rows, dt, edges_s).select(*SEQUENCES.schema.names)


def at_the_end_of(rows: DataFrame, dt: date, edges_s: Sequence[int]) -> DataFrame:
    """Rows of sequences_v1 with the one column that moves with the day: `next_gap`, the silence up to its end."""
    return rows.withColumn(c.NEXT_GAP, _gap_until(midnight(dt + timedelta(days=1)), edges_s))


def _gap_until(cutoff: datetime, edges_s: Sequence[int]) -> Column:
    """The gap code of (cutoff - last_time), as `features.windows.gap_codes` gives it."""
    gap_us = F.unix_micros(F.lit(cutoff)) - F.unix_micros(c.LAST_TIME)
    code = F.lit(c.FIRST_GAP)
    for edge in edges_s:
        code = code + (gap_us > F.lit(edge * c.MICROS)).cast("int")
    return code


_PREFIX = f"{SEQUENCES.name}/"
