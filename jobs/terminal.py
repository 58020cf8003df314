"""Colours and bars for people at a terminal; elsewhere plain lines."""

import os
from typing import TextIO

BOLD, RED, GREEN, YELLOW = "1", "1;31", "32", "33"


def is_terminal(stream: TextIO) -> bool:
    """Whether a person reads the stream on a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, stream: TextIO) -> str:
    """The text in a colour where the stream is a terminal and NO_COLOR (no-color.org) is not set; else as it is."""
    return f"\x1b[{style}m{text}\x1b[0m" if is_terminal(stream) and not os.environ.get("NO_COLOR") else text
