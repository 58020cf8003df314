"""Scoring through a fake scorer: what a row says, and that every user comes out once, whatever the buckets."""

import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark import cloudpickle
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contacts import ActionValues, ContactsSpec
from features.contracts import SEQUENCES, ContractError
from features.fallbacks import FallbackSpec
from features.outlook_columns import OutlookModel
from features.scoring import HISTORY_COLUMNS, Names
from features.scoring_spec import ScoringSpec
from features.states import Run, score_share
from jobs.score_files import ScorePlan, write_scores

LENGTH = 4
AS_OF = datetime(2024, 3, 2, tzinfo=UTC)
SPEC = ScoringSpec(
    top_k_items=3,
    top_k_interests=2,
    fading_interests=1,
    interest_depth=6,
    seen_items="keep",
    past_smoothing_events=1.0,
    new_probability_floor=0.05,
    rising_ratio=1.5,
    fading_ratio=0.6,
    batch_rows=2,
    bucket_users=100,
    state_layers=8,
    state_layer_share=0.5,
    anchor_events=1,
    short_history_events=1,
    fallback=FallbackSpec(recent_days=7, neighbours=50, least_users=2, session_items=100, back_off=0.1),
    item_index="exact",
    item_index_probes=1,
    drift_days=7,
    best_hours=2,
    contacts=ContactsSpec(
        values=ActionValues(view=0.0, click=0.1, like=0.2, cart=0.5, buy=1.0), session_worth=0.5, most_per_week=3.0
    ),
)
# By id; 0 and 1 are PAD and OOV.
ITEM_P = np.array([0, 0, 0.30, 0.25, 0.20, 0.15, 0.10], np.float32)
CATEGORY_P = np.array([0, 0, 0.40, 0.30, 0.20, 0.06, 0.04], np.float32)
COUNTS = np.array([0, 0, 10, 10, 20, 30, 30])


def names(prefix: str) -> Names:
    return Names(pa.array(["<pad>", "<oov>", *(f"{prefix}{i}" for i in range(2, len(COUNTS)))]), COUNTS)


class FakeScorer:
    """The same distribution for everyone, unless `by_past`: then the ids move on by what the state has read.

    A state is the last item, how many events were read, and a digest of them, which depends on their order.
    """

    is_recurrent = True
    state_floats = 3

    def __init__(self, by_past: bool = False, new_session_gap: int = 4, outlook: OutlookModel | None = None) -> None:
        self.length = LENGTH
        self.outlook = outlook
        self.new_session_gap = new_session_gap
        self.items = names("i")
        self.categories = names("c")
        self.by_past = by_past
        self.calls: list[tuple[int, int]] = []
        self.n_read = 0

    def advance(self, channels: dict[str, Any], length: Any, state: Any) -> Any:
        assert all(channels[name].shape == (len(length), LENGTH) for name in c.CHANNELS)
        state = state.copy()
        for position in range(LENGTH):
            is_event = position < length
            codes = sum((7 + at) * channels[name][:, position] for at, name in enumerate(c.CHANNELS))
            after = np.stack([channels[c.ITEM][:, position], state[:, 1] + 1, (state[:, 2] * 31 + codes) % 997], axis=1)
            state = np.where(is_event[:, None], after, state).astype(np.float32)
            self.n_read += int(is_event.sum())
        return state

    def top_of(
        self, state: Any, next_gap: Any, channels: Any, length: Any, k_items: int, k_categories: int
    ) -> tuple[Any, Any, Any, Any]:
        assert next_gap.shape == length.shape == (len(state),)
        assert set(channels) == set(c.CHANNELS)
        assert (state[:, 1] > 0).all()
        self.calls.append((len(state), k_items))
        shift = np.zeros(len(state), np.int64)
        if self.by_past:
            shift = state[:, 2].astype(np.int64) + (next_gap >= self.new_session_gap)
        return *self._rows(ITEM_P, k_items, shift), *self._rows(CATEGORY_P, k_categories, shift)

    @staticmethod
    def _rows(p: Any, k: int, shift: Any) -> tuple[Any, Any]:
        order = np.argsort(-p, kind="stable")[:k]
        known = len(p) - c.FIRST_ID
        ids = (order[None, :] - c.FIRST_ID + shift[:, None]) % known + c.FIRST_ID
        return ids.astype(np.int32), np.tile(p[order], (len(shift), 1))


