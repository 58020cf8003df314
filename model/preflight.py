"""Before the first step: the ranks prove to each other that they are about to do the same work."""

from collections.abc import Mapping, Sequence
from importlib import metadata

from model.workers import Workers, stop_all

_LIBRARIES = ("tensorflow", "tensorflow-cpu", "horovod", "petastorm", "numpy", "pyarrow")


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that shape the result."""
    return {f"version of {name}": metadata.version(name) for name in _LIBRARIES if _is_installed(name)}


def agree(workers: Workers, facts: Mapping[str, str]) -> None:
    """Compare facts over all ranks. facts: what must be equal, by a name people understand.

    Raises:
        ModelError: on every rank, with the same message, naming each rank that differs and in what.
    """
    differences = _differences(workers.gather(dict(facts)))
    if differences:
        stop_all(
            workers,
            f"The {workers.size} ranks do not agree, so training did not start: {'; '.join(differences)}. "
            "Start every rank with the same code, configuration, environment and day of data.",
        )


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
