import json
import subprocess
import sys
from dataclasses import replace
from datetime import date, datetime
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from features import columns as c
from features.columns import CATEGORY, GAP, ITEM, MICROS, OOV
from features.contracts import SEQUENCES, SIMULATED_TRUTH, TRAINING_SEQUENCES, ContractError
from features.sequences import ENCODED_EVENT
from features.window_rows import Cutoffs
from features.windows import build_partition
from jobs.evaluate import evaluate
from jobs.evaluation_table import format_table, headline
from jobs.settings import Settings
from jobs.store import Lineage, Store
from model.baselines import VocabularySizes, Windows, events_of, fit_baselines
from model.errors import ModelError
from model.evaluation import (
    EvaluationRows,
    EvaluationSpec,
    SplitProtocol,
    evaluate_rankings,
    scores_of,
    stored_scores,
)
from model.metrics import Ragged

N_IDS = (6, 4)  # items 2..5, categories 2 and 3
SPEC = EvaluationSpec(
    ks=(1, 2),
    seen_items="keep",
    max_users=100,
    max_train_users=100,
    n_bootstrap=200,
    n_permutations=200,
    calibration_bins=2,
    history_edges=(),
    popularity_shares=(0.5, 0.8),
    seed=0,
    block_cells=1000,
    recent_days=1.0,
    markov_prior=1.0,
    knn_neighbours=10,
    knn_sample=10,
    knn_last_items=10,
    knn_idf=True,
)
SPLIT = SplitProtocol(
    date="2024-03-10",
    split="test",
    protocol="global_time",
    train_before="2024-03-01T00:00:00Z",
    cutoff="2024-03-05T00:00:00Z",
    embargo_days=0,
    n_users=4,
    n_users_in_split=9,
    n_train_users=4,
    n_train_users_in_split=4,
)


def ids(*values):
    return np.array(values, dtype=np.int32)


def ragged(*lists):
    return Ragged(ids(*(value for row in lists for value in row)), np.cumsum([0, *map(len, lists)]))


def rows():
    """Four users; the third one's next item is unknown, the fourth has seen its next item before."""
    item = np.array([[2, 3], [3, 0], [4, 0], [5, 4]], dtype=np.int32)
    return EvaluationRows(
        user_id=("a", "b", "c", "d"),
        channels={ITEM: item, CATEGORY: np.where(item > 0, 2, 0).astype(np.int32)},
        length=ids(2, 1, 1, 2),
        next_gap=ids(1, 1, 1, 1),
        last_time_us=np.arange(4),
        next_time_us=np.arange(4) + 10,
        next_item=ids(4, 2, OOV, 5),
        next_category=ids(3, 2, 2, 2),
        label_items=ragged([4, 4, 5], [2], [OOV, 3], [5]),
        label_categories=ragged([3, 3, 2], [2], [2, 3], [2]),
        label_actions=ragged([2, 2, 6], [2], [2, 3], [2]),
        label_times_us=ragged([10, 11, 12], [11], [12, 13], [13]),
        seen_items=ragged([2, 3], [3], [4], [4, 5]),
    )


class Fixed:
    """The same item and category order for everyone, and a record of the batches it was asked for."""

    def __init__(self, items, categories):
        self.scores = np.array(items, dtype=np.float32), np.array(categories, dtype=np.float32)
        self.asked = []

    def probabilities(self, channels, length, next_gap):
        assert channels[ITEM].shape == (len(length), 2)
        assert len(next_gap) == len(length)
        self.asked.append(len(length))
        return tuple(np.tile(row, (len(length), 1)) for row in self.scores)


FIXED = Fixed([0, 0, 0.4, 0.3, 0.2, 0.1], [0, 0, 0.6, 0.4])


def judged(spec=SPEC, ranker=FIXED, **others):
    given = rows()
    sources = {"fixed": scores_of(ranker, given)} | {name: scores_of(x, given) for name, x in others.items()}
    return evaluate_rankings(given, SPLIT, sources, N_IDS, spec, model="fixed" if others else None)


