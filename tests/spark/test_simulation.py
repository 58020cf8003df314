"""The simulated log as files: the process and nothing else without dirt, known counts with it, whole or not at all."""

import gzip
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features import simulated_truth as truth
from features.contracts import SIMULATED_TRUTH
from features.events import CleaningSpec, RunDays, good_events, parse_events, rejected_events
from features.simulated_dirt import category_tokens, item_tokens, user_token
from features.simulated_future import Outlook
from features.simulated_lives import live
from features.simulated_process import process_of
from features.simulation import SimulationSpec, log_lines, midnight_ms, simulated_truth
from features.sources import read_log
from jobs import simulate as job
from jobs.inputs import load_source
from jobs.settings import Settings, UsageError, load_settings
from jobs.store import Store
from tests.simulated import GAP_S, dirt, process_spec

LAST = date(2024, 5, 31)
CUTOFF = date(2024, 5, 25)
DIRTY: dict[str, Any] = {
    "duplicates": 0.05,
    "unknown_actions": 0.04,
    "empty_ids": 0.06,
    "cut_lines": 0.03,
    "bad_times": 0.02,
    "late_rows": 0.05,
    "skewed_users": 0.2,
    "bots": 0.03,
    "heavy_user": 0.1,
}


def simulation(users: int = 60, **dirty: Any) -> SimulationSpec:
    return SimulationSpec(seed=5, users=users, days=20, process=process_spec(), dirt=dirt(**dirty))


def settings(spec: SimulationSpec) -> Settings:
    """The settings of conf/base.yaml with another simulation."""
    return load_settings(assignments=["sequences.split.test_days=7"]).model_copy(update={"simulation": spec})


def process_events(spec: SimulationSpec) -> set[tuple[str, int, str, str, str]]:
    """Every event of the process: user, time in ms, item, category, action."""
    process = process_of(spec.process, GAP_S, spec.seed)
    items, categories = item_tokens(process), category_tokens(process)
    return {
        (user_token(user), int(time), items[item], categories[category], c.ACTIONS[action])
        for user in range(spec.users)
        for time, item, category, action in zip(*live(process, spec.window(LAST), spec.seed, user)[:4], strict=True)
    }


def parsed_log(spark: SparkSession, root: Path) -> DataFrame:
    source = load_source("simulated")
    cleaning = CleaningSpec(min_date=date(2000, 1, 1), future_tolerance_s=600, unknown_action="reject")
    days = RunDays(date(2024, 5, 12), LAST, lateness_days=5)
    return parse_events(read_log(spark, source, [str(root / "raw")]), source, cleaning, days)


def clean_events(parsed: DataFrame) -> DataFrame:
    good = good_events(parsed).dropDuplicates([c.USER_ID, c.EVENT_ID])
    millis = F.unix_millis(c.EVENT_TIME)
    return good.select(c.USER_ID, millis.alias("ms"), c.ITEM_ID, c.CATEGORY_ID, c.ACTION, c.INGEST_TIME)


def test_without_dirt_the_log_is_the_process(spark: SparkSession, tmp_path: Path) -> None:
    spec = simulation()
    facts = job.simulate(spark, settings(spec), str(tmp_path), LAST)
    parsed = parsed_log(spark, tmp_path)
    assert rejected_events(parsed).count() == 0
    rows = clean_events(parsed).collect()
    expected = process_events(spec)
    assert {tuple(row)[:5] for row in rows} == expected
    assert facts["rows"] == facts["kinds"]["clean"] == len(rows) == len(expected) > 500
    assert sum(facts["late_by_days"].values()) == facts["skewed_rows"] == facts["rows_ahead_of_ingest"] == 0
    for folder in sorted((tmp_path / "raw").glob("dt=*")):
        for file in folder.glob("part-*.csv.gz"):
            header, *lines = gzip.decompress(file.read_bytes()).decode().splitlines()
            assert header == "event_time,ingest_time,user_id,item_id,category_id,action"
            assert lines == sorted(lines)
            assert all(line.startswith(folder.name.removeprefix("dt=")) for line in lines)


