"""One finished demo, which several tests look at and none changes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALLER = ["simulation.users=1500", "training.max_epochs=5", "evaluation.n_bootstrap=200"]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Root of a finished demo, and what it printed for people. INTEREST_DEMO: where it is made, and stays."""
    root = Path(os.environ.get("INTEREST_DEMO") or tmp_path_factory.mktemp("demo") / "out").resolve()
    done = run("jobs.run", "--demo", "--root", str(root), *(part for text in SMALLER for part in ("--set", text)))
    assert done.returncode == 0, done.stderr[-3000:]
    return root, done.stdout


def run(module: str, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """A job with the profile of a laptop; more: variables of its environment."""
    environment = {**os.environ, "INTEREST_SPARK_PROFILE": "local", **more}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment, capture_output=True, text=True, timeout=1000, check=False,
    )  # fmt: skip