def row_of(evaluation, target, metric, k, model="fixed"):
    found = [r for r in evaluation.rows if (r.target, r.metric, r.k, r.model) == (target, metric, k, model)]
    assert len(found) == 1
    return found[0]


def test_item_values_by_hand_with_seen_items_kept():
    # Order 2 3 4 5. Ranks of the next items: 4 → 3, 2 → 1, unknown → miss, 5 → 4.
    evaluation = judged()
    assert row_of(evaluation, "item", "hr", 2).value == 1 / 4
    assert row_of(evaluation, "item", "mrr", 2).value == 1 / 4
    # Hits in the first two: none of {4, 5}; 2; 3 of {unknown, 3}; none.
    assert row_of(evaluation, "item", "recall", 2).value == pytest.approx((1 + 1 / 2) / 4)
    assert row_of(evaluation, "item", "precision", 2).value == pytest.approx((1 / 2 + 1 / 2) / 4)
    assert row_of(evaluation, "item", "coverage", 2).value == 2 / 4
    said = row_of(evaluation, "item", "hr", 2)
    assert (said.n, said.candidates, said.n_label_unknown, said.n_label_removed) == (4, 4, 1, 0)


def test_removed_seen_items_change_items_and_not_categories():
    # Lists of two: a 4 5, b 2 4, c 2 3, d 2 3 (its next item 5 was removed: a miss, said, and no row dropped).
    evaluation = judged(SPEC.model_copy(update={"seen_items": "remove"}))
    said = row_of(evaluation, "item", "hr", 1)
    assert (said.value, said.n, said.seen_items, said.n_label_removed, said.n_label_unknown) == (
        2 / 4,
        4,
        "remove",
        1,
        1,
    )
    assert row_of(evaluation, "item", "coverage", 2).value == 4 / 4
    # Of {4, 5} both, {2} one, {unknown, 3} one, {5} none.
    assert row_of(evaluation, "item", "recall", 2).value == pytest.approx((1 + 1 + 1 / 2) / 4)
    kept = row_of(evaluation, "category", "hr", 1)
    assert (kept.seen_items, kept.value, kept.n_label_removed) == ("keep", 3 / 4, 0)


def test_category_values_by_hand():
    evaluation = judged()
    assert row_of(evaluation, "category", "accuracy", 1).value == 3 / 4
    # Always 2: TP 3, FP 1 → 6/7; 3: 0.
    assert row_of(evaluation, "category", "macro_f1", 1).value == pytest.approx(6 / 7 / 2, abs=1e-6)
    assert row_of(evaluation, "category", "recall", 1).value == pytest.approx((1 / 2 + 1 + 1 / 2 + 1) / 4)
    assert row_of(evaluation, "category", "coverage", 1).value == 1 / 2


def test_every_row_carries_the_protocol():
    for row in judged().rows:
        assert (row.date, row.split, row.protocol) == ("2024-03-10", "test", "global_time")
        assert (row.train_before, row.cutoff, row.embargo_days) == (SPLIT.train_before, SPLIT.cutoff, 0)
        assert (row.n, row.n_users_in_split, row.n_train_users) == (4, 9, 4)
        assert row.candidates == (4 if row.target == "item" else 2)


def test_intervals_hold_the_value_and_are_absent_where_nothing_is_per_user():
    for row in judged().rows:
        if row.metric in ("coverage", "macro_f1"):
            assert row.low is None
            assert row.high is None
        else:
            assert row.low <= row.value <= row.high


def test_blocks_are_bounded_and_give_the_same_rows():
    small = Fixed(*FIXED.scores)
    given = replace(rows())
    n_ids = (600, 4)  # 1000 cells / 600 ids: one row a block
    small.scores = np.concatenate([small.scores[0], np.zeros(594, np.float32)]), small.scores[1]
    one = evaluate_rankings(given, SPLIT, {"fixed": scores_of(small, given)}, n_ids, SPEC)
    assert small.asked == [1, 1, 1, 1]
    whole = SPEC.model_copy(update={"block_cells": 100_000})
    assert evaluate_rankings(given, SPLIT, {"fixed": scores_of(small, given)}, n_ids, whole) == one
    assert small.asked[4:] == [4]


