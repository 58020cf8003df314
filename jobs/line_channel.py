"""Lines of a process on another machine, as they are said, and what it reports at its end: it connects to this one."""

import contextlib
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

_GREETING_S = 10.0  # for the far process to reach this one; without that its lines stay in its own log
_HEARD_S = 60.0  # for this one to say that it has a report
_LAST_LINES_S = 10.0  # for lines that are still on their way at the end; none come where that machine is gone
_REPORT = "report"  # said after the word: one line follows, which is to be acknowledged
_HEARD = b"."

Address = tuple[str, int, str]  # host, port, and the word with which the far process introduces itself


@contextlib.contextmanager
def listen(bind: str, host: str, tell: Callable[[str], None], note: Callable[[str], None]) -> Iterator[Address | None]:
    """Hear lines, one process at a time: `tell` gets each. Yields where to connect to; None where nobody can.

    bind: local address to listen at; host: the name that the far process knows it by; `note` gets each report, from
    whichever process and at any time.
    """
    word = secrets.token_hex(16)
    talking = threading.Semaphore(1)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            said, _, kind = self.rfile.readline(100).decode("utf-8", "replace").strip().partition(" ")
            if said != word:
                return
            if kind == _REPORT:
                report = self.rfile.readline()
                if report.endswith(b"\n"):  # else whoever sent it was ended meanwhile
                    note(report.decode("utf-8", "replace").rstrip("\n"))
                    self.wfile.write(_HEARD)
                return
            with talking:
                for line in self.rfile:
                    tell(line.decode("utf-8", "replace").rstrip("\n"))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False  # a machine that is gone would never end its connection

    try:
        server = Server((bind, 0), Handler)
    except OSError:
        yield None
        return
    with server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield host, server.server_address[1], word
        finally:
            server.shutdown()
            talking.acquire(timeout=_LAST_LINES_S)


def reporter(address: Address | None) -> Callable[[str], bool]:
    """A function that hands one line over to `listen`, and says whether it was heard.

    Nested, so that it travels by value: a process that can't import the project can call it.
    """

    def hand_over(report: str) -> bool:
        if address is None:
            return False
        host, port, word = address
        try:
            with socket.create_connection((host, port), timeout=_GREETING_S) as connection:
                connection.settimeout(_HEARD_S)
                connection.sendall(f"{word} {_REPORT}\n{report}\n".encode())
                return connection.recv(1) == _HEARD
        except OSError:
            return False

    return hand_over


class FarStream:
    """A stream whose text goes to `listen` at once, and where that can't be reached, to the log."""

    def __init__(self, address: Address, log: TextIO) -> None:
        self._log = log
        self._stream: TextIO | None = None
        host, port, word = address
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, port), timeout=_GREETING_S)
            self._stream = connection.makefile("w", encoding="utf-8")
            self.write(f"{word}\n")

    def write(self, text: str) -> int:
        """Send at once."""
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
                return len(text)
            except OSError:  # the other process is gone or hangs: what this one does goes on
                self._stream = None
        return self._log.write(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)
