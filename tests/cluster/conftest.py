import os
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
from tests.cluster.submits import DAY, FIRST, SMALL, Site, Unpacked, skip_unless_left


@pytest.fixture(scope="session", autouse=True)
def time_to_begin() -> None:
    """For the environment, the cluster, the run without a cluster and a first test."""
    skip_unless_left(200)


@pytest.fixture(autouse=True)
def time_left() -> None:
    """For one more test, on a busy machine."""
    skip_unless_left(150)


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
    unpacked = Unpacked(dist / package.ENVIRONMENT, folder / "unpacked")
    made = Site(folder, dist, unpacked)
    try:
        cluster.up(folder, workers=2, cores=1, memory_mib=1024)
        yield made
    finally:
        made.end()
        unpacked.end()


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
