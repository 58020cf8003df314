"""Simple predictors that a model must beat, fitted on training windows only, each with the model's own interface.

B rows, L time, W windows, n events, S sessions, V ids of a vocabulary. Scores are not probabilities: only their order
counts. Where a baseline knows nothing, popularity decides, as ties count against who makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from features.columns import CATEGORY, FIRST_GAP, FIRST_ID, GAP, ITEM, MICROS, PAD
from model.evaluation import Channels, Ranker, Scores
from model.metrics import Floats, Ints, Longs

# A weight for popularity that orders what has no score and changes no others; beside scores 32 bits hold little of it.
_TIE_WEIGHT = np.float32(1e-6)


@dataclass(frozen=True)
class Windows:
    """The training rows that baselines read: B windows, any order."""

    user: Longs  # [W] dense user numbers
    window: Ints  # [W] 0 is the user's latest
    channels: Channels
    length: Ints  # [W]
    next_gap: Ints  # [W]
    next_item: Ints  # [W]
    next_category: Ints  # [W]
    last_time_us: Longs  # [W]
    next_time_us: Longs  # [W]


@dataclass(frozen=True)
class TrainEvents:
    """Every training event once, ordered by user and time. `session` rises with the session's end."""

    user: Longs  # [n]
    item: Ints  # [n]
    category: Ints  # [n]
    time_us: Longs  # [n] exact for a window's last two events, else rebuilt from gap buckets
    session: Longs  # [n] dense


@dataclass(frozen=True)
class VocabularySizes:
    """Ids of both kinds, PAD and OOV included."""

    items: int
    categories: int


def events_of(windows: Windows, gap_edges_s: Sequence[float], new_session_gap: int) -> TrainEvents:
    """Rebuild the training events: each window's targets, and the first event of each user's oldest window.

    A newest window may end with the last event that is known; nothing follows it then, and its next_item is 0.

    A window carries the exact time of its last event and of the one after it; earlier times go back from there by the
    geometric middle of each gap bucket, but never before the window's first event, whose time the older window knows.
    """
    order = np.lexsort((-windows.window, windows.user))  # oldest first
    user, length = windows.user[order], windows.length[order]
    oldest = np.concatenate([[True], user[1:] != user[:-1]])
    rows, place = np.arange(len(order)), np.arange(windows.channels[ITEM].shape[1] + 1)

    def with_next(channel: str, after: Ints) -> Ints:
        grid = np.pad(windows.channels[channel][order], ((0, 0), (0, 1)))
        grid[rows, length] = after[order]
        return grid  # [W, L + 1]

    gap = with_next(GAP, windows.next_gap)
    time_us = _times_us(gap, length, windows.last_time_us[order], gap_edges_s)
    known_start = np.where(oldest, np.iinfo(np.int64).min, np.roll(windows.next_time_us[order], 1))
    time_us = np.maximum(time_us, known_start[:, None])
    time_us[rows, length] = windows.next_time_us[order]

    n_events = length + (windows.next_item[order] != PAD)
    kept = (place < n_events[:, None]) & ((place > 0) | oldest[:, None])  # [W, L + 1]
    event_user = np.broadcast_to(user[:, None], kept.shape)[kept]
    starts = np.concatenate([[True], event_user[1:] != event_user[:-1]]) | (gap[kept] >= new_session_gap)
    session = np.cumsum(starts) - 1
    ends_us = time_us[kept][np.append(np.flatnonzero(starts)[1:], len(session)) - 1]
    by_end = np.empty(len(ends_us), dtype=np.int64)
    by_end[np.lexsort((np.arange(len(ends_us)), ends_us))] = np.arange(len(ends_us))
    return TrainEvents(
        user=event_user,
        item=with_next(ITEM, windows.next_item)[kept],
        category=with_next(CATEGORY, windows.next_category)[kept],
        time_us=time_us[kept],
        session=by_end[session],
    )


