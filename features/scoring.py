"""What a row of scores says: likeliest items and interests of users in their states, with past share and trend.

One numeric seam: arrays in, Arrow out. The model behind it is a `Scorer`; nothing here knows what computes the
probabilities. `features/states.py` says who is scored, and from which state.

Shapes: B rows, L positions, Z numbers of a state, W fetched, K kept, V vocabulary (PAD and OOV included).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from pyspark.sql.pandas.types import to_arrow_schema

from features import columns as c
from features.contracts import SCORES, SEQUENCES, ContractError
from features.outlook_columns import OutlookModel, OutlookSpec, nothing_ahead
from features.trends import FADING, TRENDS, past_shares, trend_codes

# Provenance of a row
FROM_MODEL = "model"
FROM_POPULARITY = "popularity"

# Extra items fetched so that K remain after removal of what was seen: 0, else the least of 16, 64, 256, … that is
# enough. Few different widths, because each may cost the scorer a compilation.
_FETCH_STEPS = 16 * 4 ** np.arange(14, dtype=np.int64)

HISTORY_COLUMNS = (c.USER_ID, c.LENGTH, *c.CHANNELS, c.NEXT_GAP, c.LAST_TIME, c.SEEN_ITEMS)
SCORES_ARROW = to_arrow_schema(SCORES.schema)
OUTPUT_COLUMNS = (c.USER_ID, c.PROVENANCE, c.INTERESTS, c.ITEMS)

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]
Probabilities = NDArray[np.float32]
Mask = NDArray[np.bool_]


class ScoringSpec(OutlookSpec):
    """What a row of scores_v1 holds. Units and reasons are in conf/base.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k_items: int = Field(ge=1)
    top_k_interests: int = Field(ge=1)
    fading_interests: int = Field(ge=0)
    interest_depth: int = Field(ge=1)
    seen_items: Literal["keep", "remove"]
    new_probability_floor: float = Field(ge=0, le=1)
    rising_ratio: float = Field(gt=1)
    fading_ratio: float = Field(gt=0, lt=1)
    batch_rows: int = Field(ge=1)
    bucket_users: int = Field(ge=1)
    anchor_events: int = Field(ge=1)
    item_index: Literal["exact", "approximate"]
    item_index_probes: int = Field(ge=1)

    @property
    def probes(self) -> int | None:
        """Lists of the item index that are read for a user; None: every item is compared."""
        return self.item_index_probes if self.item_index == "approximate" else None

    @model_validator(mode="after")
    def _depth_holds_top(self) -> Self:
        if self.interest_depth < self.top_k_interests:
            raise ValueError(
                f"interest_depth = {self.interest_depth} is less than top_k_interests = {self.top_k_interests}; "
                "raise it or lower the other"
            )
        return self


@dataclass(frozen=True)
class Names:
    """Tokens of one kind by id and how often each occurred. tokens: [V] strings, counts: [V]; PAD and OOV count 0."""

    tokens: pa.Array
    counts: NDArray[np.int64]

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """Share of each id among all known events; [V], sums to 1."""
        return self.counts / max(int(self.counts.sum()), 1)

    @cached_property
    def by_popularity(self) -> Ids:
        """All known ids, most frequent first, ties by smaller id; [V - 2]."""
        order = np.argsort(-self.counts[c.FIRST_ID :], kind="stable")
        return (order + c.FIRST_ID).astype(np.int32)


class Scorer(Protocol):
    """A loaded model. `length` is its L, `state_floats` its Z; `items` and `categories` name its ids.

    `is_recurrent`: a state may be advanced by new events alone; otherwise only by a whole context, from zeros.
    `new_session_gap`: from this gap code on, next_gap says that the session has ended; nothing else of it counts.
    `outlook`: what answers for the days ahead; None where the model was trained without.
    """

    length: int
    state_floats: int
    is_recurrent: bool
    new_session_gap: int
    items: Names
    categories: Names
    outlook: OutlookModel | None

    def advance(self, channels: dict[str, Ids], length: Ids, state: Floats) -> Floats:
        """States of B users after further events, zeros being the state before a first one.

        channels: [B, L]; length: [B], 0 keeps a state; state: [B, Z] → [B, Z].
        """
        ...

    def top_of(
        self,
        state: Floats,
        next_gap: Ids,
        channels: dict[str, Ids],
        length: Ids,
        k_items: int,
        k_categories: int,
    ) -> tuple[Ids, Probabilities, Ids, Probabilities]:
        """Likeliest items and categories in B states.

        state: [B, Z]; next_gap: [B]; channels: [B, L] and length: [B], the events behind them, for a model that
        scores what a row holds apart → item ids [B, k_items], their probabilities, category ids
        [B, k_categories], their probabilities; each row falling by probability, ties by smaller id.
        """
        ...


