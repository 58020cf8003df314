"""In how many splits a log is read: enough that cores end together, and as configured where somebody chose."""

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.spark import even_splits

MIN = "spark.sql.files.minPartitionNum"
N_BYTES = 24 << 20


@pytest.fixture
def log(tmp_path: Path) -> str:
    """One file, three times the least split."""
    path = tmp_path / "log.txt"
    path.write_bytes(b"a line of the log, 32 bytes long\n" * (N_BYTES // 33))
    return str(path)


def n_splits(spark: SparkSession, log: str) -> int:
    return int(spark.read.text(log).rdd.getNumPartitions())


def test_a_log_is_read_in_some_splits_a_core(spark: SparkSession, log: str) -> None:
    assert n_splits(spark, log) == 2  # one a core
    with even_splits(spark, N_BYTES):
        assert n_splits(spark, log) == 3
    assert n_splits(spark, log) == 2


def test_a_small_log_is_read_as_ever(spark: SparkSession, log: str) -> None:
    with even_splits(spark, N_BYTES // 2):
        assert n_splits(spark, log) == 2


def test_there_are_no_more_than_some_splits_a_core(spark: SparkSession) -> None:
    with even_splits(spark, 1 << 40):
        assert spark.conf.get(MIN) == "8"  # on two cores


def test_a_number_that_is_configured_stands(spark: SparkSession) -> None:
    spark.conf.set(MIN, "3")
    try:
        with even_splits(spark, 1 << 40):
            assert spark.conf.get(MIN) == "3"
        assert spark.conf.get(MIN) == "3"
    finally:
        spark.conf.unset(MIN)


def test_an_error_leaves_spark_as_it_was(spark: SparkSession) -> None:
    with pytest.raises(RuntimeError), even_splits(spark, 1 << 40):
        raise RuntimeError
    assert spark.conf.get(MIN, None) is None
