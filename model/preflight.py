"""Before the first step: the ranks prove to each other that they are about to do the same work."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from model.workers import Workers, stop_all

_LIBRARIES = ("tensorflow", "tensorflow-cpu", "horovod", "petastorm", "numpy", "pyarrow")


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that shape the result."""
    return {f"version of {name}": metadata.version(name) for name in _LIBRARIES if _is_installed(name)}


def agree(workers: Workers, facts: Mapping[str, str], rows: int, batch_rows: int) -> int:
    """Compare facts over all ranks and agree on steps per epoch: the least of all, at least one.

    facts: what must be equal, by a name people understand; rows: train rows of this rank. An epoch is the most whole
    batches that every rank has.

    Raises:
        ModelError: on every rank, with the same message, naming each rank that differs and in what.
    """
    mine = {"facts": {**library_versions(), **facts}, "steps": max(1, rows // batch_rows), "rows": rows}
    offers: list[dict[str, Any]] = workers.gather(mine)
    differences = _differences([offer["facts"] for offer in offers])
    differences += [f"rank {rank} has no train rows" for rank, offer in enumerate(offers) if offer["rows"] == 0]
    if differences:
        stop_all(
            workers,
            f"The {workers.size} ranks do not agree, so training did not start: {'; '.join(differences)}. "
            "Start every rank with the same code, configuration, environment and day of data.",
        )
    return min(int(offer["steps"]) for offer in offers)


def _differences(facts: Sequence[Mapping[str, str]]) -> list[str]:
    return [
        f"rank {rank} has {name} {own.get(name)}, rank 0 has {facts[0].get(name)}"
        for rank, own in enumerate(facts)
        for name in sorted(facts[0].keys() | own.keys())
        if own.get(name) != facts[0].get(name)
    ]


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
