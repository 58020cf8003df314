"""Checks an installed environment piece by piece: each line is ok or says exactly what to do.

Every check that loads something heavy runs in a process of its own, so that one broken piece does not hide the next.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from jobs.commands import command_parser
from jobs.java import JAVA_VERSIONS, ensure_java, java_major
from jobs.terminal import GREEN, RED, paint

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
RANKS = 2
GIB = 2**30
# The demo's tables, Spark's shuffle files and checkpoints stay below it.
NEEDED_DISK_GIB = 5
# Spark's driver (3 GiB at most) and two training ranks of half a GiB each.
NEEDED_MEMORY_GIB = 4
_TIMEOUT_S = 180

_EXECUTORS = """
import json
from jobs.spark import spark_session
session = spark_session("doctor")
def probe(_):
    import platform, sys, features, numpy, pyarrow
    return [sys.executable, platform.python_version(), numpy.__version__, pyarrow.__version__]
print(json.dumps(session.sparkContext.parallelize([0], 1).map(probe).first()))
session.stop()
"""
_LIBRARIES = """
import json, pyarrow, petastorm.reader, tensorflow as tf, horovod, horovod.tensorflow as hvd
print(json.dumps({
    "versions": {"pyarrow": pyarrow.__version__, "petastorm": petastorm.__version__,
                 "tensorflow": tf.__version__, "horovod": horovod.__version__},
    "gloo": bool(hvd.gloo_built()), "nccl": bool(hvd.nccl_built()),
    "gpus": len(tf.config.list_physical_devices("GPU"))}))
