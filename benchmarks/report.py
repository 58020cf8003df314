"""How every benchmark reports: rows with fixed keys, a table for people, JSON lines for machines."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from time import monotonic

import psutil

_MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is ours / peer; `better` says what is good: lower, higher, or equal to the peer."""

    bench: str
    case: str
    metric: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    better: str
    runs: int
    peak_rss_mib: float

    @property
    def ratio(self) -> float:
        """Ours against the peer's."""
        return self.ours / self.peer


@dataclass
class Peak:
    """Most memory that this process and its children held together, in MiB."""

    mib: float = 0.0


@contextmanager
def peak_memory(every_s: float = 0.2) -> Iterator[Peak]:
    """Sample resident memory of this process and all its children; shared pages count for each."""
    peak, done = Peak(), threading.Event()

    def sample() -> None:
        while not done.wait(every_s):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak.mib = max(peak.mib, total / _MIB)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()


def in_turn(works: dict[str, Callable[[], object]], runs: int) -> dict[str, tuple[float, float]]:
    """Run each piece of work `runs` times, in turn: name → (median seconds, peak MiB)."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    peaks: dict[str, float] = dict.fromkeys(works, 0.0)
    for _ in range(runs):
        for name, work in works.items():
            with peak_memory() as peak:
                started = monotonic()
                work()
                seconds[name].append(monotonic() - started)
            peaks[name] = max(peaks[name], peak.mib)
    return {name: (median(times), peaks[name]) for name, times in seconds.items()}


def json_lines(rows: Sequence[Row]) -> str:
    """One JSON object a line for each row."""
    records = ({**asdict(row), "ratio": round(row.ratio, 4), "cores": os.cpu_count()} for row in rows)
    return "".join(f"{json.dumps(record)}\n" for record in records)


def report(rows: Sequence[Row], to: str | None) -> None:
    """Print the table; with `to` also write JSON lines there, `-` being standard output instead of the table."""
    lines = json_lines(rows)
    if to == "-":
        print(lines, end="")
        return
    print(f"{'case':24} {'metric':10} {'unit':6} {'ours':>10} {'peer':>10} {'ratio':>7}  peer")
    for row in rows:
        print(
            f"{row.case:24} {row.metric:10} {row.unit:6} {row.ours:10.2f} {row.peer:10.2f} {row.ratio:7.2f}  "
            f"{row.peer_name} ({row.better} is better, {row.runs} runs, peak {row.peak_rss_mib:,.0f} MiB)"
        )
    if to:
        with open(to, "w", encoding="utf-8") as file:
            file.write(lines)
    sys.stdout.flush()
