"""What `benchmarks.train` and `benchmarks.scaling` time, one piece a process, so that each has the threads it likes.

Usage: python -m benchmarks.train_parts PIECE JSON [FOLDER]. Prints one JSON object.
"""

import json
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from features import columns as c
from model.spec import Sizes

_BASE = Path(__file__).resolve().parent.parent / "conf" / "base.yaml"
_GAP_EDGES_S = (1, 10, 60, 300, 1800, 7200, 21_600, 86_400, 259_200, 604_800, 2_592_000)  # as in conf/base.yaml
_CATEGORIES, _ACTIONS, _GAP_CODES = 502, c.N_ACTION_CODES, c.FIRST_GAP + len(_GAP_EDGES_S) + 1
_N_BATCHES = 8
_MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """Sizes of a training step. `items` includes PAD and OOV; a limit of None is that of conf/base.yaml."""

    rows: int = 256
    length: int = 50
    items: int = 20_002
    item_dim: int = 64
    units: int = 128
    negatives: int = 1_024
    full_softmax_max_items: int | None = None
    sparse_min_items: int | None = None
    threads: int = 2
    steps: int = 15
    pin_ranks: bool = False

    def network(self) -> dict[str, Any]:
        """Section network of the configuration, at these sizes."""
        changes = {name: getattr(self, name) for name in ("full_softmax_max_items", "sparse_min_items")}
        sizes = {"item_dim": self.item_dim, "units": self.units, "repeat": False}  # the peer has no such scores
        given = {name: value for name, value in changes.items() if value is not None}
        return {**_configuration("network"), **sizes, **given}

    def sizes(self) -> Sizes:
        """What the data fixes."""
        return Sizes(
            items=self.items,
            categories=_CATEGORIES,
            length=self.length,
            gap_codes=_GAP_CODES,
            new_session_gap=7,
            session_gap_s=1800,
            gap_edges_s=_GAP_EDGES_S,
            horizons_days=(1, 7, 30),
        )

    @property
    def n_scored(self) -> int:
        """Rows of the item table that a position is scored against."""
        is_sampled = self.items > self.network()["full_softmax_max_items"]
        return self.negatives if is_sampled else self.items - c.FIRST_ID

    @property
    def flop(self) -> float:
        """Multiplications and additions in the matrix products of one step: forward once, backward twice."""
        network = self.network()
        width = sum(network[name] for name in ("item_dim", "category_dim", "action_dim", "gap_dim", "hour_dim"))
        e, h, d = self.item_dim, self.units, network["category_dim"]
        a_position = (width + h) * 4 * h + h * e + e * self.n_scored + h * d + d * (_CATEGORIES - c.FIRST_ID)
        return 3.0 * 2.0 * a_position * self.rows * self.length


