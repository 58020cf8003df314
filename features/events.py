"""From a log as it comes to cleaned events, with a reason for every row that is refused."""

from dataclasses import dataclass
from datetime import date, datetime

from pydantic import BaseModel, ConfigDict, Field
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import EVENTS, REJECTED_EVENTS, conform
from features.sources import CORRUPT, SourceMap, to_time

# Why a row is refused; the first that applies is given.
MALFORMED_ROW = "malformed_row"
NO_USER = "no_user"
NO_ITEM = "no_item"
BAD_TIME = "bad_time"
TIME_OUT_OF_RANGE = "time_out_of_range"
UNKNOWN_ACTION = "unknown_action"
FUTURE_TIME = "future_time"
AFTER_RUN = "after_run"
TOO_LATE = "too_late"
BOUNCE = "bounce"

# Counters of a run
ROWS_READ, ROWS_REFUSED, WITH_CATEGORY = "rows_read", "rows_refused", "rows_with_category"

# An event_id is order * 2^20 + 20 bits of hash where the log has an order, which so has room up to 2^43.
_ORDER_SHIFT, _MAX_ORDER = 1 << 20, 1 << 43


class CleaningSpec(BaseModel):
    """Which rows are refused at the door."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_date: date = Field(description="events before this UTC day are refused as time_out_of_range")
    future_tolerance_s: int = Field(ge=0, description="how far event_time may lie after ingest_time")
    unknown_action: str = Field(pattern=r"^(reject|view)$", description="reject, or count it as a view")
    min_dwell_s: float = Field(0.0, ge=0, description="a view of fewer seconds is refused as bounce; 0: none is")
    # Not dumped, so that no configuration hash and no bundle depends on where the key lies.
    pseudonym_key_file: str | None = Field(None, exclude=True, description="key of the user ids' pseudonyms")


@dataclass(frozen=True)
class RunDays:
    """The UTC days a run covers, both included, and how many days late an event may arrive.

    open_from: the first day that the runs before left open, None where there were none. No event of an earlier one is
    taken, though more lateness is allowed now: its sessions are finished.
    """

    first: date
    last: date
    lateness_days: int
    open_from: date | None = None

    @property
    def left_open_from(self) -> date:
        """The first day whose sessions may still grow after the run."""
        day = date.fromordinal(max(1, self.last.toordinal() + 1 - self.lateness_days))
        return max(day, self.open_from or date.min)


def midnight(day: date) -> datetime:
    """00:00 UTC of a day, without a zone as Spark's UTC session wants it."""
    return datetime(day.year, day.month, day.day)


def parse_events(raw: DataFrame, source: SourceMap, spec: CleaningSpec, days: RunDays) -> DataFrame:
    """Every row of the log as the columns of `events_v1` plus REASON (null for a good row) and RAW (the row, whole).

    An event's arrival day is the day of its ingest_time, else its own, but not before the run's first day. It is
    TOO_LATE when its own day lies more than `days.lateness_days` before its arrival, or before `days.open_from`. A
    view is a BOUNCE when its known dwell time lies below `spec.min_dwell_s`; what is no number of seconds, or below 0,
    is not known.
    event_id: order * 2^20 + hash where the log has an order (0 to 2^43, else MALFORMED_ROW); else the hash of user,
    item, category, action and time, and of the log's own id where it has ids. Two rows with one id are one event.
    """
    kinds = {field.name: field.dataType for field in raw.schema.fields}
    named = {ours: F.col(f"`{theirs}`") for ours, theirs in source.columns.items()}
    user, item = (F.trim(named[name].cast("string")) for name in (c.USER_ID, c.ITEM_ID))
    category = F.trim(named[c.CATEGORY_ID].cast("string")) if c.CATEGORY_ID in named else F.lit(None).cast("string")
    event_time = to_time(named[c.EVENT_TIME], source.time_unit, kinds[source.columns[c.EVENT_TIME]])
    ingest_time = F.lit(None).cast("timestamp")
    if c.INGEST_TIME in named:
        ingest_time = to_time(named[c.INGEST_TIME], source.time_unit, kinds[source.columns[c.INGEST_TIME]])
    action = _canonical_action(named.get(c.ACTION), source, spec)

    extra = []
    if _looks_at_dwell(source, spec):
        extra = [F.trim(named[c.DWELL_S].cast("string")).cast("double").alias(c.DWELL_S)]
    parsed = raw.select(
        F.nullif(user, F.lit("")).alias(c.USER_ID),
        F.nullif(item, F.lit("")).alias(c.ITEM_ID),
        F.nullif(category, F.lit("")).alias(c.CATEGORY_ID),
        action.alias(c.ACTION),
        event_time.alias(c.EVENT_TIME),
        ingest_time.alias(c.INGEST_TIME),
        (F.col(f"`{source.order}`").cast("long") if source.order else F.lit(None).cast("long")).alias("_order"),
        (named[c.EVENT_ID].cast("string") if c.EVENT_ID in named else F.lit(None).cast("string")).alias("_own_id"),
        _whole_row(raw).alias(c.RAW),
        F.col(CORRUPT).isNotNull().alias("_torn"),
        *extra,
    )
    return parsed.select(
        c.USER_ID,
        _event_id(source).alias(c.EVENT_ID),
        c.ITEM_ID,
        c.CATEGORY_ID,
        c.ACTION,
        c.EVENT_TIME,
        c.INGEST_TIME,
        c.RAW,
        _reason(source, spec, days).alias(c.REASON),
    )


