"""Rows of sequences from Parquet into tensors: the project's feed against pyarrow alone on the same files.

Ours: row groups in a shuffled order through Petastorm, rows mixed in a buffer, batches cut, each column a tf.Tensor.
Peer: pyarrow.parquet.read_table of the same columns, file after file, with all cores, and nothing else.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from petastorm import make_batch_reader

from benchmarks.report import Row, in_turn, report
from benchmarks.train_parts import Case, batches, write_rows
from features import columns as c
from model import feed
from model.batches import COLUMNS, Block, buckets_of

_ROWS_PER_FILE = 16_384  # about 16 MiB in memory, as sequences.row_group_mib of conf/base.yaml
_MIB = 1 << 20


def write_split(folder: Path, n_files: int, length: int) -> tuple[feed.DataFile, ...]:
    """Files of one row group each, written as jobs.sequences writes them; lengths spread from 2 to `length`."""
    folder.mkdir(parents=True)
    rng, files = np.random.default_rng(0), []
    for number in range(n_files):
        case = Case(rows=_ROWS_PER_FILE // 8, length=length, items=20_002)
        made = batches(case, seed=number)
        rows = {name: np.concatenate([batch[name] for batch in made]) for name in COLUMNS}
        rows[c.LENGTH] = rng.integers(2, length + 1, len(rows[c.LENGTH])).astype(np.int32)
        padding = np.arange(length)[None, :] >= rows[c.LENGTH][:, None]
        for name in c.CHANNELS:
            rows[name][padding] = c.PAD
        path = folder / f"group-{number:05d}.parquet"
        write_rows(path, rows)
        files.append(feed.DataFile(str(path), _ROWS_PER_FILE))
    return tuple(files)


def through_the_feed(shards: Sequence[feed.Shard], length: int, passes: int, batch_rows: int = 256) -> int:
    """Read each shard `passes` times, in turn batch by batch; → rows that became tensors."""
    readers = [
        feed.training_batches(shard, length, buckets_of((), length, batch_rows), 16_384, seed=1) for shard in shards
    ]
    steps = passes * shards[0].rows // batch_rows
    for _ in range(steps):
        for reader in readers:
            tensors = {name: tf.constant(values) for name, values in next(reader).items()}
    assert set(tensors) == set(COLUMNS)
    return steps * batch_rows * len(readers)


def pyarrow_alone(files: Iterable[feed.DataFile]) -> int:
    """Read each file once → rows."""
    return sum(pq.read_table(file.path, columns=list(COLUMNS)).num_rows for file in files)


def petastorm_as_it_comes(files: Iterable[feed.DataFile], passes: int) -> int:
    """Read each file `passes` times through one make_batch_reader, with one thread as the feed has → rows."""
    options = {"reader_pool_type": "thread", "workers_count": 1, "num_epochs": passes, "shuffle_row_groups": False}
    fields = [f"^{name}$" for name in COLUMNS]
    reader = make_batch_reader([f"file://{file.path}" for file in files], schema_fields=fields, **options)
    try:  # not `with reader`: that prints a line about its cache
        return sum(len(group.length) for group in reader)
    finally:
        reader.stop()
        reader.join()


def same_rows(files: tuple[feed.DataFile, ...], length: int) -> bool:
    """Whether a pass of the feed holds the very rows of the files, whatever their order."""
    shard = feed.planned_shard(c.TRAIN, files, 0, 1)
    stream = feed.training_batches(shard, length, buckets_of((), length, 256), 16_384, seed=1)
    found = np.concatenate([_lines(next(stream)) for _ in range(shard.rows // 256)])
    wanted = np.concatenate([_lines(block) for block in feed.blocks(shard, length, passes=1)])
    tables = pa.concat_tables([pq.read_table(file.path, columns=list(COLUMNS)) for file in files])
    plain = np.column_stack([np.stack(tables[name].to_numpy()).reshape(len(tables), -1) for name in COLUMNS])
    order = [np.lexsort(rows.T) for rows in (found, wanted, plain)]
    first, second, third = (rows[at] for rows, at in zip((found, wanted, plain), order, strict=True))
    return np.array_equal(first, second) and np.array_equal(second, third)


def _lines(block: Block) -> np.ndarray:
    return np.column_stack([block[name].reshape(len(block[c.LENGTH]), -1) for name in COLUMNS])


def main(argv: Sequence[str]) -> int:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.feed", description=__doc__)
    parser.add_argument("--files", type=int, default=24, help="files of 16,384 rows (default: 24)")
    parser.add_argument("--length", type=int, default=50, help="events of a row (default: 50)")
    parser.add_argument("--passes", type=int, default=3, help="passes of each reader in a run (default: 3)")
    parser.add_argument("--held", type=int, default=20, help="passes for the memory check (default: 20)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each; the median is reported (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="write JSON lines there; - for standard output")
    arguments = parser.parse_args(argv)
    length, rows = arguments.length, []
    with tempfile.TemporaryDirectory(prefix="interest-bench-") as place:
        files = write_split(Path(place) / "rows", arguments.files, length)
        if not same_rows(files[:4], length):
            print("error: the feed does not give the rows of the files", file=sys.stderr)
            return 1
        n_rows = arguments.passes * sum(file.rows for file in files)
        for readers in (1, 2):
            shards = [feed.planned_shard(c.TRAIN, files, rank, readers) for rank in range(readers)]
            works = {
                "ours": lambda shards=shards: through_the_feed(shards, length, arguments.passes),
                "pyarrow alone": lambda: [pyarrow_alone(files) for _ in range(arguments.passes)],
                "make_batch_reader": lambda: petastorm_as_it_comes(files, arguments.passes),
            }
            found = in_turn(works, arguments.runs)
            own, peak = n_rows / found["ours"][0], found["ours"][1]
            case = f"{readers} reader{'s' if readers > 1 else ''}"
            for name in ("pyarrow alone", "make_batch_reader"):
                peer = n_rows / found[name][0]
                rows.append(Row("feed", case, "rows_s", "1/s", own, peer, name, "higher", arguments.runs, peak))
        rows.append(_memory(files, length, arguments.held))
    report(rows, arguments.json)
    return 0


def _memory(files: tuple[feed.DataFile, ...], length: int, passes: int) -> Row:
    """Resident memory after the last of many passes against that after the second."""
    shard, process = feed.planned_shard(c.TRAIN, files, 0, 1), psutil.Process()
    stream = feed.training_batches(shard, length, buckets_of((), length, 256), 16_384, seed=1)
    held, started = [], perf_counter()
    for _ in range(passes):
        for _ in range(shard.rows // 256):
            next(stream)
        held.append(process.memory_info().rss / _MIB)
    print(f"{passes} passes of {shard.rows:,} rows in {perf_counter() - started:.1f} s", file=sys.stderr)
    case = f"memory, {passes} passes"
    return Row("feed", case, "rss", "MiB", held[-1], held[1], "after 2 passes", "lower", 1, max(held))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
