"""The losses, each one number per position; what is summed and divided by what is the caller's.

Letters: P positions, V known ids (PAD and OOV left out), E embedding size, N negatives shared by a batch.
"""

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features import columns as c
from model.network import Network, Tensor


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


def sampled_softmax(
    positive: Tensor, negative: Tensor, targets: Tensor, sampled: Tensor, log_expected: Tensor
) -> Tensor:
    """Cross-entropy against negatives that all positions share → [P]; 0 where the target is PAD or OOV.

    positive: [P] and negative: [P, N] logits; targets: [P] ids; sampled: [N] ids; log_expected: [N], log of how often
    each id is expected among the N.

    Formula: softplus(lse_j(s_j − log n_j) − s_y), over j ≠ y (accidental hits removed): log-sum-exp without joining
    positive and negatives. n_j makes Σ exp(s_j)/n_j an unbiased estimate of the other ids' share of the partition
    function (Bengio & Senécal 2008); the positive is always present, so it is not corrected (Khrylchenko et al. 2025).
    At random weights: about log V. With every id sampled once and log_expected = 0 it equals `full_softmax`.
    """
    hit = tf.cast(targets, sampled.dtype)[:, None] == sampled[None, :]
    corrected = tf.where(hit, -np.inf, negative - log_expected[None, :])
    loss = tf.math.softplus(tf.reduce_logsumexp(corrected, axis=-1) - positive)
    return tf.where(targets >= c.FIRST_ID, loss, 0.0)


class NegativeSampler:
    """Ids drawn with replacement from training frequency to a power; the same for all positions of a batch."""

    def __init__(self, counts: NDArray[np.int64], negatives: int, power: float) -> None:
        """counts: [V + 2] training targets by id. An id that was never a target is drawn as one seen once."""
        share = np.maximum(counts[c.FIRST_ID :], 1).astype(np.float64) ** power
        share /= share.sum()
        self._cumulative = tf.constant(np.cumsum(share))  # [V] float64: float32 has no room for a million shares
        self._log_expected = tf.constant(np.log(share * negatives), tf.float32)  # [V]
        self._negatives = negatives

    def draw(self, seed: Tensor) -> tuple[Tensor, Tensor]:
        """One batch's negatives. seed: [2] int32 → ids [N] int32, log expected counts [N]."""
        points = tf.random.stateless_uniform([self._negatives], seed, dtype=tf.float64)
        index = tf.minimum(tf.searchsorted(self._cumulative, points, side="right"), self._cumulative.shape[0] - 1)
        return index + c.FIRST_ID, tf.gather(self._log_expected, index)


def head_loss(
    network: Network,
    kind: str,
    answers: Tensor,
    targets: Tensor,
    smoothing: float,
    sampler: NegativeSampler | None,
    seed: Any,
) -> Tensor:
    """Loss of one head at each position, by the softmax that fits its size. answers: [P, E]; targets: [P] → [P]."""
    if sampler is None:
        return full_softmax(network.logits(kind, answers), targets, smoothing)
    sampled, log_expected = sampler.draw(seed)
    rows, bias = network.output_rows(kind, sampled)  # [N, E], [N]
    own_rows, own_bias = network.output_rows(kind, targets)  # [P, E], [P]
    positive = tf.reduce_sum(answers * own_rows, axis=-1) + own_bias
    negative = tf.matmul(answers, rows, transpose_b=True) + bias
    return sampled_softmax(positive, negative, targets, sampled, log_expected)
