"""How rows are cut into batches for a network: few of them, of few shapes, and hardly wider than what they hold."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import columns as c

BATCH_ROWS = 256  # large enough for full matrix-multiply speed
# Batches have few different shapes, for which a library may prepare itself: rows and positions are rounded up to these.
ROW_STEP, POSITION_STEP = 32, 8
BATCH_CELLS = 640  # what starting a batch costs, in positions read of a row: 2.5 ms of 4 us each

Ints = NDArray[np.int32]


def batches_of(n_positions: Ints) -> Iterator[slice]:
    """Rows in batches of at most BATCH_ROWS, so that reading them costs least; n_positions: [n] of each row, falling.

    A batch reads as many positions as its first row has, so it ends early where those that follow are much shorter.
    """
    n_steps = -(-len(n_positions) // ROW_STEP)
    costs, firsts = [0], [0]  # of the first so many steps: what they cost at best, and where their last batch starts
    for stop in range(1, n_steps + 1):
        starts = range(stop - 1, max(-1, stop - 1 - BATCH_ROWS // ROW_STEP), -1)  # of the last batch
        found = [costs[at] + BATCH_CELLS + (stop - at) * ROW_STEP * int(n_positions[at * ROW_STEP]) for at in starts]
        costs.append(min(found))
        firsts.append(starts[found.index(costs[-1])])
    bounds = [n_steps]
    while bounds[-1] > 0:
        bounds.append(firsts[bounds[-1]])
    for start, stop in pairwise(reversed(bounds)):
        yield slice(start * ROW_STEP, min(stop * ROW_STEP, len(n_positions)))


def rounded_up(number: Any, step: int) -> Any:
    """The least multiple of `step` from a number on, or from each of several."""
    return -(-number // step) * step


def filled_cut(row: Mapping[str, Ints], some: slice) -> dict[str, Ints]:
    """Some of the rows, cut behind the longest one and filled up."""
    n_positions = rounded_up(max(int(row[c.LENGTH][some].max(initial=0)), 1), POSITION_STEP)
    return {
        name: filled(values[some] if values.ndim == 1 else values[some, :n_positions]) for name, values in row.items()
    }


def filled(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows of zeros at the end, up to a multiple of ROW_STEP."""
    missing = rounded_up(len(rows), ROW_STEP) - len(rows)
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)]) if missing else rows
