"""One run at a time on a root: a lock file that says who holds it, and is taken over from the dead.

On a local root (also a POSIX mount) two runs never hold it at once: the file appears whole, by a hard link that fails
where there is one already. On other stores it is made only where none is seen; where the store can refuse to replace an
object, that is asked for, else two runs that start within the same moment may both go on. There let the scheduler see
to it that a root has one run (docs/operations.md).
"""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from jobs.store import Store

LOCK = "_nightly/run.lock"
HOLDER = "INTEREST_LOCK_HOLDER"  # in the environment of a run and of the processes it starts: its root
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class HeldError(Exception):
    """Another run holds the root: who, since when, and what to do. Exit code 4."""


@contextmanager
def exclusive(store: Store, job: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the root for one run; `tell` gets a line where a dead run's lock is taken over.

    Raises:
        HeldError: another run holds it.
    """
    path, own = _path(store), _identity(job)
    store.fs.makedirs(f"{store.root}/_nightly", exist_ok=True)
    if _is_local(store):
        _take_local(path, own, tell)
    else:
        _take_remote(store, path, own)
    before = os.environ.get(HOLDER)
    os.environ[HOLDER] = store.root
    try:
        yield
    finally:
        if before is None:
            del os.environ[HOLDER]
        else:
            os.environ[HOLDER] = before
        if _read(store, path) == own:
            with suppress(FileNotFoundError):
                store.fs.rm(path)


def refuse_if_held(root: str) -> None:
    """Refuse to start a single stage on a root that a whole run holds, unless that run started this process.

    Raises:
        HeldError: names the run.
    """
    store = Store(root)
    if os.environ.get(HOLDER) == store.root:
        return
    path = _path(store)
    holder = _read(store, path)
    if holder is not None and not _is_dead(holder):
        raise _held(path, holder)


def _take_local(path: str, own: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    hidden = f"{path}.{own['pid']}"
    with Path(f"{path}.guard").open("a") as guard:  # among runs of this machine: look, take over and make as one step
        fcntl.flock(guard, fcntl.LOCK_EX)
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
        finally:
            os.unlink(hidden)


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


def _path(store: Store) -> str:
    """The lock file as the file system spells it, without a scheme."""
    return f"{fsspec.core.url_to_fs(store.root)[1]}/{LOCK}"


def _identity(job: str) -> dict[str, Any]:
    """Who this process is: host and boot, pid and when it began (a pid is given again), and the time for people."""
    return {
        "job": job,
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "began": _began(os.getpid()),
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
    return _began(int(holder.get("pid", 0))) != holder.get("began")


def _boot() -> str | None:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else None


def _began(pid: int) -> str | None:
    """Clock tick at which a living process began, None where there is none or only its exit code is left."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # after the name, which may hold spaces: state, parent, … (proc(5))
    return None if fields[0] in "ZX" else fields[19]


def _held(path: str, holder: Mapping[str, Any]) -> HeldError:
    return HeldError(
        f"{path}: the root is held by {_words(holder)}. Nothing was started. Wait until it has ended and run again; if "
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
