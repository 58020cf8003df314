"""Streams: fixed shares of the train rows that any number of ranks can serve, so that ranks may come and go.

A training has S streams. Stream s owns every S-th file, has its own order of batches and its own random numbers. Rank r
of n serves the streams s with s % n == r, and a step sums the gradients of all streams: the weights do not depend on n.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import columns as c
from model import batches, feed
from model.errors import ModelError
from model.spec import TrainingSpec

# Between the seeds of two streams: a prime, so that a training with the next seed shares no stream's numbers with this.
_SEED_STRIDE = 7919


class StreamBatch(NamedTuple):
    """One batch of a stream. `number` counts the stream's batches from the start of training, 1 for the first."""

    stream: int
    number: int
    rows: batches.Block


def own_streams(streams: int, rank: int, size: int) -> range:
    """The streams that a rank serves.

    Raises:
        ModelError: there are more ranks than streams.
    """
    if size > streams:
        raise ModelError(
            f"{size} ranks are too many for a training of {streams} stream{'' if streams == 1 else 's'}: each rank "
            f"needs one at least. Start {streams} or fewer, or start anew (--fresh) with training.streams = {size} or "
            "more; by itself a training has as many streams as it had ranks at its first start."
        )
    return range(rank, streams, size)


def shard_of(split: str, files: Sequence[feed.DataFile], streams: int, own: Sequence[int]) -> feed.Shard:
    """The files of several streams together, for reading them once in order."""
    shares = [feed.planned_shard(split, files, stream, streams) for stream in own]
    return feed.Shard(split, tuple(sorted(file for share in shares for file in share.files)))


def check_streams(files: Sequence[feed.DataFile], streams: int) -> None:
    """Refuse streams that cannot all take a step.

    Raises:
        ModelError: a stream has no rows, or the row groups do not divide among the streams.
    """
    rows = [feed.planned_shard(c.TRAIN, files, stream, streams).rows for stream in range(streams)]
    if min(rows) == 0:
        raise ModelError(
            f"Stream {rows.index(0)} of {streams} has no train rows, so it can take no step. Lower training.streams, "
            "or use a longer log and run jobs.sequences again."
        )


def steps_per_epoch(lengths: NDArray[np.int64], length: int, spec: TrainingSpec, streams: int) -> int:
    """Steps in which the streams together take every train row about once, at least one.

    lengths: [L + 1] rows of all streams by length. What fills no whole batch waits for the next epoch's rows.
    """
    n_batches = batches.batches_a_pass(lengths, _buckets(length, spec))
    return max(1, n_batches // (streams * spec.backward_passes_per_step))


def step_batches(
    files: Sequence[feed.DataFile], length: int, spec: TrainingSpec, streams: int, own: Sequence[int], step: int
) -> Iterator[tuple[StreamBatch, ...]]:
    """What a rank with the streams `own` takes in each step after `step`, without end.

    Batches are a function of seed, stream and number; which rank asks does not matter.
    """
    passes = spec.backward_passes_per_step
    feeds = {
        stream: feed.training_batches(
            feed.planned_shard(c.TRAIN, files, stream, streams),
            length,
            _buckets(length, spec),
            spec.shuffle_rows,
            stream_seed(spec.seed, stream),
            skip_batches=step * passes,
        )
        for stream in own
    }
    for first in count(step * passes + 1, passes):
        yield tuple(
            StreamBatch(stream, first + index, next(rows)) for stream, rows in feeds.items() for index in range(passes)
        )


def stream_seed(seed: int, stream: int) -> int:
    """Seed of a stream's order and random numbers."""
    return (seed + _SEED_STRIDE * stream) % (2**31 - 1)


def _buckets(length: int, spec: TrainingSpec) -> tuple[batches.Bucket, ...]:
    return batches.buckets_of(spec.length_buckets, length, spec.batch_rows)
