"""What `.venv` was made from and how far set-up got: written down step by step in `.venv/setup.json`.

So a killed set-up goes on where what is there can be trusted, and a finished one has nothing to do.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

STATE_FILE = "setup.json"
VARIANTS = ("cpu", "gpu")
# In this order. What a killed `packages` leaves behind can look finished to pip, so everything starts again from
# there; the later steps replace what they find.
STEPS = ("environment", "packages", "horovod", "project")
UNTRUSTED = ("environment", "packages")


class SetupError(Exception):
    """Set-up can't go on: what failed, where to read more, what to do. Exit code 2 for a wrong argument, else 1."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def wanted_variant(gpu: str, state: Mapping[str, object]) -> str:
    """The variant: what the variable GPU says (0 or 1), else what `.venv` was made as, else cpu."""
    if gpu not in ("", "0", "1"):
        raise SetupError(f"GPU={gpu}: expected 1 (TensorFlow and Horovod for NVIDIA GPUs) or 0 (CPU only).", 2)
    kept = str(state.get("variant", "cpu"))
    return {"1": "gpu", "0": "cpu"}.get(gpu, kept if kept in VARIANTS else "cpu")


def setup_key(top: Path, variant: str) -> str:
    """Hash of everything `.venv` is made from: requirements, installer, packaging, place and variant."""
    digest = hashlib.sha256(f"{top}\n{variant}\n".encode())
    sources = [*(top / "requirements").glob("*.in"), *(top / "requirements").glob("*.txt")]
    sources += [*(top / "setup").glob("*.py"), *(top / "setup").glob("*.sh")]
    for path in sorted(sources):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    pyproject = tomllib.loads((top / "pyproject.toml").read_text(encoding="utf-8"))
    packaging = [pyproject.get("build-system"), pyproject.get("project"), pyproject.get("tool", {}).get("setuptools")]
    digest.update(json.dumps(packaging, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def read_state(venv: Path) -> dict[str, object]:
    """What earlier set-ups finished: key, variant, done. Empty where nothing is known."""
    try:
        state = json.loads((venv / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def is_current(state: Mapping[str, object], key: str) -> bool:
    """Whether every step was finished for this key."""
    return state.get("key") == key and state.get("done") == list(STEPS)


def write_state(venv: Path, key: str, variant: str, done: Sequence[str]) -> None:
    """Replace the state in one go."""
    hidden = venv / f".{STATE_FILE}.tmp"
    hidden.write_text(json.dumps({"key": key, "variant": variant, "done": list(done)}) + "\n", encoding="utf-8")
    hidden.replace(venv / STATE_FILE)