"""
_HANDSHAKE = (
    "import tensorflow as tf, horovod.tensorflow as hvd; hvd.init(); "
    "print('sum', int(hvd.allreduce(tf.constant(hvd.rank() + 1), op=hvd.Sum)), 'of', hvd.size())"
)


@dataclass(frozen=True)
class Finding:
    """One line of the report. fix: what to do; empty where ok."""

    check: str
    ok: bool
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Output:
    """What a process printed. code: exit code, negative for a signal, None after the time limit."""

    code: int | None
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The last thing it said, or how it ended."""
        if self.code is None:
            return f"no answer within {_TIMEOUT_S} s"
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        lines = [line for line in self.err.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit code {self.code}"


def main(argv: Sequence[str]) -> int:
    """Run all checks. Exit code 0 if all are ok, 1 otherwise."""
    as_json = parser().parse_args(argv).json
    findings = []
    for finding in run_checks(CHECKS):
        findings.append(finding)
        if not as_json:
            print(line_of(finding), flush=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    return 0 if all(finding.ok for finding in findings) else 1


def parser() -> argparse.ArgumentParser:
    """The flags of the checks."""
    return command_parser("doctor")


def run_checks(checks: Sequence[Callable[[], Sequence[Finding]]]) -> Iterator[Finding]:
    """Findings of all checks in order; a check that breaks is a finding too."""
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            name = check.__name__.removeprefix("check_")
            yield Finding(name, False, f"the check broke: {type(error).__name__}: {error}", _REINSTALL)


def line_of(finding: Finding) -> str:
    """One finding for people: a line, and below it the fix."""
    mark = paint("ok  ", GREEN, sys.stdout) if finding.ok else paint("FAIL", RED, sys.stdout)
    line = f"{mark}  {finding.check:<11} {finding.detail}"
    return line if finding.ok else f"{line}\n      fix: {finding.fix}"


def check_python() -> list[Finding]:
    """This interpreter is a 3.11."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    ok = sys.version_info[:2] == (3, 11)
    return [Finding("python", ok, f"{version} at {sys.executable}", "" if ok else "use .venv/bin/python")]


def check_packages() -> list[Finding]:
    """What is installed is what requirements/ pins."""
    if not REQUIREMENTS.is_dir():
        return [Finding("packages", True, "no requirements/ beside the code, nothing to compare with")]
    pins = dict(line.split("==") for line in _requirement_lines("constraints.txt"))
    wanted = [line for name in ("build.in", "runtime.in", "dev.in") for line in _requirement_lines(name)]
    installed = {name: _installed(name) for name in [*pins, *(Requirement(line).name for line in wanted), "horovod"]}
    absent = [name for name in [*(Requirement(line).name for line in wanted), "horovod"] if not installed[name]]
    problems = [f"{name} is not installed" for name in absent]
    problems += [
        f"{name} is {installed[name]}, pinned {pin}" for name, pin in pins.items() if installed[name] not in (None, pin)
    ]
    if problems:
        return [Finding("packages", False, "; ".join(problems), _REINSTALL)]
    return [Finding("packages", True, f"{sum(installed[name] is not None for name in pins)} as pinned")]


def check_java() -> list[Finding]:
    """The Java that Spark will start is one it runs on."""
    java, text = ensure_java()
    major = java_major(text)
    if major not in JAVA_VERSIONS:
        found = f"Java {major}" if major else " ".join(text.split())
        versions = ", ".join(map(str, JAVA_VERSIONS))
        return [Finding("java", False, f"{java}: {found}; Spark 3.5 runs on {versions}", _JAVA_FIX)]
    return [Finding("java", True, f"Java {major} at {java}")]


def check_executors() -> list[Finding]:
    """A real Spark job: its Python workers run this interpreter with this project and Arrow on their path."""
    answer = run([sys.executable, "-c", _EXECUTORS])
    if answer.code != 0:
        return [Finding("executors", False, f"a tiny local Spark job failed: {answer.reason}", _SPARK_FIX)]
    executable, python, numpy, arrow = json.loads(answer.out.splitlines()[-1])
    detail = f"Python {python} at {executable}, numpy {numpy}, pyarrow {arrow}"
    if executable == sys.executable:
        return [Finding("executors", True, detail)]
    fix = f"unset PYSPARK_PYTHON (now {os.environ.get('PYSPARK_PYTHON')!r}) or set it to {sys.executable}"
    return [Finding("executors", False, f"{detail}; this one is {sys.executable}", fix)]


def check_libraries() -> list[Finding]:
    """Arrow, Petastorm, TensorFlow and Horovod load together in one process, and Horovod has Gloo."""
    answer = run([sys.executable, "-c", _LIBRARIES])
    if answer.code != 0:
        sigill = answer.code == -signal.SIGILL
        fix = "TensorFlow needs a processor with AVX; use another machine" if sigill else _REINSTALL
        return [Finding("libraries", False, f"can't be loaded in one process: {answer.reason}", fix)]
    facts = json.loads(answer.out.splitlines()[-1])
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    backends = f"Gloo {'built' if facts['gloo'] else 'not built'}, NCCL {'built' if facts['nccl'] else 'not built'}"
    return [
        Finding("libraries", True, f"{versions} load together"),
        Finding("gloo", facts["gloo"], f"{backends}, GPUs {facts['gpus']}", "" if facts["gloo"] else _REBUILD),
    ]


def check_handshake() -> list[Finding]:
    """Two real ranks find each other on this machine and add two numbers."""
    launcher = Path(sys.executable).parent / "horovodrun"
    command = [str(launcher), "--gloo", "-np", str(RANKS), "-H", f"localhost:{RANKS}", sys.executable, "-c", _HANDSHAKE]
    answer = run(command)
    expected = f"sum {RANKS * (RANKS + 1) // 2} of {RANKS}"
    if answer.code == 0 and answer.out.count(expected) == RANKS:
        return [Finding("handshake", True, f"{RANKS} ranks over Gloo agree")]
    fix = "check that localhost resolves to 127.0.0.1 and no firewall blocks the loopback interface; then: make doctor"
    return [Finding("handshake", False, f"{RANKS} ranks over Gloo: {answer.reason}", fix)]


def check_disk() -> list[Finding]:
    """Room for results here and for Spark's own files where temporary files go."""
    findings = []
    places = {
        "disk": Path.cwd(),
        "scratch": Path(os.environ.get("SPARK_LOCAL_DIRS", tempfile.gettempdir()).split(",")[0]),
    }
    for name, place in places.items():
        free_gib = shutil.disk_usage(place).free / GIB
        ok = free_gib >= NEEDED_DISK_GIB
        fix = f"free some below {place}, or {'set OUT=' if name == 'disk' else 'point SPARK_LOCAL_DIRS'} elsewhere"
        detail = f"{free_gib:.1f} GiB free at {place} (needs {NEEDED_DISK_GIB})"
        findings.append(Finding(name, ok, detail, "" if ok else fix))
    return findings


def check_memory() -> list[Finding]:
    """Memory for Spark's driver and two ranks, within the limit of a container if there is one."""
    free_gib = min(psutil.virtual_memory().available, container_memory_left(Path("/sys/fs/cgroup"))) / GIB
    ok = free_gib >= NEEDED_MEMORY_GIB
    fix = "end other programs, or lower spark.driver.memory in conf/spark/local.conf"
    return [Finding("memory", ok, f"{free_gib:.1f} GiB available (needs {NEEDED_MEMORY_GIB})", "" if ok else fix)]


def container_memory_left(cgroup: Path) -> float:
    """Bytes that a container's limit leaves, from the files of cgroup v2 or v1; infinite without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return int((cgroup / limit).read_text()) - int((cgroup / used).read_text())
        except (OSError, ValueError):
            continue
    return float("inf")


def run(command: Sequence[str], timeout_s: float = _TIMEOUT_S) -> Output:
    """Run a command to its end; after the time limit, or on Ctrl-C, it and all that it started are killed."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        command,
        env={**os.environ, **quiet},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
        return Output(process.returncode, out, err)
    except subprocess.TimeoutExpired:
        _kill(process)
        return Output(None, *process.communicate())
    finally:
        if process.returncode is None:  # Ctrl-C
            _kill(process)
            process.wait()


def _kill(process: "subprocess.Popen[str]") -> None:
    """Kill a process, its group, and what it started in sessions of their own, as horovodrun's ranks are."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()


def _requirement_lines(name: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (REQUIREMENTS / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


_REINSTALL = "rm -r .venv && make setup"
_REBUILD = "rm -r .venv ~/.cache/interest-evolution/wheels && make setup"
_JAVA_FIX = "set JAVA_HOME to a Java 17 (8 and 11 fit too), or: rm -r .venv && make setup"
_SPARK_FIX = "put the java line right if it fails, else: rm -r .venv && make setup"

CHECKS = (
    check_python,
    check_packages,
    check_java,
    check_executors,
    check_libraries,
    check_handshake,
    check_disk,
    check_memory,
)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