def _configuration(section: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(_BASE.read_text(encoding="utf-8"))[section]
    return found


def batches(case: Case, seed: int = 0) -> list[dict[str, NDArray[np.int32]]]:
    """Full rows; items by a power law whose 95th percentile is 20 times its median, as in a shop's log."""
    rng = np.random.default_rng(seed)
    share = (np.arange(1, case.items - 1) + 50.0) ** -1.3
    cumulative = np.cumsum(share / share.sum())

    def items(*shape: int) -> NDArray[np.int32]:
        return (c.FIRST_ID + np.searchsorted(cumulative, rng.random(shape)).clip(max=case.items - 3)).astype(np.int32)

    def codes(low: int, high: int, *shape: int) -> NDArray[np.int32]:
        return rng.integers(low, high, shape, dtype=np.int32)

    made = []
    for _ in range(_N_BATCHES):
        item, following = items(case.rows, case.length), items(case.rows)
        made.append(
            {
                c.ITEM: item,
                c.CATEGORY: c.FIRST_ID + item % (_CATEGORIES - c.FIRST_ID),
                c.ACTION_CODE: codes(c.FIRST_ID, _ACTIONS, case.rows, case.length),
                c.GAP: codes(c.FIRST_GAP, _GAP_CODES, case.rows, case.length),
                c.HOUR: codes(c.FIRST_HOUR, c.N_HOUR_CODES, case.rows, case.length),
                c.LENGTH: np.full(case.rows, case.length, np.int32),
                c.NEXT_GAP: codes(c.FIRST_GAP, _GAP_CODES, case.rows),
                c.NEXT_ITEM: following,
                c.NEXT_CATEGORY: c.FIRST_ID + following % (_CATEGORIES - c.FIRST_ID),
                **_future(case, rng),
            }
        )
    return made


def _future(case: Case, rng: np.random.Generator) -> dict[str, NDArray[np.int32]]:
    """An event every six hours, before the window's end and after it, until all that is listed."""
    every_s, n_ahead = 6 * 3_600, int(_configuration("sequences")["ahead_events"])
    ahead = rng.integers(c.FIRST_ID, [[[_CATEGORIES]], [[_ACTIONS]]], (2, case.rows, n_ahead), dtype=np.int32)
    return {
        c.AGE: np.tile(np.arange(case.length, dtype=np.int32)[::-1] * every_s, (case.rows, 1)),
        c.AHEAD_CATEGORY: ahead[0],
        c.AHEAD_ACTION: ahead[1],
        c.AHEAD: np.tile(np.arange(1, n_ahead + 1, dtype=np.int32) * every_s, (case.rows, 1)),
        c.AHEAD_LENGTH: np.full(case.rows, n_ahead, np.int32),
        c.KNOWN: np.full(case.rows, n_ahead * every_s, np.int32),
    }


def write_files(folder: Path, case: Case, n_files: int) -> None:
    """Full rows in files of one row group, as jobs.sequences writes them."""
    folder.mkdir(parents=True)
    for number, rows in zip(range(n_files), cycle(batches(case)), strict=False):
        write_rows(folder / f"group-{number:05d}.parquet", rows)


def write_rows(path: Path, rows: Mapping[str, NDArray[np.int32]]) -> None:
    """One file of one row group."""
    columns = {
        name: pa.array(list(values), pa.list_(pa.int32())) if values.ndim == 2 else pa.array(values)
        for name, values in rows.items()
    }
    pq.write_table(pa.table(columns), path, compression="snappy")


def counts(case: Case) -> dict[str, NDArray[np.int64]]:
    """How often each id is a target in the batches."""
    made = batches(case)
    return {
        kind: sum(np.bincount(batch[kind].ravel(), minlength=size) for batch in made)
        for kind, size in ((c.ITEM, case.items), (c.CATEGORY, _CATEGORIES))
    }


def matmul(case: Case) -> dict[str, float]:
    """The rate of one large product, each operation split among the threads, as TensorFlow does by itself."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(case.threads)
    size = 2_048
    left, right = (tf.random.stateless_normal([size, size], [seed, 0]) for seed in (1, 2))
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(left, right)))
    product()
    seconds = _timed(lambda: product().numpy(), 20)
    return {"gflop_s": 2.0 * size**3 / seconds / 1e9}


def ours(case: Case) -> dict[str, float]:
    """The project's training step; under horovodrun, as one of the ranks."""
    from model.network import Network
    from model.spec import NetworkSpec, TrainingSpec
    from model.step import Steps
    from model.streams import StreamBatch
    from model.workers import connect_workers, use_threads

    use_threads(case.threads)
    training = TrainingSpec.model_validate(
        {
            **_configuration("training"),
            "batch_rows": case.rows,
            "negatives": case.negatives,
            "pin_ranks": case.pin_ranks,
        }
    )
    workers = connect_workers(training)
    network = NetworkSpec.model_validate(case.network())
    made = batches(case, seed=workers.rank)
    steps = Steps(Network(network, case.sizes(), 1), training, workers, counts(case))
    losses: list[float] = []

    def step() -> None:
        number = len(losses) + 1
        sums = steps.train([StreamBatch(workers.rank, number, made[number % _N_BATCHES])], number, 1e-3)
        losses.append(sums.item_loss / sums.item_targets)

    step()
    seconds = _timed(step, case.steps)
    return {**_rates(case, seconds, workers.size), "rank": workers.rank, "first_loss": losses[0], "loss": losses[-1]}


def whole_training(case: Case, folder: str) -> dict[str, float]:
    """A training from files to best weights, validation and checkpoints included; for its memory."""
    from model.checkpoint import Checkpoints
    from model.feed import DataFile
    from model.spec import NetworkSpec, TrainingSpec
    from model.training import Task, train
    from model.workers import connect_workers, use_threads

    use_threads(case.threads)
    spec = TrainingSpec.model_validate({**_configuration("training"), "batch_rows": case.rows, "max_epochs": 2})
    files = {
        split: tuple(DataFile(str(path), case.rows) for path in sorted(Path(folder, split).glob("*.parquet")))
        for split in (c.TRAIN, c.VALID)
    }
    task = Task(NetworkSpec.model_validate(case.network()), spec, case.sizes(), files[c.TRAIN], files[c.VALID], {})
    workers = connect_workers(spec)
    outcome = train(task, workers, Checkpoints(f"{folder}/checkpoints", spec.checkpoints_kept), lambda _line: None)
    return {"rank": workers.rank, "epochs": len(outcome.history), "peak_rss_mib": _peak_mib()}


def keras_fit(case: Case) -> dict[str, float]:
    """The same inputs, layers, sizes and losses as Keras offers them: keras.layers.LSTM and Model.fit."""
    import tensorflow as tf
    from tensorflow import keras

    tf.config.threading.set_intra_op_parallelism_threads(case.threads)
    network = case.network()
    dims = dict(
        zip(c.CHANNELS, (network[f"{name}_dim"] for name in ("item", "category", "action", "gap", "hour")), strict=True)
    )
    rows = dict(zip(c.CHANNELS, (case.items, _CATEGORIES, c.N_ACTION_CODES, _GAP_CODES, c.N_HOUR_CODES), strict=True))

    class Head(keras.layers.Layer):  # type: ignore[misc]
        """Sampled softmax over items, its table that of the input embedding."""

        def __init__(self, table: Any) -> None:
            super().__init__()
            self._table = table
            self._bias = self.add_weight(shape=[case.items], initializer="zeros", name="bias")

        def call(self, inputs: Any) -> Any:
            answers, targets = inputs
            flat = tf.reshape(answers, [-1, case.item_dim])
            labels = tf.cast(tf.reshape(targets, [-1, 1]), tf.int64)
            table = self._table.embeddings
            if case.n_scored == case.negatives:
                loss = tf.nn.sampled_softmax_loss(table, self._bias, labels, flat, case.negatives, case.items)
            else:
                logits = tf.matmul(flat, table, transpose_b=True) + self._bias
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels[:, 0], logits)
            self.add_loss(tf.reduce_mean(loss))
            return loss

    inputs = {name: keras.Input([case.length], dtype="int32", name=name) for name in c.CHANNELS}
    after = {name: keras.Input([case.length], dtype="int32", name=f"next_{name}") for name in (c.ITEM, c.CATEGORY)}
    tables = {name: keras.layers.Embedding(rows[name], dims[name]) for name in c.CHANNELS}
    hidden = keras.layers.Concatenate()([tables[name](inputs[name]) for name in c.CHANNELS])
    hidden = keras.layers.Dropout(network["embedding_dropout"])(hidden)
    hidden = keras.layers.LSTM(case.units, return_sequences=True)(hidden)
    hidden = keras.layers.Dropout(network["hidden_dropout"])(hidden)
    item = Head(tables[c.ITEM])([keras.layers.Dense(case.item_dim, use_bias=False)(hidden), after[c.ITEM]])
    category = keras.layers.Dense(_CATEGORIES)(keras.layers.Dense(dims[c.CATEGORY], use_bias=False)(hidden))
    model = keras.Model([*inputs.values(), *after.values()], [item, category])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3, global_clipnorm=1.0), loss=[None, loss])

    def examples() -> Iterator[tuple[tuple[Any, ...], Any]]:
        for batch in batches(case):
            ahead = [
                np.concatenate([batch[kind][:, 1:], batch[f"next_{kind}"][:, None]], axis=1)
                for kind in (c.ITEM, c.CATEGORY)
            ]
            yield (*(batch[name] for name in c.CHANNELS), *ahead), ahead[1]

    made = list(examples())
    shape = tf.TensorSpec([case.rows, case.length], tf.int32)
    rows_of = tf.data.Dataset.from_generator(lambda: iter(made), output_signature=((shape,) * 7, shape))
    stream = rows_of.cache().repeat().prefetch(2)

    started: list[float] = []
    seconds: list[float] = []
    clock = keras.callbacks.LambdaCallback(
        on_batch_begin=lambda batch, logs: started.append(perf_counter()),  # noqa: ARG005
        on_batch_end=lambda batch, logs: seconds.append(perf_counter() - started[-1]),  # noqa: ARG005
    )
    model.fit(stream, steps_per_epoch=case.steps + 3, epochs=1, verbose=0, callbacks=[clock])
    return _rates(case, median(seconds[3:]), 1)


def _timed(work: Callable[[], object], times: int) -> float:
    """Median seconds of a piece of work, after two runs that do not count."""
    seconds = []
    for _ in range(times + 2):
        started = perf_counter()
        work()
        seconds.append(perf_counter() - started)
    return median(seconds[2:])


def _rates(case: Case, seconds: float, ranks: int) -> dict[str, float]:
    return {
        "seconds": seconds,
        "events_s": ranks * case.rows * case.length / seconds,
        "gflop_s": ranks * case.flop / seconds / 1e9,
        "peak_rss_mib": _peak_mib(),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MIB


def main() -> None:
    """Time one piece."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    piece, text, *rest = sys.argv[1:]
    if piece in ("ours", "whole_training"):
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as jobs.train does
    pieces: dict[str, Callable[..., dict[str, float]]] = {
        "matmul": matmul,
        "ours": ours,
        "keras_fit": keras_fit,
        "whole_training": whole_training,
    }
    print(json.dumps(pieces[piece](Case(**json.loads(text)), *rest)))


def encoded(case: Case) -> str:
    """A case as the command line takes it."""
    return json.dumps(asdict(case))


if __name__ == "__main__":
    main()
