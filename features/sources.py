"""Source maps: how the columns, times and actions of one log become those of `events_v1`."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from features import columns as c
from features.categories import CategoryMap
from features.contracts import ContractError
from features.csv_files import csv_columns, read_csv, text_schema

CORRUPT = "_corrupt_row"
_REQUIRED = (c.USER_ID, c.ITEM_ID, c.EVENT_TIME)
_OPTIONAL = (c.CATEGORY_ID, c.ACTION, c.INGEST_TIME, c.EVENT_ID, c.DWELL_S)
# Microseconds of the years 1 to 9999, which Spark, Arrow and Python can all hold.
_FIRST_US, _LAST_US = -62_135_596_800 * c.MICROS, 253_402_300_800 * c.MICROS - 1


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
    explode: str | None = Field(None, description="json list with one entry an event; its fields are LIST.FIELD")
    categories: CategoryMap | None = Field(None, description="a second file with the items' categories")

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
        if self.explode and (self.format != "json" or not self._listed):
            raise ValueError(f"explode: {self.explode} needs format: json and a column {self.explode}.<field>")
        return self

    @property
    def needed(self) -> list[str]:
        """Columns of the log that are read, without repetition."""
        return list(dict.fromkeys([*self.columns.values(), *filter(None, [self.order])]))

    @property
    def _listed(self) -> list[str]:
        """Those of the needed columns that are fields of the exploded list."""
        return [name for name in self.needed if self.explode and name.startswith(f"{self.explode}.")]


def read_log(spark: SparkSession, source: SourceMap, paths: Sequence[str]) -> DataFrame:
    """Read a log as text columns, each row whole: further columns are kept, a torn row keeps its line in CORRUPT.

    Of JSON only the columns that the map names are read. An exploded line becomes one row for each entry of its
    list; a torn line, or one whose list is empty, stays one row. A text file without a line has no rows.

    Raises:
        ContractError: a file has no such column.
    """
    if source.format == "parquet":
        raw = spark.read.parquet(*paths)
        _require_columns(source, raw.columns, paths)
        return raw.withColumn(CORRUPT, F.lit(None).cast("string"))
    if source.format == "json":
        return _read_json(spark, source, paths)
    names = csv_columns(spark, source, paths)
    _require_columns(source, names, paths)
    return read_csv(spark, source, paths, names, CORRUPT)


def to_time(value: Column, unit: str, kind: T.DataType) -> Column:
    """A timestamp from text, a number or a timestamp column; null where it is not a time of that unit.

    Text without a full date is no time: Spark would read "12:30" as today. Nor is a number outside the years 1
    to 9999: it has another unit.
    """
    if isinstance(kind, T.TimestampType | T.TimestampNTZType):
        return value.cast("timestamp")
    if isinstance(kind, T.DoubleType | T.FloatType):
        value = value.cast("decimal(30,6)")  # its text would be 1.7E9
    text = F.trim(value.cast("string"))
    if unit == "iso":
        return F.when(text.rlike(r"^\d{4}-\d{1,2}-\d{1,2}"), text.cast("timestamp"))
    per_unit = {"s": 1_000_000, "ms": 1_000, "us": 1}[unit]
    micros = text.cast("decimal(30,6)") * per_unit
    is_time = text.rlike(r"^-?\d{1,18}(\.\d+)?$") & micros.between(_FIRST_US, _LAST_US)
    return F.when(is_time, F.timestamp_micros(micros.cast("long")))


def _read_json(spark: SparkSession, source: SourceMap, paths: Sequence[str]) -> DataFrame:
    plain = [name for name in source.needed if name not in source._listed]
    schema = text_schema([*plain, CORRUPT])
    if source.explode:
        fields = [name.removeprefix(f"{source.explode}.") for name in source._listed]
        schema = T.StructType([*schema, T.StructField(source.explode, T.ArrayType(text_schema(fields)))])
    raw = spark.read.json(list(paths), schema=schema, mode="PERMISSIVE", columnNameOfCorruptRecord=CORRUPT)
    if not source.explode:
        return raw
    whole = F.when(F.col(CORRUPT).isNull(), F.col(f"`{source.explode}`"))
    exploded = raw.select(*(f"`{name}`" for name in [*plain, CORRUPT]), F.explode_outer(whole).alias("_entry"))
    entries = [F.col("_entry").getField(field).alias(f"{source.explode}.{field}") for field in fields]
    return exploded.select(*(f"`{name}`" for name in plain), *entries, CORRUPT)


def _require_columns(source: SourceMap, found: Sequence[str], paths: Sequence[str]) -> None:
    missing = [name for name in source.needed if name not in found]
    if missing:
        raise ContractError(
            f"{paths[0]} has no column {', '.join(missing)}; its columns are: {', '.join(found) or 'none'}. "
            f"Name the log's own columns under columns: in the source map, or pass another --source."
        )
