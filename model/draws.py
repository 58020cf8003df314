"""Random numbers for the rows of a batch, the same ones however the batch is cut into parts.

Letters: B rows of a batch, n rows of a part of it.
"""

from typing import Any

import tensorflow as tf

Tensor = Any  # TensorFlow 2.15 carries no types

_PHILOX = 1
_PER_COUNT = 4  # numbers of 32 bits that one value of the counter gives


def seed_at(seed: Tensor, place: int) -> Tensor:
    """The seed of one place where a step draws random numbers. seed: [2] int32 → [2]."""
    return tf.stack([seed[0], seed[1] + place])


def uniform(seed: Tensor, first_row: Tensor, shape: Tensor) -> Tensor:
    """Numbers in [0, 1) for the rows of a batch from `first_row` on. seed: [2] int32; shape: of the part, [n, …].

    Row i of a batch has the same numbers whichever part it is in. Philox (Salmon et al. 2011) counts, so a part starts
    where its first row does, and costs no more than its own numbers; each row begins with a new value of the counter.
    """
    shape = tf.convert_to_tensor(shape)
    n_numbers = tf.reduce_prod(shape[1:])  # of a row
    n_counts = (n_numbers + _PER_COUNT - 1) // _PER_COUNT
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    skipped = tf.cast(first_row, tf.int64) * tf.cast(n_counts, tf.int64)
    counter = tf.bitcast(tf.bitcast(counter, tf.int64) + tf.stack([skipped, 0]), tf.uint64)
    drawn = tf.raw_ops.StatelessRandomUniformV2(
        shape=tf.stack([shape[0], n_counts * _PER_COUNT]), key=key, counter=counter, alg=_PHILOX
    )
    return tf.reshape(drawn[:, :n_numbers], shape)


def dropped(values: Tensor, rate: float, seed: Tensor | None, first_row: Tensor) -> Tensor:
    """Dropout: each number 0 with probability `rate`, else divided by 1 - rate; off without a seed. values: [n, …]."""
    if seed is None or rate == 0.0:
        return values
    is_kept = uniform(seed, first_row, tf.shape(values)) >= rate
    return tf.where(is_kept, values * (1.0 / (1.0 - rate)), 0.0)
