"""Source maps: how the columns, times and actions of one log become those of `events_v1`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from features import columns as c
from features.contracts import ContractError

CORRUPT = "_corrupt_row"
_REQUIRED = (c.USER_ID, c.ITEM_ID, c.EVENT_TIME)
_OPTIONAL = (c.CATEGORY_ID, c.ACTION, c.INGEST_TIME, c.EVENT_ID)


class SourceMap(BaseModel):
    """One log's format: what its columns are called, its unit of time and its words for actions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["csv", "json", "parquet"]
    columns: dict[str, str] = Field(description="events_v1 column: column of the log")
    time_unit: Literal["s", "ms", "us", "iso"] = Field(description="of event_time and ingest_time; iso: text")
    order: str | None = Field(None, description="column with the log's own order of a user's events, for equal times")
    actions: dict[str, str] = Field(default_factory=dict, description="word of the log: canonical action")
    default_action: str | None = Field(None, description="the action of every row, for logs without an action column")
    header: bool = True
    delimiter: str = ","
    names: tuple[str, ...] = Field((), description="column names in order, for files without a header")

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        unknown = sorted(set(columns) - {*_REQUIRED, *_OPTIONAL})
        missing = [name for name in _REQUIRED if name not in columns]
        if unknown or missing:
            raise ValueError(f"unknown: {unknown}, missing: {missing}; known: {[*_REQUIRED, *_OPTIONAL]}")
        return columns

    @model_validator(mode="after")
    def _actions_are_canonical(self) -> "SourceMap":
        wrong = sorted({*self.actions.values(), *filter(None, [self.default_action])} - set(c.ACTIONS))
        if wrong:
            raise ValueError(f"actions {wrong} are not canonical; use {list(c.ACTIONS)}")
        if (c.ACTION in self.columns) == (self.default_action is not None):
            raise ValueError("give either an action column or default_action")
        if self.format == "csv" and not self.header and not self.names:
            raise ValueError("a csv without a header needs names: [...]")
        return self

    @property
    def needed(self) -> list[str]:
        """Columns of the log that are read, without repetition."""
        return list(dict.fromkeys([*self.columns.values(), *filter(None, [self.order])]))


def read_log(spark: SparkSession, source: SourceMap, paths: list[str]) -> DataFrame:
    """Read a log as text columns, each row whole: further columns are kept, a torn row keeps its line in CORRUPT.

    Raises:
        ContractError: a file has no such column, or nothing at all.
    """
    if source.format == "parquet":
        raw = spark.read.parquet(*paths)
        _require_columns(source, raw.columns, paths)
        return raw.withColumn(CORRUPT, F.lit(None).cast("string"))
    if source.format == "json":
        schema = T.StructType([T.StructField(name, T.StringType()) for name in [*source.needed, CORRUPT]])
        return spark.read.json(paths, schema=schema, mode="PERMISSIVE", columnNameOfCorruptRecord=CORRUPT)
    names = list(source.names)
    if source.header:
        names = spark.read.csv(paths[0], sep=source.delimiter, header=True).columns
    _require_columns(source, names, paths)
    return spark.read.csv(
        paths,
        schema=T.StructType([T.StructField(name, T.StringType()) for name in [*names, CORRUPT]]),
        sep=source.delimiter,
        quote='"',
        escape='"',
        header=source.header,
        enforceSchema=not source.header,
        mode="PERMISSIVE",
        columnNameOfCorruptRecord=CORRUPT,
    )


def to_time(value: Column, unit: str, kind: T.DataType) -> Column:
    """A timestamp from text, a number or a timestamp column; null where it is not a time of that unit."""
    if isinstance(kind, T.TimestampType | T.TimestampNTZType):
        return value.cast("timestamp")
    if unit == "iso":
        return value.cast("timestamp")
    per_unit = {"s": 1_000_000, "ms": 1_000, "us": 1}[unit]
    number = F.trim(value.cast("string"))
    micros = (number.cast("decimal(30,6)") * per_unit).cast("long")
    return F.when(number.rlike(r"^-?\d{1,18}(\.\d+)?$"), F.timestamp_micros(micros))


def _require_columns(source: SourceMap, found: list[str], paths: list[str]) -> None:
    missing = [name for name in source.needed if name not in found]
    if missing:
        raise ContractError(
            f"{paths[0]} has no column {', '.join(missing)}; its columns are: {', '.join(found) or 'none'}. "
            f"Name the log's own columns under columns: in the source map, or pass another --source."
        )
