import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from deploy import cluster, package
from jobs.inputs import load_source
from jobs.score import score
from jobs.sequences import build_sequences
from jobs.sessionize import sessionize
from jobs.settings import load_settings
from jobs.simulate import RAW, simulate
from jobs.train import launch
from jobs.vocabulary import build_vocabulary
from tests.cluster.submits import DAY, FIRST, SMALL, Site

_FIRST_S, _EACH_S = 480, 120  # what the fixtures with the first test and a test take at most, on a busy machine


@pytest.fixture(scope="session", autouse=True)
def room_for_a_cluster() -> None:
    """Where INTEREST_UNTIL, in seconds since 1970, leaves no time even for the beginning, say so."""
    _skip_unless_left(_FIRST_S)


@pytest.fixture(autouse=True)
def time_left(room_for_a_cluster: None) -> None:  # noqa: ARG001
    """No test begins that may not end before INTEREST_UNTIL."""
    _skip_unless_left(_EACH_S)


def _skip_unless_left(wanted_s: float) -> None:
    until = os.environ.get("INTEREST_UNTIL")
    left_s = float(until) - time.time() if until else wanted_s
    if left_s < wanted_s:
        pytest.skip(f"{max(0, left_s):.0f} s are left until INTEREST_UNTIL; {wanted_s} s may be needed")


@pytest.fixture(scope="session")
def dist() -> Path:
    """What `make package` wrote; code, scripts and configuration as they are now."""
    folder = Path(os.environ.get("INTEREST_DIST", package.TOP / "dist"))
    assert (folder / package.ENVIRONMENT).exists(), f"{folder / package.ENVIRONMENT} is missing: make package"
    assert package.main(["--into", str(folder), "--code-only"]) == 0
    return folder


@pytest.fixture(scope="session")
def site(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two workers of one core each; ended with all that they started."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "unpacked").mkdir()
    subprocess.run(["tar", "-xzf", dist / package.ENVIRONMENT, "-C", folder / "unpacked"], check=True)
    cluster.up(folder, workers=2, cores=1, memory_mib=1024)
    made = Site(folder, dist, folder / "unpacked")
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="session")
def local_root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated log, and all stages on it without a cluster: what the cluster must come to."""
    root = tmp_path_factory.mktemp("local")
    settings = load_settings((), SMALL)
    simulate(spark, settings, str(root), DAY)
    sessionize(spark, settings, load_source("simulated"), [str(root / RAW)], str(root), FIRST, DAY, True)
    build_vocabulary(spark, settings, str(root), DAY)
    build_sequences(spark, settings, str(root), DAY)
    launch(2, str(root), DAY, (), SMALL)
    score(spark, settings, str(root), DAY)
    return root
