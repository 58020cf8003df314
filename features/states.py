"""Who is scored and from which state: what last night left is carried, and only what is new is read.

A user costs what changed since: nothing for one without new events, the new events alone where the state is known, a
whole context else. Which of these it is follows from hashes of what the state has read, not from what upstream says of
a user; so a late event, which changes the past, makes the context be read again.

Letters: n users scored, m users known before, L positions, Z numbers of a state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contexts import after_events, contexts, row_hashes
from features.contracts import USER_STATES, ContractError
from features.outlook_columns import Asked, OutlookModel, has_moved_on, with_answers, with_returns, without_outlook
from features.rungs import BY_MODEL, Popular
from features.scoring import SCORES_ARROW, Floats, Histories, Scorer, histories_of, score_rows
from features.scoring_spec import ScoringSpec

STATES_ARROW = to_arrow_schema(USER_STATES.schema)
# What became of users. Those who are there: rows as they were; scored from the state as it was, from it and new
# events, or from the whole context. Beside these: no longer there, and not there before.
CARRIED, ASKED_AGAIN, ADVANCED, REPLAYED = "carried", "asked_again", "advanced", "replayed"
GONE, NEWCOMERS = "gone", "newcomers"
OUTCOMES = (CARRIED, ASKED_AGAIN, ADVANCED, REPLAYED, GONE, NEWCOMERS)

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """What all rows of a run share. session_gap_s: a longer silence than that has ended a user's session.

    popular: of the last days, for users of whom the model knows nothing; None where there is none.
    """

    as_of: datetime
    model_version: str
    session_gap_s: int
    popular: Popular | None = None


@dataclass(frozen=True)
class Before:
    """What an earlier run with this model left of some users: the same ones in both tables, in the same order."""

    scores: pa.Table
    states: pa.Table
    as_of: datetime
    where: str


class Scored(NamedTuple):
    """Rows of scores_v1, states of these users in the same order or of some of them, and how many had which outcome."""

    scores: pa.Table
    states: pa.Table
    outcomes: dict[str, int]


class _Known(NamedTuple):
    """States as arrays."""

    last_time_us: Ints  # [m]
    n_events: Ints  # [m]
    past: pa.ListArray  # [m] ragged
    events_hash: NDArray[np.uint64]  # [m]
    row_hash: NDArray[np.uint64]  # [m]
    state: Floats  # [m, Z]


def score_share(
    rows: pa.Table,
    before: Before | None,
    is_everyone: bool,
    scorer: Scorer,
    spec: ScoringSpec,
    run: Run,
    whole_states: bool = True,
) -> Scored:
    """Score some users.

    rows: their rows of sequences_v1 (`HISTORY_COLUMNS`); of everyone, or else of those at least whose events changed
    since `before` or whose session ended meanwhile. A row of length 0 says that nothing is left of a user.
    whole_states: give the states of all of them; else of those alone who were scored, not of the carried ones.

    Rows may come in any order, as a shuffle brings them. The last bit of a probability depends on which rows share a
    batch: they are sorted by user, so that the same rows give the same scores.

    Raises:
        ContractError: states are damaged or not this model's.
    """
    gone = rows[c.USER_ID].filter(pc.equal(rows[c.LENGTH], 0))
    rows = rows.filter(pc.greater(rows[c.LENGTH], 0)).sort_by(c.USER_ID)
    histories = histories_of(rows, scorer)
    states = _known(before, scorer, run) if before is not None else _nothing_known(scorer)
    users = before.states[c.USER_ID].combine_chunks() if before is not None else pa.array([], pa.string())
    at = pc.index_in(histories.users, users).fill_null(-1).to_numpy()  # [n] row of the user's state, or -1
    whole_row = row_hashes(histories.channels, histories.length, histories.seen)  # [n]
    is_same = _is_same(histories, whole_row, at, states, before, scorer, run)  # [n]

    stays = np.full(len(users), not is_everyone)  # [m]
    stays[at[at >= 0]] = False
    stays[pc.index_in(gone, users).drop_null().to_numpy()] = False
    _check_left_out(stays, states, before, run)
    stays[at[is_same]] = True

    todo = np.flatnonzero(~is_same)
    new, outcomes = _scored(histories.take(todo), whole_row[todo], at[todo], states, scorer, spec, run)
    n_stay, n_rescored = int(stays.sum()), int((at[todo] >= 0).sum())
    outcomes |= {CARRIED: n_stay, GONE: len(users) - n_stay - n_rescored, NEWCOMERS: len(todo) - n_rescored}
    if before is None:
        return Scored(*new, outcomes)
    parts = _carried(stays, before, states, scorer, spec, run)
    scores = pa.concat_tables([*(part for part, _ in parts), new[0]])
    kept = [before.states.filter(pa.array(picked)) for _, picked in parts] if whole_states else []
    return Scored(scores, pa.concat_tables([*kept, new[1]]), outcomes)


def _carried(
    stays: Mask, before: Before, states: _Known, scorer: Scorer, spec: ScoringSpec, run: Run
) -> list[tuple[pa.Table, Mask]]:
    """Rows of scores that stay, with the new cutoff and what a longer silence says; in two parts, and whose each holds.

    The answers for the days ahead stand while the silence stays in its bin, the chance of a return never does.
    """
    moved = np.zeros(len(stays), bool)
    if scorer.outlook is not None:
        moved = has_moved_on(states.last_time_us, _micros(before.as_of), _micros(run.as_of), scorer.outlook)
    parts = []
    for is_asked, picked in ((False, stays & ~moved), (True, stays & moved)):
        scores = before.scores.filter(pa.array(picked))
        as_of = pa.array([run.as_of], SCORES_ARROW.field(c.AS_OF).type).take(pa.array(np.zeros(len(scores), np.int8)))
        scores = scores.set_column(scores.schema.get_field_index(c.AS_OF), SCORES_ARROW.field(c.AS_OF), as_of)
        if scorer.outlook is not None:
            past = states.past.filter(pa.array(picked))
            asked = Asked(states.state[picked], states.last_time_us[picked], past, _micros(run.as_of))
            scores = _with_outlook(scores, asked, is_asked, scorer, scorer.outlook, spec)
        parts.append((scores, picked))
    return parts


def _with_outlook(
    scores: pa.Table, asked: Asked, is_asked: bool, scorer: Scorer, outlook: OutlookModel, spec: ScoringSpec
) -> pa.Table:
    """Rows with what they say of the days ahead: all of it told anew, or else the chance of a return alone."""
    if is_asked:
        names = scorer.categories
        scores = with_answers(scores, asked, outlook, names.tokens, names.shares, spec)
    return with_returns(scores, asked, outlook, spec)


def _is_same(
    histories: Histories,
    whole_row: NDArray[np.uint64],
    at: Ints,
    states: _Known,
    before: Before | None,
    scorer: Scorer,
    run: Run,
) -> Mask:
    """Users whose scores of before would come out again: the same row, as silent as then, known to the model. → [n]."""
    if before is None:
        return np.zeros(len(at), bool)
    known = at >= 0
    if not known.any():
        return known
    was_silent = _is_silent(states.last_time_us, before.as_of, run)[at]
    is_silent = histories.next_gap >= scorer.new_session_gap
    same: Mask = known & (states.row_hash[at] == whole_row) & (was_silent == is_silent) & (histories.n_known > 0)
    return same


def _check_left_out(stays: Mask, states: _Known, before: Before | None, run: Run) -> None:
    """Those that no row came for must be asked as before, and be known to the model: what is popular moves daily."""
    if before is None:
        return
    changed = _is_silent(states.last_time_us, before.as_of, run) != _is_silent(states.last_time_us, run.as_of, run)
    unknown = ~pc.is_in(before.scores[c.PROVENANCE], pa.array(BY_MODEL)).to_numpy()
    for is_wrong, problem in (
        (changed & stays, "the session of user {} has ended since"),
        (unknown & stays, "the model knows nothing of user {}, who is scored anew each night"),
    ):
        if is_wrong.any():
            user = before.states[c.USER_ID][int(np.flatnonzero(is_wrong)[0])].as_py()
            raise ContractError(
                f"{before.where}: {problem.format(user)}, but the night brought no row to score the user again. This "
                "is a defect of jobs/layers.py, not of the data; score everyone anew with --full."
            )


def _is_silent(last_time_us: Ints, as_of: datetime, run: Run) -> Mask:
    """Whether the session of the last event had ended at a cutoff; as the gap codes of sequences say it."""
    silent: Mask = _micros(as_of) - last_time_us > run.session_gap_s * c.MICROS
    return silent


def _micros(at: datetime) -> int:
    return round(at.timestamp()) * c.MICROS


def _scored(
    histories: Histories,
    whole_row: NDArray[np.uint64],
    at: Ints,
    states: _Known,
    scorer: Scorer,
    spec: ScoringSpec,
    run: Run,
) -> tuple[tuple[pa.Table, pa.Table], dict[str, int]]:
    """Advance and score users → their rows of both tables, and how many had which outcome."""
    n = len(histories.length)
    channels, length, hashes = contexts(histories.channels, histories.length, spec.anchor_events)
    n_read = np.where(at >= 0, states.n_events[at] if len(states.n_events) else 0, -1)  # [n]
    possible = (n_read >= 0) & (n_read <= length)
    n_read = np.where(possible, n_read, 0)
    goes_on = possible & (hashes[np.arange(n), n_read] == states.events_hash[at] if possible.any() else possible)
    if not scorer.is_recurrent:
        goes_on &= n_read == length
    n_read = np.where(goes_on, n_read, 0)
    state = np.zeros((n, scorer.state_floats), np.float32)
    state[goes_on] = states.state[at[goes_on]]
    state = scorer.advance(after_events(channels, n_read), (length - n_read).astype(np.int32), state)

    pieces = [pa.Table.from_batches([piece]) for piece in score_rows(histories, state, scorer, spec, run.popular)]
    scores = _with_provenance(pieces, run)
    order = pc.index_in(scores[c.USER_ID].combine_chunks(), histories.users).to_numpy()
    past = _past_categories(histories)
    if scorer.outlook is not None:
        asked = Asked(state[order], histories.last_time_us[order], past.take(pa.array(order)), _micros(run.as_of))
        scores = _with_outlook(scores, asked, True, scorer, scorer.outlook, spec)
    made = _states_table(histories, length, past, hashes, whole_row, state, run).take(pa.array(order))
    n_new = length - n_read
    outcomes = {
        ASKED_AGAIN: int((goes_on & (n_new == 0)).sum()),
        ADVANCED: int((goes_on & (n_new > 0)).sum()),
        REPLAYED: int((~goes_on).sum()),
    }
    return (scores, made), outcomes


def _with_provenance(pieces: list[pa.Table], run: Run) -> pa.Table:
    """Rows of scores_v1: the pieces with cutoff and model."""
    if not pieces:
        return SCORES_ARROW.empty_table()
    joined = without_outlook(pa.concat_tables(pieces))
    shared = {c.AS_OF: run.as_of, c.MODEL_VERSION: run.model_version}
    columns: Mapping[str, pa.Array] = {
        name: pa.array([value], SCORES_ARROW.field(name).type).take(pa.array(np.zeros(len(joined), np.int8)))
        for name, value in shared.items()
    }
    return pa.table(
        [
            columns[name] if name in columns else joined[name].cast(SCORES_ARROW.field(name).type)
            for name in SCORES_ARROW.names
        ],
        schema=SCORES_ARROW,
    )


def _past_categories(histories: Histories) -> pa.ListArray:
    """The known categories of each row's events, rising; [n] ragged."""
    ordered = np.sort(histories.channels[c.CATEGORY], axis=1)  # [n, L]
    is_known = ordered >= c.FIRST_ID
    offsets = np.append(0, np.cumsum(is_known.sum(axis=1))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ordered[is_known]))


