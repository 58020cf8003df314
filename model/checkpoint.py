"""Where a training stands, on disk: tensors as safetensors, the rest as JSON; a checkpoint is whole or not there."""

import hashlib
import json
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from model.errors import ModelError

_TENSORS, _STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Progress:
    """What rank 0 knows after an epoch. `history` has one mapping an epoch; `best_epoch` 0 means none yet."""

    identity: str
    streams: int
    epoch: int
    step: int
    best_epoch: int
    is_finished: bool
    history: tuple[Mapping[str, float], ...]


class Checkpoints:
    """Checkpoints of one training under one folder or URI, the newest `kept` of them. Used by rank 0 only."""

    def __init__(self, folder: str, kept: int) -> None:
        self._fs, self._folder = fsspec.core.url_to_fs(folder)
        self._kept = kept

    def save(self, progress: Progress, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Write the checkpoint of an epoch under a hidden name, then rename; then drop the oldest.

        Raises:
            ModelError: it cannot be written; earlier checkpoints stay.
        """
        name = f"epoch-{progress.epoch:05d}"
        hidden, final = f"{self._folder}/.{name}", f"{self._folder}/{name}"
        try:
            self._remove(hidden)
            self._fs.makedirs(hidden, exist_ok=True)
            content = save({key: np.ascontiguousarray(value) for key, value in tensors.items()})
            state = {**asdict(progress), "sha256": hashlib.sha256(content).hexdigest()}
            with self._fs.open(f"{hidden}/{_TENSORS}", "wb") as file:
                file.write(content)
            with self._fs.open(f"{hidden}/{_STATE}", "w") as file:
                json.dump(state, file)
            self._remove(final)
            self._fs.mv(hidden, final, recursive=True)
        except OSError as error:
            raise ModelError(
                f"The checkpoint {final} cannot be written: {error.strerror or error}. Make room or give access there "
                "and start the training again: it goes on from the checkpoint before."
            ) from error
        for old in self._names()[: -self._kept]:
            self._remove(f"{self._folder}/{old}")

    def newest(self, identity: str, tell: Callable[[str], None]) -> tuple[Progress, dict[str, NDArray[Any]]] | None:
        """The newest whole checkpoint of the training with this identity; None where there is none.

        A damaged one is passed over for the one before; those of another identity are removed. `tell` hears of both.
        """
        for name in reversed(self._names()):
            path = f"{self._folder}/{name}"
            try:
                with self._fs.open(f"{path}/{_STATE}", "r") as file:
                    state = json.load(file)
                with self._fs.open(f"{path}/{_TENSORS}", "rb") as file:
                    content = file.read()
                is_whole = hashlib.sha256(content).hexdigest() == state.pop("sha256")
                progress = Progress(**{**state, "history": tuple(state["history"])})
            except (OSError, ValueError, KeyError, TypeError):
                is_whole = False
            if not is_whole:
                tell(f"checkpoint {path} is damaged (cut short?); taking the one before it")
                continue
            if progress.identity != identity:
                tell(f"checkpoint {path} is of another configuration, data or code; starting anew")
                self.clear()
                return None
            return progress, load(content)
        return None

    def clear(self) -> None:
        """Remove every checkpoint."""
        self._remove(self._folder)

    def _names(self) -> list[str]:
        if not self._fs.exists(self._folder):
            return []
        names = (posixpath.basename(path.rstrip("/")) for path in self._fs.ls(self._folder, detail=False))
        return sorted(name for name in names if name.startswith("epoch-"))

    def _remove(self, path: str) -> None:
        if self._fs.exists(path):
            self._fs.rm(path, recursive=True)
