import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features import columns as c
from model import feed, step, streams, training
from model.checkpoint import Checkpoints
from model.errors import ModelError
from model.network import Network
from model.optimizer import Averages
from model.streams import StreamBatch
from model.training import Outcome, Task, best_of
from model.workers import SingleProcess
from tests.model import tables


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[feed.DataFile, ...]]:
    folder = tmp_path_factory.mktemp("training")
    return {
        "train": tables.write_split(folder / "train", tables.ruled_rows(1500, seed=1), groups=4),
        "valid": tables.write_split(folder / "valid", tables.ruled_rows(301, seed=2), groups=4),
    }


def _task(splits: dict[str, tuple[feed.DataFile, ...]], network: dict[str, Any] | None = None, **changes: Any) -> Task:
    return Task(
        tables.NETWORK.model_copy(update=network or {}),
        tables.TRAINING.model_copy(update=changes),
        tables.SIZES,
        **splits,
        facts={},
    )


def _train(task: Task, folder: Path, said: list[str] | None = None) -> Outcome:
    return training.train(task, SingleProcess(), Checkpoints(str(folder), 2), (said if said is not None else []).append)


def _weights(outcome: Outcome) -> dict[str, np.ndarray]:
    return {name: weight.numpy() for name, weight in outcome.network.weights.items()}


def test_it_learns_a_rule_over_two_events(splits, tmp_path: Path):
    outcome = _train(_task(splits, max_epochs=4), tmp_path)
    best = outcome.history[outcome.best_epoch - 1]
    # From the last event alone two items are equally likely: at best log 2. By chance: log 20.
    assert best["valid_item_loss"] < 0.1 < math.log(2)
    assert best["valid_item_hr"] > 0.99
    assert best["valid_category_loss"] < 0.1
    assert outcome.history[0]["train_item_loss"] < math.log(tables.N_ITEMS)


def test_sampled_softmax_learns_it_too(splits, tmp_path: Path):
    outcome = _train(_task(splits, {"full_softmax_max_items": 5}, max_epochs=5), tmp_path)
    assert outcome.history[-1]["valid_item_loss"] < 0.2


def test_smoothing_with_the_sampled_softmax_is_refused(splits, tmp_path: Path):
    with pytest.raises(ModelError, match=r"training\.label_smoothing = 0\.1 needs the full softmax"):
        _train(_task(splits, {"full_softmax_max_items": 5}, label_smoothing=0.1), tmp_path)


def test_the_same_seed_gives_the_same_weights_and_a_resumed_run_too(splits, tmp_path: Path):
    """Cut off within its second epoch and started again, a run ends bit for bit where an uninterrupted one does."""
    network = {"embedding_dropout": 0.2, "hidden_dropout": 0.2}
    whole = _train(_task(splits, network, max_epochs=2), tmp_path / "whole")
    task = _task(splits, network, max_epochs=2, checkpoint_steps=20)
    run = _started(task, tmp_path / "cut")
    run._epoch()
    _cut_off(run, after=25)
    said: list[str] = []
    resumed = _train(task, tmp_path / "cut", said)
    assert said[0] == "going on after epoch 1, step 60 of an earlier run of the same training"
    assert _without_clock(resumed.history) == _without_clock(whole.history)
    for name, weight in _weights(whole).items():
        np.testing.assert_array_equal(weight, _weights(resumed)[name], err_msg=name)
    other = _weights(_train(_task(splits, network, max_epochs=1, seed=8), tmp_path / "other"))
    assert np.abs(other["embedding/item"] - _weights(whole)["embedding/item"]).max() > 0.1


def test_averaged_weights_are_validated_and_handed_back_and_survive_a_cut(splits, tmp_path: Path):
    network = {"hidden_dropout": 0.2}
    task = _task(splits, network, max_epochs=2, ema_decay=0.98, checkpoint_steps=20)
    whole = _train(task, tmp_path / "whole")
    run = _started(task, tmp_path / "cut")
    run._epoch()
    _cut_off(run, after=25)
    resumed = _train(task, tmp_path / "cut")
    assert _without_clock(resumed.history) == _without_clock(whole.history)
    for name, weight in _weights(whole).items():
        np.testing.assert_array_equal(weight, _weights(resumed)[name], err_msg=name)

    plain = _train(_task(splits, network, max_epochs=2), tmp_path / "plain")
    for own, other in zip(whole.history, plain.history, strict=True):  # training goes on from the weights themselves
        assert own["train_item_loss"] == other["train_item_loss"]
        assert abs(own["valid_item_loss"] - other["valid_item_loss"]) > 1e-3
    # What was validated is what is handed back.
    shown = _started(task, tmp_path / "whole")
    shown.network.set_weights(_weights(whole))
    shown._steps.averages = Averages(shown.network.weights, 0.0)
    assert shown._validate()["valid_item_loss"] == whole.history[whole.best_epoch - 1]["valid_item_loss"]


