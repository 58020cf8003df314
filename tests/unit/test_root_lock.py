"""One run at a time on a root: who holds it is said, the dead are succeeded, strangers are left alone."""

import json
import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from jobs import nightly, root_lock
from jobs.root_lock import LOCK, HeldError, exclusive, refuse_if_held
from jobs.store import Store

PROJECT = Path(nightly.__file__).parent.parent
HOLD = """
import sys
from jobs.root_lock import exclusive
from jobs.store import Store
with exclusive(Store(sys.argv[1]), "jobs.nightly", print):
    print("held", flush=True)
    sys.stdin.read()
"""
RACE = """
import sys, time
from jobs.root_lock import HeldError, exclusive
from jobs.store import Store
print("ready", flush=True)
sys.stdin.readline()
try:
    with exclusive(Store(sys.argv[1]), "jobs.nightly", lambda said: None):
        print("won", flush=True)
        time.sleep(3)
except HeldError:
    print("held", flush=True)
"""


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
    for changes in ({"pid": own}, {"pid": own, "began": root_lock._began(own), "boot": "other"}):
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
    said = [run.communicate()[0].strip() for run in runs]
    assert sorted(said) == ["held", "held", "held", "won"]


def test_on_another_store_a_lock_is_made_where_none_is_seen() -> None:
    store = Store(f"memory://root-{uuid.uuid4().hex}")
    with exclusive(store, "jobs.nightly", print):
        holder = json.loads(store.fs.cat_file(root_lock._path(store)))
        assert holder["pid"] == os.getpid()
        with pytest.raises(HeldError, match=f"pid {os.getpid()}"), exclusive(store, "jobs.nightly", print):
            pass
    assert not store.fs.exists(root_lock._path(store))
