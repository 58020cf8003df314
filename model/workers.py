"""The ranks of a training, behind one seam. Only this and model.elastic import Horovod, and only under its launcher."""

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.environment import RANK_CORES, RANKS_HERE
from model.errors import ModelError, rank_gone
from model.network import Tensor
from model.spec import TrainingSpec

T = TypeVar("T")
Floats = NDArray[np.float64]

FUSION, CYCLE = "HOROVOD_FUSION_THRESHOLD", "HOROVOD_CYCLE_TIME"


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

    @property
    def is_elastic(self) -> bool:
        """Whether ranks may be lost and added while they train."""

    def sum(self, values: Floats) -> Floats:
        """Element-wise sum over ranks, the same on all."""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (anything JSON holds), in order of rank, on all ranks."""

    def broadcast(self, variables: Sequence[Tensor], root: int = 0) -> None:
        """Give every rank the values that the variables of rank `root` hold."""

    def sum_in_graph(self, gradients: Sequence[Tensor], counts: Tensor) -> tuple[list[Tensor], Tensor]:
        """Sum of each gradient and of the counts over ranks, in one exchange. Sparse ones stay sparse.

        Also inside tf.function. Gradients may be sent as 16-bit numbers, counts never are.
        """

    def persevere(self, attempt: Callable[[], T]) -> T:
        """Run `attempt` to its end, elastic ranks again from its start whenever ranks were lost or added."""

    def look_for_changes(self) -> None:
        """Let ranks in that wait to be added, where ranks are elastic; `attempt` then starts again."""


class SingleProcess:
    """One rank: nothing to exchange."""

    rank = 0
    size = 1
    is_elastic = False

    def sum(self, values: Floats) -> Floats:
        """The values themselves."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """The value alone, as the others would see it."""
        return [json.loads(json.dumps(value))]

    def broadcast(self, variables: Sequence[Tensor], root: int = 0) -> None:
        """Nothing to do."""

    def sum_in_graph(self, gradients: Sequence[Tensor], counts: Tensor) -> tuple[list[Tensor], Tensor]:
        """The tensors themselves."""
        return list(gradients), counts

    def persevere(self, attempt: Callable[[], T]) -> T:
        """Once."""
        return attempt()

    def look_for_changes(self) -> None:
        """There are none."""


class HorovodWorkers:
    """Ranks started by horovodrun. A rank that is lost raises RankLostError on the others."""

    is_elastic = False

    def __init__(self, spec: TrainingSpec | None = None) -> None:
        """spec: how gradients are exchanged; what the launcher sets in the environment goes before it."""
        self._is_packed, self._pack_scale = False, 1.0
        if spec is not None:
            self._tune({FUSION: str(spec.fusion_mib * 2**20), CYCLE: str(spec.cycle_ms)})
            if spec.pin_ranks:
                self._pin()
            self._is_packed = spec.compression == "fp16"
            self._pack_scale = 1.0 / (spec.batch_rows * spec.backward_passes_per_step)
        import horovod.tensorflow as hvd

        if os.environ.get("HOROVOD_CONTROLLER") == "gloo":
            check_own_name()
        try:
            hvd.init()
        except ValueError as error:  # its last step is an exchange; ranks that are lost before it end the process
            raise RankLostError(rank_gone("another rank")) from error
        self._hvd = hvd
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()

    def _tune(self, settings: Mapping[str, str]) -> None:
        for name, value in settings.items():
            os.environ.setdefault(name, value)

    def _pin(self) -> None:
        pin_to_share()

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

    def broadcast(self, variables: Sequence[Tensor], root: int = 0) -> None:
        """See Workers."""
        self._guarded(lambda: self._hvd.broadcast_variables(list(variables), root_rank=root))

    def sum_in_graph(self, gradients: Sequence[Tensor], counts: Tensor) -> tuple[list[Tensor], Tensor]:
        """See Workers. Two groups, dense and sparse; Horovod waits for all of a group and sends it fused.

        The names are ours: Horovod pairs tensors of different ranks by name, and ranks may be in different graphs.
        Not hvd.grouped_allreduce for all: 0.28.1 gives sparse tensors the shapes of wrong ones.
        """
        sparse = [place for place, gradient in enumerate(gradients) if isinstance(gradient, tf.IndexedSlices)]
        dense = [place for place in range(len(gradients)) if place not in sparse]
        summed: list[Tensor] = list(gradients)
        sent = [self._packed(gradients[place]) for place in dense]
        if self._is_packed or not dense:
            counts = self._hvd.allreduce(counts, op=self._hvd.Sum, name="counts", ignore_name_scope=True)
        else:
            sent.append(counts)
        if sent:
            sums = self._hvd.grouped_allreduce(sent, op=self._hvd.Sum, name="dense", ignore_name_scope=True)
            if len(sums) > len(dense):
                counts = sums.pop()
            for place, total in zip(dense, sums, strict=True):
                summed[place] = self._unpacked(total)
        if sparse:
            values, indices = (
                self._hvd.grouped_allgather(parts, name=name, ignore_name_scope=True)
                for name, parts in (
                    ("values", [self._packed(gradients[place].values) for place in sparse]),
                    ("indices", [gradients[place].indices for place in sparse]),
                )
            )
            for place, rows, ids in zip(sparse, values, indices, strict=True):
                summed[place] = tf.IndexedSlices(self._unpacked(rows), ids, gradients[place].dense_shape)
        return summed, counts

    def _packed(self, gradient: Tensor) -> Tensor:
        # As means over a stream's rows: sums over many ranks' positions might leave the range of 16 bits.
        return tf.cast(gradient * self._pack_scale, tf.float16) if self._is_packed else gradient

    def _unpacked(self, total: Tensor) -> Tensor:
        return tf.cast(total, tf.float32) / self._pack_scale if self._is_packed else total

    def persevere(self, attempt: Callable[[], T]) -> T:
        """Once: who loses a rank ends with an error."""
        return attempt()

    def look_for_changes(self) -> None:
        """There are none."""

    def _guarded(self, call: Callable[[], Any]) -> Any:
        result = guarded(call)
        return result.numpy() if tf.is_tensor(result) else result


def connect_workers(spec: TrainingSpec | None = None, elastic: bool = False) -> Workers:
    """Horovod's ranks where horovodrun started this process, else this process alone.

    spec: how ranks exchange gradients, Horovod's defaults without it; elastic: they were started as elastic ranks.
    """
    if elastic:
        from model.elastic import ElasticWorkers

        return ElasticWorkers(spec)
    if "HOROVOD_RANK" in os.environ and int(os.environ.get("HOROVOD_SIZE", "1")) > 1:
        return HorovodWorkers(spec)
    return SingleProcess()


def check_own_name() -> None:
    """See that this machine's name leads to an address of its own, without which Gloo would end the process.

    It asks for one whatever interface it is given: Horovod 0.28.1 hands the interface to the first of its contexts, not
    to that of the set of all ranks (GlooContext::InitializeForProcessSet).

    Raises:
        ModelError: the name is unknown, or is that of another machine.
    """
    name = socket.gethostname()
    found = []
    with suppress(OSError):
        found = socket.getaddrinfo(os.fsencode(name), None, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as own:
            own.bind(address)
            return
    others = ", ".join(sorted({str(address[0]) for *_, address in found}))
    what = f"has a name that leads to {others}, not to itself" if found else "can't look up its own name"
    raise ModelError(
        f"The machine {name} {what}, so its rank has no address for the others. Let the name of every machine lead to "
        "the address at which the others reach it, in DNS or in its /etc/hosts, and start the training again."
    )


def pin_to_share() -> None:
    """Keep this process, with all its threads, on its share of the cores that it may use.

    Nothing is done where there are fewer cores than ranks, or where the rank runs in a task of a Spark cluster, which
    shares the machine with others.
    """
    allowed = sorted(os.sched_getaffinity(0))
    ranks_here, place = (int(os.environ[f"HOROVOD_LOCAL_{name}"]) for name in ("SIZE", "RANK"))
    n_cores = len(allowed) // ranks_here
    if n_cores == 0 or RANK_CORES in os.environ:
        return
    share = allowed[place * n_cores : (place + 1) * n_cores]
    os.sched_setaffinity(0, share)  # threads started from now on inherit it
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # one that has ended meanwhile
            os.sched_setaffinity(int(thread), share)
    os.environ[RANK_CORES] = str(n_cores)


def use_threads(threads: int, side_by_side: bool = True) -> int:
    """Fix TensorFlow's threads before its first operation: `threads`, or for 0 this rank's share of the cores.

    The share is INTEREST_RANK_CORES where that is set, as for ranks in tasks of a Spark cluster. Side by side, each
    operation runs on one thread and so many operations at a time: the parts of a training batch (model/step.py) use
    them better than operations that are each split among threads. Else each operation is split.
    """
    if threads == 0:
        ranks_here = int(os.environ.get(RANKS_HERE) or os.environ.get("HOROVOD_LOCAL_SIZE", "1"))
        threads = int(os.environ.get(RANK_CORES, max(1, len(os.sched_getaffinity(0)) // ranks_here)))
    try:
        tf.config.threading.set_inter_op_parallelism_threads(threads if side_by_side else 1)
        tf.config.threading.set_intra_op_parallelism_threads(1 if side_by_side else threads)
    except RuntimeError:  # TensorFlow already runs in this process, with the threads it has
        pass
    return threads_in_use() if side_by_side else int(tf.config.threading.get_intra_op_parallelism_threads())


def threads_in_use() -> int:
    """How many operations TensorFlow runs side by side; where nobody said, the machine's cores."""
    return int(tf.config.threading.get_inter_op_parallelism_threads()) or len(os.sched_getaffinity(0))


def guarded(call: Callable[[], T]) -> T:
    """Run what exchanges with other ranks; one that is gone becomes RankLostError."""
    try:
        return call()
    except (tf.errors.OpError, RuntimeError) as error:
        if "orovod" not in str(error) and "orovod" not in type(error).__module__:
            raise
        raise RankLostError(rank_gone("another rank")) from error


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
