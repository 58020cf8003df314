"""From lives to lines of a log, with the dirt that real logs carry. Formulas: docs/simulation.md.

Every dirty line is an addition: a copy of a true row that was spoilt, or a row of a bot. What remains after
good cleaning is the process itself, but for late rows and skewed clocks, which change the times of true rows.
Letters in shapes: n rows of one unit, N rows of all units of a batch.
"""

from typing import Annotated, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from features import columns as c
from features.simulated_lives import Life, Window
from features.simulated_process import BOTS, DIRT, HEAVY, Count, Ints, Positive, Process, Share, random_numbers

RAW_COLUMNS = (c.EVENT_TIME, c.INGEST_TIME, c.USER_ID, c.ITEM_ID, c.CATEGORY_ID, c.ACTION)
KINDS = (
    "clean",
    "duplicate",
    "unknown_action",
    "empty_user",
    "empty_item",
    "cut_line",
    "bad_time",
    "bot",
    "heavy_user",
)
CLEAN, DUPLICATE, UNKNOWN_ACTION, EMPTY_USER, EMPTY_ITEM, CUT_LINE, BAD_TIME, BOT, HEAVY_USER = range(len(KINDS))

DAY_MS = 1000 * c.DAY_S
HEAVY_SLICE = 50_000  # rows of the heavy user that are made at once, so that memory stays bounded
_WRONG_ACTION = "hover"
_WRONG_TIME = "0000-00-00T00:00:00.000Z"
_CLICK = c.ACTIONS.index("click")
# A cut line ends within its first two columns, so that it is never a whole row by chance.
_CUT_FROM, _CUT_TO = 4, 48