def test_comparison_is_paired():
    better = Fixed([0, 0, 0.4, 0.1, 0.3, 0.2], FIXED.scores[1])  # moves 4 to rank 2 and 5 to rank 3
    evaluation = judged(better=better, same=Fixed(*FIXED.scores))
    pairs = {(p.target, p.metric, p.k, p.second): p for p in evaluation.comparisons}
    hit = pairs["item", "hr", 2, "better"]
    assert hit.first == "fixed"
    assert hit.difference == -1 / 4
    assert hit.low <= -1 / 4 <= hit.high <= 0
    same = pairs["item", "hr", 2, "same"]
    assert (same.difference, same.low, same.high) == (0, 0, 0)  # unpaired draws would give a wide interval


def test_stored_scores_put_unstored_ids_behind_all_tied():
    given = rows()
    items = ragged([4, OOV], [2], [], [3]), np.array([0.7, 0.3, 1.0, 1.0], dtype=np.float32)
    categories = ragged([3], [2], [2], [3]), np.ones(4, dtype=np.float32)
    source = stored_scores(items, categories, N_IDS)
    np.testing.assert_allclose(source(0, 2)[0], [[0, 0.3, 0, 0, 0.7, 0], [0, 0, 1, 0, 0, 0]])
    np.testing.assert_allclose(source(2, 4)[0], [[0] * 6, [0, 0, 0, 1, 0, 0]])
    np.testing.assert_allclose(source(2, 4)[1], [[0, 0, 1, 0], [0, 0, 0, 1]])
    evaluation = evaluate_rankings(given, SPLIT, {"oracle": source}, N_IDS, SPEC)
    # a and b lead; c is unknown; d's 5 ties with 2 and 4 behind 3: rank 4.
    assert row_of(evaluation, "item", "hr", 1, "oracle").value == 2 / 4
    assert row_of(evaluation, "item", "hr", 2, "oracle").value == 2 / 4


def test_baselines_fit_the_ranker_interface():
    item = ids(2, 3, 4, 5).reshape(2, 2)
    windows = Windows(
        user=np.array([0, 1]),
        window=ids(0, 0),
        channels={ITEM: item, CATEGORY: np.full_like(item, 2), GAP: np.full_like(item, 2)},
        length=ids(2, 2),
        next_gap=ids(2, 2),
        next_item=ids(4, 2),
        next_category=ids(3, 2),
        last_time_us=np.array([0, 0]),
        next_time_us=np.array([1, 1]),
    )
    fitted = fit_baselines(
        events_of(windows, (10,), 3),
        VocabularySizes(*N_IDS),
        recent_days=1.0,
        markov_prior=1.0,
        knn_neighbours=2,
        knn_sample=2,
        knn_last_items=2,
        knn_idf=False,
    )
    given = rows()
    sources = {name: scores_of(ranker, given) for name, ranker in fitted.items()}
    evaluation = evaluate_rankings(given, SPLIT, sources, N_IDS, SPEC)
    assert {row.model for row in evaluation.rows} == set(fitted)
    # Trained: 3 → 4 and 4 → 5. a: 4 after 3, a hit; b: 2 after 3; c: unknown; d: 5 after 4, a hit.
    assert row_of(evaluation, "item", "hr", 1, "markov").value == 2 / 4


def test_ids_outside_the_vocabulary_are_refused():
    for name, bad in (
        ("next_item", {"next_item": ids(4, 6, 2, 3)}),
        ("seen_items", {"seen_items": ragged([6], [], [], [])}),
    ):
        given = replace(rows(), **bad)
        with pytest.raises(ModelError, match=f"Column {name} holds id 6"):
            evaluate_rankings(given, SPLIT, {"fixed": scores_of(FIXED, given)}, N_IDS, SPEC)
    padded = replace(rows(), next_category=ids(3, 0, 2, 2))
    with pytest.raises(ModelError, match="next_category holds id 0"):
        evaluate_rankings(padded, SPLIT, {"fixed": scores_of(FIXED, padded)}, N_IDS, SPEC)


