from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest

from features.columns import CATEGORY, GAP, ITEM, MICROS, UNKNOWN_GAP
from features.window_rows import Cutoffs
from features.windows import build_partition
from model.baselines import (
    LastCategory,
    Markov,
    Popularity,
    RecentPopularity,
    SessionKnn,
    TrainEvents,
    UserHistory,
    VocabularySizes,
    Windows,
    events_of,
    fit_baselines,
)

# Gap codes with edges 10 s and 1000 s: 2 below 10 s, 3 up to 1000 s, 4 above; from 4 on a new session starts.
EDGES_S = (10, 1000)
NEW_SESSION = 4
SIZES = VocabularySizes(items=8, categories=5)
# Category of items 2..7.
CATEGORY_OF = np.array([0, 1, 2, 2, 3, 3, 4, 4], dtype=np.int32)


def pad(lists, width):
    return np.array([[*row, *[0] * (width - len(row))] for row in lists], dtype=np.int32)


def ids(*values):
    return np.array(values, dtype=np.int32)


def channels(*items):
    item = pad(items, 4)
    return {ITEM: item, CATEGORY: CATEGORY_OF[item], GAP: np.where(item > 0, 2, 0).astype(np.int32)}


def scores_of(ranker, *items):
    length = ids(*map(len, items))
    return ranker.probabilities(channels(*items), length, np.ones_like(length))


def order_of(row):
    """Ids from 2 on, best first, smaller ids first at equal scores."""
    return (np.argsort(-row[2:], kind="stable") + 2).tolist()


def windows():
    """Three users, at most 4 events a window.

    User 0: 2 3 | 2 4 6 7 (the window of 2 4 6 starts where the older one ends: its next event is the 2).
    User 1: 2 3, then a new session with 3. User 2: 4 5.
    """
    item = pad([[2, 3], [2, 4, 6], [2, 3], [4]], 4)
    gap = pad([[UNKNOWN_GAP, 2], [4, 3, 2], [UNKNOWN_GAP, 2], [UNKNOWN_GAP]], 4)
    next_item = ids(2, 7, 3, 5)
    return Windows(
        user=np.array([0, 0, 1, 2]),
        window=ids(1, 0, 0, 0),
        channels={ITEM: item, CATEGORY: CATEGORY_OF[item], GAP: gap},
        length=ids(2, 3, 2, 1),
        next_gap=ids(4, 3, 4, 2),
        next_item=next_item,
        next_category=CATEGORY_OF[next_item],
        last_time_us=np.array([1_000, 9_000, 500, 20_000]) * MICROS,
        next_time_us=np.array([8_000, 9_100, 4_000, 20_005]) * MICROS,
    )


@pytest.fixture(scope="module")
def events():
    return events_of(windows(), EDGES_S, NEW_SESSION)


def test_every_training_event_comes_out_once_in_order(events):
    assert events.user.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert events.item.tolist() == [2, 3, 2, 4, 6, 7, 2, 3, 3, 4, 5]
    np.testing.assert_array_equal(events.category, CATEGORY_OF[events.item])


def test_events_do_not_depend_on_the_order_of_the_windows(events):
    given = windows()
    turned = Windows(
        *(
            {name: channel[::-1] for name, channel in value.items()} if isinstance(value, dict) else value[::-1]
            for value in vars(given).values()
        )
    )
    for name, value in vars(events_of(turned, EDGES_S, NEW_SESSION)).items():
        np.testing.assert_array_equal(value, getattr(events, name))


