"""Logs to measure on: Parquet, of any size, alike on every machine."""

from datetime import UTC, date, datetime, time, timedelta
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.sources import SourceMap

LAST_DAY, DAYS = date(2024, 3, 31), 28
_US, _DAY_US = 1_000_000, 86_400_000_000
_ROWS_PER_FILE = 2_000_000
ONE_USER, ONE_ITEM, ONE_SECOND = "one user with 10 %", "one item with 30 %", "1,000 users in 1 s"
SKEWS = (ONE_USER, ONE_ITEM, ONE_SECOND)
_ACTIONS = ("view", "click", "like", "cart", "buy")
SOURCE = SourceMap(
    format="parquet",
    columns={name: name for name in ("user_id", "item_id", "category_id", "action", "event_time")},
    time_unit="us",
    order="position",
)


def make_log(folder: Path, n_events: int, days: int = DAYS, skew: str | None = None, seed: int = 1) -> None:
    """Write a log of 50 events a user: sessions of log-normal length (median 6), 2 % of the rows twice, in no order.

    skew: one of SKEWS, or None.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    n_users, n_items, n_categories = max(1, n_events // 50), max(10, n_events // 100), 200
    lengths = np.clip(random.lognormal(np.log(6), 1.2, n_events).astype(np.int64), 1, 500)
    lengths = lengths[: np.searchsorted(np.cumsum(lengths), n_events) + 1]
    session = np.repeat(np.arange(len(lengths)), lengths)[:n_events]
    of_session = random.integers(0, n_users, len(lengths))
    if skew == ONE_USER:
        of_session[random.random(len(lengths)) < 0.1] = 0
    user = of_session[session]
    end_us = (np.datetime64(LAST_DAY, "us").astype(np.int64)) + _DAY_US
    start_us = end_us - random.integers(0, days * _DAY_US, len(lengths))
    gaps = random.exponential(60 * _US, n_events).astype(np.int64)
    walked = np.cumsum(gaps)
    first = np.searchsorted(session, session)
    time_us = np.minimum(start_us[session] + walked - walked[first], end_us - 1)
    item = (random.pareto(1.1, n_events) * 20).astype(np.int64) % n_items
    if skew == ONE_ITEM:
        item[random.random(n_events) < 0.3] = 0
    if skew == ONE_SECOND:
        time_us[user < 1_000] = end_us - _DAY_US + random.integers(0, _US, int((user < 1_000).sum()))
    rows = random.permutation(np.append(np.arange(n_events), random.integers(0, n_events, n_events // 50)))

    def names(prefix: str, n: int) -> pa.Array:
        return pa.array([f"{prefix}{k}" for k in range(n)])

    tokens = {"user_id": names("u", n_users), "item_id": names("i", n_items), "category_id": names("c", n_categories)}
    action = random.choice(5, n_events, p=[0.55, 0.38, 0.03, 0.03, 0.01])
    for number, at in enumerate(range(0, len(rows), _ROWS_PER_FILE)):
        part = rows[at : at + _ROWS_PER_FILE]
        codes = {"user_id": user[part], "item_id": item[part], "category_id": item[part] % n_categories}
        columns = {name: tokens[name].take(pa.array(code)) for name, code in codes.items()}
        columns |= {
            "action": pa.array(_ACTIONS).take(pa.array(action[part])),
            "event_time": pa.array(time_us[part], pa.timestamp("us", tz="UTC")),
            "position": pa.array(part),
        }
        pq.write_table(pa.table(columns), folder / f"part-{number:03d}.parquet")


def split_log(log: Path, last: date, until: Path, after: Path) -> None:
    """Write the rows up to the end of a day into one folder, the others into another."""
    end = pa.scalar(datetime.combine(last + timedelta(days=1), time(), UTC), pa.timestamp("us", tz="UTC"))
    for folder in (until, after):
        folder.mkdir(parents=True)
    for file in sorted(log.iterdir()):
        rows = pq.read_table(file)
        is_before = pc.less(rows["event_time"], end)
        pq.write_table(rows.filter(is_before), until / file.name)
        pq.write_table(rows.filter(pc.invert(is_before)), after / file.name)


def make_log_apart(folder: Path, n_events: int, days: int = DAYS, skew: str | None = None) -> None:
    """`make_log` in a process of its own, so that its memory is not counted as the stage's."""
    process = get_context("spawn").Process(target=make_log, args=(folder, n_events, days, skew))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"Making a log of {n_events:,} events ended with exit code {process.exitcode}.")
