"""How well sessions cut at a gap of silence agree with the session ids that a log brings itself.

Counted are pairs of events of one user: together in our sessions, together in the log's, together in both. Precision is
both / ours, recall both / the log's. A session of n events weighs n (n - 1) / 2, so long ones count most.
A row that repeats another in user, time, item, action and session id counts once; one that lacks any of them does not
count.

Letters: n events, m events without repeated ones, s sessions.
"""

import argparse
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.report import Row, json_lines
from features import columns as c
from features.sessions import order_events
from features.sources import SourceMap
from jobs.inputs import load_source
from jobs.settings import UsageError

Ids = NDArray[np.int64]

GAPS_MIN = (10, 20, 30, 60)
_SESSION, _TIME_US = "session", "time_us"
_PER_UNIT = {"s": c.MICROS, "ms": 1_000, "us": 1}


@dataclass(frozen=True)
class Agreement:
    """Sessions and pairs of events that are together: ours, the log's, and both at once."""

    n_sessions: int
    n_sessions_log: int
    pairs: int
    pairs_log: int
    pairs_both: int

    @property
    def precision(self) -> float:
        """Share of our pairs that the log has too; 1 where we have none."""
        return self.pairs_both / self.pairs if self.pairs else 1.0

    @property
    def recall(self) -> float:
        """Share of the log's pairs that we have too; 1 where the log has none."""
        return self.pairs_both / self.pairs_log if self.pairs_log else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def agreement(user: NDArray[np.int32], time_us: Ids, event_id: Ids, session: Ids, gap_us: int) -> Agreement:
    """Cut with the project's own kernel and compare. All [n]; session: the log's own, read within a user.

    Two rows with the same (user, time_us, event_id) are one event; they must have the same session.
    """
    order, first = order_events(user, time_us, event_id, gap_us)
    ours = np.repeat(np.arange(len(first)), np.diff(first, append=len(order)))  # [m]
    theirs = group_codes(user[order], session[order])  # [m]
    both = group_codes(ours, theirs)  # [m]
    return Agreement(
        n_sessions=len(first),
        n_sessions_log=int(theirs.max()) + 1,
        pairs=n_pairs(ours),
        pairs_log=n_pairs(theirs),
        pairs_both=n_pairs(both),
    )


def group_codes(*keys: NDArray[np.generic]) -> Ids:
    """A number for each distinct combination of the keys, dense from 0. keys: [n] each → [n]."""
    numbered = pd.DataFrame(dict(enumerate(keys))).groupby(list(range(len(keys)))).ngroup()
    return np.asarray(numbered, np.int64)


