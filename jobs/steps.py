"""Steps of a night that leave a record of what they were made from, so that a step that was done is not done again."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from features.contracts import Contract, ContractError
from jobs.cli import say
from jobs.observing import begin_stage
from jobs.spark import last_stage, shuffled_bytes
from jobs.store import EMPTIED, MANIFEST, Store, code_version

DONE, SKIPPED, FAILED = "done", "skipped", "failed"
NIGHTLY = "_nightly"


@dataclass(frozen=True)
class StepRun:
    """What became of one step in this run. shuffled_bytes: what Spark's tasks wrote for each other in it."""

    name: str
    status: str
    seconds: float
    said: str
    shuffled_bytes: int = 0


class Steps:
    """The steps of one night on one root, in the order in which they ran.

    `ROOT/_nightly/dt=D/<step>.json` is written after a step: the key (hashes of its inputs and of its configuration,
    and the code's) and the identity of what it wrote. A step whose key is the same and whose outputs are still those
    is skipped; after a kill the first step without a record goes on.
    """

    def __init__(self, store: Store, dt: date, remakes_emptied: bool = False) -> None:
        """remakes_emptied: a step whose output retention emptied is done again, instead of counted as done."""
        self._store, self._dt, self._remakes_emptied = store, dt, remakes_emptied
        self.folder = f"{store.root}/{NIGHTLY}/dt={dt}"
        self.runs: list[StepRun] = []

    def run(
        self,
        name: str,
        key: Mapping[str, Any],
        outputs: Sequence[Contract | str],
        work: Callable[[], str],
    ) -> bool:
        """Do a step unless it was done; whether it was done now. `work` returns one line for people.

        outputs: tables that the step writes for the night, by contract, or by name where they are no Parquet tables.
        """
        key = {**key, "code": code_version()}
        record = self.read(f"{name}.json")
        if record is not None and record["key"] == key and record["outputs"] == self._identities(outputs):
            said = str(record["said"])
            self.runs.append(StepRun(name, SKIPPED, 0.0, said))
            say(f"{self._dt} {name}: skipped, done before ({said})")
            return False
        begin_stage(name)
        say(f"{self._dt} {name}: …")
        self.forget(f"{name}.json")
        started, before = time.monotonic(), last_stage()
        try:
            said = work()
        except BaseException as error:
            self.runs.append(StepRun(name, FAILED, round(time.monotonic() - started, 1), type(error).__name__))
            raise
        seconds = round(time.monotonic() - started, 1)
        self.write(f"{name}.json", {"key": key, "outputs": self._identities(outputs), "said": said})
        self.runs.append(StepRun(name, DONE, seconds, said, shuffled_bytes(before)))
        say(f"{self._dt} {name}: {said} ({seconds:.1f} s)")
        return True

    def note(self, name: str, status: str, said: str) -> None:
        """A step that needs no record of its own: left out, or too quick to skip."""
        self.runs.append(StepRun(name, status, 0.0, said))
        say(f"{self._dt} {name}: {said}")

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the night, or None."""
        return read_json(self._store, f"{self.folder}/{name}")

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file of the night by rename."""
        self._store.fs.makedirs(self.folder, exist_ok=True)
        self._store.write_json(f"{self.folder}/{name}", content)

    def forget(self, name: str) -> None:
        """Remove a file of the night, where it is there."""
        path = f"{self.folder}/{name}"
        if self._store.fs.exists(path):
            self._store.fs.rm(path)

    def summary(self) -> list[dict[str, Any]]:
        """All steps of this run as plain values."""
        return [asdict(run) for run in self.runs]

    def _identities(self, outputs: Sequence[Contract | str]) -> dict[str, str | None]:
        return {
            str(getattr(table, "name", table)): identity(self._store, table, self._dt, not self._remakes_emptied)
            for table in outputs
        }


def identity(store: Store, table: Contract | str, dt: date | str, or_emptied: bool = True) -> str | None:
    """Hash of a partition that may be read, or that retention emptied, None where it is missing or torn."""
    if isinstance(table, Contract):
        try:
            is_emptied = or_emptied and store.fs.exists(f"{store.path(table.name, dt)}/{EMPTIED}")
            return (store.manifest(table.name, dt, "") if is_emptied else store.check(table, dt, "")).hash
        except ContractError:
            return None
    values = read_json(store, f"{store.path(table, dt)}/{MANIFEST}")
    if values is None:
        return None
    return str(values.get("model_version") or json.dumps([values["inputs"], values["config_hash"]], sort_keys=True))


def read_json(store: Store, path: str) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file."""
    try:
        with store.fs.open(path, "r") as file:
            values: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return None
    return values
