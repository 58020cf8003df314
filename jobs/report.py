"""The report of a day: one HTML file that needs no network, and its figures as images."""

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from importlib import resources
from pathlib import Path

from pyspark.sql import SparkSession

from jobs.cli import run_job, say, show, stage_parser
from jobs.report_facts import ReportFacts, gather
from jobs.report_figure import Figure
from jobs.report_html import page
from jobs.report_images import images
from jobs.report_interests import interest_figures
from jobs.report_model import model_figures
from jobs.report_pipeline import pipeline_figures, stage_figure
from jobs.settings import Settings, load_settings
from jobs.spark import spark_session
from jobs.store import Store

REPORT, HTML = "report", "report.html"


def report(
    spark: SparkSession,
    settings: Settings,
    root: str,
    dt: date,
    stages: Sequence[tuple[str, float]] = (),
) -> str:
    """Write `ROOT/report/dt=D/report.html` and its images; returns the path. stages: seconds of the run so far.

    A reader sees the report of before, the new one, or none; never half of one.

    Raises:
        ContractError: the day has no scores.
    """
    store = Store(root)
    facts = gather(spark, settings, store, dt, stages)
    figures = figures_of(facts, settings)
    files = {HTML: page(facts, figures, plotly_js()).encode()}
    if settings.report.images:
        files |= images(figures)
    staged, final = store.staging(REPORT, dt), store.path(REPORT, dt)
    store.fs.makedirs(staged, exist_ok=True)
    for name, content in files.items():
        with store.fs.open(f"{staged}/{name}", "wb") as file:
            file.write(content)
    if store.fs.exists(final):
        store.fs.rm(final, recursive=True)
    store.fs.mv(staged, final, recursive=True)
    return f"{final}/{HTML}"


def figures_of(facts: ReportFacts, settings: Settings) -> list[Figure]:
    """Every figure, in the order of the page."""
    return [
        stage_figure(facts),
        *interest_figures(facts, settings.report),
        *model_figures(facts),
        *pipeline_figures(facts),
    ]


def plotly_js() -> str:
    """The library that draws, as the plotly package brings it."""
    return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Command line of the report."""
    return run_job(_work, parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The flags of the report."""
    flags = stage_parser("report")
    flags.add_argument("--out", metavar="FILE", help="copy the page to this file, too")
    return flags


def _work(arguments: argparse.Namespace) -> None:
    settings = load_settings(arguments.conf, arguments.set)
    spark = spark_session("report")
    path = report(spark, settings, arguments.root, arguments.date)
    if arguments.out:
        _copy(Store(arguments.root), path, Path(arguments.out))
    spark.stop()
    show(arguments, {"path": path, "copy": arguments.out}, arguments.out or path)


def _copy(store: Store, path: str, out: Path) -> None:
    """Write the copy beside its place, then rename."""
    hidden = out.with_name(f".{out.name}.tmp")
    hidden.parent.mkdir(parents=True, exist_ok=True)
    hidden.write_bytes(store.fs.cat_file(path))
    hidden.replace(out)
    say(f"report: {path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
