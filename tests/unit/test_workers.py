"""What a task leaves behind in the process that runs the next one."""

import gc
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from features.workers import in_worker
from jobs.score_files import loaded


@in_worker
def doubled(numbers: Iterator[int], archive: Path) -> Iterator[int]:
    """Twice each number, with a module from an archive."""
    sys.path.insert(0, str(archive))
    import archived_module  # type: ignore[import-not-found]

    assert str(archive) in sys.path_importer_cache
    for number in numbers:
        yield archived_module.FACTOR * number


def test_a_task_leaves_no_finder_of_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "modules.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archived_module.py", "FACTOR = 2\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert list(doubled(iter([1, 2]), archive)) == [2, 4]
    assert str(archive) not in sys.path_importer_cache
    del sys.modules["archived_module"]
    assert list(doubled(iter([3]), archive)) == [6], "a later import makes its finder anew"
    del sys.modules["archived_module"]


class Made:
    """A loader; equal ones make equal scorers."""

    def __init__(self, number: int) -> None:
        self.number, self.n_made = number, 0

    def __call__(self) -> "Made":
        self.n_made += 1
        return self


def test_a_process_keeps_one_scorer_which_the_collector_passes_over() -> None:
    first, second = Made(1), Made(2)
    try:
        frozen = gc.get_freeze_count()
        assert loaded(first) is loaded(first) is first  # type: ignore[arg-type, comparison-overlap]
        assert gc.get_freeze_count() > frozen
        assert loaded(second) is second  # type: ignore[arg-type, comparison-overlap]
        loaded(first)  # type: ignore[arg-type]
        assert (first.n_made, second.n_made) == (2, 1)
    finally:
        gc.unfreeze()
