"""Properties of conf/spark are ones that this Spark knows, with values that it can read."""

import pytest
from pyspark.sql import SparkSession

from jobs.settings import CONF_DIR
from jobs.spark import read_spark_conf

# Where Spark declares them; an entry is known once the object that declares it is loaded.
DECLARED = ("internal.config.package", "internal.config.Python", "internal.config.UI", "internal.config.Network",
            "deploy.k8s.Config", "deploy.yarn.config.package")  # fmt: skip
# Read by name, without a declaration.
UNDECLARED = {"spark.master", "spark.ui.showConsoleProgress"}


def unknown(spark: SparkSession, key: str, value: str) -> str | None:
    jvm = spark._jvm
    assert jvm is not None
    for name in DECLARED:
        jvm.java.lang.Class.forName(f"org.apache.spark.{name}$")
    jvm.java.lang.Class.forName("org.apache.spark.sql.internal.SQLConf$")
    if key in UNDECLARED or key.startswith("spark.executorEnv."):
        return None
    entry = jvm.org.apache.spark.internal.config.ConfigEntry.findEntry(key)
    if entry is None:
        return f"{key} is no property of Spark"
    try:
        jvm.org.apache.spark.SparkConf(False).set(key, value).get(entry)
    except Exception as error:
        return f"{key} {value}: {error}"
    return None


@pytest.mark.parametrize("profile", ["local", "standalone", "yarn", "k8s"])
def test_spark_knows_every_property(spark: SparkSession, profile: str) -> None:
    conf = read_spark_conf(CONF_DIR / "spark" / f"{profile}.conf")
    assert [problem for key, value in conf.items() if (problem := unknown(spark, key, value))] == []


def test_a_wrong_name_and_a_wrong_value_are_seen(spark: SparkSession) -> None:
    assert "no property" in (unknown(spark, "spark.executor.memoryOverhed", "1g") or "")
    assert "spark.executor.memory" in (unknown(spark, "spark.executor.memory", "much") or "")
