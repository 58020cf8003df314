"""What a small training learns of a log whose answers are known, and how the Predictor tells it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from features import columns as c
from model.bundle import save_bundle
from model.errors import ModelError
from model.network import Network
from model.outlook import outlook
from model.predict import Future, Predictor
from model.returns import log_survival
from model.spec import HEADS
from model.step import Steps
from model.streams import StreamBatch
from model.workers import SingleProcess
from tests.model import lives, tables
from tests.model.test_bundle import REPORTS, bundle

HOUR_S = 3600
VIEW, BUY = c.FIRST_ID, c.FIRST_ID + c.ACTIONS.index("buy")
COUNTS = {c.ITEM: np.full(tables.SIZES.items, 3), c.CATEGORY: np.full(tables.SIZES.categories, 9)}


def _life(is_fast: bool, start_s: int) -> lives.Life:
    """Sessions of two events, a minute apart, of categories in turn.

    Fast: every 10 hours, 2 and 3 in turn, views. Slow: every 30 hours, 4 and 5 in turn, a view and a purchase.
    """
    every_s, first = (10 * HOUR_S, 2) if is_fast else (30 * HOUR_S, 4)
    times = [start_s + session * every_s + at * 60 for session in range(12) for at in range(2)]
    categories = [first + session % 2 for session in range(12) for _ in range(2)]
    return lives.Life(times, categories, [VIEW, VIEW if is_fast else BUY] * 12)


def _window(rng: np.random.Generator, is_fast: bool) -> dict[str, np.ndarray]:
    life = _life(is_fast, int(rng.integers(0, 168 * HOUR_S)))
    return lives.row(life, int(rng.integers(8, 17)), life.time_s[-1])


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    weights = {f"{head}_weight": 1.0 for head in HEADS}
    training = tables.TRAINING.model_copy(update=weights)
    network = Network(tables.NETWORK, tables.SIZES, seed=3, heads=HEADS)
    steps, rng = Steps(network, training, SingleProcess(), COUNTS), np.random.default_rng(1)
    for number in range(1, 251):
        rows = lives.batch([_window(rng, is_fast=at % 2 == 0) for at in range(24)])
        steps.train([StreamBatch(0, number, rows)], number, 0.01)
    assert steps._train.experimental_get_tracing_count() == 1
    folder = str(tmp_path_factory.mktemp("future") / "dt=2024-06-30")
    trained = {name: weight.numpy() for name, weight in network.weights.items()}
    save_bundle(folder, "2024-06-30", replace(bundle(), weights=trained), REPORTS)
    return Predictor.load(folder)


def _asked(predictor: Predictor, is_fast: bool, silence_s: int, start_s: int = 0) -> Future:
    """Future of a user whose last session, the eighth, ended so long ago."""
    row = lives.batch([lives.row(_life(is_fast, start_s), 16, 0)])
    channels = {name: row[name] for name in c.CHANNELS}
    return predictor.future(channels, row[c.LENGTH], np.zeros(1, np.int32), np.array([silence_s], np.int32))


def test_the_return_head_learns_when_each_comes_back(predictor: Predictor):
    fast, slow = (_asked(predictor, is_fast, 60).back for is_fast in (True, False))
    assert fast[0, 0] > 0.9  # within 12 hours
    assert slow[0, 0] < 0.1
    assert slow[0, 1] < 0.15  # within 24
    assert slow[0, 2] > 0.9  # within 100
    assert _asked(predictor, False, 25 * HOUR_S).back[0, 1] > 0.8  # 30 hours are between 25 and 49


def test_interests_over_horizons_are_the_users_own(predictor: Predictor):
    for is_fast, own in ((True, [2, 3]), (False, [4, 5])):
        interests = _asked(predictor, is_fast, 0).interests[0]  # [D, V]
        assert interests[1, own].sum() > 0.9
    assert _asked(predictor, True, 0).interests[0, 0, 2] > 0.5  # 2, 3 (and 2 again where 20 h are in a day): 2 is next
    assert np.argmax(_asked(predictor, False, 20 * HOUR_S).interests[0, 0]) == 4  # the eighth was of 5


def test_a_category_is_touched_in_a_day_where_its_session_falls_into_it(predictor: Predictor):
    """Slow users: nothing within a day of a session's end, the next category within a day of 20 silent hours."""
    at_once, later = (_asked(predictor, False, silence_s).touched[0, 0] for silence_s in (0, 20 * HOUR_S))
    assert at_once[4] < 0.25
    assert later[4] > 0.6
    fast = _asked(predictor, True, 0).touched[0, 0]
    assert (fast[[2, 3]] > 0.8).all()
    assert (fast[[4, 5]] < 0.1).all()


def test_the_hour_head_knows_the_hour_ten_hours_ahead(predictor: Predictor):
    for start_h in (3, 100):
        hour = _asked(predictor, True, 0, start_h * HOUR_S).hour[0]
        expected = (start_h + 8 * 10) % 168
        assert hour[[expected - 1, expected, (expected + 1) % 168]].sum() > 0.5


def test_the_action_head_knows_who_buys(predictor: Predictor):
    fast, slow = (_asked(predictor, is_fast, 0).actions[0] for is_fast in (True, False))
    view, buy = c.ACTIONS.index("view"), c.ACTIONS.index("buy")
    assert min(fast[view], slow[view], slow[buy]) > 0.9
    assert fast[buy] < 0.1


