"""Pseudonyms: equal to Python's own HMAC, and no raw id and no key in anything that a run writes or says."""

import base64
import hashlib
import hmac
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from features import columns as c
from features.contracts import OPEN_SESSIONS, REJECTED_EVENTS, SESSIONS, ContractError
from features.pseudonyms import HEX_DIGITS, PseudonymKey, fingerprint, pseudonyms
from jobs.inputs import KEY_INPUT, load_key, load_source
from jobs.sessionize import main, sessionize
from jobs.settings import CONF_DIR, UsageError, config_hash, load_settings
from jobs.store import Store
from tests.logs import SOURCE, line, write_log

KEY = hashlib.sha512(b"any 64 bytes").digest()
FIRST, SECOND = date(2024, 3, 1), date(2024, 3, 2)
ANN, BOB, CID = "customer-ann-81", "customer-böb-82", "customer-cid-83"
DAY_LOG = [
    line(user=f" {ANN}", when="2024-03-01 10:00"),
    line(user=ANN, item="i2", when="2024-03-01 10:05"),
    line(user=ANN, item="i3", when="2024-03-01 12:05"),
    line(user=ANN, item="i2", when="2024-03-01 12:06"),
    line(user=BOB, item="i2", when="2024-03-01 23:55"),
    line(user=BOB, when="noon"),
    line(user=BOB, what="stare"),
    line(user=CID, when="1970-01-01 00:00"),
    line(user=CID, item=""),
    line(user=CID, when="2024-03-09 00:00"),
    f"{CID},i1",
    f"i1,{CID},c1,pv,1709294400,more",
]


def as_python_says(user: str, key: bytes = KEY) -> str:
    return hmac.new(key, user.encode(), "sha256").hexdigest()[:HEX_DIGITS]


@given(st.binary(min_size=32, max_size=100), st.lists(st.text(), unique=True))
def test_pseudonyms_are_pythons_hmac(key: bytes, users: list[str]) -> None:
    assert pseudonyms(users, key) == {user: as_python_says(user, key) for user in users}


def test_a_fingerprint_tells_keys_apart_and_is_not_the_key() -> None:
    said = hmac.new(KEY, b"interest-evolution: fingerprint of a pseudonym key", "sha256").digest()
    assert fingerprint(KEY) == hashlib.sha256(said).hexdigest()[:8]
    assert fingerprint(KEY) != fingerprint(KEY[::-1])


def test_a_machine_with_another_key_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    key = load_key(str(tmp_path / "key"))
    assert key is not None
    assert key.secret() == KEY
    other = KEY + b"\n"
    (tmp_path / "key").write_bytes(other)
    with pytest.raises(ContractError, match=f"fingerprint {fingerprint(other)} on this machine"):
        key.secret()


