"""Makes `.venv` complete: pinned packages, Horovod built or taken from the cache, and the project itself.

Standard library only. setup.sh has checked the machine before.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import horovod_wheel
from state import (
    STATE_FILE,
    STEPS,
    UNTRUSTED,
    SetupError,
    is_current,
    read_state,
    setup_key,
    wanted_variant,
    write_state,
)

TOP = Path(__file__).resolve().parent.parent
_LOG_TAIL_LINES = 30
_CMAKE_RANGE = ((3, 13), (4, 0))  # Horovod asks for 3.13; CMake 4 refuses its bundled Gloo
_CHECK = "import pyarrow, horovod.tensorflow as hvd; assert hvd.gloo_built(), 'built without Gloo'"
# What nearly every process imports; each would compile it again where Python may not write bytecode, as in many images.
_COMPILED = "import horovod.spark, pandas, petastorm.reader, pyarrow.dataset, pyspark.daemon, pyspark.sql, tensorflow"


def main(argv: Sequence[str]) -> int:
    """Run what is left to do. Exit code 0 when `.venv` is complete, 1 on failure; with --is-current only tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--is-current", action="store_true", help="exit 0 if nothing is to be done, 1 otherwise")
    arguments = parser.parse_args(argv)
    try:
        variant = wanted_variant(os.environ.get("GPU", ""), read_state(TOP / ".venv"))
        key = setup_key(TOP, variant)
        if arguments.is_current:
            return 0 if is_current(read_state(TOP / ".venv"), key) else 1
        # The lock is on a file that is always there. Children get the descriptor: they may outlive a killed parent.
        with horovod_wheel.locked(Path(__file__), _say_waiting) as lock:
            Setup(TOP, variant, key, lock).run()
    except SetupError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"\nerror: {error}. Correct that and run the same command again; it goes on from here.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _say_waiting() -> None:
    say("set-up: another one runs in this folder; waiting for it")


def say(message: str, end: str = "\n") -> None:
    """One line (or its first half) for people."""
    print(message, end=end, flush=True)


