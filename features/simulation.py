"""A simulated behaviour log with a known truth, made by Spark at any size. Formulas: docs/simulation.md."""

import math
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from features import columns as c
from features import simulated_truth as truth
from features.contracts import SIMULATED_TRUTH, conform
from features.simulated_dirt import (
    DAY_MS,
    HEAVY_SLICE,
    KINDS,
    DirtSpec,
    Rows,
    bot,
    category_tokens,
    heavy_user,
    item_tokens,
    lines,
    logged,
    user_token,
)
from features.simulated_future import Future, Outlook
from features.simulated_lives import Window, live
from features.simulated_process import Count, Floats, Process, ProcessSpec, process_of

LINE = "line"
ARRIVAL_MS = "arrival_ms"
LATE_DAYS = "late_days"
AHEAD = "ahead"
SKEWED = "skewed"
TRUE_ITEMS = 100  # items kept in the truth, of each kind
_LOG_SCHEMA = (
    f"{LINE} string, {c.DT} date, {ARRIVAL_MS} long, {c.KIND} byte, {LATE_DAYS} int, {SKEWED} boolean, {AHEAD} boolean"
)
_BATCH_ROWS = 50_000  # rows a task holds at once
_BATCH_USERS = 500  # users of the truth a task holds at once


class SimulationSpec(BaseModel):
    """A simulated log: its size, its hidden process and its dirt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(ge=0, description="the same seed and settings give the same log, on any machine")
    users: Count = Field(description="users of the process; some do nothing in the log's days")
    days: Count = Field(description="UTC days of the log, the run's day included")
    process: ProcessSpec
    dirt: DirtSpec

    @property
    def bots(self) -> int:
        """Number of bots."""
        return math.ceil(self.users * self.dirt.bots)

    def window(self, last: date) -> Window:
        """The days of a log that ends with the day `last`."""
        end_ms = midnight_ms(last + timedelta(days=1))
        return Window(end_ms - self.days * DAY_MS, end_ms)

    def expected_rows(self, process: Process) -> float:
        """Rows that the process is expected to make, heavy user and dirt aside; sessions cut by the end count whole."""
        days = self.days * (1.0 - self.process.late_joiners / 2.0)
        return self.users * days * self.process.sessions_per_day * process.mean_length


def midnight_ms(day: date) -> int:
    """00:00 UTC of a day in milliseconds since the epoch."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000