def n_pairs(group: Ids) -> int:
    """Pairs of rows in the same group: Σ n (n - 1) / 2. group: [n], dense from 0."""
    sizes = np.bincount(group)
    return int((sizes * (sizes - 1) // 2).sum())


def read_events(path: Path, source: SourceMap, session_column: str) -> tuple[pd.DataFrame, int]:
    """A CSV log with the session ids → (user, item, action, time_us, session without repeated rows; rows read)."""
    if source.format != "csv":
        raise UsageError(f"--source: a {source.format} log; this benchmark reads csv alone.")
    named = {_SESSION: session_column, **source.columns}
    wanted = [name for name in (c.USER_ID, c.ITEM_ID, c.ACTION, c.EVENT_TIME, _SESSION) if name in named]
    raw = pd.read_csv(
        path,
        sep=source.delimiter,
        header=0 if source.header else None,
        names=None if source.header else list(source.names),
        dtype=str,
    )
    missing = sorted({named[name] for name in wanted} - set(raw.columns))
    if missing:
        raise UsageError(f"{path} has no column {', '.join(missing)}; its columns are: {', '.join(raw.columns)}.")
    events = pd.DataFrame({name: raw[named[name]] for name in wanted})
    events[_TIME_US] = _micros(events.pop(c.EVENT_TIME), source.time_unit)
    events = events.dropna()
    events[_TIME_US] = events[_TIME_US].astype(np.int64)
    if events.empty:
        raise UsageError(f"{path}: none of its {len(raw):,} rows has a user, an item, a time and a session id.")
    return events, len(raw)


def _micros(text: pd.Series, unit: str) -> pd.Series:
    """Microseconds since 1970 as Int64, missing where the text is no time."""
    if unit == "iso":
        times = pd.to_datetime(text.str.removesuffix(" UTC"), utc=True, format="ISO8601", errors="coerce")
        return times.dt.as_unit("us").astype("int64").astype("Int64").mask(times.isna())
    return (pd.to_numeric(text, errors="coerce") * _PER_UNIT[unit]).round().astype("Int64")


def agreements(events: pd.DataFrame, gaps_min: Sequence[float]) -> dict[float, Agreement]:
    """By gap in minutes. events: as of `read_events`; repeated rows in them count once."""
    identity = [name for name in (c.ITEM_ID, c.ACTION, _SESSION) if name in events]
    user = group_codes(events[c.USER_ID].to_numpy()).astype(np.int32)
    session = group_codes(events[_SESSION].to_numpy())
    event_id = group_codes(*(events[name].to_numpy() for name in identity))
    time_us = events[_TIME_US].to_numpy()
    return {gap: agreement(user, time_us, event_id, session, round(gap * 60 * c.MICROS)) for gap in gaps_min}


def table(found: dict[float, Agreement]) -> str:
    """The comparison for people, as Markdown."""
    lines = [
        "| gap | sessions | precision | recall | F1 |",
        "|---|---|---|---|---|",
    ]
    for gap, one in found.items():
        lines.append(
            f"| {gap:g} min | {one.n_sessions:,} | {one.precision:.3f} | {one.recall:.3f} | {one.f1:.3f} |",
        )
    lines.append(f"| the log's own | {next(iter(found.values())).n_sessions_log:,} | | | |")
    return "\n".join(lines)


def rows_of(found: dict[float, Agreement]) -> list[Row]:
    """One row for each gap and metric; the peer, the log's own sessions, agrees with itself in full."""
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows = []
    for gap, one in found.items():
        shares = {"precision": one.precision, "recall": one.recall, "f1": one.f1}
        values = {name: (share, 1.0, "share", "higher") for name, share in shares.items()}
        values["sessions"] = (one.n_sessions, one.n_sessions_log, "count", "equal")
        rows += [
            Row("session_agreement", f"gap {gap:g} min", name, unit, ours, peer, "log", better, 1, peak_mib)
            for name, (ours, peer, unit, better) in values.items()
        ]
    return rows


def main(argv: Sequence[str]) -> int:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.session_agreement", description=__doc__)
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="CSV log with its own session ids")
    parser.add_argument("--source", default="deskdrop", help="source map of the log (default: deskdrop)")
    parser.add_argument("--session-column", default="sessionId", help="column with them (default: sessionId)")
    parser.add_argument(
        "--gap-min", type=float, action="append", metavar="MINUTES", help="repeatable (default: 10, 20, 30, 60)"
    )
    parser.add_argument("--json", metavar="FILE", help="write JSON lines there; - for standard output, no table then")
    arguments = parser.parse_args(argv)
    try:
        events, n_rows = read_events(arguments.input, load_source(arguments.source), arguments.session_column)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = agreements(events, arguments.gap_min or GAPS_MIN)
    lines = json_lines(rows_of(found))
    if arguments.json == "-":
        print(lines, end="")
        return 0
    n_events = len(events.drop_duplicates())
    print(
        f"{n_rows:,} rows: {n_rows - len(events):,} without user, item, time or session id, {len(events) - n_events:,} "
        f"repeated; {n_events:,} events of {events[c.USER_ID].nunique():,} users\n\n{table(found)}"
    )
    if arguments.json:
        Path(arguments.json).write_text(lines, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
