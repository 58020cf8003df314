import numpy as np
import pytest
import tensorflow as tf

from features import columns as c
from model.network import (
    QUERY_NEW_SESSION,
    QUERY_SAME_SESSION,
    QUERY_UNKNOWN,
    Network,
    following,
    training_query,
)
from tests.model import tables


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(tables.NETWORK, tables.SIZES, seed=3)


def _batch(n_rows: int = 6) -> dict[str, tf.Tensor]:
    return {name: tf.constant(values) for name, values in tables.ruled_rows(n_rows, seed=5).items()}


def test_the_recurrent_layer_is_the_textbook_lstm():
    """Hochreiter & Schmidhuber 1997 with forget gates (Gers et al. 2000), gate by gate in NumPy, weights by hand."""
    spec = tables.NETWORK.model_copy(update={"units": 3})
    network = Network(spec, tables.SIZES)
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0, 0.5, weight.shape).astype(np.float32) for name, weight in network.weights.items()}
    network.set_weights(weights)
    batch = _batch(2)
    found = network.encode(batch).numpy()

    kernel, recurrent, bias = (weights[f"lstm_0/{part}"] for part in ("kernel", "recurrent", "bias"))
    W_i, W_f, W_g, W_o = np.split(kernel, 4, axis=1)
    U_i, U_f, U_g, U_o = np.split(recurrent, 4, axis=1)
    b_i, b_f, b_g, b_o = np.split(bias, 4)
    for row in range(2):
        h, cell = np.zeros(3), np.zeros(3)
        for t in range(int(batch[c.LENGTH][row])):
            x = np.concatenate([weights[f"embedding/{name}"][batch[name][row, t]] for name in c.CHANNELS])
            i = _sigmoid(x @ W_i + h @ U_i + b_i)
            f = _sigmoid(x @ W_f + h @ U_f + b_f)
            g = np.tanh(x @ W_g + h @ U_g + b_g)
            o = _sigmoid(x @ W_o + h @ U_o + b_o)
            cell = f * cell + i * g
            h = o * np.tanh(cell)
            np.testing.assert_allclose(found[row, t], h, atol=1e-5)


def test_what_lies_in_the_padding_changes_nothing(network: Network):
    batch = _batch()
    behind = np.arange(tables.LENGTH)[None, :] >= batch[c.LENGTH].numpy()[:, None]
    assert behind.any()
    dirty = {**batch, c.ITEM: tf.where(behind, 9, batch[c.ITEM]), c.HOUR: tf.where(behind, 7, batch[c.HOUR])}
    clean_logits, dirty_logits = (network.last(rows, rows[c.LENGTH], rows[c.NEXT_GAP]) for rows in (batch, dirty))
    for kind in (c.ITEM, c.CATEGORY):
        np.testing.assert_array_equal(clean_logits[kind], dirty_logits[kind])


