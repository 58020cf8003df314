"""A week of nights on one root: a new model, a log cut short, a killed night, a model that fails the gate, a way back.

And a night more, whose log is empty.

The nights run once, in order; each test looks at one of them.
"""

import contextlib
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import OPEN_SESSIONS, SCORES, SEQUENCES, TRAINING_SEQUENCES
from features.simulated_dirt import RAW_COLUMNS
from jobs import nightly, publish
from jobs.layers import read_sequences
from jobs.night import METRICS
from jobs.published import read_pointer
from jobs.root_lock import LOCK
from jobs.settings import load_settings
from jobs.simulate import simulate
from jobs.store import Store

PROJECT = Path(nightly.__file__).parent.parent
FIRST, DAYS = date(2024, 3, 1), 26
NIGHTS = [FIRST + timedelta(days=DAYS - 7 + k) for k in range(8)]  # the last has no event
CONF: dict[str, Any] = {
    "simulation": {
        "users": 300,
        "days": DAYS,
        "process": {"categories": 12, "items": 150, "themes": 6, "regimes": 4, "session_median": 4, "session_p95": 14},
        "dirt": {"bots": 0.0, "heavy_user": 0.0},
    },
    "sequences": {"length": 16, "world_sizes": [1], "split": {"valid_days": 4, "test_days": 4}},
    "network": {"units": 24, "item_dim": 16, "category_dim": 8},
    "training": {"batch_rows": 16, "max_epochs": 3, "learning_rate": 0.02, "warmup_steps": 5},
    "evaluation": {"n_bootstrap": 100, "knn_sample": 50},
    "nightly": {"train_every_days": 3, "train_oov_share": 1.0, "ranks": 1},
    # 300 users are few: their days differ more than those of a whole shop.
    "input_quality": {"min_nights": 1, "max_category_psi": 1.0, "max_new_user_share": 0.9},
    "gate": {"category_margin": 0.08, "item_margin": 0.08, "max_ece": 0.3, "max_interest_psi": 1.0},
    "report": {"people": 0, "images": False},
    "retention": {"nights": {"sequences_v1": 2, "training_sequences_v1": 1, "open_sessions_v1": 2, "scores_v1": 3}},
}
# Steps a thousand times too long: a model that is sure of anything.
WILD = ["--set", "training.learning_rate=10.0", "--set", "training.max_epochs=1"]

