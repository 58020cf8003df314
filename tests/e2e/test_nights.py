"""Night after night on a real Spark: midnight, late rows, repeats, backfills, and what is refused."""

import gzip
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import yaml
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.categories import CategoryMap, read_categories
from features.contracts import OPEN_SESSIONS, REJECTED_EVENTS, SESSIONS, VOCABULARY, ContractError
from features.csv_files import are_made_up
from features.events import RunDays, good_events, parse_events
from features.sessions import CutRules, events_by_user
from features.sources import read_log
from jobs import nightly
from jobs.history import events_until, session_chain
from jobs.inputs import readable_error
from jobs.session_files import write_sessions
from jobs.sessionize import Sessionized, sessionize
from jobs.settings import Settings, load_settings
from jobs.store import MANIFEST, Store
from jobs.vocabulary import build_vocabulary
from tests.logs import HEADER, SOURCE, line, write_log

MADE_BY = "jobs/sessionize.py"
FIRST, SECOND, THIRD = date(2024, 3, 1), date(2024, 3, 2), date(2024, 3, 3)


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(assignments=["sessions.lateness_days=0"])


def run(
    spark: SparkSession, settings: Settings, root: Path, log: str, day: date, first: date | None = None, **flags: bool
) -> Sessionized:
    bootstrap = flags.get("bootstrap", day == FIRST or first == FIRST)
    return sessionize(spark, settings, SOURCE, [log], str(root), first or day, day, bootstrap)


def history(spark: SparkSession, root: Path, day: date) -> DataFrame:
    """Finished sessions of all runs that a day is built on."""
    store = Store(str(root))
    return spark.read.parquet(*(store.path(SESSIONS.name, run.dt) for run in session_chain(store, day)))


def rows(spark: SparkSession, root: Path, day: date) -> list[str]:
    """Finished and open sessions of a day, each as text, in order."""
    store, found = Store(str(root)), []
    for contract in (SESSIONS, OPEN_SESSIONS):
        frame = store.read(spark, contract, day, MADE_BY)
        found += [f"{contract.name} {row[0]}" for row in frame.select(F.to_json(F.struct(*frame.columns))).collect()]
    return sorted(found)


