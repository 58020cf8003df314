"""What a user comes back to: the next item is one of those in the row, or one that is not.

Its distribution is a mixture of two modes (RepeatNet, Ren et al., AAAI 2019). With probability g the user repeats: it
is one of the distinct ids of the row, by its score in the softmax, how long ago and how often it was there and what was
done with it last. With 1 - g the user explores: a softmax over all other ids, the row left out. So a network can learn
that nobody sees a film twice, that a page is read again, or that what was carted is bought, also of items that are too
young or too rare for a vector of their own. g and the weights of the features are linear in the hidden state.

At weights of zero and a row of m distinct ids: g = 0.12 and 1 / m each, by their scores.

Letters: B rows, L positions, T positions asked, P gathered positions, U units, V known ids, M marks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from features import columns as c
from model.draws import Tensor

# Upper edges of the buckets of distance, in events, from the newest event on: 0 is the newest event itself.
_DISTANCES = (0, 1, 2, 4, 8, 16, 32)
_MOST_TIMES = 3  # occurrences told apart; more count as so many
_N_DISTANCES = len(_DISTANCES) + 1
_N_MARKS = _MOST_TIMES + c.N_ACTION_CODES
_START_GATE = -2.0  # logit; 12 %

NOWHERE = -1e9  # a log-probability that has no share in a softmax, and yet no infinity in its gradient


class Seen(NamedTuple):
    """What a row holds: at each place its id, what was done with it, and when it comes next.

    An id counts at its latest place. marks: [B, L, times + actions] ones for how often it was there and the action.
    """

    ids: Tensor  # [B, L]
    next_place: Tensor  # [B, L] the next place of the same id; L and more: there is none
    marks: Tensor  # [B, L, M]


class Modes(NamedTuple):
    """Log-probabilities of the two modes and of each place within the first; … any leading dimensions."""

    repeats: Tensor  # […] log g; NOWHERE where the row holds no known id
    explores: Tensor  # […] log (1 - g); 0 there
    places: Tensor  # […, L] log of the share of the id at this place among the row's; NOWHERE where none counts


def seen(ids: Tensor, actions: Tensor) -> Seen:
    """What rows hold. ids, actions: [B, L] ids and action codes, right-padded."""
    n_places = tf.shape(ids)[1]
    place = tf.range(n_places)
    is_same = (ids[:, :, None] == ids[:, None, :]) & (ids >= c.FIRST_ID)[:, :, None]  # [B, L, L]
    later = tf.where(is_same & (place[None, :] > place[:, None]), place, n_places)
    times = tf.reduce_sum(tf.cast(is_same & (place[None, :] <= place[:, None]), tf.int32), axis=-1)  # [B, L]
    marks = tf.concat(
        [tf.one_hot(tf.minimum(times, _MOST_TIMES) - 1, _MOST_TIMES), tf.one_hot(actions, c.N_ACTION_CODES)], axis=-1
    )
    return Seen(ids, tf.reduce_min(later, axis=-1), marks)


class Repeats:
    """The weights of the two modes of one kind of ids."""

    def __init__(self, kind: str, units: int) -> None:
        width = 1 + _N_DISTANCES + _N_MARKS
        bias = tf.concat([[_START_GATE], tf.zeros([width - 1])], axis=0)
        self.weights: Mapping[str, Any] = {
            f"repeat_{kind}/projection": tf.Variable(tf.zeros([units, width])),
            f"repeat_{kind}/scale": tf.Variable([1.0]),
            f"repeat_{kind}/bias": tf.Variable(bias),
        }

    def everywhere(self, hidden: Tensor, scores: Tensor, past: Seen) -> Modes:
        """Modes after every position, each knowing the places up to its own.

        hidden: [B, L, U]; scores: [B, L, L] the softmax's at each position of the id at each place → [B, L], [B, L, L].
        """
        place = tf.range(tf.shape(past.ids)[1])
        distance = place[:, None] - place[None, :]  # [L, L]
        is_latest = (distance >= 0) & (past.next_place[:, None, :] > place[:, None])  # [B, L, L]
        return self._modes(hidden, scores, past, distance, "btf,tjf->btj", is_latest)

    def newest(self, hidden: Tensor, scores: Tensor, past: Seen, length: Tensor) -> Modes:
        """Modes after the last event of each row. hidden: [B, U]; scores: [B, L]; length: [B] → [B], [B, L]."""
        distance = length[:, None] - 1 - tf.range(tf.shape(past.ids)[1])  # [B, L]
        is_latest = (distance >= 0) & (past.next_place >= length[:, None])
        hidden, scores, is_latest = (values[:, None] for values in (hidden, scores, is_latest))
        found = self._modes(hidden, scores, past, distance, "btf,bjf->btj", is_latest)
        return Modes(*(values[:, 0] for values in found))

    def _modes(
        self, hidden: Tensor, scores: Tensor, past: Seen, distance: Tensor, form: str, is_latest: Tensor
    ) -> Modes:
        projection, scale, bias = self.weights.values()
        asked = tf.tensordot(hidden, projection, 1) + bias
        gate, by_distance, by_mark = tf.split(asked, [1, _N_DISTANCES, _N_MARKS], axis=-1)
        bucket = tf.reduce_sum(tf.cast(distance[..., None] > tf.constant(_DISTANCES), tf.int32), axis=-1)
        scores = scale * scores + tf.einsum(form, by_distance, tf.one_hot(bucket, _N_DISTANCES))
        scores += tf.matmul(by_mark, past.marks, transpose_b=True)
        counts = is_latest & (past.ids >= c.FIRST_ID)[:, None, :]  # [B, T, L]
        places = tf.nn.log_softmax(tf.where(counts, scores, NOWHERE))
        is_any = tf.reduce_any(counts, axis=-1)  # [B, T]
        gate = gate[..., 0]
        return Modes(
            tf.where(is_any, tf.math.log_sigmoid(gate), NOWHERE),
            tf.where(is_any, tf.math.log_sigmoid(-gate), 0.0),
            tf.where(counts, places, NOWHERE),
        )


def columns_of(ids: Tensor, counts: Tensor) -> Tensor:
    """Columns (id - FIRST_ID) of a softmax that the places which count stand for; -1 for the others. […, L] each."""
    return tf.where(counts, ids - c.FIRST_ID, -1)


def without(scores: Tensor, columns: Tensor) -> Tensor:
    """Scores of rows with some columns left out. scores: [P, M]; columns: [P, L], those outside 0 … M - 1 are none."""
    place = tf.where((columns >= 0) & (columns < tf.shape(scores)[1]))  # [k, 2]
    cells = tf.stack([tf.cast(place[:, 0], tf.int32), tf.gather_nd(columns, place)], axis=1)
    return tf.tensor_scatter_nd_update(scores, cells, tf.fill([tf.shape(cells)[0]], tf.cast(NOWHERE, scores.dtype)))


def log_distribution(logits: Tensor, ids: Tensor, modes: Modes) -> Tensor:
    """Log-probabilities of all known ids, both modes together. logits: [B, V]; ids: [B, L] → [B, V].

    Where a row holds every known id, there is nothing to explore, and the mode of repeating has all.
    """
    counts = modes.places > NOWHERE / 2
    columns = columns_of(ids, counts)
    modes = certain(modes, counts, tf.shape(logits)[1])
    explored = tf.nn.log_softmax(without(logits, columns)) + modes.explores[:, None]
    place = tf.where(counts)  # [k, 2]
    cells = tf.stack([tf.cast(place[:, 0], tf.int32), tf.gather_nd(columns, place)], axis=1)
    repeated = tf.gather_nd(modes.repeats[:, None] + modes.places, place)
    return tf.tensor_scatter_nd_update(explored, cells, repeated)


def certain(modes: Modes, counts: Tensor, n_ids: Tensor) -> Modes:
    """The same modes, but that a row which holds every known id can only repeat. counts: [B, L]."""
    is_all = tf.reduce_sum(tf.cast(counts, tf.int32), axis=-1) >= n_ids
    return Modes(tf.where(is_all, 0.0, modes.repeats), tf.where(is_all, NOWHERE, modes.explores), modes.places)


def merged(best: Tensor, log_p: Tensor, held: Tensor, modes: Modes, k: Tensor) -> Sequence[Tensor]:
    """The K likeliest ids of both modes → ids [B, K], log-probabilities [B, K]; falling, ties by smaller id.

    best, log_p: [B, K] the likeliest new columns and the logarithm of their share among all new ones; held: [B, L].
    """
    explored = tf.where(log_p > NOWHERE / 2, log_p + modes.explores[:, None], NOWHERE)
    counts = modes.places > NOWHERE / 2
    repeated = tf.where(counts, modes.places + modes.repeats[:, None], 2 * NOWHERE)
    ids = tf.concat([best + c.FIRST_ID, held], axis=1)
    log_p = tf.concat([explored, repeated], axis=1)
    order = tf.argsort(ids, axis=1, stable=True)  # top_k takes the first among equals
    ids, log_p = tf.gather(ids, order, batch_dims=1), tf.gather(log_p, order, batch_dims=1)
    found, place = tf.math.top_k(log_p, k)
    return tf.gather(ids, place, batch_dims=1), found