def test_events_of_the_sequences_stage_come_back_as_they_were():
    """Every event before the end of training, through windows of four and back."""
    rng = np.random.default_rng(9)
    n_events, end_us = 400, 80_000 * MICROS
    raw = {
        "user_id": [f"u{k:02d}" for k in rng.integers(0, 30, n_events)],
        "time_us": rng.integers(0, 100_000, n_events) * MICROS,
        "event_id": np.arange(n_events),
        "item": rng.integers(2, 8, n_events).astype(np.int32),
        "category": rng.integers(2, 5, n_events).astype(np.int32),
        "action_code": np.full(n_events, 2, np.int32),
    }
    batch = pa.RecordBatch.from_pydict(raw)
    cutoffs = Cutoffs(end_us, 90_000 * MICROS, 100_000 * MICROS, embargo_us=0)
    made = pa.Table.from_batches(
        list(build_partition(iter([batch]), 4, 1000, EDGES_S, "global_time", cutoffs, 4, 86_400))
    )
    rows = made.filter(pa.compute.equal(made["split"], "train"))
    ints = {name: rows[name].to_numpy() for name in ("window", "length", "next_gap", "next_item", "next_category")}
    times = {name: rows[name].cast(pa.int64()).to_numpy() for name in ("last_time", "next_time")}
    rebuilt = events_of(
        Windows(
            user=np.array([int(user[1:]) for user in rows["user_id"].to_pylist()]),
            channels={name: np.array(rows[name].to_pylist(), dtype=np.int32) for name in (ITEM, CATEGORY, GAP)},
            last_time_us=times["last_time"],
            next_time_us=times["next_time"],
            **ints,
        ),
        EDGES_S,
        NEW_SESSION,
    )
    expected = sorted(
        (int(user[1:]), time, number)
        for user, time, number in zip(raw["user_id"], raw["time_us"].tolist(), range(n_events), strict=True)
        if time < end_us
    )
    numbers = [number for _, _, number in expected]
    assert len(numbers) > 250
    assert rebuilt.user.tolist() == [user for user, _, _ in expected]
    assert rebuilt.item.tolist() == raw["item"][numbers].tolist()
    assert rebuilt.category.tolist() == raw["category"][numbers].tolist()
    gaps_s = [
        None if i == 0 or expected[i][0] != expected[i - 1][0] else (expected[i][1] - expected[i - 1][1]) / MICROS
        for i in range(len(expected))
    ]
    in_session = [gap is not None and gap <= EDGES_S[-1] for gap in gaps_s]
    assert [a == b for a, b in pairwise(rebuilt.session.tolist())] == in_session[1:]


def test_times_are_exact_at_the_window_ends_and_rebuilt_before_them(events):
    seconds = events.time_us / MICROS
    # Last and next events are exact: 1000 and 8000; 9000 and 9100; 500 and 4000; 20000 and 20005.
    np.testing.assert_allclose(seconds[[1, 2, 4, 5, 7, 8, 9, 10]], [1000, 8000, 9000, 9100, 500, 4000, 20000, 20005])
    assert seconds[0] == 1000 - 10 / 2  # below the first edge: its half
    assert seconds[3] == 9000 - 5  # between 8000 and 9000
    assert (np.diff(seconds[:6]) >= 0).all()


def test_rebuilt_times_never_fall_before_the_windows_first_event():
    given = windows()
    late = Windows(**{**vars(given), "next_time_us": np.array([8_999, 9_100, 4_000, 20_005]) * MICROS})
    assert events_of(late, EDGES_S, NEW_SESSION).time_us[3] == 8_999 * MICROS


def test_sessions_are_cut_at_long_gaps_and_numbered_by_their_end(events):
    # In order: user 0 {2 3} ends 1000, {2 4 6 7} ends 9100; user 1 {2 3} ends 500, {3} ends 4000; user 2 {4 5}.
    assert events.session.tolist() == [1, 1, 3, 3, 3, 3, 0, 0, 2, 4, 4]


def test_popularity_counts_each_event_once(events):
    items, categories = scores_of(Popularity(events, SIZES), [7], [2, 3])
    np.testing.assert_allclose(items, np.tile(np.array([0, 0, 3, 3, 2, 1, 1, 1]) / 11, (2, 1)), rtol=1e-6)
    np.testing.assert_allclose(categories[0], np.array([0, 0, 6, 3, 2]) / 11, rtol=1e-6)


def test_popularity_ignores_unknown_ids(events):
    unknown = type(events)(**{**vars(events), "item": np.where(events.item == 2, 1, events.item).astype(np.int32)})
    items, _ = scores_of(Popularity(unknown, SIZES), [7])
    np.testing.assert_allclose(items[0], np.array([0, 0, 0, 3, 2, 1, 1, 1]) / 8, rtol=1e-6)


