"""Planning without a run: sizes from files and manifests, compared with what was counted."""

import argparse
import gzip
import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.contracts import ContractError
from features.sources import SourceMap
from jobs import plan as planning
from jobs.inputs import load_source
from jobs.log_sample import log_size
from jobs.settings import UsageError, load_settings
from jobs.stage_times import StageRun, StageTimes, latest_times, write_stages
from jobs.store import Store

ROWS = 30_000
COLUMNS = {"user_id": "who", "item_id": "what", "event_time": "when"}


def _source(**more: Any) -> SourceMap:
    return SourceMap.model_validate({"columns": COLUMNS, "time_unit": "s", "default_action": "view", **more})


def _rows() -> list[dict[str, str]]:
    return [{"who": f"user-{k % 977}", "what": f"item-{k % 4001}", "when": str(1_700_000_000 + k)} for k in range(ROWS)]


def _write(folder: Path, form: str) -> tuple[Path, SourceMap]:
    rows = _rows()
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "log.parquet")
        return folder / "log.parquet", _source(format="parquet")
    if form == "json":
        text, source = "".join(json.dumps(row) + "\n" for row in rows), _source(format="json")
    elif form == "lists":
        listed = [{"who": rows[k]["who"], "did": [dict(row) for row in rows[k : k + 3]]} for k in range(0, ROWS, 3)]
        text = "".join(json.dumps(row) + "\n" for row in listed)
        columns = {"user_id": "who", "item_id": "did.what", "event_time": "did.when"}
        source = _source(format="json", explode="did", columns=columns)
    else:
        mark = "::" if form == "colons" else ","
        head = "" if form == "colons" else "who,what,when\n"
        text = head + "".join(mark.join(row.values()) + "\n" for row in rows)
        more = {"header": False, "names": list(COLUMNS.values()), "delimiter": "::"} if form == "colons" else {}
        source = _source(format="csv", **more)
    if form == "gzip":
        (folder / "log.csv.gz").write_bytes(gzip.compress(text.encode()))
        return folder / "log.csv.gz", source
    (folder / "log.txt").write_text(text)
    return folder / "log.txt", source


@pytest.mark.parametrize("form", ["csv", "gzip", "colons", "json", "lists", "parquet"])
def test_rows_of_a_log_from_its_beginning(tmp_path: Path, form: str) -> None:
    path, source = _write(tmp_path, form)
    size = log_size(Store(str(tmp_path)), source, {str(path): path.stat().st_size})
    assert size.rows == pytest.approx(ROWS, rel=0.02)
    assert (size.files, size.stored_bytes) == (1, path.stat().st_size)
    if form == "gzip":
        assert size.unpacked_bytes == pytest.approx(len(gzip.decompress(path.read_bytes())), rel=0.02)
    names = len("user-488") + len("item-2000")
    assert 8 * 7 + names < size.row_bytes < 8 * 9 + names + 2 * 8


def test_a_log_that_the_map_does_not_fit_is_named(tmp_path: Path) -> None:
    path, _ = _write(tmp_path, "csv")
    source = _source(format="csv", columns={**COLUMNS, "user_id": "visitor"})
    with pytest.raises(ContractError, match=rf"{path}: its beginning holds no row with the columns visitor and what"):
        log_size(Store(str(tmp_path)), source, {str(path): path.stat().st_size})


def _flags(root: Path, *more: str) -> argparse.Namespace:
    return planning.parser().parse_args(["--root", str(root), "--cores", "4", *more])