@dataclass(frozen=True)
class MakeFake:
    """Makes the fake; with a folder, each load leaves one line in a file named for its process."""

    folder: str | None = None

    def __call__(self) -> FakeScorer:
        if self.folder:
            with (Path(self.folder) / str(os.getpid())).open("a") as file:
                file.write("loaded\n")
        return FakeScorer(by_past=True)


# Spark's Python workers cannot import a test file: they get its code with the task.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

LAST_TIME = datetime(2024, 3, 1, 12, tzinfo=UTC)


def history(user: str, items: list[int], categories: list[int], seen: list[int] | None = None) -> dict[str, Any]:
    """One row of sequences_v1."""
    fill = [c.PAD] * (LENGTH - len(items))
    ones = [1] * len(items) + fill
    return {
        c.USER_ID: user,
        c.LENGTH: len(items),
        c.ITEM: items + fill,
        c.CATEGORY: categories + fill,
        c.ACTION_CODE: ones,
        c.GAP: ones,
        c.HOUR: ones,
        c.NEXT_GAP: 5,
        c.LAST_TIME: LAST_TIME,
        c.SEEN_ITEMS: sorted(set(items)) if seen is None else seen,
    }


RUN = Run(AS_OF, "v7", session_gap_s=1800)


def table(histories: list[dict[str, Any]]) -> pa.Table:
    """Rows of sequences_v1 as a task gets them."""
    schema = to_arrow_schema(SEQUENCES.schema)
    return pa.Table.from_pylist(histories, schema=schema).select(list(HISTORY_COLUMNS))


def scores(histories: list[dict[str, Any]], scorer: FakeScorer | None = None, **over: Any) -> dict[str, dict[str, Any]]:
    """Score without Spark: user → row."""
    spec = ScoringSpec.model_validate({**SPEC.model_dump(), **over})
    scored = score_share(table(histories), None, True, scorer or FakeScorer(), spec, RUN)
    rows = scored.scores.to_pylist()
    assert scored.states[c.USER_ID].to_pylist() == [row[c.USER_ID] for row in rows]
    by_user = {row[c.USER_ID]: row for row in rows}
    assert len(by_user) == len(rows)
    return by_user


def trends(row: dict[str, Any]) -> dict[str, str]:
    return {interest[c.CATEGORY_ID]: interest[c.TREND] for interest in row[c.INTERESTS]}


def item_ids(row: dict[str, Any]) -> list[str]:
    return [item[c.ITEM_ID] for item in row[c.ITEMS]]


def many_histories() -> list[dict[str, Any]]:
    rows = []
    for user in range(40):
        n = user % LENGTH + 1
        ids = [2 + (user * 7 + step) % 5 for step in range(n)]
        rows.append(history(f"u{user}", ids, ids[::-1]))
    return rows


