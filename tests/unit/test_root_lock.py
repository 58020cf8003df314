"""One run at a time on a root: who holds it is said, the dead are succeeded, strangers are left alone."""

import json
import os
import socket
import subprocess
import sys
import uuid
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from jobs import nightly, root_lock, score
from jobs.processes import began
from jobs.root_lock import LOCK, HeldError, exclusive, one_stage, refuse_if_held
from jobs.store import Store

PROJECT = Path(nightly.__file__).parent.parent
DAY, NEXT_DAY = date(2024, 3, 1), date(2024, 3, 2)
HOLD = """
import sys
from jobs.root_lock import exclusive
from jobs.store import Store
with exclusive(Store(sys.argv[1]), "jobs.nightly", print):
    print("held", flush=True)
    sys.stdin.read()
"""
HOLD_STAGE = """
import sys
from datetime import date
from jobs.root_lock import one_stage
from jobs.store import Store
with one_stage(Store(sys.argv[1]), "score", date(2024, 3, 1), print):
    print("held", flush=True)
    sys.stdin.read()
"""
RACE = """
import sys
from jobs.root_lock import HeldError, exclusive
from jobs.store import Store
print("ready", flush=True)
sys.stdin.readline()
try:
    with exclusive(Store(sys.argv[1]), "jobs.nightly", lambda said: None):
        print("won", flush=True)
        sys.stdin.readline()  # it holds until every other one has said what it found
except HeldError:
    print("held", flush=True)
"""


def stage(
    root: Path, job: str = "score", day: date = DAY, said: list[str] | None = None
) -> AbstractContextManager[None]:
    return one_stage(Store(str(root)), job, day, print if said is None else said.append)


