"""Arithmetic on gradients that are dense tensors or, for large tables, the rows a step touched (IndexedSlices).

Letters: V rows of a table, R rows that are named, E numbers a row.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from model.network import Tensor


def added(gradients: Sequence[Any]) -> Any:
    """Sum of gradients of one weight, all dense or all sparse. Sparse → each row named once."""
    if not isinstance(gradients[0], tf.IndexedSlices):
        return tf.add_n(list(gradients)) if len(gradients) > 1 else gradients[0]
    values = tf.concat([each.values for each in gradients], axis=0)
    indices = tf.concat([each.indices for each in gradients], axis=0)
    return compact(tf.IndexedSlices(values, indices, gradients[0].dense_shape))


def compact(gradient: Any) -> Any:
    """The same gradient with each row named once: only so is the norm of its values its norm. [R, E] → [≤ R, E]."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, place = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, place, tf.shape(rows)[0])
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def scaled(gradient: Any, factor: Tensor) -> Any:
    """Every value times a number."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
    return gradient * factor