@pytest.mark.parametrize("cell", ["gru", "rnn", "cnn"])
def test_other_cells_learn_the_rule_too(splits, tmp_path: Path, cell: str):
    outcome = _train(_task(splits, {"cell": cell, "layer_norm": cell == "rnn"}, max_epochs=4), tmp_path)
    assert outcome.history[-1]["valid_item_loss"] < 0.35 < math.log(2)


def test_bpr_max_ranks_what_follows_by_the_rule_first(splits, tmp_path: Path):
    outcome = _train(_task(splits, loss="bpr_max", max_epochs=4, select_by="ndcg"), tmp_path)
    assert outcome.history[-1]["valid_item_ndcg"] > 0.95
    assert outcome.history[-1]["valid_category_loss"] < 0.2  # that head keeps its softmax


def test_a_finished_run_is_not_trained_again_and_a_changed_one_starts_anew(splits, tmp_path: Path):
    task = _task(splits, max_epochs=1)
    first = _train(task, tmp_path)
    said: list[str] = []
    again = _train(task, tmp_path, said)
    assert said == ["going on after epoch 1 of an earlier run of the same training"]
    for name, weight in _weights(first).items():
        np.testing.assert_array_equal(weight, _weights(again)[name], err_msg=name)
    said.clear()
    _train(_task(splits, max_epochs=1, learning_rate=0.02), tmp_path, said)
    assert "starting anew" in said[0]
    assert "epoch 1/1" in said[1]


def test_training_stops_when_validation_gets_no_better(splits, tmp_path: Path):
    outcome = _train(_task(splits, max_epochs=9, patience_epochs=2, learning_rate=1e-9), tmp_path)
    assert len(outcome.history) - outcome.best_epoch in (0, 2)
    assert outcome.best_epoch == best_of(outcome.history, tables.TRAINING)


def test_the_best_weights_are_handed_back_not_the_last(splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "best_of", lambda _history, _spec: 1)
    best = _weights(_train(_task(splits, max_epochs=2, patience_epochs=3), tmp_path / "two"))
    only = _weights(_train(_task(splits, max_epochs=1), tmp_path / "one"))
    for name, weight in only.items():
        np.testing.assert_array_equal(weight, best[name], err_msg=name)


def test_the_best_epoch_is_the_first_of_equals_by_the_chosen_figure():
    history = [
        {"epoch": epoch, "valid_loss": loss, "valid_item_ndcg": ndcg, "valid_category_ndcg": 0.5}
        for epoch, loss, ndcg in ((1, 3.0, 0.1), (2, 2.0, 0.2), (3, 2.0, 0.4), (4, 2.5, 0.4))
    ]
    assert best_of(history, tables.TRAINING) == 2
    assert best_of(history, tables.TRAINING.model_copy(update={"select_by": "ndcg"})) == 3


def test_a_loss_that_is_not_a_number_stops_with_what_to_change(splits, tmp_path: Path):
    with pytest.raises(ModelError, match=r"not a number at step \d+ .*training\.learning_rate"):
        _train(_task(splits, learning_rate=1e30, clip_norm=1e30, max_epochs=2), tmp_path)


def test_validation_counts_each_row_once_and_an_unknown_target_as_a_miss(tmp_path: Path):
    rows = tables.ruled_rows(50, seed=3)
    rows[c.NEXT_ITEM][:20] = c.OOV
    splits = {name: tables.write_split(tmp_path / name, rows, groups=2) for name in ("train", "valid")}
    outcome = _train(_task(splits, max_epochs=25, patience_epochs=25, learning_rate=0.03), tmp_path / "checkpoints")
    assert 0.55 < outcome.history[-1]["valid_item_hr"] <= 0.6  # 30 of 50 rows can be hit at all
    assert outcome.history[-1]["valid_category_hr"] == 1.0


