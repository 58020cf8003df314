"""docs/tutorial.md, followed from its first line to its last: the files it shows are written, its commands are run.

The page is text with two kinds of blocks. One headed by a language and a file name is that file. One headed `console`
holds commands after `$ ` and what each printed, standard output and error as they come. Of that, words and whole
numbers are the same everywhere and must be the page's; times, numbers with a decimal point and versions are not.
`…` stands for any text, on a line of its own for any lines.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "tutorial.md"
_BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LEAST_COMMANDS = 10


@dataclass(frozen=True)
class File:
    """A file that the reader is asked to write."""

    name: str
    content: str


@dataclass(frozen=True)
class Run:
    """A command and what the page says that it prints."""

    command: str
    printed: str


def steps_of(page: str) -> list[File | Run]:
    """Files and commands of a page, in order; blocks without a file name that are no console are for reading."""
    steps: list[File | Run] = []
    for language, name, content in _BLOCK.findall(page):
        if name:
            steps.append(File(name, content))
        elif language == "console":
            assert content.startswith("$ "), f"a console block starts with a command, not with {content[:40]!r}"
            for part in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]:
                command, printed = re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
                steps.append(Run(command, printed))
    return steps


def as_everywhere(text: str) -> str:
    """What of an output does not depend on machine, hour and rounding."""
    text = re.sub(r"\b(?=\w*\d)(?:[0-9a-f]{16}|[0-9a-f]{12})\b", "<hash>", text)
    text = re.sub(r"[+−-]?\d[\d,]*(\.\d+)?(?= (?:s|ms|min|events/s)\b)", "<time>", text)
    text = re.sub(r"[+−-]?(?<![\w.])\d[\d,]*\.\d+%?|[+−-]\.?\d+%?|\d+ ?%", "<number>", text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def fits(page: str, printed: str) -> bool:
    """Whether an output is what the page shows."""
    lines = []
    for line in as_everywhere(page).splitlines():
        lines.append(r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*?") + r"\n")
    told = as_everywhere(printed)
    return re.fullmatch("".join(lines), f"{told}\n" if told else "") is not None


@pytest.mark.parametrize(
    ("page", "printed", "same"),
    [
        ("3 users (1.2 s)\n", "3 users (71 s)\n", True),
        ("3 users\n", "4 users\n", False),
        ("NDCG@10  0.123 ± 0.01\n", "NDCG@10 0.9 ± 0.2\n", True),
        ("NDCG@10  0.123\n", "HR@10 0.123\n", False),
        ("first\n…\nlast\n", "first\n2\n3\nlast\n", True),
        ("first\n…\nlast\n", "first\nlast\n", True),
        ("first\n…\nlast\n", "first\nlast\nerror: no\n", False),
        ("tea (98 %)\n", "tea (97 %)\n", True),
        ("model 6d57be2aeb11\n", "model 000000000abc\n", True),
        ("tea … of 5\n", "tea 40 of 5\n", True),
        ("", "a warning\n", False),
        ("", "", True),
        ("tea\n", "", False),
    ],
)
def test_what_counts_as_the_same_output(page: str, printed: str, same: bool) -> None:
    assert fits(page, printed) is same


def test_the_page_prints_what_it_says(tmp_path: Path) -> None:
    steps = steps_of(PAGE.read_text(encoding="utf-8"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("INTEREST_", "PYTEST_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    n_commands = 0
    for step in steps:
        if isinstance(step, File):
            (tmp_path / step.name).write_text(step.content, encoding="utf-8")
            continue
        n_commands += 1
        done = subprocess.run(
            ["bash", "-c", step.command],
            cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
        told = f"$ {step.command}\nprinted:\n{done.stdout}\nthe page says:\n{step.printed}"
        assert fits(step.printed, done.stdout), told
    assert n_commands >= _LEAST_COMMANDS
