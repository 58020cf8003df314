"""Categories of items from a second file: one category an item, joined to the events."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import ContractError
from features.csv_files import csv_columns, read_csv, text_schema

_ITEM, _CATEGORY = "item", "category"  # columns that a json_object is read as
_CORRUPT = "_corrupt_line"  # of a CSV file: a line that does not fit


class CategoryMap(BaseModel):
    """The format of a file with items and their categories, and which category of an item counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["csv", "json", "json_object", "parquet"] = Field(
        description="json: one object a line; json_object: the whole file is one object, item: category or list"
    )
    item: str | None = Field(None, description="column with the item, as the log spells it")
    category: str | None = Field(None, description="column with the category; of a JSON list the first entry counts")
    flags: tuple[str, ...] = Field((), description="0/1 columns instead of category: the first with a 1 is it")
    separator: str | None = Field(None, description="what stands between the categories of one field; the first counts")
    where: dict[str, str] = Field(default_factory=dict, description="column: value; other rows are left out")
    order: str | None = Field(None, description="column that says which of an item's rows is first: the least value")
    header: bool = True
    delimiter: str = ","
    names: tuple[str, ...] = Field((), description="column names in order, for files without a header")

    @model_validator(mode="after")
    def _complete(self) -> "CategoryMap":
        by_column = [self.item, self.category, self.order, *self.flags, *self.where]
        if self.format == "json_object":
            if any(by_column):
                raise ValueError("a json_object has no columns: drop item, category, flags, where and order")
        elif self.item is None or (self.category is None) == (not self.flags):
            raise ValueError("give item, and either category or flags")
        if self.format == "csv" and not self.header and not self.names:
            raise ValueError("a csv without a header needs names: [...]")
        return self

    @property
    def needed(self) -> list[str]:
        """Columns that are read, without repetition."""
        return list(dict.fromkeys(filter(None, [self.item, self.category, self.order, *self.flags, *self.where])))


def read_categories(spark: SparkSession, layout: CategoryMap, paths: Sequence[str]) -> DataFrame:
    """One row an item that has a category: (item_id, category_id).

    Of an item's rows the first counts: least `order` (as a number; what is no number comes after, as text), then
    least category as text. Rows without item or category, and lines that do not fit the format, give none.

    Raises:
        ContractError: a file has no such column.
    """
    rows = _rows(spark, layout, paths)
    order = F.col(f"`{layout.order}`") if layout.order else F.lit(None).cast("string")
    number = order.cast("decimal(38,6)")
    wanted = F.lit(True)
    for column, value in layout.where.items():
        wanted &= F.trim(F.col(f"`{column}`")) == value
    labelled = rows.where(wanted).select(
        F.trim(F.col(f"`{layout.item or _ITEM}`")).alias(c.ITEM_ID),
        number.isNull().alias("no_number"),
        number.alias("number"),
        order.alias("order"),
        _category(layout).alias(c.CATEGORY_ID),
    )
    whole = labelled.where((F.col(c.ITEM_ID) != "") & (F.col(c.CATEGORY_ID) != ""))
    first = F.min(F.struct("no_number", "number", "order", c.CATEGORY_ID))
    return whole.groupBy(c.ITEM_ID).agg(first[c.CATEGORY_ID].alias(c.CATEGORY_ID))


def with_categories(events: DataFrame, categories: DataFrame) -> DataFrame:
    """Events with the category of their item instead of their own; null where the item has none.

    categories: unique by item_id, small enough for every executor's memory. No event is lost or repeated.
    """
    columns = [categories[c.CATEGORY_ID] if name == c.CATEGORY_ID else events[name] for name in events.columns]
    joined = events.join(F.broadcast(categories), on=events[c.ITEM_ID] == categories[c.ITEM_ID], how="left")
    return joined.select(*columns)


def _rows(spark: SparkSession, layout: CategoryMap, paths: Sequence[str]) -> DataFrame:
    """The file's needed columns as text; of a json_object the columns `item` and `category`."""
    if layout.format == "json_object":
        entries = F.explode(F.from_json("value", "map<string,string>"))
        return spark.read.text(list(paths), wholetext=True).select(entries.alias(_ITEM, _CATEGORY))
    if layout.format == "json":
        return spark.read.json(list(paths), schema=text_schema(layout.needed))
    if layout.format == "parquet":
        rows = spark.read.parquet(*paths)
    else:
        rows = read_csv(spark, layout, paths, csv_columns(spark, layout, paths), _CORRUPT)
        rows = rows.where(F.col(_CORRUPT).isNull()).drop(_CORRUPT)
    missing = [name for name in layout.needed if name not in rows.columns]
    if missing:
        raise ContractError(
            f"{paths[0]} has no column {', '.join(missing)}; its columns are: {', '.join(rows.columns) or 'none'}. "
            f"Correct categories: in the source map, or pass another --categories."
        )
    return rows.select(*(F.col(f"`{name}`").cast("string").alias(name) for name in layout.needed))


def _category(layout: CategoryMap) -> Column:
    if layout.flags:
        return F.coalesce(*(F.when(F.trim(F.col(f"`{flag}`")) == "1", F.lit(flag)) for flag in layout.flags))
    category = F.trim(F.col(f"`{layout.category or _CATEGORY}`"))
    if layout.format.startswith("json"):
        category = F.when(category.startswith("["), F.from_json(category, "array<string>")[0]).otherwise(category)
    if layout.separator:
        category = F.substring_index(category, layout.separator, 1)
    return F.trim(category)
