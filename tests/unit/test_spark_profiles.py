"""conf/spark: every property has its reason beside it, and the profiles agree where they mean the same."""

import re
from itertools import pairwise

import pytest

from jobs import spark
from jobs.settings import CONF_DIR, load_settings
from jobs.spark import read_spark_conf

FOLDER = CONF_DIR / "spark"
CLUSTERS = ("standalone", "yarn", "k8s")
PROFILES = (*CLUSTERS, "local", "test")
GIB = {"g": 1.0, "m": 1 / 1024}


def gib(text: str) -> float:
    return float(text[:-1]) * GIB[text[-1]]


def test_these_are_all_profiles() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.conf")) == sorted(PROFILES)


@pytest.mark.parametrize("profile", CLUSTERS)
def test_every_property_stands_below_its_own_reason(profile: str) -> None:
    lines = (FOLDER / f"{profile}.conf").read_text(encoding="utf-8").splitlines()
    properties = [(above, line) for above, line in pairwise(lines) if line.startswith("spark.")]
    assert [line for above, line in properties if not above.startswith("# ")] == []
    keys = [line.split()[0] for _, line in properties]
    assert len(keys) == len(set(keys)) == len(read_spark_conf(FOLDER / f"{profile}.conf"))
    assert [line for line in lines if line and not re.match(r"# |spark\.[\w.]+ +\S+$", line)] == []


@pytest.mark.parametrize("profile", PROFILES)
def test_no_profile_says_other_than_the_code(profile: str) -> None:
    own = read_spark_conf(FOLDER / f"{profile}.conf")
    assert {key: own[key] for key in own.keys() & spark._ALWAYS.keys() if own[key] != spark._ALWAYS[key]} == {}


def test_clusters_differ_only_in_what_is_theirs() -> None:
    of = {name: read_spark_conf(FOLDER / f"{name}.conf") for name in CLUSTERS}
    for name in ("yarn", "k8s"):
        both = of[name].keys() & of["standalone"].keys()
        assert {key for key in both if of[name][key] != of["standalone"][key]} == set()
        assert of["standalone"].keys() <= of[name].keys()
        theirs = of[name].keys() - of["standalone"].keys()
        named = f"spark.{'yarn' if name == 'yarn' else 'kubernetes'}."
        shared = {"spark.master", "spark.executor.memoryOverhead", "spark.executor.instances"}
        assert {key for key in theirs - shared if not key.startswith(named)} == set()
    key = "spark.sql.execution.arrow.maxRecordsPerBatch"
    assert of["standalone"][key] == read_spark_conf(FOLDER / "local.conf")[key]


@pytest.mark.parametrize("profile", ["yarn", "k8s"])
def test_python_workers_have_room_beside_the_heap(profile: str) -> None:
    conf, settings = read_spark_conf(FOLDER / f"{profile}.conf"), load_settings()
    cores = int(conf["spark.executor.cores"])
    assert cores % int(conf["spark.task.cpus"]) == 0
    heap, rest = gib(conf["spark.executor.memory"]), gib(conf["spark.executor.memoryOverhead"])
    assert heap + rest == 16  # as the profile's head says
    partition = max(settings.sessions.partition_mib, settings.sequences.partition_mib) * 6 / 1024
    bucket = settings.scoring.bucket_users * 4 / 2**20
    a_worker = partition + bucket + 1  # TensorFlow with a model: up to a gibibyte
    assert cores * a_worker <= rest


def test_a_pod_gets_the_cores_it_asks_for() -> None:
    conf = read_spark_conf(FOLDER / "k8s.conf")
    asked = {conf[f"spark.kubernetes.executor.{what}.cores"] for what in ("request", "limit")}
    assert asked == {conf["spark.executor.cores"]}
