"""The progress bar of a training on a terminal, also where the training runs in a process that the terminal can't see.

The process that owns the terminal draws (`Bar`). A rank under it writes its steps as marked lines (`BarLines`), which
that process takes out of the rank's output.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TextIO

from tqdm import tqdm

from model.watch import History, Lines, Plan, Step, Watcher

_MARK = "\x1estep "  # starts the lines that are for `Bar` and not for people
_LINES_S = 0.25  # seconds between two of them
_DRAW_S = 0.1  # seconds between two pictures of the bar
_FORMAT = "{desc}  {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


class _Tqdm(tqdm):  # type: ignore[misc]
    monitor_interval = 0  # no thread beside the training: steps are frequent enough to redraw the bar


class Bar(Watcher):
    """A watcher: one bar for each epoch, a line for people when it is done. Other lines pass by `say` meanwhile."""

    def __init__(self, stream: TextIO, width: int | None = None) -> None:
        self._stream, self._width = stream, width
        self._bar: Any = None
        self._title, self._drawn_s = "", 0.0
        self._lines = Lines(self.say)

    def started(self, plan: Plan) -> None:
        """See Watcher."""
        self._lines.started(plan)

    def step(self, step: Step) -> None:
        """See Watcher."""
        if self._bar is None or step.title != self._title or step.step < self._bar.n:
            self.close()
            self._title, self._drawn_s = step.title, 0.0
            self._bar = _Tqdm(
                total=step.steps,
                initial=step.step - 1,
                desc=step.title,
                file=self._stream,
                leave=False,
                position=0,
                ncols=self._width,
                dynamic_ncols=self._width is None,
                bar_format=_FORMAT,
            )
        self._bar.n = step.step
        self._bar.set_postfix_str(step.figures, refresh=False)
        now = time.monotonic()
        if now - self._drawn_s >= _DRAW_S or step.step == step.steps:
            self._drawn_s = now
            self._bar.refresh()

    def epoch(self, history: History, is_best: bool) -> None:
        """See Watcher."""
        self.close()
        self._lines.epoch(history, is_best)

    def close(self) -> None:
        """See Watcher. Takes the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, line: str) -> None:
        """Print a line above the bar. A full bar goes: its epoch is over."""
        if self._bar is not None and self._bar.n >= self._bar.total:
            self.close()
        if self._bar is None:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.clear()
            print(line, file=self._stream, flush=True)
            self._bar.refresh()

    def pass_on(self, line: str) -> None:
        """Draw a line of `BarLines`, print any other."""
        fields = _fields(line)
        if fields is None:
            self.say(line)
        else:
            self.step(Step(**fields))


class BarLines(Lines):
    """A watcher in a process without a terminal whose output reaches a `Bar`: marked lines for steps."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(say)
        self._written_s = 0.0

    def step(self, step: Step) -> None:
        """See Watcher."""
        now = time.monotonic()
        if now - self._written_s >= _LINES_S or step.step == step.steps:
            self._written_s = now
            self._say(_MARK + json.dumps(asdict(step)))


def _fields(line: str) -> Mapping[str, Any] | None:
    if not line.startswith(_MARK):
        return None
    fields: Mapping[str, Any] = json.loads(line.removeprefix(_MARK))
    return fields
