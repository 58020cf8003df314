"""What tells a process from a later one that was given the same id."""

from pathlib import Path


def began(pid: int) -> str | None:
    """Clock tick since boot at which a living process began, None where there is none or only its exit code is left.

    A change of the system's clock does not move it. None of every process on a system without /proc.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # after the name, which may hold spaces: state, parent, … (proc(5))
    return None if fields[0] in "ZX" else fields[19]
