"""The forward pass and the choice of the likeliest ids in one process, for `benchmarks.score` to compare with.

Usage: python -m benchmarks.score_parts BUNDLE SEQUENCES THREADS USERS. Prints one JSON object.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import psutil
import pyarrow.parquet as pq

from features import columns as c
from features.scoring import HISTORY_COLUMNS
from jobs.settings import load_settings

_ROWS, _RUNS = 256, 9


def main(bundle: str, sequences: str, threads: int, n_users: int) -> dict[str, float]:
    """Seconds for all users, and of one batch for the forward and for what top-K adds.

    The forward: states, scores of all ids, their normaliser, and the shares of what a row holds.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as jobs/score.py
    import tensorflow as tf

    from model.predict import Predictor
    from model.repeats import without

    spec = load_settings().scoring
    predictor = Predictor.load(bundle, threads)
    length = predictor.sizes.length

    def scored(channels: dict[str, np.ndarray], lengths: np.ndarray, next_gap: np.ndarray) -> None:
        state = np.zeros((len(lengths), predictor.state_floats), np.float32)
        state = predictor.advance(channels, lengths, state)
        predictor.top_of(state, next_gap, channels, lengths, spec.top_k_items, spec.interest_depth)

    seconds, left = 0.0, n_users
    batch = None
    for file in sorted(Path(sequences).glob("*.parquet")):
        table = pq.ParquetFile(file).read(columns=list(HISTORY_COLUMNS)).slice(0, left)
        left -= len(table)
        rows = (
            {n: table[n].combine_chunks().flatten().to_numpy().reshape(-1, length) for n in c.CHANNELS},
            table[c.LENGTH].to_numpy(),
            table[c.NEXT_GAP].to_numpy(),
        )
        if batch is None:
            batch = ({n: v[:_ROWS] for n, v in rows[0].items()}, rows[1][:_ROWS], rows[2][:_ROWS])
            scored(*batch)  # traces the graphs
        for start in range(0, len(table), spec.bucket_users):
            some = slice(start, start + spec.bucket_users)
            started = perf_counter()
            scored({n: v[some] for n, v in rows[0].items()}, rows[1][some], rows[2][some])
            seconds += perf_counter() - started
    assert batch is not None

    network = predictor._network

    @tf.function(reduce_retracing=True)
    def distributions(state: tf.Tensor, next_gap: tf.Tensor, row: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        newest, found = network.newest(state), []
        for kind, answer in network.answers(newest, next_gap).items():
            modes, held = predictor._modes(kind, newest, next_gap, answer, row)
            scores = network.logits(kind, answer)
            found.append(tf.reduce_logsumexp(scores if held is None else without(scores, held), axis=-1))
            found += modes or ()
        return found

    zeros = np.zeros((_ROWS, predictor.state_floats), np.float32)
    state = predictor.advance(batch[0], batch[1], zeros)
    advance_s = _timed(lambda: predictor.advance(batch[0], batch[1], zeros))
    row = {name: batch[0][name] for name in (c.ITEM, c.ACTION_CODE)} | {c.LENGTH: batch[1]}
    plain_s = _timed(lambda: distributions(state, batch[2], row))
    k = spec.top_k_items, spec.interest_depth
    top_s = _timed(lambda: predictor.top_of(state, batch[2], *batch[:2], *k))
    return {
        "seconds": seconds,
        "forward_s": advance_s + plain_s,
        "top_s": top_s - plain_s,
        "peak_rss_mib": psutil.Process().memory_info().rss / (1 << 20),
    }


def _timed(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_RUNS):
        started = perf_counter()
        work()
        times.append(perf_counter() - started)
    return median(times)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
