"""The ranks of a training, behind one seam. The only module that imports Horovod, and only under its launcher."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.errors import ModelError
from model.network import Tensor

T = TypeVar("T")
Floats = NDArray[np.float64]


class StoppedByRankError(ModelError):
    """Another rank met an error and reports it; this one only stops."""


class RankLostError(ModelError):
    """Another rank is gone without a word: killed, out of memory, or its machine."""


class Workers(Protocol):
    """Ranks that train together. Every method but `sum_in_graph` is called eagerly, by all ranks, in the same order."""

    @property
    def rank(self) -> int:
        """0 … size - 1; rank 0 writes and speaks."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    def sum(self, values: Floats) -> Floats:
        """Element-wise sum over ranks, the same on all."""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (anything JSON holds), in order of rank, on all ranks."""

    def broadcast(self, variables: Sequence[Tensor]) -> None:
        """Give every rank the values that rank 0's variables hold."""

    def sum_in_graph(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum of each tensor over ranks, in one exchange. Sparse gradients stay sparse. Also inside tf.function."""


class SingleProcess:
    """One rank: nothing to exchange."""

    rank = 0
    size = 1

    def sum(self, values: Floats) -> Floats:
        """The values themselves."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """The value alone, as the others would see it."""
        return [json.loads(json.dumps(value))]

    def broadcast(self, variables: Sequence[Tensor]) -> None:
        """Nothing to do."""

    def sum_in_graph(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors themselves."""
        return list(tensors)


class HorovodWorkers:
    """Ranks started by horovodrun. A rank that is lost raises RankLostError on the others."""

    def __init__(self) -> None:
        import horovod.tensorflow as hvd

        hvd.init()
        self._hvd = hvd
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()

    def sum(self, values: Floats) -> Floats:
        """See Workers."""
        result: Floats = self._guarded(lambda: self._hvd.allreduce(tf.constant(values), op=self._hvd.Sum, name="sum"))
        return result

    def gather(self, value: Any) -> list[Any]:
        """See Workers. Travels as JSON text, never as pickle."""
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = self._guarded(lambda: self._hvd.allgather(tf.constant([len(text)]), name="gather_sizes"))
        joined = self._guarded(lambda: self._hvd.allgather(tf.constant(text), name="gather_texts"))
        ends = np.cumsum(sizes)
        return [json.loads(joined[end - size : end].tobytes()) for size, end in zip(sizes, ends, strict=True)]

    def broadcast(self, variables: Sequence[Tensor]) -> None:
        """See Workers."""
        self._guarded(lambda: self._hvd.broadcast_variables(list(variables), root_rank=0))

    def sum_in_graph(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """See Workers. One group: Horovod waits for all of it and sends it fused."""
        return list(self._hvd.grouped_allreduce(list(tensors), op=self._hvd.Sum))

    def _guarded(self, call: Callable[[], Any]) -> Any:
        result = guarded(call)
        return result.numpy() if tf.is_tensor(result) else result


def connect_workers() -> Workers:
    """Horovod's ranks where horovodrun started this process, else this process alone."""
    if "HOROVOD_RANK" in os.environ and int(os.environ.get("HOROVOD_SIZE", "1")) > 1:
        return HorovodWorkers()
    return SingleProcess()


def use_threads(threads: int) -> int:
    """Fix TensorFlow's threads before its first operation: `threads`, or for 0 this rank's share of the cores.

    The share is INTEREST_RANK_CORES where that is set, as for ranks in tasks of a Spark cluster.
    """
    if threads == 0:
        ranks_here = int(os.environ.get("HOROVOD_LOCAL_SIZE", "1"))
        threads = int(os.environ.get("INTEREST_RANK_CORES", max(1, len(os.sched_getaffinity(0)) // ranks_here)))
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # TensorFlow already runs in this process, with the threads it has
        return int(tf.config.threading.get_intra_op_parallelism_threads())
    return threads


def guarded(call: Callable[[], T]) -> T:
    """Run what exchanges with other ranks; one that is gone becomes RankLostError."""
    try:
        return call()
    except (tf.errors.OpError, RuntimeError) as error:
        if "orovod" not in str(error) and "orovod" not in type(error).__module__:
            raise
        raise RankLostError(
            "Training stopped because another rank is gone (killed, out of memory, or its machine). "
            "Start it again: it goes on from the latest checkpoint."
        ) from error


def stop_all(workers: Workers, message: str) -> NoReturn:
    """Stop for a reason that every rank sees alike: rank 0 raises it to be reported, the others to be silent."""
    raise ModelError(message) if workers.rank == 0 else StoppedByRankError(message)


def together(workers: Workers, action: Callable[[], T]) -> T:
    """Run something that may fail on some ranks only, so that all stop: no rank goes on to wait for one that failed.

    The lowest failing rank raises its own error, every other rank StoppedByRankError.
    """
    error: Exception | None = None
    try:
        result = action()
    except Exception as problem:
        error = problem
    failed = [
        rank for rank, text in enumerate(workers.gather(None if error is None else str(error))) if text is not None
    ]
    if not failed:
        return result
    if error is not None and workers.rank == failed[0]:
        raise error
    raise StoppedByRankError(f"Rank {failed[0]} stopped the training; its message says why.")
