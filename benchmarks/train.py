"""The training step against the machine's matrix product and Keras's own LSTM and Model.fit; sparse against dense.

Each piece runs in a process of its own, in turn, on the same batches.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from benchmarks.report import Row, report
from benchmarks.train_parts import Case, encoded

_BENCH = "train"
_ONEDNN = "TF_ENABLE_ONEDNN_OPTS"


def main(argv: Sequence[str]) -> int:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--rows", type=int, default=256, help="rows of a batch (default: 256)")
    parser.add_argument("--length", type=int, default=50, help="events of a row (default: 50)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each piece (default: 2)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the median is reported (default: 3)")
    parser.add_argument(
        "--crossover", metavar="ITEMS", type=int, nargs="*", default=[], help="vocabularies for sparse against dense"
    )
    parser.add_argument("--json", metavar="FILE", help="write JSON lines there; - for standard output")
    arguments = parser.parse_args(argv)
    case = Case(arguments.rows, arguments.length, threads=arguments.threads)
    sampled = replace(case, full_softmax_max_items=1)
    rows = [*_against_peers("1,024 negatives", sampled, arguments.runs)]
    rows += _against_peers("full softmax", replace(case, rows=32, full_softmax_max_items=case.items), arguments.runs)
    for items in arguments.crossover:
        rows.append(_sparse_against_dense(replace(sampled, items=items), arguments.runs))
    report(rows, arguments.json)
    return 0


def _against_peers(name: str, case: Case, runs: int) -> list[Row]:
    """Peers run as TensorFlow comes, and once more with the oneDNN products that jobs.train switches on."""
    peers = [(piece, onednn) for piece in ("matmul", "keras_fit") for onednn in ("", "1")]
    found: dict[tuple[str, str], list[dict[str, float]]] = {peer: [] for peer in (*peers, ("ours", ""))}
    for _ in range(runs):
        for (piece, onednn), of in found.items():
            of.append(timed(piece, case, onednn))
    own, rows = found["ours", ""], []
    for piece, onednn in peers:
        with_it = ", oneDNN" if onednn else ""
        label, metric, unit = (
            (f"2,048 x 2,048 product{with_it}", "rate", "GFLOP/s")
            if piece == "matmul"
            else (f"Keras LSTM, Model.fit{with_it}", "events_s", "1/s")
        )
        rows.append(_row(name, metric, unit, own, found[piece, onednn], label))
    return rows


def _sparse_against_dense(case: Case, runs: int) -> Row:
    found: dict[int, list[dict[str, float]]] = {0: [], case.items + 1: []}
    for _ in range(runs):
        for limit, of in found.items():
            of.append(timed("ours", replace(case, sparse_min_items=limit)))
    sparse, dense = found.values()
    return _row(f"{case.items:,} items", "events_s", "1/s", sparse, dense, "dense gradients")


def _row(
    case: str,
    metric: str,
    unit: str,
    ours: Sequence[Mapping[str, float]],
    peer: Sequence[Mapping[str, float]],
    name: str,
) -> Row:
    key = "gflop_s" if metric == "rate" else metric
    peak = max(run["peak_rss_mib"] for run in ours)
    own, other = (median(run[key] for run in each) for each in (ours, peer))
    return Row(_BENCH, case, metric, unit, own, other, name, "higher", len(ours), peak)


def timed(piece: str, case: Case, onednn: str = "") -> dict[str, float]:
    """Run a piece in a process of its own. onednn: "1" for oneDNN's products (ours takes them anyway), "" as it comes.

    Raises:
        RuntimeError: it failed; the message is the end of what it said.
    """
    command = [sys.executable, "-m", "benchmarks.train_parts", piece, encoded(case)]
    environment = {name: value for name, value in os.environ.items() if name != _ONEDNN}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment | ({_ONEDNN: onednn} if onednn else {})
    )
    if done.returncode != 0:
        raise RuntimeError(f"{piece} failed: {done.stderr.strip()[-2_000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
