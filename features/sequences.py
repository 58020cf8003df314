"""Sequences: what the model sees of a user, and what came after it, as of a cutoff."""

from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from features import columns as c
from features.contracts import TRAINING_SEQUENCES
from features.windows import SCORE, Cutoffs, build_partition

ENCODED_EVENT = T.StructType(
    [
        T.StructField(c.USER_ID, T.StringType(), False),
        T.StructField("time_us", T.LongType(), False),
        T.StructField(c.EVENT_ID, T.LongType(), False),
        T.StructField(c.ITEM, T.IntegerType(), False),
        T.StructField(c.CATEGORY, T.IntegerType(), False),
        T.StructField(c.ACTION_CODE, T.IntegerType(), False),
    ]
)
__all__ = ["SCORE", "SequencesSpec", "SplitSpec", "cutoffs_for", "encode_events", "flat_events", "user_windows"]


class SplitSpec(BaseModel):
    """What is held out, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Literal["global_time", "leave_one_out"]
    valid_days: int = Field(ge=1, description="global_time: days before the test days whose events validate")
    test_days: int = Field(ge=1, description="global_time: last days of the log, whose events test")
    embargo_days: int = Field(ge=0, description="global_time: days between a cutoff and its first label")


class SequencesSpec(BaseModel):
    """Length and coding of sequences, the split, and how training rows are laid out for the ranks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int = Field(ge=2, description="L, events a sequence holds")
    horizons_days: tuple[int, ...] = Field(description="horizons of future interests, days, rising")
    ahead_events: int = Field(ge=1, description="A, events after a window that are listed for labels")
    history_events: int = Field(ge=2, description="latest events of a user that are kept at all")
    gap_edges_s: tuple[int, ...] = Field(description="edges of the time-gap buckets, rising; holds sessions.gap_s")
    world_sizes: tuple[int, ...] = Field(description="numbers of ranks that training is planned for")
    row_group_mib: int = Field(gt=0, description="largest row group of a training file")
    partition_mib: int = Field(gt=0, description="input bytes in one shuffle partition")
    compact_share: float = Field(gt=0, description="bytes of the runs since, against histories_v1, before a new one")
    compact_runs: int = Field(ge=1, description="runs on top of one histories_v1 at most")
    split: SplitSpec

    @field_validator("gap_edges_s")
    @classmethod
    def _rising(cls, edges: tuple[int, ...]) -> tuple[int, ...]:
        if list(edges) != sorted(set(edges)) or not edges or edges[0] < 1:
            raise ValueError("edges must rise and be at least 1 s")
        return edges

    @field_validator("horizons_days")
    @classmethod
    def _horizons_rise(cls, days: tuple[int, ...]) -> tuple[int, ...]:
        if list(days) != sorted(set(days)) or not days or days[0] < 1:
            raise ValueError("horizons must rise and be at least 1 day")
        return days

    @field_validator("world_sizes")
    @classmethod
    def _positive(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes or min(sizes) < 1:
            raise ValueError("name one number of ranks or more, each at least 1")
        return sizes

    def coding(self, gap_s: int) -> dict[str, int | list[int]]:
        """What a model must know of the coding of sequences; for the manifest."""
        return {
            "length": self.length,
            "gap_edges_s": list(self.gap_edges_s),
            "new_session_gap": self.new_session_gap(gap_s),
        }

    def new_session_gap(self, gap_s: int) -> int:
        """The smallest gap code that means: silent for longer than a session's gap_s."""
        return c.FIRST_GAP + 1 + self.gap_edges_s.index(gap_s)


def cutoffs_for(spec: SequencesSpec, date_: date) -> Cutoffs:
    """The cutoffs of a run: scores at midnight after its day, test and validation the configured days before."""
    end = datetime(date_.year, date_.month, date_.day, tzinfo=UTC) + timedelta(days=1)
    test = end - timedelta(days=spec.split.test_days)
    valid = test - timedelta(days=spec.split.valid_days)
    valid_us, test_us, end_us = (int(instant.timestamp()) * c.MICROS for instant in (valid, test, end))
    return Cutoffs(valid_us, test_us, end_us, spec.split.embargo_days * c.DAY_S * c.MICROS)


def flat_events(sessions: DataFrame) -> DataFrame:
    """One row an event: user_id and the event's own columns."""
    return sessions.select(c.USER_ID, F.explode(c.EVENTS).alias("event")).select(c.USER_ID, "event.*")


def encode_events(events: DataFrame, vocabulary: DataFrame, before: datetime) -> DataFrame:
    """Events before the cutoff as ENCODED_EVENT: tokens replaced by ids, OOV where the vocabulary has none.

    vocabulary: `vocabulary_v1`, unique by (kind, token), so that no event is doubled.
    """
    known = events.where(F.col(c.EVENT_TIME) < F.lit(before))
    for kind, token, encoded in (
        (c.KIND_ITEM, c.ITEM_ID, c.ITEM),
        (c.KIND_CATEGORY, c.CATEGORY_ID, c.CATEGORY),
    ):
        ids = vocabulary.where(F.col(c.KIND) == kind).select(F.col(c.TOKEN).alias(token), F.col(c.ID).alias(encoded))
        known = known.join(ids, on=token, how="left")
    return known.select(
        c.USER_ID,
        F.unix_micros(c.EVENT_TIME).alias("time_us"),
        c.EVENT_ID,
        F.coalesce(c.ITEM, F.lit(c.OOV)).alias(c.ITEM),
        F.coalesce(c.CATEGORY, F.lit(c.OOV)).alias(c.CATEGORY),
        _action_code().alias(c.ACTION_CODE),
    )


def user_windows(encoded: DataFrame, spec: SequencesSpec, cutoffs: Cutoffs, n_partitions: int) -> DataFrame:
    """All rows of `sequences_v1` (SPLIT = SCORE) and `training_sequences_v1` (train, valid, test), in one pass.

    encoded: ENCODED_EVENT, each event once. Rows come in an order that depends on their own content only.
    """
    build = partial(
        build_partition,
        length=spec.length,
        history_events=spec.history_events,
        gap_edges_s=spec.gap_edges_s,
        protocol=spec.split.protocol,
        cutoffs=cutoffs,
        n_ahead=spec.ahead_events,
        horizon_s=spec.horizons_days[-1] * c.DAY_S,
    )
    return encoded.repartition(n_partitions, c.USER_ID).mapInArrow(build, TRAINING_SEQUENCES.schema)


def _action_code() -> Column:
    code = F.lit(c.OOV)
    for position, action in enumerate(c.ACTIONS):
        code = F.when(F.col(c.ACTION) == action, F.lit(c.FIRST_ID + position)).otherwise(code)
    return code
