"""Each cell against its textbook equations in NumPy, weights by hand; and what all of them promise."""

from itertools import count

import numpy as np
import pytest
import tensorflow as tf

from model.cells import Cell, Convolutions, Recurrent, make_cell, receptive_field
from tests.model import tables

CELLS = ("lstm", "gru", "rnn", "cnn")
B, L, W, H = 3, 9, 5, 4


def _cell(kind: str, width: int = W, length: int = L) -> Cell:
    """A cell whose weights, biases too, are all random."""
    spec = tables.NETWORK.model_copy(update={"cell": kind, "units": H})
    cell = make_cell(spec, width, length, count())
    rng = np.random.default_rng(0)
    for weight in cell.weights.values():
        weight.assign(rng.normal(0, 0.5, weight.shape))
    return cell


def _inputs(seed: int = 1, length: int = L) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (B, length, W)).astype(np.float32)


def _split(cell: Cell, n_gates: int) -> list[list[np.ndarray]]:
    return [np.split(weight.numpy(), n_gates, axis=-1) for weight in cell.weights.values()]


def test_the_lstm_is_the_textbook_one():
    cell, x = _cell("lstm"), _inputs()
    (W_i, W_f, W_g, W_o), (U_i, U_f, U_g, U_o), (b_i, b_f, b_g, b_o) = _split(cell, 4)
    found, state = cell(tf.constant(x)).numpy(), cell.run(tf.constant(x), tf.fill([B], L))[1]
    h, memory = np.zeros((B, H)), np.zeros((B, H))
    for t in range(L):
        i = _sigmoid(x[:, t] @ W_i + h @ U_i + b_i)
        f = _sigmoid(x[:, t] @ W_f + h @ U_f + b_f)
        g = np.tanh(x[:, t] @ W_g + h @ U_g + b_g)
        o = _sigmoid(x[:, t] @ W_o + h @ U_o + b_o)
        memory = f * memory + i * g
        h = o * np.tanh(memory)
        np.testing.assert_allclose(found[:, t], h, atol=1e-5)
    np.testing.assert_allclose(state[0], h, atol=1e-5)
    np.testing.assert_allclose(state[1], memory, atol=1e-5)


def test_the_gru_is_the_textbook_one_in_the_form_of_cudnn():
    cell, x = _cell("gru"), _inputs()
    (W_z, W_r, W_g), (U_z, U_r, U_g), biases = _split(cell, 3)
    (b_z, d_z), (b_r, d_r), (b_g, d_g) = biases
    found, h = cell(tf.constant(x)).numpy(), np.zeros((B, H))
    for t in range(L):
        z = _sigmoid(x[:, t] @ W_z + b_z + h @ U_z + d_z)
        r = _sigmoid(x[:, t] @ W_r + b_r + h @ U_r + d_r)
        g = np.tanh(x[:, t] @ W_g + b_g + r * (h @ U_g + d_g))
        h = z * h + (1 - z) * g
        np.testing.assert_allclose(found[:, t], h, atol=1e-5)


def test_the_rnn_is_the_textbook_one():
    cell, x = _cell("rnn"), _inputs()
    kernel, recurrent, bias = (weight.numpy() for weight in cell.weights.values())
    found, h = cell(tf.constant(x)).numpy(), np.zeros((B, H))
    for t in range(L):
        h = np.tanh(x[:, t] @ kernel + h @ recurrent + bias)
        np.testing.assert_allclose(found[:, t], h, atol=1e-5)


