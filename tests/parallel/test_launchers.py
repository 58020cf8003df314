"""Ranks in Spark's executors and over hosts: real Spark, real processes, bounded in time."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from pyspark.sql import SparkSession

from jobs import ranks
from jobs.ranks import REPORT, error_of, error_report
from jobs.settings import UsageError
from jobs.spark_ranks import _Noise, run_in_executors
from jobs.train import main
from model.bundle import load_bundle
from model.errors import ModelError
from model.workers import RankLostError, StoppedByRankError
from tests.model import tables
from tests.model.day import write_day

_PROJECT = Path(__file__).parent.parent.parent
DAY = date(2024, 6, 30)
_FOR_EVER = {"HOROVOD_GLOO_TIMEOUT_SECONDS": "100000"}  # a rank waits for the others


def test_ranks_in_executors_and_on_hosts_train_the_same_model(tmp_path: Path) -> None:
    root = write_day(tmp_path / "root", DAY)
    overlay = tmp_path / "small.yaml"
    training = tables.TRAINING.model_copy(update={"batch_rows": 8, "max_epochs": 1})
    overlay.write_text(yaml.safe_dump({"network": tables.NETWORK.model_dump(), "training": training.model_dump()}))
    command = [sys.executable, "-m", "jobs.train", "--root", root, "--date", str(DAY), "--conf", str(overlay)]
    found = {}
    for name, launcher in (
        ("spark", ["--launcher", "spark", "--ranks", "2"]),
        ("hosts", ["--launcher", "horovodrun", "--ranks", "2", "--hosts", "localhost:1,127.0.0.1:1", "--fresh"]),
    ):
        done = subprocess.run([*command, *launcher], capture_output=True, text=True, check=False, cwd=_PROJECT)
        assert done.returncode == 0, done.stderr
        said = done.stderr.splitlines()
        assert "training: 2 x 1 (ranks x threads), 200 train rows, 40 valid rows, 20 items, 4 categories" in said
        assert sum(line.startswith("epoch 1/1  train ") for line in said) == 1  # only rank 0 speaks
        assert not any("going on after" in line for line in said)
        found[name] = load_bundle(f"{root}/bundle/dt={DAY}")
        assert said[-1].startswith(f"model {found[name].model_version}: ")
    for name, weight in found["spark"].weights.items():
        np.testing.assert_array_equal(weight, found["hosts"].weights[name], err_msg=name)
    assert found["spark"].model_version == found["hosts"].model_version
    _assert_none_left()


def test_an_error_of_a_rank_is_told_once_by_its_kind_and_lines_come_while_it_works(
    spark: SparkSession, tmp_path: Path
) -> None:
    mark = str(tmp_path / "heard")

    def work() -> None:
        import os
        import sys
        import time
        from pathlib import Path

        import horovod.tensorflow as hvd

        from model.errors import ModelError

        hvd.init()
        if os.environ["HOROVOD_RANK"] == "1":
            raise ModelError("file 7 is torn")
        print("at work", file=sys.stderr, flush=True)
        deadline = time.monotonic() + 300
        while not Path(mark).exists():
            if time.monotonic() > deadline:
                Path(f"{mark}-not").touch()
                break
            time.sleep(0.1)
        raise RuntimeError("another error, because of the first")

    said: list[str] = []
    seen: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        seen.extend(_processes_of_executors())
        Path(mark).touch()

    with pytest.raises(ModelError, match=r"^file 7 is torn$"):
        run_in_executors(spark, 2, work, tell, {})
    assert said == ["at work"]
    assert seen
    _assert_none_left()
    assert not Path(f"{mark}-not").exists()  # rank 0 saw, while at work, that it was heard


def test_an_error_before_ranks_meet_ends_those_that_wait_and_is_told(spark: SparkSession) -> None:
    def work() -> None:
        import os

        import horovod.tensorflow as hvd

        from model.errors import ModelError

        if os.environ["HOROVOD_RANK"] == "1":
            raise ModelError("file 7 is torn")
        hvd.init()

    with pytest.raises(ModelError, match=r"^file 7 is torn$"):
        run_in_executors(spark, 2, work, lambda _line: None, _FOR_EVER)
    _assert_none_left()


def test_a_report_of_a_rank_that_could_not_reach_the_driver_is_told() -> None:
    noise = _Noise()
    noise.write("[0]<stderr>:at work\n")
    noise.write(f"[1]<stderr>:{REPORT}rank {json.dumps(error_report(ModelError('file 7 is torn')))}\n")
    told = noise.last_words(0, 0)
    assert isinstance(told, ModelError)
    assert str(told) == "file 7 is torn"
    cut = _Noise()
    cut.write(f'[1]<stderr>:{REPORT}rank {{"type": ')
    assert "a rank is gone" in str(cut.last_words(0, 0))


def test_a_rank_that_is_killed_before_they_meet_ends_those_that_wait(spark: SparkSession) -> None:
    def work() -> None:
        import os

        import horovod.tensorflow as hvd

        if os.environ["HOROVOD_RANK"] == "1":
            os.kill(os.getpid(), 9)
        hvd.init()

    with pytest.raises(ModelError, match="a rank is gone"):
        run_in_executors(spark, 2, work, lambda _line: None, _FOR_EVER)
    _assert_none_left()


def test_a_rank_that_is_killed_ends_the_others_with_a_message(spark: SparkSession) -> None:
    def work() -> None:
        import os
        import time

        if os.environ["HOROVOD_RANK"] == "1":
            os.kill(os.getpid(), 9)
        time.sleep(1)

    with pytest.raises(ModelError, match="a rank is gone"):
        run_in_executors(spark, 2, work, lambda _line: None, {})
    _assert_none_left()


def test_a_cluster_without_room_for_every_rank_is_told_of_in_time(spark: SparkSession, tmp_path: Path) -> None:
    at_work, ended = tmp_path / "at-work", tmp_path / "ended"

    def occupy(_rows: Any) -> Any:
        at_work.touch()
        while not ended.exists():
            time.sleep(0.1)
        return []

    busy = threading.Thread(target=lambda: spark.sparkContext.range(1, numSlices=1).mapPartitions(occupy).count())
    busy.start()
    try:
        while not at_work.exists():
            time.sleep(0.1)
        with pytest.raises(TimeoutError, match=r"1 of 2 ranks had a slot .* after 15 s, .* --start-timeout"):
            run_in_executors(spark, 2, lambda: None, lambda _line: None, {}, start_timeout_s=15)
    finally:
        ended.touch()
        busy.join()


def test_more_ranks_than_this_machine_has_slots_are_refused_at_once(spark: SparkSession) -> None:
    with pytest.raises(UsageError, match=r"--ranks 3: this Spark \(local\[2\]\) runs 2 tasks at a time"):
        run_in_executors(spark, 3, lambda: None, lambda _line: None, {})


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--ranks", "2"], "--ranks needs --launcher horovodrun or spark."),
        (["--launcher", "spark"], "--launcher spark needs --ranks, a number from 1; given: None."),
        (["--launcher", "horovodrun", "--ranks", "0"], "a number from 1; given: 0."),
        (["--launcher", "horovodrun", "--ranks", "2", "--hosts", "a,b"], "--hosts a,b: expected name:ranks"),
        (["--launcher", "horovodrun", "--ranks", "3", "--hosts", "a:1,b:1"], "room for 2 ranks, --ranks asks for 3"),
        (
            ["--launcher", "horovodrun", "--ranks", "2", "--start-timeout", "9"],
            "--start-timeout is for",
        ),
        (["--launcher", "horovodrun", "--ranks", "2", "--min-ranks", "3"], "--min-ranks 3: take 1 to 2"),
        (["--launcher", "horovodrun", "--ranks", "2", "--elastic"], "give --min-ranks"),
        (["--launcher", "spark", "--ranks", "2", "--min-ranks", "1"], "its ranks are not elastic"),
        (["--launcher", "spark", "--ranks", "2", "--hosts", "a:2"], "Spark chooses the machines itself"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], text: str
) -> None:
    assert main(["--root", str(tmp_path), "--date", str(DAY), *flags]) == 2
    assert text in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "errors", [[ModelError("torn"), StoppedByRankError("x")], [RankLostError("y"), OSError("torn")]]
)
@pytest.mark.parametrize("order", [list, lambda errors: errors[::-1]])
def test_of_the_errors_of_all_ranks_the_cause_is_told(
    errors: list[Exception], order: Callable[[list[Exception]], list[Exception]]
) -> None:
    assert "torn" in str(error_of(map(error_report, order(errors))))


def test_a_rank_on_another_machine_hands_its_error_over_as_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INTEREST_STATUS_DIR", str(tmp_path / "not on this machine"))
    monkeypatch.setenv("HOROVOD_RANK", "1")
    assert ranks._is_told_elsewhere(ModelError("file 7 is torn"))
    line = capsys.readouterr().err.removesuffix("\n")
    monkeypatch.setenv("INTEREST_STATUS_DIR", str(tmp_path))
    said: list[str] = []
    code = "import sys; print('[1]<stderr>:' + sys.argv[1]); print('[0]<stderr>:other')"
    assert ranks._relay([sys.executable, "-c", code, line], dict(os.environ), said.append, True) == (0, "")
    assert said == ["other"]
    assert str(ranks._first_error(tmp_path)) == "file 7 is torn"


def _assert_none_left() -> None:
    deadline = time.monotonic() + 60
    while left := _processes_of_executors():
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def _processes_of_executors() -> list[str]:
    """Of this machine's Spark in the project's folder; ranks of a cluster's executors, in theirs, are others'."""
    found = [(p.info["cwd"], " ".join(p.info["cmdline"] or [])) for p in psutil.process_iter(["cmdline", "cwd"])]
    return [command for folder, command in found if "gloo_exec_fn" in command and folder == os.getcwd()]
