"""What stages shuffled, asked of Spark's own record."""

from pyspark.sql import SparkSession

from jobs.spark import last_stage, shuffled_bytes


def test_only_what_came_after_counts(spark: SparkSession) -> None:
    def shuffle(rows: int) -> int:
        before = last_stage()
        spark.range(rows).repartition(3).selectExpr("sum(id)").collect()
        assert last_stage() > before
        return shuffled_bytes(before)

    small, large = shuffle(1_000), shuffle(100_000)
    assert 0 < small < large / 10
    assert shuffled_bytes(last_stage()) == 0
