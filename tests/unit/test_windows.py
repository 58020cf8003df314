"""The sequence kernel on tiny literal histories, and against what its contract promises on random ones."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import columns as c
from features.window_rows import SCORE, Cutoffs
from features.windows import build_partition, gap_codes, hour_codes

S = 1_000_000
EDGES = (10, 100)
Row = dict[str, object]


def rows_of(
    events: list[tuple[str, int, int]],
    protocol: str = c.GLOBAL_TIME,
    cutoffs: Cutoffs | None = None,
    length: int = 3,
    n_ahead: int = 4,
    horizon_s: int = 1_000,
) -> dict[str, list[Row]]:
    """events: (user, time in s, item); event_id is the position. → rows by split."""
    table = pa.table(
        {
            c.USER_ID: [user for user, _, _ in events],
            "time_us": pa.array([time * S for _, time, _ in events], pa.int64()),
            c.EVENT_ID: pa.array(range(len(events)), pa.int64()),
            c.ITEM: pa.array([item for _, _, item in events], pa.int32()),
            c.CATEGORY: pa.array([item + 100 for _, _, item in events], pa.int32()),
            c.ACTION_CODE: pa.array([2 + item % 5 for _, _, item in events], pa.int32()),
        }
    )
    cutoffs = cutoffs or Cutoffs(1_000 * S, 2_000 * S, 3_000 * S, 0)
    found: dict[str, list[Row]] = {split: [] for split in (*c.SPLITS, SCORE)}
    for batch in build_partition(
        iter(table.to_batches(max_chunksize=2)), length, 100, EDGES, protocol, cutoffs, n_ahead, horizon_s
    ):
        for row in batch.to_pylist():
            found[row[c.SPLIT]].append(row)
    return found


def test_gap_codes_count_the_edges_below_the_gap() -> None:
    gaps = [0, 10 * S, 10 * S + 1, 100 * S, 101 * S]
    assert gap_codes(pa.array(gaps).to_numpy(), EDGES).tolist() == [2, 2, 3, 3, 4]


@pytest.mark.parametrize(
    ("moment", "code"),
    [
        (datetime(2024, 1, 1, 0, 30, tzinfo=UTC), 1),  # a Monday
        (datetime(2024, 1, 7, 23, 59, tzinfo=UTC), 168),  # the Sunday after it
        (datetime(1969, 12, 29, 0, 0, tzinfo=UTC), 1),  # a Monday before 1970
    ],
)
def test_hours_of_the_week_start_on_monday(moment: datetime, code: int) -> None:
    assert hour_codes(pa.array([int(moment.timestamp()) * S]).to_numpy()).tolist() == [code]


def test_global_time_cuts_everyone_at_the_same_instants() -> None:
    log = [("ann", 10, 2), ("ann", 25, 3), ("ann", 900, 4), ("ann", 1_500, 5), ("ann", 2_500, 6), ("ann", 2_501, 2)]
    found = rows_of([*log, ("bob", 2_900, 7)])

    (train,) = found[c.TRAIN]
    assert (train[c.ITEM], train[c.LENGTH], train[c.NEXT_ITEM], train[c.NEXT_CATEGORY]) == ([2, 3, 4], 3, c.PAD, c.PAD)
    assert train[c.GAP] == [c.UNKNOWN_GAP, 3, 4]  # 875 s to the last one
    assert (train[c.NEXT_GAP], train[c.KNOWN]) == (c.UNKNOWN_GAP, 99)  # nothing came from 900 s up to the cutoff
    assert train[c.NEXT_TIME] == train[c.LAST_TIME]
    assert train[c.LABEL_ITEMS] == train[c.SEEN_ITEMS] == []

    (valid,) = found[c.VALID]
    assert (valid[c.ITEM], valid[c.LABEL_ITEMS], valid[c.NEXT_ITEM]) == ([2, 3, 4], [5], 5)
    assert valid[c.NEXT_GAP] == 3  # 100 s from the last event to the cutoff at 1,000 s: not above the edge of 100 s

    (test,) = found[c.TEST]
    assert (test[c.ITEM], test[c.LABEL_ITEMS], test[c.LABEL_CATEGORIES]) == ([3, 4, 5], [6, 2], [106, 102])
    assert test[c.SEEN_ITEMS] == [2, 3, 4, 5]

    scored = {row[c.USER_ID]: row for row in found[SCORE]}
    assert scored["ann"][c.ITEM] == [5, 6, 2]
    assert (scored["bob"][c.ITEM], scored["bob"][c.LENGTH]) == ([7, 0, 0], 1)


def test_leave_one_out_holds_out_each_users_last_two_events() -> None:
    found = rows_of([("ann", t, t) for t in (2, 3, 4, 5)] + [("bob", 2, 2), ("bob", 3, 3)], c.LEAVE_ONE_OUT)
    (valid,), (test,) = found[c.VALID], found[c.TEST]
    assert (valid[c.ITEM], valid[c.NEXT_ITEM], valid[c.LABEL_ITEMS]) == ([2, 3, 0], 4, [4])
    assert (test[c.ITEM], test[c.NEXT_ITEM], test[c.NEXT_GAP]) == ([2, 3, 4], 5, c.UNKNOWN_GAP)
    train = {row[c.USER_ID]: (row[c.ITEM], row[c.NEXT_ITEM]) for row in found[c.TRAIN]}
    assert train == {"ann": ([2, 0, 0], 3), "bob": ([2, 0, 0], 3)}


def test_an_embargo_leaves_out_labels_right_after_the_cutoff() -> None:
    cutoffs = Cutoffs(1_000 * S, 2_000 * S, 3_000 * S, embargo_us=200 * S)
    found = rows_of([("ann", 10, 2), ("ann", 1_100, 3), ("ann", 1_300, 4)], cutoffs=cutoffs)
    assert [row[c.LABEL_ITEMS] for row in found[c.VALID]] == [[4]]


HISTORIES = st.lists(
    st.tuples(st.sampled_from(["ann", "bob", "cid"]), st.integers(0, 2_999), st.integers(2, 9)), min_size=1, max_size=60
)


@settings(max_examples=150)
@given(log=HISTORIES, length=st.integers(2, 6), protocol=st.sampled_from([c.GLOBAL_TIME, c.LEAVE_ONE_OUT]))
def test_every_event_but_the_first_is_a_train_target_once(
    log: list[tuple[str, int, int]], length: int, protocol: str
) -> None:
    found = rows_of(log, protocol, length=length)
    for user in {name for name, _, _ in log}:
        events = sorted((time, index, item) for index, (name, time, item) in enumerate(log) if name == user)
        items = [item for _, _, item in events]
        if protocol == c.GLOBAL_TIME:
            train = [item for time, _, item in events if time < 1_000]
        else:
            train = items[:-2] if len(items) >= 3 else items
        windows = sorted((row for row in found[c.TRAIN] if row[c.USER_ID] == user), key=lambda row: -row[c.WINDOW])
        targets = [item for row in windows for item in [*row[c.ITEM][1 : row[c.LENGTH]], row[c.NEXT_ITEM]]]
        if protocol == c.GLOBAL_TIME and train:
            assert targets.pop() == c.PAD  # after the last event nothing is known but that it was silent
            assert len(windows) == -(-len(train) // length)
        assert targets == train[1:]
        (scored,) = (row for row in found[SCORE] if row[c.USER_ID] == user)
        assert scored[c.ITEM][: scored[c.LENGTH]] == items[-length:]
        assert scored[c.SEEN_ITEMS] == sorted(set(items))


@settings(max_examples=100)
@given(log=HISTORIES)
def test_inputs_lie_before_the_cutoff_and_labels_at_or_after_it(log: list[tuple[str, int, int]]) -> None:
    found = rows_of(log)
    for split, at in ((c.VALID, 1_000), (c.TEST, 2_000)):
        for row in found[split]:
            assert row[c.LAST_TIME].timestamp() < at <= row[c.NEXT_TIME].timestamp()
    for row in found[c.TRAIN]:
        assert row[c.LAST_TIME] <= row[c.NEXT_TIME]
        assert row[c.NEXT_TIME].timestamp() < 1_000


def test_only_the_latest_events_of_a_heavy_user_are_kept() -> None:
    table = [("bot", time, 2 + time % 5) for time in range(500)]
    found = rows_of(table, length=4)
    assert sum(row[c.LENGTH] for row in found[c.TRAIN]) == 100  # history_events = 100


def test_what_comes_after_a_cutoff_never_shortens_the_history_before_it() -> None:
    before = [("bot", 100 + time, 2 + time % 5) for time in range(50)]
    after = [("bot", 2_000 + time, 2 + time % 5) for time in range(200)]
    alone, busy = rows_of([*before, ("bot", 2_999, 2)]), rows_of([*before, *after])
    assert busy[c.TRAIN] == alone[c.TRAIN] != []
    assert busy[c.TEST][0][c.ITEM] == alone[c.TEST][0][c.ITEM]


@settings(max_examples=150)
@given(
    log=HISTORIES,
    length=st.integers(2, 6),
    protocol=st.sampled_from([c.GLOBAL_TIME, c.LEAVE_ONE_OUT]),
    n_ahead=st.integers(1, 5),
    horizon_s=st.sampled_from([1, 50, 700, 5_000]),
    embargo_s=st.sampled_from([0, 300]),
)
def test_what_follows_a_window_is_listed_as_far_as_the_split_may_know_it(
    log: list[tuple[str, int, int]], length: int, protocol: str, n_ahead: int, horizon_s: int, embargo_s: int
) -> None:
    cutoffs = Cutoffs(1_000 * S, 2_000 * S, 3_000 * S, embargo_s * S)
    found = rows_of(log, protocol, cutoffs, length, n_ahead, horizon_s)
    for split in c.SPLITS:
        for row in found[split]:
            mine = sorted((time, index, item) for index, (name, time, item) in enumerate(log) if name == row[c.USER_ID])
            stop, may_know, known_until = what_a_split_may_know(mine, row, split, protocol, embargo_s)
            last = mine[stop - 1][0]
            n_events = row[c.LENGTH]
            inputs = mine[stop - n_events : stop]
            assert row[c.ITEM][:n_events] == [item for _, _, item in inputs]
            assert row[c.AGE] == [last - time for time, _, _ in inputs] + [0] * (length - n_events)

            listed = [event for event in may_know if event[0] - last <= horizon_s][:n_ahead]
            left_out = may_know[len(listed) :]
            n_listed, padding = len(listed), [0] * (n_ahead - len(listed))
            assert row[c.AHEAD_LENGTH] == n_listed
            assert row[c.AHEAD_CATEGORY] == [item + 100 for _, _, item in listed] + padding
            assert row[c.AHEAD_ACTION] == [2 + item % 5 for _, _, item in listed] + padding
            assert row[c.AHEAD] == [time - last for time, _, _ in listed] + padding
            ends = [known_until - last, *(time - last - 1 for time, _, _ in left_out[:1])]
            assert row[c.KNOWN] == max(0, min(ends))
            if split != c.TRAIN:
                assert [time.timestamp() for time in row[c.LABEL_TIMES]] == [time for time, _, _ in may_know]
                assert row[c.LABEL_ACTIONS] == [2 + item % 5 for _, _, item in may_know]


def what_a_split_may_know(
    mine: list[tuple[int, int, int]], row: Row, split: str, protocol: str, embargo_s: int
) -> tuple[int, list[tuple[int, int, int]], int]:
    """A user's events before the row's end, those ahead that the split may know, and the last whole second it knows."""
    if protocol == c.LEAVE_ONE_OUT:
        held = 2 if len(mine) >= 3 else 0
        if split == c.TRAIN:
            train = mine[: len(mine) - held]
            stop = len(train) - 1 - row[c.WINDOW] * len(row[c.ITEM])
            return stop, train[stop:], train[-1][0]
        stop = len(mine) - (2 if split == c.VALID else 1)
        return stop, [mine[stop]], mine[stop][0]
    if split == c.TRAIN:
        train = [event for event in mine if event[0] < 1_000]
        stop = len(train) - row[c.WINDOW] * len(row[c.ITEM])
        return stop, train[stop:], 999
    at, until = (1_000, 2_000) if split == c.VALID else (2_000, 3_000)
    stop = sum(time < at for time, _, _ in mine)
    return stop, [event for event in mine if at + embargo_s <= event[0] < until], until - 1
