"""CSV files as columns of text, each row whole: one reader for logs and for files of categories."""

from collections.abc import Sequence
from typing import Protocol

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T


class CsvLayout(Protocol):
    """How files are written; a source map says it of a log, a category map of a file with categories."""

    @property
    def header(self) -> bool:
        """Whether the first line of each file has the names of its columns."""

    @property
    def delimiter(self) -> str:
        """What stands between two fields."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order, where there is no header."""

    @property
    def needed(self) -> list[str]:
        """Columns that are asked for."""


def csv_columns(spark: SparkSession, layout: CsvLayout, paths: Sequence[str]) -> list[str]:
    """Names of all columns, in order; the needed ones where no file has a line, as there is no row to read then."""
    if not layout.header:
        return list(layout.names)
    return spark.read.csv(list(paths), sep=layout.delimiter, header=True).columns or layout.needed


def read_csv(
    spark: SparkSession, layout: CsvLayout, paths: Sequence[str], names: Sequence[str], corrupt: str
) -> DataFrame:
    """Every row with all columns (`names`, of `csv_columns`) and `corrupt`: the line where it is torn, else null."""
    # Without this the reader skips columns that nothing uses, and then takes a torn row for a good one.
    return spark.read.option("columnPruning", False).csv(
        list(paths),
        schema=text_schema([*names, corrupt]),
        sep=layout.delimiter,
        quote='"',
        escape='"',
        header=layout.header,
        enforceSchema=not layout.header or are_made_up(names),
        mode="PERMISSIVE",
        columnNameOfCorruptRecord=corrupt,
    )


def text_schema(names: Sequence[str]) -> T.StructType:
    """Nullable columns of text."""
    return T.StructType([T.StructField(name, T.StringType()) for name in names])


def are_made_up(names: Sequence[str]) -> bool:
    """Whether Spark gave some columns of a CSV file other names than its header: of those without one, or alike.

    Such a header is not compared with these names, as it would not fit them.
    """
    bases = [name.removesuffix(str(place)).lower() for place, name in enumerate(names)]
    numbered = [base for base, name in zip(bases, names, strict=True) if base != name.lower()]  # all of those alike are
    return len(numbered) > len(set(numbered)) or any(name == f"_c{place}" for place, name in enumerate(names))
