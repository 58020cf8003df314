"""How good the model is on logs that others have measured: trained with several seeds, published rows beside it.

The log is cleaned, cut and encoded once; each seed is trained and judged on the same rows. Only validation decides on
anything; what it chose is printed.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from statistics import fmean, stdev
from time import monotonic
from typing import Any, NamedTuple

from pyspark.sql import SparkSession

from benchmarks.report import Row, json_lines
from features import columns as c
from jobs import sequences as encoding
from jobs import sessionize as cutting
from jobs import vocabulary as counting
from jobs.evaluate import evaluate
from jobs.evaluation_inputs import ORACLE, TRUTHS
from jobs.evaluation_table import MODEL, EvaluationResult, headline
from jobs.future_table import future_headline
from jobs.inputs import load_source, log_span
from jobs.run import DEMO_DATE, DEMO_SOURCE
from jobs.settings import CONF_DIR, Settings, UsageError, load_settings
from jobs.simulate import RAW, simulate
from jobs.spark import spark_session
from jobs.store import Store
from jobs.train import launch
from model.evaluation import CATEGORY_TARGET, ITEM_TARGET
from model.metrics import HR, NDCG

_K = 10


class Published(NamedTuple):
    """Another's row on the same log and protocol, and where it stands."""

    model: str
    hr: float
    ndcg: float
    where: str


@dataclass(frozen=True)
class Case:
    """A log: its source map, the name of its files in conf/quality, what others reached."""

    source: str
    name: str
    published: tuple[Published, ...] = ()

    @property
    def protocol(self) -> str:
        """How the log is split and judged; nothing that shapes the model."""
        return str(CONF_DIR / "quality" / f"{self.name}.yaml")

    @property
    def chosen(self) -> list[str]:
        """Settings chosen for this log, on validation; none where conf/base.yaml serves."""
        path = CONF_DIR / "quality" / f"{self.name}-chosen.yaml"
        return [str(path)] if path.exists() else []


CASES = {
    "beauty": Case(
        "amazon-reviews",
        "amazon-beauty",
        (
            Published("GRU4Rec", 0.0283, 0.0137, "S3-Rec, CIKM 2020"),
            Published("SASRec", 0.0605, 0.0318, "S3-Rec, CIKM 2020"),
            Published("ICLRec", 0.0744, 0.0403, "its README"),
            Published("SASRec, sampled softmax", 0.0921, 0.0531, "eSASRec, arXiv 2508.06450"),
            Published("eSASRec", 0.0928, 0.0523, "arXiv 2508.06450"),
        ),
    ),
    "ml-100k": Case(
        "movielens-100k-recbole",
        "movielens-100k",
        (
            Published("SASRec", 0.1198, 0.0594, "RecBole issue 945"),
            Published("GRU4Rec", 0.1304, 0.0650, "RecBole issue 945"),
        ),
    ),
    "deskdrop": Case("deskdrop", "deskdrop"),
    "simulated": Case(DEMO_SOURCE, "simulated"),
}


