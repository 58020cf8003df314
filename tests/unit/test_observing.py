"""What a run leaves for machines: JSON lines, its numbers, and that none of it changes how a run ends."""

import argparse
import json
import os
import socket
import stat
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from features.contracts import ContractError
from jobs import cli, observing
from jobs.store import Store

FACTS = {"date": date(2024, 5, 2), "rows": 7, "good": True, "why": "x", "steps": [{"name": "score", "seconds": 1.5}, 4]}


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("INTEREST_RUN_", observing.LOG_FORMAT, observing.PROMETHEUS_DIR, "HOROVOD_RANK")):
            monkeypatch.delenv(name)


def _job(root: Path, work: Any, *flags: str, name: str = "score") -> int:
    return cli.run_job(work, cli.stage_parser(name), ["--root", str(root), "--date", "2024-05-02", *flags])


def _shows(arguments: argparse.Namespace) -> None:
    cli.say("half way")
    cli.show(arguments, FACTS)


def _metrics(root: Path, name: str = "score") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "_runs" / "dt=2024-05-02" / name / "metrics.json").read_text())
    return found


def test_a_run_leaves_its_result_and_its_end(tmp_path: Path) -> None:
    assert _job(tmp_path, _shows) == 0
    left = _metrics(tmp_path)
    assert (left["job"], left["date"], left["exit_code"], left["error"]) == ("score", "2024-05-02", 0, None)
    assert left["result"] == {**FACTS, "date": "2024-05-02"}
    assert not any(name.startswith("INTEREST_RUN_") for name in os.environ)


def test_a_run_that_fails_leaves_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(arguments: argparse.Namespace) -> None:
        cli.show(arguments, {"rows": 3})
        raise ContractError("scores_v1 is torn.")

    assert _job(tmp_path, fails) == cli.EXIT_CONTRACT
    left = _metrics(tmp_path)
    assert (left["exit_code"], left["error"], left["result"]) == (3, "scores_v1 is torn.", {"rows": 3})
    assert capsys.readouterr().err == "error: scores_v1 is torn.\n"


def test_a_root_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert _job(tmp_path / "mistyped", _shows) == 0
    assert not (tmp_path / "mistyped").exists()
    with observing.observed("score", str(tmp_path / "mistyped"), date(2024, 5, 2)):
        assert observing.event_folder() is None
    with observing.observed("sessionize", str(tmp_path / "first"), date(2024, 5, 2)):
        assert observing.event_folder() == (tmp_path / "first/_runs/dt=2024-05-02/spark-events").as_uri()
    assert (tmp_path / "first/_runs/dt=2024-05-02/spark-events").is_dir()
    assert observing.event_folder() is None  # no run is on


def test_a_rank_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_RANK", "1")
    assert _job(tmp_path, _shows) == 0
    assert list(tmp_path.iterdir()) == []


def test_lines_are_json_on_request_and_say_where_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(observing.LOG_FORMAT, "json")
    monkeypatch.setenv("HOROVOD_RANK", "1")

    def work(_arguments: argparse.Namespace) -> None:
        cli.say("before")
        observing.begin_stage("train")
        rank = observing.line_of("epoch 1")
        monkeypatch.delenv("HOROVOD_RANK")
        cli.say(rank)  # as the driver passes it on
        observing.task_line("bucket 3", "score")
        raise ContractError("a long " + "word " * 40)

    assert _job(tmp_path, work) == 3
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["stage"], line["rank"], line["level"]) for line in lines] == [
        (None, 1, "info"), ("train", 1, "info"), ("score", None, "info"), ("train", None, "error"),
    ]  # fmt: skip
    assert lines[1]["text"] == "epoch 1"
    assert {(line["job"], line["date"], line["run"]) for line in lines} == {("score", "2024-05-02", lines[0]["run"])}
    assert lines[-1]["text"].startswith("error: a long word word")


def test_people_see_no_lines_of_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    observing.task_line("bucket 3", "score")
    assert observing.line_of("epoch 1") == "epoch 1"
    assert capsys.readouterr().err == ""


def test_lines_of_several_processes_do_not_run_into_each_other() -> None:
    """Each is one write, also where Python does not buffer, as in Spark's workers: a message each of such a socket."""
    code = "from jobs import cli, observing; observing.task_line('of a task', 'score'); cli.say('of a job')"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", observing.LOG_FORMAT: "json"}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [sys.executable, "-c", code]
        subprocess.run(command, env=environment, cwd=Path(cli.__file__).parent.parent, stderr=theirs, check=True)
        written = [ours.recv(1 << 16).decode() for _ in range(2)]
    assert [json.loads(line)["text"] for line in written] == ["of a task", "of a job"]
    assert all(line.endswith("\n") for line in written)


def test_numbers_for_prometheus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(observing.PROMETHEUS_DIR, str(tmp_path / "collected"))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / observing.POINTER).write_text('{"current": {"date": "2024-05-01"}}')
    assert _job(tmp_path / "root", _shows) == 0
    (copied,) = (tmp_path / "collected").glob("interest_score-????????.prom")
    text = copied.read_text()
    assert text == (tmp_path / "root/_runs/dt=2024-05-02/score/metrics.prom").read_text()
    assert stat.S_IMODE(copied.stat().st_mode) == 0o644
    root = f',root="{tmp_path / "root"}"'
    values = dict(
        line.replace(root, "").rsplit(" ", 1) for line in text.splitlines() if root in line and line[0] != "#"
    )
    assert values['interest_job_exit_code{command="score"}'] == "0"
    assert values['interest_job_data_timestamp_seconds{command="score"}'] == "1714694400.0"  # date -u -d 2024-05-03 +%s
    assert values['interest_published_data_timestamp_seconds{command="score"}'] == "1714608000.0"
    assert values['interest_job_value{command="score",name="rows"}'] == "7"
    assert values['interest_job_value{command="score",name="good"}'] == "1"
    assert values['interest_job_value{command="score",name="steps.score.seconds"}'] == "1.5"
    assert values['interest_job_value{command="score",name="steps.1"}'] == "4"
    assert not any("why" in name for name in values)
    for name in {line.split("{")[0] for line in values}:
        assert text.count(f"# TYPE {name} gauge\n") == 1


def test_what_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "_runs").write_text("a file where a folder should be")
    monkeypatch.setenv(observing.PROMETHEUS_DIR, str(tmp_path / "_runs"))
    assert _job(tmp_path, _shows) == 0
    assert capsys.readouterr().err.count("cannot be written") == 3


def test_days_of_runs_are_those_with_a_date(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert observing.days_of_runs(store) == []
    for day in ("2024-05-02", "2024-04-30", observing.UNDATED):
        (tmp_path / "_runs" / f"dt={day}").mkdir(parents=True)
    assert observing.days_of_runs(store) == ["2024-04-30", "2024-05-02"]