def test_a_position_sees_only_what_came_before_it(network: Network):
    batch = _batch()
    changed = {**batch, c.ITEM: tf.concat([batch[c.ITEM][:, :4], batch[c.ITEM][:, 4:] * 0 + 5], axis=1)}
    before, after = network.encode(batch), network.encode(changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3


def test_logits_are_tied_to_the_input_embedding_and_leave_out_padding_and_unknown(network: Network):
    answers = tf.eye(tables.NETWORK.item_dim)[:2]
    logits = network.logits(c.ITEM, answers).numpy()
    table, bias = network.weights["embedding/item"].numpy(), network.weights["item/bias"].numpy()
    assert logits.shape == (2, tables.N_ITEMS)
    np.testing.assert_allclose(logits, (table @ answers.numpy().T).T[:, 2:] + bias[2:], atol=1e-6)


def test_the_bias_starts_at_smoothed_log_popularity():
    network = Network(tables.NETWORK, tables.SIZES)
    counts = np.zeros(tables.SIZES.categories, np.int64)
    counts[2:] = [5, 3, 0, 0]
    network.start_bias(c.CATEGORY, counts)
    bias = network.weights["category/bias"].numpy()
    np.testing.assert_allclose(np.exp(bias[2:]), np.array([6, 4, 1, 1]) / 12, rtol=1e-6)


def test_following_takes_the_next_value_and_the_row_s_own_at_the_end():
    channel = tf.constant([[4, 5, 6, 0], [7, 0, 0, 0]])
    found = following(channel, tf.constant([3, 1]), tf.constant([9, 8]))
    assert found.numpy().tolist() == [[5, 6, 9, 0], [8, 0, 0, 0]]


def test_query_says_whether_the_next_event_starts_a_session():
    gaps = tf.constant([[c.UNKNOWN_GAP, 2, 4, 5, 7, c.PAD]])  # new_session_gap is 5
    query = training_query(gaps, tables.SIZES, 0.0, tf.constant([1, 2]))
    same, new, unknown = QUERY_SAME_SESSION, QUERY_NEW_SESSION, QUERY_UNKNOWN
    assert query.numpy().tolist() == [[unknown, same, same, new, new, unknown]]
    many = training_query(tf.fill([200, 50], 6), tables.SIZES, 0.3, tf.constant([1, 2])).numpy()
    assert (many == unknown).mean() == pytest.approx(0.3, abs=0.02)


def test_prediction_never_claims_to_know_that_the_session_goes_on():
    network = Network(tables.NETWORK, tables.SIZES, seed=3)
    network.set_weights({**_values(network), "query/shift": np.eye(3, tables.NETWORK.units, dtype=np.float32)})
    batch = _batch(3)
    item = [network.last(batch, batch[c.LENGTH], tf.fill([3], gap))[c.ITEM].numpy() for gap in (1, 2, 4, 5, 7)]
    np.testing.assert_array_equal(item[0], item[1])
    np.testing.assert_array_equal(item[0], item[2])
    np.testing.assert_array_equal(item[3], item[4])
    newest = tf.gather(network.encode(batch), batch[c.LENGTH] - 1, batch_dims=1)
    for found, query in ((item[0], QUERY_UNKNOWN), (item[3], QUERY_NEW_SESSION)):
        wanted = network.logits(c.ITEM, network.answer(c.ITEM, newest, tf.fill([3], query)))
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.abs(item[0] - item[3]).max() > 1e-3


def test_dropout_repeats_with_its_seed_and_is_off_without():
    spec = tables.NETWORK.model_copy(update={"embedding_dropout": 0.5, "hidden_dropout": 0.5, "layers": 2})
    network, batch = Network(spec, tables.SIZES), _batch()
    one, again, other = (network.encode(batch, tf.constant(seed)) for seed in ([1, 64], [1, 64], [1, 128]))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(*(network.encode(batch) for _ in range(2)))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "cnn"])
@pytest.mark.parametrize("layers", [1, 2])
def test_states_hold_what_the_heads_read_and_go_on_with_new_events(cell: str, layers: int):
    spec = tables.NETWORK.model_copy(update={"cell": cell, "layers": layers, "layer_norm": True})
    network, batch = Network(spec, tables.SIZES, seed=3), _batch()
    length = batch[c.LENGTH]
    start = tf.zeros([6, network.state_floats])
    whole = network.advance(batch, length, start)
    wanted = tf.gather(network.encode(batch), length - 1, batch_dims=1)
    np.testing.assert_allclose(network.newest(whole), wanted, atol=1e-5)
    np.testing.assert_array_equal(network.advance(batch, tf.zeros_like(length), whole), whole)
    assert network.is_recurrent == (cell != "cnn")
    if network.is_recurrent:
        begun = network.advance({name: batch[name][:, :2] for name in c.CHANNELS}, tf.fill([6], 2), start)
        rest = {name: batch[name][:, 2:] for name in c.CHANNELS}
        np.testing.assert_allclose(network.advance(rest, length - 2, begun), whole, atol=1e-5)
        assert np.abs(begun - whole).max() > 1e-2


def test_dense_and_sparse_lookups_have_the_same_gradient():
    """Items are looked up densely below the softmax limit and sparsely above it."""
    gradients = []
    for limit in (1000, 1):
        network = Network(tables.NETWORK.model_copy(update={"full_softmax_max_items": limit}), tables.SIZES, seed=3)
        table = network.weights["embedding/item"]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(network.embed(c.ITEM, tf.constant([[2, 3], [2, 5]]))))
        gradients.append(tape.gradient(loss, table))
    assert isinstance(gradients[1], tf.IndexedSlices)
    np.testing.assert_allclose(gradients[0], tf.convert_to_tensor(gradients[1]), rtol=1e-6)


def _values(network: Network) -> dict[str, np.ndarray]:
    return {name: weight.numpy() for name, weight in network.weights.items()}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