@pytest.fixture(scope="module")
def sequences(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(many_histories(), SEQUENCES.schema)


def written(sequences: DataFrame, folder: Path, n_buckets: int, maker: MakeFake, **over: Any) -> list[dict[str, Any]]:
    """Score with Spark: rows of scores_v1, by user."""
    places = [folder / f"{n_buckets}-{len(over)}" / name for name in ("scores", "states")]
    for place in places:
        place.mkdir(parents=True)
    spec = ScoringSpec.model_validate({**SPEC.model_dump(), **over})
    plan = ScorePlan(maker, spec, RUN, n_buckets, *map(str, places), earlier=None, is_everyone=True)
    paths, counts = write_scores(sequences, plan)
    rows = [row for path in sorted(paths) if "scores" in path for row in pq.ParquetFile(path).read().to_pylist()]
    assert counts["rows"] == counts["read"] == len(rows)
    return sorted(rows, key=lambda row: row[c.USER_ID])


def test_every_user_comes_out_once_whatever_the_buckets_and_batches(sequences: DataFrame, tmp_path: Path) -> None:
    expected = written(sequences, tmp_path, 1, MakeFake(), batch_rows=100, seen_items="remove")
    assert [row[c.USER_ID] for row in expected] == sorted(f"u{user}" for user in range(40))
    assert {(row[c.AS_OF], row[c.MODEL_VERSION], row[c.PROVENANCE]) for row in expected} == {(AS_OF, "v7", "model")}
    assert len({str(row[c.ITEMS]) for row in expected}) > 1
    assert written(sequences.repartition(3), tmp_path, 8, MakeFake(), seen_items="remove") == expected


def test_files_are_the_same_in_whatever_order_rows_come(sequences: DataFrame, tmp_path: Path) -> None:
    """The last bit of a probability depends on which rows share a batch."""
    files = []
    for name, is_up in (("up", True), ("down", False)):
        rows = sequences.orderBy(c.USER_ID, ascending=is_up).coalesce(1)
        written(rows, tmp_path / name, 2, MakeFake())
        made = (tmp_path / name).rglob("*.parquet")
        files.append({path.relative_to(tmp_path / name): path.read_bytes() for path in made})
    assert len(files[0]) == 4  # scores and states of two buckets
    assert files[0] == files[1]


def test_spark_and_plain_arrow_agree(sequences: DataFrame, tmp_path: Path) -> None:
    plain = scores(many_histories(), FakeScorer(by_past=True))
    assert written(sequences, tmp_path, 2, MakeFake()) == [plain[user] for user in sorted(plain)]


def test_the_model_is_loaded_once_in_each_worker_process(sequences: DataFrame, tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    loaded.mkdir()
    for n_buckets in (4, 8):
        written(sequences, tmp_path, n_buckets, MakeFake(str(loaded)))
    loads = [file.read_text().count("loaded") for file in loaded.iterdir()]
    assert loads
    assert set(loads) == {1}
    assert len(loads) < 8  # twelve tasks shared the processes


def test_trends_on_hand_made_histories() -> None:
    # Past shares, smoothed by one event of everyone's taste (0.1, 0.1, 0.2, 0.3, 0.3 for c2 … c6):
    rows = scores(
        [
            history("even", [2, 3], [2, 3]),  # c2 (1 + 0.1) / 3 = 0.37 → 0.40; c3 0.37 → 0.30
            history("only c2", [2, 2, 2, 2], [2, 2, 2, 2]),  # c2 4.1 / 5 = 0.82 → 0.40; c3 never, 0.30
            history("mostly c5", [5, 5, 5, 2], [5, 5, 5, 2]),  # c2 1.1 / 5 = 0.22 → 0.40; c5 3.3 / 5 = 0.66 → 0.06
            history("c2 unknown", [5, 5], [1, 1]),  # no known category: nothing is new
        ]
    )
    assert trends(rows["even"]) == {"c2": "steady", "c3": "steady"}
    assert trends(rows["only c2"]) == {"c2": "fading", "c3": "new"}
    assert trends(rows["mostly c5"]) == {"c2": "rising", "c3": "new", "c5": "fading"}
    assert trends(rows["c2 unknown"]) == {"c2": "steady", "c3": "steady"}
    assert [i[c.PAST_SHARE] for i in rows["mostly c5"][c.INTERESTS]] == pytest.approx([1.1 / 5, 0.1 / 5, 3.3 / 5])
    assert [i[c.PROBABILITY] for i in rows["mostly c5"][c.INTERESTS]] == pytest.approx([0.40, 0.30, 0.06])


def test_a_category_never_met_is_new_only_from_the_floor_on() -> None:
    past = [history("u", [5], [5])]
    assert trends(scores(past, new_probability_floor=0.31)["u"])["c3"] == "steady"
    assert trends(scores(past, new_probability_floor=0.29)["u"])["c3"] == "new"


def test_fading_interests_beyond_the_top_are_listed_up_to_their_number() -> None:
    past = [history("u", [5, 5, 6, 6], [5, 6, 6, 4])]  # c6 2.3 / 5, c5 1.3 / 5, c4 1.2 / 5 = 0.24 → 0.20 steady
    assert list(trends(scores(past, fading_interests=0)["u"])) == ["c2", "c3"]
    assert list(trends(scores(past, fading_interests=1)["u"])) == ["c2", "c3", "c6"]
    assert list(trends(scores(past, fading_interests=5)["u"])) == ["c2", "c3", "c5", "c6"]
    assert list(trends(scores(past, fading_interests=5, interest_depth=4)["u"])) == ["c2", "c3", "c5"]


def test_seen_items_are_removed_and_replaced() -> None:
    past = [
        history("none", [1], [2], seen=[]),
        history("two", [2, 4], [2, 2]),
        history("all", [2], [2], [2, 3, 4, 5, 6]),
    ]
    kept = scores(past)
    removed = scores(past, seen_items="remove")
    assert {user: item_ids(row) for user, row in kept.items()} == {user: ["i2", "i3", "i4"] for user in kept}
    assert item_ids(removed["none"]) == ["i2", "i3", "i4"]
    assert item_ids(removed["two"]) == ["i3", "i5", "i6"]
    assert item_ids(removed["all"]) == []
    assert [item[c.PROBABILITY] for item in removed["two"][c.ITEMS]] == pytest.approx([0.25, 0.15, 0.10])


def test_removal_equals_a_slow_oracle_at_any_number_of_seen_items(monkeypatch: pytest.MonkeyPatch) -> None:
    n_items = 300
    rng = np.random.default_rng(5)
    p = rng.permutation(np.arange(1, n_items + 1)).astype(np.float32)
    monkeypatch.setattr(f"{__name__}.ITEM_P", np.concatenate(([0, 0], p / p.sum())).astype(np.float32))
    scorer = FakeScorer()
    scorer.items = Names(pa.array([str(i) for i in range(n_items + 2)]), np.ones(n_items + 2, np.int64))
    likeliest = [int(i) for i in np.argsort(-ITEM_P, kind="stable") if i >= c.FIRST_ID]
    past = []
    for user in range(60):
        n_seen = int(rng.integers(0, n_items + 1)) if user % 2 else int(rng.integers(0, 20))
        chosen = likeliest[:n_seen] if user % 3 else rng.permutation(likeliest)[:n_seen].tolist()
        past.append(history(f"u{user}", [2], [2], seen=sorted(chosen)))
    rows = scores(past, scorer, seen_items="remove", top_k_items=10)
    for row in past:
        expected = [str(i) for i in likeliest if i not in set(row[c.SEEN_ITEMS])][:10]
        assert item_ids(rows[row[c.USER_ID]]) == expected
    assert len({width for _, width in scorer.calls}) <= 5
    assert max(n_rows for n_rows, _ in scorer.calls) <= SPEC.batch_rows


def test_an_unknown_history_gets_the_popular_and_says_so() -> None:
    rows = scores(
        [
            history("unknown", [1, 1], [1, 1]),
            history("younger than the model", [7, 8], [9, 1]),
            history("known item", [1, 3], [1, 1]),
            history("known category", [1, 1], [1, 4]),
        ]
    )
    assert {user: row[c.PROVENANCE] for user, row in rows.items()} == {
        "unknown": "popularity",
        "younger than the model": "popularity",
        "known item": "model",
        "known category": "model",
    }
    short = scores([history("two", [2, 3], [2, 2]), history("one", [1, 3], [1, 1])], short_history_events=2)
    assert {user: row[c.PROVENANCE] for user, row in short.items()} == {"two": "model", "one": "short_history"}
    for user in ("unknown", "younger than the model"):
        assert item_ids(rows[user]) == ["i5", "i6", "i4"]
        assert [item[c.PROBABILITY] for item in rows[user][c.ITEMS]] == pytest.approx([0.3, 0.3, 0.2])
        assert trends(rows[user]) == {"c5": "steady", "c6": "steady"}


def test_padding_and_unknown_are_never_listed() -> None:
    past = [history("known", [2], [2]), history("unknown", [1], [1])]
    for over in ({"top_k_items": 50, "top_k_interests": 50, "interest_depth": 50}, {"seen_items": "remove"}):
        for row in scores(past, **over).values():
            listed = {*item_ids(row), *trends(row)}
            assert listed
            assert not listed & {"<pad>", "<oov>"}
    every = scores(past, top_k_items=50, top_k_interests=50, interest_depth=50)["known"]
    assert item_ids(every) == ["i2", "i3", "i4", "i5", "i6"]
    assert list(trends(every)) == ["c2", "c3", "c4", "c5", "c6"]


def test_a_scorer_that_answers_padding_cannot_slip_it_in() -> None:
    class Padded(FakeScorer):
        def top_of(self, *arguments: Any) -> tuple[Any, Any, Any, Any]:
            answers = super().top_of(*arguments)
            answers[0][:, 0] = c.OOV
            answers[2][:, 0] = c.PAD
            return answers

    row = scores([history("u", [3], [3])], Padded())["u"]
    assert item_ids(row) == ["i3", "i4"]
    assert list(trends(row)) == ["c3", "c4"]


def test_sequences_of_another_length_are_refused_by_name() -> None:
    longer = {name: [*entry, 0] if name in c.CHANNELS else entry for name, entry in history("u", [2], [2]).items()}
    with pytest.raises(ContractError, match=r"column item holds lists of \[5\].*exactly 4"):
        scores([longer])


def test_no_rows_give_no_rows() -> None:
    assert scores([]) == {}


def test_depth_below_the_top_is_refused() -> None:
    with pytest.raises(ValueError, match="interest_depth = 1 is less than top_k_interests = 2"):
        ScoringSpec.model_validate({**SPEC.model_dump(), "interest_depth": 1})
