"""Failures on purpose on a live cluster: what comes out is equal rows, or a loud end with nothing published."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy import cluster
from features.contracts import OPEN_SESSIONS, SCORES, SESSIONS
from jobs.store import MANIFEST
from tests.cluster.submits import (
    CUT,
    DAY,
    SCORED,
    Site,
    as_root,
    copy_without,
    counters,
    is_published,
    log_of,
    rows,
    wait_for,
)

_SCRATCH_KIB = 1536  # room for an executor to start in, and none for a shuffle


@pytest.fixture(autouse=True)
def nobody_at_work(site: Site) -> Iterator[None]:
    """Every test starts and ends with a cluster that is whole and idle."""
    yield
    site.end_drivers()  # nothing, unless the test failed
    wait_for("executors to end", lambda: not site.executors())
    wait_for("both workers", lambda: site.cluster.alive() == 2)


def was_lost(site: Site, executor: str) -> bool:
    """Whether a worker's log has it that an executor ended by a signal."""
    logs = [path.read_text(errors="replace") for path in site.folder.glob("worker-*.log")]
    return any(re.search(rf"Executor {executor} finished .*exitStatus 137", text) for text in logs)


def killed(processes: list[psutil.Process]) -> None:
    processes[0].kill()


def stopped_for_a_while(processes: list[psutil.Process]) -> None:
    processes[0].suspend()
    time.sleep(10)  # longer than three heartbeats, shorter than spark.network.timeout
    processes[0].resume()


@pytest.mark.parametrize("job", ["sessionize", "score"])
def test_an_executor_that_is_killed_changes_no_row(site: Site, local_root: Path, tmp_path: Path, job: str) -> None:
    tables, arguments = (CUT, log_of(local_root)) if job == "sessionize" else (SCORED, [])
    root, table = copy_without(local_root, tmp_path / "root", *tables), tables[0]
    driver = site.submit(job, root, *arguments, is_held=True)
    wait_for("Python in an executor", site.python_workers, driver)
    assert not is_published(root, table)
    victim = site.executors()[0]
    executor = "/".join(Path(victim.cwd()).parts[-2:])  # application and number
    victim.kill()
    driver.finished()
    wait_for("word of it", lambda: was_lost(site, executor))
    assert rows(root, table) == rows(local_root, table)
    assert counters(root, table) == counters(local_root, table)
    if job == "sessionize":
        assert rows(root, OPEN_SESSIONS.name) == rows(local_root, OPEN_SESSIONS.name)


def test_a_worker_that_is_killed_changes_no_row(site: Site, local_root: Path, tmp_path: Path) -> None:
    root = copy_without(local_root, tmp_path / "root", *SCORED)
    driver = site.submit("score", root, is_held=True)
    wait_for("Python in an executor", site.python_workers, driver)
    record = next(process for process in site.cluster.processes if process.name.startswith("worker-"))
    psutil.Process(record.pid).kill()
    try:
        driver.finished()
    finally:
        grown = cluster.add_worker(site.cluster, "worker-3", 1, 1024)
        wait_for("the new worker", lambda: grown.alive() == 2)
    assert rows(root, SCORES.name) == rows(local_root, SCORES.name)


def test_a_driver_that_is_killed_while_it_writes_publishes_nothing(
    site: Site, local_root: Path, tmp_path: Path
) -> None:
    root = copy_without(local_root, tmp_path / "root", *CUT)
    driver = site.submit("sessionize", root, *log_of(local_root), is_held=True)
    wait_for("a file", lambda: [*(root / SESSIONS.name).rglob("_staging*/**/*.parquet")], driver)
    driver.kill()
    assert not any(is_published(root, table) for table in CUT)
    wait_for("executors to end", lambda: not site.executors())
    site.run("sessionize", root, *log_of(local_root))
    for table in (SESSIONS.name, OPEN_SESSIONS.name):
        assert rows(root, table) == rows(local_root, table)


@pytest.mark.parametrize(
    ("whom", "what"), [(Site.python_workers, killed), (Site.executors, stopped_for_a_while)], ids=["oom", "straggler"]
)
def test_a_lost_python_worker_or_a_straggler_changes_no_row(
    site: Site,
    local_root: Path,
    tmp_path: Path,
    whom: Callable[[Site], list[psutil.Process]],
    what: Callable[[list[psutil.Process]], None],
) -> None:
    root = copy_without(local_root, tmp_path / "root", *SCORED)
    driver = site.submit("score", root, is_held=True)
    wait_for("Python in an executor", site.python_workers, driver)
    what(wait_for("whom it concerns", lambda: whom(site), driver))
    driver.finished()
    assert rows(root, SCORES.name) == rows(local_root, SCORES.name)


def test_an_executor_that_is_lost_in_training_ends_it_with_a_message(
    site: Site, local_root: Path, tmp_path: Path
) -> None:
    root = copy_without(local_root, tmp_path / "root", "bundle", "_checkpoints", "_training")
    endless = ("training.max_epochs=1000", "training.patience_epochs=1000")
    driver = site.submit(
        "train", root, "--launcher", "spark", "--ranks", "2", *(part for text in endless for part in ("--set", text))
    )
    wait_for("an epoch", lambda: "epoch 2/1000" in driver.said(), driver)
    assert len(site.ranks()) == 2
    killed(site.executors())
    assert "a rank is gone" in driver.finished(code=3)
    assert not (root / "bundle" / f"dt={DAY}" / MANIFEST).exists()
    wait_for("ranks to end", lambda: not site.ranks())


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of a few MiB is mounted, which needs root")
def test_a_full_disk_ends_the_job_loudly(site: Site, local_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    found = cluster.up(folder, workers=0)
    scratch = folder / "worker-1" / "scratch"
    scratch.mkdir(parents=True)
    small = Site(folder, site.dist, site.unpacked)
    root = copy_without(local_root, tmp_path / "root", *CUT)
    try:
        as_root("mount", "-t", "tmpfs", "-o", f"size={_SCRATCH_KIB}k", "tmpfs", scratch)
        cluster.add_worker(found, "worker-1", 1, 1024)
        said = small.submit("sessionize", root, *log_of(local_root)).finished(code=1)
    finally:
        small.end()
        subprocess.run(["umount", "--lazy", scratch], check=False, capture_output=True)
    assert "No space left on device" in said
    assert not any(is_published(root, table) for table in CUT)