def _states_table(
    histories: Histories,
    length: NDArray[np.int32],
    past: pa.ListArray,
    hashes: NDArray[np.uint64],
    whole_row: NDArray[np.uint64],
    state: Floats,
    run: Run,
) -> pa.Table:
    n, n_bytes = len(length), state.shape[1] * 4
    offsets = pa.py_buffer(np.arange(n + 1, dtype=np.int32) * np.int32(n_bytes))
    packed = pa.py_buffer(np.ascontiguousarray(state, "<f4"))
    columns = {
        c.USER_ID: histories.users,
        c.MODEL_VERSION: pa.array([run.model_version]).take(pa.array(np.zeros(n, np.int8))),
        c.LAST_TIME: pa.array(histories.last_time_us, STATES_ARROW.field(c.LAST_TIME).type),
        c.N_EVENTS: pa.array(length),
        c.PAST_CATEGORIES: past.cast(STATES_ARROW.field(c.PAST_CATEGORIES).type),
        c.EVENTS_HASH: pa.array(hashes[np.arange(n), length].view(np.int64)),
        c.ROW_HASH: pa.array(whole_row.view(np.int64)),
        c.STATE: pa.Array.from_buffers(pa.binary(), n, [None, offsets, packed]),
    }
    return pa.table([columns[name] for name in STATES_ARROW.names], schema=STATES_ARROW)


