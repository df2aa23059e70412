"""Progress on the terminal: a bar where somebody watches, plain lines where output goes to a file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Of several processes the first one speaks.
console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")
T = TypeVar("T")
PLAIN_SECONDS = 20.0  # between lines where there is no terminal


def say(message: str) -> None:
    """Print one line as it is: paths can be copied, and brackets in them mean nothing."""
    console.print(message, soft_wrap=True, markup=False)


class Watch(Generic[T]):
    """Passes batches on and takes the time: how many a second, and how much of it was waiting."""

    def __init__(self, batches: Iterable[T]) -> None:
        self._batches = batches
        self._count, self._waited, self._since = 0, 0.0, time.perf_counter()

    def __iter__(self) -> Iterator[T]:
        coming = iter(self._batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(coming)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            self._count += 1
            yield batch

    def row(self, name: str, per_batch: float) -> dict[str, float]:
        """The speed as `name`, with so many things in a batch, and the share of time that was spent
        waiting for data, since the last time it was asked for."""
        now = time.perf_counter()
        passed = max(now - self._since, 1e-9)
        row = {
            name: round(self._count * per_batch / passed, 1),
            "waiting": round(self._waited / passed, 3),
        }
        self._count, self._waited, self._since = 0, 0.0, now
        return row


class Meter:
    """Shows how far a loop is and what it measures."""

    def __init__(self, progress: Progress, what: str, total: int, done: int) -> None:
        self._progress, self._what, self._total = progress, what, total
        self._task = progress.add_task(what, total=total, completed=done, note="")
        self._said = time.monotonic()

    def update(self, done: int, note: str) -> None:
        """Now `done` of the total, with a short note."""
        note += _memory()
        self._progress.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if not console.is_terminal and (now - self._said > PLAIN_SECONDS or done == self._total):
            self._said = now
            say(f"{self._what} {done}/{self._total}  {note}")


def _memory() -> str:
    """The most memory that the GPU has held so far, where one is used."""
    torch = sys.modules.get("torch")  # what shows progress needs no torch
    if torch is None or not torch.cuda.is_initialized():
        return ""
    return f"  {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


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
