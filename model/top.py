"""The likeliest of many ids for each row, without ever holding the scores of all ids at once.

Letters: B rows, E numbers of an answer, V ids, W ids of a block, G groups of a block, K kept.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from model.repeats import without

Tensor = Any  # TensorFlow 2.15 carries no types

GROUP = (
    32  # ids whose scores are first looked at through their maximum: near the square root of V / K for 20,000 and 20
)
BLOCK_CELLS = 1 << 23  # scores held at a time, 32 MiB; at 256 rows 32,768 ids, so that usual vocabularies are one block


class TopColumns(NamedTuple):
    """K columns of each row, falling by score, ties by smaller column, and their log-probabilities. [B, K] each."""

    columns: Tensor
    log_p: Tensor


class _Running(NamedTuple):
    """What is known after some blocks: the best K so far; greatest score and sum of exp(score - greatest)."""

    scores: Tensor  # [B, K]
    columns: Tensor  # [B, K]
    greatest: Tensor  # [B, 1]
    total: Tensor  # [B, 1]


def top_columns(
    answers: Tensor,
    table: Tensor,
    bias: Tensor,
    k: Tensor,
    block_cells: Tensor = BLOCK_CELLS,
    excluded: Tensor | None = None,
) -> TopColumns:
    """The K best columns of answers·tableᵀ + bias and their log-softmax, exactly, in one pass over blocks of columns.

    answers: [B, E]; table: [V, E]; bias: [V]; k: scalar, at most V; block_cells: scores held at a time;
    excluded: [B, S] columns that are no candidates of a row, -1 for none: they come last and have no share.

    Of a block, the best K lie in the K groups of `GROUP` neighbouring columns with the greatest maxima: in any other
    group each column has K better ones, ties going to the smaller column in both steps. So only K·GROUP scores of W are
    sorted. The sum of exponentials is kept against the greatest score so far (Milakov & Gimelshein 2018).
    """
    n_rows, n_columns = tf.shape(answers)[0], tf.shape(table)[0]
    width = -(-block_cells // tf.maximum(n_rows, 1)) // GROUP * GROUP
    width = tf.maximum(width, GROUP)
    empty = _Running(
        tf.fill([n_rows, 0], -float("inf")),
        tf.zeros([n_rows, 0], tf.int32),
        tf.fill([n_rows, 1], -float("inf")),
        tf.zeros([n_rows, 1]),
    )

    def block(start: Tensor, *running: Tensor) -> list[Tensor]:
        stop = tf.minimum(start + width, n_columns)
        scores = tf.matmul(answers, table[start:stop], transpose_b=True) + bias[start:stop]  # [B, W]
        if excluded is not None:
            scores = without(scores, tf.where(excluded >= start, excluded - start, -1))
        return [stop, *_with_block(_Running(*running), scores, start, k)]

    shapes = [tf.TensorShape([]), *[tf.TensorShape([None, None])] * 2, *[tf.TensorShape([None, 1])] * 2]
    _, *found = tf.while_loop(
        lambda start, *_: start < n_columns, block, [0, *empty], shape_invariants=shapes, parallel_iterations=1
    )
    best = _Running(*found)
    return TopColumns(best.columns, best.scores - best.greatest - tf.math.log(best.total))


def _with_block(before: _Running, scores: Tensor, start: Tensor, k: Tensor) -> _Running:
    """What is known after one more block. scores: [B, W] of the columns from `start` on."""
    n_groups = -(-tf.shape(scores)[1] // GROUP)
    places, candidates = tf.cond(n_groups > k, lambda: _of_best_groups(scores, n_groups, k), lambda: _all(scores))
    # top_k gives the first among equals: earlier blocks, and within one the smaller column.
    candidates = tf.concat([before.scores, candidates], axis=1)
    columns = tf.concat([before.columns, start + places], axis=1)
    best, place = tf.math.top_k(candidates, tf.minimum(k, tf.shape(before.scores)[1] + tf.shape(scores)[1]))
    greatest = tf.maximum(before.greatest, tf.reduce_max(best, axis=-1, keepdims=True))
    total = before.total * tf.exp(before.greatest - greatest)
    total += tf.reduce_sum(tf.exp(scores - greatest), axis=-1, keepdims=True)
    return _Running(best, tf.gather(columns, place, batch_dims=1), greatest, total)


def _of_best_groups(scores: Tensor, n_groups: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Places and scores of the K groups with the greatest maxima, [B, K * GROUP] each, rising by place."""
    n_rows, missing = tf.shape(scores)[0], n_groups * GROUP - tf.shape(scores)[1]
    padded = tf.cond(
        missing > 0, lambda: tf.pad(scores, [[0, 0], [0, missing]], constant_values=-float("inf")), lambda: scores
    )
    groups = tf.reshape(padded, [-1, n_groups, GROUP])  # [B, G, GROUP]
    maxima = tf.reduce_max(groups, axis=-1)  # [B, G]
    chosen = tf.sort(tf.math.top_k(maxima, k, sorted=False).indices, axis=-1)  # [B, K] rising
    places = tf.reshape(chosen[:, :, None] * GROUP + tf.range(GROUP), [n_rows, -1])
    return places, tf.reshape(tf.gather(groups, chosen, batch_dims=1), [n_rows, -1])


def _all(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Places and scores of all columns, where there are so few that no group can be left out."""
    return tf.broadcast_to(tf.range(tf.shape(scores)[1]), tf.shape(scores)), scores
