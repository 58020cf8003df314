"""Where tables lie and when they may be read: staged writes, one manifest for each partition, written last."""

import hashlib
import json
import posixpath
import re
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema

from features.contracts import Contract, ContractError

MANIFEST = "_MANIFEST.json"
EMPTIED = "_EMPTIED"  # beside the manifest of a partition whose files retention removed
DIGEST = "crc32"  # of a file's entry in a manifest: CRC-32 of its content, in hex
_FOOTER_THREADS = 16


@dataclass(frozen=True)
class Manifest:
    """What one partition holds and what it was made from. Times are UTC, ISO 8601."""

    table: str
    dt: str
    schema_hash: str
    rows: int
    row_groups: int
    min_time: str | None
    max_time: str | None
    counters: Mapping[str, Any]
    inputs: Mapping[str, str]
    config_hash: str
    code_version: str
    files: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def hash(self) -> str:
        """Identity of the rows: everything but the file names, which differ from run to run."""
        content = {key: value for key, value in asdict(self).items() if key != "files"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Lineage:
    """What a write says about its making: manifest hashes of its inputs, its configuration, its counters."""

    inputs: Mapping[str, str]
    config_hash: str
    counters: Mapping[str, Any] = field(default_factory=dict)


class Store:
    """All tables under one root: a local folder or any URI that both Spark and fsspec understand."""

    def __init__(self, root: str) -> None:
        self.fs, self._base = fsspec.core.url_to_fs(root)
        self.root = self._base if "://" not in root else root.rstrip("/")

    def path(self, table: str, dt: date | str) -> str:
        """Path of one partition, for Spark and for fsspec."""
        return f"{self.root}/{table}/dt={dt}"

    def staging(self, table: str, dt: date | str) -> str:
        """A new place beside the partition, hidden from readers, to write into before `publish`.

        No place is given twice, as tasks of a run that was killed may write on for a while; what such a run left is
        removed where that succeeds.
        """
        folder = f"{self.root}/{table}"
        if self.fs.exists(folder):
            for path in self.fs.ls(folder, detail=False):
                if posixpath.basename(path.rstrip("/")).partition(".")[0] == f"_staging-{dt}":
                    with suppress(OSError):
                        self.fs.rm(path, recursive=True)
        return f"{folder}/_staging-{dt}.{uuid4().hex[:8]}"

    def dates(self, table: str) -> list[str]:
        """Days of the partitions that may be read, rising."""
        return [dt for dt in self.days(table) if self.fs.exists(f"{self.path(table, dt)}/{MANIFEST}")]

    def days(self, table: str) -> list[str]:
        """Days of all partitions, rising: also of those that a write or a removal left without their manifest."""
        folder = f"{self.root}/{table}"
        self.fs.invalidate_cache(folder)  # other processes write here too, a training's ranks for one
        if not self.fs.exists(folder):
            return []
        names = (posixpath.basename(path.rstrip("/")) for path in self.fs.ls(folder, detail=False))
        return sorted(name[3:] for name in names if re.fullmatch(r"dt=\d{4}-\d\d-\d\d", name))

    def manifest(self, table: str, dt: date | str, made_by: str) -> Manifest:
        """Manifest of a partition, or a ContractError that says which job makes it (`made_by`)."""
        path = f"{self.path(table, dt)}/{MANIFEST}"
        if not self.fs.exists(path):
            there = ", ".join(self.dates(table)[-3:]) or "none"
            raise ContractError(
                f"{table} has no finished partition for {dt}: {path} does not exist (latest finished: {there}). "
                f"Run {made_by} for {dt} first."
            )
        with self.fs.open(path, "r") as file:
            values = json.load(file)
        return Manifest(**{**values, "files": tuple(values["files"])})

    def facts(self, manifest: Manifest) -> dict[str, Any]:
        """What there is to say of a partition: `table`, `dt`, `path`, `rows`, `counters`."""
        about = {"table": manifest.table, "dt": manifest.dt, "path": self.path(manifest.table, manifest.dt)}
        return {**about, "rows": manifest.rows, "counters": dict(manifest.counters)}

    def read(self, spark: SparkSession, contract: Contract, dt: date | str, made_by: str) -> DataFrame:
        """Rows of one finished partition; refuses a missing, torn or differently shaped one."""
        self.check(contract, dt, made_by)
        return spark.read.schema(contract.schema).parquet(self.path(contract.name, dt))

    def check(self, contract: Contract, dt: date | str, made_by: str) -> Manifest:
        """Refuse a partition whose schema or files are not those of its manifest."""
        manifest = self.manifest(contract.name, dt, made_by)
        where = self.path(contract.name, dt)
        if manifest.schema_hash != contract.schema_hash:
            raise ContractError(
                f"{where} was written with schema {manifest.schema_hash}, this version reads {contract.schema_hash}. "
                f"Run {made_by} for {dt} again."
            )
        if self.fs.exists(f"{where}/{EMPTIED}"):
            raise ContractError(
                f"{where} has no rows any more: retention removed them (retention.nights in the configuration). The "
                f"night after {dt} can't be run again without them; later ones can."
            )
        sizes = dict(self.data_files(where))
        for expected in manifest.files:
            size = sizes.pop(f"{where}/{expected['path']}", None)
            if size != expected["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes"
                raise ContractError(
                    f"{where}/{expected['path']} {found}, its manifest says {expected['bytes']} bytes: the partition "
                    f"is torn. Run {made_by} for {dt} again."
                )
        if sizes:
            raise ContractError(
                f"{where} holds {min(sizes)}, which its manifest does not know. Run {made_by} for {dt} again."
            )
        return manifest

    def publish(
        self,
        contract: Contract,
        dt: date | str,
        staged: str,
        lineage: Lineage,
        time_column: str | None = None,
        digests: Mapping[str, str] = MappingProxyType({}),
    ) -> Manifest:
        """Swap staged files in for the partition and write its manifest last.

        time_column gives min and max time. digests: of staged files by path, kept in the manifest for who reads them.
        """
        files = self.data_files(staged)
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            footers = list(pool.map(lambda item: self._footer(item[0]), files))
        low, high = _time_range(footers, time_column)
        manifest = Manifest(
            table=contract.name,
            dt=str(dt),
            schema_hash=contract.schema_hash,
            rows=sum(footer.num_rows for footer in footers),
            row_groups=sum(footer.num_row_groups for footer in footers),
            min_time=low,
            max_time=high,
            counters=dict(lineage.counters),
            inputs=dict(lineage.inputs),
            config_hash=lineage.config_hash,
            code_version=code_version(),
            files=tuple(
                {"path": path.removeprefix(f"{staged}/"), "bytes": size, "rows": footer.num_rows}
                | ({DIGEST: digests[path]} if path in digests else {})
                for (path, size), footer in zip(files, footers, strict=True)
            ),
        )
        final = self.path(contract.name, dt)
        if self.fs.exists(final):
            self.retract(contract, dt)
            self.fs.rm(final, recursive=True)
        self.fs.makedirs(final, exist_ok=True)
        for entry in self.fs.ls(staged, detail=False):
            name = posixpath.basename(entry.rstrip("/"))
            if not name.startswith(("_", ".")):
                self.fs.mv(entry, f"{final}/{name}", recursive=True)
        self.fs.rm(staged, recursive=True)
        self.write_json(f"{final}/{MANIFEST}", asdict(manifest))
        return manifest

    def retract(self, contract: Contract, dt: date | str) -> None:
        """Make a partition unreadable, before something that it belongs with is replaced."""
        path = f"{self.path(contract.name, dt)}/{MANIFEST}"
        if self.fs.exists(path):
            self.fs.rm(path)

    def write(
        self, frame: DataFrame, contract: Contract, dt: date | str, lineage: Lineage, time_column: str | None = None
    ) -> Manifest:
        """Write a conforming frame as one partition."""
        staged = self.staging(contract.name, dt)
        frame.write.mode("error").parquet(staged)
        return self.publish(contract, dt, staged, lineage, time_column)

    def keep_only(self, folder: str, paths: Collection[str]) -> None:
        """Remove files that tasks left in a staged folder but that Spark did not count: of repeated attempts."""
        for path, _ in self.data_files(folder):
            if path not in paths:
                self.fs.rm(path)

    def write_empty(self, contract: Contract, folder: str) -> None:
        """Give a staged folder without files one that has no rows: its schema must be readable all the same."""
        self.fs.makedirs(folder, exist_ok=True)
        if not self.data_files(folder):
            with fsspec.open(f"{folder}/part-empty.parquet", "wb") as file:
                pq.write_table(to_arrow_schema(contract.schema).empty_table(), file, store_schema=False)

    def row_counts(self, folder: str) -> list[tuple[str, int]]:
        """(path, rows) of every Parquet file below a folder, in order of path; none where the folder is missing."""
        if not self.fs.exists(folder):
            return []
        return [(path, self._footer(path).num_rows) for path, _ in self.data_files(folder)]

    def write_json(self, path: str, content: Any) -> None:
        """Write JSON under a temporary name, then rename: a reader sees the old file, the new one, or none."""
        self.write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")

    def write_text(self, path: str, text: str) -> None:
        """Write a text the same way."""
        hidden = f"{posixpath.dirname(path)}/.{posixpath.basename(path)}.tmp"
        with self.fs.open(hidden, "w") as file:
            file.write(text)
        self.fs.mv(hidden, path)

    def data_files(self, folder: str) -> list[tuple[str, int]]:
        """(path, bytes) of every Parquet file below a folder, in order of path, as the root is spelled."""
        found: Iterable[tuple[str, dict[str, Any]]] = self.fs.find(folder, detail=True).items()
        prefix = self.root[: len(self.root) - len(self._base)] if self.root.endswith(self._base) else ""
        return sorted(
            (f"{prefix}{path}", int(info["size"]))
            for path, info in found
            if path.endswith(".parquet") and not posixpath.basename(path).startswith(("_", "."))
        )

    def _footer(self, path: str) -> pq.FileMetaData:
        with self.fs.open(path, "rb") as file:
            return pq.read_metadata(file)


@lru_cache(maxsize=1)
def code_version() -> str:
    """Hash of the project's own source: rows made by other code can be told apart."""
    digest = hashlib.sha256()
    for package in ("features", "jobs", "model"):
        sources = (entry for entry in resources.files(package).iterdir() if entry.name.endswith(".py"))
        for source in sorted(sources, key=lambda entry: entry.name):
            digest.update(f"{package}/{source.name}\n".encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def _time_range(footers: list[pq.FileMetaData], column: str | None) -> tuple[str | None, str | None]:
    """Least and greatest value of a timestamp column, from the statistics of all row groups."""
    lows: list[datetime] = []
    highs: list[datetime] = []
    for footer in footers:
        for group in range(footer.num_row_groups):
            chunks = (footer.row_group(group).column(i) for i in range(footer.num_columns))
            for chunk in chunks:
                if chunk.path_in_schema == column and chunk.statistics is not None and chunk.statistics.has_min_max:
                    lows.append(_utc(chunk.statistics.min))
                    highs.append(_utc(chunk.statistics.max))
    return (min(lows).isoformat(), max(highs).isoformat()) if lows else (None, None)


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
