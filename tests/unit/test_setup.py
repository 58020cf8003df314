"""Set-up: what is pinned, what is said when something is missing, and that a killed or second run comes out right.

The commands that cost minutes are replaced by a recorder; the checks of the machine and the wheel cache run for real.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import horovod_wheel
from install import Setup, usable
from state import STEPS, SetupError, is_current, read_state, setup_key, wanted_variant, write_state

TOP = Path(__file__).resolve().parent.parent.parent
REQUIREMENTS = TOP / "requirements"
# What setup.sh itself calls, apart from what it looks for.
SHELL_TOOLS = ("bash", "env", "dirname", "mktemp", "rm", "cat", "df", "awk", "uname", "tr", "sed")


def lines(name: str) -> list[str]:
    stripped = (line.split("#")[0].strip() for line in (REQUIREMENTS / name).read_text(encoding="utf-8").splitlines())
    return [line for line in stripped if line]


def pins() -> dict[str, str]:
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines("constraints.txt")}


# Pins


def test_constraints_are_plain_pins_in_order() -> None:
    pinned = lines("constraints.txt")
    assert [line for line in pinned if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line)] == []
    assert pinned == sorted(pinned, key=str.lower)
    assert len(pins()) == len(pinned)


def test_every_package_that_setup_installs_is_pinned() -> None:
    waiting = [line for name in ("build.in", "runtime.in", "tensorflow-cpu.in", "dev.in") for line in lines(name)]
    seen: set[str] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        waiting += metadata.requires(name) or []
    assert {"pyspark", "grpcio", "urllib3", "pluggy"} < seen
    assert sorted(seen - set(pins())) == []


def test_versions_named_twice_agree() -> None:
    for name in ("runtime.in", "tensorflow-cpu.in", "tensorflow-gpu.in", "build.in", "dev.in"):
        for requirement in map(Requirement, lines(name)):
            pin = pins()[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pin), f"{name}: {requirement} but constraints.txt has {pin}"
    assert horovod_wheel.TENSORFLOW == pins()["tensorflow"] == pins()["tensorflow-cpu"]
    assert "horovod" not in pins()


# Checking the machine


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what set-up reads, in a folder of its own."""
    shutil.copytree(TOP / "setup", tmp_path / "tree" / "setup", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REQUIREMENTS, tmp_path / "tree" / "requirements")
    shutil.copy(TOP / "pyproject.toml", tmp_path / "tree")
    return tmp_path / "tree"


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def check(tree: Path, path: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("bash") or "bash", str(tree / "setup" / "setup.sh"), "--check-only"]
    environment = {"PATH": path, "HOME": str(tree), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_everything_missing_is_named_at_once(tree: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in SHELL_TOOLS:
        (bare / name).symlink_to(shutil.which(name) or name)
    result = check(tree, str(bare))
    assert result.returncode == 2
    for what in ("Python 3.11", "C++17 compiler", "a C compiler", "- git", "- make", "make setup PYTHON="):
        assert what in result.stderr
    (command,) = [line for line in result.stderr.splitlines() if re.search(r"apt-get install|dnf install", line)][:1]
    assert command.split().count("gcc") == 1
    assert {"git", "make"} < set(command.split())
    assert not (tree / ".venv").exists()


def test_a_compiler_must_compile_cpp17(tree: Path, tmp_path: Path) -> None:
    for name in ("c++", "g++", "clang++"):
        program(tmp_path / "bin", name, 'echo "unrecognized option -std=c++17" >&2; exit 1')
    result = check(tree, f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert result.returncode == 2
    assert "C++17" in result.stderr
    assert "Python" not in result.stderr.replace("PYTHON", "")


def test_a_wrong_cxx_is_named(tree: Path) -> None:
    result = check(tree, os.environ["PATH"], CXX="no-such-compiler")
    assert result.returncode == 2
    assert "CXX=no-such-compiler" in result.stderr


def test_a_python_without_venv_is_named(tree: Path, tmp_path: Path) -> None:
    python = program(tmp_path / "bin", "python3.11", 'case "$*" in *ensurepip*) exit 1 ;; esac')
    result = check(tree, f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert result.returncode == 2
    assert f"ensurepip, ctypes and ssl of {python}" in result.stderr


def test_a_shim_that_does_not_run_is_passed_over(tree: Path, tmp_path: Path) -> None:
    program(tmp_path / "bin", "python3.11", "exit 127")
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    result = check(tree, f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert (result.returncode, result.stderr) == (0, "")


def test_with_everything_in_place_nothing_happens(tree: Path) -> None:
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / ".venv" / "bin" / "python").symlink_to(sys.executable)
    write_state(tree / ".venv", setup_key(tree, "cpu"), "cpu", STEPS)
    command = ["bash", str(tree / "setup" / "setup.sh")]
    result = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert sorted(path.name for path in (tree / ".venv").iterdir()) == ["bin", "setup.json"]


# State


def test_key_follows_what_venv_is_made_from(tree: Path) -> None:
    before = setup_key(tree, "cpu")
    assert setup_key(tree, "gpu") != before
    (tree / "README.md").write_text("text", encoding="utf-8")
    pyproject = (tree / "pyproject.toml").read_text(encoding="utf-8")
    (tree / "pyproject.toml").write_text(pyproject.replace("line-length = 120", "line-length = 99"), encoding="utf-8")
    assert setup_key(tree, "cpu") == before
    (tree / "requirements" / "dev.in").write_text("pytest\n", encoding="utf-8")
    assert setup_key(tree, "cpu") != before


def test_variant_stays_until_gpu_says_otherwise() -> None:
    assert [wanted_variant(gpu, {}) for gpu in ("", "0", "1")] == ["cpu", "cpu", "gpu"]
    assert [wanted_variant(gpu, {"variant": "gpu"}) for gpu in ("", "0", "1")] == ["gpu", "cpu", "gpu"]
    with pytest.raises(SetupError, match="GPU=yes: expected 1") as caught:
        wanted_variant("yes", {})
    assert caught.value.exit_code == 2


# Steps


class RecordedSetup(Setup):
    """Set-up whose commands are written down. stops_at: part of a command in which it is killed."""

    def __init__(self, tree: Path, stops_at: str = "") -> None:
        super().__init__(tree, "cpu", setup_key(tree, "cpu"), lock=-1)
        self.commands: list[str] = []
        self.stops_at = stops_at
        self.broken_loads = 0

    def _status(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        text = " ".join(command)
        self.commands.append(text)
        self.log.open("a").close()
        if self.stops_at and self.stops_at in text:
            raise KeyboardInterrupt
        if " pip wheel " in text:
            assert environment is not None
            assert environment["HOROVOD_WITHOUT_PYTORCH"] == "1"
            (Path(command[command.index("-w") + 1]) / "horovod-0.28.1-cp311.whl").write_text("wheel", encoding="utf-8")
        if "gloo_built" in text and self.broken_loads:
            self.broken_loads -= 1
            return 1
        return 0

    def ran(self, part: str) -> int:
        return sum(part in command for command in self.commands)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_all_steps_once_and_in_order(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = RecordedSetup(tree)
    first.run()
    order = [
        next(i for i, command in enumerate(first.commands) if part in command)
        for part in ("-m venv", "build.in", "runtime.in", "pip wheel", "horovod-0.28.1-cp311.whl", "gloo_built", " -e ")
    ]
    assert order == sorted(order)
    assert is_current(read_state(tree / ".venv"), first.key)
    assert len(re.findall(r"^  \[\d/4\] .* \d+\.\d s$", capsys.readouterr().out, re.MULTILINE)) == len(STEPS)
    again = RecordedSetup(tree)
    again.run()
    assert again.ran("pip") == again.ran("-m venv") == 0
    assert capsys.readouterr().out == ""


def test_pip_gets_pins_and_no_index_of_ours(tree: Path) -> None:
    recorded = RecordedSetup(tree)
    recorded.run()
    pip = [command for command in recorded.commands if " -m pip " in command]
    assert all(f"-c {tree}/requirements/constraints.txt" in command for command in pip)
    assert not any(re.search(r"index-url|--find-links|https?:", command) for command in pip)


@pytest.mark.parametrize("stops_at", ["-m venv", "build.in", "runtime.in"])
def test_killed_before_packages_are_in_starts_anew(tree: Path, stops_at: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        RecordedSetup(tree, stops_at).run()
    (tree / ".venv" / "half-a-package").mkdir()
    again = RecordedSetup(tree)
    again.run()
    assert again.ran("-m venv") == again.ran("runtime.in") == 1
    assert not (tree / ".venv" / "half-a-package").exists()


@pytest.mark.parametrize("stops_at", ["pip wheel", "cp311.whl", " -e "])
def test_killed_later_keeps_packages_and_replaces_half_of_one(tree: Path, stops_at: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        RecordedSetup(tree, stops_at).run()
    remains = tree / ".venv" / "lib" / "python3.11" / "site-packages" / "horovod-0.28.1.dist-info"
    remains.mkdir(parents=True)
    again = RecordedSetup(tree)
    again.run()
    assert again.ran("runtime.in") == 0
    assert again.ran(" -e ") == 1
    assert remains.exists() is (stops_at == " -e ")
    assert again.ran("pip wheel") == (stops_at == "pip wheel")


def test_other_requirements_or_a_lost_python_make_it_anew(tree: Path) -> None:
    RecordedSetup(tree).run()
    (tree / "requirements" / "dev.in").write_text("pytest\n", encoding="utf-8")
    changed = RecordedSetup(tree)
    changed.run()
    assert changed.ran("-m venv") == 1
    assert changed.ran("pip wheel") == 0  # the wheel comes from the cache


def test_a_venv_of_somebody_else_is_left_alone(tree: Path) -> None:
    (tree / ".venv").mkdir()
    (tree / ".venv" / "pyvenv.cfg").write_text("theirs", encoding="utf-8")
    with pytest.raises(SetupError, match=r"not made by `make setup`.*rm -r "):
        RecordedSetup(tree).run()
    assert (tree / ".venv" / "pyvenv.cfg").read_text(encoding="utf-8") == "theirs"


def test_a_cached_wheel_that_does_not_load_is_built_again_once(tree: Path) -> None:
    RecordedSetup(tree).run()
    shutil.rmtree(tree / ".venv")
    again = RecordedSetup(tree)
    again.broken_loads = 1
    again.run()
    assert again.ran("pip wheel") == 1
    shutil.rmtree(tree / ".venv")
    hopeless = RecordedSetup(tree)
    hopeless.broken_loads = 2
    with pytest.raises(SetupError, match="can't be loaded"):
        hopeless.run()


def test_a_failed_command_shows_the_log(tree: Path) -> None:
    (tree / ".venv").mkdir()
    lock = os.open(tree / "pyproject.toml", os.O_RDONLY)
    setup = Setup(tree, "cpu", "key", lock)
    with pytest.raises(SetupError, match=r"exit code 7 of: bash -c(.|\n)*  \| no such mirror(.|\n)*goes on from here"):
        setup._call(["bash", "-c", "echo no such mirror; exit 7"])
    os.close(lock)


# The wheel and its cache


def test_two_setups_build_one_wheel(tmp_path: Path) -> None:
    built = []

    def build(scratch: Path) -> Path:
        assert sorted(path.name for path in (tmp_path / "key").iterdir()) == [".lock", scratch.name]
        built.append(scratch)
        threading.Event().wait(0.2)
        (scratch / "h.whl").write_text("wheel", encoding="utf-8")
        return scratch / "h.whl"

    results: list[tuple[Path, bool]] = []

    def work() -> None:
        results.append(horovod_wheel.cached_wheel(tmp_path / "key", build))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert sorted(results) == [(tmp_path / "key" / "h.whl", False), (tmp_path / "key" / "h.whl", True)]


def test_a_child_that_outlives_setup_keeps_the_lock(tmp_path: Path) -> None:
    with horovod_wheel.locked(tmp_path / "lock") as lock:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(lock,))
    waited: list[bool] = []

    def waiting() -> None:
        assert child.stdin is not None
        waited.append(child.poll() is None)
        child.stdin.close()  # now it ends

    with horovod_wheel.locked(tmp_path / "lock", waiting):
        assert waited == [True]
        assert child.wait(timeout=60) == 0


def test_a_build_that_ends_early_leaves_nothing_to_be_taken(tmp_path: Path) -> None:
    (tmp_path / "building-killed").mkdir()

    def fails(scratch: Path) -> Path:
        (scratch / "half.whl").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        horovod_wheel.cached_wheel(tmp_path, fails)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_build_environment_is_the_recipe_whatever_the_caller_has() -> None:
    caller = {
        "PATH": "/usr/bin",
        "MAKEFLAGS": " -j --jobserver-auth=3,4 -- GPU=1",
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_GPU_OPERATIONS": "MPI",
        "HOROVOD_NCCL_HOME": "/opt/nccl",
        "PIP_CERT": "/etc/cert",
    }
    cpu = horovod_wheel.build_environment("cpu", caller, Path("/v/bin"))
    assert re.fullmatch(r"-j[1-9]\d*", cpu["MAKEFLAGS"])
    assert cpu["PATH"] == "/v/bin:/usr/bin"
    assert cpu["PIP_CERT"] == "/etc/cert"
    assert {name for name in cpu if name.startswith("HOROVOD_")} == set(horovod_wheel.recipe("cpu", {}))
    gpu = horovod_wheel.build_environment("gpu", caller, Path("/v/bin"))
    assert (gpu["HOROVOD_GPU_OPERATIONS"], gpu["HOROVOD_NCCL_HOME"]) == ("NCCL", "/opt/nccl")
    assert "HOROVOD_WITH_PYTORCH" not in gpu


def test_wheel_key_tells_machines_apart(tmp_path: Path) -> None:
    other = program(tmp_path, "c++", "echo other compiler 1.0")
    keys = [
        horovod_wheel.wheel_key("cpu", {}),
        horovod_wheel.wheel_key("gpu", {}),
        horovod_wheel.wheel_key("cpu", {"CXX": str(other)}),
        horovod_wheel.wheel_key("cpu", {"CXX": f"{other} -m64"}),
    ]
    assert len(set(keys)) == 3
    assert keys[2] == keys[3]
    assert re.fullmatch(r"horovod-0\.28\.1-tensorflow-2\.15\.1-cpu-cp311-[\w.-]+-[0-9a-f]{12}", keys[0])


def test_cache_lies_where_the_user_keeps_caches() -> None:
    assert horovod_wheel.cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/interest-evolution/wheels")
    at_home = Path.home() / ".cache" / "interest-evolution" / "wheels"
    assert horovod_wheel.cache_folder({}) == horovod_wheel.cache_folder({"XDG_CACHE_HOME": "c"}) == at_home


@pytest.mark.parametrize(
    ("script", "fits"),
    [
        ("echo cmake version 3.12.4", False),
        ("echo cmake version 3.13.0", True),
        ("echo cmake version 3.31.10", True),
        ("echo cmake version 4.0.1", False),
        ("exit 1", False),
    ],
)
def test_cmake_is_used_only_in_a_version_that_builds(tmp_path: Path, script: str, fits: bool) -> None:
    program(tmp_path, "cmake", script)
    program(tmp_path, "ninja", "echo 1.5")
    assert usable("cmake", str(tmp_path)) is fits
    assert usable("ninja", str(tmp_path))
    assert not usable("ccmake", str(tmp_path))


# Makefile


def test_help_has_a_sentence_for_every_target() -> None:
    text = (TOP / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split())
    shown = subprocess.run(["make", "-C", str(TOP), "help"], capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in shown.splitlines() if line.startswith("  ")} == targets
    assert all(len(line.split()) > 2 for line in shown.splitlines() if line.startswith("  "))


def test_run_names_all_that_it_lacks() -> None:
    command = ["make", "-C", str(TOP), "run", "INPUT=log.csv"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert re.search(r"make run needs SOURCE=.*deskdrop.* OUT=", result.stderr)
    assert "INPUT=<" not in result.stderr
