"""What goes into the first cell: channels read off the gap codes, sums instead of rows side by side, stand-ins."""

import numpy as np
import pytest
import tensorflow as tf

from features import columns as c
from model import inputs
from model.network import Network
from tests.model import tables

# new_session_gap is 5. Padding codes are those of an event within a session.
GAPS = tf.constant([[c.UNKNOWN_GAP, 2, 4, 5, 3, 7, 7, 0], [3, 2, 2, 2, 2, 2, 2, 2]])


def _batch(n_rows: int = 6) -> dict[str, np.ndarray]:
    return tables.ruled_rows(n_rows, seed=5)


def _network(**spec: object) -> Network:
    return Network(tables.NETWORK.model_copy(update=spec), tables.SIZES, seed=3)


def test_sessions_start_at_a_user_s_first_event_and_after_a_long_gap():
    assert inputs.starts(GAPS, tables.SIZES).numpy().tolist() == [[1, 0, 0, 1, 0, 1, 1, 0], [0] * 8]


def test_positions_count_from_the_session_s_first_event_up_to_a_cap():
    found = inputs.positions(GAPS, tables.SIZES, 100).numpy().tolist()
    assert found == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert inputs.positions(GAPS, tables.SIZES, 3).numpy().tolist()[1] == [0, 1, 2, 2, 2, 2, 2, 2]


def test_further_channels_widen_the_input_and_change_no_other_weight():
    plain, wide, batch = _network(), _network(session_dim=3, position_dim=5), _batch()
    weights = {name: weight.numpy() for name, weight in wide.weights.items()}
    found, before = wide.embedded(batch).numpy(), plain.embedded(batch).numpy()
    assert found.shape == (6, tables.LENGTH, 36 + 3 + 5)
    np.testing.assert_array_equal(found[..., :36], before)
    gaps = tf.constant(batch[c.GAP])
    starts = weights["embedding/session_start"][inputs.starts(gaps, tables.SIZES)]
    np.testing.assert_array_equal(found[..., 36:39], starts)
    positions = inputs.positions(gaps, tables.SIZES, tables.NETWORK.session_positions)
    np.testing.assert_array_equal(found[..., 39:], weights["embedding/session_position"][positions])


def test_the_sum_adds_every_channel_in_item_space():
    network, batch = _network(inputs="sum", session_dim=3), _batch()
    weights = {name: weight.numpy() for name, weight in network.weights.items()}
    wanted = weights["embedding/item"][batch[c.ITEM]]
    for name in c.CHANNELS[1:]:
        wanted = wanted + weights[f"embedding/{name}"][batch[name]] @ weights[f"input/{name}"]
    starts = weights["embedding/session_start"][inputs.starts(tf.constant(batch[c.GAP]), tables.SIZES)]
    wanted = wanted + starts @ weights["input/session_start"]
    np.testing.assert_allclose(network.embedded(batch), wanted, atol=1e-5)
    assert "input/item" not in weights
    assert network.encode(batch).shape == (6, tables.LENGTH, tables.NETWORK.units)


@pytest.mark.parametrize("way", ["concat", "sum"])
def test_an_unknown_item_enters_as_its_category_in_item_space(way: str):
    plain, lent, batch = _network(inputs=way), _network(inputs=way, oov_from_category=True), _batch()
    batch[c.ITEM][:, 1] = c.OOV
    lent.set_weights({**{name: weight.numpy() for name, weight in lent.weights.items()}, **_values(plain)})
    difference = (lent.embedded(batch) - plain.embedded(batch)).numpy()
    table, matrix = (lent.weights[name].numpy() for name in ("embedding/category", "stand_in/projection"))
    dim = tables.NETWORK.item_dim
    np.testing.assert_allclose(difference[:, 1, :dim], table[batch[c.CATEGORY][:, 1]] @ matrix, atol=1e-5)
    assert np.abs(difference[:, 1, :dim]).max() > 0.1
    assert np.abs(np.delete(difference, 1, axis=1)).max() == 0
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(lent.embedded(batch)))
    assert np.abs(tape.gradient(loss, lent.weights["stand_in/projection"])).max() > 0.1


def _values(network: Network) -> dict[str, np.ndarray]:
    return {name: weight.numpy() for name, weight in network.weights.items()}
