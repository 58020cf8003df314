"""Rows that hold what they are to predict, one defect each: every one must stop the evaluation."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from features import columns as c
from features.columns import MICROS
from features.windows import gap_codes, hour_codes
from model.errors import ModelError
from model.leaks import Cuts, Known, Times, check_past, check_times, check_windows, joined
from model.metrics import Ragged
from tests.unit.test_evaluation import ids, job, ragged, write_sequences  # noqa: F401

CUTOFF_US = 1_000 * MICROS
EDGES = (60, 300)


def check(split, last_us, next_us, next_gap, cutoff_us=CUTOFF_US, embargo_us=0):
    cuts = Cuts(split, cutoff_us, embargo_us, EDGES)
    times = Times(np.array(last_us), np.array(next_us), ids(*next_gap))
    check_times(times, cuts, ("fine", "leaky").__getitem__, "file")


@pytest.mark.parametrize(
    ("split", "cutoff_us", "last_s", "next_s", "gap", "what"),
    [
        ("test", None, 11, 10, 1, "later than the label"),
        ("train", None, 11, 10, 1, "later than the label"),
        ("test", CUTOFF_US, 1_000, 1_200, 2, "not before the cutoff"),
        ("valid", CUTOFF_US, 900, 1_099, 3, "before the cutoff and its embargo"),
        ("train", CUTOFF_US, 900, 1_000, 3, "not before the end of training"),
        ("test", CUTOFF_US, 900, 1_300, 4, "next_gap is not the time from the last input event to the cutoff"),
        ("test", None, 900, 1_300, 4, "next_gap tells when the label comes"),
    ],
)
def test_leaks_are_refused_with_user_and_times(split, cutoff_us, last_s, next_s, gap, what):
    fine_next_s, fine_gap = (900, 1) if split == "train" else (1_100, 1 if cutoff_us is None else 4)
    last_us, next_us = np.array([5, last_s]) * MICROS, np.array([fine_next_s, next_s]) * MICROS
    with pytest.raises(ModelError, match=what) as error:
        check(split, last_us, next_us, (fine_gap, gap), cutoff_us, embargo_us=100 * MICROS)
    assert "user leaky" in str(error.value)
    assert f"next_time 1970-01-01T00:{next_s // 60:02d}:{next_s % 60:02d}+00:00" in str(error.value)
    assert "1 of 2 rows in file" in str(error.value)


def test_rows_up_to_the_cutoff_are_no_leak():
    check("test", [999 * MICROS], [1_100 * MICROS], [2], embargo_us=100 * MICROS)
    check("train", [999 * MICROS], [999 * MICROS], [2])
    check("test", [1_100 * MICROS], [1_100 * MICROS], [1], None)


def test_gap_codes_and_hours_are_those_of_the_sequences():
    """The audit counts gaps and hours itself; where the two disagree, every evaluation would stop."""
    gaps_us = np.array([1e-6, 59, 60, 60.5, 299, 300, 300.000001, 10**6])
    gaps_us = np.rint(gaps_us * MICROS).astype(np.int64)
    last_us = CUTOFF_US * 10_000 - gaps_us
    codes = gap_codes(gaps_us, EDGES)
    check("test", last_us, np.full(8, CUTOFF_US * 10_000), codes, CUTOFF_US * 10_000)
    channels = {c.ITEM: np.full((8, 1), 2, np.int32), c.HOUR: hour_codes(last_us)[:, None]}
    check_windows(["u"] * 8, channels, np.ones(8, np.int32), last_us, "test")


def test_past_is_compared_event_by_event_from_the_end():
    rng = np.random.default_rng(0)
    for _ in range(200):
        past = [rng.integers(2, 5, rng.integers(0, 7)).tolist() for _ in range(3)]
        windows = [(row or [3, 4, 2])[-4:] for row in past]
        damaged = rng.integers(3)
        windows[damaged][rng.integers(len(windows[damaged]))] = int(rng.integers(2, 5))
        window = np.array([row + [0] * (4 - len(row)) for row in windows], dtype=np.int32)
        length = ids(*map(len, windows))
        right = all(not row or row[-min(len(row), 4) :] == got for row, got in zip(past, windows, strict=True))
        known = Known(ragged(*past), np.full(3, -1))
        if right:
            assert check_past("abc", (window, length), np.zeros(3, int), known, "test") == sum(map(bool, past))
        else:
            with pytest.raises(ModelError, match=f"user {'abc'[damaged]}: .* the window holds events that are not"):
                check_past("abc", (window, length), np.zeros(3, int), known, "test")


def test_lists_are_joined_row_by_row():
    both = joined(ragged([2, 3], [], [4]), ragged([], [5], [6, 7]))
    assert isinstance(both, Ragged)
    assert both.values.tolist() == [2, 3, 5, 4, 6, 7]
    assert both.offsets.tolist() == [0, 2, 3, 6]


# The whole audit, on the twenty users of test_evaluation with one thing wrong in their sequences.


def changed(split_to_change, column, change):
    """Replaces a column of one split; `change` takes its values as a list, row by row."""

    def tamper(split, rows):
        if split != split_to_change:
            return rows
        values = pa.array(change(rows[column].to_pylist(), rows), rows.schema.field(column).type)
        return rows.set_column(rows.schema.get_field_index(column), rows.schema.field(column), values)

    return tamper


def row_of(rows, user):
    """The place of a user's latest window."""
    return [(u, w) for u, w in zip(*(rows[x].to_pylist() for x in (c.USER_ID, c.WINDOW)), strict=True)].index((user, 0))


