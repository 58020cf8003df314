"""The losses, each one number per position; what is summed and divided by what is the caller's.

Letters: P positions, V known ids (PAD and OOV left out), M rows scored, E embedding size, N negatives of a batch.
"""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features import columns as c
from model.network import Network, Tensor
from model.repeats import without

# Positions whose scores are held at a time: so many scores (2 MiB, they stay in a core's cache), but at least so many
# positions, else adding up the rows' gradients would cost more than the scores do.
_PIECE_SCORES, _PIECE_ROWS = 1 << 19, 256

_EXCLUDED = -1e9  # a score that has no share in a softmax, and yet no infinity in its gradient


def full_softmax(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over every known id. logits: [P, V]; targets: [P] ids → [P]; 0 where the target is PAD or OOV.

    Formula: (1 − ε)·(lse(s) − s_y) + ε·(lse(s) − mean(s)), lse = log Σ exp; ε label smoothing (Szegedy et al. 2016,
    section 7). At random weights: log V.
    """
    is_known = targets >= c.FIRST_ID
    labels = tf.maximum(targets - c.FIRST_ID, 0)
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if smoothing > 0.0:
        uniform = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)
        loss = (1.0 - smoothing) * loss + smoothing * uniform
    return tf.where(is_known, loss, 0.0)


def log_partition(
    answers: Tensor,
    rows: Tensor,
    offset: Tensor,
    weight: Tensor,
    own: Tensor | None = None,
    skipped: tuple[Tensor, Tensor] | None = None,
    precision: str = "float32",
    excluded: Tensor | None = None,
) -> Tensor:
    """Weighted sum of log partition functions: Σ_p w_p · log(exp(own_p) + Σ_j exp(a_p·r_j + o_j)) → one number.

    answers: [P, E]; rows: [M, E]; offset: [M]; weight: [P], a constant; own: [P] scores that count beside the rows;
    skipped: ids [P] and ids [M], where they are equal the row does not count; precision: of what is multiplied; sums
    are float32; excluded: [P, S] places among the rows that do not count for a position, -1 for none.

    Positions are taken in pieces that stay in the cache, and a piece's gradients are made while its exponentials are at
    hand, so no array of size P × M is ever written: what lies between the matrix multiplications costs little, and
    memory does not grow with P × M. At zero scores: Σ w · log M, or log(M + 1) with `own`.
    """
    n_positions, n_rows = tf.shape(answers)[0], tf.shape(rows)[0]
    piece = tf.maximum(_PIECE_ROWS, _PIECE_SCORES // n_rows)
    n_pieces = (n_positions + piece - 1) // piece

    def product(left: Tensor, right: Tensor, **transposed: bool) -> Tensor:
        return tf.cast(tf.matmul(tf.cast(left, precision), tf.cast(right, precision), **transposed), tf.float32)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def total(answers: Tensor, rows: Tensor, offset: Tensor, own: Tensor) -> tuple[Tensor, Any]:
        table = tf.concat([rows, offset[:, None]], axis=1)  # [M, E + 1]: the offset rides along in the product
        width = table.shape[1]

        def step(at: Tensor, loss: Tensor, d_table: Tensor, d_answers: Any, d_own: Any) -> tuple[Any, ...]:
            part = slice(at * piece, at * piece + piece)
            one = tf.ones_like(answers[part][:, :1])
            asked = tf.concat([answers[part], one], axis=1)  # [p, E + 1]
            scores = product(asked, table, transpose_b=True)  # [p, M]
            if skipped is not None:
                scores = tf.where(skipped[0][part][:, None] == skipped[1][None, :], -np.inf, scores)
            if excluded is not None:
                scores = without(scores, excluded[part])
            top = tf.reduce_max(scores, axis=1)  # [p]
            if has_own:
                top = tf.maximum(top, own[part])
            share = tf.exp(scores - top[:, None])  # [p, M]
            mass = tf.reduce_sum(share, axis=1)  # [p]
            if has_own:
                own_mass = tf.exp(own[part] - top)
                mass += own_mass
                d_own = d_own.write(at, weight[part] * own_mass / mass)
            loss += tf.reduce_sum(weight[part] * (top + tf.math.log(mass)))
            scale = (weight[part] / mass)[:, None]  # [p, 1]
            d_table += product(asked * scale, share, transpose_a=True)  # [E + 1, M], the small one transposed
            return at + 1, loss, d_table, d_answers.write(at, scale * product(share, rows)), d_own

        pieces = [
            tf.TensorArray(tf.float32, n_pieces, infer_shape=False, element_shape=shape)
            for shape in ([None, width - 1], [None])
        ]
        first = (0, tf.constant(0.0), tf.zeros([width, n_rows]), *pieces)
        _, loss, d_table, d_answers, d_own = tf.while_loop(
            lambda at, *_: at < n_pieces, step, first, parallel_iterations=1
        )
        d_answers = d_answers.concat()
        d_own = d_own.concat() if has_own else tf.zeros_like(own)

        def gradient(upstream: Tensor) -> tuple[Tensor, ...]:
            d_rows = upstream * d_table
            return upstream * d_answers, tf.transpose(d_rows[:-1]), d_rows[-1], upstream * d_own

        return loss, gradient

    has_own = own is not None
    return total(answers, rows, offset, own if has_own else tf.zeros([0]))


class Negatives(NamedTuple):
    """Ids [N] int32 that all positions of a batch share, and the log of how often each is expected among the N [N]."""

    ids: Tensor
    log_expected: Tensor


class NegativeSampler:
    """Ids drawn with replacement from training frequency to a power; the same for all positions of a batch."""

    def __init__(self, counts: NDArray[np.int64], negatives: int, power: float) -> None:
        """counts: [V + 2] training targets by id. An id that was never a target is drawn as one seen once."""
        share = np.maximum(counts[c.FIRST_ID :], 1).astype(np.float64) ** power
        share /= share.sum()
        self._cumulative = tf.constant(np.cumsum(share))  # [V] float64: float32 has no room for a million shares
        self._log_expected = tf.constant(np.log(share * negatives), tf.float32)  # [V]
        self._negatives = negatives

    def draw(self, seed: Tensor) -> Negatives:
        """One batch's negatives. seed: [2] int32."""
        points = tf.random.stateless_uniform([self._negatives], seed, dtype=tf.float64)
        index = tf.minimum(tf.searchsorted(self._cumulative, points, side="right"), self._cumulative.shape[0] - 1)
        return Negatives(index + c.FIRST_ID, tf.gather(self._log_expected, index))


def distinct(negatives: Negatives) -> Negatives:
    """The same estimate of a partition function with each id once: drawn k times, it weighs k times as much."""
    ids, place, times = tf.unique_with_counts(negatives.ids)
    log_expected = tf.math.unsorted_segment_max(negatives.log_expected, place, tf.size(ids))
    return Negatives(ids, log_expected - tf.math.log(tf.cast(times, tf.float32)))


def columns_among(ids: Tensor, negatives: Negatives) -> Tensor:
    """Where ids stand among distinct negatives, -1 where they don't. ids: any shape → the same."""
    order = tf.argsort(negatives.ids)
    risen = tf.gather(negatives.ids, order)
    place = tf.minimum(tf.searchsorted(risen, tf.reshape(ids, [-1])), tf.size(risen) - 1)
    place = tf.reshape(place, tf.shape(ids))
    return tf.where(tf.gather(risen, place) == ids, tf.gather(order, place), -1)


def head_loss(
    network: Network,
    kind: str,
    answers: Tensor,
    targets: Tensor,
    smoothing: float,
    negatives: Negatives | None,
    precision: str = "float32",
    importance: Tensor | None = None,
    excluded: Tensor | None = None,
) -> Tensor:
    """Loss of one head, summed over its positions: sampled where there are negatives, else full. → one number.

    answers: [P, E]; targets: [P] ids; PAD and OOV cost nothing; importance: [P], what a position's loss is multiplied
    with, 1 without; excluded: [P, S] columns that are no candidates of a position, -1 for none: of all known ids, or of
    the negatives, which then are distinct.

    Full: as `full_softmax`. Sampled: log(exp(s_y) + Σ_j exp(s_j − log n_j)) − s_y over negatives j ≠ y (accidental hits
    removed). n_j, how often j is expected among the negatives, makes Σ exp(s_j)/n_j an unbiased estimate of the other
    ids' share of the partition function (Bengio & Senécal 2008); the positive is always present, so it is not corrected
    (Khrylchenko et al. 2025). At random weights both are about log V a position. With every id sampled once and n_j = 1
    the two are equal.
    """
    weight = _weight(targets, importance)  # [P]
    own_rows, own_bias = network.output_rows(kind, targets)  # [P, E], [P]
    own = tf.reduce_sum(answers * own_rows, axis=-1) + own_bias  # [P]
    if negatives is None:
        rows, bias = network.output_table(kind)  # [V, E], [V]
        loss = log_partition(answers, rows, bias, weight, precision=precision, excluded=excluded) - (
            1.0 - smoothing
        ) * tf.reduce_sum(weight * own)
        if smoothing > 0.0:
            uniform = tf.linalg.matvec(answers, tf.reduce_mean(rows, axis=0)) + tf.reduce_mean(bias)  # [P]
            loss -= smoothing * tf.reduce_sum(weight * uniform)
        return loss
    rows, bias = network.output_rows(kind, negatives.ids)  # [N, E], [N]
    offset = bias - negatives.log_expected
    total = log_partition(answers, rows, offset, weight, own, (targets, negatives.ids), precision, excluded)
    return total - tf.reduce_sum(weight * own)


def bpr_max_loss(
    network: Network,
    kind: str,
    answers: Tensor,
    targets: Tensor,
    negatives: Negatives,
    regularisation: float,
    importance: Tensor | None = None,
) -> Tensor:
    """BPR-max of one head (Hidasi & Karatzoglou 2018, section 3.3), summed over its positions → one number.

    answers: [P, E]; targets: [P] ids; PAD and OOV cost nothing; importance: as for `head_loss`.

    Formula: −log Σ_j q_j·σ(s_y − s_j) + λ·Σ_j q_j·s_j², q the softmax of s over the negatives j ≠ y (accidental hits
    removed), λ the regularisation. It ranks the target above the highest negatives and keeps their scores near 0; its
    scores are no log-probabilities. At zero weights: log 2 a position.
    """
    own_rows, own_bias = network.output_rows(kind, targets)  # [P, E], [P]
    own = tf.reduce_sum(answers * own_rows, axis=-1) + own_bias  # [P]
    rows, bias = network.output_rows(kind, negatives.ids)  # [N, E], [N]
    weight = _weight(targets, importance)
    return _bpr_max(answers, rows, bias, own, weight, targets, negatives.ids, regularisation)


def _bpr_max(
    answers: Tensor,
    rows: Tensor,
    bias: Tensor,
    own: Tensor,
    weight: Tensor,
    targets: Tensor,
    ids: Tensor,
    regularisation: float,
) -> Tensor:
    """In pieces, each with its gradients while its scores are at hand, as `log_partition` goes about it."""
    n_positions = tf.shape(answers)[0]
    piece = tf.maximum(_PIECE_ROWS, _PIECE_SCORES // tf.shape(rows)[0])
    n_pieces = (n_positions + piece - 1) // piece

    def loss_of(part: slice, answers: Tensor, rows: Tensor, bias: Tensor, own: Tensor) -> Tensor:
        scores = tf.matmul(answers, rows, transpose_b=True) + bias  # [p, N]
        is_hit = targets[part][:, None] == ids[None, :]
        log_q = tf.nn.log_softmax(tf.where(is_hit, _EXCLUDED, scores))
        ranked = tf.reduce_logsumexp(log_q + tf.math.log_sigmoid(own[:, None] - scores), axis=1)  # [p]
        size = tf.reduce_sum(tf.exp(log_q) * tf.square(scores), axis=1)  # [p]
        return tf.reduce_sum(weight[part] * (regularisation * size - ranked))

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def total(answers: Tensor, rows: Tensor, bias: Tensor, own: Tensor) -> tuple[Tensor, Any]:
        def step(at: Tensor, loss: Tensor, d_rows: Tensor, d_bias: Tensor, d_answers: Any, d_own: Any) -> Any:
            part = slice(at * piece, at * piece + piece)
            inputs = [answers[part], rows, bias, own[part]]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(inputs)
                own_loss = loss_of(part, *inputs)
            found = tape.gradient(own_loss, inputs)
            sums = loss + own_loss, d_rows + found[1], d_bias + found[2]
            return at + 1, *sums, d_answers.write(at, found[0]), d_own.write(at, found[3])

        arrays = [
            tf.TensorArray(tf.float32, n_pieces, infer_shape=False, element_shape=shape)
            for shape in ([None, answers.shape[1]], [None])
        ]
        first = (0, tf.constant(0.0), tf.zeros_like(rows), tf.zeros_like(bias), *arrays)
        _, loss, d_rows, d_bias, d_answers, d_own = tf.while_loop(
            lambda at, *_: at < n_pieces, step, first, parallel_iterations=1
        )
        found = d_answers.concat(), d_rows, d_bias, d_own.concat()
        return loss, lambda upstream: tuple(upstream * each for each in found)

    return total(answers, rows, bias, own)


def _weight(targets: Tensor, importance: Tensor | None) -> Tensor:
    """What each position counts: nothing where the target is PAD or OOV. → [P] float32."""
    weight = tf.cast(targets >= c.FIRST_ID, tf.float32)
    return weight if importance is None else weight * importance