def test_recent_popularity_counts_the_last_days_then_all(events):
    recent = RecentPopularity(events, SIZES, recent_days=10_950 / 86_400)  # later than 20005 - 10950 = 9055 s
    items, categories = scores_of(recent, [2])
    # 7 (9100), 4 and 5 (20000, 20005); 4 is the most frequent of them overall, then 2 and 3, then 6.
    assert order_of(items[0]) == [4, 5, 7, 2, 3, 6]
    assert order_of(categories[0]) == [3, 4, 2]


def test_user_history_ranks_own_counts_then_the_latest_then_popularity(events):
    items, categories = scores_of(UserHistory(Popularity(events, SIZES)), [6, 7, 6, 5])
    assert order_of(items[0]) == [6, 5, 7, 2, 3, 4]
    assert order_of(categories[0]) == [4, 3, 2]
    # Counts and the place of the latest occurrence; 2, 3 and 4 have half their shares.
    expected = [0, 0, 1.5 / 11, 1.5 / 11, 1 / 11, 1 + 4 / 5, 2 + 3 / 5, 1 + 2 / 5]
    np.testing.assert_allclose(items[0], expected, rtol=1e-6)


def test_last_category_keeps_it_first_then_the_users_own_then_popular(events):
    items, categories = scores_of(LastCategory(events, SIZES, Popularity(events, SIZES)), [6, 7, 6, 5], [2, 6])
    assert order_of(items[0]) == [4, 5, 2, 3, 6, 7]  # category 3 holds 4 and 5
    assert order_of(items[1]) == [6, 7, 2, 3, 4, 5]
    assert order_of(categories[0]) == [3, 4, 2]
    assert order_of(categories[1]) == [4, 2, 3]


def test_last_category_uses_an_items_most_frequent_category(events):
    mixed = type(events)(**{**vars(events), "category": events.category.copy()})
    mixed.category[np.flatnonzero(mixed.item == 3)[:2]] = 4  # twice 4, once 2
    fitted = LastCategory(mixed, SIZES, Popularity(mixed, SIZES))
    assert fitted.category_of.tolist() == [0, 0, 2, 4, 3, 3, 4, 4]


def test_an_unknown_last_category_falls_back_to_popularity(events):
    fitted = LastCategory(events, SIZES, Popularity(events, SIZES))
    given = channels([2, 3])
    given[CATEGORY][0, 1] = 1
    items, categories = fitted.probabilities(given, ids(2), ids(1))
    assert order_of(items[0]) == [2, 3, 4, 5, 6, 7]
    assert order_of(categories[0]) == [2, 3, 4]


def test_markov_counts_followers_and_smooths_with_popularity(events):
    # 2 → 3 (user 0), 2 → 4, 2 → 3 (user 1); 3 → 2, 3 → 3; 5 never has a follower.
    items, categories = scores_of(Markov(events, SIZES, Popularity(events, SIZES), prior=2.0), [7, 2], [5])
    popular = np.array([0, 0, 3, 3, 2, 1, 1, 1]) / 11
    np.testing.assert_allclose(items[0], (np.array([0, 0, 0, 2, 1, 0, 0, 0]) + 2 * popular) / 5, rtol=1e-6)
    np.testing.assert_allclose(items[1], popular, rtol=1e-6)
    # Category 2 is followed by 2, 2, 3 (user 0: 2 3 2 4) and 2, 2 (user 1); 3 by 4 (user 0) and 3 (user 2).
    share = np.array([0, 0, 6, 3, 2]) / 11
    np.testing.assert_allclose(categories[0], (np.array([0, 0, 4, 1, 0]) + 2 * share) / 7, rtol=1e-6)
    np.testing.assert_allclose(categories[1], (np.array([0, 0, 0, 1, 1]) + 2 * share) / 4, rtol=1e-6)


def knn(events, **changes):
    values = {"neighbours": 10, "sample": 10, "last_items": 4, "idf": False} | changes
    return SessionKnn(events, SIZES, Popularity(events, SIZES), **values)


