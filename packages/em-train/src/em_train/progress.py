"""Progress on the terminal: a bar where somebody watches, plain lines where output goes to a file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
PLAIN_SECONDS = 20.0  # between lines where there is no terminal


def say(message: str) -> None:
    """Print one line as it is: paths can be copied, and brackets in them mean nothing."""
    console.print(message, soft_wrap=True, markup=False)


class Meter:
    """Shows how far a loop is and what it measures."""

    def __init__(self, progress: Progress, what: str, total: int, done: int) -> None:
        self._progress, self._what, self._total = progress, what, total
        self._task = progress.add_task(what, total=total, completed=done, note="")
        self._said = time.monotonic()

    def update(self, done: int, note: str) -> None:
        """Now `done` of the total, with a short note."""
        self._progress.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if not console.is_terminal and (now - self._said > PLAIN_SECONDS or done == self._total):
            self._said = now
            say(f"{self._what} {done}/{self._total}  {note}")


@contextmanager
def meter(what: str, total: int, done: int = 0) -> Iterator[Meter]:
    """A meter for one loop of `total` rounds."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Meter(progress, what, total, done)
