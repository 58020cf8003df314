import json
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import Checkpoints, Progress
from model.errors import ModelError


def _progress(epoch: int, identity: str = "same") -> Progress:
    return Progress(identity, 2, epoch, epoch * 10, 1, False, ({"epoch": 1, "valid_loss": 2.0},))


def _saved(folder: Path, epochs: int) -> Checkpoints:
    checkpoints = Checkpoints(str(folder), kept=2)
    for epoch in range(1, epochs + 1):
        checkpoints.save(_progress(epoch), {"weight/a": np.full((2, 3), epoch, np.float32)})
    return checkpoints


def test_the_newest_comes_back_whole_and_only_two_are_kept(tmp_path: Path):
    progress, tensors = _saved(tmp_path, 3).newest("same", print)
    assert progress == _progress(3)
    np.testing.assert_array_equal(tensors["weight/a"], np.full((2, 3), 3, np.float32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-00002", "epoch-00003"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_one_cut_short_falls_back_to_the_one_before_with_a_word(tmp_path: Path, name: str):
    checkpoints = _saved(tmp_path, 3)
    path = tmp_path / "epoch-00003" / name
    path.write_bytes(path.read_bytes()[:-20])
    said: list[str] = []
    progress, _ = checkpoints.newest("same", said.append)
    assert progress.epoch == 2
    assert "epoch-00003 is damaged" in said[0]


def test_one_that_was_being_written_does_not_exist(tmp_path: Path):
    checkpoints = _saved(tmp_path, 1)
    (tmp_path / "epoch-00001").rename(tmp_path / ".epoch-00001")
    assert checkpoints.newest("same", print) is None


def test_those_of_another_training_are_removed(tmp_path: Path):
    checkpoints = _saved(tmp_path, 2)
    said: list[str] = []
    assert checkpoints.newest("other", said.append) is None
    assert "another configuration" in said[0]
    checkpoints.save(_progress(1, "other"), {"a": np.zeros(1, np.float32)})
    assert checkpoints.newest("other", said.append)[0].epoch == 1


def test_nothing_is_pickled(tmp_path: Path):
    _saved(tmp_path, 1)
    assert json.loads((tmp_path / "epoch-00001" / "state.json").read_text())["epoch"] == 1
    assert b"pickle" not in (tmp_path / "epoch-00001" / "tensors.safetensors").read_bytes()
    assert {path.suffix for path in (tmp_path / "epoch-00001").iterdir()} == {".json", ".safetensors"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match=r"checkpoint .*file/here/epoch-00001 cannot be written"):
        _saved(tmp_path / "file" / "here", 1)