class DirtSpec(BaseModel):
    """How dirty the log is. Shares are of the true rows unless a comment in conf/base.yaml says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    duplicates: Share
    unknown_actions: Share
    empty_ids: Share
    cut_lines: Share
    bad_times: Share
    late_rows: Share
    late_days: Count
    skewed_users: Share
    skew_s: Positive
    bots: Share
    bot_events: Count
    bot_gap_s: Positive
    heavy_user: Annotated[float, Field(ge=0.0, lt=1.0)]


class Rows(NamedTuple):
    """Rows of one user, bot or slice of the heavy user, as they are logged."""

    user_id: str
    event_ms: Ints  # [n] by the device's clock
    ingest_ms: Ints  # [n] by the log's clock
    item: Ints  # [n]
    category: Ints  # [n]
    action: Ints  # [n] position in columns.ACTIONS
    kind: NDArray[np.int8]  # [n] position in KINDS
    skewed: NDArray[np.bool_]  # [n]


def logged(life: Life, spec: DirtSpec, window: Window, seed: int, user: int) -> Rows:
    """One user's life as it is logged: each event once, then the spoilt copies."""
    rng = random_numbers(seed, DIRT, user)
    n = len(life.time_ms)
    skewed, ahead = rng.random() < spec.skewed_users, rng.uniform(-1.0, 1.0)
    event_ms = life.time_ms + (int(1000 * spec.skew_s * ahead) if skewed else 0)
    late, delay = rng.random(n) < spec.late_rows, rng.random(n) * spec.late_days * DAY_MS
    arrival_ms = (life.time_ms // DAY_MS + 1) * DAY_MS + delay.astype(np.int64)
    ingest_ms = np.where(late & (arrival_ms < window.end_ms), arrival_ms, life.time_ms)
    copies = [(np.arange(n), CLEAN)]
    for kind, share in (
        (DUPLICATE, spec.duplicates),
        (UNKNOWN_ACTION, spec.unknown_actions),
        (EMPTY_USER, spec.empty_ids / 2),
        (EMPTY_ITEM, spec.empty_ids / 2),
        (CUT_LINE, spec.cut_lines),
        (BAD_TIME, spec.bad_times),
    ):
        copies.append((np.flatnonzero(rng.random(n) < share), kind))
    row = np.concatenate([rows for rows, _ in copies])
    kind_of = np.repeat([kind for _, kind in copies], [len(rows) for rows, _ in copies]).astype(np.int8)
    return Rows(
        user_token(user),
        event_ms[row],
        ingest_ms[row],
        life.item[row],
        life.category[row],
        life.action[row],
        kind_of,
        np.full(len(row), skewed),
    )


def bot(process: Process, spec: DirtSpec, window: Window, seed: int, number: int) -> Rows:
    """A crawler: from a moment in the window on it clicks one item after the other, as steady as a clock."""
    rng = random_numbers(seed, BOTS, number)
    start_ms = int(rng.integers(window.start_ms, window.end_ms))
    time_ms = start_ms + (1000 * spec.bot_gap_s * np.arange(spec.bot_events)).astype(np.int64)
    time_ms = time_ms[time_ms < window.end_ms]
    item = (int(rng.integers(process.items)) + np.arange(len(time_ms))) % process.items
    return _machine(f"b{number:08d}", process, time_ms, item, np.full(len(item), _CLICK), BOT)


def heavy_user(process: Process, window: Window, seed: int, n_rows: int, part: int) -> Rows:
    """Part of the one account that makes `n_rows` rows, evenly over the window and by popularity."""
    rng = random_numbers(seed, HEAVY, part)
    number = np.arange(part * HEAVY_SLICE, min((part + 1) * HEAVY_SLICE, n_rows))
    time_ms = window.start_ms + (number * ((window.end_ms - window.start_ms) / n_rows)).astype(np.int64)
    share = np.repeat(process.start @ process.taste, np.diff(process.first_item)) * process.popularity
    item = np.searchsorted(np.cumsum(share)[:-1], rng.random(len(number)), side="right")
    action = np.searchsorted(np.cumsum(process.actions)[:-1], rng.random(len(number)), side="right")
    return _machine("h00000000", process, time_ms, item, action, HEAVY_USER)


def lines(batch: list[Rows], process: Process) -> tuple[pa.Array, Rows]:
    """The text of each row, and the rows of all units put together → ([N] string, [N])."""
    rows = Rows("", *(np.concatenate(channel) for channel in list(zip(*batch, strict=True))[1:]))
    users = pa.array([unit.user_id for unit in batch])
    user = users.take(pa.array(np.repeat(np.arange(len(batch)), [len(unit.kind) for unit in batch])))
    kind = rows.kind
    columns = (
        pc.if_else(pa.array(kind == BAD_TIME), _WRONG_TIME, _iso(rows.event_ms)),
        _iso(rows.ingest_ms),
        pc.if_else(pa.array(kind == EMPTY_USER), "", user),
        pc.if_else(pa.array(kind == EMPTY_ITEM), "", pa.array(item_tokens(process)).take(pa.array(rows.item))),
        pa.array(category_tokens(process)).take(pa.array(rows.category)),
        pc.if_else(pa.array(kind == UNKNOWN_ACTION), _WRONG_ACTION, pa.array(c.ACTIONS).take(pa.array(rows.action))),
    )
    text = pc.binary_join_element_wise(*columns, ",")
    torn = kind == CUT_LINE
    if torn.any():
        # Where a line is cut follows from its own time: nothing to carry along.
        cuts = _CUT_FROM + rows.event_ms[torn] % (_CUT_TO - _CUT_FROM)
        pieces = [whole[:cut] for whole, cut in zip(text.filter(pa.array(torn)).to_pylist(), cuts, strict=True)]
        text = pc.replace_with_mask(text, pa.array(torn), pa.array(pieces, pa.string()))
    return text, rows


def user_token(user: int) -> str:
    """user_id of a user of the process."""
    return f"u{user:08d}"


def item_tokens(process: Process) -> list[str]:
    """item_id of each item; their order as text is their order as numbers → [I]."""
    width = len(str(process.items - 1))
    return [f"i{item:0{width}d}" for item in range(process.items)]


def category_tokens(process: Process) -> list[str]:
    """category_id of each category → [C]."""
    width = len(str(process.categories - 1))
    return [f"c{category:0{width}d}" for category in range(process.categories)]


def _machine(user_id: str, process: Process, time_ms: Ints, item: Ints, action: Ints, kind: int) -> Rows:
    category = np.searchsorted(process.first_item, item, side="right") - 1
    n = len(item)
    return Rows(
        user_id, time_ms, time_ms, item, category, action, np.full(n, kind, dtype=np.int8), np.zeros(n, dtype=np.bool_)
    )


def _iso(time_ms: Ints) -> pa.Array:
    """[n] milliseconds since the epoch → [n] text like 2024-05-31T23:59:59.123Z."""
    text = pa.array(time_ms, pa.timestamp("ms")).cast(pa.string())
    return pc.binary_join_element_wise(pc.utf8_replace_slice(text, 10, 11, "T"), "Z", "")
