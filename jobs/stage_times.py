"""What the stages of a run took: left by jobs.run and jobs.nightly, read by the report and for planning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from jobs.steps import DONE, NIGHTLY, read_json
from jobs.store import Store

STAGES = "_run"  # ROOT/_run/dt=D/stages.json
_NIGHT = "metrics.json"


@dataclass(frozen=True)
class StageTimes:
    """Seconds of each stage that a run did, and on how many cores Spark ran."""

    dt: str
    cores: int
    seconds: Mapping[str, float]


def write_stages(store: Store, dt: date, stages: Sequence[tuple[str, float]], cores: int) -> None:
    """Keep the seconds of a run's stages. cores: those of its Spark tasks."""
    folder = f"{store.root}/{STAGES}/dt={dt}"
    store.fs.makedirs(folder, exist_ok=True)
    store.write_json(f"{folder}/stages.json", {"stages": [[name, round(s, 1)] for name, s in stages], "cores": cores})


def stages_of_run(store: Store, dt: date | str) -> list[tuple[str, float]]:
    """Stages and seconds that jobs.run left of a day; none where it did not run."""
    record = read_json(store, f"{store.root}/{STAGES}/dt={dt}/stages.json") or {}
    return [(str(name), float(seconds)) for name, seconds in record.get("stages", [])]


def latest_times(store: Store, until: date) -> StageTimes | None:
    """Times of the latest day up to `until` that left any together with its cores; of one day the night's count."""
    for dt in sorted({*_days(store, STAGES), *_days(store, NIGHTLY)}, reverse=True):
        if dt > str(until):
            continue
        night = read_json(store, f"{store.root}/{NIGHTLY}/dt={dt}/{_NIGHT}") or {}
        did = {step["name"]: float(step["seconds"]) for step in night.get("steps", []) if step["status"] == DONE}
        if did and night.get("cores"):
            return StageTimes(dt, int(night["cores"]), did)
        run = read_json(store, f"{store.root}/{STAGES}/dt={dt}/stages.json") or {}
        if run.get("cores"):
            return StageTimes(dt, int(run["cores"]), dict(stages_of_run(store, dt)))
    return None


def _days(store: Store, table: str) -> list[str]:
    folder = f"{store.root}/{table}"
    if not store.fs.exists(folder):
        return []
    names = (path.rstrip("/").rpartition("/")[2] for path in store.fs.ls(folder, detail=False))
    return [name.removeprefix("dt=") for name in names if name.startswith("dt=")]
