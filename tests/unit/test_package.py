"""What `make package` ships: equal bytes for equal sources, all that jobs need, nothing of development."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy import package


def test_equal_sources_give_equal_bytes(tmp_path: Path) -> None:
    """Copied anew, in another order and at another time, with what Python and editors leave behind."""
    made = []
    for name, order in (("a", 1), ("b", -1)):
        top = tmp_path / name
        for folder in package.PACKAGES[::order]:
            shutil.copytree(package.TOP / folder, top / folder, ignore=shutil.ignore_patterns("__pycache__"))
        os.utime(top / "jobs" / "cli.py", (order * 10**6 + 10**7, 10**9))
        (top / "jobs" / "__pycache__").mkdir(exist_ok=True)
        (top / "jobs" / "__pycache__" / f"{name}.pyc").write_text(name)
        made.append(package.write_code(top, top / "dist" / package.CODE).read_bytes())
    assert made[0] == made[1]
    (tmp_path / "b" / "jobs" / "cli.py").write_text("changed = True\n")
    assert package.write_code(tmp_path / "b", tmp_path / "changed.zip").read_bytes() != made[0]


def test_a_job_runs_from_the_zip_with_the_configuration_beside_it(tmp_path: Path) -> None:
    assert package.main(["--into", str(tmp_path), "--code-only"]) == 0
    program = (
        "import features, jobs.report_html, jobs.settings as s; from jobs.store import code_version; from importlib "
        "import resources; print(s.CONF_DIR, s.load_settings().sessions.gap_s, code_version(), "
        "len(list(resources.files('jobs').joinpath('report_page').iterdir())), jobs.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "conf", env={"PYTHONPATH": str(tmp_path / package.CODE)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    conf, gap_s, version, n_page, where = done.stdout.split()
    from jobs.settings import load_settings
    from jobs.store import code_version

    assert Path(conf) == tmp_path / "conf"
    assert where.startswith(str(tmp_path / package.CODE))
    assert (int(gap_s), version) == (load_settings().sessions.gap_s, code_version())
    assert int(n_page) == len(list((package.TOP / "jobs" / "report_page").iterdir()))
    assert (tmp_path / "jobs" / "sessionize.py").exists()


def test_of_the_environment_the_run_time_packages_are_shipped() -> None:
    names = {re.sub("[-_.]+", "-", found.metadata["Name"]).lower() for found in package.runtime_distributions()}
    assert {"horovod", "petastorm", "pyarrow", "pyspark", "pydantic", "numpy", "protobuf", "setuptools"} <= names
    assert any(name.startswith("tensorflow") for name in names)
    for_development = {
        "pytest",
        "mypy",
        "ruff",
        "duckdb",
        "polars",
        "playwright",
        "mlflow-skinny",
        "optuna",
        "faiss-cpu",
    }
    assert names & for_development == set()
    assert names & set(package.LEFT_OUT) == set()


def test_an_archive_is_kept_while_it_is_whole_and_of_the_packages_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small environment: one package, and a folder of Python's own."""
    (tmp_path / "stdlib").mkdir()
    (tmp_path / "stdlib" / "one.py").write_text("")
    records = {"RECORD": "a,sha256=1,2\n"}
    monkeypatch.setattr(package, "runtime_distributions", lambda: [SimpleNamespace(read_text=records.get)])
    monkeypatch.setattr(package, "_stage_packages", lambda site: site.mkdir(parents=True))
    monkeypatch.setattr(package.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "stdlib")})
    probed: list[str] = []
    monkeypatch.setattr(package, "_probe", lambda *_: probed.append("again"))
    dist = tmp_path / "dist"

    def made(*flags: str) -> int:
        assert package.main(["--into", str(dist), *flags]) == 0
        return len(probed)

    assert (made("--if-changed"), made("--if-changed")) == (1, 1)
    assert "of the packages installed now, left as it is" in capsys.readouterr().out
    records["RECORD"] += "b,sha256=3,4\n"
    assert (made("--if-changed"), made("--if-changed")) == (2, 2)
    (dist / package.ENVIRONMENT).unlink()
    assert (made("--if-changed"), made()) == (3, 4)  # without the flag always

    def fails(*_: object) -> None:
        raise package.PackageError("not whole")

    monkeypatch.setattr(package, "_probe", fails)
    assert package.main(["--into", str(dist)]) == 1
    assert not package.is_current(dist / package.ENVIRONMENT)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = metadata.distribution

    def without_petastorm(name: str) -> metadata.Distribution:
        if name == "petastorm":
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(metadata, "distribution", without_petastorm)
    with pytest.raises(package.PackageError, match=r"petastorm is needed and not installed .* make setup"):
        package.runtime_distributions()


def test_an_environment_that_loads_from_outside_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This very environment, linked to from elsewhere: its packages and libraries lie outside the archive."""
    (tmp_path / "bin").mkdir()
    package._write_wrapper(tmp_path / "bin" / "python", "python3.11", "")
    (tmp_path / "bin" / "python3.11").symlink_to(sys.executable)
    code = package.write_code(package.TOP, tmp_path / package.CODE)
    monkeypatch.setattr(package, "_PROBED", ("json",))
    with pytest.raises(package.PackageError, match=r"it loads from outside itself: .*/lib/python3.11"):
        package._probe(tmp_path, code)
