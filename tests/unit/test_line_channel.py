"""What another process says and reports over a connection of its own."""

import io
import socket
import subprocess
import sys
import threading
from pathlib import Path

import cloudpickle

from jobs.line_channel import Address, FarStream, listen, reporter


def test_a_report_is_heard_though_another_process_talks() -> None:
    said: list[str] = []
    noted: list[str] = []
    heard = threading.Event()

    def tell(line: str) -> None:
        said.append(line)
        heard.set()

    with listen("127.0.0.1", "127.0.0.1", tell, noted.append) as address:
        assert address is not None
        stream = FarStream(address, io.StringIO())
        stream.write("at work\n")
        assert heard.wait(60)
        hand_over = reporter(address)
        assert hand_over("torn")
        assert noted == ["torn"]
        del stream
    assert said == ["at work"]
    assert not hand_over("after the end")
    assert not reporter(None)("nowhere")


def test_a_report_comes_from_a_process_without_the_project(tmp_path: Path) -> None:
    noted: list[str] = []
    code = (
        "import pickle, sys; sys.modules['jobs'] = None; "
        "sys.exit(0 if pickle.load(sys.stdin.buffer)('no project') else 1)"
    )
    with listen("127.0.0.1", "127.0.0.1", noted.append, noted.append) as address:
        carried = cloudpickle.dumps(reporter(address))
        subprocess.run([sys.executable, "-I", "-c", code], input=carried, check=True, cwd=tmp_path)
    assert noted == ["no project"]


def test_what_breaks_off_or_comes_without_the_word_is_no_report() -> None:
    noted: list[str] = []
    with listen("127.0.0.1", "127.0.0.1", noted.append, noted.append) as address:
        assert address is not None
        word = address[2]
        assert _answer(address, f"{word} report\nhal") == b""
        assert _answer(address, "another report\nwhole\n") == b""
        assert _answer(address, f"{word} report\nwhole\n") == b"."
    assert noted == ["whole"]


def _answer(address: Address, text: str) -> bytes:
    with socket.create_connection(address[:2], timeout=60) as connection:
        connection.sendall(text.encode())
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(1)
