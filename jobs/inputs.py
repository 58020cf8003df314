"""Raw logs as they lie: source maps by name, files and their sizes, first and last day, damage named by file."""

import re
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

from py4j.protocol import Py4JJavaError
from pydantic import ValidationError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import ContractError
from features.sources import SourceMap, read_log, to_time
from jobs.settings import CONF_DIR, UsageError, describe, read_yaml
from jobs.store import Store


def load_source(name_or_path: str) -> SourceMap:
    """A source map by its name in conf/sources or by path."""
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = CONF_DIR / "sources" / f"{name_or_path}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in (CONF_DIR / "sources").glob("*.yaml")))
        raise UsageError(f"--source {name_or_path}: there is no {path}. Known sources: {known}; or pass a YAML file.")
    try:
        return SourceMap.model_validate(read_yaml(path))
    except ValidationError as error:
        raise UsageError(f"The source map {path} is not valid: {describe(error)}.") from None


def log_span(spark: SparkSession, source: SourceMap, inputs: Sequence[str]) -> tuple[date, date]:
    """First and last UTC day of the events in a log, so that a whole log can be run without naming its days."""
    raw = read_log(spark, source, list(inputs))
    kinds = {field.name: field.dataType for field in raw.schema.fields}
    column = source.columns[c.EVENT_TIME]
    times = raw.select(F.to_date(to_time(F.col(f"`{column}`"), source.time_unit, kinds[column])).alias("day"))
    try:
        first, last = times.agg(F.min("day"), F.max("day")).collect()[0]
    except (PySparkException, Py4JJavaError) as error:
        raise readable_error(error, list(inputs)) from error
    if first is None:
        raise ContractError(
            f"{', '.join(inputs)}: no row has a readable time in column {column} (time_unit: {source.time_unit}). "
            f"The log is empty, or columns: and time_unit: in the source map do not fit it."
        )
    return first, last


def find_inputs(
    store: Store, inputs: Sequence[str], first_day: date, last_day: date
) -> tuple[list[str], dict[str, int]]:
    """Paths to read and the bytes of every file below them; `{date}` in a path stands for each day of the run."""
    n_days = (last_day - first_day).days + 1
    spelled = [path.format(date=first_day + timedelta(days=k)) for path in inputs for k in range(n_days)]
    paths = list(dict.fromkeys(spelled))
    sizes: dict[str, int] = {}
    missing = []
    for path in paths:
        found = store.fs.find(path, detail=True) if store.fs.exists(path) else {}
        files = {name: int(info["size"]) for name, info in found.items() if not _hidden(name)}
        if not files:
            missing.append(path)
        sizes |= files
    if missing:
        raise ContractError(
            f"--input {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}: no such file, or a folder without "
            f"files. An empty day still needs its (empty) file, so that a missing one is noticed."
        )
    return paths, sizes


def readable_error(error: Exception, paths: Sequence[str]) -> Exception:
    """A Spark failure as one that names the file, where the file is the reason."""
    text = str(error)
    torn = re.search(
        r"Unexpected end of input stream|EOFException|is not a Parquet file|CRC|invalid gzip|ZipException", text
    )
    header = re.search(r"CSV header does not conform|number of columns in CSV header", text, re.IGNORECASE)
    named = re.search(r"(?:reading file|CSV file:?)\s+(?:file:)?(\S+?)[.,]?(?:\s|$)", text)
    where = named.group(1) if named else ", ".join(paths)
    if torn:
        return ContractError(
            f"{where} is cut off or damaged ({torn.group(0)}). Nothing was written. Fetch the file again, or remove it "
            f"from --input."
        )
    if header:
        return ContractError(
            f"{where} has another header line than {paths[0]}. All files of one run need the same columns in the same "
            f"order."
        )
    return error


def _hidden(path: str) -> bool:
    return path.rsplit("/", 1)[-1].startswith(("_", "."))
