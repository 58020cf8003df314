"""How weights move: Adam, penalties on their size, and their average over the steps.

All state is named, so that a checkpoint can hold it and ranks can agree on it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from model.network import Tensor

BETA_1, BETA_2 = 0.9, 0.999


class Adam:
    """Adam (Kingma & Ba 2015) by TensorFlow's fused kernel, with decoupled weight decay (Loshchilov & Hutter 2019).

    Decay leaves biases, layer norms and the query tables alone. A sparse gradient (IndexedSlices, each row named once)
    moves only the rows it names, moments included: "lazy" Adam, whose cost does not grow with the vocabulary.
    """

    def __init__(self, weights: Mapping[str, Tensor], epsilon: float, weight_decay: float) -> None:
        self._weights = dict(weights)
        self._epsilon = epsilon
        self._weight_decay = weight_decay
        self._first = {name: tf.Variable(tf.zeros_like(weight)) for name, weight in self._weights.items()}
        self._second = {name: tf.Variable(tf.zeros_like(weight)) for name, weight in self._weights.items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """Both moments of every weight, under stable names."""
        return {f"first/{name}": value for name, value in self._first.items()} | {
            f"second/{name}": value for name, value in self._second.items()
        }

    def apply(self, gradients: Mapping[str, Tensor], learning_rate: Tensor, step: Tensor) -> None:
        """Move every weight once. step: 1 for the first update. Called inside the step's graph."""
        count = tf.cast(step, tf.float32)
        power_1, power_2 = tf.pow(BETA_1, count), tf.pow(BETA_2, count)
        for name, gradient in gradients.items():
            decay = learning_rate * self._weight_decay if _is_decayed(name) and self._weight_decay > 0 else None
            if isinstance(gradient, tf.IndexedSlices):
                self._apply_rows(name, gradient, learning_rate, power_1, power_2, decay)
            else:
                self._apply_all(name, gradient, learning_rate, power_1, power_2, decay)

    def _apply_all(
        self, name: str, gradient: Tensor, rate: Tensor, power_1: Tensor, power_2: Tensor, decay: Any
    ) -> None:
        weight = self._weights[name]
        if decay is not None:
            weight.assign_sub(decay * weight)
        tf.raw_ops.ResourceApplyAdam(
            var=weight.handle,
            m=self._first[name].handle,
            v=self._second[name].handle,
            beta1_power=power_1,
            beta2_power=power_2,
            lr=rate,
            beta1=BETA_1,
            beta2=BETA_2,
            epsilon=self._epsilon,
            grad=gradient,
        )

    def _apply_rows(
        self, name: str, gradient: Tensor, rate: Tensor, power_1: Tensor, power_2: Tensor, decay: Any
    ) -> None:
        weight, first, second = self._weights[name], self._first[name], self._second[name]
        rows, total = gradient.indices, gradient.values
        m = BETA_1 * tf.gather(first, rows) + (1 - BETA_1) * total
        v = BETA_2 * tf.gather(second, rows) + (1 - BETA_2) * tf.square(total)
        move = rate * tf.sqrt(1 - power_2) / (1 - power_1) * m / (tf.sqrt(v) + self._epsilon)
        if decay is not None:
            move += decay * tf.gather(weight, rows)
        first.scatter_update(tf.IndexedSlices(m, rows))
        second.scatter_update(tf.IndexedSlices(v, rows))
        weight.scatter_sub(tf.IndexedSlices(move, rows))


class Averages:
    """Exponential moving averages of the weights (Polyak & Juditsky 1992; with the correction of Kingma & Ba 2015).

    After step t: A ← d·A + (1 - d)·w, from A = 0; what is evaluated and handed on is A / (1 - d^t), a mean of the
    weights so far in which the newest weigh most. It moves less than the weights do, and usually generalises better.
    Every weight is read and its average written in every step, rows that the step did not touch too.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        """decay: d, 0..1; 0 keeps no averages, and the weights themselves are what is evaluated."""
        self._weights = dict(weights)
        self._decay = decay
        self.state = {name: tf.Variable(tf.zeros_like(weight)) for name, weight in weights.items() if decay > 0.0}

    def update(self) -> None:
        """Take in the weights once. Called inside the step's graph, after they moved."""
        for name, average in self.state.items():
            average.assign_add((1.0 - self._decay) * (self._weights[name] - average))

    @contextmanager
    def in_place(self, step: int) -> Iterator[None]:
        """Within it the weights are their averages after `step` steps; after it they are themselves again."""
        own = {name: tf.identity(self._weights[name]) for name in self.state}
        for name, average in self.state.items():
            self._weights[name].assign(average / (1.0 - self._decay**step))
        try:
            yield
        finally:
            for name, weight in own.items():
                self._weights[name].assign(weight)


def penalised(weights: Mapping[str, Tensor], gradients: Sequence[Any], l1: float, l2: float) -> list[Any]:
    """Gradients of the loss + Σ l1·|w| + l2·w² over the kernels: all but embeddings, queries, silences and norms.

    In the order of the weights. Adam divides this by the size of the gradient as it does the loss's, unlike the
    decoupled `weight_decay`. At a weight of 0 the gradient of |w| is taken as 0.
    """
    if l1 == 0.0 and l2 == 0.0:
        return list(gradients)
    return [
        gradient + l1 * tf.sign(weight) + 2.0 * l2 * weight if _is_kernel(name) else gradient
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    ]


def _is_decayed(name: str) -> bool:
    return not name.endswith(("/bias", "/scale")) and not name.startswith(("query/", "silence/", "norm_"))


def _is_kernel(name: str) -> bool:
    return _is_decayed(name) and not name.startswith("embedding/")
