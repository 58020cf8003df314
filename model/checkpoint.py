"""Where a training stands, on disk: tensors as safetensors, the rest as JSON; a checkpoint is whole or not there.

Tensors pass through one at a time: a checkpoint costs the memory of its largest tensor, not of all.
"""

import hashlib
import json
import math
import posixpath
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError

_TENSORS, _STATE = "tensors.safetensors", "state.json"
_CHUNK_BYTES = 16 * 2**20  # read at a time while hashing


@dataclass(frozen=True)
class Progress:
    """What rank 0 knows between two steps. `history` has one mapping an epoch; `best_epoch` 0 means none yet.

    `epoch` counts finished epochs; `step` all steps, and so the place in each stream's order, a function of `seed`.
    `train_sums` and `seconds` are of the epoch that is under way, empty and 0 between two epochs.
    """

    identity: str
    seed: int
    streams: int
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    is_finished: bool = False
    history: tuple[Mapping[str, float], ...] = ()
    train_sums: tuple[float, ...] = ()
    seconds: float = 0.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Progress":
        """The inverse of `dataclasses.asdict` and JSON; KeyError or TypeError where it is something else."""
        return cls(**{**values, "history": tuple(values["history"]), "train_sums": tuple(values["train_sums"])})


class Checkpoint:
    """A whole checkpoint on disk."""

    def __init__(self, progress: Progress, fs: Any, path: str) -> None:
        self.progress = progress
        self._fs, self._path = fs, path

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every tensor with its name, read as it is asked for."""
        with self._fs.open(self._path, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            for name, entry in header.items():
                content = file.read(entry["data_offsets"][1] - entry["data_offsets"][0])
                yield name, np.frombuffer(content, np.float32).reshape(entry["shape"])


class Checkpoints:
    """Checkpoints of one training under one folder or URI, the newest `kept` of them. Used by rank 0 only."""

    def __init__(self, folder: str, kept: int) -> None:
        self._fs, self._folder = fsspec.core.url_to_fs(folder)
        self._kept = kept

    def save(self, progress: Progress, tensors: Mapping[str, Any]) -> None:
        """Write a checkpoint under a hidden name, then rename; then drop the oldest.

        tensors: float32, by name; arrays, or TensorFlow's variables, which are copied to host memory one by one.

        Raises:
            ModelError: it cannot be written; earlier checkpoints stay.
        """
        name = f"step-{progress.step:09d}"
        hidden, final = f"{self._folder}/.{name}", f"{self._folder}/{name}"
        try:
            self._remove(hidden)
            self._fs.makedirs(hidden, exist_ok=True)
            with self._fs.open(f"{hidden}/{_TENSORS}", "wb") as file:
                digest = _write_tensors(file, tensors)
            with self._fs.open(f"{hidden}/{_STATE}", "w") as file:
                json.dump({**asdict(progress), "sha256": digest}, file)
            self._remove(final)
            self._fs.mv(hidden, final, recursive=True)
        except _NotFiniteError as error:
            self._remove_quietly(hidden)
            raise ModelError(
                f"The checkpoint {final} was not written: {error} holds values that are no numbers, so the weights ran "
                "away. Lower training.learning_rate or training.clip_norm and start again."
            ) from None
        except OSError as error:
            self._remove_quietly(hidden)
            raise ModelError(
                f"The checkpoint {final} cannot be written: {error.strerror or error}. Make room or give access there "
                "and start the training again: it goes on from the checkpoint before."
            ) from error
        for old in self._names()[: -self._kept]:
            self._remove(f"{self._folder}/{old}")

    def newest(self, identity: str, tell: Callable[[str], None]) -> Checkpoint | None:
        """The newest whole checkpoint of the training with this identity; None where there is none.

        A damaged one is passed over for the one before; those of another identity are removed. `tell` hears of both.
        What a killed run left half written is removed too.
        """
        for name in self._names(hidden=True):
            self._remove(f"{self._folder}/{name}")
        for name in reversed(self._names()):
            path = f"{self._folder}/{name}"
            try:
                with self._fs.open(f"{path}/{_STATE}", "r") as file:
                    state = json.load(file)
                is_whole = self._sha256(f"{path}/{_TENSORS}") == state.pop("sha256")
                progress = Progress.from_json(state)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                is_whole = False
            if not is_whole:
                tell(f"checkpoint {path} is damaged (cut short?); taking the one before it")
                continue
            if progress.identity != identity:
                tell(f"checkpoint {path} is of another configuration, data or code; starting anew")
                self.clear()
                return None
            return Checkpoint(progress, self._fs, f"{path}/{_TENSORS}")
        return None

    def clear(self) -> None:
        """Remove every checkpoint."""
        self._remove(self._folder)

    def _names(self, hidden: bool = False) -> list[str]:
        if not self._fs.exists(self._folder):
            return []
        names = (posixpath.basename(path.rstrip("/")) for path in self._fs.ls(self._folder, detail=False))
        return sorted(name for name in names if name.startswith(".step-" if hidden else "step-"))

    def _remove(self, path: str) -> None:
        if self._fs.exists(path):
            self._fs.rm(path, recursive=True)

    def _remove_quietly(self, path: str) -> None:
        try:
            self._remove(path)
        except OSError:  # where writing fails, removing may fail too; what is hidden is never read
            return

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._fs.open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()


class _NotFiniteError(Exception):
    """A tensor with NaN or infinity; named in the text."""


def _write_tensors(file: Any, tensors: Mapping[str, Any]) -> str:
    """Write a safetensors file tensor by tensor; returns the hash of its bytes.

    Format: length of the header (8 bytes, little-endian), the header as JSON, the values in its order.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * math.prod(tensor.shape)
        header[name] = {"dtype": "F32", "shape": [int(size) for size in tensor.shape], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values start at a multiple of 8 bytes, as the format wants
    digest = hashlib.sha256()
    for content in (struct.pack("<Q", len(text)), text):
        digest.update(content)
        file.write(content)
    for name, tensor in tensors.items():
        values = np.ascontiguousarray(tensor if isinstance(tensor, np.ndarray) else tensor.numpy(), np.float32)
        if not np.isfinite(values.sum(dtype=np.float64)):
            raise _NotFiniteError(name)
        octets = values.reshape(-1).data.cast("B")
        digest.update(octets)
        file.write(octets)
        del values, octets  # before the next one is copied
    return digest.hexdigest()
