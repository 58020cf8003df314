"""What the heads for the time ahead say of a state: logits into probabilities, in-graph.

Letters: B rows, U units, D horizons, V ids of categories (PAD and OOV included, probability 0), K bins.
"""

import tensorflow as tf

from features import columns as c
from model.draws import Tensor
from model.head_losses import rate
from model.heads import hour_at
from model.network import Network
from model.spec import ACTION, HORIZON, HOUR, TOUCHED, WHEN

_LEAST = 1e-6  # hazards stay as far from 0 and 1, where a logarithm would end


def outlook(network: Network, state: Tensor, hour_code: Tensor, silence_s: Tensor) -> dict[str, Tensor]:
    """Fields of `predict.Future` by name, of the heads that the network has; `hazards` for `when`.

    state: [B, Z]; hour_code: [B] of the newest event; silence_s: [B] since it.
    """
    heads, hidden = network.heads, network.newest(state)
    found: dict[str, Tensor] = {}
    asked = heads.asked(hidden, silence_s) if set(heads.names) - {WHEN} else hidden
    if HORIZON in heads.names:
        logits = _category_logits(network, HORIZON, asked)
        found["interests"] = _with_reserved(tf.nn.softmax(logits))
    if TOUCHED in heads.names:
        found["touched"] = _with_reserved(-tf.math.expm1(-rate(_category_logits(network, TOUCHED, asked))))
    if WHEN in heads.names:
        found["hazards"] = hazards_of(network, state)
    if HOUR in heads.names:
        found["hour"] = tf.nn.softmax(heads.hour(asked, hour_at(hour_code, silence_s)))
    if ACTION in heads.names:
        found["actions"] = tf.sigmoid(heads.action(asked))
    return found


def hazards_of(network: Network, state: Tensor) -> Tensor:
    """Hazard of the next session's start in each bin; needs the head `when`. state: [B, Z] → [B, K]."""
    return tf.clip_by_value(
        tf.sigmoid(network.heads.when(network.newest(state), network.pace(state))), _LEAST, 1.0 - _LEAST
    )


def _category_logits(network: Network, name: str, asked: Tensor) -> Tensor:
    """Scores of all known categories at every horizon → [B, D, V - 2]."""
    table, _ = network.output_table(c.CATEGORY)
    scores = []
    for at in range(len(network.heads.horizons_s)):
        answers, bias = network.heads.answer(name, at, asked)
        scores.append(tf.matmul(answers, table, transpose_b=True) + bias[c.FIRST_ID :])
    return tf.stack(scores, axis=1)


def _with_reserved(known: Tensor) -> Tensor:
    return tf.pad(known, [[0, 0], [0, 0], [c.FIRST_ID, 0]])
