"""Places to write into before a partition is published."""

from pathlib import Path

import pytest

from jobs.store import Store


def test_no_place_is_given_twice_and_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = Path(store.staging("scores", "2024-03-10"))
    others = [Path(store.staging("scores", day)) for day in ("2024-03-10-top", "2024-03-1", "2024-03-11")]
    for path in (first, *others):
        path.mkdir(parents=True)
        (path / "part-0.parquet").write_text("half")
    second = Path(store.staging("scores", "2024-03-10"))
    assert second != first
    assert not second.exists()
    assert not first.exists()
    assert all(path.exists() for path in others)
    assert second.parent == first.parent == tmp_path / "scores"
    assert second.name.startswith("_")  # readers pass it over


def test_what_cannot_be_removed_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    first = Path(store.staging("scores", "2024-03-10"))
    first.mkdir(parents=True)

    def still_written_to(path: str, **_: bool) -> None:
        raise OSError(39, "Directory not empty", path)

    monkeypatch.setattr(store.fs, "rm", still_written_to)
    assert store.staging("scores", "2024-03-10") != str(first)
    assert first.exists()
