"""The likeliest of very many ids for each row by an index of their vectors: approximate. The only module with FAISS.

Letters: B rows, E numbers of an answer, V ids, X excluded columns of a row, F fetched, H of the head, S of the sample,
K kept.
"""

from math import ceil
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.errors import ModelError
from model.repeats import NOWHERE, without
from model.top import TopColumns

Tensor = Any  # TensorFlow 2.15 carries no types
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

_INSTALL = ".venv/bin/pip install -c requirements/constraints.txt '.[index]'"
_LISTS_PER_ROOT = 2  # lists = so many times √V: about as many centres are compared with as vectors of a few lists
_TRAINED_ON, _ROUNDS = 64, 10  # k-means: vectors for each centre (FAISS asks for at least 39), and passes over them
_SPARE = 4  # lists are read until they hold about so many times what is fetched
_HEAD = 128  # fetched ids whose scores enter the normaliser as they are
# Ids that stand for all others in it, at most: the error grows with √(ids / sample), and each costs as in the product.
_SAMPLE_SHARE, _MIN_SAMPLE = 1 / 32, 16_384
_SEED = 20_171_029


class ItemIndex:
    """Vectors in lists around centres (FAISS's inverted file); of the lists the `probes` most promising are read.

    A score answer·vector + bias is the inner product of (answer, 1) and (vector, bias - mean bias); a shift of all
    scores changes neither order nor softmax, and keeps the bias from outweighing the vector. Lists are made by k-means
    on distances and probed by the inner product with their centre, which is their mean score. Same inputs and threads,
    same index.
    """

    def __init__(self, table: Floats, bias: Floats, probes: int, max_excluded: int = 0, threads: int = 0) -> None:
        """Build it: up to a minute for a million ids on two cores, and as much memory as the table again.

        table: [V, E]; bias: [V]; probes: lists read for a row, all where there are fewer, and more where these would
        not hold enough; max_excluded: X at most; threads: 0 for FAISS's own choice.

        Raises:
            ModelError: FAISS can't be loaded.
        """
        self._faiss, self._threads = _faiss(), threads
        self._n, width = len(table), table.shape[1] + 1
        self._probes, self._max_excluded = probes, max_excluded
        bias = bias - bias.mean(dtype=np.float64).astype(np.float32)
        vectors = np.concatenate([table, bias[:, None]], axis=1)  # [V, E + 1]
        self._n_lists = max(1, min(self._n, round(_LISTS_PER_ROOT * self._n**0.5)))
        self._use_threads()
        centres = self._faiss.IndexFlatL2(width)
        self._lists = self._faiss.IndexIVFFlat(centres, width, self._n_lists, self._faiss.METRIC_INNER_PRODUCT)
        kmeans = self._lists.cp
        kmeans.spherical, kmeans.seed, kmeans.niter = False, _SEED, _ROUNDS
        kmeans.min_points_per_centroid, kmeans.max_points_per_centroid = 1, _TRAINED_ON
        self._lists.train(vectors)
        self._lists.add(vectors)
        self._centres = self._faiss.IndexFlatIP(width)
        self._centres.add(centres.reconstruct_n(0, self._n_lists))
        self._lists.quantizer = self._centres
        sample, log_weight = _sample(bias)
        place = np.full(self._n, -1, np.int32)
        place[sample] = np.arange(len(sample))
        self._sample = tf.constant(table[sample]), tf.constant(bias[sample] + log_weight)  # [S, E], [S]
        self._place = tf.constant(place)  # [V] of a column in the sample, -1 for none

    def top_columns(self, answers: Tensor, k: Tensor, excluded: Tensor | None = None) -> TopColumns:
        """The K best columns of the lists that were read, falling by score, and their estimated log-probabilities.

        answers: [B, E]; k: scalar, at most V; excluded: [B, X] distinct columns that are no candidates of a row, -1
        for none: they come last and have no share. Ties go to the smaller column, among what was fetched: at least
        128. There always are K: a row whose lists hold too few reads them all.

        The normaliser is that of Mussmann, Levy & Ermon 2017, "Fast Amortized Inference and Learning in Log-linear
        Models with Randomly Perturbed Nearest Neighbor Search": the sum over a head of fetched columns, and for all
        others that over a weighted sample of them. The sample is drawn once for all rows, so equal rows have equal
        probabilities, and like rows are off by about the same. The sum has no bias, whatever the index missed, and is
        exact up to 8,192 columns: all are in the sample.
        """
        wanted = tf.maximum(k, _HEAD)
        n_fetched = tf.minimum(wanted + self._max_excluded, self._n)
        scores, columns = tf.numpy_function(self._fetch, [answers, n_fetched], (tf.float32, tf.int32), stateful=False)
        scores.set_shape([None, None])
        columns.set_shape([None, None])
        if excluded is not None:
            is_out = tf.reduce_any(columns[:, :, None] == excluded[:, None, :], axis=-1)  # [B, F]
            scores = tf.where(is_out, NOWHERE, scores)
        scores, place = tf.math.top_k(scores, tf.minimum(wanted, n_fetched))  # the first among equals
        columns = tf.gather(columns, place, batch_dims=1)
        log_total = self._log_total(answers, scores[:, :_HEAD], columns[:, :_HEAD], excluded)
        return TopColumns(columns[:, :k], scores[:, :k] - log_total[:, None])

    def _fetch(self, answers: Floats, n: np.int32) -> tuple[Floats, Ints]:
        """Scores and columns of the n best of the lists read, in rising order of columns. answers: [B, E] → [B, n]."""
        self._use_threads()
        queries = np.concatenate([answers, np.ones((len(answers), 1), np.float32)], axis=1)
        probes = min(max(self._probes, ceil(_SPARE * int(n) * self._n_lists / self._n)), self._n_lists)
        scores, columns = self._search(queries, int(n), probes)
        is_short = (columns < 0).any(axis=1)  # FAISS's way to say that there were fewer
        if is_short.any():
            scores[is_short], columns[is_short] = self._search(queries[is_short], int(n), self._n_lists)
        columns = np.maximum(columns, 0)  # scores that are no numbers find nothing; their sum tells
        order = np.argsort(columns, axis=1)
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(columns, order, axis=1).astype(np.int32)

    def _search(self, queries: Floats, n: int, probes: int) -> tuple[Floats, NDArray[np.int64]]:
        found: tuple[Floats, NDArray[np.int64]] = self._lists.search(
            queries, n, params=self._faiss.SearchParametersIVF(nprobe=probes)
        )
        return found

    def _use_threads(self) -> None:
        """OpenMP keeps the number for each thread that calls, and TensorFlow may call from any."""
        if self._threads:
            self._faiss.omp_set_num_threads(self._threads)

    def _log_total(self, answers: Tensor, scores: Tensor, columns: Tensor, excluded: Tensor | None) -> Tensor:
        """Logarithm of the sum of exp(score) over all columns but the excluded ones. scores, columns: [B, H] → [B]."""
        counted = tf.where(scores > NOWHERE / 2, columns, -1)
        if excluded is not None:
            counted = tf.concat([counted, excluded], axis=1)
        places = tf.where(counted < 0, -1, tf.gather(self._place, tf.maximum(counted, 0)))  # [B, H + X]
        table, bias = self._sample
        sampled = without(tf.matmul(answers, table, transpose_b=True) + bias, places)  # [B, S]
        return tf.reduce_logsumexp(tf.concat([scores, sampled], axis=1), axis=1)


def _sample(bias: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Columns that stand for all, each once, and the logarithm of how many each stands for. bias: [V] → [S], [S].

    A column's chance is half even and half by the bias alone, which is mostly its popularity: what scores high for
    many rows is in the sample. It stands for 1 / chance (Horvitz & Thompson 1952).
    """
    n = max(_MIN_SAMPLE, round(_SAMPLE_SHARE * len(bias)))
    share = np.exp(bias.astype(np.float64) - bias.max())
    chance = np.minimum(n / 2 * (share / share.sum() + 1 / len(bias)), 1.0)
    sample = np.flatnonzero(np.random.default_rng(_SEED).random(len(bias)) < chance)
    return sample, -np.log(chance[sample]).astype(np.float32)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ModelError(
            f"scoring.item_index = approximate needs FAISS, which can't be loaded ({error}). Install it on every "
            f"machine that scores: {_INSTALL}; or set the key to exact."
        ) from None
    return faiss
