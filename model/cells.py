"""The layers that turn a sequence of inputs into a sequence of states: LSTM, GRU, plain RNN, causal convolutions.

All have one form: inputs [B, L, W] → [B, L, H], where no output depends on a later input. So rows that are padded on
the right need no mask: outputs in the padding mean nothing, and nobody reads them.

Letters: B rows, L positions, W numbers of an input, H units, K positions that a convolution sees.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Protocol

import tensorflow as tf
from tensorflow import keras

from model.spec import NetworkSpec

Tensor = Any  # TensorFlow 2.15 carries no types
State = tuple[Tensor, ...]  # [B, H] each: h of a GRU or RNN; h and c of an LSTM

_FUSED = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}  # by cuDNN, which has the whole layer in one call
_STEPS = {"lstm": keras.layers.LSTMCell, "gru": keras.layers.GRUCell, "rnn": keras.layers.SimpleRNNCell}
_N_STATES = {"lstm": 2, "gru": 1, "rnn": 1}


class Cell(Protocol):
    """One layer over time."""

    n_states: int  # vectors of H numbers that its state has; 0 where it keeps none

    @property
    def weights(self) -> dict[str, Tensor]:
        """Its variables under stable names, in a fixed order."""

    def __call__(self, inputs: Tensor, initial_state: State | None = None) -> Tensor:
        """Output after every position. inputs: [B, L, W] → [B, L, H]. Without a state rows start from zeros."""


def make_cell(spec: NetworkSpec, width: int, length: int, seeds: Iterator[int]) -> Cell:
    """The cell that the spec names, for inputs of `width` numbers and rows of `length` events."""
    if spec.cell == "cnn":
        return Convolutions(width, spec.units, spec.cnn_kernel, length, seeds)
    return Recurrent(spec.cell, width, spec.units, seeds)


class Recurrent:
    """Keras's own LSTM, GRU or RNN with nothing that keeps cuDNN away from the first two where there is a GPU.

    LSTM (Hochreiter & Schmidhuber 1997, forget gates of Gers et al. 2000), σ the logistic function:
    i, f, o = σ(x W + h U + b) each with its own W, U, b; g = tanh(x W + h U + b); c' = f·c + i·g; h' = o·tanh(c').

    GRU (Cho et al. 2014, in cuDNN's form, where the reset gate meets the product): z, r = σ(x W + b + h U + d) each
    with its own; g = tanh(x W + b + r·(h U + d)); h' = z·h + (1 - z)·g.

    RNN (Elman 1990): h' = tanh(x W + h U + b).
    """

    def __init__(self, kind: str, width: int, units: int, seeds: Iterator[int]) -> None:
        """kind: lstm, gru or rnn. seeds: of the input weights (Glorot uniform) and the recurrent ones (orthogonal)."""
        initializers = {
            "kernel_initializer": keras.initializers.GlorotUniform(next(seeds)),
            "recurrent_initializer": keras.initializers.Orthogonal(seed=next(seeds)),
        }
        whole = {"return_sequences": True, "return_state": True}
        if kind in _FUSED and tf.config.get_visible_devices("GPU"):
            self.layer = _FUSED[kind](units, **whole, **initializers)
        else:  # the fused layer brings both of its forms into every graph, which takes a second to build
            self.layer = keras.layers.RNN(_STEPS[kind](units, **initializers), **whole)
        self.layer.build((None, None, width))
        self._units = units
        self.n_states = _N_STATES[kind]

    @property
    def weights(self) -> dict[str, Tensor]:
        """See Cell."""
        return dict(zip(("kernel", "recurrent", "bias"), self.layer.trainable_variables, strict=True))

    def __call__(self, inputs: Tensor, initial_state: State | None = None) -> Tensor:
        """See Cell."""
        return self._run(inputs, initial_state)[0]

    def run(self, inputs: Tensor, length: Tensor, initial_state: State | None = None) -> tuple[Tensor, State]:
        """Outputs as above, and each row's state after `length` of its positions. length: [B] → [B, L, H], the state.

        A row of length 0 keeps the state that it had. The mask that this takes costs time: not for training.
        """
        mask = tf.sequence_mask(length, tf.shape(inputs)[1])
        outputs, *state = self._run(inputs, initial_state, mask=mask)
        return outputs, tuple(state)

    def zero_state(self, n_rows: Tensor) -> State:
        """The state before a first event."""
        return tuple(tf.zeros([n_rows, self._units]) for _ in range(self.n_states))

    def _run(self, inputs: Tensor, state: State | None, **options: Tensor) -> Sequence[Tensor]:
        found: Sequence[Tensor] = self.layer(inputs, initial_state=None if state is None else list(state), **options)
        return found


class Convolutions:
    """Causal dilated convolutions with residuals (TCN, Bai et al. 2018), as many as it takes to see a whole row.

    Block b: x' = relu(r(x) + u), u = relu(conv(relu(conv(x)))); convolutions of `kernel` positions, 2^b apart, the
    last the position itself; r the identity, or a matrix where W is not H. n blocks see 1 + 2·(kernel - 1)·(2^n - 1)
    positions. Two things are not as in the paper: no weight normalisation, against which a penalty on the
    weights' size would be without effect, and dropout as every cell here has it, outside. It keeps no state: to go on
    with a row means to read it again.
    """

    def __init__(self, width: int, units: int, kernel: int, length: int, seeds: Iterator[int]) -> None:
        """length: positions that an output must be able to see."""
        self.n_states = 0
        self._kernel = kernel
        self._n_blocks = next(n for n in count(1) if receptive_field(kernel, n) >= length)
        self._weights: dict[str, Tensor] = {}
        for block in range(self._n_blocks):
            for name, n_inputs in (("first", width), ("second", units)):
                self._weights |= {
                    f"block_{block}/{name}/kernel": _normal((kernel * n_inputs, units), next(seeds)),
                    f"block_{block}/{name}/bias": tf.Variable(tf.zeros([units])),
                }
            if width != units:
                self._weights[f"block_{block}/residual/kernel"] = _normal((width, units), next(seeds), gain=1.0)
            width = units

    @property
    def weights(self) -> dict[str, Tensor]:
        """See Cell."""
        return dict(self._weights)

    def __call__(self, inputs: Tensor, initial_state: State | None = None) -> Tensor:
        """See Cell.

        Raises:
            ValueError: there is a state.
        """
        if initial_state is not None:
            raise ValueError("network.cell = cnn keeps no state; give it whole rows, or take lstm, gru or rnn")
        hidden = inputs
        for block in range(self._n_blocks):
            inner = self._convolved(hidden, f"block_{block}/first", 2**block)
            inner = self._convolved(inner, f"block_{block}/second", 2**block)
            residual = self._weights.get(f"block_{block}/residual/kernel")
            hidden = tf.nn.relu((hidden if residual is None else tf.matmul(hidden, residual)) + inner)
        return hidden

    def _convolved(self, values: Tensor, name: str, dilation: int) -> Tensor:
        # One matrix product over shifted copies: TensorFlow has no gradient of dilated convolutions for CPUs, and moves
        # rows about instead.
        length = tf.shape(values)[1]
        behind = tf.pad(values, [[0, 0], [(self._kernel - 1) * dilation, 0], [0, 0]])
        seen = tf.concat([behind[:, tap * dilation : tap * dilation + length] for tap in range(self._kernel)], axis=-1)
        return tf.nn.relu(tf.matmul(seen, self._weights[f"{name}/kernel"]) + self._weights[f"{name}/bias"])


def receptive_field(kernel: int, n_blocks: int) -> int:
    """Positions that an output of `n_blocks` blocks depends on, its own among them."""
    return 1 + 2 * (kernel - 1) * ((1 << n_blocks) - 1)


def _normal(shape: tuple[int, int], seed: int, gain: float = 2.0) -> Tensor:
    """Normal, of variance gain / inputs: 2 keeps the variance through a rectifier (He et al. 2015)."""
    return tf.Variable(tf.random.stateless_normal(shape, [seed, 0], stddev=(gain / shape[0]) ** 0.5))
