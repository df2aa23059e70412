"""Threads that read ahead, or none: then each result is made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Later(Protocol[T]):  # type: ignore[misc]
    """A result that is there when it is asked for."""

    def result(self) -> T:
        """The result."""


class _InTurn(Executor):
    """Does the work in the thread that asks, when the result is asked for."""

    def submit(self, work: Callable[..., T], /, *args: Any, **options: Any) -> _Undone[T]:  # type: ignore[override]
        return _Undone(lambda: work(*args, **options))


class _Undone(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work

    @cached_property
    def _result(self) -> T:
        return self._work()

    def result(self) -> T:
        return self._result


@contextmanager
def readers(threads: int) -> Iterator[Executor]:
    """Threads that read while they are used; with 0 of them each result is made when it is asked for."""
    if threads == 0:
        yield _InTurn()
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="em-data") as pool:
        try:
            yield pool
        finally:  # the consumer left early, or a read failed
            pool.shutdown(wait=True, cancel_futures=True)
