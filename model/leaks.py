"""Whether rows that are to be judged hold anything of what they are to predict. Arrays in; a ModelError or nothing out.

B rows, L time. Nothing here uses the code that made the rows: what it finds wrong, that code got wrong.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from features import columns as c
from model.errors import ModelError
from model.metrics import Bools, Ints, Longs, Ragged

_HOUR_US = 3_600 * c.MICROS
_THURSDAY_H = 3 * 24  # 1970-01-01 was a Thursday; hours of the week begin on Monday
_REMEDY = "Write the sequences again with jobs.sequences; if it stays, it is a defect of features/windows.py."


class Times(NamedTuple):
    """When rows end and what they are told of the time after; all [B]."""

    last_time_us: Longs  # of the last input event
    next_time_us: Longs  # of the first label
    next_gap: Ints  # code of the time from the last event to the instant of prediction


class Cuts(NamedTuple):
    """Between which instants a split's rows lie. `before_us`: its cutoff, for train rows the end of training."""

    split: str
    before_us: int | None  # None: leave-one-out, which has no common instant
    embargo_us: int
    gap_edges_s: Sequence[int]


class Known(NamedTuple):
    """What other rows tell of the events before each row's instant of prediction, for B rows."""

    items: Ragged  # item ids, oldest first; an empty list: nothing is known
    last_time_us: Longs  # [B] time of the last of them; -1: not known


def check_times(times: Times, cuts: Cuts, user_of: Callable[[int], str], where: str) -> None:
    """Refuse rows whose inputs reach past their labels, or past the cutoff, or are told when the label comes.

    last_time ≤ next_time always. With a cutoff (global time), valid and test rows also keep last_time < cutoff and
    cutoff + embargo ≤ next_time; train rows keep next_time < cutoff, the end of training. next_gap of a held-out row is
    the code of cutoff - last_time, and unknown without a cutoff: the code of next_time - last_time would give away
    when the label comes.

    For the message: user_of names the user of a row, where says what the rows were read from.

    Raises:
        ModelError: names the first such user and the times.
    """
    last_us, next_us, before_us = times.last_time_us, times.next_time_us, cuts.before_us
    problems = [(last_us > next_us, "the last input event is later than the label")]
    if before_us is not None and cuts.split == c.TRAIN:
        problems.append((next_us >= before_us, "a training event is not before the end of training"))
    elif before_us is not None:
        problems.append((last_us >= before_us, "an input event is not before the cutoff"))
        problems.append((next_us < before_us + cuts.embargo_us, "the label is before the cutoff and its embargo"))
        told = times.next_gap != _gap_codes(before_us - last_us, cuts.gap_edges_s)
        problems.append((told, "next_gap is not the time from the last input event to the cutoff"))
    elif cuts.split != c.TRAIN:
        problems.append((times.next_gap != c.UNKNOWN_GAP, "next_gap tells when the label comes"))
    for wrong, what in problems:
        if wrong.any():
            row = int(np.argmax(wrong))
            cutoff = "none" if before_us is None else utc_text(before_us)
            raise ModelError(
                f"Leak in split {cuts.split}, user {user_of(row)}: {what}. last_time "
                f"{utc_text(int(last_us[row]))}, next_time {utc_text(int(next_us[row]))}, cutoff {cutoff}, next_gap "
                f"{times.next_gap[row]}; {int(wrong.sum())} of {len(wrong)} rows in {where}. {_REMEDY}"
            )