class Setup:
    """One set-up of one folder. `lock`: a descriptor that children keep, so that nobody overtakes them."""

    def __init__(self, top: Path, variant: str, key: str, lock: int) -> None:
        self.top, self.variant, self.key, self.lock = top, variant, key, lock
        self.venv = top / ".venv"
        self.python = self.venv / "bin" / "python"
        self.log = self.venv / "setup.log"
        self.requirements = top / "requirements"

    def run(self) -> None:
        """Every step that is not done yet, each with one line and its seconds."""
        started = time.monotonic()
        done = self._trusted_steps()
        if done == list(STEPS):
            return
        version = ".".join(str(part) for part in sys.version_info[:3])
        say(f"set-up: {self.venv} ({self.variant}, Python {version}); details in {self.log}")
        actions: dict[str, tuple[str, Callable[[], str]]] = {
            "environment": ("virtual environment", self._make_environment),
            "packages": ("packages (0.8 GB to fetch where pip has none of them yet)", self._install_packages),
            "horovod": (f"Horovod {horovod_wheel.HOROVOD}", self._install_horovod),
            "project": ("this project", self._install_project),
        }
        for number, step in enumerate(STEPS, 1):
            title, action = actions[step]
            say(f"  [{number}/{len(STEPS)}] {title} ... ", end="")
            if step in done:
                say("done before")
                continue
            step_started = time.monotonic()
            note = action()
            done.append(step)
            write_state(self.venv, self.key, self.variant, done)
            say(f"{note}{time.monotonic() - step_started:.1f} s")
        say(f"set-up: ready after {time.monotonic() - started:.0f} s")

    def _trusted_steps(self) -> list[str]:
        """Steps that need not run again; throws `.venv` away where its content can't be trusted."""
        state = read_state(self.venv)
        if not state and self.venv.exists() and any(self.venv.iterdir()):
            raise SetupError(f"{self.venv} was not made by `make setup`. Move it away or remove it: rm -r {self.venv}")
        reported = state.get("done")
        done = [step for step in STEPS if isinstance(reported, list) and step in reported]
        if not state:
            return []
        if state.get("key") != self.key:
            why = "was made from other requirements or by another installer"
        elif not all(step in done for step in UNTRUSTED):
            why = "was left unfinished"
        elif self._status([str(self.python), "-c", ""]) != 0:
            why = "has lost its Python"
        else:
            return done
        say(f"set-up: {self.venv} {why}; it is made anew")
        self._empty()
        return []

    def _empty(self) -> None:
        """Remove everything in `.venv`, the state last: half empty it is still known as ours."""
        for path in sorted(self.venv.iterdir(), key=lambda path: path.name == STATE_FILE):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _make_environment(self) -> str:
        self.venv.mkdir(exist_ok=True)
        write_state(self.venv, self.key, self.variant, [])  # from here on the folder is known as ours
        self._call([sys.executable, "-m", "venv", str(self.venv)])
        return ""

    def _install_packages(self) -> str:
        self._pip("install", "-r", str(self.requirements / "build.in"))
        names = ("runtime.in", f"tensorflow-{self.variant}.in", "dev.in")
        files = [part for name in names for part in ("-r", str(self.requirements / name))]
        # Compiling all of it ahead costs more than compiling the part that is used: _install_project.
        self._pip("install", "--no-compile", "--no-build-isolation", *files)
        return ""

    def _install_horovod(self) -> str:
        folder = self._wheel_folder()
        wheel, was_there = horovod_wheel.cached_wheel(folder, self._build_horovod)
        if not self._put_horovod(wheel):
            if not was_there:
                raise SetupError(f"Horovod was built but can't be loaded: {self._log_tail()}")
            say("the cached wheel can't be loaded; ", end="")
            wheel.unlink(missing_ok=True)  # another set-up may have come to the same
            wheel, _ = horovod_wheel.cached_wheel(folder, self._build_horovod)
            if not self._put_horovod(wheel):
                raise SetupError(f"Horovod was built but can't be loaded: {self._log_tail()}")
        return "from the cache, " if was_there else ""

    def _put_horovod(self, wheel: Path) -> bool:
        """Install a wheel over whatever is there, then load it: a wheel of another machine shows here."""
        self._remove("horovod", "horovod-*.dist-info")
        self._pip("install", "--no-deps", "--no-index", str(wheel))
        return self._imports(_CHECK)

    def _wheel_folder(self) -> Path:
        key = horovod_wheel.wheel_key(self.variant, os.environ)
        folder = horovod_wheel.cache_folder(os.environ) / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(folder, os.W_OK)
        except OSError:
            writable = False
        if writable:
            return folder
        say(f"{folder} can't be written, so the wheel is kept in {self.venv} only; ", end="")
        return self.venv / "wheels" / key

    def _build_horovod(self, scratch: Path) -> Path:
        cores = horovod_wheel.compilers()
        say(f"built from source, about {max(1, round(6 / cores))} min on {cores} cores ... ", end="")
        tools = [name for name in ("cmake", "ninja") if not usable(name, os.environ.get("PATH", os.defpath))]
        if tools:
            self._pip("install", *tools)
        # pip's own wheel cache knows nothing of HOROVOD_* or the TensorFlow version: it is not to be asked.
        build = ("wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--no-binary", "horovod")
        environment = horovod_wheel.build_environment(self.variant, os.environ, self.venv / "bin")
        self._pip(*build, "-w", str(scratch), f"horovod=={horovod_wheel.HOROVOD}", environment=environment)
        return next(scratch.glob("horovod-*.whl"))

    def _install_project(self) -> str:
        self._remove("__editable__*interest_evolution*", "interest_evolution-*.dist-info")
        self._pip("install", "--no-deps", "--no-build-isolation", "--no-index", "-e", str(self.top))
        self._imports(_COMPILED)
        return ""

    def _remove(self, *patterns: str) -> None:
        """Take a package out by hand: pip refuses to replace one whose installation was cut short."""
        for path in (path for pattern in patterns for path in self.venv.glob(f"lib/python3.*/site-packages/{pattern}")):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _imports(self, statements: str) -> bool:
        """Whether these run; what they import is compiled, whatever the user has Python do elsewhere."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return self._status([str(self.python), "-c", statements], {**environment, "TF_CPP_MIN_LOG_LEVEL": "3"}) == 0

    def _pip(self, command: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """One pip command with the user's own configuration, under the pinned versions.

        PIP_USER=0: a user-wide `user = true` can't work inside a virtual environment.
        """
        pinned = ("-c", str(self.requirements / "constraints.txt"))
        quiet = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")
        full = {**(environment or os.environ), "PIP_USER": "0"}
        self._call([str(self.python), "-m", "pip", command, *quiet, *pinned, *arguments], full)

    def _call(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        status = self._status(command, environment)
        if status != 0:
            what = " ".join(command)
            raise SetupError(f"exit code {status} of: {what}\n{self._log_tail()}\nThe same command goes on from here.")

    def _status(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            try:
                return subprocess.run(
                    command,
                    cwd=self.top,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(self.lock,),
                    check=False,
                ).returncode
            except OSError as error:
                log.write(f"{error}\n".encode())
                return 127

    def _log_tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join([f"the end of {self.log}:", *(f"  | {line}" for line in lines)])


def usable(tool: str, path: str) -> bool:
    """Whether a program of the search path runs, and, for cmake, has a version that Horovod builds with."""
    found = shutil.which(tool, path=path)
    if not found:
        return False
    try:
        output = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return False
    version = re.search(r"(\d+)\.(\d+)", output)
    if not version:
        return False
    low, high = _CMAKE_RANGE
    return tool != "cmake" or low <= (int(version[1]), int(version[2])) < high


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
