"""What a training row says of the time after each of its positions: labels of the heads for the time ahead, in-graph.

Letters: B rows, L positions, A events ahead, S = L + A events of a row and behind it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from features import columns as c
from model.draws import Tensor, seed_at, uniform
from model.network import following
from model.spec import Sizes

_FAR_S = 2**30 - 1  # 34 years: two of them still add up within int32
_LEAST_SILENCE_S = 60.0
_SILENCE_SEED = 56  # place in a batch's stream of random numbers


class Timeline(NamedTuple):
    """The events of a row and behind it, and what lies ahead of each position. Seconds are whole, int32."""

    category: Tensor  # [B, S]
    action: Tensor  # [B, S]
    at_s: Tensor  # [B, S] seconds after the row's last event, negative within the row
    is_real: Tensor  # [B, S]
    since_s: Tensor  # [B, L, S] seconds from the position to the event
    is_ahead: Tensor  # [B, L, S] whether the event comes after the position; never for padding
    known_s: Tensor  # [B, L] seconds after the position of which everything is known
    next_s: Tensor  # [B, L] seconds to the next event, where has_next
    has_next: Tensor  # [B, L]
    is_end: Tensor  # [B, L] whether a session ends here, as far as is known: a new one follows, or nothing known does


def timeline(rows: Mapping[str, Tensor], sizes: Sizes) -> Timeline:
    """rows: as of model.batches."""
    n_positions, n_ahead = tf.shape(rows[c.ITEM])[1], tf.shape(rows[c.AHEAD])[1]
    length, ahead_length = rows[c.LENGTH][:, None], rows[c.AHEAD_LENGTH][:, None]
    places = tf.range(n_positions + n_ahead)
    here = places[None, :n_positions]  # [1, L]
    is_position = here < length  # [B, L]
    is_real = tf.concat([is_position, tf.range(n_ahead)[None, :] < ahead_length], axis=1)
    age_s, ahead_s = tf.minimum(rows[c.AGE], _FAR_S), tf.minimum(rows[c.AHEAD], _FAR_S)
    at_s = tf.concat([-age_s, ahead_s], axis=1)
    is_later = places[None, None, :] > here[:, :, None]  # [1, L, S]
    known_s = tf.minimum(rows[c.KNOWN], _FAR_S)[:, None] + age_s
    has_next = is_position & ((here < length - 1) | (ahead_length > 0))
    gaps = following(rows[c.GAP], rows[c.LENGTH], rows[c.NEXT_GAP])  # [B, L]
    may_end = (gaps >= sizes.new_session_gap) | (~has_next & (gaps < c.FIRST_GAP))
    return Timeline(
        category=tf.concat([rows[c.CATEGORY], rows[c.AHEAD_CATEGORY]], axis=1),
        action=tf.concat([rows[c.ACTION_CODE], rows[c.AHEAD_ACTION]], axis=1),
        at_s=at_s,
        is_real=is_real,
        since_s=at_s[:, None, :] + age_s[:, :, None],
        is_ahead=is_real[:, None, :] & is_position[:, :, None] & is_later,
        known_s=known_s,
        next_s=following(-age_s, rows[c.LENGTH], ahead_s[:, 0]) + age_s,
        has_next=has_next,
        is_end=is_position & may_end,
    )


def landmarks(times: Timeline, longest_s: float, seed: Tensor, first_row: Tensor) -> tuple[Tensor, Tensor]:
    """How long a user is silent when asked, drawn for every position, and whether that position is used → [B, L] each.

    Half the positions are asked at once (0 s), the others after a silence between a minute and `longest_s`, its
    logarithm uniform. A position is used where the next event had not come by then: the silence is drawn without a look
    at that event, so among those used at s are all that were silent for s, as a landmark needs (van Houwelingen 2007).
    """
    drawn = uniform(seed_at(seed, _SILENCE_SEED), first_row, tf.concat([tf.shape(times.known_s), [2]], axis=0))
    span = tf.math.log(longest_s / _LEAST_SILENCE_S)
    later_s = tf.cast(_LEAST_SILENCE_S * tf.exp(drawn[..., 1] * span), tf.int32)
    silence_s = tf.where(drawn[..., 0] < 0.5, 0, later_s)
    is_silent = silence_s < tf.where(times.has_next, times.next_s, times.known_s + 1)
    is_position = times.is_real[:, : tf.shape(times.known_s)[1]]
    return silence_s, is_position & (is_silent | (silence_s == 0))


def within(times: Timeline, silence_s: Tensor, horizon_s: int) -> tuple[Tensor, Tensor]:
    """Events of known categories within a horizon of each landmark, and where all of them are known.

    silence_s: [B, L] → [B, L, S], [B, L] bool.
    """
    until_s = silence_s + horizon_s
    is_known = (times.category >= c.FIRST_ID)[:, None, :]
    return times.is_ahead & is_known & (times.since_s <= until_s[..., None]), until_s <= times.known_s


def is_first(times: Timeline) -> Tensor:
    """Whether an event is the first of its category after a position → [B, L, S]; read it where the event is ahead."""
    n_events = tf.shape(times.category)[1]
    places = tf.range(n_events)
    is_same = (times.category[:, :, None] == times.category[:, None, :]) & times.is_real[:, None, :]
    is_before = places[None, :] < places[:, None]  # [S, S]
    before = tf.reduce_max(tf.where(is_same & is_before[None], places[None, None, :], -1), axis=2)  # [B, S]
    return before[:, None, :] <= tf.range(tf.shape(times.known_s)[1])[None, :, None]


def next_session_actions(times: Timeline, rows: Mapping[str, Tensor], sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Which actions the session after a position's own holds, and where that session is known whole.

    → [B, L, 5] float 0 or 1, [B, L] bool. A session is known whole when another follows, or a silence
    that ends one.
    """
    n_positions = tf.shape(times.known_s)[1]
    is_new = rows[c.GAP] >= sizes.new_session_gap  # [B, L]
    waits_s = tf.concat([rows[c.AHEAD][:, :1], rows[c.AHEAD][:, 1:] - rows[c.AHEAD][:, :-1]], axis=1)
    is_new_ahead = waits_s > sizes.session_gap_s  # [B, A]
    opens = (rows[c.NEXT_GAP] >= sizes.new_session_gap)[:, None] & (tf.range(tf.shape(waits_s)[1]) == 0)[None, :]
    starts = tf.concat([is_new, is_new_ahead | opens], axis=1) & times.is_real
    session = tf.cumsum(tf.cast(starts, tf.int32), axis=1)  # [B, S]
    last = session[:, -1:]
    last_at_s = tf.reduce_max(tf.where(times.is_real, times.at_s, -_FAR_S), axis=1)  # [B]
    is_over = tf.minimum(rows[c.KNOWN], _FAR_S) - last_at_s > sizes.session_gap_s  # [B]
    following_one = session[:, :n_positions] + 1  # [B, L]
    is_whole = (following_one < last) | ((following_one == last) & is_over[:, None])
    is_in = (session[:, None, :] == following_one[..., None]) & times.is_ahead  # [B, L, S]
    actions = tf.one_hot(times.action - c.FIRST_ID, len(c.ACTIONS))  # [B, S, 5], zeros for unknown ones
    n_events = tf.matmul(tf.cast(is_in, tf.float32), actions)
    return tf.cast(n_events > 0.5, tf.float32), is_whole