@pytest.mark.parametrize("width", [W, H])
def test_the_convolutions_are_the_residual_blocks_of_the_paper(width: int):
    """Position by position, tap by tap; with a matrix for the residual only where widths differ."""
    cell, x = _cell("cnn", width), _inputs()[..., :width]
    weights = {name: weight.numpy() for name, weight in cell.weights.items()}
    assert ("block_0/residual/kernel" in weights) == (width != H)
    assert "block_1/residual/kernel" not in weights

    def convolved(values: np.ndarray, name: str, dilation: int) -> np.ndarray:
        taps, bias = np.split(weights[f"{name}/kernel"], 3), weights[f"{name}/bias"]
        found = np.zeros((B, L, H)) + bias
        for t in range(L):
            for tap, matrix in enumerate(taps):
                at = t - (2 - tap) * dilation
                if at >= 0:
                    found[:, t] += values[:, at] @ matrix
        return np.maximum(found, 0.0)

    wanted = x
    for block in range(2):  # 1 + 2·2·(2² - 1) = 13 ≥ 9
        inner = convolved(convolved(wanted, f"block_{block}/first", 2**block), f"block_{block}/second", 2**block)
        residual = weights.get(f"block_{block}/residual/kernel")
        wanted = np.maximum((wanted if residual is None else wanted @ residual) + inner, 0.0)
    np.testing.assert_allclose(cell(tf.constant(x)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_gpu_has_the_layer_that_cudnn_runs_whole_with_the_same_weights_and_answers(
    kind: str, monkeypatch: pytest.MonkeyPatch
):
    """Keras's conditions: default activations, no recurrent dropout, no unrolling, a bias; a GRU's reset gate after."""
    x, length = tf.constant(_inputs()), tf.constant([0, 4, L])
    here = _cell(kind)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind])
    there = _cell(kind)
    assert isinstance(there, Recurrent)
    assert isinstance(there.layer, {"lstm": tf.keras.layers.LSTM, "gru": tf.keras.layers.GRU}[kind])
    assert there.layer._could_use_gpu_kernel
    assert [(n, w.shape) for n, w in there.weights.items()] == [(n, w.shape) for n, w in here.weights.items()]
    (outputs, state), (expected, reached) = (cell.run(x, length) for cell in (there, here))
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    for part, wanted in zip(state, reached, strict=True):
        np.testing.assert_allclose(part, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", CELLS)
def test_no_output_depends_on_a_later_input(kind: str):
    cell, x = _cell(kind), _inputs()
    before = cell(tf.constant(x)).numpy()
    for t in range(1, L):
        changed = np.concatenate([x[:, :t], _inputs(seed=t + 9)[:, t:]], axis=1)
        after = cell(tf.constant(changed)).numpy()
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.abs(after[:, t:] - before[:, t:]).max() > 1e-3


def test_the_last_output_of_the_convolutions_depends_on_a_whole_row_and_on_no_more_blocks_than_that_takes():
    assert [receptive_field(3, n) for n in (1, 2, 3, 4)] == [5, 13, 29, 61]
    cell = _cell("cnn", length=50)
    assert len({name.split("/")[0] for name in cell.weights}) == 4
    rows = np.abs(_inputs(length=61))
    for name, weight in cell.weights.items():  # positive weights: no rectifier hides an input
        weight.assign(np.abs(weight) * (0.1 if name.endswith("kernel") else 1.0))
    x = tf.Variable(rows)
    with tf.GradientTape() as tape:
        last = tf.reduce_sum(cell(x)[:, -1])
    assert (np.abs(tape.gradient(last, x).numpy()).max(axis=(0, 2)) > 0).all()


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_a_row_cut_in_two_goes_on_from_its_state(kind: str):
    cell, x = _cell(kind), tf.constant(_inputs())
    length = tf.constant([0, 3, 5])
    outputs, state = cell.run(x[:, :5], length)
    whole = cell(x).numpy()
    for row, n in enumerate(length.numpy()):
        np.testing.assert_allclose(outputs[row, :n], whole[row, :n], atol=1e-6)
        rest = cell(x[row : row + 1, n:], tuple(part[row : row + 1] for part in state)).numpy()
        np.testing.assert_allclose(rest[0], whole[row, n:], atol=1e-6)
    for part, zeros in zip(state, cell.zero_state(B), strict=True):
        np.testing.assert_array_equal(part[0], zeros[0])
        assert np.abs(part[1:]).max() > 1e-3
    _, later = cell.run(x[:, 5:], tf.constant([0, 0, 2]), state)
    for part, after in zip(state, later, strict=True):
        np.testing.assert_allclose(after[:2], part[:2], atol=1e-6)
        assert np.abs(after[2] - part[2]).max() > 1e-3


def test_the_convolutions_refuse_a_state():
    cell = _cell("cnn")
    assert isinstance(cell, Convolutions)
    with pytest.raises(ValueError, match="cnn keeps no state"):
        cell(tf.constant(_inputs()), (tf.zeros([B, H]),))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
