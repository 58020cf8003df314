"""What the events of a user did to the model's answer: each left out in turn, everything else as it was.

Occlusion (Zeiler & Fergus 2014) of single events: the row is made anew as if the event had never happened, so gaps span
it, an older event moves up where the row was full, and the model reads nothing it could not have met. Effects of two
events need not add up: each may tell the model what the other tells, too.

Letters: n events, u users, r rows, L positions.
"""

from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features import columns as c
from features.contexts import contexts
from features.scoring import Floats, Histories, Ids, Scorer, histories_of
from features.windows import scoring_rows

ENCODED = (c.USER_ID, "time_us", c.EVENT_ID, c.ITEM, c.CATEGORY, c.ACTION_CODE)
_READ = 2  # further events beyond L: one moves up, and one before it gives its gap
_VARIANTS = 4096  # rows at a time; some 1 KiB each

Ints = NDArray[np.int64]


class Coding(NamedTuple):
    """How events become rows: edges of the gap codes, and scoring.anchor_events."""

    gap_edges_s: tuple[int, ...]
    anchor_events: int


class LogP(Protocol):
    """Log-probabilities of one item and one category after each state; [r, Z], [r], [r, L], [r] … → [r], [r]."""

    def __call__(
        self,
        state: Floats,
        next_gap: Ids,
        channels: dict[str, Ids],
        length: Ids,
        item_ids: Ids,
        category_ids: Ids,
    ) -> tuple[Floats, Floats]:
        """Of each row's own item and category."""
        ...


class Effects(NamedTuple):
    """Of one user: log-probability of the item and the category, and what each event added to them.

    place: [k] of the events read, as rows of the table given, oldest first. A positive effect: the event made the item
    or category likelier. NaN where the event is the only one, and without it there is nothing to say.
    """

    item_log_p: float
    category_log_p: float
    place: Ints
    item: NDArray[np.float64]  # [k]
    category: NDArray[np.float64]  # [k]


def effects(
    events: pa.Table, targets: dict[str, tuple[int, int]], end_us: int, scorer: Scorer, log_p: LogP, coding: Coding
) -> dict[str, Effects]:
    """What the events that the model reads of each user did to its answer at `end_us`.

    events: columns ENCODED, ordered by (user, time, event_id), all before end_us; targets: user → ids of the item and
    the category that are explained. A user without events is left out.
    """
    users = events[c.USER_ID].combine_chunks()
    start = np.flatnonzero(np.append(True, pc.not_equal(users[1:], users[:-1]).to_numpy(zero_copy_only=False)))
    stop = np.append(start[1:], len(users))
    found: dict[str, Effects] = {}
    waiting: list[tuple[str, Ints, int]] = []
    n_rows = 0
    for first, last in zip(start.tolist(), stop.tolist(), strict=True) if len(users) else ():
        user = users[first].as_py()
        if user not in targets:
            continue
        kept = np.arange(max(first, last - scorer.length - _READ), last)
        n_read = min(last - first, scorer.length)
        waiting.append((user, kept, n_read))
        n_rows += n_read + 1
        if n_rows >= _VARIANTS:
            found |= _of_some(events, waiting, targets, end_us, scorer, log_p, coding)
            waiting, n_rows = [], 0
    return found | _of_some(events, waiting, targets, end_us, scorer, log_p, coding)


def _of_some(
    events: pa.Table,
    users: list[tuple[str, Ints, int]],
    targets: dict[str, tuple[int, int]],
    end_us: int,
    scorer: Scorer,
    log_p: LogP,
    coding: Coding,
) -> dict[str, Effects]:
    """users: (name, places of the events that a row may need, how many of them the row holds)."""
    if not users:
        return {}
    places, names, n_variants = [], [], 0
    for _, kept, n_read in users:
        for left_out in (None, *kept[len(kept) - n_read :].tolist()):
            of = kept if left_out is None else kept[kept != left_out]
            places.append(of)
            names.append(np.full(len(of), n_variants))
            n_variants += 1
    number = np.concatenate(names)
    variants = events.take(pa.array(np.concatenate(places)))
    variants = variants.set_column(
        variants.schema.get_field_index(c.USER_ID), c.USER_ID, pa.array(number).cast(pa.string())
    )
    wanted = np.repeat(np.array([targets[user] for user, _, _ in users]), [n + 1 for _, _, n in users], axis=0)
    told = np.full((2, n_variants), np.nan)
    at, histories = rows_at(variants, end_us, scorer, coding)
    ids = wanted[at].astype(np.int32)
    state, n_context = _states(histories, scorer, coding)
    told[:, at] = log_p(state, histories.next_gap, histories.channels, histories.length, ids[:, 0], ids[:, 1])
    read = np.zeros(n_variants, np.int64)
    read[at] = n_context
    found, first = {}, 0
    for user, kept, n_read in users:
        base = told[:, first]
        without = told[:, first + 1 : first + 1 + n_read]
        n = int(read[first])  # fewer than n_read where the context starts later
        effect = (base[:, None] - without)[:, n_read - n :]
        found[user] = Effects(float(base[0]), float(base[1]), kept[len(kept) - n :], effect[0], effect[1])
        first += n_read + 1
    return found


def rows_at(events: pa.Table, end_us: int, scorer: Scorer, coding: Coding) -> tuple[Ints, Histories]:
    """Scoring rows as of an instant, and the number that each one's user is named by → [r], rows.

    events: columns ENCODED, of users who are named by numbers, all before end_us.
    """
    batches = scoring_rows(events, scorer.length, len(events), coding.gap_edges_s, end_us)
    histories = histories_of(pa.Table.from_batches(list(batches)), scorer)
    return histories.users.cast(pa.int64()).to_numpy(), histories


def _states(histories: Histories, scorer: Scorer, coding: Coding) -> tuple[Floats, Ids]:
    """States after each row's context, and how many events that holds → [r, Z], [r]."""
    channels, length, _ = contexts(histories.channels, histories.length, coding.anchor_events)
    state = np.zeros((len(length), scorer.state_floats), np.float32)
    return scorer.advance(channels, length, state), length


def states_at(events: pa.Table, end_us: int, scorer: Scorer, coding: Coding) -> tuple[Ints, Histories, Floats]:
    """`rows_at` and the states after them → [r], rows, [r, Z]."""
    number, histories = rows_at(events, end_us, scorer, coding)
    return number, histories, _states(histories, scorer, coding)[0]