class Popularity:
    """Items and categories by their number of training events; the same list for everyone."""

    def __init__(self, events: TrainEvents, sizes: VocabularySizes) -> None:
        self.items = _shares(events.item, sizes.items)  # [V items]
        self.categories = _shares(events.category, sizes.categories)

    def probabilities(self, _channels: Channels, length: Ints, _next_gap: Ints) -> Scores:
        """The same shares in every row."""
        n_rows = len(length)
        return (
            np.broadcast_to(self.items, (n_rows, len(self.items))),
            np.broadcast_to(self.categories, (n_rows, len(self.categories))),
        )


class RecentPopularity(Popularity):
    """Popularity over the last `recent_days` days before the end of training; older events only break ties."""

    def __init__(self, events: TrainEvents, sizes: VocabularySizes, recent_days: float) -> None:
        super().__init__(events, sizes)
        recent = events.time_us > events.time_us.max() - int(recent_days * 86_400 * MICROS)
        self.items = _shares(events.item[recent], sizes.items) + _TIE_WEIGHT * self.items
        self.categories = _shares(events.category[recent], sizes.categories) + _TIE_WEIGHT * self.categories


class UserHistory:
    """What the user did most often in the window; among equals the latest first; then popularity."""

    def __init__(self, popularity: Popularity) -> None:
        self.popularity = popularity

    def probabilities(self, channels: Channels, _length: Ints, _next_gap: Ints) -> Scores:
        """Count + place of the latest occurrence (0..1) for ids of the window, else half the popularity share."""
        return (
            _history(channels[ITEM], self.popularity.items),
            _history(channels[CATEGORY], self.popularity.categories),
        )