def log_lines(spark: SparkSession, spec: SimulationSpec, gap_s: float, last: date, n_tasks: int) -> DataFrame:
    """Every line of the log, one row of the CSV with the columns RAW_COLUMNS, and what is known of it.

    DT: the day it arrives. KIND: position in KINDS. LATE_DAYS: days from event_time's day to DT. SKEWED: the
    device's clock is wrong. AHEAD: event_time lies after ingest_time. The lines depend on the spec and the last
    day, not on `n_tasks`.
    """
    window = spec.window(last)

    def kernel(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        process = process_of(spec.process, gap_s, spec.seed)
        waiting: list[Rows] = []
        for batch in batches:
            for task in batch.column(0).to_pylist():
                for rows in _units(spec, process, window, range(task, _n_units(spec, process), n_tasks)):
                    waiting.append(rows)
                    if sum(len(unit.kind) for unit in waiting) >= _BATCH_ROWS:
                        yield _log_batch(waiting, process)
                        waiting = []
        if waiting:
            yield _log_batch(waiting, process)

    return spark.range(0, n_tasks, 1, n_tasks).mapInArrow(kernel, _LOG_SCHEMA)


def line_counters(spec: SimulationSpec) -> dict[str, Column]:
    """Aggregates for an Observation on log_lines: lines by kind, late rows by days, skewed rows, rows ahead."""
    counters = {kind: F.sum((F.col(c.KIND) == code).cast("long")) for code, kind in enumerate(KINDS)}
    for days in range(1, spec.dirt.late_days + 2):  # a slow clock can add a day
        counters[f"late_{days}"] = F.sum((F.col(LATE_DAYS) == days).cast("long"))
    return {**counters, **{flag: F.sum(F.col(flag).cast("long")) for flag in (SKEWED, AHEAD)}}


def simulated_truth(
    spark: SparkSession,
    spec: SimulationSpec,
    gap_s: float,
    last: date,
    cutoff: date,
    horizons_days: tuple[int, ...],
    n_tasks: int,
) -> DataFrame:
    """The truth as of `cutoff` 00:00 UTC as `simulated_truth_v1`: users of the process with an event before it."""
    window, cutoff_ms = spec.window(last), midnight_ms(cutoff)

    def kernel(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        outlook = Outlook(process_of(spec.process, gap_s, spec.seed), window, cutoff_ms, horizons_days)
        for batch in batches:
            for task in batch.column(0).to_pylist():
                users = range(task, spec.users, n_tasks)
                for at in range(0, len(users), _BATCH_USERS):
                    yield _truth_batch(outlook, spec.seed, users[at : at + _BATCH_USERS])

    schema = T.StructType([field for field in SIMULATED_TRUTH.schema.fields if field.name != c.AS_OF])
    rows = spark.range(0, n_tasks, 1, n_tasks).mapInArrow(kernel, schema)
    return conform(rows.withColumn(c.AS_OF, F.timestamp_millis(F.lit(cutoff_ms))), SIMULATED_TRUTH)


def _n_units(spec: SimulationSpec, process: Process) -> int:
    return spec.users + spec.bots + math.ceil(_heavy_rows(spec, process) / HEAVY_SLICE)


def _heavy_rows(spec: SimulationSpec, process: Process) -> int:
    share = spec.dirt.heavy_user
    return round(spec.expected_rows(process) * share / (1.0 - share))


def _units(spec: SimulationSpec, process: Process, window: Window, numbers: range) -> Iterator[Rows]:
    """Rows of each unit: first the users, then the bots, then the slices of the heavy user."""
    for number in numbers:
        if number < spec.users:
            yield logged(live(process, window, spec.seed, number), spec.dirt, window, spec.seed, number)
        elif number < spec.users + spec.bots:
            yield bot(process, spec.dirt, window, spec.seed, number - spec.users)
        else:
            part = number - spec.users - spec.bots
            yield heavy_user(process, window, spec.seed, _heavy_rows(spec, process), part)


def _log_batch(waiting: list[Rows], process: Process) -> pa.RecordBatch:
    text, rows = lines(waiting, process)
    arrival_day = rows.ingest_ms // DAY_MS
    return pa.RecordBatch.from_pydict(
        {
            LINE: text,
            c.DT: pa.array(arrival_day.astype(np.int32), pa.int32()).cast(pa.date32()),
            ARRIVAL_MS: pa.array(rows.ingest_ms),
            c.KIND: pa.array(rows.kind),
            LATE_DAYS: pa.array((arrival_day - rows.event_ms // DAY_MS).astype(np.int32)),
            SKEWED: pa.array(rows.skewed),
            AHEAD: pa.array(rows.event_ms > rows.ingest_ms),
        }
    )


def _truth_batch(outlook: Outlook, seed: int, users: range) -> pa.RecordBatch:
    process, window, cutoff_ms = outlook.process, outlook.window, outlook.cutoff_ms
    names: list[str] = []
    categories: dict[str, list[Floats]] = {c.LATENT_CATEGORIES: [], c.ORACLE_CATEGORIES: []}
    items: dict[str, list[Floats]] = {c.LATENT_ITEMS: [], c.ORACLE_ITEMS: []}
    futures: dict[str, list[Future]] = {c.LATENT_FUTURE: [], c.ORACLE_FUTURE: []}
    for user in users:
        life = live(process, window, seed, user).before(cutoff_ms)
        if len(life.time_ms) == 0:
            continue
        names.append(user_token(user))
        certain, belief = truth.certain(process, life), truth.belief(process, life)
        futures[c.LATENT_FUTURE] += outlook.futures(certain, outlook.true_rate(life), life)
        futures[c.ORACLE_FUTURE] += outlook.futures(belief, outlook.observed_rate(life), life)
        for state, category_column, item_column in (
            (certain, c.LATENT_CATEGORIES, c.LATENT_ITEMS),
            (belief, c.ORACLE_CATEGORIES, c.ORACLE_ITEMS),
        ):
            category = truth.next_categories(process, state, life, cutoff_ms)
            categories[category_column].append(category)
            items[item_column].append(truth.next_items(process, category, life))
    of_category, of_item = pa.array(category_tokens(process)), pa.array(item_tokens(process))
    return pa.RecordBatch.from_pydict(
        {
            c.USER_ID: pa.array(names, pa.string()),
            **{n: _falling(p, of_category, c.CATEGORY_ID, process.categories) for n, p in categories.items()},
            **{n: _falling(p, of_item, c.ITEM_ID, TRUE_ITEMS) for n, p in items.items()},
            **{n: _futures(found, of_category, len(outlook.starts)) for n, found in futures.items()},
        }
    )


def _futures(found: list[Future], tokens: pa.Array, n_horizons: int) -> pa.Array:
    """Each user's futures, one a horizon, their categories falling by probability → [users] of lists."""
    interests = _falling([one.interests for one in found], tokens, c.CATEGORY_ID, len(tokens))
    orders = [truth.strongest(one.interests, len(tokens)) for one in found]
    touched = np.concatenate(
        [*(one.touched[order] for one, order in zip(found, orders, strict=True)), np.empty(0)]
    ).astype(np.float32)
    names = [c.CATEGORY_ID, c.PROBABILITY]
    categories = pa.StructArray.from_arrays(
        [*(interests.values.field(name) for name in names), pa.array(touched)], names=[*names, c.TOUCHED]
    )
    entries = pa.StructArray.from_arrays(
        [
            pa.array([one.days for one in found], pa.int32()),
            pa.array([one.returns for one in found], pa.float32()),
            pa.ListArray.from_arrays(interests.offsets, categories),
        ],
        names=[c.HORIZON_DAYS, c.RETURNS, c.CATEGORIES],
    )
    offsets = np.arange(0, len(found) + 1, n_horizons, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), entries)


def _falling(rows: list[Floats], tokens: pa.Array, name: str, k: int) -> pa.Array:
    """The k likeliest tokens of each row with their probabilities, falling, ties by token → [rows] of lists."""
    k = min(k, len(tokens))
    chosen = [truth.strongest(row, k) for row in rows]
    position = np.concatenate([*chosen, np.empty(0, dtype=np.int64)])
    value = np.concatenate([*(row[kept] for row, kept in zip(rows, chosen, strict=True)), np.empty(0)])
    pairs = pa.StructArray.from_arrays(
        [tokens.take(pa.array(position)), pa.array(value.astype(np.float32))], names=[name, c.PROBABILITY]
    )
    return pa.ListArray.from_arrays(pa.array(np.arange(len(rows) + 1, dtype=np.int32) * k), pairs)