def test_scores_of_another_vocabulary_are_refused():
    with pytest.raises(ModelError, match=r"shape \(4, 5\) for target item; expected \(4, 6\)"):
        judged(ranker=Fixed([0, 0, 1, 2, 3], [0, 0, 1, 1]))


def test_no_rows_are_refused():
    empty = replace(rows(), user_id=())
    with pytest.raises(ModelError, match="Split test of 2024-03-10 has no rows"):
        evaluate_rankings(empty, SPLIT, {}, N_IDS, SPEC)


@pytest.mark.parametrize("ks", [(), (5, 1), (1, 1), (0, 5)])
def test_cut_offs_must_rise_from_one(ks):
    with pytest.raises(ValidationError):
        EvaluationSpec.model_validate(SPEC.model_dump() | {"ks": ks})


def test_importing_the_evaluation_loads_no_tensorflow():
    code = "import sys, model.evaluation, model.baselines; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The job, on twenty users that go round in four items; a stand-in for the model always names the right next one.

DAY = date(2024, 3, 10)
VALID_AT, TEST_AT, END_AT = (datetime.fromisoformat(f"2024-03-{day:02d}T00:00:00+00:00") for day in (9, 10, 11))
LENGTH, N_USERS, N_EVENTS = 4, 20, 12
JOB_SPEC = SPEC.model_copy(update={"ks": (1, 2, 10)})
TOKENS = {"item": ["", "", "i0", "i1", "i2", "i3"], "category": ["", "", "c0", "c1"]}


def micros(time):
    return int(time.timestamp()) * MICROS