def test_a_first_run_is_planned_from_the_log_alone(tmp_path: Path) -> None:
    path, _ = _write(tmp_path, "csv")
    (tmp_path / "shop.yaml").write_text(
        "format: csv\ntime_unit: s\ndefault_action: view\ncolumns: {user_id: who, item_id: what, event_time: when}\n"
    )
    flags = _flags(tmp_path / "out", "--source", str(tmp_path / "shop.yaml"), "--input", str(path), "--bootstrap")
    found = planning.plan(load_settings(assignments=["sessions.partition_mib=1"]), flags)
    sessionize, *_, train, score = found.stages
    assert sessionize.size == pytest.approx(ROWS, rel=0.02)
    assert sessionize.tasks == 4  # under 1 MiB: a task for each core
    assert (train.size, score.size, score.seconds) == (None, None, None)
    assert "users and windows are known after the first run" in planning.in_words(found)
    assert "dist/jobs/nightly.py --root" in found.submit

    many = planning.plan(load_settings(assignments=["sessions.partition_mib=1"]), _flags(
        tmp_path / "out", "--source", str(tmp_path / "shop.yaml"), *(10 * ["--input", str(path)]), "--bootstrap"
    ))  # fmt: skip
    assert many.stages[0].size == sessionize.size  # the same file named ten times is read once


def test_a_root_without_sessions_and_no_log_cannot_be_planned(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no sessions up to 2024-05-02, and no log is given"):
        planning.plan(load_settings(), _flags(tmp_path, "--date", "2024-05-02"))


def test_times_of_the_latest_day_count_where_its_cores_are_known(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = StageTimes("2024-05-01", 2, {"sessionize": StageRun("sessionize", 12.3, 56)})
    assert latest_times(store, date(2024, 5, 9)) is None
    for day, cores in ((date(2024, 5, 1), 2), (date(2024, 5, 8), 16)):
        write_stages(store, day, [StageRun("sessionize", 12.34, 56)], cores)
    assert latest_times(store, date(2024, 5, 7)) == first
    night = tmp_path / "_nightly" / "dt=2024-05-03"
    night.mkdir(parents=True)
    steps = [
        {"name": "score", "seconds": 5.0, "status": "done"},
        {"name": "train", "seconds": 0.0, "status": "skipped"},
    ]
    (night / "metrics.json").write_text(json.dumps({"cores": 8, "steps": steps}))
    assert latest_times(store, date(2024, 5, 7)) == StageTimes("2024-05-03", 8, {"score": StageRun("score", 5.0)})
    (night / "metrics.json").write_text(json.dumps({"steps": steps}))  # of a night before cores were kept
    assert latest_times(store, date(2024, 5, 7)) == first


def test_ten_times_the_size_on_four_times_the_cores() -> None:
    def sizes(rows: int) -> planning._Sizes:
        return planning._Sizes(rows, 0, 0, rows, 0, None, None)

    fixed, name = planning.FIXED_S["sessionize"], "sessionize"
    times = StageTimes("2024-05-01", 2, {name: StageRun(name, fixed + 40, 3 << 20)})
    past = planning._Past.of(name, sizes(10_000), times, sizes(1_000))
    found = planning._stage(name, sizes(10_000), load_settings(), 8, past)
    assert found.seconds == pytest.approx(fixed + 40 * 10 / 4)
    assert found.shuffle_mib == 30
    assert planning._Past.of("vocabulary", sizes(10_000), times, sizes(1_000)) is None


def test_rows_of_users_with_more_events_each_grow_between_the_two() -> None:
    names = ("sequences", "score")
    times = StageTimes("2024-05-01", 2, {name: StageRun(name, 100.0, 100) for name in names})
    then = planning._Sizes(None, 0, 0, 1_000, 0, 10, None)
    now = planning._Sizes(None, 0, 0, 8_000, 0, 20, None)  # eight times the events of twice the users
    found = {name: planning._Past.of(name, now, times, then) for name in names}
    assert {name: past and (past.grown, past.bytes_grown) for name, past in found.items()} == {
        "sequences": (4.0, 8.0),
        "score": (2.0, 4.0),
    }


def test_a_jobs_own_flag_is_the_same_plan(tmp_path: Path) -> None:
    from jobs.sessionize import parser

    given = ["--root", str(tmp_path), "--date", "2024-05-02", "--source", "deskdrop", "--input", "x", "--plan", "64"]
    arguments = parser().parse_args(given)
    assert (arguments.plan, arguments.job) == (64, "sessionize")
    with pytest.raises(SystemExit):
        parser().parse_args([*given[:-1], "none"])
    assert load_source("deskdrop").format == "csv"
