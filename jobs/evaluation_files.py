"""Evaluations as files: staged, swapped in whole, the manifest last."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jobs.store import MANIFEST, Manifest, Store, code_version

METRICS, SUMMARY = "metrics.jsonl", "summary.json"


def write_evaluation(
    store: Store,
    table: str,
    dt: str,
    records: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    fields: Sequence[str],
    counters: Mapping[str, Any],
    inputs: Mapping[str, str],
    hashed: str,
) -> None:
    """Write metrics.jsonl, a record a line, and summary.json as `<table>/dt=…`. fields: names of a record's columns."""
    staged, path = store.staging(table, dt), store.path(table, dt)
    store.fs.makedirs(staged, exist_ok=True)
    contents = {
        METRICS: "".join(f"{json.dumps(record)}\n" for record in records),
        SUMMARY: json.dumps(summary, indent=1) + "\n",
    }
    for name, text in contents.items():
        with store.fs.open(f"{staged}/{name}", "w") as file:
            file.write(text)
    manifest = Manifest(
        table=table,
        dt=dt,
        schema_hash=hashlib.sha256(json.dumps(list(fields)).encode()).hexdigest()[:16],
        rows=len(records),
        row_groups=0,
        min_time=None,
        max_time=None,
        counters=counters,
        inputs=inputs,
        config_hash=hashed,
        code_version=code_version(),
        files=tuple({"path": name, "bytes": len(text.encode())} for name, text in contents.items()),
    )
    if store.fs.exists(f"{path}/{MANIFEST}"):
        store.fs.rm(f"{path}/{MANIFEST}")
    if store.fs.exists(path):
        store.fs.rm(path, recursive=True)
    store.fs.mv(staged, path, recursive=True)
    store.write_json(f"{path}/{MANIFEST}", asdict(manifest))


def read_metrics(store: Store, table: str, dt: str) -> list[dict[str, Any]]:
    """The records of a finished evaluation."""
    with store.fs.open(f"{store.path(table, dt)}/{METRICS}", "r") as file:
        return [json.loads(line) for line in file]
