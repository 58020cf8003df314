"""What a row of scores says of the days ahead: interests by horizon, drift, return, best hours, actions, contacts.

A model answers most of it in a state and after a silence, which it takes in bins. So an answer of last night stands
until the user acts or the silence reaches another bin (`has_moved_on`); only the chance of a return and what follows
from it change with every hour, and are told anew for everyone. docs/adr/0012 has the reasons.

Letters: n rows, B rows of a piece, Z numbers of a state, D horizons, V categories (PAD and OOV included), R times of a
return, W interests that a row lists at most, K bins of the silence.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contacts import ContactsSpec, contacts_per_week
from features.contracts import SCORES
from features.drift import jensen_shannon_distance
from features.rungs import BY_MODEL
from features.trends import past_shares
from features.windows import hour_codes

HOURS = 7 * 24
OUTLOOK_COLUMNS = (c.DRIFT, c.BACK, c.BEST_HOURS, c.NEXT_ACTIONS, c.CONTACTS_PER_WEEK)

_SCHEMA = to_arrow_schema(SCORES.schema)
_INTEREST = _SCHEMA.field(c.INTERESTS).type.value_type
_AHEAD = _INTEREST.field(c.DAYS_AHEAD).type
_CELLS = 1 << 21  # horizons × categories × rows at a time; each costs some thirty bytes

Ints = NDArray[np.int64]
Codes = NDArray[np.int32]
Floats = NDArray[np.float32]
Weights = NDArray[np.float64]
Mask = NDArray[np.bool_]


class OutlookSpec(BaseModel):
    """What a row says of the days ahead. Units and reasons are in conf/base.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    past_smoothing_events: float = Field(gt=0)
    drift_days: int = Field(ge=1)
    best_hours: int = Field(ge=1, le=HOURS)
    contacts: ContactsSpec


class Answers(Protocol):
    """What a model says of n states; None where it was trained without that head."""

    @property
    def interests(self) -> Floats | None:
        """Expected shares of events by category within each horizon; [n, D, V], sums to 1 over V."""

    @property
    def touched(self) -> Floats | None:
        """Probability of an event in the category within each horizon; [n, D, V]."""

    @property
    def hour(self) -> Floats | None:
        """Distribution of the hour of the week of the next session, 0 for Monday 00:00 UTC; [n, 168]."""

    @property
    def actions(self) -> Floats | None:
        """Probability that the next session holds each action, in the order of columns.ACTIONS; [n, 5]."""


class OutlookModel(Protocol):
    """Heads for the time ahead of a loaded model, horizons and hours rising.

    silence_edges_s: [K] seconds, from 0 up: where each bin of the silence starts. back_hours: empty without that head.
    """

    horizons_days: tuple[int, ...]
    back_hours: tuple[int, ...]
    silence_edges_s: Ints

    def answers(self, state: Floats, hour_code: Codes, silence_s: Codes) -> Answers:
        """state: [n, Z]; hour_code: [n] of the last event, as in the channel; silence_s: [n] since that event."""
        ...

    def back(self, state: Floats, silence_s: Codes) -> Weights:
        """P(the next session starts within each of back_hours, none so far); [n, Z], [n] → [n, R]."""
        ...


class Asked(NamedTuple):
    """Users of whom something is asked, in the order of their rows, and the instant of it."""

    state: Floats  # [n, Z]
    last_time_us: Ints  # [n] of the last event
    past: pa.ListArray  # [n] ragged, the known category ids of the past events
    as_of_us: int

    @property
    def silence_s(self) -> Codes:
        """Whole seconds from the last event to the instant; [n]."""
        return silences(self.last_time_us, self.as_of_us)


