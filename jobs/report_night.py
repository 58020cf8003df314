"""The night in numbers: what manifests, the records of jobs.nightly and the bundle say."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from features.contracts import SCORES, SESSIONS
from jobs.night_input import QUALITY
from jobs.settings import Settings
from jobs.stage_times import stages_of_run
from jobs.steps import NIGHTLY, read_json
from jobs.store import Manifest, Store
from jobs.watching import FOLDER

_SESSIONIZE = "jobs/sessionize.py"


@dataclass(frozen=True)
class NightFile:
    """The night as its records say. Empty mappings and lists: no such record."""

    users: int
    model_version: str
    as_of: str
    counters: Mapping[str, Any]  # of sessions_v1
    sessions: int
    stages: Sequence[tuple[str, float, str]] = ()  # name, seconds, what came out
    gate: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[Mapping[str, Any]] = ()  # of the log, against thresholds
    training: str = ""  # why it trained, or that it did not
    history: Sequence[Mapping[str, float]] = ()  # of the training, a row an epoch
    trained_on: str = ""  # the day whose training that is
    missing: Sequence[str] = ()  # what this root has no record of


def night_facts(store: Store, settings: Settings, dt: date, stages: Sequence[tuple[str, float]] = ()) -> NightFile:
    """Read what there is of a day. stages: seconds of a run that is not over yet."""
    scores = store.manifest(SCORES.name, dt, "jobs/score.py")
    sessions = store.manifest(SESSIONS.name, dt, _SESSIONIZE)
    folder, missing = f"{store.root}/{NIGHTLY}/dt={dt}", []
    metrics = read_json(store, f"{folder}/metrics.json") or {}
    ran = stages or [(run.name, run.seconds) for run in stages_of_run(store, dt)]
    timed = [(name, seconds, "") for name, seconds in ran]
    timed = timed or [(s["name"], s["seconds"], s["said"]) for s in metrics.get("steps", [])]
    if not timed:
        missing.append("time by stage: neither jobs.nightly nor jobs.run left a record")
    gate = read_json(store, f"{folder}/decision.json") or {}
    if not gate:
        missing.append("gate: no decision of this day; only nights that train through jobs.nightly have one")
    quality = read_json(store, f"{folder}/{QUALITY}") or {}
    if not quality:
        missing.append("night's log against earlier nights: only jobs.nightly compares; one check of this day is below")
    checks = quality.get("findings") or [_rejected(sessions, settings)]
    history, day = _history(store, str(dt))
    if not history:
        missing.append("training curves: no bundle with a history")
    return NightFile(
        users=scores.rows,
        model_version=str(scores.counters.get("model_version", "")),
        as_of=str(scores.max_time or ""),
        counters=dict(sessions.counters),
        sessions=sessions.rows,
        stages=timed,
        gate=gate,
        checks=checks,
        training=str(metrics.get("training", "")),
        history=history,
        trained_on=day,
        missing=tuple(missing),
    )


def _rejected(sessions: Manifest, settings: Settings) -> dict[str, Any]:
    """The one check of a log that needs no earlier night."""
    read, refused = (int(sessions.counters.get(name, 0)) for name in ("rows_read", "rows_refused"))
    most, value = settings.input_quality.max_rejected_share, refused / max(read, 1)
    return {"check": "rejected", "value": value, "low": None, "high": most, "good": value <= most}


def _history(store: Store, dt: str) -> tuple[list[dict[str, float]], str]:
    """The latest training up to a day, as far as it left a history."""
    for day in reversed([d for d in store.dates("bundle") if d <= dt]):
        for path in (f"{store.path('bundle', day)}/history.csv", f"{store.root}/{FOLDER}/dt={day}/history.csv"):
            if store.fs.exists(path):
                with store.fs.open(path, "r") as file:
                    rows = list(csv.DictReader(io.StringIO(file.read())))
                return [{key: float(value) for key, value in row.items() if value} for row in rows], day
    return [], ""
