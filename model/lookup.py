"""Rows of a table by id, with a gradient that suits the table."""

from typing import Any

import tensorflow as tf

from model.draws import Tensor


def lookup(table: Tensor, ids: Tensor, is_sparse: bool = False) -> Tensor:
    """Rows of a table by id. Unless sparse, with a dense gradient: cheaper where most rows are touched or another is.

    table: [V, …]; ids: any shape → that shape + […].
    """
    if is_sparse:
        return tf.gather(table, ids)
    n_rows, row = table.shape[0], table.shape[1:].as_list()

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def rows_of(values: Tensor) -> tuple[Tensor, Any]:
        def gradient(upstream: Tensor) -> Tensor:
            return tf.math.unsorted_segment_sum(tf.reshape(upstream, [-1, *row]), tf.reshape(ids, [-1]), n_rows)

        return tf.gather(values, ids), gradient

    return rows_of(tf.convert_to_tensor(table))