def _nothing_known(scorer: Scorer) -> _Known:
    none, no_hash = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    past = STATES_ARROW.field(c.PAST_CATEGORIES)
    return _Known(none, none, pa.array([], past.type), no_hash, no_hash, np.zeros((0, scorer.state_floats), np.float32))


def _known(before: Before, scorer: Scorer, run: Run) -> _Known:
    """The states as arrays, after the checks that a model may go on with them."""
    columns = {name: _whole(before.states[name]) for name in STATES_ARROW.names}
    n, n_bytes = len(before.states), scorer.state_floats * 4
    if not columns[c.USER_ID].equals(before.scores[c.USER_ID].combine_chunks()):
        _refuse(before, "its users are not those of the scores that were written with it")
    if n and pc.unique(columns[c.MODEL_VERSION]).to_pylist() != [run.model_version]:
        _refuse(
            before, f"it holds states of {pc.unique(columns[c.MODEL_VERSION]).to_pylist()}, not {run.model_version}"
        )
    if n and pc.unique(pc.binary_length(columns[c.STATE])).to_pylist() != [n_bytes]:
        _refuse(before, f"states are not of {n_bytes} bytes each, as the model {run.model_version} makes them")
    start = columns[c.STATE].offset
    offsets = np.frombuffer(columns[c.STATE].buffers()[1], np.int32)[start:] if n else [0]
    state = np.frombuffer(columns[c.STATE].buffers()[2] or b"", "<f4", n * scorer.state_floats, int(offsets[0]))
    state = state.reshape(n, scorer.state_floats)
    n_events = columns[c.N_EVENTS].to_numpy().astype(np.int64)
    if n and (not np.isfinite(state).all() or n_events.min() < 1 or n_events.max() > scorer.length):
        _refuse(before, f"it holds numbers that are none, or of events outside 1 to {scorer.length}")
    events_hash, row_hash = (columns[name].to_numpy().view(np.uint64) for name in (c.EVENTS_HASH, c.ROW_HASH))
    last_time_us = columns[c.LAST_TIME].cast(pa.int64()).to_numpy()
    past = columns[c.PAST_CATEGORIES]
    if len(past.flatten()) and not c.FIRST_ID <= pc.min(past.flatten()).as_py() <= pc.max(past.flatten()).as_py() < (
        len(scorer.categories.tokens)
    ):
        _refuse(before, f"past_categories holds ids that are none of the {len(scorer.categories.tokens)} known")
    return _Known(last_time_us, n_events, past, events_hash, row_hash, state)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece. `combine_chunks` copies a single piece too, and states are large."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _refuse(before: Before, problem: str) -> None:
    raise ContractError(
        f"{before.where} can't be carried on: {problem}. Score everyone anew with jobs/score.py --full."
    )
