"""The whole path on a standalone cluster, by spark-submit and nothing of the developer's environment."""

from pathlib import Path

import pytest

from features.contracts import OPEN_SESSIONS, SCORES, SEQUENCES, SESSIONS, TRAINING_SEQUENCES, VOCABULARY
from tests.cluster.submits import Site, is_published, log_of, rows, skip_unless_left, wait_for


@pytest.fixture(scope="module")
def cluster_root(site: Site, local_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages one after the other, each a driver of its own, on the archive as it was unpacked once."""
    skip_unless_left(220)
    root = tmp_path_factory.mktemp("root")
    site.run("sessionize", root, *log_of(local_root))
    site.run("vocabulary", root)
    site.run("sequences", root)
    site.run("train", root, "--launcher", "spark", "--ranks", "2")
    return root


def test_tables_are_those_of_a_run_without_a_cluster(cluster_root: Path, local_root: Path) -> None:
    for contract in (SESSIONS, OPEN_SESSIONS, VOCABULARY, SEQUENCES, TRAINING_SEQUENCES):
        expected = rows(local_root, contract.name)
        assert len(expected), contract.name
        assert rows(cluster_root, contract.name) == expected, contract.name


def test_scores_are_equal_where_executors_unpack_the_archive(site: Site, cluster_root: Path, local_root: Path) -> None:
    driver = site.submit("score", cluster_root, by_archive=True, is_held=True)
    workers = wait_for("Python in an executor", site.python_workers, driver)
    pythons = {worker.exe() for worker in workers}
    driver.finished()
    assert all(python.startswith(str(site.folder / "worker-")) for python in pythons), pythons
    assert all(python.endswith("/environment/bin/python3.11") for python in pythons), pythons
    assert is_published(cluster_root, SCORES.name)
    assert rows(cluster_root, SCORES.name) == rows(local_root, SCORES.name)