def test_session_knn_by_hand(events):
    # Sessions: 0 {2 3}, 1 {2 3}, 2 {3}, 3 {2 4 6 7}, 4 {4 5}. Current 6, 4: weights 1/2 and 1.
    # Similarity: 3: (1/2 + 1) / √4 = .75; 4: 1 / √2.
    items, categories = scores_of(knn(events), [6, 4])
    three, four = 0.75, 1 / np.sqrt(2)
    total = three + four
    votes = np.array([0, 0, three, 0, three + four, four, three, three]) / total
    np.testing.assert_allclose(items[0], votes, atol=2e-6)
    np.testing.assert_allclose(categories[0], np.array([0, 0, three, three + four, three]) / total, atol=2e-6)


def test_session_knn_weighs_votes_by_idf(events):
    items, _ = scores_of(knn(events, idf=True), [6, 4])
    # 2 is in 3 of 5 sessions, 5 in 1, 4 in 2.
    three, four = 0.75, 1 / np.sqrt(2)
    assert items[0, 2] == pytest.approx(np.log(5 / 3) * three / (three + four), abs=2e-6)
    assert items[0, 5] == pytest.approx(np.log(5) * four / (three + four), abs=2e-6)


def test_session_knn_keeps_only_the_nearest(events):
    items, _ = scores_of(knn(events, neighbours=1), [6, 4])
    np.testing.assert_allclose(items[0], [0, 0, 1, 0, 1, 0, 1, 1], atol=2e-6)


def test_session_knn_samples_the_most_recent_sessions_of_an_item(events):
    items, _ = scores_of(knn(events, sample=1), [2])  # of sessions 0, 1 and 3 only 3 remains
    np.testing.assert_allclose(items[0], [0, 0, 1, 0, 1, 0, 1, 1], atol=2e-6)


def test_session_knn_prefers_the_more_recent_of_equally_near_sessions():
    two = TrainEvents(  # session 0 holds 2 and 3, session 1 holds 2 and 4
        user=np.array([0, 0, 1, 1]),
        item=ids(2, 4, 2, 3),
        category=ids(2, 3, 2, 2),
        time_us=np.array([10, 11, 5, 6]) * MICROS,
        session=np.array([1, 1, 0, 0]),
    )
    items, _ = scores_of(knn(two, neighbours=1), [2])
    np.testing.assert_allclose(items[0], [0, 0, 1, 0, 1, 0, 0, 0], atol=2e-6)


def test_session_knn_takes_the_later_weight_of_a_repeated_item_and_only_the_latest_events(events):
    repeated, _ = scores_of(knn(events), [4, 6, 4])
    once, _ = scores_of(knn(events, last_items=2), [3, 6, 4])
    # 4 weighs 1 in both; 6 weighs 2/3, respectively 1/2; 3 is too old to count.
    three, four = (2 / 3 + 1) / 2, 1 / np.sqrt(2)
    assert repeated[0, 5] == pytest.approx(four / (three + four), abs=2e-6)
    assert once[0, 5] == pytest.approx(four / (0.75 + four), abs=2e-6)


def test_session_knn_without_neighbours_is_popularity(events):
    items, categories = scores_of(knn(events), [1])
    popular = Popularity(events, SIZES)
    np.testing.assert_allclose(items[0] / items[0].sum(), popular.items, rtol=1e-5)
    np.testing.assert_allclose(categories[0] / categories[0].sum(), popular.categories, rtol=1e-5)


def test_all_baselines_score_every_id_with_finite_numbers(events):
    fitted = fit_baselines(
        events,
        SIZES,
        recent_days=1,
        markov_prior=1.0,
        knn_neighbours=2,
        knn_sample=2,
        knn_last_items=2,
        knn_idf=True,
    )
    assert list(fitted) == ["popularity", "recent popularity", "last category", "user history", "markov", "session-knn"]
    for ranker in fitted.values():
        items, categories = scores_of(ranker, [2, 3], [1], [7])
        assert items.shape == (3, 8)
        assert categories.shape == (3, 5)
        assert (items.dtype, categories.dtype) == (np.float32, np.float32)
        assert np.isfinite(items).all()
        assert np.isfinite(categories).all()
