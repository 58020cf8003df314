"""The approximate choice of the likeliest items against the exact one, in one process: for `benchmarks.score`.

Usage: python -m benchmarks.score_index ITEMS THREADS RUNS [PROBES]. Prints one JSON object.

Items lie around the centres of 500 categories and have a bias that falls as popularity does (Zipf); answers lie around
the same centres. Scores spread about as those of a trained model: nearly all weight lies on a few hundred items.
"""

import json
import os
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np
import psutil

from jobs.settings import load_settings

_ROWS, _WIDTH, _CENTRES = 256, 64, 500
_JUDGED = 1_024  # answers that recall and normaliser are judged by
_NEAR = 0.8  # cosine of a vector and its centre, about
_ITEM_NORM, _ANSWER_NORM, _ZIPF = 1.5, 6.0, 0.8


def main(n_items: int, threads: int, runs: int, probes: int) -> dict[str, float]:
    """Recall of the kept items, error of the log-normaliser, milliseconds of a batch either way, seconds to build."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as jobs/score.py
    import tensorflow as tf

    from model.item_index import ItemIndex
    from model.top import top_columns
    from model.workers import use_threads

    use_threads(threads, side_by_side=False)
    spec = load_settings().scoring
    k = min(spec.top_k_items, n_items)
    answers, table, bias = world(n_items)
    started = perf_counter()
    index = ItemIndex(table, bias, probes or spec.item_index_probes, threads=threads)
    build_s = perf_counter() - started
    held = tf.constant(table), tf.constant(bias)
    exact = tf.function(lambda rows: top_columns(rows, *held, k))
    approximate = tf.function(lambda rows: index.top_columns(rows, k))

    shares, off = [], []
    for start in range(0, _JUDGED, _ROWS):
        some = tf.constant(answers[start : start + _ROWS])
        wanted, found = exact(some), approximate(some)
        pairs = zip(wanted.columns.numpy(), found.columns.numpy(), strict=True)
        shares += [len(np.intersect1d(*pair)) / k for pair in pairs]
        best = found.columns[:, 0]  # its score by the exact normaliser
        score = tf.reduce_sum(some * tf.gather(held[0], best), axis=1) + tf.gather(held[1], best)
        first = wanted.columns[:, 0]
        log_total = tf.reduce_sum(some * tf.gather(held[0], first), axis=1) + tf.gather(held[1], first)
        log_total -= wanted.log_p[:, 0]
        off += np.abs(found.log_p[:, 0] - (score - log_total)).tolist()
    batch = tf.constant(answers[:_ROWS])
    exact_s, index_s = _timed([lambda: exact(batch), lambda: approximate(batch)], runs)
    return {
        "recall": float(np.mean(shares)),
        "off_p50": float(np.median(off)),
        "off_p99": float(np.quantile(off, 0.99)),
        "exact_ms": exact_s * 1e3,
        "index_ms": index_s * 1e3,
        "build_s": build_s,
        "peak_rss_mib": psutil.Process().memory_info().rss / (1 << 20),
    }


def world(n_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers, table and bias. [_JUDGED, E], [V, E], [V]."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(_CENTRES, _WIDTH)) / _WIDTH**0.5

    def around(n: int, norm: float) -> np.ndarray:
        noise = rng.normal(size=(n, _WIDTH)).astype(np.float32) / _WIDTH**0.5
        near = centres.astype(np.float32)[rng.integers(0, _CENTRES, n)]
        return norm * (_NEAR * near + (1 - _NEAR**2) ** 0.5 * noise)

    bias = -_ZIPF * np.log(np.arange(1, n_items + 1))
    return around(_JUDGED, _ANSWER_NORM), around(n_items, _ITEM_NORM), bias.astype(np.float32)


def _timed(works: list[Callable[[], object]], runs: int) -> list[float]:
    """Median seconds of each, run in turn."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(runs):
        for work, of in zip(works, times, strict=True):
            started = perf_counter()
            work()
            of.append(perf_counter() - started)
    return [median(of) for of in times]


if __name__ == "__main__":
    print(json.dumps(main(*(int(argument) for argument in [*sys.argv[1:], "0"][:4]))))