def start(code: str, root: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, str(root)]
    process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def plant(root: Path, **changes: Any) -> Path:
    """A lock of a process that ended, or of what `changes` say."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    holder = {**root_lock._identity("jobs.nightly"), "pid": ended.pid, "began": "1", **changes}
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(holder))
    return path


def test_a_file_system_without_hard_links_has_locks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with exclusive(Store(str(tmp_path)), "jobs.nightly", print):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert sorted(path.name for path in (tmp_path / LOCK).parent.iterdir()) == ["run.lock", "run.lock.guard"]
    assert not (tmp_path / LOCK).exists()
    plant(tmp_path)
    with exclusive(Store(str(tmp_path)), "jobs.nightly", print):
        pass


def test_a_living_holder_is_named_and_nothing_of_its_lock_changes(tmp_path: Path) -> None:
    process = start(HOLD, tmp_path)
    before = (tmp_path / LOCK).read_bytes()
    with (
        pytest.raises(HeldError, match=rf"jobs\.nightly on {socket.gethostname()}, pid {process.pid}, started 2"),
        exclusive(Store(str(tmp_path)), "jobs.nightly", print),
    ):
        pass
    with pytest.raises(HeldError):
        refuse_if_held(str(tmp_path))
    assert (tmp_path / LOCK).read_bytes() == before
    process.communicate("")
    refuse_if_held(str(tmp_path))


def test_a_killed_holder_is_succeeded_with_a_line(tmp_path: Path) -> None:
    process = start(HOLD, tmp_path)
    process.kill()
    process.communicate()
    said: list[str] = []
    with exclusive(Store(str(tmp_path)), "jobs.publish", said.append):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        refuse_if_held(str(tmp_path))  # what the run starts itself is let in
    assert len(said) == 1
    assert f"taken over from jobs.nightly on {socket.gethostname()}, pid {process.pid}" in said[0]
    assert not (tmp_path / LOCK).exists()


def test_a_pid_that_was_given_again_and_a_boot_that_is_over_are_dead(tmp_path: Path) -> None:
    own = os.getpid()
    for changes in ({"pid": own}, {"pid": own, "began": began(own), "boot": "other"}):
        plant(tmp_path, **changes)
        said: list[str] = []
        with exclusive(Store(str(tmp_path)), "jobs.nightly", said.append):
            assert "taken over from" in said[0]


def test_another_host_is_never_taken_for_dead(tmp_path: Path) -> None:
    plant(tmp_path, host="elsewhere")
    with (
        pytest.raises(HeldError, match="remove the file"),
        exclusive(Store(str(tmp_path)), "jobs.nightly", print),
    ):
        pass
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "elsewhere"


def test_a_lock_that_cannot_be_read_is_held(tmp_path: Path) -> None:
    plant(tmp_path).write_text("{")
    with (
        pytest.raises(HeldError, match="does not say who it is"),
        exclusive(Store(str(tmp_path)), "jobs.nightly", print),
    ):
        pass


def test_of_many_that_take_over_at_once_one_wins(tmp_path: Path) -> None:
    plant(tmp_path)
    runs = [start(RACE, tmp_path) for _ in range(4)]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    said = []
    for run in runs:
        assert run.stdout is not None
        said.append(run.stdout.readline().strip())
    for run in runs:
        run.communicate()
    assert sorted(said) == ["held", "held", "held", "won"]


def test_a_stage_that_runs_alone_excludes_itself_on_that_day_and_whole_runs(tmp_path: Path) -> None:
    process = start(HOLD_STAGE, tmp_path)
    named = rf"this stage of the day is held by jobs\.score on {socket.gethostname()}, pid {process.pid}"
    with pytest.raises(HeldError, match=named), stage(tmp_path):
        pass
    with pytest.raises(HeldError, match=named), exclusive(Store(str(tmp_path)), "jobs.nightly", print):
        pass
    assert not (tmp_path / LOCK).exists()
    with stage(tmp_path, day=NEXT_DAY), stage(tmp_path, "sequences"):
        refuse_if_held(str(tmp_path))  # who only reads goes on
    process.communicate("")
    with exclusive(Store(str(tmp_path)), "jobs.nightly", print), stage(tmp_path):  # what the run does itself is let in
        assert [path.name for path in (tmp_path / LOCK).parent.glob("*.lock")] == ["run.lock"]


def test_a_stage_is_refused_beside_a_whole_run_and_succeeds_one_that_was_killed(tmp_path: Path) -> None:
    process = start(HOLD, tmp_path)
    with pytest.raises(HeldError, match=rf"the root is held by jobs\.nightly .*pid {process.pid}"), stage(tmp_path):
        pass
    process.communicate("")
    process = start(HOLD_STAGE, tmp_path)
    process.kill()
    process.communicate()
    with exclusive(Store(str(tmp_path)), "jobs.nightly", print):
        pass
    said: list[str] = []
    with stage(tmp_path, said=said):
        assert "taken over from jobs.score" in said[0]
    assert [*(tmp_path / LOCK).parent.glob("*.lock")] == []


def test_commands_end_with_code_4_beside_a_stage_that_runs_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(HOLD_STAGE, tmp_path)
    day = ["--root", str(tmp_path), "--date", str(DAY)]
    assert score.main(day) == 4
    assert nightly.main([*day, "--source", "simulated", "--input", "log.csv"]) == 4
    assert capsys.readouterr().err.count(f"pid {process.pid}") == 2
    process.communicate("")


def test_on_another_store_a_lock_is_made_where_none_is_seen() -> None:
    store = Store(f"memory://root-{uuid.uuid4().hex}")
    with exclusive(store, "jobs.nightly", print):
        holder = json.loads(store.fs.cat_file(root_lock._path(store, LOCK)))
        assert holder["pid"] == os.getpid()
        with pytest.raises(HeldError, match=f"pid {os.getpid()}"), exclusive(store, "jobs.nightly", print):
            pass
    assert not store.fs.exists(root_lock._path(store, LOCK))
    with one_stage(store, "score", DAY, print):
        with pytest.raises(HeldError, match="this stage of the day"), exclusive(store, "jobs.nightly", print):
            pass
        with pytest.raises(HeldError, match="this stage of the day"), one_stage(store, "score", DAY, print):
            pass
