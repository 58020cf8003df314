"""Scoring with a real bundle: the seam passes on what the predictor says, under the names of the bundle."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from features import columns as c
from jobs.score import LoadBundle
from model.bundle import Bundle, Reports, save_bundle
from model.errors import ModelError
from model.network import Network
from model.predict import Predictor
from model.spec import HEADS, HORIZON, WHEN, NetworkSpec, Sizes
from tests.spark.test_scoring import LENGTH, SPEC, history, scores

SIZES = Sizes(
    items=9,
    categories=6,
    length=LENGTH,
    gap_codes=6,
    new_session_gap=4,
    session_gap_s=1800,
    gap_edges_s=(60, 1800, 86_400),
    horizons_days=(1,),
)
NETWORK = NetworkSpec(
    cell="lstm",
    units=4,
    layers=1,
    layer_norm=False,
    cnn_kernel=3,
    inputs="concat",
    item_dim=4,
    category_dim=3,
    action_dim=2,
    gap_dim=2,
    hour_dim=2,
    session_dim=0,
    position_dim=0,
    session_positions=4,
    oov_from_category=False,
    repeat=False,
    embedding_dropout=0.0,
    hidden_dropout=0.0,
    query_dropout=0.0,
    full_softmax_max_items=100,
    sparse_min_items=0,
    return_bins_h=(1, 24),
    back_hours=(24,),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Path and version of a bundle with all heads."""
    return random_bundle(str(tmp_path_factory.mktemp("bundle") / "dt=2024-03-01"), HEADS)


def random_bundle(path: str, heads: Sequence[str]) -> tuple[str, str]:
    rng = np.random.default_rng(3)
    weights = {
        name: rng.normal(size=weight.shape).astype(np.float32)
        for name, weight in Network(NETWORK, SIZES, seed=3, heads=heads).weights.items()
    }
    vocabulary = {
        c.KIND_ITEM: ["", "", *(f"i{i}" for i in range(2, SIZES.items))],
        c.KIND_CATEGORY: ["", "", *(f"c{i}" for i in range(2, SIZES.categories))],
    }
    counts = {kind: [0, 0, *range(len(tokens) - 2, 0, -1)] for kind, tokens in vocabulary.items()}
    bundle = Bundle(NETWORK, SIZES, (60, 1800, 3600), vocabulary, counts, weights, "", "data", "vocabulary", "code")
    return path, save_bundle(path, "2024-03-01", bundle, Reports("", {}, []))


def test_rows_say_what_the_predictor_says(saved: tuple[str, str]) -> None:
    scorer = LoadBundle(*saved, threads=1)()
    past = [history("a", [2, 3, 8], [2, 3, 5]), history("b", [5], [4]), history("unknown", [1], [1])]
    rows = scores(past, scorer)

    channels = {name: np.array([row[name] for row in past], np.int32) for name in c.CHANNELS}
    length, next_gap = (np.array([row[name] for row in past], np.int32) for name in (c.LENGTH, c.NEXT_GAP))
    state = scorer.advance(channels, length, np.zeros((len(past), scorer.state_floats), np.float32))
    k = SPEC.top_k_items, SPEC.top_k_interests
    item_ids, item_p, category_ids, _ = scorer.top_of(state, next_gap, channels, length, *k)
    for at, user in enumerate(("a", "b")):
        assert rows[user][c.PROVENANCE] == "model"
        assert [item[c.ITEM_ID] for item in rows[user][c.ITEMS]] == [f"i{i}" for i in item_ids[at]]
        assert [item[c.PROBABILITY] for item in rows[user][c.ITEMS]] == pytest.approx(item_p[at].tolist(), rel=1e-4)
        interests = [interest[c.CATEGORY_ID] for interest in rows[user][c.INTERESTS]]
        assert interests[: SPEC.top_k_interests] == [f"c{i}" for i in category_ids[at]]
    assert rows["a"][c.ITEMS] != rows["b"][c.ITEMS]
    assert [item[c.ITEM_ID] for item in rows["unknown"][c.ITEMS]] == ["i2", "i3", "i4"]

    # What lies ahead, of the channels: at noon of a Friday everyone was last heard of, and it is midnight.
    hour_code, silence_s = np.full(3, c.FIRST_HOUR + 4 * 24 + 12, np.int32), np.full(3, 12 * 3600, np.int32)
    future = Predictor.load(saved[0]).future_of(state, hour_code, silence_s)
    for at, user in enumerate(("a", "b")):
        row = rows[user]
        (horizon,) = [interest[c.DAYS_AHEAD] for interest in row[c.INTERESTS][:1]]
        first = int(row[c.INTERESTS][0][c.CATEGORY_ID][1:])
        assert [entry["days"] for entry in horizon] == [1]
        assert horizon[0]["share"] == pytest.approx(future.interests[at, 0, first], rel=1e-4)
        assert horizon[0]["touched"] == pytest.approx(future.touched[at, 0, first], rel=1e-4)
        best = np.argsort(-future.hour[at], kind="stable")[: SPEC.best_hours]
        assert [entry["hour"] for entry in row[c.BEST_HOURS]] == best.tolist()
        assert [entry["probability"] for entry in row[c.NEXT_ACTIONS]] == pytest.approx(future.actions[at].tolist())
        assert [(entry["hours"], entry["probability"]) for entry in row[c.BACK]] == [
            (24, pytest.approx(future.back[at, 0], rel=1e-4))
        ]
        assert 0 < row[c.DRIFT] < 1
        assert 0 < row[c.CONTACTS_PER_WEEK] <= SPEC.contacts.most_per_week
    assert rows["unknown"][c.BACK] == rows["unknown"][c.BEST_HOURS] == []
    assert rows["unknown"][c.DRIFT] is rows["unknown"][c.CONTACTS_PER_WEEK] is None


@pytest.mark.parametrize(("heads", "told"), [((), set()), ((WHEN,), {c.BACK}), ((HORIZON,), {c.DRIFT, c.SHARE})])
def test_what_a_bundle_has_no_head_for_is_not_told(tmp_path: Path, heads: tuple[str, ...], told: set[str]) -> None:
    scorer = LoadBundle(*random_bundle(str(tmp_path / "dt=2024-03-01"), heads), threads=1)()
    row = scores([history("a", [2, 3, 8], [2, 3, 5])], scorer)["a"]
    found = {name for name in (c.BACK, c.BEST_HOURS, c.NEXT_ACTIONS) if row[name]}
    found |= {name for name in (c.DRIFT, c.CONTACTS_PER_WEEK) if row[name] is not None}
    ahead = row[c.INTERESTS][0][c.DAYS_AHEAD]
    found |= {name for entry in ahead for name in (c.SHARE, c.TOUCHED) if entry[name] is not None}
    assert found == told
    assert len(ahead) == (1 if HORIZON in heads else 0)
    assert {c.ITEM_ID, c.PROBABILITY} == set(row[c.ITEMS][0])


def test_a_bundle_replaced_since_the_start_is_refused(saved: tuple[str, str]) -> None:
    path, version = saved
    with pytest.raises(ModelError, match=f"holds model {version}, the run started with 2024-03-01-older"):
        LoadBundle(path, "2024-03-01-older", threads=1)()