def write_sequences(root, protocol="global_time", splits=c.SPLITS, tamper=None, inputs=None, day=DAY, **said):
    """Twelve events a user, one each 6 hours up to the end of DAY; user k starts at item k. tamper: changes a split."""
    user = np.repeat(np.arange(N_USERS), N_EVENTS)
    step = np.tile(np.arange(N_EVENTS), N_USERS)
    item = (user + step) % 4 + 2
    columns = {
        c.USER_ID: [f"u{k:02d}" for k in user],
        "time_us": micros(END_AT) - (N_EVENTS - step) * 6 * 3600 * MICROS,
        c.EVENT_ID: step,
        c.ITEM: item.astype(np.int32),
        c.CATEGORY: (item // 4 + 2).astype(np.int32),
        c.ACTION_CODE: np.full(len(user), 2, np.int32),
    }
    events = pa.table({name: pa.array(columns[name]) for name in ENCODED_EVENT.names})
    cutoffs = Cutoffs(micros(VALID_AT), micros(TEST_AT), micros(END_AT), embargo_us=0)
    made = build_partition(iter(events.to_batches()), LENGTH, 100, (60, 1800), protocol, cutoffs, 4, c.DAY_S)
    windows = pa.Table.from_batches(list(made))
    store = Store(str(root))
    staged = store.staging(TRAINING_SEQUENCES.name, day)
    for split in splits:
        rows = windows.filter(pa.compute.equal(windows[c.SPLIT], split)).drop_columns([c.SPLIT])
        rows = tamper(split, rows) if tamper else rows
        store.fs.makedirs(f"{staged}/split={split}", exist_ok=True)
        for part in range(2):
            half = rows.slice(part * rows.num_rows // 2, rows.num_rows // 2)
            pq.write_table(half, f"{staged}/split={split}/group-{part:05d}.parquet")
    counters = {
        "length": LENGTH,
        "gap_edges_s": [60, 1800],
        "new_session_gap": 4,
        "protocol": protocol,
        "valid_cutoff": "2024-03-09T00:00:00Z",
        "test_cutoff": "2024-03-10T00:00:00Z",
        "embargo_days": 0,
        "horizons_days": [1, 7],
    } | said
    return store.publish(TRAINING_SEQUENCES, day, staged, Lineage(inputs or {}, "config", counters))


def write_truth(root, as_of, users=range(N_USERS)):
    """The first test event of user k is item (k + 8) % 4. The latent truth knows, the oracle is wrong for user 7.

    'i9' is no token of the vocabulary.
    """
    store = Store(str(root))
    staged = store.staging(SIMULATED_TRUTH.name, DAY)
    store.fs.makedirs(staged)

    def weighted(token, likeliest):
        lists = [[{token: name, "probability": 0.9}, {token: "i9", "probability": 0.1}] for name in likeliest]
        return pa.array(lists, pa.list_(pa.struct([(token, pa.string()), ("probability", pa.float32())])))

    def both(shift):
        following = [(k + 8 + (shift if k == 7 else 0)) % 4 for k in users]
        return weighted("item_id", [f"i{i}" for i in following]), weighted(
            "category_id", [f"c{i // 2}" for i in following]
        )

    def future(shift):
        """A day on: the category of the item after the first one for sure, the other one perhaps."""
        return [
            [
                {
                    "horizon_days": 1,
                    "returns": 0.8,
                    "categories": [
                        {"category_id": f"c{((k + 8 + shift) % 4) // 2}", "probability": 0.7, "touched": 0.9},
                        {"category_id": f"c{1 - ((k + 8 + shift) % 4) // 2}", "probability": 0.3, "touched": 0.8},
                    ],
                }
            ]
            for k in users
        ]

    latent_items, latent_categories = both(shift=0)
    oracle_items, oracle_categories = both(shift=2)
    table = {
        c.USER_ID: pa.array([f"u{k:02d}" for k in users]),
        c.AS_OF: pa.array([micros(as_of)] * len(users), pa.timestamp("us", "UTC")),
        c.LATENT_CATEGORIES: latent_categories,
        c.ORACLE_CATEGORIES: oracle_categories,
        c.LATENT_ITEMS: latent_items,
        c.ORACLE_ITEMS: oracle_items,
        c.LATENT_FUTURE: future(shift=0),
        c.ORACLE_FUTURE: future(shift=2),
    }
    pq.write_table(pa.table(table), f"{staged}/part-0.parquet")
    store.publish(SIMULATED_TRUTH, DAY, staged, Lineage({}, "config"))


def write_scoring_rows(root, silent):
    """`sequences_v1` of DAY: one who came on it, and silent ones, last seen two days before the cutoff."""
    names = ["u00", *silent]
    last = [micros(END_AT) - 1] + [micros(TEST_AT) - 2 * c.DAY_S * MICROS] * len(silent)
    table = {name: [[2, 3, 0, 0]] * len(names) for name in c.CHANNELS} | {
        c.USER_ID: names,
        c.LENGTH: [2] * len(names),
        c.NEXT_GAP: [2] * len(names),
        c.LAST_TIME: pa.array(last, pa.timestamp("us", "UTC")),
        c.SEEN_ITEMS: [[3, 4]] * len(names),
    }
    store = Store(str(root))
    staged = store.staging(SEQUENCES.name, DAY)
    store.fs.makedirs(staged)
    shape = pa.schema(
        [
            (
                f.name,
                {"string": pa.string(), "int": pa.int32(), "array<int>": pa.list_(pa.int32())}.get(
                    f.dataType.simpleString(), pa.timestamp("us", "UTC")
                ),
            )
            for f in SEQUENCES.schema.fields
        ]
    )
    pq.write_table(pa.table({name: table[name] for name in shape.names}, schema=shape), f"{staged}/part-0.parquet")
    store.publish(SEQUENCES, DAY, staged, Lineage({}, "config"))


class RightNext:
    """Stands in for model.predict.Predictor: the item after the last one, for sure."""

    def __init__(self, data_hash):
        self.model_version = "2024-03-10-0123456789ab"
        self.bundle = SimpleNamespace(
            vocabulary=TOKENS,
            data_hash=data_hash,
            model_version=self.model_version,
            check_sequences=self.check,
        )
        self.heads = ()
        self.checked = None
        self.silences = []
        self.sizes = SimpleNamespace(horizons_days=(1, 7))
        self.back_bins = np.array([0.0, 86_400.0, 604_800.0])
        self.step = 1

    def check(self, counters):
        self.checked = counters["length"]

    def probabilities(self, channels, length, next_gap):
        assert set(channels) == set(c.CHANNELS)
        assert next_gap.shape == length.shape
        following = (channels[ITEM][np.arange(len(length)), length - 1] - 2 + self.step) % 4 + 2
        return np.eye(6, dtype=np.float32)[following], np.eye(4, dtype=np.float32)[following // 4 + 2]

    def future(self, channels, length, next_gap, silence_s):
        """Half and half, a return in the first bin with 0.9, always a view; keeps the silences it was asked with."""
        assert channels[ITEM].shape == (len(next_gap), LENGTH)
        self.silences += silence_s.tolist()
        half = np.tile(np.float32([0, 0, 0.5, 0.5]), (len(length), 2, 1))
        hazards, actions = np.tile(np.float32([0.9, 0.1]), (len(length), 1)), np.tile(np.eye(5)[0], (len(length), 1))
        return SimpleNamespace(interests=half, touched=half, hazards=hazards, actions=actions.astype(np.float32))


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Sequences with their stand-in model; call it to run the job."""
    manifest = write_sequences(tmp_path)
    model = RightNext(manifest.hash)

    def run(split="test", choice=None, **changes):
        bundles = {f"{tmp_path}/bundle/dt=2024-03-10": model, **run.others}
        predictor = SimpleNamespace(Predictor=SimpleNamespace(load=bundles.__getitem__))
        monkeypatch.setitem(sys.modules, "model.predict", predictor)
        whole = SimpleNamespace(anchor_events=1, short_history_events=3)  # every window is read whole
        settings = Settings.model_construct(evaluation=JOB_SPEC.model_copy(update=changes), scoring=whole)
        return evaluate(settings, str(tmp_path), DAY, split, choice)

    run.root, run.model, run.others = tmp_path, model, {}
    return run


def test_the_job_writes_rows_a_summary_and_a_manifest(job):
    result = job()
    folder = job.root / "evaluation" / "dt=2024-03-10"
    assert result.path == str(folder)
    assert job.model.checked == LENGTH
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [x for x in lines if "low" in x and "cohort" not in x] == lines[: len(result.evaluation.rows)]
    right = [x for x in lines if (x["model"], x["target"], x["metric"], x["k"]) == ("model", "item", "hr", 1)]
    assert len(right) == 1
    assert (right[0]["value"], right[0]["low"], right[0]["n"], right[0]["model_version"]) == (
        1,
        1,
        20,
        job.model.model_version,
    )
    assert (right[0]["train_before"], right[0]["cutoff"]) == ("2024-03-09T00:00:00Z", "2024-03-10T00:00:00Z")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["headlines"][1]["target"] == "item"
    assert "oracle" not in summary["headlines"][1]
    manifest = Store(str(job.root)).manifest("evaluation", DAY, "jobs/evaluate.py")
    assert manifest.rows == len(lines)
    assert manifest.inputs["bundle"] == job.model.model_version
    # Each user's period holds all four items and both categories.
    assert row_of(result.evaluation, "item", "recall", 1, "model").value == 1 / 4
    assert row_of(result.evaluation, "category", "recall", 1, "model").value == 1 / 2
    # Markov learns the round from training events alone.
    assert row_of(result.evaluation, "item", "hr", 1, "markov").value == 1
    assert [path.name for path in (job.root / "evaluation").iterdir()] == ["dt=2024-03-10"]


def test_the_days_ahead_are_judged_over_those_who_stayed_away_too(job):
    write_scoring_rows(job.root, silent=["u98", "u99"])
    job.model.heads = ("horizon",)
    result = job()
    found = {(r.target, r.metric): r for r in result.future.rows if r.model == "model"}
    # The period is a day: the horizon of seven days is not judged. Each of the twenty does 2 of each category in it.
    assert {target for target, _ in found} == {
        "interests_1d",
        "touched_1d",
        "return",
        *(f"action_{x}" for x in c.ACTIONS),
    }
    said = found["interests_1d", "cross_entropy"]
    assert (said.value, said.n) == (pytest.approx(np.log(2), abs=1e-6), 20)
    assert found["touched_1d", "precision"].value == pytest.approx(20 / 22, abs=1e-6)
    assert found["touched_1d", "precision"].n == 22
    assert sorted(job.model.silences)[-2:] == [2 * c.DAY_S] * 2
    assert sorted(job.model.silences)[0] == 6 * 3600
    # The next session starts at the cutoff: the first hour of 24, given six of silence; u98 and u99 are not back.
    rate = -np.log(0.1) / 24
    back, gone = np.log(-np.expm1(-rate)), -np.log(1 / 0.9) * 24 / 144
    assert found["return", "log_likelihood"].value == pytest.approx((20 * back + 2 * gone) / 22, abs=1e-5)
    assert any("20 users with an event in the period and 2 without one" in note for note in result.notes)
    text = format_table(result)
    assert "Interests of the next day" in text
    assert "When they are back" in text
    assert text.count("What they will do") == 5
    lines = (job.root / "evaluation" / "dt=2024-03-10" / "metrics.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["metric"] for line in lines]
    assert {row.metric for row in result.future.rows} <= set(kinds)


def test_the_oracle_of_the_days_ahead_stands_beside_the_model(job):
    write_truth(job.root, TEST_AT)
    job.model.heads = ("horizon",)
    result = job()
    found = {(r.target, r.metric): r.value for r in result.future.rows if r.model == "oracle"}
    # Two events of each category: half of the shares at 0.7, half at 0.3.
    assert found["interests_1d", "cross_entropy"] == pytest.approx(-(np.log(0.7) + np.log(0.3)) / 2, abs=1e-5)
    assert found["touched_1d", "brier"] == pytest.approx((0.01 + 0.04) / 2, abs=1e-5)
    assert found["return", "brier_1d"] == pytest.approx(0.04, abs=1e-5)


def test_a_bundle_without_heads_for_the_days_ahead_is_judged_without_them(job):
    result = job()
    assert result.future.rows == ()
    assert any("Days ahead are not judged" in note for note in result.notes)


def test_running_again_writes_the_same_bytes(job):
    job()
    folder = job.root / "evaluation" / "dt=2024-03-10"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    job()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_valid_rows_are_judged_in_a_place_of_their_own(job):
    job()
    result = job("valid")
    assert result.path.endswith("evaluation_valid/dt=2024-03-10")
    assert (result.split.cutoff, result.split.train_before) == ("2024-03-09T00:00:00Z", "2024-03-09T00:00:00Z")
    assert (job.root / "evaluation" / "dt=2024-03-10" / "_MANIFEST.json").exists()


def test_a_sample_of_users_is_the_same_every_time_and_said(job):
    first = job(max_users=7, max_train_users=5)
    assert (first.split.n_users, first.split.n_users_in_split) == (7, 20)
    assert (first.split.n_train_users, first.split.n_train_users_in_split) == (5, 20)
    assert "n = 7 of 20 users" in format_table(first, markdown=True)
    assert job(max_users=7, max_train_users=5).evaluation == first.evaluation


def test_the_oracle_row_is_the_truth_as_of_the_cutoff(job):
    write_truth(job.root, TEST_AT)
    result = job()
    for target in ("item", "category"):
        assert row_of(result.evaluation, target, "hr", 1, "oracle").value == 19 / 20
        assert row_of(result.evaluation, target, "hr", 1, "latent truth").value == 1
    assert headline(result, "category")["oracle"] == row_of(result.evaluation, "category", "ndcg", 10, "oracle").value


def test_the_truth_is_neither_a_baseline_nor_the_best_row(job):
    write_truth(job.root, TEST_AT)
    job.model.step = 2
    result = job()
    said = headline(result, "category")
    assert said["best_baseline"] == "last category"
    assert said["difference"] == pytest.approx(said["model"] - said["baseline"])
    assert said["share_of_gap"] == pytest.approx(said["difference"] / (said["oracle"] - said["baseline"]), abs=1e-4)
    assert "last category *" in format_table(result)


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ({"test_cutoff": "2024-03-10T06:00:00Z"}, "split test, user u00: the label is before"),
        ({"test_cutoff": "2024-03-09T12:00:00Z"}, "split test, user u00: an input event"),
        ({"embargo_days": 1}, "split test, user u00: the label is before"),
        ({"valid_cutoff": "2024-03-08T12:00:00Z"}, "split train, user u00: a training event"),
    ],
)
def test_rows_that_leak_are_refused(job, said, where):
    job.model.bundle.data_hash = write_sequences(job.root, **said).hash
    with pytest.raises(ModelError, match=where):
        job()


def test_users_without_a_truth_are_misses_and_counted(job):
    write_truth(job.root, TEST_AT, users=range(5, N_USERS))
    result = job()
    assert row_of(result.evaluation, "item", "hr", 1, "oracle").value == 14 / 20
    assert "Users without a truth, who count as misses in both: 5." in result.notes[0]


def test_a_truth_of_another_cutoff_is_not_used_and_that_is_said(job):
    write_truth(job.root, VALID_AT)
    result = job()
    assert "oracle" not in {row.model for row in result.evaluation.rows}
    assert "No oracle row" in format_table(result)


def test_leave_one_out_says_so_and_has_no_cutoff(job):
    job.model.bundle.data_hash = write_sequences(job.root, "leave_one_out").hash
    result = job()
    assert (result.split.protocol, result.split.cutoff) == ("leave_one_out", None)
    assert "leave one out" in format_table(result)
    assert row_of(result.evaluation, "item", "hr", 1, "model").value == 1


def test_the_table_marks_the_best_honest_row_and_is_aligned(job):
    write_truth(job.root, TEST_AT)
    result = job()
    text = format_table(result)
    item_table = text[text.index("Next item, 4 candidates") :].splitlines()[2:11]
    assert item_table[0].split() == [
        "NDCG@10",
        "HR@10",
        "Recall@10",
        "Precision@10",
        "F1@10",
        "MRR@10",
        "HR@1",
        "coverage@10",
    ]
    marked = [line for line in item_table if " * " in line]
    assert len(marked) == 1
    assert not marked[0].startswith(("oracle", "latent"))
    assert len({len(line) for line in item_table}) == 1
    markdown = format_table(result, markdown=True)
    assert markdown.count("**") == 4
    assert "| --" in markdown
    assert "paired over users" in text
    assert text.startswith("Split test of 2024-03-10, global time: trained before 2024-03-09T00:00:00Z")


def test_a_model_of_other_sequences_is_refused(job):
    job.model.bundle.data_hash = "0123456789abcdef"
    with pytest.raises(ModelError, match=r"0123456789abcdef.*may hold the labels"):
        job()
    assert not (job.root / "evaluation").exists()


def test_torn_sequences_are_refused(job):
    next((job.root / TRAINING_SEQUENCES.name).rglob("group-00001.parquet")).unlink()
    with pytest.raises(ContractError, match="is missing"):
        job()


def test_a_split_without_rows_is_refused(job):
    job.model.bundle.data_hash = write_sequences(job.root, splits=(c.TRAIN, c.VALID)).hash
    with pytest.raises(ModelError, match="split test has no rows"):
        job()