def score_rows(histories: "Histories", states: Floats, scorer: Scorer, spec: ScoringSpec) -> Iterator[pa.RecordBatch]:
    """What scores_v1 says of users in their states, in pieces of at most `batch_rows` rows and another order.

    states: [B, Z] after the last event of each history. What it says of the days ahead is left empty here.

    Interests: the `top_k_interests` likeliest categories, and after them up to `fading_interests` further ones that
    fade, those with the largest past share first, looked for among the `interest_depth` likeliest; an interest that
    fell below that depth is not listed. All are ordered by falling probability.
    Items: the `top_k_items` likeliest, after removal of every seen item where `seen_items` is `remove`; probabilities
    are those of the full distribution, so they do not sum to 1.
    Provenance is `model`, or `popularity` where the model knows none of the user's items and categories: such a row
    gets the shares of the vocabulary's counts.

    Rows are grouped by how many items must be fetched for them, so one user who saw much does not slow the others.
    """
    fetch = _items_to_fetch(histories, scorer, spec)  # [B]
    for k_items in np.unique(fetch):
        rows = np.flatnonzero(fetch == k_items)
        for start in range(0, len(rows), spec.batch_rows):
            some = rows[start : start + spec.batch_rows]
            yield _scored(histories.take(some), states[some], int(k_items), scorer, spec)


class Histories(NamedTuple):
    """Rows of sequences_v1 as arrays."""

    users: pa.Array  # [B]
    channels: dict[str, Ids]  # [B, L] each
    length: Ids  # [B]
    next_gap: Ids  # [B]
    last_time_us: NDArray[np.int64]  # [B]
    seen: pa.ListArray  # [B], ragged

    def take(self, rows: NDArray[np.intp]) -> "Histories":
        """Some of the rows, in that order."""
        picked = pa.array(rows)
        return Histories(
            self.users.take(picked),
            {name: channel[rows] for name, channel in self.channels.items()},
            self.length[rows],
            self.next_gap[rows],
            self.last_time_us[rows],
            self.seen.take(picked),
        )


def histories_of(rows: pa.Table, scorer: Scorer) -> Histories:
    """Rows of sequences_v1 (`HISTORY_COLUMNS`) as arrays. Ids younger than the model become OOV.

    Raises:
        ContractError: sequences are not of the model's length.
    """
    columns = {name: rows[name].combine_chunks() for name in HISTORY_COLUMNS}
    channels = {name: _matrix(columns[name], name, scorer.length) for name in c.CHANNELS}
    for name, names in ((c.ITEM, scorer.items), (c.CATEGORY, scorer.categories)):
        known = channels[name] < len(names.tokens)
        channels[name] = np.where(known, channels[name], np.int32(c.OOV))
    length, next_gap = (columns[name].to_numpy(zero_copy_only=False) for name in (c.LENGTH, c.NEXT_GAP))
    last_time_us = columns[c.LAST_TIME].cast(pa.int64()).to_numpy(zero_copy_only=False)
    return Histories(columns[c.USER_ID], channels, length, next_gap, last_time_us, columns[c.SEEN_ITEMS])


def _matrix(column: pa.ListArray, name: str, length: int) -> Ids:
    """A list column as [B, L], with no step per row."""
    flat = column.flatten()
    if len(flat) != len(column) * length or flat.null_count:
        sizes = pc.unique(pc.list_value_length(column)).to_pylist()
        raise ContractError(
            f"{SEQUENCES.name}: column {name} holds lists of {sizes} entries ({flat.null_count} null), the model reads "
            f"exactly {length}. Write the sequences again with sequences.length = {length}, or use a bundle trained on "
            "these."
        )
    matrix: Ids = flat.to_numpy(zero_copy_only=False).reshape(len(column), length)
    return matrix


def _items_to_fetch(histories: Histories, scorer: Scorer, spec: ScoringSpec) -> NDArray[np.int64]:
    """How many items to ask for so that top_k_items remain without the seen ones; [B]."""
    n_items = len(scorer.items.tokens) - c.FIRST_ID
    extra = np.zeros(len(histories.users), np.int64)
    if spec.seen_items == "remove":
        n_seen = pc.list_value_length(histories.seen).to_numpy(zero_copy_only=False)
        extra = np.where(n_seen > 0, _FETCH_STEPS[np.searchsorted(_FETCH_STEPS, n_seen)], 0)
    return np.minimum(spec.top_k_items + extra, n_items)