def good_events(parsed: DataFrame) -> DataFrame:
    """The rows without a reason against them, as `events_v1`."""
    return conform(parsed.where(F.col(c.REASON).isNull()), EVENTS)


def rejected_events(parsed: DataFrame) -> DataFrame:
    """The refused rows, whole, with the reason."""
    return conform(parsed.where(F.col(c.REASON).isNotNull()), REJECTED_EVENTS)


def row_counters() -> dict[str, Column]:
    """Aggregates for an Observation on parsed events: rows read, refused ones, and good ones with a category.

    Few on purpose: each costs time on every row of the log. The reasons are counted where the refused rows are written.
    """
    with_category = F.when(F.col(c.REASON).isNull(), F.col(c.CATEGORY_ID))
    return {ROWS_READ: F.count(F.lit(1)), ROWS_REFUSED: F.count(c.REASON), WITH_CATEGORY: F.count(with_category)}


def _canonical_action(column: Column | None, source: SourceMap, spec: CleaningSpec) -> Column:
    if column is None:
        return F.lit(source.default_action)
    word = F.trim(column.cast("string"))
    mapping = source.actions or {action: action for action in c.ACTIONS}
    action = F.lit(None).cast("string") if spec.unknown_action == "reject" else F.lit(c.ACTIONS[0])
    for theirs, ours in mapping.items():
        action = F.when(word == theirs, F.lit(ours)).otherwise(action)
    return action


def _event_id(source: SourceMap) -> Column:
    content = F.xxhash64("_own_id", c.USER_ID, c.ITEM_ID, c.CATEGORY_ID, c.ACTION, c.EVENT_TIME)
    if source.order:
        return F.col("_order") * _ORDER_SHIFT + F.pmod(content, F.lit(_ORDER_SHIFT))
    return content


def _reason(source: SourceMap, spec: CleaningSpec, days: RunDays) -> Column:
    time, ingest = F.col(c.EVENT_TIME), F.col(c.INGEST_TIME)
    event_day = F.to_date(time)
    arrival_day = F.greatest(F.coalesce(F.to_date(ingest), event_day), F.lit(days.first))
    no_order = ~F.coalesce(F.col("_order").between(0, _MAX_ORDER - 1), F.lit(False)) if source.order else F.lit(False)
    no_ingest = ingest.isNull() if c.INGEST_TIME in source.columns else F.lit(False)
    tolerance = F.expr(f"INTERVAL {spec.future_tolerance_s} SECONDS")
    reason = (
        F.when(F.col("_torn") | no_order, MALFORMED_ROW)
        .when(F.col(c.USER_ID).isNull(), NO_USER)
        .when(F.col(c.ITEM_ID).isNull(), NO_ITEM)
        .when(time.isNull() | no_ingest, BAD_TIME)
        .when(time < F.lit(midnight(spec.min_date)), TIME_OUT_OF_RANGE)
        .when(F.col(c.ACTION).isNull(), UNKNOWN_ACTION)
        .when(time > ingest + tolerance, FUTURE_TIME)
        .when(arrival_day > F.lit(days.last), AFTER_RUN)
        .when(event_day < F.date_sub(arrival_day, days.lateness_days), TOO_LATE)
    )
    if days.open_from:
        reason = reason.when(event_day < F.lit(days.open_from), TOO_LATE)
    if _looks_at_dwell(source, spec):
        dwell = F.col(c.DWELL_S)
        short = (dwell >= 0) & (dwell < spec.min_dwell_s)
        reason = reason.when((F.col(c.ACTION) == c.ACTIONS[0]) & short, BOUNCE)
    return reason


def _looks_at_dwell(source: SourceMap, spec: CleaningSpec) -> bool:
    return c.DWELL_S in source.columns and spec.min_dwell_s > 0


def _whole_row(raw: DataFrame) -> Column:
    fields = [F.col(f"`{name}`") for name in raw.columns if name != CORRUPT]
    return F.coalesce(F.col(CORRUPT), F.to_json(F.struct(*fields)))
