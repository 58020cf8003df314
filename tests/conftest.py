import os
from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

# Set before anything imports Spark or TensorFlow: small, quiet, and the interpreter of the tests on both sides.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("INTEREST_SPARK_PROFILE", "test")
# JVMs of tests live for seconds: what they would gain by optimizing their code further takes longer than it saves.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files instead of comparing")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    from jobs.spark import spark_session

    session = spark_session("tests")
    yield session
    session.stop()