def test_validation_takes_few_rows_at_a_time_where_the_vocabulary_is_large(
    splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    task, sizes = _task(splits, max_epochs=1), set()
    whole = _train(task, tmp_path / "whole").history[0]
    monkeypatch.setattr(training, "_VALID_SCORES", 5 * tables.SIZES.items)
    validate = step.Steps.validate

    def noted(self: step.Steps, batch: dict[str, np.ndarray], n_rows: int) -> step.ValidSums:
        sizes.add(len(batch[c.LENGTH]))
        return validate(self, batch, n_rows)

    monkeypatch.setattr(step.Steps, "validate", noted)
    parts = _train(task, tmp_path / "parts").history[0]
    assert sizes == {5}
    for name in (name for name in whole if name.startswith("valid_")):
        assert parts[name] == pytest.approx(whole[name], rel=1e-5)


def test_ranks_break_ties_against_the_target():
    logits = np.array([[1.0, 3.0, 3.0, 0.0]] * 4, np.float32)
    rank = step._rank_of(logits, np.array([2, 3, 5, c.OOV]))
    assert rank.numpy()[:3].tolist() == [3, 2, 4]
    assert rank.numpy()[3] > 1_000_000


def test_every_batch_of_every_stream_draws_its_own_random_numbers():
    steps = step.Steps(Network(tables.NETWORK, tables.SIZES), tables.TRAINING, SingleProcess(), {})
    seeds = {tuple(steps._seed(stream, number).tolist()) for stream in (0, 1) for number in (1, 2, 2**24)}
    assert len(seeds) == 6


def test_one_graph_serves_every_batch(splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    traced: Counter[str] = Counter()
    whole = step.Steps._gradient_graph

    def counted(self: step.Steps, *arguments: Any) -> Any:
        traced["gradients"] += 1
        return whole(self, *arguments)

    monkeypatch.setattr(step.Steps, "_gradient_graph", counted)
    _train(_task(splits, max_epochs=2), tmp_path)
    assert traced["gradients"] == 1


def test_sparse_gradients_as_dense_ones_move_rows_that_a_step_does_not_touch():
    def items(sparse_as_dense: bool, n_steps: int) -> np.ndarray:
        network = Network(tables.NETWORK.model_copy(update={"full_softmax_max_items": 5}), tables.SIZES, seed=1)
        spec = tables.TRAINING.model_copy(update={"negatives": 1, "sparse_as_dense": sparse_as_dense})
        steps = step.Steps(network, spec, SingleProcess(), {c.ITEM: np.ones(tables.SIZES.items, np.int64)})
        for number in range(1, n_steps + 1):
            rows = {name: values[number : number + 1] for name, values in tables.ruled_rows(9, seed=4).items()}
            steps.train([StreamBatch(0, number, rows)], number, 0.01)
        return network.weights["embedding/item"].numpy()

    np.testing.assert_allclose(items(True, 1), items(False, 1), atol=1e-6)
    assert np.abs(items(True, 2) - items(False, 2)).max() > 1e-3


@pytest.mark.parametrize("head", [{}, {"full_softmax_max_items": 5}], ids=["full", "sampled"])
def test_several_batches_a_step_move_the_weights_as_one_with_all_rows_does(head, monkeypatch: pytest.MonkeyPatch):
    """Nothing is dropped, and each batch draws the same negatives. A large epsilon: see test_ranks."""
    monkeypatch.setattr(step.Steps, "_seed", lambda *_: np.array([1, 2], np.int32))
    traced: Counter[str] = Counter()
    whole = step.Steps._apply_graph
    monkeypatch.setattr(step.Steps, "_apply_graph", lambda *given: (traced.update(["apply"]), whole(*given))[1])
    rows = tables.ruled_rows(96, seed=4)
    parts = [{name: values[at : at + 32] for name, values in rows.items()} for at in (0, 32, 64)]

    def trained(batches: list[StreamBatch]) -> tuple[list[step.TrainSums], dict[str, np.ndarray]]:
        network = Network(tables.NETWORK.model_copy(update={"query_dropout": 0.0, **head}), tables.SIZES, seed=1)
        counts = {c.ITEM: np.ones(tables.SIZES.items, np.int64)}
        spec = tables.TRAINING.model_copy(update={"adam_epsilon": 1e-3})
        steps = step.Steps(network, spec, SingleProcess(), counts)
        sums = [steps.train(batches, number, 0.01) for number in (1, 2, 3)]
        return sums, {name: weight.numpy() for name, weight in network.weights.items()}

    one, weights = trained([StreamBatch(0, 1, rows)])
    traced.clear()
    several, same = trained([StreamBatch(stream, 1, part) for stream, part in enumerate(parts)])
    assert several[0].positions == rows[c.LENGTH].sum()
    np.testing.assert_allclose(several, one, rtol=1e-4)
    for name, weight in weights.items():
        np.testing.assert_allclose(same[name], weight, atol=2e-5, err_msg=name)
    assert traced["apply"] == 1


def test_the_learning_rate_warms_up_decays_and_grows_with_the_streams(splits, tmp_path: Path):
    changes = {"warmup_steps": 10, "lr_epoch_decay": 0.5, "lr_scaling": "sqrt", "learning_rate": 0.1}
    run = _started(_task(splits, streams=4, **changes), tmp_path)
    assert run._learning_rate(1, 5) == pytest.approx(0.1 * 2 * 0.5)
    assert run._learning_rate(2, 50) == pytest.approx(0.1 * 2 * 0.5)


def test_more_ranks_than_streams_are_refused(splits, tmp_path: Path):
    _stop_after(1, _task(splits), tmp_path)  # streams: 0, so as many as ranks: 1
    with pytest.raises(ModelError, match=r"2 ranks are too many for a training of 1 stream: .*training\.streams = 2"):
        streams.own_streams(1, 0, 2)
    with pytest.raises(ModelError, match=r"train split has 4 row groups for 3 streams"):
        _train(_task(splits, streams=3), tmp_path / "three")


def test_streams_give_each_row_once_whichever_rank_serves_them(splits):
    spec = tables.TRAINING.model_copy(update={"batch_rows": 25, "backward_passes_per_step": 3})

    def taken(own: Sequence[int], steps: int, start: int = 0) -> list[tuple[int, int, list[int]]]:
        batches = streams.step_batches(splits["train"], tables.LENGTH, spec, 4, own, start)
        return [(b.stream, b.number, b.rows[c.ITEM].ravel().tolist()) for step in islice(batches, steps) for b in step]

    alone = sorted(taken(range(4), 6))
    assert sorted(taken([0, 2], 6) + taken([1], 6) + taken([3], 6)) == alone
    assert sorted(taken([0, 1], 4) + taken([2, 3], 4) + taken([0, 1, 2, 3], 2, start=4)) == alone
    assert [number for stream, number, _ in alone if stream == 1] == list(range(1, 19))
    first_pass = Counter(
        tuple(rows[at : at + tables.LENGTH]) for _, _, rows in taken(range(4), 5) for at in range(0, len(rows), 8)
    )
    written = tables.ruled_rows(1500, seed=1)
    assert first_pass == Counter(map(tuple, written[c.ITEM].tolist()))


def _started(task: Task, folder: Path) -> training._Run:
    run = training._Run(task, SingleProcess(), Checkpoints(str(folder), 2), lambda _line: None)
    run._join()
    return run


def _cut_off(run: training._Run, after: int) -> None:
    """Let a run take some steps of its next epoch and end as a kill would: only its checkpoints stay."""
    whole, left = run._steps.train, iter(range(after))

    def limited(*given: Any) -> step.TrainSums:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return whole(*given)

    run._steps.train = limited  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run._epoch()


def _without_clock(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in ("seconds", "events_per_s")} for row in history]


def _stop_after(epochs: int, task: Task, folder: Path) -> None:
    """Let a run go on for some epochs and end as a kill would: only its checkpoints stay."""
    run = _started(task, folder)
    for _ in range(epochs):
        run._epoch()


def test_rows_in_buckets_of_length_learn_the_rule(splits, tmp_path: Path):
    outcome = _train(_task(splits, max_epochs=4, batch_rows=8, length_buckets=(3, 5)), tmp_path)
    assert outcome.history[-1]["valid_item_loss"] < 0.1


def test_an_epoch_takes_about_every_row_whatever_the_buckets():
    lengths = np.array([0, 0, 40, 40, 40, 0, 0, 0, 16])  # rows of 0, 1, … 8 events
    for edges, wanted in (((), 17), ((4,), 9)):  # 136 / 8; 120 / 16 + 16 / 8
        training_spec = tables.TRAINING.model_copy(update={"batch_rows": 8, "length_buckets": edges})
        assert streams.steps_per_epoch(lengths, 8, training_spec, 1) == wanted
        assert streams.steps_per_epoch(lengths, 8, training_spec, 4) == wanted // 4
