"""Horovod's wheel: built from source once, then kept for this user, one folder for each kind of machine and TensorFlow.

Standard library only: this runs before anything is installed.
"""

import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

HOROVOD = "0.28.1"
TENSORFLOW = "2.15.1"

# Horovod's CMake file looks for everything it could use; what we do not want is switched off by name.
_RECIPE = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_WITHOUT_NVTX": "1",
    "HOROVOD_WITH_GLOO": "1",
}
_GPU_RECIPE = {"HOROVOD_GPU": "CUDA", "HOROVOD_GPU_OPERATIONS": "NCCL"}
# Where CUDA and NCCL lie is the machine's business; every other HOROVOD_* of the caller is dropped.
_GPU_PLACES = (
    "HOROVOD_CUDA_HOME",
    "HOROVOD_NCCL_HOME",
    "HOROVOD_NCCL_INCLUDE",
    "HOROVOD_NCCL_LIB",
    "HOROVOD_NCCL_LINK",
)
# By default the build takes whatever this processor can do; a wheel kept in a shared home must run on the next one
# too. AVX is what TensorFlow's own wheels ask of an x86-64 processor.
_X86_FLAGS = "-mavx"
# A compiler of TensorFlow's headers needs up to 2 GiB.
_GIB_PER_COMPILER = 2


def recipe(variant: str, caller: Mapping[str, str]) -> dict[str, str]:
    """The HOROVOD_* variables of a build. variant: "cpu" or "gpu"; caller: the environment of whoever runs set-up."""
    values = dict(_RECIPE)
    if platform.machine().lower() in ("x86_64", "amd64"):
        values["HOROVOD_BUILD_ARCH_FLAGS"] = _X86_FLAGS
    if variant == "gpu":
        values |= _GPU_RECIPE | {name: caller[name] for name in _GPU_PLACES if name in caller}
    return values


def build_environment(variant: str, caller: Mapping[str, str], bin_folder: Path) -> dict[str, str]:
    """The whole environment of a build: the caller's, less what would change the result, plus the recipe.

    A running make hands its own flags down in MAKEFLAGS; Horovod would then compile one file at a time.
    """
    dropped = ("MAKEFLAGS", "MFLAGS", "GNUMAKEFLAGS", "MAKELEVEL", "CMAKE_GENERATOR")
    kept = {k: v for k, v in caller.items() if k not in dropped and not k.startswith("HOROVOD_")}
    path = f"{bin_folder}{os.pathsep}{caller.get('PATH', os.defpath)}"
    return {**kept, **recipe(variant, caller), "PATH": path, "MAKEFLAGS": f"-j{compilers()}"}


def compilers() -> int:
    """How many compilers run side by side: one a core, as far as memory goes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(cores, int(memory_gib // _GIB_PER_COMPILER)))


def wheel_key(variant: str, caller: Mapping[str, str]) -> str:
    """Name of the folder for the wheel that this machine would build: everything that could make two wheels differ."""
    libc = "".join(platform.libc_ver()) or f"macos{platform.mac_ver()[0]}"
    facts = {**recipe(variant, caller), "libc": libc}
    facts["compiler"] = _version(shlex.split(caller.get("CXX") or "c++"))
    if variant == "gpu":
        home = caller.get("HOROVOD_CUDA_HOME")
        facts["cuda"] = _version([f"{home}/bin/nvcc" if home else "nvcc"])
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    python = f"cp{sysconfig.get_config_var('py_version_nodot')}"
    system = sysconfig.get_platform().replace("-", "_")
    return f"horovod-{HOROVOD}-tensorflow-{TENSORFLOW}-{variant}-{python}-{system}-{libc}-{digest}"


def cache_folder(caller: Mapping[str, str]) -> Path:
    """Where wheels are kept: below XDG_CACHE_HOME, which counts only as an absolute path, or ~/.cache."""
    base = Path(caller.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "interest-evolution" / "wheels"


def cached_wheel(folder: Path, build: Callable[[Path], Path]) -> tuple[Path, bool]:
    """The wheel of a folder, and whether it was there; built where there is none.

    `build` gets an empty folder and returns the wheel it made in it. The wheel moves into place as the last thing,
    so a killed build leaves no wheel; a second set-up waits for the first one's wheel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        for unfinished in folder.glob("building-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        there = sorted(folder.glob("*.whl"))
        if there:
            return there[-1], True
        scratch = Path(tempfile.mkdtemp(prefix="building-", dir=folder))
        try:
            made = build(scratch)
            with made.open("rb") as file:
                os.fsync(file.fileno())
            final = folder / made.name
            made.replace(final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return final, False


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold an exclusive lock on a file; calls `waiting` once if another process has it. Gives the descriptor.

    The lock ends with the last process that has the descriptor: hand it to a child that must not be overtaken.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _version(program: list[str]) -> str:
    try:
        return subprocess.run([*program, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return "unknown"
