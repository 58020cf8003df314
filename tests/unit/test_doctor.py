"""The doctor finds what is broken and says what to do. The checks run for real; only what they look at is broken."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import doctor
from jobs.doctor import Finding, Output
from jobs.java import Java, java_version_text
from jobs.processes import began

GOOD = Finding("thing", True, "as it should be")
BAD = Finding("other", False, "3 of 4", "add one")


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)
    return folder / name


def test_report_and_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [GOOD], lambda: [BAD]))
    assert doctor.main([]) == 1
    report = "ok    thing       as it should be\nFAIL  other       3 of 4\n      fix: add one\n"
    assert capsys.readouterr().out == report
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [GOOD],))
    assert doctor.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"check": "thing", "ok": True, "detail": "as it should be", "fix": ""}
    ]


def test_a_check_that_breaks_is_a_finding_and_the_next_one_runs() -> None:
    def check_room() -> list[Finding]:
        raise ValueError("no such room")

    first, second = doctor.run_checks((check_room, lambda: [GOOD]))
    assert (first.check, first.ok, second) == ("room", False, GOOD)
    assert "ValueError: no such room" in first.detail
    assert first.fix


def test_java_of_a_wrong_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = program(tmp_path / "bin", "java", "echo 'openjdk version \"25\" 2025-09-16' >&2")
    monkeypatch.setattr(doctor, "ensure_java", lambda: Java(str(java), java_version_text(str(java))))
    (finding,) = doctor.check_java()
    assert (finding.ok, finding.detail) == (False, f"{java}: Java 25; Spark 3.5 runs on 8, 11, 17")
    assert "JAVA_HOME" in finding.fix
    program(tmp_path / "bin", "java", "echo 'openjdk version \"17.0.9\"' >&2")
    (finding,) = doctor.check_java()
    assert (finding.ok, finding.detail, finding.fix) == (True, f"Java 17 at {java}", "")
    java.unlink()
    (finding,) = doctor.check_java()
    assert not finding.ok
    assert "No such file" in finding.detail


def test_packages_are_compared_with_the_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = doctor.check_packages()
    assert finding.ok, finding
    shutil.copytree(doctor.REQUIREMENTS, tmp_path / "requirements")
    monkeypatch.setattr(doctor, "REQUIREMENTS", tmp_path / "requirements")
    pins = tmp_path / "requirements" / "constraints.txt"
    pins.write_text(pins.read_text(encoding="utf-8").replace("pyarrow==14.0.2", "pyarrow==13.0.0"), encoding="utf-8")
    (tmp_path / "requirements" / "dev.in").write_text("no-such-package\n", encoding="utf-8")
    (finding,) = doctor.check_packages()
    assert (finding.ok, finding.detail) == (
        False,
        "no-such-package is not installed; pyarrow is 14.0.2, pinned 13.0.0",
    )
    assert "make setup" in finding.fix


def test_executors_with_another_interpreter_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other-python"
    other.write_text(f'#!/bin/sh\nexec -a "{other}" "{sys.executable}" "$@"\n', encoding="utf-8")
    monkeypatch.setattr(doctor, "_EXECUTORS", f'print(\'noise\'); print(\'["{other}", "3.11.7", "1", "2"]\')')
    monkeypatch.setenv("PYSPARK_PYTHON", str(other))
    (finding,) = doctor.check_executors()
    assert not finding.ok
    assert f"this one is {sys.executable}" in finding.detail
    assert f"unset PYSPARK_PYTHON (now '{other}')" in finding.fix


def test_executors_of_a_real_spark_job_run_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYSPARK_PYTHON", raising=False)
    (finding,) = doctor.check_executors()
    assert finding.ok, finding
    assert f"at {sys.executable}" in finding.detail


def test_horovod_without_gloo_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"versions": {"pyarrow": "14.0.2"}, "gloo": False, "nccl": True, "gpus": 1}
    monkeypatch.setattr(doctor, "_LIBRARIES", f"print('noise'); print({json.dumps(facts)!r})")
    libraries, gloo = doctor.check_libraries()
    assert (libraries.ok, libraries.detail) == (True, "pyarrow 14.0.2 load together")
    assert (gloo.ok, gloo.detail) == (False, "Gloo not built, NCCL built, GPUs 1")
    assert "make setup" in gloo.fix


def test_a_processor_without_avx_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LIBRARIES", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    (finding,) = doctor.check_libraries()
    assert not finding.ok
    assert "SIGILL" in finding.detail
    assert "AVX" in finding.fix


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        (Output(0, "[0]<stdout>:sum 3 of 2\n[1]<stdout>:sum 3 of 2\n", ""), True),
        (Output(0, "[0]<stdout>:sum 1 of 1\n[1]<stdout>:sum 2 of 1\n", ""), False),
        (Output(0, "[0]<stdout>:sum 3 of 2\n", ""), False),
        (Output(1, "", "connect: refused\n"), False),
        (Output(None, "", ""), False),
    ],
)
def test_handshake_needs_the_sum_from_both_ranks(answer: Output, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run", lambda _command: answer)
    (finding,) = doctor.check_handshake()
    assert finding.ok is ok
    assert bool(finding.fix) is not ok


def test_a_time_limit_ends_everything_that_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "pid"

    class Begun(subprocess.Popen):  # type: ignore[type-arg]
        def communicate(self, *arguments: Any, **options: Any) -> Any:
            wait_until(lambda: note.exists() and note.read_text(encoding="utf-8").endswith("\n"))
            return super().communicate(*arguments, **options)

    monkeypatch.setattr(doctor.subprocess, "Popen", Begun)
    command = ["bash", "-c", f"sleep 3600 & echo $! > {note}; wait"]
    answer = doctor.run(command, timeout_s=2)
    assert answer.code is None
    assert "no answer" in answer.reason
    assert _ended(int(note.read_text(encoding="utf-8")))


def test_an_interrupt_ends_everything_that_was_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    inner = f"sleep 3600 & echo $! > {note}; setsid sleep 3600 & echo $! >> {note}; wait"
    waiting = tmp_path / "waiting"  # else the signal may come in the midst of Popen
    script = (
        f"import pathlib, subprocess; from jobs import doctor; mark = pathlib.Path({str(waiting)!r}); "
        "whole = subprocess.Popen.communicate; "
        "subprocess.Popen.communicate = lambda *of, **by: (mark.touch(), whole(*of, **by))[1]; "
        f"doctor.run(['bash', '-c', {inner!r}])"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(doctor.__file__).parent.parent, stderr=subprocess.DEVNULL
    )
    wait_until(waiting.exists)
    wait_until(lambda: note.exists() and len(note.read_text(encoding="utf-8").split()) == 2)
    started.send_signal(signal.SIGINT)
    assert started.wait(120) != 0
    for child in map(int, note.read_text(encoding="utf-8").split()):
        assert _ended(child)


def wait_until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _ended(pid: int) -> bool:
    """Whether a process that was killed is gone, or will be in a moment."""
    deadline = time.monotonic() + 60
    while began(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    return began(pid) is None


def test_too_little_disk_or_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=doctor.NEEDED_DISK_GIB * doctor.GIB - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: usage)
    monkeypatch.setattr(doctor, "container_memory_left", lambda _cgroup: doctor.NEEDED_MEMORY_GIB * doctor.GIB - 1)
    findings = [*doctor.check_disk(), *doctor.check_memory()]
    assert [(finding.check, finding.ok, bool(finding.fix)) for finding in findings] == [
        ("disk", False, True),
        ("scratch", False, True),
        ("memory", False, True),
    ]


def test_container_memory(tmp_path: Path) -> None:
    assert doctor.container_memory_left(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    (tmp_path / "memory.current").write_text("100\n", encoding="utf-8")
    assert doctor.container_memory_left(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("1000\n", encoding="utf-8")
    assert doctor.container_memory_left(tmp_path) == 900


def test_help_names_the_module() -> None:
    answer = doctor.run([sys.executable, "-m", "jobs.doctor", "--help"])
    assert answer.code == 0
    assert answer.out.startswith("usage: python -m jobs.doctor [-h] [--json]")
    assert os.linesep in answer.out
