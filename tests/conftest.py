import os
from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

# Set before anything imports Spark or TensorFlow: small, quiet, and the interpreter of the tests on both sides.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("INTEREST_SPARK_PROFILE", "test")

_TOGETHER = ("demo", "parallel", "cluster")  # a finished demo; trainings that all cores are for; one live cluster


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files instead of comparing")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share something costly stay in one process; else those of a file do (pytest-xdist, loadgroup)."""
    for item in items:
        folder, file = item.path.parent.name, item.path.stem
        shared = "demo" if "demo" in getattr(item, "fixturenames", ()) else folder
        item.add_marker(pytest.mark.xdist_group(shared if shared in _TOGETHER else f"{folder}-{file}"))


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    from jobs.spark import spark_session

    session = spark_session("tests")
    yield session
    session.stop()