def test_executors_say_it_in_one_line(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_bytes(KEY)
    read = (tmp_path / "key").read_bytes
    monkeypatch.setattr("jobs.sessionize.load_key", lambda _: PseudonymKey(read, "00000000"))
    log = write_log(tmp_path / "log.csv", *DAY_LOG)
    with pytest.raises(ContractError, match=r"^cleaning\.pseudonym_key_file holds a key with .* on every executor\.$"):
        sessionize(spark, load_settings(), SOURCE, [log], str(tmp_path / "out"), FIRST, FIRST, True)


@pytest.mark.parametrize(("content", "said"), [(None, "cannot read it: No such file"), (KEY[:31], "holds 31 bytes")])
def test_a_missing_or_short_key_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        load_key(str(tmp_path / "key"))


def test_where_the_key_lies_changes_no_configuration_hash() -> None:
    plain, keyed = load_settings(), load_settings(assignments=["cleaning.pseudonym_key_file=/run/secrets/key"])
    assert keyed.cleaning.pseudonym_key_file == "/run/secrets/key"
    assert config_hash(plain.cleaning) == config_hash(keyed.cleaning)
    assert "secrets" not in keyed.model_dump_json()


def everything_in(folder: Path) -> bytes:
    """Every file's bytes, every Parquet value as text, and every path."""
    parts = []
    for path in sorted(folder.rglob("*")):
        parts.append(str(path.relative_to(folder)).encode())
        if path.is_file():
            parts.append(path.read_bytes())
        if path.suffix == ".parquet":
            parts.append(str(pq.ParquetFile(path).read().to_pylist()).encode())
    return b"\n".join(parts)


def test_no_raw_id_and_no_key_in_tables_manifests_logs_and_event_logs(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "spark-events").mkdir()
    (tmp_path / "map.yaml").write_text(SOURCE.model_dump_json())
    log = write_log(tmp_path / "raw.csv", *DAY_LOG)
    events = f"--conf spark.eventLog.enabled=true --conf spark.eventLog.dir={(tmp_path / 'spark-events').as_uri()}"
    root = tmp_path / "out"
    keyed = ["--set", f"cleaning.pseudonym_key_file={tmp_path / 'key'}"]
    flags = ["--root", str(root), "--source", str(tmp_path / "map.yaml"), "--input", log, "--date", str(FIRST)]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.sessionize", *flags, "--bootstrap", *keyed],
        env={**os.environ, "PYSPARK_SUBMIT_ARGS": f"{events} pyspark-shell", "INTEREST_SPARK_LOG": "INFO"},
        cwd=CONF_DIR.parent,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    # Later stages read these tables and nothing of the raw log.

    said = done.stdout + done.stderr
    event_log = everything_in(tmp_path / "spark-events")
    assert b"INFO" in said
    assert b"PythonUDF" in event_log or b"ArrowEvalPython" in event_log
    assert not list(root.rglob("spark-events"))  # the event log that was asked for is the only one
    written = everything_in(root)
    found = said + event_log + written
    spelled = (KEY, KEY.hex().encode(), base64.b64encode(KEY), str(KEY).encode(), KEY.hex().upper().encode())
    for secret in (*spelled, *(user.encode() for user in (ANN, BOB, CID)), b"customer-"):
        assert secret not in found

    store = Store(str(root))
    sessions = store.read(spark, SESSIONS, FIRST, "").collect() + store.read(spark, OPEN_SESSIONS, FIRST, "").collect()
    assert {row[c.USER_ID] for row in sessions} == {as_python_says(ANN), as_python_says(BOB)}
    assert sum(row[c.N_EVENTS] for row in sessions) == 5
    refused = {(row[c.REASON], row[c.RAW]) for row in store.read(spark, REJECTED_EVENTS, FIRST, "").collect()}
    assert ("malformed_row", f"[redacted: {len(DAY_LOG[-2])} characters]") in refused
    assert ("malformed_row", f"[redacted: {len(DAY_LOG[-1])} characters]") in refused
    assert {reason for reason, raw in refused if as_python_says(CID) in raw} == {
        "time_out_of_range",
        "no_item",
        "after_run",
    }
    for table in (SESSIONS, OPEN_SESSIONS, REJECTED_EVENTS):
        assert store.manifest(table.name, FIRST, "").inputs[KEY_INPUT] == fingerprint(KEY)


def test_without_a_key_the_search_finds_the_raw_ids(spark: SparkSession, tmp_path: Path) -> None:
    log = write_log(tmp_path / "raw.csv", *DAY_LOG)
    sessionize(spark, load_settings(), SOURCE, [log], str(tmp_path / "out"), FIRST, FIRST, True)
    assert all(user.encode() in everything_in(tmp_path / "out") for user in (ANN, CID))


def test_a_night_with_another_key_or_none_is_refused(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spark is not None
    (tmp_path / "map.yaml").write_text(SOURCE.model_dump_json())
    for name, key in (("one", KEY), ("two", KEY[::-1])):
        (tmp_path / name).write_bytes(key)

    def night(day: date, key: str | None, *flags: str) -> int:
        log = write_log(tmp_path / f"{day}.csv", line(user=BOB, when=f"{day} 00:10"))
        setting = ["--set", f"cleaning.pseudonym_key_file={tmp_path / key}"] if key else []
        common = ["--root", str(tmp_path / "out"), "--source", str(tmp_path / "map.yaml"), "--input", log]
        return main([*common, "--date", str(day), *setting, *flags])

    assert night(FIRST, "one", "--bootstrap") == 0
    assert night(SECOND, "two") == 3
    assert night(SECOND, None) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"written with the pseudonym key {fingerprint(KEY)}, this run has no pseudonym key" in said
    assert night(SECOND, "one") == 0


def test_a_user_within_a_list_of_events_becomes_a_pseudonym_too(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "log.json").write_text(
        f'{{"session": "{ANN}", "events": [{{"aid": 5, "ts": 1709294400000, "type": "clicks"}}, {{"aid": 6}}]}}\n'
        f'{{"session": "{BOB}", "events": [{{"aid": 5, "ts": 17\n'
    )
    settings = load_settings(assignments=[f"cleaning.pseudonym_key_file={tmp_path / 'key'}"])
    root = str(tmp_path / "out")
    done = sessionize(spark, settings, load_source("otto"), [str(tmp_path / "log.json")], root, FIRST, FIRST, True)
    assert done.rejected == {"malformed_row": 1, "bad_time": 1}
    written = everything_in(tmp_path / "out")
    assert as_python_says(ANN).encode() in written
    assert b"customer-" not in written