def _rows(n_rows: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rows = tables.ruled_rows(n_rows, seed=4)
    return {name: rows[name] for name in c.CHANNELS}, rows[c.LENGTH], rows[c.NEXT_GAP]


def test_a_future_holds_distributions_and_probabilities(predictor: Predictor):
    silence_s = np.arange(300, dtype=np.int32) * 2_000
    future = predictor.future(*_rows(300), silence_s)
    assert future.interests.shape == future.touched.shape == (300, 2, tables.SIZES.categories)
    for distribution in (future.interests, future.hour):
        np.testing.assert_allclose(distribution.sum(axis=-1), 1, rtol=1e-5)
    assert not future.interests[..., : c.FIRST_ID].any()
    assert not future.touched[..., : c.FIRST_ID].any()
    for probability in (future.touched, future.back, future.actions):
        assert ((probability >= 0) & (probability <= 1)).all()
    assert (future.hour.shape, future.actions.shape, future.back.shape) == ((300, 168), (300, 5), (300, 3))
    assert (np.diff(future.back, axis=1) >= 0).all()
    within = np.array(tables.NETWORK.back_hours) * HOUR_S
    for at in (0, 7, 299):
        own, now = future.hazards[at : at + 1], np.array([silence_s[at]])
        left = [log_survival(own, predictor.back_bins, now + each)[0] for each in within]
        wanted = 1 - np.exp(np.array(left) - log_survival(own, predictor.back_bins, now)[0])
        np.testing.assert_allclose(future.back[at], wanted, rtol=1e-3, atol=1e-6)
    assert predictor._future.experimental_get_tracing_count() == 1


def test_states_that_were_carried_tell_the_same_future(predictor: Predictor, monkeypatch: pytest.MonkeyPatch):
    channels, length, next_gap = _rows(300)
    silence_s = np.arange(300, dtype=np.int32) * 4_000
    whole = predictor.future(channels, length, next_gap, silence_s)
    half = length // 2
    state = predictor.advance(channels, half, np.zeros((300, predictor.state_floats), np.float32))
    places = np.minimum(half[:, None] + np.arange(predictor.sizes.length), predictor.sizes.length - 1)
    rest = {name: np.take_along_axis(channel, places, axis=1) for name, channel in channels.items()}
    state = predictor.advance(rest, length - half, state)
    hour = np.take_along_axis(channels[c.HOUR], length[:, None] - 1, axis=1)[:, 0]
    monkeypatch.setattr("model.predict._FUTURE_CELLS", 64 * 2 * tables.SIZES.categories)
    carried = predictor.future_of(state, hour, silence_s)
    for name, mine, theirs in zip(Future._fields, carried, whole, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(predictor.back_of(state, silence_s), whole.back, rtol=1e-4, atol=1e-6)
    assert predictor._future.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("changes", [{"cell": "cnn"}, {"cell": "gru", "layers": 2, "layer_norm": True}])
def test_heads_read_the_last_output_of_any_network(tmp_path: Path, changes: dict[str, object]):
    spec, folder = tables.NETWORK.model_copy(update=changes), str(tmp_path / "dt=2024-06-30")
    rng, network = np.random.default_rng(2), Network(spec, tables.SIZES, seed=3, heads=HEADS)
    network.set_weights({name: rng.normal(size=of.shape, scale=0.5) for name, of in network.weights.items()})
    weights = {name: weight.numpy() for name, weight in network.weights.items()}
    save_bundle(folder, "2024-06-30", replace(bundle(), spec=spec, weights=weights), REPORTS)
    (channels, length, next_gap), silence_s = _rows(40), np.arange(40, dtype=np.int32) * 9_000
    hidden = network.encode(channels).numpy()[np.arange(40), length - 1]
    state = network.advance(channels, length, tf.zeros([40, network.state_floats]))
    np.testing.assert_allclose(network.newest(state), hidden, rtol=1e-4, atol=1e-5)
    is_event = np.arange(tables.LENGTH) < length[:, None]
    paces = network.paces(channels[c.GAP], is_event).numpy()[np.arange(40), length - 1]
    np.testing.assert_allclose(network.pace(state), paces, rtol=1e-5)
    said = outlook(network, state, channels[c.HOUR][np.arange(40), length - 1], silence_s)
    found = Predictor.load(folder).future(channels, length, next_gap, silence_s)
    for name, values in said.items():
        np.testing.assert_allclose(getattr(found, name), values.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


def test_no_rows_have_an_empty_future(predictor: Predictor):
    future = predictor.future(*_rows(0), np.zeros(0, np.int32))
    assert [len(part) for part in future] == [0] * 6
    assert future.interests.shape == (0, 2, tables.SIZES.categories)
    assert future.back.shape == (0, 3)


def test_a_time_before_the_last_event_is_refused(predictor: Predictor):
    with pytest.raises(ModelError, match=r"silence_s .* least value -5"):
        predictor.future(*_rows(2), np.array([4, -5], np.int32))


def test_a_bundle_without_such_heads_says_so(tmp_path: Path):
    folder = str(tmp_path / "dt=2024-06-30")
    save_bundle(folder, "2024-06-30", bundle(), REPORTS)
    bare = Predictor.load(folder)
    with pytest.raises(ModelError, match=r"has no head for the time ahead.*horizon_weight"):
        bare.future(*_rows(2), np.zeros(2, np.int32))
    with pytest.raises(ModelError, match=r"has no head when"):
        bare.back_of(np.zeros((2, bare.state_floats), np.float32), np.zeros(2, np.int32))