def check_windows(
    user_id: Sequence[str], channels: dict[str, Ints], length: Ints, last_time_us: Longs, split: str
) -> None:
    """Refuse windows that hold more than they say, or end with another event than the one at last_time.

    channels: [B, L] each. Events stand at the first `length` places and nowhere else, in every channel; the hour of
    the last one is that of last_time, which `check_times` holds against the cutoff.

    Raises:
        ModelError: names the first such user, the column and the place.
    """
    place = np.arange(next(iter(channels.values())).shape[1])
    for name, channel in channels.items():
        wrong = (channel != c.PAD) != (place < length[:, None])  # [B, L]
        if wrong.any():
            row, at = np.argwhere(wrong)[0]
            raise ModelError(
                f"Leak in split {split}, user {user_id[row]}: column {name} holds {channel[row, at]} at place {at} "
                f"of a window of {length[row]} events; behind its last event a window is padding. {_REMEDY}"
            )
    if c.HOUR not in channels:
        return
    stated = channels[c.HOUR][np.arange(len(length)), length - 1]  # [B]
    hour = c.FIRST_HOUR + (last_time_us // _HOUR_US + _THURSDAY_H) % (7 * 24)
    if (stated != hour).any():
        row = int(np.argmax(stated != hour))
        raise ModelError(
            f"Leak in split {split}, user {user_id[row]}: the last event of the window is of hour {stated[row]} of the "
            f"week, last_time {utc_text(int(last_time_us[row]))} of hour {hour[row]}: the window ends with another "
            f"event than it says. {_REMEDY}"
        )


def check_labels(user_id: Sequence[str], first: Ints, labels: Ragged, name: str, split: str) -> None:
    """Refuse held-out rows whose next event is not the first of their label events.

    first: [B], labels: B lists in order of time.

    Raises:
        ModelError: names the first such user and both ids.
    """
    empty = np.diff(labels.offsets) == 0
    wrong = empty.copy()
    wrong[~empty] = labels.values[labels.offsets[:-1][~empty]] != first[~empty]
    if wrong.any():
        row = int(np.argmax(wrong))
        held = labels.rows(row, row + 1).values[:1].tolist()
        raise ModelError(
            f"Split {split}, user {user_id[row]}: next_{name} is {first[row]}, label_{name} begin with {held}: the "
            f"label is not what came first after the cutoff. {_REMEDY}"
        )


def check_label_times(user_id: Sequence[str], label_times_us: Ragged, next_time_us: Longs, cuts: Cuts) -> None:
    """Refuse held-out rows with a label event before next_time, the first one, or before the cutoff and its embargo.

    label_times_us: B lists in order of time; next_time is held against the cutoff by `check_times`, too.

    Raises:
        ModelError: names the first such user and both times.
    """
    row_of = label_times_us.row_of_value()
    least = np.full(len(next_time_us), np.iinfo(np.int64).max)
    np.minimum.at(least, row_of, label_times_us.values)
    early = least != next_time_us
    if cuts.before_us is not None:
        early |= least < cuts.before_us + cuts.embargo_us
    if early.any():
        row = int(np.argmax(early))
        found = "none" if least[row] == np.iinfo(np.int64).max else utc_text(int(least[row]))
        raise ModelError(
            f"Split {cuts.split}, user {user_id[row]}: the first label event is at {found}, next_time says "
            f"{utc_text(int(next_time_us[row]))}: a label lies among the inputs, or is not what came first. {_REMEDY}"
        )


def check_ages(
    user_id: Sequence[str], ages_s: Ints, hours: Ints, length: Ints, last_time_us: Longs, split: str
) -> None:
    """Refuse windows with an event after last_time: so each input event is before the cutoff, not the last one alone.

    ages_s: [B, L] seconds from each event to the window's last one, 0 for that one and in padding; hours: [B, L] codes.
    Ages fall and end at 0, and each event's hour of the week is that of last_time - age.

    Raises:
        ModelError: names the first such user, the place and the age.
    """
    place = np.arange(ages_s.shape[1])
    inside = place < length[:, None]  # [B, L]
    following = np.where(place + 1 < length[:, None], np.roll(ages_s, -1, axis=1), 0)
    wrong = (ages_s < following) | ((place >= length[:, None] - 1) & (ages_s != 0))
    at_us = last_time_us[:, None] - ages_s.astype(np.int64) * c.MICROS
    spans = [c.FIRST_HOUR + ((at_us - part) // _HOUR_US + _THURSDAY_H) % (7 * 24) for part in (0, c.MICROS - 1)]
    known = ages_s < np.iinfo(np.int32).max  # greater ones are cut to it
    wrong |= inside & known & (hours != spans[0]) & (hours != spans[1])  # ages are whole seconds
    if wrong.any():
        row, at = np.argwhere(wrong)[0]
        raise ModelError(
            f"Leak in split {split}, user {user_id[row]}: the event at place {at} of {length[row]} is of hour "
            f"{hours[row, at]} of the week and said to be {ages_s[row, at]} s before last_time "
            f"{utc_text(int(last_time_us[row]))}: windows hold events up to last_time, oldest first. {_REMEDY}"
        )


def check_past(user_id: Sequence[str], window: tuple[Ints, Ints], last_time_us: Longs, known: Known, split: str) -> int:
    """Refuse windows that are not the end of what other rows know of their users' past.

    window: (item ids [B, L], lengths [B]). Event by event from the last one back, as far as both reach: a label among
    the inputs, or any other event from behind the cutoff, would stand where the past has another.

    Returns the number of rows that could be compared.

    Raises:
        ModelError: names the first such user and the ids that differ.
    """
    items, length = window
    width = items.shape[1]
    offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    mine = _tails(Ragged(items[np.arange(width) < length[:, None]], offsets), width)  # [B, L]
    past = _tails(known.items, width)
    wrong = (mine != past) & (mine != c.PAD) & (past != c.PAD)
    if wrong.any():
        row, at = np.argwhere(wrong)[0]
        raise ModelError(
            f"Leak in split {split}, user {user_id[row]}: {width - at} events from its end the window holds item "
            f"{mine[row, at]}, where the earlier splits have {past[row, at]} as the event before the cutoff: "
            f"the window holds events that are not before it. {_REMEDY}"
        )
    late = (known.last_time_us >= 0) & (known.last_time_us != last_time_us)
    if late.any():
        row = int(np.argmax(late))
        raise ModelError(
            f"Leak in split {split}, user {user_id[row]}: the window ends at {utc_text(int(last_time_us[row]))}, the "
            f"user's last event before the cutoff was at {utc_text(int(known.last_time_us[row]))}. {_REMEDY}"
        )
    return int(np.count_nonzero(np.diff(known.items.offsets)))


def joined(first: Ragged, second: Ragged) -> Ragged:
    """Each row's first list with its second behind it."""
    rows = np.concatenate([first.row_of_value(), second.row_of_value()])
    values = np.concatenate([first.values, second.values])
    return Ragged(values[np.argsort(rows, kind="stable")], first.offsets + second.offsets)


def utc_text(time_us: int) -> str:
    """A time in microseconds as ISO 8601, UTC."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat()


def _gap_codes(gap_us: Longs, edges_s: Sequence[int]) -> Longs:
    """FIRST_GAP + number of edges that each gap is longer than, [B]."""
    longer: Bools = gap_us[:, None] > np.asarray(edges_s, np.int64) * c.MICROS
    return np.asarray(c.FIRST_GAP + longer.sum(axis=1))


def _tails(lists: Ragged, width: int) -> Ints:
    """The last `width` ids of each list, at the right of [B, width]; PAD at the left where there are fewer."""
    index = lists.offsets[1:, None] - width + np.arange(width)
    inside = index >= lists.offsets[:-1, None]
    if not len(lists.values):
        return np.full(index.shape, c.PAD, dtype=np.int32)
    return np.where(inside, lists.values[np.maximum(index, 0)], c.PAD).astype(np.int32)
