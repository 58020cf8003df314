"""Nights against everything at once: scoring sequences from histories and layers, scores from last night's states."""

import json
import shutil
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.contracts import (
    DRIFT,
    HISTORIES,
    SCORES,
    SCORES_EXPLODED,
    SEQUENCES,
    SESSIONS,
    USER_STATES,
    VOCABULARY,
    Contract,
    ContractError,
)
from features.histories import buckets_of, spark_hash
from features.states import OUTCOMES
from jobs import explain, histories
from jobs.bucket_files import GONE, BucketPlan, _write_share, shares_of
from jobs.histories import build_scoring_sequences
from jobs.layers import earlier_layer, layers_of, read_sequences
from jobs.score import score
from jobs.sequences import build_sequences
from jobs.sessionize import sessionize
from jobs.settings import Settings, load_settings
from jobs.store import Manifest, Store
from jobs.vocabulary import build_vocabulary
from model.bundle import Bundle, Reports, save_bundle, vocabulary_lists
from model.spec import HEADS, NetworkSpec, Sizes
from tests.logs import SOURCE, line, write_log

FIRST = date(2024, 3, 1)
NIGHTS = [FIRST + timedelta(days=k) for k in range(5)]
USERS = [f"u{k}" for k in range(12)]
SHORT = [
    "sessions.lateness_days=1",
    "sequences.length=4",
    "sequences.history_events=7",
    "sequences.compact_share=1000",
    "sequences.compact_runs=1",
    "sequences.split.protocol=leave_one_out",
    "sequences.world_sizes=[1]",
    "sequences.split.valid_days=1",
    "sequences.split.test_days=1",
    "feeds.exploded=true",
    "feeds.drift_users=4",
    "scoring.state_layers=3",
    "scoring.state_layer_share=1000",
]


@pytest.fixture(scope="module")
def settings() -> Settings:
    """Short histories, so that the cap acts; new histories when more than one run lies on them."""
    return load_settings(assignments=SHORT)


def log_of(day: date, random: np.random.Generator) -> list[str]:
    """Everybody on the first day, a few users on the others, some of their events late by a day, some at one moment."""
    lines = []
    for user in USERS if day == FIRST else random.choice(USERS, 3, replace=False):
        for minute in random.choice(24 * 60, 6):
            back = int(day > FIRST and random.random() < 0.3)
            when = f"{day - timedelta(days=back)} {minute // 60:02d}:{minute % 60:02d}"
            lines += [line(user, f"i{random.integers(9)}", f"c{minute % 3}", when=when) for _ in range(minute % 2 + 1)]
    return lines


def rows(spark: SparkSession, root: Path, day: date) -> dict[str, dict[str, Any]]:
    found = [row.asDict() for row in read_sequences(spark, Store(str(root)), day).collect()]
    assert len({row[c.USER_ID] for row in found}) == len(found)
    return {row[c.USER_ID]: row for row in found}


@pytest.fixture(scope="module")
def nights(
    spark: SparkSession, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[date, Manifest]]:
    """Five nights with one vocabulary: the root, and the manifest of each night's sequences."""
    folder = tmp_path_factory.mktemp("nights")
    random, root, made = np.random.default_rng(3), folder / "out", {}
    for day in NIGHTS:
        log = write_log(folder / f"{day}.csv", *log_of(day, random))
        sessionize(spark, settings, SOURCE, [log], str(root), day, day, bootstrap=day == FIRST)
        if day == FIRST:
            build_vocabulary(spark, settings, str(root), day)
        with pytest.MonkeyPatch.context() as patch:
            if day >= NIGHTS[3]:  # more tasks than the sessions have files, when histories are written and after
                patch.setattr(histories, "partitions_for", lambda *_: 7)
            made[day] = build_scoring_sequences(spark, settings, str(root), day)
    return root, made


def test_each_night_has_the_rows_of_the_whole_log(
    spark: SparkSession, settings: Settings, nights: tuple[Path, dict[date, Manifest]], tmp_path: Path
) -> None:
    root, _ = nights
    for day in NIGHTS[1:]:
        whole = tmp_path / str(day)
        shutil.copytree(root, whole, ignore=shutil.ignore_patterns(HISTORIES.name, SEQUENCES.name))
        shutil.copytree(whole / f"vocabulary_v1/dt={FIRST}", whole / f"vocabulary_v1/dt={day}")
        build_sequences(spark, settings, str(whole), day)
        assert rows(spark, root, day) == rows(spark, whole, day)


