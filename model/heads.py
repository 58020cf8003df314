"""Heads for the time ahead: weights by name, and what they answer of a hidden state.

`horizon`: categories of the events within each horizon; `touched`: which categories are touched at all; `when`:
hazard of the next session's start; `hour`: its hour of the week; `action`: the actions it holds. Each is a projection
of the hidden state; `when` knows the user's pace as well (model.pace). All but `when` are asked at an instant after
some silence, which scales and shifts the units first (FiLM, Perez et al. 2018, started as the identity); `when` is a
function of the silence by itself.

Letters: U units, C category_dim, D horizons, K bins, V ids of categories; … any leading dimensions.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features import columns as c
from model.draws import Tensor
from model.lookup import lookup
from model.pace import N_FEATURES
from model.spec import ACTION, HORIZON, HOUR, TOUCHED, WHEN, NetworkSpec, Sizes

HOUR_S = 3600
HOURS = 7 * 24
_START_HAZARD = -2.0  # logit; 12 % in every bin
_SEED = 977  # away from those of the other weights


class Heads:
    """The heads of one network; `names` are those it has."""

    def __init__(self, names: Sequence[str], spec: NetworkSpec, sizes: Sizes, seed: int) -> None:
        self.names = tuple(names)
        self.horizons_s = tuple(days * c.DAY_S for days in sizes.horizons_days)
        self.edges_s = np.array([0.0, *spec.return_bins_h]) * HOUR_S  # [K + 1]
        units, n_horizons, n_bins = spec.units, len(self.horizons_s), len(spec.return_bins_h)
        shapes: dict[str, list[int]] = {}
        for name in (HORIZON, TOUCHED):
            if name in names:
                shapes[f"{name}/projection"] = [n_horizons, units, spec.category_dim]
                shapes[f"{name}/bias"] = [n_horizons, sizes.categories]
        linear = {WHEN: n_bins, HOUR: HOURS, "hour/ahead": HOURS, ACTION: len(c.ACTIONS)}
        for name, width in linear.items():
            if name.split("/")[0] in names:
                shapes |= {f"{name}/projection": [units, width], f"{name}/bias": [width]}
        if WHEN in names:
            shapes["when/pace"] = [N_FEATURES, n_bins]
        if set(names) - {WHEN}:
            shapes |= {"silence/scale": [n_bins + 1, units], "silence/shift": [n_bins + 1, units]}
        self.weights: dict[str, Tensor] = {}
        for place, (name, shape) in enumerate(shapes.items()):
            is_projection = name.endswith("/projection")
            deviation = units**-0.5 if is_projection and name.split("/")[0] in (HORIZON, TOUCHED) else 0.0
            drawn = tf.random.stateless_normal(shape, [seed, _SEED + place], stddev=deviation)
            self.weights[name] = tf.Variable(drawn + (_START_HAZARD if name == "when/bias" else 0.0))

    def start(self, log_share: NDArray[np.float32]) -> None:
        """Start at popularity: every horizon's distribution is it, and one event is expected within. log_share: [V]."""
        for name in (HORIZON, TOUCHED):
            if name in self.names:
                bias = self.weights[f"{name}/bias"]
                bias.assign(np.broadcast_to(log_share, bias.shape))

    def asked(self, hidden: Tensor, silence_s: Tensor) -> Tensor:
        """The state as seen after a silence. hidden: […, U]; silence_s: […] int32 → […, U].

        The last bin goes on: training asks after no longer silence than its end (`ahead.landmarks`).
        """
        bucket = tf.reduce_sum(tf.cast(silence_s[..., None] >= self.edges_s[1:-1].astype(np.int32), tf.int32), axis=-1)
        scale, shift = (lookup(self.weights[f"silence/{name}"], bucket) for name in ("scale", "shift"))
        return hidden * (1.0 + scale) + shift

    def answer(self, name: str, horizon: int, asked: Tensor) -> tuple[Tensor, Tensor]:
        """HORIZON's or TOUCHED's vector in category space, and its bias by id. asked: […, U] → […, C], [V]."""
        return _product(asked, self.weights[f"{name}/projection"][horizon]), self.weights[f"{name}/bias"][horizon]

    def when(self, hidden: Tensor, pace: Tensor) -> Tensor:
        """Logits of the hazard in each bin. hidden: […, U]; pace: […, 2] features of model.pace → […, K]."""
        return self._linear(WHEN, hidden) + _product(pace, self.weights["when/pace"])

    def hour(self, asked: Tensor, now: Tensor) -> Tensor:
        """Logits of the hour of the week in which the next session starts. asked: [P, U]; now: [P] hour → [P, 168].

        By hour of the week, plus by hours from now: so "ten hours later" is one unit, whatever the time of asking.
        """
        from_now = (tf.range(HOURS)[None, :] - now[:, None]) % HOURS  # [P, 168]
        # Flat: the gradient of tf.gather with batch_dims has a wrong shape where there is no position.
        places = from_now + HOURS * tf.range(tf.shape(now)[0])[:, None]
        ahead = tf.gather(tf.reshape(self._linear("hour/ahead", asked), [-1]), places)  # [P, 168]
        return self._linear(HOUR, asked) + ahead

    def action(self, asked: Tensor) -> Tensor:
        """Logits that the next session holds each action. asked: […, U] → […, 5]."""
        return self._linear(ACTION, asked)

    def _linear(self, name: str, values: Tensor) -> Tensor:
        return _product(values, self.weights[f"{name}/projection"]) + self.weights[f"{name}/bias"]


def hour_at(hour_code: Tensor, silence_s: Tensor) -> Tensor:
    """Hour of the week, 0 for Monday 00:00, so long after an event, to the hour. → [P] int32."""
    return (hour_code - c.FIRST_HOUR + silence_s // HOUR_S) % HOURS


def _product(values: Tensor, matrix: Tensor) -> Tensor:
    return tf.tensordot(values, matrix, 1)
