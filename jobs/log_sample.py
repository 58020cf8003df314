"""How large a log is, from the sizes of its files and its beginning: rows, bytes unpacked, bytes of a shuffled row."""

import csv
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from features import columns as c
from features.contracts import EVENT_FIELDS, ContractError
from features.sources import SourceMap
from jobs.inputs import file_system_of
from jobs.store import Store

_HEAD_BYTES = 1 << 18  # read of each file that is looked into
_SAMPLED_FILES = 12
_SAMPLED_ROWS = 20_000
_GZIP = 31  # zlib's word for a gzip header
_WORD = 8  # Spark's rows: a bit set, then eight bytes a field, then texts padded to eight
_TEXTS = (c.USER_ID, c.ITEM_ID, c.CATEGORY_ID)
_ACTION_BYTES = _WORD  # "view" to "click", padded


@dataclass(frozen=True)
class LogSize:
    """A log by its sizes, estimates but for stored_bytes. row_bytes: one event as Spark's row."""

    files: int
    stored_bytes: int
    unpacked_bytes: int
    rows: int
    row_bytes: int


def log_size(store: Store, source: SourceMap, files: Mapping[str, int]) -> LogSize:
    """Size of a log: files by path with their bytes; some of them, evenly apart, are looked into.

    Raises:
        ContractError: the beginning of those files holds no row with the columns that the map names.
    """
    picked = _evenly(sorted(path for path, n_bytes in files.items() if n_bytes), _SAMPLED_FILES)
    path = picked[0] if picked else min(files)
    stored = sum(files.values())
    if source.format == "parquet":
        rows, sample = _parquet(store, source, files, path)
        unpacked = stored
    else:
        entries, unpacked, read = [], 0, 0
        for found in picked:
            head, n_bytes = _head(store, found)
            entries += _entries(head, source)
            unpacked, read = unpacked + len(head), read + n_bytes
        grown = stored / read if read else 0
        rows, unpacked = round(len(entries) * grown), round(unpacked * grown)
        sample = [_ours(entry, source) for entry in entries]
    lengths = [[len(row[name].encode()) for row in sample if row.get(name)] for name in _TEXTS]
    if not lengths[0] or not lengths[1]:
        raise ContractError(
            f"{path}: its beginning holds no row with the columns {source.columns[c.USER_ID]} and "
            f"{source.columns[c.ITEM_ID]}. Check format, header, delimiter and columns in the source map."
        )
    texts = sum(_padded(sum(found) / len(found)) for found in lengths if found)
    fixed = _WORD * (2 + len(EVENT_FIELDS)) + _ACTION_BYTES
    return LogSize(len(files), stored, unpacked, rows, round(fixed + texts))


def _evenly(paths: Sequence[str], most: int) -> list[str]:
    """At most so many of the paths, from the first to the last at even distances."""
    step = max(1.0, len(paths) / most)
    return [paths[int(k * step)] for k in range(min(most, len(paths)))]


def _padded(n_bytes: float) -> float:
    """Mean bytes of a text in Spark's row: on average half a word is added."""
    return n_bytes + _WORD / 2


def _parquet(store: Store, source: SourceMap, files: Mapping[str, int], path: str) -> tuple[int, list[dict[str, str]]]:
    rows = 0
    for name in files:
        with file_system_of(store, name).open(name, "rb") as file:
            rows += pq.ParquetFile(file).metadata.num_rows
    with file_system_of(store, path).open(path, "rb") as file:
        parquet = pq.ParquetFile(file)
        wanted = [name for name in source.needed if name in parquet.schema_arrow.names]
        batch = next(parquet.iter_batches(_SAMPLED_ROWS, columns=wanted), None)
    return rows, [_ours(row, source) for row in (batch.to_pylist() if batch is not None else [])]


def _ours(row: Mapping[str, Any], source: SourceMap) -> dict[str, str]:
    """The texts of a row of the log, by our names."""
    named = {name: row.get(source.columns[name]) for name in _TEXTS if name in source.columns}
    return {name: str(value) for name, value in named.items() if value is not None}


def _head(store: Store, path: str) -> tuple[bytes, int]:
    """The beginning of a file, unpacked, to the end of a line; and how many of its bytes on disk that is."""
    with file_system_of(store, path).open(path, "rb") as file:
        raw = file.read(_HEAD_BYTES)
    head = zlib.decompressobj(_GZIP).decompress(raw) if path.endswith(".gz") else raw
    whole = head.rfind(b"\n") + 1
    return head[:whole], round(len(raw) * whole / len(head)) if head else 0


def _entries(head: bytes, source: SourceMap) -> list[dict[str, Any]]:
    """The events of some whole lines, by the log's own column names; what cannot be read is an empty one."""
    lines = head.decode("utf-8", "replace").splitlines()
    if source.format == "json":
        return [entry for line in lines for entry in _of_json(line, source)]
    rows: Sequence[Sequence[str]]
    if len(source.delimiter) == 1:
        rows = list(csv.reader(lines, delimiter=source.delimiter))
    else:
        rows = [line.split(source.delimiter) for line in lines]
    names: Sequence[str] = source.names
    if source.header and rows:
        names, rows = rows[0], rows[1:]
    return [dict(zip(names, row, strict=False)) for row in rows]


def _of_json(line: str, source: SourceMap) -> list[dict[str, Any]]:
    try:
        found = json.loads(line)
    except ValueError:
        return [{}]
    if not source.explode:
        return [found]
    inside = found.get(source.explode) or [{}]
    return [{**found, **{f"{source.explode}.{name}": value for name, value in entry.items()}} for entry in inside]
