"""Sequences on a real Spark: what is packed for the ranks, and what a day's tables hold of a small log."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import SEQUENCES, TRAINING_SEQUENCES, VOCABULARY, ContractError
from jobs.packing import pack_split
from jobs.sequences import build_sequences
from jobs.sessionize import sessionize
from jobs.settings import Settings, load_settings
from jobs.store import Manifest, Store
from jobs.vocabulary import build_vocabulary
from tests.logs import SOURCE, line, write_log

FIRST, LAST = date(2024, 3, 1), date(2024, 3, 6)
VALID_CUTOFF, TEST_CUTOFF, END = (datetime(2024, 3, day) for day in (5, 6, 7))
SMALL = [
    "sessions.lateness_days=0",
    "sequences.length=4",
    "sequences.world_sizes=[1, 2]",
    "sequences.split.valid_days=1",
    "sequences.split.test_days=1",
]
REGULARS = ("ann", "bob", "cid", "dora")  # there every day; the others on some days only
DAYS = {**dict.fromkeys(REGULARS, range(6)), "once": range(1), "last day": range(5, 6), "two days": range(4, 6)}


def events_of(user: str) -> Iterator[tuple[str, str, datetime]]:
    """(item, category, time) of a user: three on each of the days, one alone for "once"."""
    for day in DAYS[user]:
        for k in range(1 if user == "once" else 3):
            n = day * 3 + k
            yield f"i{n % 7}", f"c{n % 2}", datetime(2024, 3, 1, 9 + k) + timedelta(days=day)


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(assignments=SMALL)


@pytest.fixture(scope="module")
def built(
    spark: SparkSession, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Manifest, Manifest]:
    """The root of a log taken to sequences, and their two manifests."""
    folder = tmp_path_factory.mktemp("sequences")
    rows = [line(user, i, g, when=f"{t:%Y-%m-%d %H:%M}") for user in DAYS for i, g, t in events_of(user)]
    log, root = write_log(folder / "log.csv", *rows), str(folder / "out")
    sessionize(spark, settings, SOURCE, [log], root, FIRST, LAST, bootstrap=True)
    build_vocabulary(spark, settings, root, LAST)
    return (root, *build_sequences(spark, settings, root, LAST))


def rows_of(root: str, table: str, split: str = "") -> list[dict[str, Any]]:
    """Rows of a table or of one split, by their files alone."""
    folder = Path(Store(root).path(table, LAST), f"{c.SPLIT}={split}" if split else "")
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.ParquetFile(file).read().to_pylist()]


def times(rows: list[dict[str, Any]], column: str) -> list[datetime]:
    return [row[column].astimezone(UTC).replace(tzinfo=None) for row in rows]


def test_a_day_has_the_rows_of_its_splits_and_its_manifest_counts_them(
    built: tuple[str, Manifest, Manifest],
) -> None:
    root, sequences, training = built
    assert (sequences.rows, training.rows) == (7, 22)
    assert sorted(row[c.USER_ID] for row in rows_of(root, SEQUENCES.name)) == sorted(DAYS)
    users = {split: Counter(r[c.USER_ID] for r in rows_of(root, TRAINING_SEQUENCES.name, split)) for split in c.SPLITS}
    assert users == {
        # 12 events in windows of 4; a single event is a window, too
        c.TRAIN: {**dict.fromkeys(REGULARS, 3), "once": 1},
        c.VALID: dict.fromkeys(REGULARS, 1),
        c.TEST: dict.fromkeys((*REGULARS, "two days"), 1),
    }
    counted = {
        name: (found["rows"], found["row_groups"], found["smallest_group"], found["largest_group"])
        for name, found in training.counters["splits"].items()
    }
    assert counted == {c.TRAIN: (13, 2, 6, 7), c.VALID: (4, 2, 2, 2), c.TEST: (5, 2, 2, 3)}
    assert training.row_groups == len(training.files) == 6
    wanted = {
        "protocol": "global_time",
        "valid_cutoff": "2024-03-05T00:00:00Z",
        "test_cutoff": "2024-03-06T00:00:00Z",
        "embargo_days": 0,
        "world_sizes": [1, 2],
    }
    assert {name: training.counters[name] for name in wanted} == wanted
    for manifest in (sequences, training):
        assert (manifest.counters["length"], manifest.counters["new_session_gap"]) == (4, 7)
        assert f"{VOCABULARY.name}/{LAST}" in manifest.inputs


def test_inputs_lie_before_their_cutoff_and_labels_after_it(built: tuple[str, Manifest, Manifest]) -> None:
    train, valid, test = (rows_of(built[0], TRAINING_SEQUENCES.name, split) for split in c.SPLITS)
    assert max(times(train, c.NEXT_TIME)) < VALID_CUTOFF
    assert max(times(valid, c.LAST_TIME)) < VALID_CUTOFF <= min(times(valid, c.NEXT_TIME))
    assert max(times(valid, c.NEXT_TIME)) < TEST_CUTOFF
    assert max(times(test, c.LAST_TIME)) < TEST_CUTOFF <= min(times(test, c.NEXT_TIME))
    assert max(times(rows_of(built[0], SEQUENCES.name), c.LAST_TIME)) == END - timedelta(hours=13)


def test_a_row_holds_the_users_own_events_as_ids(built: tuple[str, Manifest, Manifest]) -> None:
    root = built[0]
    ids = {(row[c.KIND], row[c.TOKEN]): row[c.ID] for row in rows_of(root, VOCABULARY.name)}
    events = list(events_of("bob"))
    items, categories = ([ids[kind, event[at]] for event in events] for at, kind in ((0, c.KIND_ITEM), (1, "category")))
    (row,) = (row for row in rows_of(root, TRAINING_SEQUENCES.name, c.TEST) if row[c.USER_ID] == "bob")
    assert (row[c.ITEM], row[c.CATEGORY], row[c.LENGTH]) == (items[11:15], categories[11:15], 4)
    assert (row[c.NEXT_ITEM], row[c.NEXT_CATEGORY]) == (items[15], categories[15])
    assert (row[c.LABEL_ITEMS], row[c.LABEL_CATEGORIES]) == (items[15:], categories[15:])
    assert row[c.SEEN_ITEMS] == sorted(set(items[:15]))
    windows = [row for row in rows_of(root, TRAINING_SEQUENCES.name, c.TRAIN) if row[c.USER_ID] == "bob"]
    targets = [target for row in windows for target in [*row[c.ITEM][1 : row[c.LENGTH]], row[c.NEXT_ITEM]]]
    assert Counter(targets) == Counter([*items[1:12], c.PAD])  # what follows the last one is not known


def test_building_again_gives_equal_rows(
    spark: SparkSession, settings: Settings, built: tuple[str, Manifest, Manifest]
) -> None:
    root, *before = built
    tables = (VOCABULARY.name, SEQUENCES.name, *(f"{c.SPLIT}={split}" for split in c.SPLITS))

    def rows() -> dict[str, list[str]]:
        found = {name: rows_of(root, name) for name in tables[:2]}
        found |= {name: rows_of(root, TRAINING_SEQUENCES.name, name.partition("=")[2]) for name in tables[2:]}
        return {name: sorted(map(str, of_table)) for name, of_table in found.items()}

    old = rows()
    assert all(old.values())
    build_vocabulary(spark, settings, root, LAST)
    again = build_sequences(spark, settings, root, LAST)
    assert rows() == old
    assert [manifest.hash for manifest in again] == [manifest.hash for manifest in before]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "sequences.split.valid_days=30",
            r"of 2024-03-06 would have no train rows \(protocol global_time, valid_days 30",
        ),
        ("sequences.world_sizes=[12]", r"^training_sequences_v1, split valid: 4 rows cannot be shared among .*\[12\]"),
    ],
)
def test_a_split_that_cannot_be_trained_on_is_refused_and_the_old_day_stays(
    spark: SparkSession, built: tuple[str, Manifest, Manifest], assignment: str, message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        build_sequences(spark, load_settings(assignments=[*SMALL, assignment]), built[0], LAST)
    assert Store(built[0]).check(TRAINING_SEQUENCES, LAST, "jobs/sequences.py").rows == 22


def test_packing_keeps_every_row_once_in_equal_files_of_one_row_group(
    spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    spec = settings.sequences.model_copy(update={"world_sizes": (2, 3)})
    at = datetime(2024, 3, 1, tzinfo=UTC)
    windows = [
        {
            **dict.fromkeys(TRAINING_SEQUENCES.schema.names, 3),
            **{name: [3, 4, n, 0] for name in c.CHANNELS},
            **{name: [] for name in (c.SEEN_ITEMS, c.LABEL_ITEMS, c.LABEL_CATEGORIES, c.LABEL_ACTIONS, c.LABEL_TIMES)},
            **{name: [n] for name in (c.AGE, *c.AHEAD_CHANNELS)},
            c.USER_ID: f"u{n % 20}",
            c.SPLIT: c.TRAIN,
            c.LAST_TIME: at + timedelta(minutes=n),
            c.NEXT_TIME: at + timedelta(minutes=n + 5),
        }
        for n in (*range(21), 7, 7)
    ]
    frame = spark.createDataFrame(windows, TRAINING_SEQUENCES.schema).repartition(3)
    frame.write.partitionBy(c.SPLIT).parquet(f"{tmp_path}/staged")
    paths = sorted((tmp_path / "staged" / "split=train").glob("*.parquet"))
    for path in paths:
        pq.write_table(pq.ParquetFile(path).read(), path, row_group_size=3)  # large staged files have several, too
    staged = [pq.ParquetFile(path) for path in paths]
    assert len(staged) == 3
    assert sum(file.num_row_groups for file in staged) > 6

    store = Store(str(tmp_path))
    found = pack_split(spark, store, f"{tmp_path}/staged", f"{tmp_path}/packed", c.TRAIN, spec)
    files = [pq.ParquetFile(file) for file in sorted((tmp_path / "packed" / "split=train").iterdir())]
    assert [file.num_row_groups for file in files] == [1] * 6
    assert [file.metadata.num_rows for file in files] == [4, 4, 4, 4, 4, 3]
    rows_in = Counter(str(row) for file in staged for row in file.read().to_pylist())
    rows_out = Counter(str(row) for file in files for row in file.read().to_pylist())
    assert rows_in == rows_out
    assert sum(rows_out.values()) == 23
    assert (found.rows, found.row_groups, found.smallest_group, found.largest_group) == (23, 6, 3, 4)
    edges = (found.last_input_us, found.first_label_us, found.last_label_us)
    assert edges == tuple(int(at.timestamp()) * c.MICROS + n * 60 * c.MICROS for n in (20, 5, 25))


def test_a_split_without_rows_packs_to_nothing(spark: SparkSession, settings: Settings, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    found = pack_split(spark, Store(str(tmp_path)), f"{tmp_path}/none", str(packed), c.TEST, settings.sequences)
    assert (found.rows, found.row_groups) == (0, 0)
    assert not packed.exists()