def silences(last_time_us: Ints, as_of_us: int) -> Codes:
    """Whole seconds from last events to an instant. [n] → [n]."""
    silence = np.minimum((as_of_us - last_time_us) // c.MICROS, np.iinfo(np.int32).max)
    return silence.astype(np.int32)


def has_moved_on(last_time_us: Ints, before_us: int, as_of_us: int, model: OutlookModel) -> Mask:
    """Whose silence lies in another bin than it did at an earlier instant; [n] → [n]."""
    bins = [
        np.searchsorted(model.silence_edges_s, silences(last_time_us, at), side="right") for at in (before_us, as_of_us)
    ]
    moved: Mask = bins[0] != bins[1]
    return moved


def when_asked(silence_s: Codes, model: OutlookModel) -> Codes:
    """The silence at the first of the instants now, a day ago, two days ago, … that lies in its present bin; [n] → [n].

    What is asked then holds for all later nights within the bin. Within a bin only the hour of asking matters at all,
    and only to the head of the hour; bins up to a day are asked of the present night.
    """
    start = model.silence_edges_s[np.searchsorted(model.silence_edges_s, silence_s, side="right") - 1]
    asked: Codes = (silence_s - (silence_s - start) // c.DAY_S * c.DAY_S).astype(np.int32)
    return asked


def nothing_ahead(n: int) -> pa.ListArray:
    """`ahead` of n interests that no horizon is told of."""
    return _nothing(_AHEAD, n)


def without_outlook(scores: pa.Table) -> pa.Table:
    """The rows with the columns of the days ahead, which say nothing."""
    for name in OUTLOOK_COLUMNS:
        scores = scores.append_column(_SCHEMA.field(name), _nothing(_SCHEMA.field(name).type, len(scores)))
    return scores


def with_answers(
    scores: pa.Table,
    asked: Asked,
    model: OutlookModel,
    tokens: pa.Array,
    shares: Weights,
    spec: OutlookSpec,
) -> pa.Table:
    """Rows of scores_v1 with interests[].ahead, drift, best_hours and actions told anew, in pieces of bounded memory.

    tokens: [V] strings; shares: [V] of everyone's events by category. Rows not by the model say nothing.
    """
    if not len(scores):
        return scores
    return pa.concat_tables(list(_answered(scores.combine_chunks(), asked, model, tokens, shares, spec)))


def with_returns(scores: pa.Table, asked: Asked, model: OutlookModel, spec: OutlookSpec) -> pa.Table:
    """Rows of scores_v1 with back and contacts_per_week as of now. Rows not by the model say nothing of it."""
    if not model.back_hours or not len(scores):
        return scores
    returns = model.back(asked.state, asked.silence_s)  # [n, R]
    tells = _by_model(scores)
    hours = np.broadcast_to(np.array(model.back_hours, np.int32), returns.shape)
    back = _lists(c.BACK, np.broadcast_to(tells[:, None], returns.shape), {c.HOURS: hours, c.PROBABILITY: returns})
    actions = pc.list_flatten(scores[c.NEXT_ACTIONS])
    holds = pc.list_value_length(scores[c.NEXT_ACTIONS]).to_numpy() > 0
    actions_p = np.zeros((len(scores), len(c.ACTIONS)))
    actions_p[holds] = pc.struct_field(actions, c.PROBABILITY).to_numpy().reshape(-1, len(c.ACTIONS))
    contacts = contacts_per_week(returns[:, -1], model.back_hours[-1], actions_p, spec.contacts)
    return _replaced(scores, {c.BACK: back, c.CONTACTS_PER_WEEK: _floats(contacts, tells & holds)})


def _answered(
    scores: pa.Table,
    asked: Asked,
    model: OutlookModel,
    tokens: pa.Array,
    shares: Weights,
    spec: OutlookSpec,
) -> Iterator[pa.Table]:
    """Pieces of the rows, in their order."""
    cells = max(1, len(model.horizons_days)) * len(tokens)
    step = max(1, _CELLS // cells)
    hour_code, silence_s = hour_codes(asked.last_time_us), when_asked(asked.silence_s, model)
    listed_tokens = pc.struct_field(pc.list_flatten(scores[c.INTERESTS]), c.CATEGORY_ID)
    ids = pc.index_in(listed_tokens, tokens).fill_null(c.OOV)  # in rows below the model, of which nothing is told
    category = ids.combine_chunks().to_numpy() if isinstance(ids, pa.ChunkedArray) else ids.to_numpy()
    n_listed = pc.list_value_length(scores[c.INTERESTS]).to_numpy().astype(np.int64)  # [n]
    ends = np.append(0, np.cumsum(n_listed))
    tells = _by_model(scores)
    for start in range(0, len(scores), step):
        some = slice(start, start + step)
        said = model.answers(asked.state[some], hour_code[some], silence_s[some])
        piece, listed = scores.slice(start, step), slice(ends[start], ends[min(start + step, len(scores))])
        row = np.repeat(np.arange(len(piece)), n_listed[some])
        ahead = _ahead(said, row, category[listed], tells[some][row], model.horizons_days)
        new = {c.INTERESTS: _with_ahead(piece[c.INTERESTS].combine_chunks(), ahead)}
        if said.interests is not None:
            drift = _drift(said.interests, asked.past.slice(start, step), shares, model.horizons_days, spec)
            new[c.DRIFT] = _floats(drift, tells[some])
        if said.hour is not None:
            new[c.BEST_HOURS] = _best_hours(said.hour, tells[some], spec.best_hours)
        if said.actions is not None:
            names = np.broadcast_to(np.array(c.ACTIONS), said.actions.shape)
            keep = np.broadcast_to(tells[some][:, None], said.actions.shape)
            new[c.NEXT_ACTIONS] = _lists(c.NEXT_ACTIONS, keep, {c.ACTION: names, c.PROBABILITY: said.actions})
        yield _replaced(piece, new)


def _ahead(said: Answers, row: Ints, category: Ints, tells: Mask, horizons_days: tuple[int, ...]) -> pa.ListArray:
    """`ahead` of listed interests. row, category, tells: [i] the row of each within the piece, its id, whether told."""
    n = len(row)
    if said.interests is None and said.touched is None:
        return nothing_ahead(n)
    told = row[tells], category[tells]
    days = np.tile(np.array(horizons_days, np.int32), len(told[0]))
    entries = {c.DAYS: pa.array(days)}
    for name, values in ((c.SHARE, said.interests), (c.TOUCHED, said.touched)):
        if values is None:
            entries[name] = pa.nulls(len(days), pa.float32())
        else:
            entries[name] = pa.array(values[told[0], :, told[1]].ravel())
    fields = list(_AHEAD.value_type)
    structs = pa.StructArray.from_arrays([entries[field.name] for field in fields], fields=fields)
    offsets = np.append(0, np.cumsum(np.where(tells, len(horizons_days), 0)))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs, _AHEAD)


def _with_ahead(interests: pa.ListArray, ahead: pa.ListArray) -> pa.ListArray:
    structs = interests.flatten()
    columns = [ahead if field.name == c.DAYS_AHEAD else structs.field(field.name) for field in _INTEREST]
    offsets = pc.subtract(interests.offsets, interests.offsets[0])
    replaced = pa.StructArray.from_arrays(columns, fields=list(_INTEREST))
    return pa.ListArray.from_arrays(offsets, replaced, _SCHEMA.field(c.INTERESTS).type)


def _drift(
    expected: Floats, past: pa.ListArray, shares: Weights, horizons_days: tuple[int, ...], spec: OutlookSpec
) -> Weights:
    """Distance of each row's expected shares of the days ahead from its past shares. expected: [B, D, V] → [B]."""
    far_enough = [at for at, days in enumerate(horizons_days) if days >= spec.drift_days]
    at = far_enough[0] if far_enough else len(horizons_days) - 1
    n_rows, n_ids = expected.shape[0], expected.shape[2]
    n_known = pc.list_value_length(past).to_numpy().astype(np.int64)
    place = np.repeat(np.arange(n_rows), n_known) * n_ids + past.flatten().to_numpy()
    counts = np.bincount(place, minlength=n_rows * n_ids).reshape(n_rows, n_ids)
    before = past_shares(counts, n_known[:, None], shares, spec.past_smoothing_events)
    return jensen_shannon_distance(before, expected[:, at].astype(np.float64))


def _best_hours(hour: Floats, tells: Mask, k: int) -> pa.ListArray:
    """The k likeliest hours of each row, ties by the earlier hour. hour: [B, 168] → [B] lists."""
    left, best = hour.copy(), np.zeros((len(hour), k), np.int32)
    for place in range(k):  # a few passes; a sort of all hours costs more
        best[:, place] = left.argmax(axis=1)
        left[np.arange(len(hour)), best[:, place]] = -1.0
    keep = np.broadcast_to(tells[:, None], best.shape)
    return _lists(c.BEST_HOURS, keep, {c.HOUR: best, c.PROBABILITY: np.take_along_axis(hour, best, axis=1)})


def _by_model(scores: pa.Table) -> Mask:
    mask: Mask = pc.is_in(scores[c.PROVENANCE], pa.array(BY_MODEL)).to_numpy()
    return mask


def _lists(name: str, keep: Mask, entries: dict[str, NDArray[np.generic]]) -> pa.ListArray:
    """A list column: the entries that `keep` [B, W] marks, all of a row or none."""
    kind = _SCHEMA.field(name).type
    fields = list(kind.value_type)
    columns = [pa.array(entries[field.name][keep]).cast(field.type) for field in fields]
    offsets = pa.array(np.append(0, np.cumsum(keep.sum(axis=1))), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=fields), kind)


def _floats(values: Weights, tells: Mask) -> pa.Array:
    return pa.array(values.astype(np.float32), mask=~tells)


def _nothing(kind: pa.DataType, n: int) -> pa.Array:
    """So many empty lists, or nulls."""
    if not pa.types.is_list(kind):
        return pa.nulls(n, kind)
    return pa.ListArray.from_arrays(pa.array(np.zeros(n + 1, np.int32)), pa.array([], kind.value_type), kind)


def _replaced(scores: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    for name, values in columns.items():
        scores = scores.set_column(scores.schema.get_field_index(name), _SCHEMA.field(name), values)
    return scores