def test_a_session_across_midnight_comes_out_once_and_whole(
    spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    night = [line(item="a", when="2024-03-01 23:50"), line(item="b", when="2024-03-02 00:10")]
    log = write_log(tmp_path / "1.csv", night[0], line(item="c", when="2024-03-01 12:00"))
    assert run(spark, settings, tmp_path / "out", log, FIRST).n_open == 1
    log = write_log(tmp_path / "2.csv", night[1])
    run(spark, settings, tmp_path / "out", log, SECOND)

    store = Store(str(tmp_path / "out"))
    sessions = history(spark, tmp_path / "out", SECOND)
    items = [[event[c.ITEM_ID] for event in row[c.EVENTS]] for row in sessions.orderBy(c.SESSION_START).collect()]
    assert items == [["c"], ["a", "b"]]
    latest, _, _ = events_until(spark, store, SECOND, since=SECOND)
    assert [row[c.ITEM_ID] for row in latest.collect()] == ["b"]
    assert store.read(spark, OPEN_SESSIONS, SECOND, MADE_BY).count() == 0


def test_running_a_day_again_gives_equal_rows(spark: SparkSession, settings: Settings, tmp_path: Path) -> None:
    log = write_log(tmp_path / "1.csv", line(when="2024-03-01 23:50"), line(user="bob"))
    run(spark, settings, tmp_path / "out", log, FIRST)
    log = write_log(tmp_path / "2.csv", line(when="2024-03-02 00:10"), line(user="bob", when="2024-03-02 09:00"))
    run(spark, settings, tmp_path / "out", log, SECOND)
    before, identity = rows(spark, tmp_path / "out", SECOND), Store(str(tmp_path / "out")).manifest
    old = identity(SESSIONS.name, SECOND, MADE_BY).hash
    run(spark, settings, tmp_path / "out", log, SECOND)
    assert rows(spark, tmp_path / "out", SECOND) == before
    assert identity(SESSIONS.name, SECOND, MADE_BY).hash == old


def test_a_backfill_in_one_pass_equals_day_by_day(spark: SparkSession, tmp_path: Path) -> None:
    patient = load_settings(assignments=["sessions.lateness_days=1"])
    source_rows: dict[date, list[str]] = {FIRST: [], SECOND: [], THIRD: []}
    random = np.random.default_rng(5)
    for user in ("ann", "bob", "cid"):
        for day in source_rows:
            minutes = sorted(random.choice(24 * 60, size=12, replace=False))
            source_rows[day] += [line(user, f"i{m % 7}", when=f"{day} {m // 60:02d}:{m % 60:02d}") for m in minutes]
    for day, lines in source_rows.items():
        log = write_log(tmp_path / "raw" / f"dt={day}" / "log.csv", *lines)
        run(spark, patient, tmp_path / "daily", log, day)
    run(spark, patient, tmp_path / "backfill", str(tmp_path / "raw" / "dt={date}"), THIRD, first=FIRST)

    finished = []
    for kind in ("daily", "backfill"):
        finished.append(history(spark, tmp_path / kind, THIRD))
    assert finished[0].count() > 20
    assert finished[0].exceptAll(finished[1]).count() == finished[1].exceptAll(finished[0]).count() == 0
    opened = [Store(str(tmp_path / k)).read(spark, OPEN_SESSIONS, THIRD, MADE_BY) for k in ("daily", "backfill")]
    assert opened[0].exceptAll(opened[1]).count() == opened[1].exceptAll(opened[0]).count() == 0
    assert opened[0].count() > 0


def test_late_rows_join_their_session_and_repeated_ones_do_not_count(spark: SparkSession, tmp_path: Path) -> None:
    patient = load_settings(assignments=["sessions.lateness_days=1"])
    morning = line(item="a", when="2024-03-01 09:00")
    run(spark, patient, tmp_path / "out", write_log(tmp_path / "1.csv", morning), FIRST)
    late = write_log(
        tmp_path / "2.csv", morning, line(item="b", when="2024-03-01 09:10"), line(item="c", when="2024-02-29 09:00")
    )
    done = run(spark, patient, tmp_path / "out", late, SECOND)
    assert (done.rejected, done.duplicates) == ({"too_late": 1}, 1)
    assert done.n_sessions + done.n_open == 1
    run(
        spark,
        patient,
        tmp_path / "out",
        write_log(tmp_path / "3.csv", line(user="bob", when="2024-03-03 12:00")),
        THIRD,
    )
    sessions = history(spark, tmp_path / "out", THIRD)
    assert [[e[c.ITEM_ID] for e in row[c.EVENTS]] for row in sessions.collect()] == [["a", "b"]]


def test_days_that_were_closed_stay_so_when_more_lateness_is_allowed(
    spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    patient = load_settings(assignments=["sessions.lateness_days=1"])
    morning = line(item="a", when="2024-03-01 09:00")
    root = tmp_path / "out"
    run(spark, settings, root, write_log(tmp_path / "1.csv", morning), FIRST)
    second = write_log(tmp_path / "2.csv", morning, line(item="b", when="2024-03-02 09:00"))
    done = run(spark, patient, root, second, SECOND)
    assert done.rejected == {"too_late": 1}
    third = write_log(tmp_path / "3.csv", line(item="c", when="2024-03-02 09:10"), line(when="2024-03-03 12:00"))
    assert run(spark, patient, root, third, THIRD).rejected == {}
    items = [[event[c.ITEM_ID] for event in row[c.EVENTS]] for row in history(spark, root, THIRD).collect()]
    assert sorted(items) == [["a"], ["b", "c"]]


def test_files_that_spark_would_not_read_are_named(spark: SparkSession, settings: Settings, tmp_path: Path) -> None:
    write_log(tmp_path / "raw" / "00" / "1.csv", line(when="2024-03-01 09:00"))
    with pytest.raises(ContractError, match=r"raw holds \S+/00/1\.csv, in a sub-folder"):
        run(spark, settings, tmp_path / "out", str(tmp_path / "raw"), FIRST)
    write_log(tmp_path / "parts" / "hour=00" / "1.csv", line(when="2024-03-01 09:00"))
    write_log(tmp_path / "parts" / "_temporary" / "0", "not of the log")
    write_log(tmp_path / "parts" / ".cache" / "1.csv", "nor this")
    assert run(spark, settings, tmp_path / "out", (tmp_path / "parts").as_uri(), FIRST).rows_read == 1
    (read,) = (path for path in Store(str(tmp_path / "out")).manifest(SESSIONS.name, FIRST, "").inputs)
    assert read == f"{(tmp_path / 'parts').as_uri()}/hour=00/1.csv"
    hidden = write_log(tmp_path / "_1.csv", line(when="2024-03-01 09:00"))
    with pytest.raises(ContractError, match=r"_1\.csv: no such file, or a folder without files"):
        run(spark, settings, tmp_path / "out", hidden, FIRST)
    assert [are_made_up(names) for names in (["a", "b1", "b2"], ["b0", "c", "B2"], ["_c0", "b"], ["b", "b1"])] == [
        True,  # two alike, or named so: not to be told apart
        True,
        True,
        False,
    ]


def test_columns_without_a_name_or_alike_are_read_by_their_place(
    spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    for name, header in (("index", f",{HEADER}"), ("alike", f"x,{HEADER},x")):
        row = line(item="a", when="2024-03-01 09:00")
        log = write_log(tmp_path / f"{name}.csv", f"0,{row}" + (",1" if name == "alike" else ""), header=header)
        done = run(spark, settings, tmp_path / name, log, FIRST)
        assert (done.rows_read, done.rejected) == (1, {})
        kinds = "k,item,k,kind" if name == "alike" else ",item,,kind"
        items = write_log(tmp_path / f"{name}-items.csv", "7,a,8,c9", header=kinds)
        layout = CategoryMap(format="csv", item="item", category="kind")
        (found,) = read_categories(spark, layout, [items]).collect()
        assert tuple(found) == ("a", "c9")


def test_one_partition_or_many_give_the_same_rows(spark: SparkSession, settings: Settings, tmp_path: Path) -> None:
    lines = [line(f"u{k % 11}", f"i{k % 5}", when=f"2024-03-01 {k % 24:02d}:{k % 60:02d}") for k in range(400)]
    results = []
    for name, order, n_partitions in (("a", lines, 1), ("b", lines[::-1], 7)):
        log = write_log(tmp_path / f"{name}.csv", *order)
        parsed = parse_events(read_log(spark, SOURCE, [log]), SOURCE, settings.cleaning, RunDays(FIRST, FIRST, 0))
        by_user = events_by_user(good_events(parsed), None, n_partitions)
        rules = CutRules.of(settings.sessions, FIRST)
        staged = write_sessions(by_user, n_partitions, rules, Store(str(tmp_path)), f"{tmp_path}/{name}")
        written = spark.read.parquet(staged.finished, staged.opened)
        assert len(list((tmp_path / name / "finished").glob("*.parquet"))) > n_partitions // 2
        results.append(sorted(str(row.asDict(recursive=True)) for row in written.collect()))
    assert results[0] == results[1]


def test_a_day_without_its_predecessor_is_refused(spark: SparkSession, settings: Settings, tmp_path: Path) -> None:
    log = write_log(tmp_path / "2.csv", line(when="2024-03-02 12:00"))
    with pytest.raises(ContractError, match=r"open_sessions_v1 has no finished partition for 2024-03-01.*--bootstrap"):
        run(spark, settings, tmp_path / "out", log, SECOND)
    assert not (tmp_path / "out").exists()


def test_a_log_cut_off_in_the_middle_is_named_and_leaves_nothing(
    spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    text = "\n".join(["user,item,category,what,when", *(line(f"u{k}", f"i{k}") for k in range(5_000))])
    whole = gzip.compress(text.encode())
    (tmp_path / "torn.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ContractError, match=r"torn\.csv\.gz is cut off or damaged"):
        run(spark, settings, tmp_path / "out", str(tmp_path / "torn.csv.gz"), FIRST)
    assert Store(str(tmp_path / "out")).dates(SESSIONS.name) == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "0 rows were read and none is usable .the log is empty"),
        ([line(what="stare")], "1 rows were read and none is usable .unknown_action: 1"),
    ],
)
def test_an_empty_or_useless_log_is_refused(
    spark: SparkSession, settings: Settings, tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        run(spark, settings, tmp_path / "out", write_log(tmp_path / "1.csv", *lines), FIRST)
    assert Store(str(tmp_path / "out")).dates(SESSIONS.name) == []


def test_an_empty_day_between_others_is_fine(spark: SparkSession, settings: Settings, tmp_path: Path) -> None:
    run(spark, settings, tmp_path / "out", write_log(tmp_path / "1.csv", line(when="2024-03-01 23:50")), FIRST)
    run(spark, settings, tmp_path / "out", write_log(tmp_path / "2.csv"), SECOND)
    store = Store(str(tmp_path / "out"))
    assert store.read(spark, SESSIONS, SECOND, MADE_BY).count() == 1
    assert store.read(spark, REJECTED_EVENTS, SECOND, MADE_BY).count() == 0


def test_a_file_without_a_line_is_an_empty_day(spark: SparkSession, settings: Settings, tmp_path: Path) -> None:
    logs = {day: tmp_path / "raw" / f"dt={day}" / "log.csv" for day in (FIRST, SECOND, THIRD)}
    write_log(logs[SECOND], line(when="2024-03-02 12:00"))
    for day in (FIRST, THIRD):
        logs[day].parent.mkdir()
        logs[day].touch()
    with pytest.raises(ContractError, match=r"0 rows were read and none is usable .the log is empty"):
        run(spark, settings, tmp_path / "alone", str(logs[FIRST]), FIRST)
    done = run(spark, settings, tmp_path / "out", str(tmp_path / "raw" / "dt={date}"), SECOND, first=FIRST)
    assert (done.rows_read, done.n_sessions) == (1, 1)
    assert run(spark, settings, tmp_path / "out", str(logs[THIRD]), THIRD).rows_read == 0
    assert history(spark, tmp_path / "out", THIRD).count() == 1


@pytest.mark.usefixtures("spark")
def test_a_first_day_without_an_event_ends_a_night_in_one_paragraph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, source = tmp_path / "out", tmp_path / "source.yaml"
    source.write_text(yaml.safe_dump(SOURCE.model_dump(exclude_defaults=True)))
    logs = {FIRST: write_log(tmp_path / "1.csv"), SECOND: write_log(tmp_path / "2.csv", line(when="2024-03-02 12:00"))}

    def night(day: date) -> tuple[int, str]:
        flags = ["--source", str(source), "--input", logs[day], "--bootstrap", "--until", "input"]
        code = nightly.main(["--root", str(root), "--date", str(day), *flags])
        return code, " ".join(capsys.readouterr().err.split())

    code, said = night(FIRST)
    assert code == 3
    paragraph = f"error: {logs[FIRST]}: 0 rows were read and none is usable (the log is empty). Check the source map "
    assert said.count(paragraph) == said.count("error:") == 1
    assert "Traceback" not in said
    assert Store(str(root)).dates(SESSIONS.name) == []
    code, said = night(SECOND)  # the log begins a day later
    assert code == 0, said
    assert Store(str(root)).dates(SESSIONS.name) == [str(SECOND)]


def test_a_missing_input_is_named(spark: SparkSession, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"nowhere\.csv: no such file"):
        run(spark, settings, tmp_path / "out", str(tmp_path / "nowhere.csv"), FIRST)


def test_a_partition_without_manifest_or_with_a_torn_file_is_refused(
    spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    root = tmp_path / "out"
    run(spark, settings, root, write_log(tmp_path / "1.csv", line(), line(when="2024-03-01 23:59")), FIRST)
    partition = root / "sessions_v1" / "dt=2024-03-01"
    data = next(partition.glob("*.parquet"))
    whole = data.read_bytes()
    data.write_bytes(whole[:-10])
    with pytest.raises(ContractError, match=r"bytes: the partition is torn\. Run jobs/sessionize\.py"):
        build_vocabulary(spark, settings, str(root), FIRST)
    data.write_bytes(whole)
    (partition / "part-stray.parquet").write_bytes(whole)
    with pytest.raises(ContractError, match=r"part-stray\.parquet, which its manifest does not know"):
        build_vocabulary(spark, settings, str(root), FIRST)
    (partition / "part-stray.parquet").unlink()
    (partition / MANIFEST).unlink()
    with pytest.raises(ContractError, match="sessions_v1 has no finished partition for 2024-03-01"):
        build_vocabulary(spark, settings, str(root), FIRST)


def test_vocabulary_ids_fall_with_frequency_and_never_move(
    spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    root = tmp_path / "out"
    first = [line(item=item, category="c", when=f"2024-03-01 0{h}:00") for h, item in enumerate("abbcc")]
    run(spark, settings, root, write_log(tmp_path / "1.csv", *first), FIRST)
    build_vocabulary(spark, settings, str(root), FIRST)
    second = [line(item=item, category="c", when=f"2024-03-02 0{h}:00") for h, item in enumerate("aaadee")]
    run(spark, settings, root, write_log(tmp_path / "2.csv", *second), SECOND)
    build_vocabulary(spark, settings, str(root), SECOND)

    def ids(day: date) -> dict[str, tuple[int, int]]:
        frame = Store(str(root)).read(spark, VOCABULARY, day, "jobs/vocabulary.py").where(F.col(c.KIND) == "item")
        return {row[c.TOKEN]: (row[c.ID], row[c.COUNT]) for row in frame.collect()}

    assert ids(FIRST) == {"b": (2, 2), "c": (3, 2), "a": (4, 1)}
    assert ids(SECOND) == {"b": (2, 2), "c": (3, 2), "a": (4, 4), "e": (5, 2), "d": (6, 1)}


def test_a_whole_log_run_again_with_a_later_day_counts_nothing_twice(
    spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    first, second = line(item="a", when="2024-03-01 09:00"), line(item="b", when="2024-03-02 09:00")
    run(spark, settings, tmp_path / "out", write_log(tmp_path / "1.csv", first), FIRST)
    run(spark, settings, tmp_path / "out", write_log(tmp_path / "2.csv", first, second), SECOND, first=FIRST)
    events, _, n_bytes = events_until(spark, Store(str(tmp_path / "out")), SECOND)
    assert sorted(row[c.ITEM_ID] for row in events.collect()) == ["a", "b"]
    latest, _, _ = events_until(spark, Store(str(tmp_path / "out")), SECOND, since=SECOND)
    assert [row[c.ITEM_ID] for row in latest.collect()] == ["b"]
    none, _, n_bytes_read = events_until(spark, Store(str(tmp_path / "out")), SECOND, since=date(2024, 3, 3))
    assert not none.collect()
    assert n_bytes_read < n_bytes  # what was finished before that day stays closed


def test_a_day_replaced_under_a_later_one_is_noticed(spark: SparkSession, settings: Settings, tmp_path: Path) -> None:
    root, night = tmp_path / "out", "2024-03-01 23:50"
    run(spark, settings, root, write_log(tmp_path / "1.csv", line(item="a", when=night)), FIRST)
    run(spark, settings, root, write_log(tmp_path / "2.csv", line(when="2024-03-02 12:00")), SECOND)
    before = Store(str(root)).manifest(OPEN_SESSIONS.name, FIRST, MADE_BY).hash
    # Another item, the same number of bytes and rows: only the content tells them apart.
    run(spark, settings, root, write_log(tmp_path / "1.csv", line(item="z", when=night)), FIRST)
    assert Store(str(root)).manifest(OPEN_SESSIONS.name, FIRST, MADE_BY).hash != before
    with pytest.raises(ContractError, match=r"2024-03-02 took up the open sessions of 2024-03-01 as they were before"):
        build_vocabulary(spark, settings, str(root), SECOND)


def test_a_day_of_refused_rows_alone_is_refused_on_any_night(
    spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    run(spark, settings, tmp_path / "out", write_log(tmp_path / "1.csv", line(when="2024-03-01 23:50")), FIRST)
    changed = write_log(tmp_path / "2.csv", line(what="stare", when="2024-03-02 12:00"))
    with pytest.raises(ContractError, match=r"1 rows were read and none is usable .unknown_action: 1"):
        run(spark, settings, tmp_path / "out", changed, SECOND)


def test_a_worker_killed_for_memory_is_not_a_damaged_file() -> None:
    crash = RuntimeError("Python worker exited unexpectedly (crashed) Caused by: java.io.EOFException")
    assert "killed for memory" in str(readable_error(crash, ["log.csv.gz"]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("log.csv", "raw/log.csv has another header line than raw/first.csv"),
        ("kinds.csv", "raw/kinds.csv has another header line than items.csv"),
    ],
)
def test_a_header_is_compared_with_files_of_its_kind(name: str, said: str) -> None:
    found = RuntimeError(f"CSV header does not conform to the schema. CSV file: file:raw/{name}")
    assert said in str(readable_error(found, ["raw/first.csv", "raw/log.csv"], ["items.csv", "raw/kinds.csv"]))