def _scored(histories: Histories, states: Floats, k_items: int, scorer: Scorer, spec: ScoringSpec) -> pa.RecordBatch:
    k_categories = min(spec.interest_depth, len(scorer.categories.tokens) - c.FIRST_ID)
    item_ids, item_p, category_ids, category_p = scorer.top_of(
        states, histories.next_gap, histories.channels, histories.length, k_items, k_categories
    )
    unknown = ((histories.channels[c.ITEM] <= c.OOV) & (histories.channels[c.CATEGORY] <= c.OOV)).all(axis=1)  # [B]
    item_ids, item_p = _popular_where(unknown, item_ids, item_p, scorer.items)  # [B, W]
    category_ids, category_p = _popular_where(unknown, category_ids, category_p, scorer.categories)
    provenance = pa.array((FROM_MODEL, FROM_POPULARITY)).take(pa.array(unknown.astype(np.int8)))
    columns = (
        histories.users,
        provenance,
        _interests(category_ids, category_p, histories.channels[c.CATEGORY], scorer.categories, spec),
        _items(item_ids, item_p, histories.seen, scorer.items, spec),
    )
    return pa.RecordBatch.from_arrays(list(columns), names=list(OUTPUT_COLUMNS))


def _popular_where(unknown: Mask, ids: Ids, probabilities: Probabilities, names: Names) -> tuple[Ids, Probabilities]:
    """Replace the rows of unknown histories by the most frequent ids and their shares."""
    popular = names.by_popularity[: ids.shape[1]]  # [W]
    shares = names.shares[popular].astype(np.float32)
    return np.where(unknown[:, None], popular, ids), np.where(unknown[:, None], shares, probabilities)


def _items(ids: Ids, probabilities: Probabilities, seen: pa.ListArray, names: Names, spec: ScoringSpec) -> pa.ListArray:
    """The first top_k_items of each row that may be shown; ids, probabilities: [B, W] → [B] lists."""
    keep = ids >= c.FIRST_ID
    if spec.seen_items == "remove":
        keep &= ~_among(ids, seen, len(names.tokens))
    keep &= np.cumsum(keep, axis=1) <= spec.top_k_items
    entries = {c.ITEM_ID: names.tokens.take(pa.array(ids[keep])), c.PROBABILITY: pa.array(probabilities[keep])}
    return _lists(c.ITEMS, keep, entries)


def _among(ids: Ids, lists: pa.ListArray, n_ids: int) -> Mask:
    """Which ids of a row are in the row's list; ids: [B, W], lists: [B] ragged → [B, W]."""
    rows = np.arange(len(lists), dtype=np.int64)
    listed = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    listed_rows = np.repeat(rows, pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    known = listed < n_ids
    return np.isin(rows[:, None] * n_ids + ids, (listed_rows * n_ids + listed)[known])


def _interests(ids: Ids, probabilities: Probabilities, past: Ids, names: Names, spec: ScoringSpec) -> pa.ListArray:
    """The listed interests of each row with past share and trend.

    ids, probabilities: [B, W], the interest_depth likeliest; past: [B, L] category channel → [B] lists.
    """
    counts = np.zeros(ids.shape, np.int64)  # [B, W]
    for position in range(past.shape[1]):
        counts += past[:, position, None] == ids
    n_known = (past >= c.FIRST_ID).sum(axis=1, keepdims=True)  # [B, 1]
    shares = past_shares(counts, n_known, names.shares[ids], spec.past_smoothing_events)
    trends = trend_codes(
        probabilities, shares, counts, n_known, spec.new_probability_floor, spec.rising_ratio, spec.fading_ratio
    )
    keep = ids >= c.FIRST_ID
    likeliest = keep & (np.cumsum(keep, axis=1) <= spec.top_k_interests)
    fading = keep & ~likeliest & (trends == FADING)
    listed = likeliest | _largest(np.where(fading, shares, 0.0), spec.fading_interests)
    entries = {
        c.CATEGORY_ID: names.tokens.take(pa.array(ids[listed])),
        c.PROBABILITY: pa.array(probabilities[listed]),
        c.PAST_SHARE: pa.array(shares[listed].astype(np.float32)),
        c.MOVE: pa.array((probabilities - shares)[listed].astype(np.float32)),
        c.TREND: pa.array(TRENDS).take(pa.array(trends[listed])),
        c.DAYS_AHEAD: nothing_ahead(int(listed.sum())),
    }
    return _lists(c.INTERESTS, listed, entries)


def _largest(weights: NDArray[np.float64], k: int) -> Mask:
    """The k largest positive weights of each row, ties by position; [B, W]."""
    first = np.argsort(-weights, axis=1, kind="stable")[:, :k]
    mask = np.zeros(weights.shape, bool)
    np.put_along_axis(mask, first, True, axis=1)
    return mask & (weights > 0)


def _lists(name: str, keep: Mask, entries: dict[str, pa.Array]) -> pa.ListArray:
    """A list column of scores_v1: structs of the entries that `keep` [B, W] marks, in row-major order."""
    kind = SCORES_ARROW.field(name).type
    fields = list(kind.value_type)
    structs = pa.StructArray.from_arrays([entries[field.name].cast(field.type) for field in fields], fields=fields)
    offsets = pa.array(np.concatenate(([0], np.cumsum(keep.sum(axis=1)))), pa.int32())
    return pa.ListArray.from_arrays(offsets, structs, kind)