class LastCategory:
    """The user stays in the last category. Categories: it first, then the user's own, then popular ones.

    Items: those of the last category by popularity, then all others by popularity. An item's category is the one it
    had in most training events (the smaller id among equals).
    """

    def __init__(self, events: TrainEvents, sizes: VocabularySizes, popularity: Popularity) -> None:
        self.popularity = popularity
        pairs, counts = np.unique(events.item.astype(np.int64) * sizes.categories + events.category, return_counts=True)
        order = np.lexsort((-pairs, counts))  # the last write of each item is its most frequent category
        self.category_of = np.zeros(sizes.items, dtype=np.int32)  # [V items]
        self.category_of[pairs[order] // sizes.categories] = pairs[order] % sizes.categories

    def probabilities(self, channels: Channels, length: Ints, _next_gap: Ints) -> Scores:
        """Above every other score for the last category; item shares outside it shrunk below those inside."""
        last = _last(channels[CATEGORY], length)  # [B]
        items = self.popularity.items
        some = items[items > 0]
        below = some.min() / (2 * some.max()) if len(some) else np.float32(1)
        item_scores = np.where((self.category_of == last[:, None]) & (last >= FIRST_ID)[:, None], items, items * below)
        categories = _history(channels[CATEGORY], self.popularity.categories)
        known = np.flatnonzero(last >= FIRST_ID)
        categories[known, last[known]] += channels[CATEGORY].shape[1] + 2
        return item_scores, categories


class Markov:
    """First-order Markov chain: what followed the last event, over all users, smoothed with popularity.

    P(j | i) = (n_ij + m p_j) / (n_i + m) with m = `prior` pseudo-events (MacKay & Peto 1995, hierarchical Dirichlet).
    """

    def __init__(self, events: TrainEvents, sizes: VocabularySizes, popularity: Popularity, prior: float) -> None:
        self.popularity, self.prior = popularity, prior
        follows = events.user[1:] == events.user[:-1]
        self.items = _transitions(events.item, follows, sizes.items)
        self.categories = _transitions(events.category, follows, sizes.categories)

    def probabilities(self, channels: Channels, length: Ints, _next_gap: Ints) -> Scores:
        """Rows of the smoothed transition matrices; popularity where the last id is unknown or had no successor."""
        return (
            self._smoothed(self.items, _last(channels[ITEM], length), self.popularity.items),
            self._smoothed(self.categories, _last(channels[CATEGORY], length), self.popularity.categories),
        )

    def _smoothed(self, counts: sparse.csr_matrix, last: Ints, popularity: Floats) -> Floats:
        rows = counts[last].toarray()  # [B, V]
        total = rows.sum(axis=1, keepdims=True) + np.float32(self.prior)
        rows += np.float32(self.prior) * popularity
        return np.asarray(rows / total, dtype=np.float32)


class SessionKnn:
    """Session-kNN with a linearly decayed current sequence (V-SkNN).

    Jannach & Ludewig 2017 (RecSys), Ludewig & Jannach 2018 (UMUAI), with the sample taken per item as in VMIS-kNN
    (Kersbergen et al. 2022, SIGMOD). The user's latest `last_items` known events weigh 1/n, 2/n, … 1, latest most
    (an item twice: its later weight). Similarity to a training session is the cosine with its binary item vector,
    over the `sample` most recent sessions of each item and then of each user; the `neighbours` most similar ones
    (more recent first among equals) vote for their items, each vote times idf = log(S / S_i) where asked, and for
    their categories.
    """

    def __init__(
        self,
        events: TrainEvents,
        sizes: VocabularySizes,
        popularity: Popularity,
        neighbours: int,
        sample: int,
        last_items: int,
        idf: bool,
    ) -> None:
        self.popularity, self.neighbours, self.sample, self.last_items = popularity, neighbours, sample, last_items
        n_sessions = int(events.session.max(initial=-1)) + 1
        items = _incidence(events.session, events.item, n_sessions, sizes.items)  # [S, V items] binary
        self.session_categories = _incidence(events.session, events.category, n_sessions, sizes.categories)
        lengths = np.sqrt(np.maximum(items.getnnz(axis=1), 1)).astype(np.float32)
        unit = sparse.diags(1 / lengths, dtype=np.float32) @ items
        self.sessions_of = _latest_per_row(unit.T.tocsr(), sample)  # [V items, S], sessions by end
        sessions_of_item = np.maximum(items.getnnz(axis=0), 1)
        weight = np.log(max(n_sessions, 1) / sessions_of_item) if idf else np.ones(sizes.items)
        self.votes = (items @ sparse.diags(weight.astype(np.float32), dtype=np.float32)).tocsr()

    def probabilities(self, channels: Channels, length: Ints, _next_gap: Ints) -> Scores:
        """Votes of the nearest sessions, at most about 1, over popularity that only breaks ties."""
        query = self._query(channels[ITEM], length)  # [B, V items]
        near = _latest_per_row(query @ self.sessions_of, self.sample)
        near = _largest_per_row(near, self.neighbours)  # [B, S]
        total = np.maximum(np.asarray(near.sum(axis=1)), np.float32(1e-12))
        items = (near @ self.votes).toarray() / total + _TIE_WEIGHT * self.popularity.items
        categories = (near @ self.session_categories).toarray() / total + _TIE_WEIGHT * self.popularity.categories
        return items.astype(np.float32), categories.astype(np.float32)

    def _query(self, items: Ints, length: Ints) -> sparse.csr_matrix:
        place = np.arange(items.shape[1])
        first = np.maximum(length - self.last_items, 0)[:, None]
        rows, columns = np.nonzero((items >= FIRST_ID) & (place >= first) & (place < length[:, None]))
        n_used = np.minimum(length, self.last_items)[rows]
        weights = ((columns - first[rows, 0] + 1) / n_used).astype(np.float32)
        latest = _last_of_each(rows * np.int64(self.sessions_of.shape[0]) + items[rows, columns])
        shape = (len(items), self.sessions_of.shape[0])
        return sparse.csr_matrix((weights[latest], (rows[latest], items[rows, columns][latest])), shape=shape)


def fit_baselines(
    events: TrainEvents,
    sizes: VocabularySizes,
    *,
    recent_days: float,
    markov_prior: float,
    knn_neighbours: int,
    knn_sample: int,
    knn_last_items: int,
    knn_idf: bool,
) -> dict[str, Ranker]:
    """All baselines by the name of their row in the table, simplest first."""
    popularity = Popularity(events, sizes)
    return {
        "popularity": popularity,
        "recent popularity": RecentPopularity(events, sizes, recent_days),
        "last category": LastCategory(events, sizes, popularity),
        "user history": UserHistory(popularity),
        "markov": Markov(events, sizes, popularity, markov_prior),
        "session-knn": SessionKnn(events, sizes, popularity, knn_neighbours, knn_sample, knn_last_items, knn_idf),
    }


def _times_us(gap: Ints, length: Ints, last_time_us: Longs, gap_edges_s: Sequence[float]) -> Longs:
    """Time of every place of a window, [W, L + 1]: back from its last event by the middles of the gap buckets."""
    edges = np.asarray(gap_edges_s, dtype=np.float64)
    middles = np.sqrt(np.maximum(edges[:-1], 1) * edges[1:])
    seconds = np.concatenate([np.zeros(FIRST_GAP), [edges[0] / 2], middles, edges[-1:]])  # by gap code
    inside = np.arange(gap.shape[1]) < length[:, None]
    gap_us = np.where(inside, np.rint(seconds[gap] * MICROS), 0).astype(np.int64)
    upto = np.cumsum(gap_us, axis=1)  # [W, L + 1]
    return np.asarray(last_time_us[:, None] - (upto[:, -1:] - upto))


def _shares(ids: Ints, size: int) -> Floats:
    """Share of each known id among the known ones, [V]."""
    counts = np.bincount(ids, minlength=size).astype(np.float64)
    counts[:FIRST_ID] = 0
    return np.asarray(counts / max(counts.sum(), 1), dtype=np.float32)


def _last(channel: Ints, length: Ints) -> Ints:
    return np.asarray(channel[np.arange(len(length)), length - 1])  # [B]


def _history(channel: Ints, popularity: Floats) -> Floats:
    """[B, V]: count + (place + 1) / (L + 1) for ids that occur in the row, else half the popularity share."""
    rows, places = np.nonzero(channel >= FIRST_ID)
    ids = channel[rows, places]
    scores = np.tile(popularity / 2, (len(channel), 1))
    latest = _last_of_each(rows * np.int64(len(popularity)) + ids)
    scores[rows[latest], ids[latest]] = (places[latest] + 1) / (channel.shape[1] + 1)
    np.add.at(scores, (rows, ids), np.float32(1))
    return scores


def _last_of_each(keys: Longs) -> NDArray[np.intp]:
    """Position of the last occurrence of each distinct key."""
    _, from_end = np.unique(keys[::-1], return_index=True)
    return np.asarray(len(keys) - 1 - from_end)


def _transitions(ids: Ints, follows: NDArray[np.bool_], size: int) -> sparse.csr_matrix:
    """[V, V]: how often the row's id was followed by the column's, both known."""
    known = follows & (ids[:-1] >= FIRST_ID) & (ids[1:] >= FIRST_ID)
    ones = np.ones(int(known.sum()), dtype=np.float32)
    return sparse.csr_matrix((ones, (ids[:-1][known], ids[1:][known])), shape=(size, size))


def _incidence(sessions: Longs, ids: Ints, n_sessions: int, size: int) -> sparse.csr_matrix:
    """[S, V]: 1 where a session has a known id."""
    known = ids >= FIRST_ID
    ones = np.ones(int(known.sum()), dtype=np.float32)
    matrix = sparse.csr_matrix((ones, (sessions[known], ids[known])), shape=(n_sessions, size))
    matrix.data[:] = 1  # repeated pairs were added up
    return matrix


def _latest_per_row(matrix: sparse.csr_matrix, kept: int) -> sparse.csr_matrix:
    """The `kept` entries of greatest column in each row."""
    matrix.sort_indices()
    from_end = np.repeat(matrix.indptr[1:], np.diff(matrix.indptr)) - np.arange(matrix.nnz)  # 1 = the row's last
    return _only(matrix, from_end <= kept)


def _largest_per_row(matrix: sparse.csr_matrix, kept: int) -> sparse.csr_matrix:
    """The `kept` entries of greatest value in each row, greater columns first among equals."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((-matrix.indices, -matrix.data, rows))
    rank = np.empty(matrix.nnz, dtype=np.int64)
    rank[order] = np.arange(matrix.nnz) - matrix.indptr[rows]
    return _only(matrix, rank < kept)


def _only(matrix: sparse.csr_matrix, chosen: NDArray[np.bool_]) -> sparse.csr_matrix:
    upto = np.concatenate([[0], np.cumsum(chosen)])
    parts = (matrix.data[chosen], matrix.indices[chosen], upto[matrix.indptr])
    return sparse.csr_matrix(parts, shape=matrix.shape)
