"""One run at a time on a root: a lock file that says who holds it, and is taken over from the dead.

A stage that is run alone holds its own day only, so that other days and stages go on beside it, but no whole run does.

On a local root (also a POSIX mount) two runs never hold it at once: the file appears whole, by a hard link that fails
where there is one already. On other stores it is made only where none is seen; where the store can refuse to replace an
object, that is asked for, else two runs that start within the same moment may both go on. There let the scheduler see
to it that a root has one run (docs/operations.md).
"""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import fsspec

from jobs.processes import began
from jobs.store import Store

_FOLDER, _LOCKS = "_nightly", ".lock"
LOCK = f"{_FOLDER}/run{_LOCKS}"
_GUARD = f"{LOCK}.guard"
HOLDER = "INTEREST_LOCK_HOLDER"  # in the environment of a run and of the processes it starts: its root
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class HeldError(Exception):
    """Another run holds the root: who, since when, and what to do. Exit code 4."""


@contextmanager
def exclusive(store: Store, job: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the root for one run; `tell` gets a line where a dead run's lock is taken over.

    Raises:
        HeldError: another run holds it, or a stage of it that is run alone.
    """
    with _held_file(store, LOCK, _identity(job), tell):
        before = os.environ.get(HOLDER)
        os.environ[HOLDER] = store.root
        try:
            yield
        finally:
            if before is None:
                del os.environ[HOLDER]
            else:
                os.environ[HOLDER] = before


@contextmanager
def one_stage(store: Store, job: str, day: date, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold one stage of one day, for a stage that is run alone; nothing is held where a whole run started this process.

    Raises:
        HeldError: another process does the same stage of the same day, or a run holds the root.
    """
    if os.environ.get(HOLDER) == store.root:
        yield
        return
    with _held_file(store, f"{_FOLDER}/{job}-{day}{_LOCKS}", _identity(f"jobs.{job}"), tell):
        yield


def refuse_if_held(root: str) -> None:
    """Refuse to start a single stage on a root that a whole run holds, unless that run started this process.

    Raises:
        HeldError: names the run.
    """
    store = Store(root)
    if os.environ.get(HOLDER) == store.root:
        return
    _refuse_living(store, [_path(store, LOCK)])


@contextmanager
def _held_file(store: Store, name: str, own: Mapping[str, Any], tell: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock file of the root."""
    path = _path(store, name)
    store.fs.makedirs(f"{store.root}/{_FOLDER}", exist_ok=True)
    if _is_local(store):
        with Path(_path(store, _GUARD)).open("a") as guard:  # on this machine: look, take over and make as one step
            fcntl.flock(guard, fcntl.LOCK_EX)
            _refuse_living(store, _others(store, name))
            _take_local(path, own, tell)
    else:
        _refuse_living(store, _others(store, name))
        _take_remote(store, path, own)
    try:
        yield
    finally:
        if _read(store, path) == own:
            with suppress(FileNotFoundError):
                store.fs.rm(path)


def _others(store: Store, name: str) -> list[str]:
    """The locks that must be free beside this one: of a run those of all stages, of a stage that of the run."""
    if name != LOCK:
        return [_path(store, LOCK)]
    folder = _path(store, _FOLDER)
    found = store.fs.ls(folder, detail=False) if store.fs.exists(folder) else []
    return [path for path in sorted(map(str, found)) if path.endswith(_LOCKS) and path != _path(store, LOCK)]


def _refuse_living(store: Store, paths: Sequence[str]) -> None:
    for path in paths:
        holder = _read(store, path)
        if holder is not None and not _is_dead(holder):
            raise _held(path, holder)


def _take_local(path: str, own: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    """Make the file, or take it over; under the guard."""
    hidden = f"{path}.{own['pid']}"
    holder = _read_local(path)
    if holder is not None and not _is_dead(holder):
        raise _held(path, holder)
    if holder is not None:
        tell(f"{path}: taken over from {_words(holder)}, which is no longer alive")
        os.unlink(path)
    Path(hidden).write_text(json.dumps(own, indent=1), encoding="utf-8")
    try:
        os.link(hidden, path)
    except FileExistsError:
        raise _held(path, _read_local(path) or {}) from None
    except OSError:  # a file system without hard links
        if os.path.exists(path):
            raise _held(path, _read_local(path) or {}) from None
        os.replace(hidden, path)
    finally:
        Path(hidden).unlink(missing_ok=True)


def _take_remote(store: Store, path: str, own: Mapping[str, Any]) -> None:
    holder = _read(store, path)
    if holder is not None and not _is_dead(holder):
        raise _held(path, holder)
    content = json.dumps(own, indent=1).encode()
    try:
        store.fs.pipe_file(path, content, mode="overwrite" if holder else "create")
    except FileExistsError:
        raise _held(path, _read(store, path) or {}) from None
    except (NotImplementedError, TypeError):
        store.fs.pipe_file(path, content)
    found = _read(store, path)
    if found != own:
        raise _held(path, found or {})


def _path(store: Store, name: str) -> str:
    """A file of the root as the file system spells it, without a scheme."""
    return f"{fsspec.core.url_to_fs(store.root)[1]}/{name}"


def _identity(job: str) -> dict[str, Any]:
    """Who this process is: host and boot, pid and when it began (a pid is given again), and the time for people."""
    return {
        "job": job,
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "began": began(os.getpid()),
        "start": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether the holder is surely gone. Of another host nothing is known from here."""
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return False
    if holder.get("boot") != _boot():
        return True
    return began(int(holder.get("pid", 0))) != holder.get("began")


def _boot() -> str | None:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else None


def _held(path: str, holder: Mapping[str, Any]) -> HeldError:
    what = "the root" if path.endswith(LOCK) else "this stage of the day"
    return HeldError(
        f"{path}: {what} is held by {_words(holder)}. Nothing was started. Wait until it has ended and run again; if "
        f"that process is gone and was on another host, remove the file."
    )


def _words(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "a run that does not say who it is"
    return f"{holder.get('job')} on {holder.get('host')}, pid {holder.get('pid')}, started {holder.get('start')}"


def _read(store: Store, path: str) -> dict[str, Any] | None:
    """The holder; {} where the file cannot be understood, None where there is none."""
    if _is_local(store):
        return _read_local(path)
    try:
        return _parsed(store.fs.cat_file(path))
    except FileNotFoundError:
        return None


def _read_local(path: str) -> dict[str, Any] | None:
    try:
        return _parsed(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_local(store: Store) -> bool:
    return "file" in (store.fs.protocol if isinstance(store.fs.protocol, tuple) else (store.fs.protocol,))
