"""Raw logs as they lie: source maps by name, files and their sizes, first and last day, damage named by file."""

import posixpath
import re
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import fsspec
from py4j.protocol import Py4JJavaError
from pydantic import ValidationError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.categories import read_categories
from features.contracts import ContractError
from features.pseudonyms import MIN_KEY_BYTES, PseudonymKey, fingerprint
from features.sources import SourceMap, read_log, to_time
from jobs.settings import CONF_DIR, UsageError, describe, read_yaml
from jobs.spark import lost_worker
from jobs.store import Manifest, Store

KEY_INPUT = "pseudonym_key"  # among a manifest's inputs: the key's fingerprint


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


def load_key(path: str | None) -> PseudonymKey | None:
    """The key of the pseudonyms, if the configuration names a file; its content is in no message."""
    if path is None:
        return None
    setting = f"cleaning.pseudonym_key_file = {path}"
    try:
        key = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{setting}: cannot read it: {error.strerror}. It must be a local file.") from None
    if len(key) < MIN_KEY_BYTES:
        raise UsageError(
            f"{setting} holds {len(key)} bytes; a key has {MIN_KEY_BYTES} or more. Make one with: "
            f"openssl rand -out FILE {MIN_KEY_BYTES}"
        )
    # The executors read the file themselves; a bound method of the standard library needs none of jobs/ there.
    return PseudonymKey(Path(path).absolute().read_bytes, fingerprint(key))


def check_same_key(yesterday: Manifest, key: PseudonymKey | None) -> None:
    """Refuse to go on with another key, or none: every user would be a new one."""
    before, now = yesterday.inputs.get(KEY_INPUT), key.fingerprint if key else None
    if before != now:
        raise ContractError(
            f"{yesterday.table} for {yesterday.dt} was written with {_key_words(before)}, this run has "
            f"{_key_words(now)} (cleaning.pseudonym_key_file). The same user would get another id. Use the key of that "
            f"day, or start a new --root with --bootstrap."
        )


def _key_words(fingerprint: str | None) -> str:
    return f"the pseudonym key {fingerprint}" if fingerprint else "no pseudonym key"


def load_categories(spark: SparkSession, source: SourceMap, paths: Sequence[str]) -> DataFrame | None:
    """The items' categories from --categories, or None without that flag."""
    if not paths:
        return None
    if source.categories is None:
        raise UsageError(
            f"--categories {paths[0]}: the source map has no categories: part that says how to read it. Add one "
            f"(conf/sources/template.yaml shows how), or drop --categories."
        )
    return read_categories(spark, source.categories, paths)


def log_span(spark: SparkSession, source: SourceMap, inputs: Sequence[str]) -> tuple[date, date]:
    """First and last UTC day of a log, so that a whole log can be run without naming its days.

    Days of arrival where the log has an ingest_time (a wrong device clock then moves nothing), else of the events.
    """
    column = source.columns.get(c.INGEST_TIME, source.columns[c.EVENT_TIME])
    try:
        raw = read_log(spark, source, list(inputs))
        kinds = {field.name: field.dataType for field in raw.schema.fields}
        times = raw.select(F.to_date(to_time(F.col(f"`{column}`"), source.time_unit, kinds[column])).alias("day"))
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
    store: Store, inputs: Sequence[str], first_day: date, last_day: date, flag: str = "--input"
) -> tuple[list[str], dict[str, int]]:
    """Paths to read and the bytes of every file below them; `{date}` in a path stands for each day of the run.

    A URI is looked for on its own file system, a plain path on that of the root.
    """
    n_days = (last_day - first_day).days + 1
    spelled = [path.replace("{date}", str(first_day + timedelta(days=k))) for path in inputs for k in range(n_days)]
    paths = list(dict.fromkeys(spelled))
    sizes: dict[str, int] = {}
    missing = []
    for path in paths:
        files = _files_below(store, path)
        if not files:
            missing.append(path)
        sizes |= {name: size for _, name, size in files}
        below = [name for folders, name, _ in files if not all("=" in folder for folder in folders)]
        if below:
            raise ContractError(
                f"{flag} {path} holds {min(below)}, in a sub-folder, which Spark does not read (but for ones named as "
                f"column=value). Pass each folder that holds files, or put the files side by side."
            )
    if missing:
        raise ContractError(
            f"{flag} {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}: no such file, or a folder without "
            f"files. An empty day still needs its (empty) file, so that a missing one is noticed."
        )
    return paths, sizes


def readable_error(error: Exception, paths: Sequence[str], categories: Sequence[str] = ()) -> Exception:
    """A Spark failure as one that names the file, where the file is the reason.

    paths: those of the log; categories: those of the items' categories.
    """
    text = str(error)
    if lost_worker(error):
        return RuntimeError(
            "A Python worker of Spark ended without a word, most often killed for memory. Lower sessions.partition_mib "
            "or give the machine more memory; nothing was written."
        )
    torn = re.search(
        r"Unexpected end of input stream|EOFException|is not a Parquet file|invalid gzip|ZipException", text
    )
    header = re.search(r"CSV header does not conform|number of columns in CSV header", text, re.IGNORECASE)
    named = re.search(r"(?:reading file|CSV file:?)\s+(?:file:)?(\S+?)[.,]?(?:\s|$)", text)
    where = named.group(1) if named else ", ".join([*paths, *categories])
    is_category = named is not None and any(where.endswith(path.rpartition("://")[2]) for path in categories)
    flag, first = ("--categories", categories[0]) if is_category else ("--input", paths[0])
    refused = re.search(r"features\.contracts\.ContractError: (.+)", text)  # raised in a Python worker
    if refused:
        return ContractError(refused.group(1))
    if torn:
        return ContractError(
            f"{where} is cut off or damaged ({torn.group(0)}). Nothing was written. Fetch the file again, or remove it "
            f"from {flag}."
        )
    if header:
        return ContractError(
            f"{where} has another header line than {first}. All files of one run need the same columns in the same "
            f"order."
        )
    return error


def file_system_of(store: Store, path: str) -> Any:
    """Where an input lies: of a URI its own, of a plain path that of the root."""
    return fsspec.core.url_to_fs(path)[0] if "://" in path else store.fs


def _files_below(store: Store, path: str) -> list[tuple[list[str], str, int]]:
    """Files at or below a path but for hidden ones: folders in between, name as the path is spelled, bytes."""
    fs = file_system_of(store, path)
    if not fs.exists(path):
        return []
    top = fsspec.core.url_to_fs(path)[1] if "://" in path else type(fs)._strip_protocol(path)
    found = []
    for name, info in fs.find(path, detail=True).items():
        rest = name.removeprefix(top.rstrip("/")) if name.startswith(top) else name
        parts = (rest.strip("/") or posixpath.basename(name)).split("/")
        if not any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in parts):
            spelled = name
            if "://" in path:
                spelled = f"{path.rstrip('/')}{rest}" if top.strip("/") else fs.unstrip_protocol(name)
            found.append((parts[:-1], spelled, int(info["size"])))
    return found
