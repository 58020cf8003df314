"""Files of nights: steps that were done, releases and their pointer, and what retention leaves."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.contracts import (
    OPEN_SESSIONS,
    SCORES,
    SEQUENCES,
    TRAINING_SEQUENCES,
    USER_STATES,
    VOCABULARY,
    Contract,
    ContractError,
)
from jobs import publish as publishing
from jobs.nightly_spec import RetentionSpec
from jobs.published import POINTER, Pointer, Release, bundle_of, publish, read_pointer, release_before, roll_back
from jobs.retention import plan_removals, remove
from jobs.settings import UsageError, load_settings
from jobs.steps import DONE, FAILED, SKIPPED, Steps, identity
from jobs.store import MANIFEST, Lineage, Store

FIRST = date(2024, 3, 1)
DAYS = [FIRST + timedelta(days=k) for k in range(6)]


def table(store: Store, contract: Contract, dt: date, inputs: dict[str, str] | None = None, **counters: Any) -> None:
    """A partition whose rows nobody reads."""
    staged = store.staging(contract.name, dt)
    store.fs.makedirs(staged)
    pq.write_table(pa.table({"x": [1, 2]}), f"{staged}/part-0.parquet")
    store.publish(contract, dt, staged, Lineage(inputs or {}, "config", {"made": str(dt), **counters}))


def scores(store: Store, dt: date, model: str = "m1") -> None:
    table(store, SCORES, dt, model_version=model)


def bundle(store: Store, dt: date, model: str) -> None:
    folder = Path(store.path("bundle", dt))
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps({"model_version": model}))


def run(steps: Steps, key: dict[str, Any], work: list[str], outputs: tuple[Contract, ...] = ()) -> bool:
    def do() -> str:
        work.append("done")
        return "done"

    return steps.run("step", key, outputs, do)


def test_a_step_is_done_once_for_the_same_inputs_and_outputs(tmp_path: Path) -> None:
    store, work = Store(str(tmp_path)), list[str]()
    scores(store, FIRST)
    steps = Steps(store, FIRST)
    assert run(steps, {"in": "a"}, work, (SCORES,))
    assert not run(steps, {"in": "a"}, work, (SCORES,))
    assert run(steps, {"in": "b"}, work, (SCORES,))
    assert not run(Steps(store, FIRST), {"in": "b"}, work, (SCORES,))  # another run of the night
    next(Path(store.path(SCORES.name, FIRST)).glob("*.parquet")).unlink()  # torn
    assert run(Steps(store, FIRST), {"in": "b"}, work, (SCORES,))
    assert run(Steps(store, FIRST + timedelta(days=1)), {"in": "b"}, work)
    assert len(work) == 4
    assert [entry["status"] for entry in steps.summary()] == [DONE, SKIPPED, DONE]


def test_a_step_that_fails_leaves_no_record(tmp_path: Path) -> None:
    steps, work = Steps(Store(str(tmp_path)), FIRST), list[str]()
    assert run(steps, {"in": "a"}, work)

    def fail() -> str:
        raise ContractError("no")

    with pytest.raises(ContractError, match="no"):
        steps.run("step", {"in": "b"}, (), fail)
    assert steps.runs[-1].status == FAILED
    assert run(steps, {"in": "a"}, work)  # the old record is gone too: the outputs may be half replaced


def test_a_release_stays_as_it_was_when_its_day_is_scored_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    scores(store, FIRST)
    bundle(store, FIRST, "m1")
    release = publish(store, FIRST, 3)
    assert release.bundle == "models/m1"
    folder = tmp_path / release.path
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    scores(store, FIRST, "m2")
    assert read_pointer(store).current == release
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    again = publish(store, FIRST, 3)
    assert again.path != release.path
    assert (again.model_version, again.bundle) == ("m2", None)
    assert read_pointer(store) == Pointer(again, (release,))
    publish(store, FIRST, 3)
    assert read_pointer(store) == Pointer(again, (release,))


def test_the_model_of_a_release_outlives_another_training_of_its_day(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    scores(store, FIRST)
    bundle(store, FIRST, "m1")
    (tmp_path / "bundle" / f"dt={FIRST}" / "weights").write_text("of m1")
    release = publish(store, FIRST, 3)
    shutil.rmtree(tmp_path / "bundle")
    bundle(store, FIRST, "m2")
    assert release.bundle is not None
    assert (tmp_path / release.bundle / "weights").read_text() == "of m1"
    assert bundle_of(store, "m1") == release.bundle
    assert bundle_of(store, "m2") == f"bundle/dt={FIRST}"
    scores(store, DAYS[1])
    assert publish(store, DAYS[1], 3).bundle == release.bundle
    spec = RetentionSpec(nights={}, runs=1, releases=2)
    assert not any("models" in path for path in plan_removals(store, spec, read_pointer(store), DAYS[1]).releases)
    assert f"{store.root}/models/m1" in plan_removals(store, spec, Pointer(), DAYS[1]).releases


def _killed_at(step: int, store: Store, dt: date) -> bool:
    """Publish in a process that kills itself before its n-th change of a file → whether it came that far."""
    child = os.fork()
    if child == 0:
        steps = iter(range(step))

        def dies_first(change: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                if next(steps, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*arguments, **named)

            return call

        try:
            for owner, names in ((os, ["link"]), (store.fs, ["makedirs", "mv", "rm", "cp_file"])):
                for name in names:
                    setattr(owner, name, dies_first(getattr(owner, name)))
            publish(store, dt, 3)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_killed_at_any_moment_publishing_leaves_the_old_scores_or_the_new(tmp_path: Path) -> None:
    seen = []
    for step in range(20):
        store = Store(str(tmp_path / str(step)))
        scores(store, DAYS[0])
        publish(store, DAYS[0], 3)
        scores(store, DAYS[1])
        was_killed = _killed_at(step, store, DAYS[1])
        current = read_pointer(store).current
        assert current is not None
        whole = Path(store.root, current.path)
        files = json.loads((whole / MANIFEST).read_text())["files"]
        assert [(whole / file["path"]).stat().st_size for file in files] == [file["bytes"] for file in files]
        seen.append(current.date)
        assert publish(store, DAYS[1], 3).date == str(DAYS[1])  # the same command again
        again = read_pointer(store)
        assert [release.date for release in again.releases] == [str(DAYS[1]), str(DAYS[0])]
        if not was_killed:
            break
    assert len(seen) > 3
    assert (seen[0], seen[-1]) == (str(DAYS[0]), str(DAYS[1]))


def test_a_pointer_is_replaced_by_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    scores(store, DAYS[0])
    publish(store, DAYS[0], 3)
    before = (tmp_path / POINTER).read_bytes()
    scores(store, DAYS[1])

    def dies(*_: Any, **__: Any) -> None:
        raise OSError("killed before the rename")

    with monkeypatch.context() as patch:
        patch.setattr(type(store.fs), "mv", dies)
        with pytest.raises(OSError, match="killed"):
            publish(store, DAYS[1], 3)
    assert (tmp_path / POINTER).read_bytes() == before
    assert publish(store, DAYS[1], 3).date == str(DAYS[1])


def test_one_goes_back_night_by_night_until_nothing_is_left(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    releases = []
    for day in DAYS[:3]:
        scores(store, day)
        releases.append(publish(store, day, 3))
    first, second, third = releases
    assert roll_back(store) == (second, third)
    assert read_pointer(store) == Pointer(second, (first,), (third,))
    assert release_before(read_pointer(store), DAYS[5]) == second
    assert release_before(read_pointer(store), DAYS[1]) == first
    assert roll_back(store)[0] == first
    with pytest.raises(ContractError, match="is the only release"):
        roll_back(store)
    scores(store, DAYS[3])
    fourth = publish(store, DAYS[3], 3)
    assert read_pointer(store) == Pointer(fourth, (first,), (second, third))


def test_after_a_way_back_to_any_night_that_one_is_in_use(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for day in DAYS[:3]:
        scores(store, day)
        publish(store, day, 9)
    first = publish(store, DAYS[0], 9)
    assert release_before(read_pointer(store), DAYS[3]) == first
    scores(store, DAYS[3])
    publish(store, DAYS[3], 9)
    assert release_before(read_pointer(store), DAYS[3]) == first  # as that night finds it when it is run again


def test_the_command_publishes_shows_and_goes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(str(tmp_path))
    for day in DAYS[:2]:
        scores(store, day)
        assert publishing.main(["--root", str(tmp_path), "--date", str(day)]) == 0
    assert publishing.main(["--root", str(tmp_path), "--rollback"]) == 0
    capsys.readouterr()
    assert publishing.main(["--root", str(tmp_path), "--show"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["status"], line["date"]) for line in shown] == [
        ("current", str(DAYS[0])),
        ("withdrawn", str(DAYS[1])),
    ]
    assert publishing.main(["--root", str(tmp_path), "--rollback"]) == 3
    assert publishing.main(["--root", str(tmp_path), "--rollback", "--show"]) == 2
    assert publishing.main(["--root", str(tmp_path)]) == 2


def test_retention_keeps_what_kept_tables_and_releases_need(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for k, day in enumerate(DAYS):
        base = DAYS[k // 3 * 3]  # a full layer on the first and fourth day, the others lie on the day before
        vocabulary = {f"{VOCABULARY.name}/{base}": "v"}
        below = {} if day == base else {f"{SEQUENCES.name}/{DAYS[k - 1]}": "h"}
        table(store, VOCABULARY, day, {f"{VOCABULARY.name}/{DAYS[k - 1]}": "v"})
        table(store, SEQUENCES, day, {**vocabulary, **below})
        table(store, TRAINING_SEQUENCES, day, {f"{VOCABULARY.name}/{day}": "v"})
        table(store, USER_STATES, day, {} if day == base else {f"{USER_STATES.name}/{DAYS[k - 1]}": "h"})
        table(store, OPEN_SESSIONS, day)
        bundle(store, day, f"m{k}")
    scores(store, DAYS[1], "m0")
    publish(store, DAYS[1], 2)
    kept = ("sequences_v1", "vocabulary_v1", "training_sequences_v1", "open_sessions_v1", "scores_v1", "bundle")
    spec = RetentionSpec(nights=dict.fromkeys((*kept, "user_states_v1"), 1), runs=1, releases=2)
    pointer = read_pointer(store)
    removals = plan_removals(store, spec, pointer, DAYS[5])
    remove(store, removals)

    def days(name: str) -> list[int]:
        return [DAYS.index(date.fromisoformat(day)) for day in store.dates(name)]

    assert days(SEQUENCES.name) == [0, 1, 3, 4, 5]  # of the published night and of the newest, layers below included
    assert days(VOCABULARY.name) == [0, 3, 5]
    assert days(TRAINING_SEQUENCES.name) == [5]
    assert days(USER_STATES.name) == [3, 4, 5]
    assert days("bundle") == [5]
    assert (tmp_path / "models" / "m0" / MANIFEST).exists()
    assert days(SCORES.name) == [1]
    assert days(OPEN_SESSIONS.name) == [0, 1, 2, 3, 4, 5]  # the links between days stay
    with_rows = [day for day in DAYS if list(Path(store.path(OPEN_SESSIONS.name, day)).glob("*.parquet"))]
    assert with_rows == [DAYS[5]]
    with pytest.raises(ContractError, match="has no rows any more: retention removed them"):
        store.check(OPEN_SESSIONS, DAYS[4], "")
    assert identity(store, OPEN_SESSIONS, DAYS[4]) == store.manifest(OPEN_SESSIONS.name, DAYS[4], "").hash
    store.check(SEQUENCES, DAYS[1], "")
    assert plan_removals(store, spec, pointer, DAYS[5]).n == 0


def test_a_night_that_is_run_again_leaves_what_it_wrote_and_what_came_after(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for day in DAYS:
        table(store, OPEN_SESSIONS, day)
        (tmp_path / "_runs" / f"dt={day}").mkdir(parents=True)
    spec = RetentionSpec(nights={OPEN_SESSIONS.name: 2}, runs=2, releases=2)
    removals = plan_removals(store, spec, Pointer(), DAYS[2])
    assert removals.emptied == ((OPEN_SESSIONS.name, str(DAYS[0])),)
    assert removals.runs == (str(DAYS[0]),)


def test_what_a_cut_off_removal_left_goes_with_the_next_night(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for day in DAYS[2:]:
        table(store, SEQUENCES, day)
        table(store, OPEN_SESSIONS, day)
        bundle(store, day, "m")
    for day in (DAYS[1], DAYS[5]):
        store.retract(SEQUENCES, day)
    left = [tmp_path / name / f"dt={DAYS[0]}" for name in (SEQUENCES.name, OPEN_SESSIONS.name)]
    # Written to still, a training's (it may run beside a night), and somebody's own.
    others = [Path(store.path(SEQUENCES.name, DAYS[5])), tmp_path / SEQUENCES.name / f"dt={DAYS[0]}.bak"]
    others += [tmp_path / name / f"dt={DAYS[0]}" for name in ("_checkpoints", "_training", "bundle")]
    for folder in (*left, *others):
        folder.mkdir(parents=True, exist_ok=True)
    spec = RetentionSpec(nights={SEQUENCES.name: 1, OPEN_SESSIONS.name: 4, "bundle": 3}, runs=1, releases=2)
    removals = plan_removals(store, spec, Pointer(), DAYS[5])
    assert (SEQUENCES.name, str(DAYS[0])) in removals.partitions
    remove(store, removals)
    assert not any(folder.exists() for folder in left)
    assert all(folder.exists() for folder in others)
    assert store.days(SEQUENCES.name) == [str(day) for day in DAYS[4:]]
    assert store.dates("bundle") == [str(day) for day in DAYS[3:]]
    assert plan_removals(store, spec, Pointer(), DAYS[5]).n == 0


def test_retention_removes_releases_that_the_pointer_forgot(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for day in DAYS[:4]:
        scores(store, day)
        publish(store, day, 2)
    for day in ("undated", *DAYS[:3]):
        (tmp_path / "_runs" / f"dt={day}" / "nightly").mkdir(parents=True)
    spec = RetentionSpec(nights={}, runs=1, releases=2)
    removals = plan_removals(store, spec, read_pointer(store), DAYS[5])
    assert (len(removals.releases), removals.n) == (2, 4)
    remove(store, removals)
    assert {path.name for path in (tmp_path / "_runs").iterdir()} == {f"dt={DAYS[2]}", "dt=undated"}
    left = sorted(path.name[:10] for path in (tmp_path / "published").iterdir())
    assert left == [str(day) for day in DAYS[2:4]]
    assert store.dates(SCORES.name) == [str(day) for day in DAYS[:4]]  # not named: kept whole


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("retention.nights.sessions_v1=3", "sessions_v1: no table that may be pruned; these may: rejected_events_v1"),
        ("retention.nights.scores_v1=0", "at least 1 night of each table stays"),
        ("retention.releases=1", "retention.releases = 1"),
    ],
)
def test_retention_that_would_lose_the_history_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_settings(assignments=[assignment])


def test_a_release_is_its_values() -> None:
    release = Release("2024-03-01", "published/2024-03-01-ab", "m", None, 3, "ab")
    assert release.name == "2024-03-01-ab"
    assert replace(release, rows=4) != release