def test_histories_of_a_day_that_was_run_again_are_not_used(
    spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    root, random = tmp_path / "out", np.random.default_rng(4)
    first, last = NIGHTS[1], NIGHTS[2]
    for day, log in ((first, "1.csv"), (first, "2.csv"), (last, "3.csv")):
        days = NIGHTS[:2] if day == first else [last]
        path = write_log(tmp_path / log, *(text for each in days for text in log_of(each, random)))
        sessionize(spark, settings, SOURCE, [path], str(root), days[0], day, bootstrap=day == first)
        if log == "1.csv":
            build_vocabulary(spark, settings, str(root), day)
        if log != "2.csv":
            build_scoring_sequences(spark, settings, str(root), day)
    assert str(first) in Store(str(root)).dates(HISTORIES.name)
    whole = tmp_path / "whole"
    shutil.copytree(root, whole, ignore=shutil.ignore_patterns(HISTORIES.name, SEQUENCES.name))
    shutil.copytree(whole / f"vocabulary_v1/dt={first}", whole / f"vocabulary_v1/dt={last}")
    build_sequences(spark, settings, str(whole), last)
    assert rows(spark, root, last) == rows(spark, whole, last)


def test_a_night_writes_the_users_it_touched_and_compacts_now_and_then(
    nights: tuple[Path, dict[date, Manifest]],
) -> None:
    root, made = nights
    store = Store(str(root))
    compacted = [date.fromisoformat(day) for day in store.dates(HISTORIES.name)]
    layered = [day for day in NIGHTS if earlier_layer(made[day])]
    assert compacted == [NIGHTS[0], NIGHTS[1], NIGHTS[3]]  # on the first, every session is open still
    assert set(layered) == set(NIGHTS) - set(compacted)
    assert all(made[day].rows < len(USERS) for day in layered)
    assert all(made[day].rows == len(USERS) for day in compacted)
    # What lies below the histories is not looked at again.
    read = [key for key in made[NIGHTS[4]].inputs if key.startswith((SESSIONS.name, HISTORIES.name))]
    assert sorted(read) == [f"{HISTORIES.name}/{NIGHTS[3]}", f"{SESSIONS.name}/{NIGHTS[4]}"]


def test_a_bucket_without_new_sessions_is_kept_as_it_is(
    spark: SparkSession, settings: Settings, tmp_path: Path
) -> None:
    root, eager = (
        tmp_path / "out",
        settings.model_copy(update={"sequences": settings.sequences.model_copy(update={"compact_share": 1e-9})}),
    )
    for k, day in enumerate(NIGHTS[:3]):
        log = write_log(tmp_path / f"{day}.csv", *(line(u, when=f"{day} 09:00") for u in (USERS if not k else ["u0"])))
        sessionize(spark, settings, SOURCE, [log], str(root), day, day, bootstrap=not k)
        if not k:
            build_vocabulary(spark, settings, str(root), day)
        build_scoring_sequences(spark, eager, str(root), day)
    second, third = (root / HISTORIES.name / f"dt={day}" for day in NIGHTS[1:3])
    files = {file.name: file.read_bytes() for file in second.glob("*.parquet")}
    same = [name for name, content in files.items() if (third / name).read_bytes() == content]
    assert len(files) > 3
    assert len(same) == len(files) - 1  # u0 has a session more


def test_a_new_vocabulary_encodes_everyone_anew(
    spark: SparkSession, settings: Settings, nights: tuple[Path, dict[date, Manifest]], tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(nights[0], root)
    day = next(day for day in NIGHTS if earlier_layer(nights[1][day]))
    before = rows(spark, root, day)
    build_vocabulary(spark, settings, str(root), day)
    again = build_scoring_sequences(spark, settings, str(root), day)
    assert earlier_layer(again) is None
    assert again.rows == len(USERS)
    assert {user: row[c.LENGTH] for user, row in rows(spark, root, day).items()} == {
        user: row[c.LENGTH] for user, row in before.items()
    }


def test_a_layer_under_which_the_day_was_run_again_is_refused(
    spark: SparkSession, settings: Settings, nights: tuple[Path, dict[date, Manifest]], tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(nights[0], root)
    store = Store(str(root))
    day = next(day for day in NIGHTS if earlier_layer(nights[1][day]))
    below = layers_of(store, day)[1]
    place = root / SEQUENCES.name / f"dt={below.dt}" / "_MANIFEST.json"
    place.write_text(place.read_text().replace('"rows": ', '"rows": 1'))
    with pytest.raises(Exception, match=f"was laid on sequences_v1 of {below.dt}"):
        read_sequences(spark, store, day)
    build_scoring_sequences(spark, settings, str(root), day)
    assert read_sequences(spark, store, day).count() > 0


def test_of_a_user_without_events_a_row_of_length_0_is_left(tmp_path: Path) -> None:
    opened, folder = str(tmp_path / "part-00000-of-00001-0.parquet"), tmp_path / "sequences"
    folder.mkdir()
    pq.write_table(pa.table({c.USER_ID: ["ann", "ann", "bob"]}), opened)
    plan = BucketPlan(None, 16, frozenset(), None, str(folder), (), False, 7, 4, (60, 1800), 1800, 10**15)
    found = []
    for share in shares_of([(GONE, opened)], 4, 16):
        for path in _write_share(share, plan):
            found += pq.ParquetFile(path).read().to_pylist()
    assert sorted(row[c.USER_ID] for row in found) == ["ann", "bob"]
    assert all((row[c.LENGTH], row[c.ITEM], row[c.SEEN_ITEMS]) == (0, [0, 0, 0, 0], []) for row in found)


def test_buckets_are_those_of_sparks_hash(spark: SparkSession) -> None:
    users = ["", "a", "ab", "abc", "abcd", "abcdé", "u12345678", "日本語", "x" * 41]
    theirs = spark.createDataFrame([(user,) for user in users], "user string").select(F.hash("user")).collect()
    assert spark_hash(pa.array(users)).tolist() == [row[0] for row in theirs]
    assert set(buckets_of(pa.array(users), 4)) <= {0, 1, 2, 3}


def bundle(root: Path, settings: Settings, seed: int) -> str:
    """Path of a model with random weights for the vocabulary of the first day."""
    from model.network import Network

    folder = root / VOCABULARY.name / f"dt={FIRST}"
    tokens, counts = vocabulary_lists(pa.concat_tables([pq.read_table(file) for file in folder.glob("*.parquet")]))
    spec, edges_s = settings.sequences, settings.sequences.gap_edges_s
    sizes = Sizes(
        items=len(tokens[c.KIND_ITEM]),
        categories=len(tokens[c.KIND_CATEGORY]),
        length=spec.length,
        gap_codes=c.FIRST_GAP + len(edges_s) + 1,
        new_session_gap=spec.new_session_gap(settings.sessions.gap_s),
        session_gap_s=settings.sessions.gap_s,
        gap_edges_s=edges_s,
        horizons_days=spec.horizons_days,
    )
    network_spec = NetworkSpec.model_validate({**settings.network.model_dump(), "units": 8, "layers": 2})
    network, random = Network(network_spec, sizes, seed, heads=HEADS), np.random.default_rng(seed)
    weights = {name: weight.numpy() for name, weight in network.weights.items()}
    heads = [name for name in weights if name.split("/")[0] in (*HEADS, "silence")]
    weights |= {name: random.normal(scale=0.5, size=weights[name].shape).astype(np.float32) for name in heads}
    weights["query/shift"] = np.linspace(-1, 1, weights["query/shift"].size, dtype=np.float32).reshape(3, 8)
    made = Bundle(network_spec, sizes, edges_s, tokens, counts, weights, "", "data", "another day's", "code")
    path = str(root / f"bundle-{seed}")
    save_bundle(path, str(FIRST), made, Reports("", {}, []))
    return path


@pytest.fixture(scope="module")
def scored(
    spark: SparkSession, settings: Settings, nights: tuple[Path, dict[date, Manifest]]
) -> tuple[Path, dict[date, Manifest]]:
    """The root with scores of every night, each from the states of the one before, and their manifests."""
    root, _ = nights
    model = bundle(root, settings, seed=1)
    return root, {day: score(spark, settings, str(root), day, model) for day in NIGHTS}


def scores_of(root: Path, day: date) -> dict[str, dict[str, Any]]:
    """By user: what depends on no rounding, and log-probabilities of all items and listed interests."""
    found: dict[str, dict[str, Any]] = {}
    for file in (root / SCORES.name / f"dt={day}").glob("*.parquet"):
        for row in pq.ParquetFile(file).read().to_pylist():
            assert row[c.USER_ID] not in found
            found[row[c.USER_ID]] = row
    return found


def assert_same_scores(mine: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]]) -> None:
    assert mine.keys() == theirs.keys()
    for user, row in mine.items():
        other = theirs[user]
        for name in (c.AS_OF, c.MODEL_VERSION, c.PROVENANCE):
            assert row[name] == other[name]
        for name, token in ((c.ITEMS, c.ITEM_ID), (c.INTERESTS, c.CATEGORY_ID)):
            ours, peers = ({e[token]: np.log(e[c.PROBABILITY]) for e in of[name]} for of in (row, other))
            assert ours == pytest.approx(peers, abs=1e-4)
        assert [(e[c.CATEGORY_ID], e[c.PAST_SHARE], e[c.TREND]) for e in row[c.INTERESTS]] == [
            (e[c.CATEGORY_ID], e[c.PAST_SHARE], e[c.TREND]) for e in other[c.INTERESTS]
        ]
        assert flat_outlook(row) == pytest.approx(flat_outlook(other), abs=1e-4)


def flat_outlook(row: dict[str, Any]) -> dict[str, float]:
    """Every number that a row says of the days ahead, by its place."""
    found = {c.DRIFT: row[c.DRIFT], c.CONTACTS_PER_WEEK: row[c.CONTACTS_PER_WEEK]}
    for name, key in ((c.BACK, c.HOURS), (c.BEST_HOURS, c.HOUR), (c.NEXT_ACTIONS, c.ACTION)):
        found |= {f"{name}/{entry[key]}": entry[c.PROBABILITY] for entry in row[name]}
    for interest in row[c.INTERESTS]:
        for entry in interest[c.DAYS_AHEAD]:
            place = f"{interest[c.CATEGORY_ID]}/{entry[c.DAYS]}"
            found |= {f"{place}/share": entry[c.SHARE], f"{place}/touched": entry[c.TOUCHED]}
    return found


def outcomes(manifest: Manifest) -> dict[str, int]:
    return {name: manifest.counters[name] for name in OUTCOMES if manifest.counters[name]}


def test_each_nights_scores_are_those_of_scoring_everyone_anew(
    spark: SparkSession, settings: Settings, scored: tuple[Path, dict[date, Manifest]], tmp_path: Path
) -> None:
    root, _ = scored
    anew = tmp_path / "anew"
    shutil.copytree(root, anew, ignore=shutil.ignore_patterns(SCORES.name, USER_STATES.name))
    all_scores = {}
    for day in NIGHTS:
        full = score(spark, settings, str(anew), day, str(root / "bundle-1"), full=True)
        assert outcomes(full) == {"replayed": len(USERS), **({"newcomers": len(USERS)})}
        all_scores[day] = scores_of(root, day)
        assert_same_scores(all_scores[day], scores_of(anew, day))
    assert len({str(row[c.ITEMS]) for row in all_scores[NIGHTS[-1]].values()}) == len(USERS)
    # Whoever stays silent over nights is still told of as silent as he is.
    silent = {user: [all_scores[day][user] for day in NIGHTS] for user in USERS}
    silent = {user: rows for user, rows in silent.items() if len({str(row[c.ITEMS]) for row in rows[1:]}) == 1}
    assert silent
    for told in silent.values():
        assert len({str(row[c.BACK]) for row in told}) == len(NIGHTS)
        assert len({row[c.DRIFT] for row in told}) > 1
        assert len(flat_outlook(told[0])) == 2 + 2 + 3 + 5 + 6 * len(told[0][c.INTERESTS])


def test_days_without_an_event_carry_everyone(
    spark: SparkSession, settings: Settings, scored: tuple[Path, dict[date, Manifest]], tmp_path: Path
) -> None:
    root, model = tmp_path / "out", str(scored[0] / "bundle-1")
    shutil.copytree(scored[0], root)
    log, told = write_log(tmp_path / "empty.csv"), [scores_of(root, NIGHTS[-1])]
    for day in (NIGHTS[-1] + timedelta(days=k) for k in (1, 2)):
        assert sessionize(spark, settings, SOURCE, [log], str(root), day, day, bootstrap=False).rows_read == 0
        build_scoring_sequences(spark, settings, str(root), day)
        made = score(spark, settings, str(root), day, model)
        told.append(scores_of(root, day))
        assert made.rows == len(USERS)
        assert made.min_time == f"{day + timedelta(days=1)}T00:00:00+00:00"
    # Sessions that were open as the last day ended are over by the first empty one; the second changes nobody's past.
    assert outcomes(made) == {"carried": len(USERS)}
    moves = (c.AS_OF, c.BACK, c.CONTACTS_PER_WEEK, c.BEST_HOURS, c.NEXT_ACTIONS, c.DRIFT)
    assert told[2].keys() == told[1].keys() == told[0].keys() == set(USERS)
    for user, row in told[2].items():
        before = told[1][user]
        assert {name for name in row if row[name] != before[name]} <= {*moves, c.INTERESTS}
        assert row[c.BACK] != before[c.BACK]
        for now, then in zip(row[c.INTERESTS], before[c.INTERESTS], strict=True):
            assert now | {c.DAYS_AHEAD: None} == then | {c.DAYS_AHEAD: None}
    full = score(spark, settings, str(root), day, model, full=True)
    assert outcomes(full) == {"replayed": len(USERS), "newcomers": len(USERS)}
    assert_same_scores(told[2], scores_of(root, day))


def test_a_night_reads_new_events_only(scored: tuple[Path, dict[date, Manifest]]) -> None:
    _, made = scored
    assert outcomes(made[FIRST]) == {"replayed": len(USERS), "newcomers": len(USERS)}
    for day in NIGHTS[1:]:
        counts = outcomes(made[day])
        assert sum(counts.values()) == len(USERS)
        assert counts["carried"] >= len(USERS) - 6  # three users have events, some of the day before become silent
        assert f"{USER_STATES.name}/{day - timedelta(days=1)}" in made[day].inputs
    together = {name for day in NIGHTS[1:] for name in outcomes(made[day])}
    assert {"carried", "replayed"} <= together


def test_states_lie_in_layers_until_they_are_written_whole(scored: tuple[Path, dict[date, Manifest]]) -> None:
    root, made = scored
    states = [Store(str(root)).manifest(USER_STATES.name, day, "") for day in NIGHTS]
    below = [[key for key in of.inputs if key.startswith(f"{USER_STATES.name}/")] for of in states]
    assert below == [
        [],
        *([f"{USER_STATES.name}/{day}"] for day in NIGHTS[:2]),
        [],
        [f"{USER_STATES.name}/{NIGHTS[3]}"],
    ]
    for of, day, layers in zip(states, NIGHTS, below, strict=True):
        counts = outcomes(made[day])
        assert of.rows == (len(USERS) - counts["carried"] if layers else len(USERS))
        assert layers == [] or of.rows < len(USERS)


def test_states_whose_layers_have_gone_are_not_used(
    spark: SparkSession,
    settings: Settings,
    scored: tuple[Path, dict[date, Manifest]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, day, model = tmp_path / "copy", NIGHTS[2], str(scored[0] / "bundle-1")
    shutil.copytree(scored[0], root)
    score(spark, settings, str(root), FIRST, model)  # the same again
    assert outcomes(score(spark, settings, str(root), day, model)) == outcomes(scored[1][day])
    shutil.rmtree(root / USER_STATES.name / f"dt={FIRST}")
    capsys.readouterr()
    anew = score(spark, settings, str(root), day, model)
    assert outcomes(anew) == {"replayed": len(USERS), "newcomers": len(USERS)}
    said = "".join(capsys.readouterr())
    assert f"those of {NIGHTS[1]} were laid on states that have been written again or are gone" in said
    assert_same_scores(scores_of(root, day), scores_of(scored[0], day))


def test_another_model_or_vocabulary_or_coding_rebuilds(
    spark: SparkSession,
    settings: Settings,
    scored: tuple[Path, dict[date, Manifest]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, day = tmp_path / "copy", NIGHTS[-1]
    shutil.copytree(scored[0], root)
    everyone = {"replayed": len(USERS), "newcomers": len(USERS)}
    capsys.readouterr()

    def again(model: str, with_settings: Settings) -> tuple[dict[str, int], str]:
        manifest = score(spark, with_settings, str(root), day, model)
        said = capsys.readouterr()
        return outcomes(manifest), said.out + said.err

    assert again(str(root / "bundle-1"), settings)[0] == outcomes(scored[1][day])
    store, feeds = Store(str(root)), settings.feeds.model_copy(update={"exploded": False})
    assert str(day) in store.dates(SCORES_EXPLODED.name)
    assert again(str(root / "bundle-1"), settings.model_copy(update={"feeds": feeds}))[0] == outcomes(scored[1][day])
    assert str(day) not in store.dates(SCORES_EXPLODED.name)  # it would be of the scores before
    assert str(day) in store.dates(DRIFT.name)
    found, said = again(bundle(root, settings, seed=2), settings)
    assert found == everyone
    assert "no earlier states can be carried (those of 2024-03-04: model_version is 2024-03-01-" in said
    listed = settings.scoring.model_copy(update={"top_k_items": 5})
    found, said = again(str(root / "bundle-1"), settings.model_copy(update={"scoring": listed}))
    assert found == everyone
    assert "the section scoring of the configuration has changed" in said
    build_vocabulary(spark, settings, str(root), day)
    build_scoring_sequences(spark, settings, str(root), day)
    found, said = again(str(root / "bundle-1"), settings)
    assert found == everyone
    assert "vocabulary is ['2024-03-05'" in said


def test_sequences_written_anew_still_find_their_states(
    spark: SparkSession, settings: Settings, scored: tuple[Path, dict[date, Manifest]], tmp_path: Path
) -> None:
    root, day = tmp_path / "copy", NIGHTS[-1]
    shutil.copytree(scored[0], root)
    shutil.rmtree(root / HISTORIES.name)
    assert earlier_layer(build_scoring_sequences(spark, settings, str(root), day)) is None
    manifest = score(spark, settings, str(root), day, str(root / "bundle-1"))
    assert outcomes(manifest) == outcomes(scored[1][day])
    assert_same_scores(scores_of(root, day), scores_of(scored[0], day))


def test_torn_states_are_refused(
    spark: SparkSession, settings: Settings, scored: tuple[Path, dict[date, Manifest]], tmp_path: Path
) -> None:
    root, day = tmp_path / "copy", NIGHTS[-1]
    shutil.copytree(scored[0], root)
    sorted((root / USER_STATES.name / f"dt={NIGHTS[-2]}").glob("*.parquet"))[0].unlink()
    before = Store(str(root)).manifest(SCORES.name, day, "").hash
    with pytest.raises(ContractError, match=f"dt={NIGHTS[-2]}/bucket-.* is missing.*torn.*jobs/score.py --full"):
        score(spark, settings, str(root), day, str(root / "bundle-1"))
    assert Store(str(root)).manifest(SCORES.name, day, "").hash == before
    assert outcomes(score(spark, settings, str(root), day, str(root / "bundle-1"), full=True))["replayed"] == len(USERS)


@pytest.mark.parametrize("table", [SCORES, USER_STATES], ids=lambda table: str(table.name))
def test_a_file_of_last_night_with_a_flipped_byte_is_refused(
    spark: SparkSession,
    settings: Settings,
    scored: tuple[Path, dict[date, Manifest]],
    tmp_path: Path,
    table: Contract,
) -> None:
    root, day = tmp_path / "copy", NIGHTS[-1]
    shutil.copytree(scored[0], root)
    damaged = sorted((root / table.name / f"dt={NIGHTS[-2]}").glob("*.parquet"))[0]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3] ^= 1  # within the pages: Parquet itself may read on
    damaged.write_bytes(content)
    before = Store(str(root)).manifest(SCORES.name, day, "").hash
    with pytest.raises(ContractError, match=f"{damaged.name} is damaged: .* jobs/score.py --full for this day"):
        score(spark, settings, str(root), day, str(root / "bundle-1"))
    assert Store(str(root)).manifest(SCORES.name, day, "").hash == before
    score(spark, settings, str(root), day, str(root / "bundle-1"), full=True)
    assert_same_scores(scores_of(root, day), scores_of(scored[0], day))


def test_feeds_are_made_of_the_scores_of_the_day(
    scored: tuple[Path, dict[date, Manifest]], spark: SparkSession
) -> None:
    root, made = scored
    store = Store(str(root))
    for day in (FIRST, NIGHTS[-1]):
        rows = scores_of(root, day)
        flat = store.read(spark, SCORES_EXPLODED, day, "").orderBy(c.USER_ID, c.RANK).collect()
        assert [tuple(row) for row in flat] == [
            (user, rank, item[c.ITEM_ID], item[c.PROBABILITY])
            for user in sorted(rows)
            for rank, item in enumerate(rows[user][c.ITEMS], start=1)
        ]
        top = sorted(rows, key=lambda user: (-rows[user][c.DRIFT], user))[:4]
        moved = store.read(spark, DRIFT, day, "").orderBy(c.RANK).collect()
        assert [(row[c.RANK], row[c.USER_ID]) for row in moved] == list(enumerate(top, start=1))
        assert store.manifest(DRIFT.name, day, "").inputs == {f"{SCORES.name}/{day}": made[day].hash}


def test_a_row_is_explained_by_its_events_and_months(
    scored: tuple[Path, dict[date, Manifest]], settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    root, day = scored[0], NIGHTS[-1]
    row = scores_of(root, day)["u3"]
    flags = ["--root", str(root), "--date", str(day), "--user", "u3", "--bundle", str(root / "bundle-1")]
    flags += [part for name in SHORT for part in ("--set", name)]
    assert explain.main([*flags, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["interest"][c.CATEGORY_ID] == row[c.INTERESTS][0][c.CATEGORY_ID]
    assert told["item"][c.ITEM_ID] == row[c.ITEMS][0][c.ITEM_ID]
    assert len(told["events"]) == settings.sequences.length
    assert [event["event_time"] for event in told["events"]] == sorted(event["event_time"] for event in told["events"])
    assert all(np.isfinite(event[name]) for event in told["events"] for name in ("interest_effect", "item_effect"))
    assert len({event["interest_effect"] for event in told["events"]}) > 1
    assert [month["month"] for month in told["months"]] == ["2024-03"]
    assert sum(share["share"] for share in told["months"][0]["shares"]) == pytest.approx(1)
    probability = {e[c.CATEGORY_ID]: e[c.PROBABILITY] for e in told["months"][0]["expected"]}
    listed = {e[c.CATEGORY_ID]: e[c.PROBABILITY] for e in row[c.INTERESTS]}
    assert {name: probability[name] for name in listed} == pytest.approx(listed, rel=1e-4)

    assert explain.main(flags) == 0
    said = capsys.readouterr().out
    assert f"Next interest: {told['interest'][c.CATEGORY_ID]}, " in said
    most = max(told["events"], key=lambda event: abs(event["interest_effect"]))
    line = said.split("What moved the interest most")[1].splitlines()[1]
    assert most["event_time"][:16].replace("T", " ") in line
    assert line.endswith(f"× {np.exp(most['interest_effect']):.2f}")


def test_with_an_item_index_everyone_is_scored_anew_and_explained_by_it(
    spark: SparkSession,
    settings: Settings,
    scored: tuple[Path, dict[date, Manifest]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("faiss", reason="FAISS is not installed (the extra [index])")
    root, day, model = tmp_path / "copy", NIGHTS[-1], str(scored[0] / "bundle-1")
    shutil.copytree(scored[0], root)
    indexed = settings.scoring.model_copy(update={"item_index": "approximate"})
    manifest = score(spark, settings.model_copy(update={"scoring": indexed}), str(root), day, model)
    assert outcomes(manifest) == {"replayed": len(USERS), "newcomers": len(USERS)}
    assert_same_scores(scores_of(root, day), scores_of(scored[0], day))  # of so few items every list is read
    flags = ["--root", str(root), "--date", str(day), "--user", "u3", "--bundle", model, "--json"]
    flags += [part for name in (*SHORT, "scoring.item_index=approximate") for part in ("--set", name)]
    capsys.readouterr()
    assert explain.main(flags) == 0
    assert json.loads(capsys.readouterr().out)["item"] == scores_of(root, day)["u3"][c.ITEMS][0]
    monkeypatch.setitem(sys.modules, "faiss", None)  # type: ignore[arg-type]
    assert explain.main(flags) == 3
    assert "needs FAISS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        (["--user", "nobody"], 2, "has no row of user nobody"),
        (["--date", "2023-01-01"], 3, "scores_v1 has no finished partition for 2023-01-01"),
        (["--months", "0"], 2, "--months 0: take 1 or more"),
        ([], 3, "no bundle below"),
    ],
)
def test_what_cannot_be_explained_is_said(
    scored: tuple[Path, dict[date, Manifest]],
    capsys: pytest.CaptureFixture[str],
    changed: list[str],
    code: int,
    said: str,
) -> None:
    flags = ["--root", str(scored[0]), "--date", str(NIGHTS[-1]), "--user", "u3", *changed]
    assert explain.main(flags) == code
    assert said in " ".join(capsys.readouterr().err.split())
