"""Rows cut from whole lives, as the sequences stage cuts them, with what follows each window."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features import columns as c
from tests.model import tables

EDGES_S = (60, 600, 1800, 3600, 86400)  # the codes of tables.SIZES: 5 and more open a session
N_AHEAD = 6


@dataclass(frozen=True)
class Life:
    """One user's events in order; whole seconds since a Monday 00:00."""

    time_s: Sequence[int]
    category: Sequence[int]
    action: Sequence[int]


def gap_code(gap_s: int) -> int:
    return c.FIRST_GAP + sum(edge < gap_s for edge in EDGES_S)


def hour_code(time_s: int) -> int:
    return c.FIRST_HOUR + time_s // 3600 % 168


def row(life: Life, stop: int, known_at_s: int, length: int = tables.LENGTH) -> dict[str, NDArray[np.int32]]:
    """The window of the events before `stop`, knowing all up to a moment: a row without the batch's axis."""
    start = max(0, stop - length)
    own, last_s = range(start, stop), life.time_s[stop - 1]
    after = [at for at in range(stop, len(life.time_s)) if life.time_s[at] <= known_at_s]
    listed, rest = after[:N_AHEAD], after[N_AHEAD:]
    known_s = (life.time_s[rest[0]] - 1 if rest else known_at_s) - last_s

    def filled(values: Sequence[int], width: int) -> NDArray[np.int32]:
        return np.array([*values, *[0] * (width - len(values))], np.int32)

    within = [*own, *listed[:1]]
    gaps = [gap_code(life.time_s[at] - life.time_s[at - 1]) if at else c.UNKNOWN_GAP for at in within]
    values = {
        c.ITEM: filled([life.category[at] for at in own], length),  # every category has one item, of its id
        c.CATEGORY: filled([life.category[at] for at in own], length),
        c.ACTION_CODE: filled([life.action[at] for at in own], length),
        c.GAP: filled(gaps[: len(own)], length),
        c.HOUR: filled([hour_code(life.time_s[at]) for at in own], length),
        c.AGE: filled([last_s - life.time_s[at] for at in own], length),
        c.AHEAD_CATEGORY: filled([life.category[at] for at in listed], N_AHEAD),
        c.AHEAD_ACTION: filled([life.action[at] for at in listed], N_AHEAD),
        c.AHEAD: filled([life.time_s[at] - last_s for at in listed], N_AHEAD),
    }
    scalars = {
        c.LENGTH: stop - start,
        c.NEXT_GAP: gaps[-1] if listed else c.PAD,
        c.NEXT_ITEM: life.category[stop] if listed else c.PAD,
        c.NEXT_CATEGORY: life.category[stop] if listed else c.PAD,
        c.AHEAD_LENGTH: len(listed),
        c.KNOWN: known_s,
    }
    return values | {name: np.int32(value) for name, value in scalars.items()}


def batch(rows: Sequence[dict[str, NDArray[np.int32]]]) -> dict[str, NDArray[np.int32]]:
    return {name: np.stack([each[name] for each in rows]) for name in rows[0]}
