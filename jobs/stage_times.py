"""What the stages of a run took, in time and in bytes between tasks. jobs.run and jobs.nightly leave it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from jobs.steps import DONE, NIGHTLY, read_json
from jobs.store import Store

STAGES = "_run"  # ROOT/_run/dt=D/stages.json
_NIGHT = "metrics.json"


@dataclass(frozen=True)
class StageRun:
    """One stage as it went. shuffled_bytes: what Spark's tasks wrote for each other, compressed; None: not known."""

    name: str
    seconds: float
    shuffled_bytes: int | None = None


@dataclass(frozen=True)
class StageTimes:
    """What the stages of a day took that a run did, by name, and on how many cores Spark ran."""

    dt: str
    cores: int
    stages: Mapping[str, StageRun]


def write_stages(store: Store, dt: date, stages: Sequence[StageRun], cores: int) -> None:
    """Keep what a run's stages took. cores: those of its Spark tasks."""
    folder = f"{store.root}/{STAGES}/dt={dt}"
    store.fs.makedirs(folder, exist_ok=True)
    kept = [[run.name, round(run.seconds, 1), run.shuffled_bytes] for run in stages]
    store.write_json(f"{folder}/stages.json", {"stages": kept, "cores": cores})


def stages_of_run(store: Store, dt: date | str) -> list[StageRun]:
    """What jobs.run left of a day's stages; none where it did not run."""
    record = read_json(store, f"{store.root}/{STAGES}/dt={dt}/stages.json") or {}
    return [StageRun(*stage) for stage in record.get("stages", [])]


def latest_times(store: Store, until: date) -> StageTimes | None:
    """Times of the latest day up to `until` that left any together with its cores; of one day the night's count."""
    for dt in sorted({*_days(store, STAGES), *_days(store, NIGHTLY)}, reverse=True):
        if dt > str(until):
            continue
        night = read_json(store, f"{store.root}/{NIGHTLY}/dt={dt}/{_NIGHT}") or {}
        did = [step for step in night.get("steps", []) if step["status"] == DONE]
        if did and night.get("cores"):
            runs = [StageRun(step["name"], step["seconds"], step.get("shuffled_bytes")) for step in did]
            return StageTimes(dt, int(night["cores"]), {run.name: run for run in runs})
        run = read_json(store, f"{store.root}/{STAGES}/dt={dt}/stages.json") or {}
        if run.get("cores"):
            return StageTimes(dt, int(run["cores"]), {stage.name: stage for stage in stages_of_run(store, dt)})
    return None


def _days(store: Store, table: str) -> list[str]:
    folder = f"{store.root}/{table}"
    if not store.fs.exists(folder):
        return []
    names = (path.rstrip("/").rpartition("/")[2] for path in store.fs.ls(folder, detail=False))
    return [name.removeprefix("dt=") for name in names if name.startswith("dt=")]
