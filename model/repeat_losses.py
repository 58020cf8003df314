"""What a training position costs with `network.repeat`, beside the softmax over new ids (model.repeats).

Letters: B rows, L positions, P positions with a target, H units, E item_dim, C category_dim.
"""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from features import columns as c
from model.losses import Negatives, columns_among
from model.network import Network, Tensor
from model.repeats import NOWHERE, seen


class Division(NamedTuple):
    """Of each position's target, whether it repeats one of the row's ids so far or is new."""

    log_p: Tensor  # [P] log-probability of the right mode and, where it repeats, of the target within it
    is_new: Tensor  # [P] 1.0 or 0.0
    columns: Tensor  # [P, L] columns of the softmax over new ids that are not new, -1 for none


def divided(
    network: Network,
    kind: str,
    rows: Mapping[str, Tensor],
    asked: Tensor,
    answers: Tensor,
    targets: Tensor,
    place: Tensor,
    drawn: Negatives | None,
) -> Division:
    """How targets divide. −log P(target) = −log_p − is_new · log of its share in the softmax over new ids.

    asked: [B, L, H] states as the query sees them; answers: [B, L, E or C]; targets: [B, L] ids; place: [P, 2]
    positions that have one; drawn: the distinct negatives whose columns a sampled softmax has.
    """
    ids = rows[kind]
    past = seen(ids, rows[c.ACTION_CODE])
    modes = network.repeats[kind].everywhere(asked, network.held_scores(kind, answers, ids), past)
    counts = modes.places > NOWHERE / 2  # [B, L, L]
    is_next = counts & (ids[:, None, :] == targets[:, :, None])
    is_new = ~tf.reduce_any(is_next, axis=-1)  # [B, L]
    log_place = tf.reduce_sum(tf.where(is_next, modes.places, 0.0), axis=-1)
    columns = ids - c.FIRST_ID if drawn is None else columns_among(ids, drawn)  # [B, L]
    found = Division(
        tf.where(is_new, modes.explores, modes.repeats + log_place),
        tf.cast(is_new, tf.float32),
        tf.where(counts, columns[:, None, :], -1),
    )
    return Division(*(tf.gather_nd(values, place) for values in found))
