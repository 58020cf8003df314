"""The cluster of one's own ends what it started and nothing else; what starts it is run by tests/cluster."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy import cluster
from deploy.cluster import Cluster, ClusterError, Started
from jobs.processes import began

# A process with a child, as a Worker has executors; says the child's id, then sleeps.
_PARENT = (
    "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)']); "
    "print(child.pid, flush=True); time.sleep(3600)"
)


@pytest.fixture
def family() -> Iterator[tuple[psutil.Process, psutil.Process]]:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    yield psutil.Process(parent.pid), child
    for process in (child, parent):
        if process.is_running() if isinstance(process, psutil.Process) else process.poll() is None:
            process.kill()
    parent.wait()


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def write(folder: Path, *records: Started) -> None:
    cluster._write(folder / cluster.STATE, Cluster(str(folder), "spark://x:1", "http://x:2", records))


def test_down_ends_what_was_started_with_its_children_even_when_stopped(
    tmp_path: Path, family: tuple[psutil.Process, psutil.Process]
) -> None:
    parent, child = family
    child.suspend()
    write(tmp_path, Started("worker-1", parent.pid, began(parent.pid)))
    assert cluster.down(tmp_path) == 2
    assert not is_alive(parent)
    assert not is_alive(child)
    assert not (tmp_path / cluster.STATE).exists()
    assert cluster.down(tmp_path) == 0


def test_a_later_process_with_the_same_id_is_left_alone(
    tmp_path: Path, family: tuple[psutil.Process, psutil.Process]
) -> None:
    parent, child = family
    write(tmp_path, Started("worker-1", parent.pid, "1"))
    assert cluster.down(tmp_path) == 0
    assert is_alive(parent)
    assert is_alive(child)


def test_a_second_cluster_in_the_folder_and_one_that_is_not_there_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ClusterError, match=r"No cluster is up: .*make cluster-up"):
        cluster.read(tmp_path)
    write(tmp_path)
    assert cluster.main(["up", "--folder", str(tmp_path)]) == 1
    assert "make cluster-down" in capsys.readouterr().err


@pytest.fixture
def spark_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of Spark's launcher: a script that the test writes."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "spark-class"
    program.touch(0o755)
    monkeypatch.setattr(cluster, "spark_home", lambda: tmp_path)
    return program


def test_a_master_that_does_not_start_is_told_with_the_end_of_its_log(tmp_path: Path, spark_class: Path) -> None:
    spark_class.write_text("#!/bin/sh\necho no Java here\nexit 1\n")
    with pytest.raises(ClusterError, match=r"master did not start; .*no Java here"):
        cluster.up(tmp_path / "own")
    assert not (tmp_path / "own" / cluster.STATE).exists()


def test_what_a_master_says_just_before_its_end_is_told(
    tmp_path: Path, spark_class: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spark_class.write_text("#!/bin/sh\nexit 1\n")
    log = tmp_path / "own" / "master.log"

    def says_its_last(record: Started) -> None:
        assert record.name == "master"
        log.write_text("no Java here\n")

    monkeypatch.setattr(cluster, "_alive", says_its_last)
    with pytest.raises(ClusterError, match=r"master did not start; .*no Java here"):
        cluster.up(tmp_path / "own")


def test_a_master_is_found_where_it_listens_and_not_where_an_earlier_one_did(tmp_path: Path, spark_class: Path) -> None:
    for port in (1, 2):  # where nobody listens
        spark_class.write_text(
            "#!/bin/sh\n"
            f"echo Starting Spark master at spark://127.0.0.1:{port}\n"
            f"echo Bound MasterWebUI to all, and started at http://127.0.0.1:{port}\n"
            "exec sleep 3600\n"
        )
        found = cluster.up(tmp_path / "own", workers=0)
        assert (found.master, found.ui) == (f"spark://127.0.0.1:{port}", f"http://127.0.0.1:{port}")
        assert cluster.down(tmp_path / "own") == 1


def test_a_master_that_does_not_answer_has_no_workers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        found = Cluster("", "", f"http://127.0.0.1:{unused.getsockname()[1]}", ())
        assert found.alive() == 0