def with_label_inside(values, rows):
    """The window of u07 moves on by one event: its last item is the label; length and times stay as they were."""
    at = row_of(rows, "u07")
    values[at] = [*values[at][1:], rows[c.NEXT_ITEM][at].as_py()]
    return values


def at_row(user, change):
    def apply(values, rows):
        values[row_of(rows, user)] = change(values[row_of(rows, user)])
        return values

    return apply


def six_hours_earlier(time):
    return time - timedelta(hours=6)


def next_hour_at_the_end(hours):
    return [*hours[:-1], hours[-1] % 168 + 1]


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize(
    ("column", "change", "what"),
    [
        (c.ITEM, with_label_inside, r"user u07: \d events from its end the window holds item"),
        (c.HOUR, at_row("u03", next_hour_at_the_end), "user u03: the last event of the window is of hour"),
        (c.LAST_TIME, at_row("u04", six_hours_earlier), "user u04: the last event of the window is of hour"),
        (c.LENGTH, at_row("u05", lambda length: length - 1), "user u05: column item holds"),
        (c.NEXT_GAP, at_row("u02", lambda code: code - 1), "user u02: next_gap is not the time"),
        (c.LABEL_TIMES, at_row("u09", lambda times: [six_hours_earlier(times[0]), *times[1:]]), "user u09: the first"),
        (c.AGE, at_row("u10", lambda ages: [*ages[:-1], -3600]), "user u10: the event at place 3 of 4"),
        (c.AGE, at_row("u11", lambda ages: [ages[1], *ages[1:]]), "user u11: the event at place 0 of 4"),
        (c.LABEL_ITEMS, at_row("u06", lambda items: items[1:]), "user u06: next_item is"),
        (
            c.LABEL_CATEGORIES,
            at_row("u08", lambda _: []),
            r"user u08: next_category is \d, label_cat.* begin with \[\]",
        ),
    ],
)
def test_a_damaged_row_stops_the_evaluation(job, split, column, change, what):  # noqa: F811
    job.model.bundle.data_hash = write_sequences(job.root, tamper=changed(split, column, change)).hash
    with pytest.raises(ModelError, match=what):
        job(split)
    assert not list(job.root.glob("evaluation*"))


def test_under_leave_one_out_too(job):  # noqa: F811
    job.model.bundle.data_hash = write_sequences(job.root, "leave_one_out").hash
    assert job().split.n_users == 20
    for column, change, what in (
        (c.ITEM, with_label_inside, "user u07: . events from its end the window holds item"),
        (c.NEXT_GAP, at_row("u02", lambda _: 4), "user u02: next_gap tells when the label comes"),
    ):
        tampered = write_sequences(job.root, "leave_one_out", tamper=changed("test", column, change))
        job.model.bundle.data_hash = tampered.hash
        with pytest.raises(ModelError, match=what):
            job()


def test_train_rows_are_held_against_the_end_of_training_also_outside_the_sample(job):  # noqa: F811
    late = at_row("u19", lambda _: datetime(2024, 3, 9, tzinfo=UTC))
    job.model.bundle.data_hash = write_sequences(job.root, tamper=changed("train", c.NEXT_TIME, late)).hash
    with pytest.raises(ModelError, match=r"train, user u19: a training event is not .* 1 of \d+ rows in .*=train"):
        job(max_train_users=1)


def test_held_out_rows_are_audited_also_outside_the_sample(job):  # noqa: F811
    late = at_row("u19", lambda _: datetime(2024, 3, 10, tzinfo=UTC))
    job.model.bundle.data_hash = write_sequences(job.root, tamper=changed("test", c.LAST_TIME, late)).hash
    with pytest.raises(ModelError, match="split test, user u19: an input event is not before the cutoff"):
        job(max_users=1)


def test_sequences_made_from_a_later_day_are_refused(job):  # noqa: F811
    job.model.bundle.data_hash = write_sequences(job.root, inputs={"sessions_v1/2024-03-11": "hash"}).hash
    with pytest.raises(ModelError, match="made from sessions_v1 of 2024-03-11, a later day"):
        job()


def test_every_window_with_a_past_in_another_split_is_compared(job, capsys):  # noqa: F811
    job("test")
    job("valid")
    said = [line for line in capsys.readouterr().err.splitlines() if "no leak" in line]
    assert [line.split("; ")[1] for line in said] == [
        "20 of 20 windows are, event by event, the past in earlier splits"
    ] * 2


def test_behind_an_embargo_no_split_has_the_past_and_that_is_said(job, capsys):  # noqa: F811
    day = {"valid_cutoff": "2024-03-08T00:00:00Z", "test_cutoff": "2024-03-10T00:00:00Z"}
    no_train = changed("train", c.NEXT_TIME, lambda times, _: [datetime(2024, 3, 7, tzinfo=UTC)] * len(times))

    def tamper(split, rows):
        rows = changed("train", c.LAST_TIME, lambda times, _: [datetime(2024, 3, 7, tzinfo=UTC)] * len(times))(
            split, rows
        )
        labels = changed("test", c.NEXT_TIME, lambda times, _: [datetime(2024, 3, 11, tzinfo=UTC)] * len(times))
        return labels(split, no_train(split, rows))

    job.model.bundle.data_hash = write_sequences(job.root, tamper=tamper, embargo_days=1, **day).hash
    job()
    assert "no earlier split has the events of the embargo" in capsys.readouterr().err
