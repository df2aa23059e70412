"""Blocks written by the workers of a Dask cluster, and so by any machines that Dask reaches.

Dask moves the blocks of workers that died to others by itself. Only so many blocks are handed to it
as it has hands, so that a million of them wait here, where they cost nothing.
"""

from __future__ import annotations

import functools
import json
import math
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Any

from em_data import BlockStore
from em_data.writer.blockwise import BlockKey

from em_train.engine.errors import BlockFailedError
from em_train.engine.progress import say
from em_train.engine.stop import StopRequest
from em_train.engine.wording import is_mendable, one_line
from em_train.predict.block_job import (
    FAILURES,
    GRACE_SECONDS,
    POLL_SECONDS,
    BlockJob,
    BlockWriter,
    Pace,
)

LOCAL = "local:"
SCHEMES = ("tcp", "tls", "ucx", "ws", "wss")  # that Dask listens at

_one_at_a_time = threading.Lock()  # in a worker: memory is planned for one block


def workers_at(address: str) -> int | None:
    """How many workers `local:N` asks for; None for a cluster, where they come and go.

    What is missing or wrong is found here, before anything is begun.
    """
    distributed = _import_distributed()
    scheme, _, rest = address.partition(":")
    if address.startswith(LOCAL) and rest.isdecimal() and int(rest) > 0:
        return int(rest)
    if scheme in SCHEMES and rest.startswith("//"):
        try:  # somebody must be there
            distributed.Client(address, set_as_default=False).close()
        except (ValueError, OSError) as error:
            raise ConnectionError(
                f"--dask is {address!r}, where no scheduler answers ({error}); start one with "
                "`dask scheduler`, and give the address that it tells"
            ) from error
        return None
    raise ValueError(f"--dask is {address!r}; wanted local:N with N ≥ 1, or tcp://host:port")


class DaskCrew:
    """The workers of a Dask cluster: of one that runs, or of one made here for the time being."""

    def __init__(self, job: BlockJob, address: str) -> None:
        distributed = _import_distributed()
        self._job, self._distributed = job, distributed
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with ExitStack() as opened:
            workers = workers_at(address)
            if workers:
                address = opened.enter_context(_local_cluster(distributed, workers))
            self._client = opened.enter_context(distributed.Client(address, set_as_default=False))
            self._opened = opened.pop_all()

    def write(
        self, store: BlockStore, pending: Sequence[BlockKey], stop: StopRequest, pace: Pace
    ) -> bool:
        """Until all are written or a signal comes."""
        waiting, failures = deque(pending), Counter[BlockKey]()
        running: dict[Any, BlockKey] = {}
        leave_at = math.inf
        # Workers outlive this process, and keep what they made for the same job and plan.
        job = json.dumps([asdict(self._job), store.hash])
        while running or (waiting and not stop.name):
            if stop.name and leave_at == math.inf:
                leave_at = time.monotonic() + GRACE_SECONDS
                running = self._forget_idle(running)
            if time.monotonic() > leave_at:
                break
            hands = sum(self._client.nthreads().values()) or 1
            while (
                waiting and not stop.name and len(running) < 2 * hands
            ):  # one in hand, one at hand
                key = waiting.popleft()
                future = self._client.submit(write_block, job, str(key), pure=False)
                running[future] = key
                future.add_done_callback(self._ended.put)
            for future in self._finished():
                if future not in running:  # taken back
                    continue
                key = running.pop(future)
                error = future.exception()
                if error is None:
                    pace.add(key)
                    continue
                if not isinstance(error, self._distributed.KilledWorker):
                    raise BlockFailedError(str(error) or type(error).__name__) from error
                failures[key] += 1
                if failures[key] == FAILURES:
                    raise BlockFailedError(
                        f"block {key} of {store.path} takes down every worker ({error}); take "
                        "smaller blocks, or workers with more memory, and go on with --resume"
                    )
                say(f"block {key} took workers down; others try it")
                waiting.append(key)
        return stop.name is None

    def close(self) -> None:
        """Leave the cluster; end it if it was made here."""
        self._opened.close()

    def _finished(self) -> Iterator[Any]:
        """Blocks that have come to an end, within a moment."""
        with suppress(queue.Empty):
            yield self._ended.get(timeout=POLL_SECONDS)
            while True:
                yield self._ended.get_nowait()

    def _forget_idle(self, running: dict[Any, BlockKey]) -> dict[Any, BlockKey]:
        """Take back the blocks that nobody has begun."""
        begun = {name for names in self._client.processing().values() for name in names}
        kept = {future: key for future, key in running.items() if future.key in begun}
        for future in running.keys() - kept.keys():
            future.cancel()
        return kept


def write_block(job: str, key: str) -> None:
    """Write one block, in a worker."""
    with _one_at_a_time:
        try:
            _writer(job).write(BlockKey.parse(key))
        except Exception as error:
            if not is_mendable(error):
                raise
            # Errors with several arguments do not survive the way back.
            raise BlockFailedError(one_line(error)) from None


@functools.lru_cache(1)
def _writer(job: str) -> BlockWriter:
    return BlockWriter(BlockJob(**json.loads(job)[0]))


def _import_distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ImportError(
            f"--dask needs Dask distributed, which cannot be imported ({error}); "
            "install it: pip install 'em-train[dask]'"
        ) from error
    return distributed


@contextmanager
def _local_cluster(distributed: Any, count: int) -> Iterator[str]:
    import dask

    settings = {
        # Dask gives a block up after so many workers died at it.
        "distributed.scheduler.allowed-failures": FAILURES,
        # Workers that are not back by then are never replaced, and the blocks wait for nobody. By
        # default it is 15 s, within which a busy machine does not load a model.
        "distributed.deploy.lost-worker-timeout": "1 hour",
    }
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            host="127.0.0.1",
            memory_limit=0,  # it would kill workers that use their share of the machine's memory
        ) as cluster,
    ):
        yield cluster.scheduler_address
