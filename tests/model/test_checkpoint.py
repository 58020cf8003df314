import builtins
import errno
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from model.checkpoint import Checkpoint, Checkpoints, Progress
from model.errors import ModelError


def _progress(step: int, identity: str = "same") -> Progress:
    return Progress(identity, 7, 2, 1, step, 1, False, ({"epoch": 1, "valid_loss": 2.0},), (0.1, 2.0), 1.5)


def _saved(folder: Path, n: int) -> Checkpoints:
    checkpoints = Checkpoints(str(folder), kept=2)
    for step in range(1, n + 1):
        checkpoints.save(_progress(step), {"weight/a": np.full((2, 3), step, np.float32), "weight/b": _numbers(5)})
    return checkpoints


def _numbers(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32) / 3


def _newest(checkpoints: Checkpoints, identity: str = "same", tell: Any = print) -> Checkpoint:
    found = checkpoints.newest(identity, tell)
    assert found is not None
    return found


def test_the_newest_comes_back_whole_and_only_two_are_kept(tmp_path: Path):
    found = _newest(_saved(tmp_path, 3))
    assert found.progress == _progress(3)
    tensors = dict(found.tensors())
    np.testing.assert_array_equal(tensors["weight/a"], np.full((2, 3), 3, np.float32))
    np.testing.assert_array_equal(tensors["weight/b"], _numbers(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000003"]


def test_the_file_is_what_safetensors_itself_reads(tmp_path: Path):
    found = _newest(_saved(tmp_path, 1))
    theirs = load_file(tmp_path / "step-000000001" / "tensors.safetensors")
    assert theirs.keys() == {"weight/a", "weight/b"}
    for name, value in found.tensors():
        np.testing.assert_array_equal(value, theirs[name])


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_one_cut_short_falls_back_to_the_one_before_with_a_word(tmp_path: Path, name: str):
    checkpoints = _saved(tmp_path, 3)
    path = tmp_path / "step-000000003" / name
    path.write_bytes(path.read_bytes()[:-20])
    said: list[str] = []
    assert _newest(checkpoints, tell=said.append).progress.step == 2
    assert "step-000000003 is damaged" in said[0]


def test_one_that_was_being_written_does_not_exist_and_is_tidied_away(tmp_path: Path):
    checkpoints = _saved(tmp_path, 1)
    (tmp_path / "step-000000001").rename(tmp_path / ".step-000000001")
    assert checkpoints.newest("same", print) is None
    assert list(tmp_path.iterdir()) == []


def test_those_of_another_training_are_removed(tmp_path: Path):
    checkpoints = _saved(tmp_path, 2)
    said: list[str] = []
    assert checkpoints.newest("other", said.append) is None
    assert "another configuration" in said[0]
    checkpoints.save(_progress(1, "other"), {"a": _numbers(1)})
    assert _newest(checkpoints, "other").progress.step == 1


def test_nothing_is_pickled(tmp_path: Path):
    _saved(tmp_path, 1)
    assert json.loads((tmp_path / "step-000000001" / "state.json").read_text())["epoch"] == 1
    assert b"pickle" not in (tmp_path / "step-000000001" / "tensors.safetensors").read_bytes()
    assert {path.suffix for path in (tmp_path / "step-000000001").iterdir()} == {".json", ".safetensors"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match=r"checkpoint .*file/here/step-000000001 cannot be written"):
        _saved(tmp_path / "file" / "here", 1)


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints, opened = _saved(tmp_path, 1), builtins.open

    class Full:
        def __init__(self, *given: Any, **named: Any) -> None:
            self._file = opened(*given, **named)

        def write(self, content: Any) -> int:
            if len(content) > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._file.write(content)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(builtins, "open", Full)
    with pytest.raises(ModelError, match=r"step-000000002 cannot be written: No space left on device\. Make room"):
        checkpoints.save(_progress(2), {"a": _numbers(5), "b": _numbers(5000)})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert _newest(checkpoints).progress.step == 1


def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path):
    checkpoints = _saved(tmp_path, 1)
    with pytest.raises(ModelError, match=r"was not written: optimizer/a holds values that are no numbers"):
        checkpoints.save(_progress(2), {"a": _numbers(5), "optimizer/a": np.array([1.0, np.inf], np.float32)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_saving_and_reading_hold_one_tensor_at_a_time(tmp_path: Path):
    checkpoints, size = Checkpoints(str(tmp_path), 1), 2_000_000
    tensors = {f"tensor {number}": np.ones(size, np.float32) for number in range(8)}
    tracemalloc.start()
    checkpoints.save(_progress(1), tensors)
    for _, values in _newest(checkpoints).tensors():
        assert values.sum() == size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * 4 * size + 17 * 2**20  # a chunk of 16 MiB while hashing; all would be eight tensors
