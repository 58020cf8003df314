"""Submitted in place of a job's script: runs that script, but nothing is published before a file is there.

Usage: spark-submit … held.py FILE SCRIPT [argument of the script] …
"""

import runpy
import sys
import time
from pathlib import Path
from typing import Any

from jobs.store import Store


def main(go: Path, script: str, arguments: list[str]) -> None:
    publish = Store.publish

    def held(*of: Any, **by: Any) -> Any:
        while not go.exists():
            time.sleep(0.05)
        return publish(*of, **by)

    Store.publish = held  # type: ignore[method-assign]
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
