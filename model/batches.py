"""Blocks of rows into batches: mixed within a buffer, sorted by length, cut to equal size. NumPy only, no step per row.

Letters: B rows of a batch, L positions, A events ahead, n rows of a block. A block is a dict of arrays by column: those
by position [n, L], those of the events ahead [n, A], the scalars [n], all int32.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features import columns as c

SCALARS = (c.LENGTH, c.NEXT_GAP, c.NEXT_ITEM, c.NEXT_CATEGORY, c.AHEAD_LENGTH, c.KNOWN)
BY_POSITION = (*c.CHANNELS, c.AGE)
COLUMNS = (*BY_POSITION, *c.AHEAD_CHANNELS, *SCALARS)

Block = dict[str, NDArray[np.int32]]


@dataclass(frozen=True)
class Bucket:
    """Rows of up to `positions` events travel in batches of `rows` rows and as many positions."""

    positions: int
    rows: int


def buckets_of(edges: Sequence[int], length: int, batch_rows: int) -> tuple[Bucket, ...]:
    """Buckets by rising length, the last holding the longest rows; a batch of each has about batch_rows × L positions.

    So a step costs and weighs about the same whichever bucket it takes. edges: lengths below L that end a bucket.
    """
    bounds = (*sorted({edge for edge in edges if edge < length}), length)
    return tuple(Bucket(positions, batch_rows * length // positions) for positions in bounds)


def batches_a_pass(lengths: NDArray[np.int64], buckets: Sequence[Bucket]) -> int:
    """Whole batches that a pass gives, leftovers of the buckets counted together. lengths: [L + 1] rows by length."""
    ends = np.cumsum(lengths)[[bucket.positions for bucket in buckets]]
    rows = np.diff(ends, prepend=0)
    return int(sum(n / bucket.rows for n, bucket in zip(rows.tolist(), buckets, strict=True)))


def cut(
    stream: Iterator[Block], buckets: Sequence[Bucket], rows_per_pass: int, buffer_rows: int, rng: np.random.Generator
) -> Iterator[Block]:
    """Batches without end from blocks without end; each pass gives every row once, up to what fills no batch yet.

    Rows are mixed within a buffer that runs empty at the end of a pass, so that no row overtakes one of the next pass;
    with `buffer_rows` = 0 they stay in order. What fills no whole batch of its bucket waits for the rows to come.
    """
    pool = _Pool()
    rests: list[Block | None] = [None] * len(buckets)
    n_read = 0
    for block in stream:
        pool.add(block)
        n_read += _n_rows(block)
        pass_ends = n_read == rows_per_pass
        n_held = len(pool.held)
        if n_held < buffer_rows and not pass_ends:
            continue
        order = pool.held[rng.permutation(n_held)] if buffer_rows else pool.held
        n_out = n_held // 2 if buffer_rows and not pass_ends else n_held
        yield from _batches(pool.rows, order[:n_out], buckets, rests, rng)
        pool.keep(order[n_out:], order[:n_out])
        n_read = 0 if pass_ends else n_read


def in_order(stream: Iterator[Block], batch_rows: int, rows: int) -> Iterator[Block]:
    """Batches of a stream of `rows` rows in order, the last one filled with rows of zeros."""
    rest: Block | None = None
    for block in stream:
        joined = block if rest is None else _joined([rest, block])
        rows -= _n_rows(block)
        if rows == 0:
            tail = {
                name: np.zeros((-_n_rows(joined) % batch_rows, *joined[name].shape[1:]), np.int32) for name in COLUMNS
            }
            joined = _joined([joined, tail])
        n_whole = _n_rows(joined) // batch_rows * batch_rows
        for start in range(0, n_whole, batch_rows):
            yield {name: joined[name][start : start + batch_rows] for name in COLUMNS}
        rest = {name: joined[name][n_whole:] for name in COLUMNS}


class _Pool:
    """Rows in slots that are used again: each row is copied in once, and out once when its batch is cut."""

    def __init__(self) -> None:
        self.rows: Block = {}
        self.held = np.zeros(0, np.int64)  # slots of rows, in the order they came or were last shuffled
        self._free = np.zeros(0, np.int64)

    def add(self, block: Block) -> None:
        """Take in the rows of a block."""
        n_rows, n_slots = _n_rows(block), len(self.held) + len(self._free)
        n_more = n_rows - len(self._free)
        if n_more > 0:
            for name in COLUMNS:
                more = np.empty((n_more, *block[name].shape[1:]), np.int32)
                self.rows[name] = np.concatenate([self.rows[name], more]) if n_slots else more
            self._free = np.concatenate([self._free, np.arange(n_slots, n_slots + n_more)])
        free = np.sort(self._free)  # rows are written from front to back, which is faster
        slots, self._free = free[:n_rows], free[n_rows:]
        for name in COLUMNS:
            self.rows[name][slots] = block[name]
        self.held = np.concatenate([self.held, slots])

    def keep(self, held: NDArray[np.int64], gone: NDArray[np.int64]) -> None:
        """Go on with the rows of some slots; those of the others have been copied out."""
        self.held, self._free = held, np.concatenate([self._free, gone])


def _batches(
    pool: Block,
    order: NDArray[np.int64],
    buckets: Sequence[Bucket],
    rests: list[Block | None],
    rng: np.random.Generator,
) -> Iterator[Block]:
    """The whole batches in the rows `order` of the pool and the rests before them; rests are replaced."""
    bounds = [bucket.positions for bucket in buckets[:-1]]
    place = np.searchsorted(bounds, pool[c.LENGTH][order])  # [n] bucket of each row
    plan: list[tuple[Block | None, NDArray[np.int64], int]] = []
    for at, bucket in enumerate(buckets):
        rows = order[place == at] if bounds else order
        rest = rests[at]
        start = -(_n_rows(rest) if rest else 0)
        while start + bucket.rows <= len(rows):
            plan.append((rest, rows[max(start, 0) : start + bucket.rows], bucket.positions))
            rest, start = None, start + bucket.rows
        left = rows[max(start, 0) :]
        if len(left):
            taken = _taken(pool, left, bucket.positions)
            rest = _joined([rest, taken]) if rest else taken
        rests[at] = rest
    for number in rng.permutation(len(plan)) if bounds else range(len(plan)):
        rest, rows, positions = plan[number]
        taken = _taken(pool, rows, positions)
        yield _joined([rest, taken]) if rest else taken


def _taken(pool: Block, rows: NDArray[np.int64], positions: int | None = None) -> Block:
    """A copy of some rows, cut to their first positions."""
    return {name: _cut(name, pool[name], positions).take(rows, axis=0) for name in COLUMNS}


def _cut(name: str, values: NDArray[np.int32], positions: int | None) -> NDArray[np.int32]:
    is_long = positions is not None and name in BY_POSITION and values.shape[1] != positions
    return values[:, :positions] if is_long else values


def _joined(blocks: Sequence[Block]) -> Block:
    return (
        {name: np.concatenate([block[name] for block in blocks]) for name in COLUMNS} if len(blocks) > 1 else blocks[0]
    )


def _n_rows(block: Block) -> int:
    return len(block[c.LENGTH])
