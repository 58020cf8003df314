"""Scoring with a real bundle: the seam passes on what the predictor says, under the names of the bundle."""

import numpy as np
import pyarrow as pa
import pytest

from features import columns as c
from features.scoring import score_batch
from jobs.score import LoadBundle
from model.bundle import Bundle, Reports, save_bundle
from model.errors import ModelError
from model.spec import NetworkSpec, Sizes
from tests.spark.test_scoring import ARROW_SCHEMA, LENGTH, SPEC, history

SIZES = Sizes(
    items=9, categories=6, length=LENGTH, gap_codes=6, new_session_gap=4, session_gap_s=1800, horizons_days=(1,)
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
    """Path and version of a bundle with random weights."""
    from model.network import Network

    path = str(tmp_path_factory.mktemp("bundle") / "dt=2024-03-01")
    weights = {name: weight.numpy() for name, weight in Network(NETWORK, SIZES, seed=3).weights.items()}
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
    batch = pa.RecordBatch.from_pylist(past, schema=ARROW_SCHEMA)
    rows = {row[c.USER_ID]: row for part in score_batch(batch, scorer, SPEC) for row in part.to_pylist()}

    channels = {name: np.array([row[name] for row in past], np.int32) for name in c.CHANNELS}
    length, next_gap = (np.array([row[name] for row in past], np.int32) for name in (c.LENGTH, c.NEXT_GAP))
    item_ids, item_p, category_ids, _ = scorer.top(channels, length, next_gap, SPEC.top_k_items, SPEC.top_k_interests)
    for at, user in enumerate(("a", "b")):
        assert rows[user][c.PROVENANCE] == "model"
        assert [item[c.ITEM_ID] for item in rows[user][c.ITEMS]] == [f"i{i}" for i in item_ids[at]]
        assert [item[c.PROBABILITY] for item in rows[user][c.ITEMS]] == pytest.approx(item_p[at].tolist(), rel=1e-4)
        interests = [interest[c.CATEGORY_ID] for interest in rows[user][c.INTERESTS]]
        assert interests[: SPEC.top_k_interests] == [f"c{i}" for i in category_ids[at]]
    assert rows["a"][c.ITEMS] != rows["b"][c.ITEMS]
    assert [item[c.ITEM_ID] for item in rows["unknown"][c.ITEMS]] == ["i2", "i3", "i4"]


def test_a_bundle_replaced_since_the_start_is_refused(saved: tuple[str, str]) -> None:
    path, version = saved
    with pytest.raises(ModelError, match=f"holds model {version}, the run started with 2024-03-01-older"):
        LoadBundle(path, "2024-03-01-older", threads=1)()