# The nightly job, which stays where it is about to publish a table.
HELD = """
import sys, time
from jobs import nightly
from jobs.store import Store

table, publish = sys.argv[1], Store.publish

def held(self, contract, *of, **by):
    if contract.name == table:
        print("held here", file=sys.stderr, flush=True)
        time.sleep(3600)
    return publish(self, contract, *of, **by)

Store.publish = held
sys.exit(nightly.main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Run:
    """One run of a command: its exit code, what it said, and what was published after it."""

    code: int
    out: str
    err: str
    published: str | None
    metrics: dict[str, Any]

    def status(self, step: str) -> str:
        (found,) = [entry["status"] for entry in self.metrics["steps"] if entry["name"] == step]
        return str(found)


class Week:
    """The commands of a week on one root, and what each did."""

    def __init__(self, folder: Path) -> None:
        self.root, self.log, self.conf = folder / "out", folder / "log", folder / "conf.yaml"
        self.runs: dict[str, Run] = {}
        self.conf.write_text(yaml.safe_dump(CONF))

    def arguments(self, night: int, *flags: str) -> list[str]:
        day = ["--root", str(self.root), "--date", str(NIGHTS[night]), "--conf", str(self.conf)]
        return [*day, "--source", "simulated", "--input", f"{self.log}/raw/dt={{date}}", *flags]

    def run(self, name: str, night: int, *flags: str) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = nightly.main(self.arguments(night, *flags))
        self._record(name, night, code, out.getvalue(), err.getvalue())

    def publish(self, name: str, night: int, *flags: str) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = publish.main(["--root", str(self.root), *flags])
        self._record(name, night, code, out.getvalue(), err.getvalue())

    def _record(self, name: str, night: int, code: int, out: str, err: str) -> None:
        metrics = self.root / "_nightly" / f"dt={NIGHTS[night]}" / METRICS
        current = read_pointer(Store(str(self.root))).current
        values = json.loads(metrics.read_text()) if metrics.exists() else {}
        self.runs[name] = Run(code, out, err, current.name if current else None, values)
        print(f"--- {name}: exit {code}\n{err}{out}")

    def kill_at(self, night: int, table: str) -> None:
        """Start a night of its own, try another beside it, and kill the first when it is about to publish a table."""
        command = [sys.executable, "-c", HELD, table, *self.arguments(night)]
        process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = ""
        while "held here" not in said:
            text = process.stderr.readline()
            assert text, f"the night ended before it published {table}: {said}"
            said += text
        self.run("beside", night)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def week(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Week:
    nights = Week(tmp_path_factory.mktemp("week"))
    simulate(spark, load_settings([str(nights.conf)]), str(nights.log), NIGHTS[-2])
    nights.run("first", 0, "--from", str(FIRST), "--bootstrap")
    nights.run("quiet", 1)
    whole = nights.log / "raw" / f"dt={NIGHTS[2]}"
    shutil.copytree(whole, nights.log / "whole")
    cut_short(whole)
    nights.run("cut short", 2)
    shutil.rmtree(whole)
    shutil.copytree(nights.log / "whole", whole)
    nights.run("corrected", 2)
    nights.kill_at(3, SEQUENCES.name)
    nights.run("again", 3)
    nights.run("done before", 3)
    for night in (4, 5):
        nights.run(f"night {night}", night)
    nights.run("not good enough", 6, *WILD)
    nights.publish("back", 6, "--rollback")
    nights.run("after the way back", 6, *WILD)
    empty = nights.log / "raw" / f"dt={NIGHTS[7]}"
    empty.mkdir()
    (empty / "part-00000.csv.gz").write_bytes(gzip.compress((",".join(RAW_COLUMNS) + "\n").encode()))
    nights.run("empty", 7)
    nights.run("empty, accepted", 7, "--accept", "volume")
    nights.run("empty, accepted before", 7)
    return nights


def cut_short(folder: Path) -> None:
    """Leave a fifth of the lines of a day."""
    for path in folder.glob("*.csv.gz"):
        header, *lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
        path.write_bytes(gzip.compress("".join([header, *lines[: len(lines) // 5]]).encode()))
        path.with_name(f".{path.name}.crc").unlink()  # Spark's own checksum of what it wrote


def test_the_first_night_trains_and_publishes(week: Week) -> None:
    run = week.runs["first"]
    assert run.code == 0
    assert run.metrics["training"] == "no model is in use that could score"
    assert run.metrics["gate"]["champion"] is None
    assert run.published is not None
    assert run.published.startswith(str(NIGHTS[0]))


def test_a_quiet_night_scores_with_the_model_in_use(week: Week) -> None:
    run, first = week.runs["quiet"], week.runs["first"]
    assert run.code == 0
    assert run.metrics["training"] == "not due"
    assert [step["name"] for step in run.metrics["steps"] if step["status"] == "done"] == [
        "sessionize",
        "input-counts",
        "input",
        "sequences",
        "score",
        "publish",
        "report",
        "retention",
    ]
    assert run.metrics["published"]["model_version"] == first.metrics["published"]["model_version"]
    assert {finding["check"] for finding in run.metrics["input"]["findings"]} >= {"volume", "actions", "categories"}


def test_a_log_cut_short_stops_the_night_before_anything_is_scored(week: Week) -> None:
    run = week.runs["cut short"]
    assert run.code == 3
    said = " ".join(run.err.split())
    assert f"The log of {NIGHTS[2]} is not like the nights before: volume = 0." in said
    assert "allowed: at least 0.5 and at most 2" in said
    assert "--accept volume" in said
    assert run.published == week.runs["quiet"].published
    assert run.metrics["outcome"] == "stopped"


def test_the_corrected_log_is_read_again(week: Week) -> None:
    run = week.runs["corrected"]
    assert (run.code, run.status("sessionize")) == (0, "done")
    assert run.published is not None
    assert run.published.startswith(str(NIGHTS[2]))


def test_a_second_run_beside_the_first_is_refused(week: Week) -> None:
    run = week.runs["beside"]
    assert run.code == 4
    assert "the root is held by jobs.nightly on " in " ".join(run.err.split())
    assert not (week.root / LOCK).exists()


def test_a_killed_night_goes_on_where_it_stopped(week: Week) -> None:
    run = week.runs["again"]
    assert run.code == 0, run.err
    assert "taken over from jobs.nightly" in run.err
    assert [run.status(step) for step in ("sessionize", "input-counts", "vocabulary")] == ["skipped"] * 3
    assert run.status("sequences") == "done"


def test_after_three_days_a_new_model_passes_the_gate_and_takes_over(week: Week) -> None:
    run, old = week.runs["again"], week.runs["corrected"]
    assert run.metrics["training"].startswith("3 days since the last training")
    gate = run.metrics["gate"]
    assert gate["champion"] == old.metrics["published"]["model_version"]
    assert {check["name"] for check in gate["checks"]} == {
        "category_ndcg",
        "item_ndcg",
        "coverage",
        "calibration",
        "degenerate",
        "drift",
    }
    assert gate["passed"], gate
    assert run.metrics["published"]["model_version"] == gate["challenger"] != gate["champion"]


def test_a_night_that_was_done_does_nothing(week: Week) -> None:
    run = week.runs["done before"]
    assert run.code == 0
    always = ("input", "retention")  # too quick to need a record
    assert {step["status"] for step in run.metrics["steps"] if step["name"] not in always} == {"skipped"}
    assert run.published == week.runs["again"].published


def test_a_model_that_fails_the_gate_leaves_the_one_in_use(week: Week) -> None:
    run = week.runs["not good enough"]
    assert run.code == 3
    gate = run.metrics["gate"]
    failed = [check["name"] for check in gate["checks"] if not check["passed"]]
    assert "calibration" in failed
    assert run.metrics["published"]["model_version"] == gate["champion"]
    assert run.published is not None
    assert run.published.startswith(str(NIGHTS[6]))
    said = " ".join(run.err.split())
    assert f"Model {gate['challenger']}, trained for {NIGHTS[6]}, did not pass the gate: {failed[0]} = " in said
    assert "--accept gate" in said


def test_one_command_goes_back_and_the_same_night_does_not_undo_it(week: Week) -> None:
    assert week.runs["back"].code == 0
    assert week.runs["back"].published == week.runs["night 5"].published
    assert week.runs["after the way back"].published == week.runs["night 5"].published


def test_a_day_without_an_event_stops_the_night_before_anything_is_scored(week: Week) -> None:
    run = week.runs["empty"]
    assert run.code == 3
    said = " ".join(run.err.split())
    assert f"The log of {NIGHTS[7]} is not like the nights before: volume = 0 (0 events against a median of " in said
    assert "run it with --accept volume" in said
    assert [step["name"] for step in run.metrics["steps"]] == ["sessionize", "input-counts"]
    assert run.published == week.runs["after the way back"].published


def test_a_day_without_an_event_that_is_accepted_carries_everyone(week: Week, spark: SparkSession) -> None:
    run = week.runs["empty, accepted"]
    assert run.code == 0, run.err
    assert [run.status(step) for step in ("sessionize", "score", "publish", "report")] == ["skipped", *["done"] * 3]
    assert run.published is not None
    assert run.published.startswith(str(NIGHTS[7]))
    store = Store(str(week.root))
    counted = store.manifest(SCORES.name, NIGHTS[7], "").counters
    assert not any(counted[outcome] for outcome in ("advanced", "replayed", "gone", "newcomers"))
    before, after = (
        {row[c.USER_ID]: row for row in store.read(spark, SCORES, night, "").collect()} for night in NIGHTS[6:]
    )
    assert before.keys() == after.keys()
    assert len(after) == counted["carried"] + counted["asked_again"]
    differ = [user for user, row in after.items() if row[c.ITEMS] != before[user][c.ITEMS]]
    assert len(differ) <= counted["asked_again"] < len(after)


def test_what_is_published_is_whole_and_needs_nothing_that_went(week: Week, spark: SparkSession) -> None:
    store = Store(str(week.root))
    pointer = read_pointer(store)
    assert pointer.current is not None
    assert len(pointer.previous) == 6
    assert [release.date for release in pointer.withdrawn] == [str(NIGHTS[6])]
    for release in pointer.releases:
        rows = spark.read.schema(SCORES.schema).parquet(f"{store.root}/{release.path}")
        assert rows.count() == release.rows
        assert {row[0] for row in rows.select(c.MODEL_VERSION).distinct().collect()} == {release.model_version}
        assert release.bundle is not None
        assert (week.root / release.bundle / "_MANIFEST.json").exists()
    night = date.fromisoformat(pointer.current.date)
    assert read_sequences(spark, store, night).count() == pointer.current.rows
    assert store.dates(TRAINING_SEQUENCES.name) == [str(NIGHTS[6])]
    assert str(NIGHTS[0]) not in store.dates(SCORES.name)
    assert len(store.dates(SEQUENCES.name)) < len(NIGHTS)
    emptied = week.root / OPEN_SESSIONS.name / f"dt={NIGHTS[0]}"
    assert sorted(path.name for path in emptied.iterdir()) == ["_EMPTIED", "_MANIFEST.json"]


def test_what_was_accepted_stays_so(week: Week, tmp_path: Path) -> None:
    run = week.runs["empty, accepted before"]
    assert run.code == 0, run.err
    assert "Nothing was scored" not in run.err
    assert [run.status(step) for step in ("sessionize", "score", "publish", "report")] == ["skipped"] * 4
    other = Week(tmp_path)
    other.log = week.log
    shutil.copytree(week.root, other.root)
    other.run("gate", 6, *WILD, "--accept", "gate")
    other.run("gate, before", 6, *WILD)
    for run in other.runs.values():
        assert run.code == 0, run.err
        assert run.metrics["gate"]["takes_over"]
    assert other.runs["gate, before"].status("score") == "skipped"


def test_sequences_that_the_model_in_use_cannot_read_get_a_model_of_their_own(week: Week, tmp_path: Path) -> None:
    other = Week(tmp_path)
    other.log = week.log
    shutil.copytree(week.root, other.root)
    other.run(
        "coded otherwise", 6, "--set", "sequences.length=20", "--set", "training.max_epochs=1", "--accept", "gate"
    )
    run = other.runs["coded otherwise"]
    assert run.code == 0, run.err
    assert run.metrics["training"] == "no model is in use that could score"
    assert run.metrics["gate"]["champion"] is None
    assert "and now they are of {'length': 20" in run.err


def test_a_published_night_has_a_report_and_one_that_was_refused_has_none(week: Week) -> None:
    steps = {step["name"]: step["status"] for step in week.runs["first"].metrics["steps"]}
    assert steps["report"] == "done"
    page = week.root / "report" / f"dt={NIGHTS[0]}" / "report.html"
    assert "Interests on" in page.read_text(encoding="utf-8")
    assert "report" not in [step["name"] for step in week.runs["cut short"].metrics["steps"]]
