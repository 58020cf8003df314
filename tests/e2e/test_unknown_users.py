"""Users of whom the model knows nothing: night after night they find the scores that everyone anew would give them."""

import shutil
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import SCORES, SESSIONS, USER_STATES
from features.rungs import RUNGS
from features.states import OUTCOMES
from jobs.histories import build_scoring_sequences
from jobs.score import score, summary
from jobs.sessionize import sessionize
from jobs.settings import Settings, load_settings
from jobs.store import Manifest
from jobs.vocabulary import build_vocabulary
from tests.e2e.test_scoring_nights import SHORT, assert_same_scores, bundle, scores_of
from tests.logs import SOURCE, line, write_log

FIRST = date(2024, 3, 1)
NIGHTS = [FIRST + timedelta(days=k) for k in range(4)]
KNOWN = [f"u{k}" for k in range(6)]
# What comes after the vocabulary was made: items n…, the category fresh.
LATER = {
    NIGHTS[1]: [
        ("ann", "n0", "fresh", 0), ("ann", "n1", "fresh", 1), ("bob", "n0", "fresh", 0), ("bob", "n1", "fresh", 2),
        ("cid", "n0", "fresh", 5), ("dot", "n4", "fresh", 6), ("eve", "n5", "", 7), ("u0", "i1", "c1", 8),
    ],
    NIGHTS[2]: [("cid", "i3", "c0", 5), *((f"u{k}", "n2", "fresh", k) for k in range(5))],
    NIGHTS[3]: [("bob", "n3", "fresh", 0)],
}  # fmt: skip


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(assignments=[*SHORT, "feeds.exploded=false", "scoring.seen_items=remove"])


@pytest.fixture(scope="module")
def nights(
    spark: SparkSession, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[date, Manifest]]:
    """The root, and the manifest of each night's scores, each from the states of the night before."""
    folder = tmp_path_factory.mktemp("unknown")
    root, model, made = folder / "out", "", {}
    for day in NIGHTS:
        if day == FIRST:
            events = [(user, f"i{k % 5}", f"c{k % 2}", 9 * k) for user in KNOWN for k in range(6)]
        else:
            events = LATER[day]
        lines = [line(user, item, category, when=f"{day} 10:{minute:02d}") for user, item, category, minute in events]
        log = write_log(folder / f"{day}.csv", *lines)
        sessionize(spark, settings, SOURCE, [log], str(root), day, day, bootstrap=day == FIRST)
        if day == FIRST:
            build_vocabulary(spark, settings, str(root), day)
            model = bundle(root, settings, seed=1)
        build_scoring_sequences(spark, settings, str(root), day)
        made[day] = score(spark, settings, str(root), day, model)
    return root, made


def provenance(root: Path, day: date) -> dict[str, str]:
    return {user: row[c.PROVENANCE] for user, row in scores_of(root, day).items() if user not in KNOWN}


def items(row: dict[str, Any]) -> list[str]:
    return [item[c.ITEM_ID] for item in row[c.ITEMS]]


def test_each_stands_on_the_highest_rung_that_knows_something(nights: tuple[Path, dict[date, Manifest]]) -> None:
    root, made = nights
    assert provenance(root, FIRST) == {}
    assert provenance(root, NIGHTS[1]) == {
        "ann": "covisitation", "bob": "covisitation", "cid": "covisitation",
        "dot": "category_popularity", "eve": "popularity",
    }  # fmt: skip
    assert provenance(root, NIGHTS[2])["cid"] == "short_history"  # i3 is known
    scored = scores_of(root, NIGHTS[1])
    assert items(scored["cid"])[0] == "n1"
    assert items(scored["dot"])[0] == "n0"
    assert "fresh" in {interest[c.CATEGORY_ID] for interest in scored["dot"][c.INTERESTS]}
    for user in ("ann", "bob", "cid", "dot", "eve"):
        assert len(items(scored[user])) > 5
        assert scored[user][c.BACK] == []
    assert "n5" not in items(scored["eve"])  # seen
    for day in NIGHTS:
        counters = made[day].counters
        assert sum(counters[f"from_{rung}"] for rung in RUNGS) == made[day].rows
    assert "5 unknown to the model" in summary(made[NIGHTS[1]])


def test_those_without_new_events_move_with_what_is_popular(nights: tuple[Path, dict[date, Manifest]]) -> None:
    root, made = nights
    before, after = (scores_of(root, day)["dot"] for day in NIGHTS[1:3])
    assert "n2" not in items(before)
    assert items(after)[0] == "n2"  # of five users, in the same category
    assert made[NIGHTS[3]].counters["carried"] > 0
    assert made[NIGHTS[3]].counters["asked_again"] >= 3  # ann, dot, eve
    assert made[NIGHTS[3]].counters["gone"] == 0


def test_a_night_gives_what_scoring_everyone_anew_gives(
    spark: SparkSession, settings: Settings, nights: tuple[Path, dict[date, Manifest]], tmp_path: Path
) -> None:
    root, made = nights
    anew = tmp_path / "anew"
    shutil.copytree(root, anew, ignore=shutil.ignore_patterns(SCORES.name, USER_STATES.name))
    for day in NIGHTS:
        full = score(spark, settings, str(anew), day, str(root / "bundle-1"), full=True)
        assert {name: full.counters[name] for name in OUTCOMES if full.counters[name]}.keys() == {
            "replayed",
            "newcomers",
        }
        assert_same_scores(scores_of(root, day), scores_of(anew, day))
        assert {k: v for k, v in full.counters.items() if k.startswith("from_")} == {
            k: v for k, v in made[day].counters.items() if k.startswith("from_")
        }


def test_without_sessions_they_get_what_the_vocabulary_counts(
    spark: SparkSession,
    settings: Settings,
    nights: tuple[Path, dict[date, Manifest]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, _ = nights
    bare = tmp_path / "bare"
    shutil.copytree(root, bare, ignore=shutil.ignore_patterns(SCORES.name, USER_STATES.name, SESSIONS.name))
    score(spark, settings, str(bare), NIGHTS[1], str(root / "bundle-1"), full=True)
    assert set(provenance(bare, NIGHTS[1]).values()) == {"popularity"}
    assert "sessions_v1 of 2024-03-02 is missing" in capsys.readouterr().err
