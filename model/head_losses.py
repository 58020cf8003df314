"""Losses of the heads for the time ahead, each summed over the positions that have a label.

Letters: B rows, L positions, S = L + A events of a row and behind it, P gathered positions, C category_dim, V known
categories, D horizons, K bins.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from features import columns as c
from model.ahead import Timeline, is_first, landmarks, next_session_actions, timeline, within
from model.draws import Tensor
from model.heads import hour_at
from model.lookup import lookup
from model.losses import log_partition
from model.network import Network, following
from model.spec import ACTION, HORIZON, HOUR, TOUCHED, WHEN

# From this logarithm on a rate grows linearly with it, not exponentially: e⁵ events leave no doubt of one, and a
# gradient stays below e⁵.
_STEEPEST = 5.0
_PIECE_SCORES = 1 << 19  # scores held at a time, as in model.losses
_SMALL_RATE = 1e-3


def head_losses(
    network: Network, rows: Mapping[str, Tensor], hidden: Tensor, seed: Tensor, first_row: Tensor
) -> dict[str, Tensor]:
    """Loss of each head of the network, summed over positions; those over horizons are the mean over these.

    rows: as of model.batches, what was hidden from the network included; hidden: [B, L, U]; seed and first_row: as for
    `Network.encode`. Session ends are asked at silence 0 (`when`) or at the landmark drawn for them (`hour`, `action`).
    """
    heads = network.heads
    found: dict[str, Tensor] = {}
    times = timeline(rows, network.sizes)
    silence_s, is_used = landmarks(times, float(heads.edges_s[-1]), seed, first_row)
    if {HORIZON, TOUCHED} & set(heads.names):
        found |= _horizon_losses(network, times, hidden, silence_s, is_used)
    if WHEN in heads.names:
        found[WHEN] = _when(network, rows, times, hidden)
    if {HOUR, ACTION} & set(heads.names):
        found |= _session_losses(network, rows, times, hidden, silence_s, is_used)
    return found


def _horizon_losses(
    network: Network, times: Timeline, hidden: Tensor, silence_s: Tensor, is_used: Tensor
) -> dict[str, Tensor]:
    heads = network.heads
    asked = heads.asked(hidden, silence_s)  # [B, L, U]
    rows = network.embed(c.CATEGORY, times.category)  # [B, S, C]
    first = is_first(times) if TOUCHED in heads.names else None
    found = {name: tf.constant(0.0) for name in (HORIZON, TOUCHED) if name in heads.names}
    for at, horizon_s in enumerate(heads.horizons_s):
        events, is_whole = within(times, silence_s, horizon_s)  # [B, L, S], [B, L]
        is_whole &= is_used
        if HORIZON in found:
            found[HORIZON] += _shares(network, at, asked, times, rows, events, is_whole)
        if first is not None:
            found[TOUCHED] += _touches(network, at, asked, times, rows, events & first, is_whole)
    return {name: loss / len(heads.horizons_s) for name, loss in found.items()}


def _shares(
    network: Network,
    at: int,
    asked: Tensor,
    times: Timeline,
    rows: Tensor,
    events: Tensor,
    is_whole: Tensor,
) -> Tensor:
    """Cross-entropy of the shares of categories within a horizon: lse(z) − Σ_s z[cat_s] / n over its n events.

    A position counts once, whether much follows or little; one without events has no shares and costs nothing. At
    random weights: log V a position.
    """
    answers, bias = network.heads.answer(HORIZON, at, asked)  # [B, L, C], [V + 2]
    n_events = tf.reduce_sum(tf.cast(events, tf.float32), axis=-1)  # [B, L]
    is_label = is_whole & (n_events > 0.0)
    share = tf.where(events & is_label[..., None], 1.0 / tf.maximum(n_events, 1.0)[..., None], 0.0)  # [B, L, S]
    # The own scores are linear: Σ_s share_s · (a·r_s + o_s) = a · Σ_s share_s · r_s + …
    own = tf.reduce_sum(answers * tf.matmul(share, rows))
    own += tf.reduce_sum(tf.reduce_sum(share, axis=1) * lookup(bias, times.category))
    asking = tf.boolean_mask(answers, is_label)  # [P, C]
    table, _ = network.output_table(c.CATEGORY)
    return log_partition(asking, table, bias[c.FIRST_ID :], tf.ones_like(asking[:, 0])) - own


def _touches(
    network: Network,
    at: int,
    asked: Tensor,
    times: Timeline,
    rows: Tensor,
    touched: Tensor,
    is_whole: Tensor,
) -> Tensor:
    """Negative log-likelihood of which categories occur within a horizon: Σ_c λ_c − Σ_touched log(exp(λ_c) − 1).

    Bernoulli with P = 1 − exp(−λ), the complementary log-log link (McCullagh & Nelder 1989, section 4.3): a Poisson
    count of rate λ is not 0. touched: [B, L, S], each category's first event. At scores of 0, λ = 1: V − 0.54 for
    each touched category, a position.
    """
    answers, bias = network.heads.answer(TOUCHED, at, asked)  # [B, L, C], [V + 2]
    scores = tf.matmul(answers, rows, transpose_b=True) + lookup(bias, times.category)[:, None, :]  # [B, L, S]
    is_label = touched & is_whole[..., None]
    own = tf.reduce_sum(log_expm1(tf.boolean_mask(scores, is_label)))
    table, _ = network.output_table(c.CATEGORY)
    return rate_sum(tf.boolean_mask(answers, is_whole), table, bias[c.FIRST_ID :]) - own


def rate(scores: Tensor) -> Tensor:
    """λ from its logarithm: exp, and its tangent from e⁵ on. Any shape."""
    return tf.exp(tf.minimum(scores, _STEEPEST)) * (1.0 + tf.nn.relu(scores - _STEEPEST))


def log_expm1(scores: Tensor) -> Tensor:
    """log(exp(λ) − 1) of scores log λ = λ + log(1 − exp(−λ)), with finite gradients at any score. Any shape."""
    rates = rate(scores)
    is_small = rates < _SMALL_RATE
    large = tf.where(is_small, 1.0, rates)
    # (exp(λ) − 1) / λ = 1 + λ/2 + λ²/6 + …
    return tf.where(is_small, scores + rates / 2.0, large + tf.math.log(-tf.math.expm1(-large)))


def rate_sum(answers: Tensor, rows: Tensor, offset: Tensor) -> Tensor:
    """Σ_p Σ_v rate(a_p·r_v + o_v) → one number. answers: [P, C]; rows: [V, C]; offset: [V].

    In pieces of positions whose gradients are made at once, as `losses.log_partition`: nothing of size P × V is kept.
    """
    n_positions, n_rows = tf.shape(answers)[0], tf.shape(rows)[0]
    piece = tf.maximum(1, _PIECE_SCORES // n_rows)
    n_pieces = (n_positions + piece - 1) // piece

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def total(answers: Tensor, rows: Tensor, offset: Tensor) -> tuple[Tensor, object]:
        def step(at: Tensor, loss: Tensor, d_rows: Tensor, d_offset: Tensor, d_answers: Tensor) -> tuple[Tensor, ...]:
            asked = answers[at * piece : at * piece + piece]  # [p, C]
            scores = tf.matmul(asked, rows, transpose_b=True) + offset  # [p, V]
            slope = tf.exp(tf.minimum(scores, _STEEPEST))
            loss += tf.reduce_sum(slope * (1.0 + tf.nn.relu(scores - _STEEPEST)))
            d_rows += tf.matmul(slope, asked, transpose_a=True)
            d_offset += tf.reduce_sum(slope, axis=0)
            return at + 1, loss, d_rows, d_offset, d_answers.write(at, tf.matmul(slope, rows))

        pieces = tf.TensorArray(tf.float32, n_pieces, infer_shape=False, element_shape=[None, answers.shape[1]])
        first = (0, tf.constant(0.0), tf.zeros_like(rows), tf.zeros_like(offset), pieces)
        _, loss, d_rows, d_offset, d_answers = tf.while_loop(
            lambda at, *_: at < n_pieces, step, first, parallel_iterations=1
        )
        d_answers = d_answers.concat()

        def gradient(upstream: Tensor) -> tuple[Tensor, ...]:
            return upstream * d_answers, upstream * d_rows, upstream * d_offset

        return loss, gradient

    return total(answers, tf.convert_to_tensor(rows), offset)


def _when(network: Network, rows: Mapping[str, Tensor], times: Timeline, hidden: Tensor) -> Tensor:
    """Negative log-likelihood of the bin in which the next session starts, at session ends.

    Seen in bin k: −log h_k − Σ_{j<k} log(1 − h_j). Not seen by the end of what is known, or later than the last edge:
    −Σ_j x_j·log(1 − h_j), x_j the share of bin j that passed: the rate within a bin is constant (model.returns).
    """
    place = tf.where(times.is_end)  # [P, 2]
    is_event = times.is_real[:, : tf.shape(rows[c.GAP])[1]]
    pace = tf.gather_nd(network.paces(rows[c.GAP], is_event), place)  # [P, 2]
    logits = network.heads.when(tf.gather_nd(hidden, place), pace)  # [P, K]
    edges_s = network.heads.edges_s.astype(np.float32)
    start, end = edges_s[:-1], edges_s[1:]
    is_seen = tf.gather_nd(times.has_next, place)[:, None]  # [P, 1]
    time_s = tf.gather_nd(tf.where(times.has_next, times.next_s, times.known_s), place)
    time_s = tf.cast(time_s, tf.float32)[:, None]  # [P, 1]
    passed = tf.clip_by_value((time_s - start) / (end - start), 0.0, 1.0)  # [P, K]
    is_own = is_seen & (time_s <= end) & ((time_s > start) | (start == 0.0))
    passed = tf.where(is_own, 0.0, passed)
    return tf.reduce_sum(passed * tf.nn.softplus(logits) + tf.where(is_own, tf.nn.softplus(-logits), 0.0))


def _session_losses(
    network: Network, rows: Mapping[str, Tensor], times: Timeline, hidden: Tensor, silence_s: Tensor, is_used: Tensor
) -> dict[str, Tensor]:
    """Cross-entropies of the next session's hour of the week (at random weights log 168) and actions (5 log 2).

    The hour is that of the event after the position, so a row's last position, whose next event lies behind the row,
    has none.
    """
    place = tf.where(times.is_end & times.has_next & is_used)  # [P, 2]
    silence_s = tf.gather_nd(silence_s, place)  # [P]
    asked = network.heads.asked(tf.gather_nd(hidden, place), silence_s)  # [P, U]
    found: dict[str, Tensor] = {}
    if HOUR in network.heads.names:
        hour = tf.gather_nd(following(rows[c.HOUR], rows[c.LENGTH], tf.zeros_like(rows[c.LENGTH])), place)  # [P]
        logits = network.heads.hour(asked, hour_at(tf.gather_nd(rows[c.HOUR], place), silence_s))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(hour - c.FIRST_HOUR, 0), logits)
        found[HOUR] = tf.reduce_sum(tf.where(hour >= c.FIRST_HOUR, losses, 0.0))
    if ACTION in network.heads.names:
        labels, is_whole = (tf.gather_nd(of, place) for of in next_session_actions(times, rows, network.sizes))
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, network.heads.action(asked))  # [P, 5]
        found[ACTION] = tf.reduce_sum(tf.where(is_whole[:, None], losses, 0.0))
    return found
