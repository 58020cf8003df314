import os
import signal
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from pyspark.sql import SparkSession
from xdist.scheduler import LoadScopeScheduling

# Set before anything imports Spark or TensorFlow: small, quiet, and the interpreter of the tests on both sides.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("INTEREST_SPARK_PROFILE", "test")
# JVMs of tests live for seconds: what they would gain by optimizing their code further takes longer than it saves.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
# A shell has its jobs in the background ignore Ctrl-C, and what tests start, to interrupt it, would do so too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Modules that look at the finished demo, which takes minutes, and so share a process.
_OF_THE_DEMO = {"tests/e2e/test_api.py", "tests/e2e/test_demo.py"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files instead of comparing")


class _ByModule(LoadScopeScheduling):
    """With several processes: a module is one's work."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.split("::", 1)[0]
        return "demo" if module in _OF_THE_DEMO else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ByModule(config, log)


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    from jobs.spark import spark_session

    session = spark_session("tests")
    yield session
    session.stop()