def main(argv: Sequence[str]) -> int:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--data", choices=sorted(CASES), required=True, help="which log")
    parser.add_argument("--input", metavar="PATH", help="the log; simulated needs none")
    parser.add_argument("--categories", metavar="PATH", help="file with the items' categories")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of training (default: 1 2 3)")
    parser.add_argument("--base", action="store_true", help="conf/base.yaml and the protocol, nothing chosen for it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    parser.add_argument("--ranks", type=int, default=2, help="Horovod processes that train (default: 2)")
    parser.add_argument("--json", metavar="FILE", help="write JSON lines there; - for standard output")
    arguments = parser.parse_args(argv)
    case = CASES[arguments.data]
    if not arguments.input and case.source != DEMO_SOURCE:
        parser.error(f"--data {arguments.data} needs --input")
    conf = [case.protocol] if arguments.base else [case.protocol, *case.chosen]
    with tempfile.TemporaryDirectory(prefix="interest-quality-") as root:
        try:
            last, settings = _prepared(case, conf, arguments, root)
            runs = [_trained(settings, conf, arguments, root, last, seed) for seed in arguments.seeds]
        except UsageError as error:
            parser.error(str(error))
    if arguments.json == "-":
        print(json_lines(_rows(arguments.data, case, runs)), end="")
        return 0
    print(_text(case, runs))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            file.write(json_lines(_rows(arguments.data, case, runs)))
    return 0


@dataclass(frozen=True)
class _Run:
    seed: int
    seconds: float  # of training, validation included
    result: EvaluationResult

    def value(self, target: str, metric: str, model: str = MODEL) -> float:
        """One number of the table."""
        return next(
            row.value
            for row in self.result.evaluation.rows
            if (row.target, row.metric, row.k, row.model) == (target, metric, _K, model)
        )


def _prepared(case: Case, conf: list[str], arguments: argparse.Namespace, root: str) -> tuple[date, Settings]:
    """The log as training sequences below `root`, and its last day."""
    settings, source = load_settings(conf, arguments.set), load_source(case.source)
    spark: SparkSession = spark_session("quality")
    if arguments.input:
        inputs = [arguments.input]
        first, last = log_span(spark, source, inputs)
    else:
        last = DEMO_DATE
        first, inputs = last - timedelta(days=settings.simulation.days - 1), [f"{Store(root).root}/{RAW}"]
        simulate(spark, settings, root, last)
    categories = [arguments.categories] if arguments.categories else []
    cutting.sessionize(
        spark, settings, source, inputs, root, max(first, settings.cleaning.min_date), last, True, categories
    )
    counting.build_vocabulary(spark, settings, root, last)
    encoding.build_sequences(spark, settings, root, last)
    spark.stop()  # its memory is the ranks'
    return last, settings


def _trained(
    settings: Settings, conf: Sequence[str], arguments: argparse.Namespace, root: str, last: date, seed: int
) -> _Run:
    started = monotonic()
    launch(arguments.ranks, root, last, conf, [*arguments.set, f"training.seed={seed}"], fresh=True)
    seconds = monotonic() - started
    return _Run(seed, seconds, evaluate(settings, root, last))


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def _text(case: Case, runs: Sequence[_Run]) -> str:
    """The table for people."""
    split = runs[0].result.split
    how = "leave one out" if split.protocol == c.LEAVE_ONE_OUT else f"global time, the test from {split.cutoff} on"
    seen = next(row.seen_items for row in runs[0].result.evaluation.rows if row.target == ITEM_TARGET)
    lines = [f"{case.name}: {how}, every item ranked, seen items: {seen}; n = {split.n_users:,} users."]
    lines += [f"Mean ± standard deviation of {len(runs)} seeds ({', '.join(str(run.seed) for run in runs)}).", ""]
    for target in (ITEM_TARGET, CATEGORY_TARGET):
        names = {row.model: None for row in runs[0].result.evaluation.rows if row.target == target}
        lines.append(f"{f'next {target}':26} {f'HR@{_K}':>16} {f'NDCG@{_K}':>16}")
        if target == ITEM_TARGET:
            lines += [f"{row.model:26} {row.hr:16.4f} {row.ndcg:16.4f}  {row.where}" for row in case.published]
        baselines = [name for name in names if name not in (MODEL, *TRUTHS)]
        for name in [*baselines, MODEL, *(truth for truth in TRUTHS if truth in names)]:
            over = runs if name == MODEL else runs[:1]  # the others know no seed
            hr, ndcg = (_spread([run.value(target, metric, name) for run in over]) for metric in (HR, NDCG))
            lines.append(f"{name:26} {hr:>16} {ndcg:>16}")
        lines += (
            [_difference(run, target) for run in runs] + _mean_share([headline(r.result, target) for r in runs]) + [""]
        )
    lines += _days_ahead(runs)
    seconds = [run.seconds for run in runs]
    lines.append(f"Training, start of ranks and validation included: {_spread(seconds)} s.")
    return "\n".join(lines)


def _difference(run: _Run, target: str) -> str:
    said = headline(run.result, target)
    text = (
        f"seed {run.seed}: NDCG@{_K}, model − {said['best_baseline']}: {said['difference']:+.4f} "
        f"[{said['low']:+.4f}, {said['high']:+.4f}]"
    )
    share = said.get("share_of_gap")
    return text if share is None else f"{text}; share of the way from there to the {ORACLE}: {share:.0%}"


def _days_ahead(runs: Sequence[_Run]) -> list[str]:
    """Each question of the days ahead by its main metric: the model, the best baseline and, where known, the oracle."""
    targets = dict.fromkeys(row.target for row in runs[0].result.future.rows)
    lines: list[str] = []
    for target in targets:
        found = [future_headline(run.result.future, target, MODEL) for run in runs]
        said = [each for each in found if each is not None]
        if len(said) < len(runs):
            continue
        lines.append(f"{target}, {said[0]['metric']}: model {_spread([float(str(each['model'])) for each in said])}")
        lines += [
            f"seed {run.seed}: model − {each['best_baseline']}: {each['difference']:+.4f} "
            f"[{each['low']:+.4f}, {each['high']:+.4f}]"
            for run, each in zip(runs, said, strict=True)
        ]
        lines += [*_mean_share(said), ""]
    return lines


def _mean_share(said: Sequence[Mapping[str, Any]]) -> list[str]:
    """How far the seeds come on the way from the best baseline to the oracle; nothing where there is none."""
    shares = [each["share_of_gap"] for each in said if each.get("share_of_gap") is not None]
    return [f"share of the way to the {ORACLE}: {_spread(shares)}"] if len(shares) == len(said) else []


def _rows(data: str, case: Case, runs: Sequence[_Run]) -> list[Row]:
    """Our means against the best published row, or where there is none against the best baseline."""
    rows = []
    for metric in (HR, NDCG):
        ours = fmean(run.value(ITEM_TARGET, metric) for run in runs)
        if case.published:
            best = max(case.published, key=lambda row: row.ndcg)
            name, peer = best.model, best.hr if metric == HR else best.ndcg
        else:
            name = headline(runs[0].result, ITEM_TARGET)["best_baseline"]
            peer = runs[0].value(ITEM_TARGET, metric, name)
        rows.append(Row("quality", data, f"{metric}@{_K}", "share", ours, peer, name, "higher", len(runs), 0.0))
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