def test_with_dirt_every_count_is_known(spark: SparkSession, tmp_path: Path) -> None:
    spec = simulation(**DIRTY)
    job.simulate(spark, settings(spec), str(tmp_path), LAST)
    facts = json.loads((tmp_path / "raw" / job.TRUTH_FILE).read_text())
    kinds = facts["kinds"]
    assert min(kinds.values()) > 0
    parsed = parsed_log(spark, tmp_path).cache()
    refused = dict(rejected_events(parsed).groupBy(c.REASON).count().collect())
    assert refused == {
        "malformed_row": kinds["cut_line"],
        "no_user": kinds["empty_user"],
        "no_item": kinds["empty_item"],
        "bad_time": kinds["bad_time"],
        "unknown_action": kinds["unknown_action"],
    }
    good = good_events(parsed)
    assert good.count() == sum(kinds[kind] for kind in ("clean", "duplicate", "bot", "heavy_user"))
    rows = clean_events(parsed).collect()
    by_kind = {kind: sum(row[c.USER_ID][0] == kind for row in rows) for kind in "ubh"}
    assert by_kind == {"u": kinds["clean"], "b": kinds["bot"], "h": kinds["heavy_user"]}
    # About a tenth, beside the process's own rows: the number is planned from expectations.
    assert 0.05 < by_kind["h"] / (by_kind["h"] + by_kind["u"]) < 0.2
    late = [row for row in rows if row[c.INGEST_TIME].timestamp() * 1000 - row["ms"] > 600_000]
    assert 0.02 < len(late) / kinds["clean"] < 0.08
    assert set(facts["late_by_days"]) == {"1", "2", "3"}
    assert sum(facts["late_by_days"].values()) >= len(late)  # rows shifted over midnight come on top
    # What clocks have not moved is the process.
    kept = {tuple(row)[:5] for row in rows if row[c.USER_ID][0] == "u"}
    assert len(process_events(spec) - kept) == facts["skewed_rows"] - _copies_of_skewed(spark, spec)


def _copies_of_skewed(spark: SparkSession, spec: SimulationSpec) -> int:
    return log_lines(spark, spec, GAP_S, LAST, 1).where("skewed").where(F.col(c.KIND) > 0).count()


def test_lines_and_truth_do_not_depend_on_the_partitions(spark: SparkSession) -> None:
    spec = simulation(**DIRTY)
    one, three = (sorted(map(tuple, log_lines(spark, spec, GAP_S, LAST, n).collect())) for n in (1, 3))
    assert one == three
    assert len(one) > 500
    left, right = (
        simulated_truth(spark, spec, GAP_S, LAST, CUTOFF, (1, 7), n).orderBy(c.USER_ID).collect() for n in (1, 3)
    )
    assert left == right
    other = spec.model_copy(update={"seed": 6})
    assert one != sorted(map(tuple, log_lines(spark, other, GAP_S, LAST, 1).collect()))


def test_truth_is_of_the_clean_process(spark: SparkSession) -> None:
    spec = simulation(**DIRTY)
    rows = {row[c.USER_ID]: row for row in simulated_truth(spark, spec, GAP_S, LAST, CUTOFF, (1, 7), 2).collect()}
    process = process_of(spec.process, GAP_S, spec.seed)
    cutoff_ms = midnight_ms(CUTOFF)
    lives = {user_token(user): live(process, spec.window(LAST), spec.seed, user) for user in range(spec.users)}
    outlook = Outlook(process, spec.window(LAST), cutoff_ms, (1, 7))
    assert set(rows) == {name for name, life in lives.items() if len(life.before(cutoff_ms).time_ms)}
    for name, row in rows.items():
        past = lives[name].before(cutoff_ms)
        for state, categories, items in (
            (truth.belief(process, past), row[c.ORACLE_CATEGORIES], row[c.ORACLE_ITEMS]),
            (truth.certain(process, past), row[c.LATENT_CATEGORIES], row[c.LATENT_ITEMS]),
        ):
            expected = truth.next_categories(process, state, past, cutoff_ms)
            found = {entry[c.CATEGORY_ID]: entry[c.PROBABILITY] for entry in categories}
            np.testing.assert_allclose([found[token] for token in category_tokens(process)], expected, rtol=1e-6)
            for listed, token in ((categories, c.CATEGORY_ID), (items, c.ITEM_ID)):
                order = [(-entry[c.PROBABILITY], entry[token]) for entry in listed]
                assert order == sorted(order)
                assert sum(entry[c.PROBABILITY] for entry in listed) == pytest.approx(1.0, abs=1e-5)
        for state, rate, column in (
            (truth.belief(process, past), outlook.observed_rate(past), c.ORACLE_FUTURE),
            (truth.certain(process, past), outlook.true_rate(past), c.LATENT_FUTURE),
        ):
            for future, stored in zip(outlook.futures(state, rate, past), row[column], strict=True):
                assert (stored[c.HORIZON_DAYS], stored[c.RETURNS]) == (future.days, np.float32(future.returns))
                listed = {entry[c.CATEGORY_ID]: entry for entry in stored[c.CATEGORIES]}
                for field, wanted in ((c.PROBABILITY, future.interests), (c.TOUCHED, future.touched)):
                    found = [listed[token][field] for token in category_tokens(process)]
                    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_second_run_replaces_the_first_day_by_day(spark: SparkSession, tmp_path: Path) -> None:
    job.simulate(spark, settings(simulation(users=30)), str(tmp_path), LAST)
    facts = job.simulate(spark, settings(simulation(users=2)), str(tmp_path), LAST)
    days = sorted(path.name for path in (tmp_path / "raw").glob("dt=*"))
    assert len(days) == 20, "a day without events has its file too"
    assert all(any((tmp_path / "raw" / day).glob("*.csv.gz")) for day in days)
    lines = spark.read.csv(str(tmp_path / "raw"), header=True)
    assert lines.count() == facts["rows"]
    written = Store(str(tmp_path)).read(spark, SIMULATED_TRUTH, LAST, "jobs/simulate.py")
    assert written.count() == facts["truth_users"] <= 2
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "simulated_truth_v1"}


def test_a_failed_run_leaves_no_log(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> DataFrame:
        raise RuntimeError("no space left")

    monkeypatch.setattr(job, "simulated_truth", fail)
    with pytest.raises(RuntimeError, match="no space"):
        job.simulate(spark, settings(simulation(users=5)), str(tmp_path), LAST)
    assert not (tmp_path / "raw").exists()
    monkeypatch.undo()
    job.simulate(spark, settings(simulation(users=5)), str(tmp_path), LAST)
    assert (tmp_path / "raw" / job.TRUTH_FILE).exists()


def test_a_foreign_log_is_not_overwritten(spark: SparkSession, tmp_path: Path) -> None:
    mine = tmp_path / "raw" / "log.csv"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UsageError, match="not a simulated log"):
        job.simulate(spark, settings(simulation(users=5)), str(tmp_path), LAST)
    assert mine.read_text() == "mine"


def test_a_log_too_short_for_the_split_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    short = simulation(users=5).model_copy(update={"days": 7})
    with pytest.raises(UsageError, match=r"simulation\.days = 7"):
        job.simulate(spark, settings(short), str(tmp_path), LAST)


def test_the_job_prints_what_it_wrote(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "spark_session", lambda _: spark)
    monkeypatch.setattr(job, "simulate", lambda *_: {"rows": 7})
    assert job.main(["--root", str(tmp_path), "--date", "2024-05-31", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 7}


def test_an_impossible_process_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--root", "unused", "--date", "2024-05-31", "--set", "simulation.process.stay=0.9"]) == 2
    assert "stay + advance" in " ".join(capsys.readouterr().err.split())
