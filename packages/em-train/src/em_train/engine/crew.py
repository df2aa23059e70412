"""Have the blocks of a store written by this process, or by several that may be killed at any time.

A job names a function that makes the block function, so that every process can make its own: a model
does not travel, the folder it is loaded from does. Blocks are dealt out one at a time. The block of a
worker that died goes to another one; what is finished has a marker in the store and is never done
again. Level by level: the pyramid is written in the same way.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from em_data.blockwise import BlockKey, BlockStore, attach_blocks
from em_data.geometry import Box

from em_train.engine.progress import console, meter, say
from em_train.engine.stop import StopRequest
from em_train.errors import BlockFailedError

# What a job makes: the voxels of a box for every image of the store, by its path ("" is the store
# itself).
BlockFunction = Callable[[Box], Mapping[str, np.ndarray]]

FAILURES = 5  # times that a block may take its worker down before it is given up
IN_A_ROW = 10  # workers that may end before any of them has finished a block
GRACE_SECONDS = 20.0  # for blocks under way when a signal comes; schedulers kill after 30
POLL_SECONDS = 0.2
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
EXPECTED = (OSError, ValueError, ImportError, FloatingPointError, MemoryError)
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class BlockJob:
    """What is to be written, in words that another process understands."""

    store: str
    """Path of the store that was begun with `em_data.begin_blocks`."""
    make: str
    """`package.module:function`; called with `arguments` in every process, it gives the function
    from a box of voxels to the arrays of all images there."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for it, as JSON can hold them."""
    threads: int = 1
    """Threads of every process; the sums of some operators depend on it, so it is part of the job."""


class BlockWriter:
    """Writes blocks in this process."""

    def __init__(self, job: BlockJob) -> None:
        module, _, name = job.make.partition(":")
        self.store = attach_blocks(job.store)
        self.compute: BlockFunction = getattr(importlib.import_module(module), name)(
            **job.arguments
        )
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(job.threads)

    def write(self, key: BlockKey) -> None:
        """Compute and write one block."""
        if self.store.is_done(key):  # by a worker that died before it could say so
            return
        if key.level:
            self.store.coarsen(key)
        else:
            self.store.write(key, self.compute(self.store.box(key)))


class Crew(Protocol):
    """Whoever writes blocks: this process, processes, or a Dask cluster."""

    def write(
        self, store: BlockStore, pending: Sequence[BlockKey], stop: StopRequest, pace: Pace
    ) -> bool:
        """Write these blocks of one level; False when a signal came before all were written."""

    def close(self) -> None:
        """End what was started."""


def write_blocks(
    job: BlockJob,
    store: BlockStore,
    *,
    processes: int = 0,
    dask: str | None = None,
    what: str,
) -> bool:
    """Write all blocks that are missing and give the store its name; False after a signal.

    Args:
        job: how blocks are made.
        store: what is written, just begun or gone on with.
        processes: how many are started to write, on the GPUs in turn; with 0 this one writes.
        dask: `local:N` for N Dask workers, or the address of a Dask scheduler, instead.
        what: is shown beside the progress.
    """
    crew: Crew
    if dask:
        from em_train.engine.dask_crew import DaskCrew

        crew = DaskCrew(job, dask)
    else:
        crew = Processes(job, processes) if processes else Alone(job)
    with StopRequest() as stop:
        try:
            for level in range(store.levels):
                pending = store.pending(level)
                if not pending:
                    continue
                with Pace(store, pending, f"{what}, level {level}") as pace:
                    if not crew.write(store, pending, stop, pace):
                        return False
        finally:
            crew.close()
    store.finish()
    return True


class Pace:
    """Counts voxels and says how fast they come and how long the rest takes."""

    def __init__(self, store: BlockStore, pending: Sequence[BlockKey], what: str) -> None:
        self._store, self._what = store, what
        self._began = time.monotonic()
        self._voxels, self._left = 0, sum(self._size(key) for key in pending)
        total = sum(1 for _ in store.keys(pending[0].level))
        self._done = total - len(pending)
        self._context = meter(what, total, self._done)

    def __enter__(self) -> Pace:
        self._meter = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def add(self, key: BlockKey) -> None:
        """One more block is written."""
        self._done += 1
        self._voxels += self._size(key)
        self._left -= self._size(key)
        rate = self._voxels / max(time.monotonic() - self._began, 1e-9)
        note = f"{rate / 1e6:.3g} million voxels/s"
        if not console.is_terminal:  # there a bar shows it
            note += f", {self._left / rate / 60:.1f} min left"
        self._meter.update(self._done, note)

    def _size(self, key: BlockKey) -> int:
        return math.prod(self._store.box(key).size_vx)


class Alone:
    """This process, which writes one block after the other."""

    def __init__(self, job: BlockJob) -> None:
        self._job = job
        self._writer: BlockWriter | None = None

    def write(
        self, store: BlockStore, pending: Sequence[BlockKey], stop: StopRequest, pace: Pace
    ) -> bool:
        """Until all are written or a signal comes."""
        self._writer = self._writer or BlockWriter(self._job)
        for key in pending:
            if stop.name:
                return False
            self._writer.write(key)
            pace.add(key)
        return True

    def close(self) -> None:
        """There is nothing to end."""


class Processes:
    """Processes of this machine, each of which may die at any time."""

    def __init__(self, job: BlockJob, count: int) -> None:
        self._job, self._count = job, count
        self._workers: list[_Worker] = []

    def write(
        self, store: BlockStore, pending: Sequence[BlockKey], stop: StopRequest, pace: Pace
    ) -> bool:
        """Deal out the blocks one by one; those of a worker that died again."""
        waiting, left = deque(pending), set(pending)
        failures, in_a_row = Counter[BlockKey | None](), 0
        leave_at = math.inf
        while left:
            if stop.name and leave_at == math.inf:
                leave_at = time.monotonic() + GRACE_SECONDS
            if stop.name and (not self._busy() or time.monotonic() > leave_at):
                return False
            if not stop.name:
                self._deal(waiting)
            for worker in self._heard():
                key, answer = worker.key, worker.answer()
                if answer is None:  # it is gone, and what it worked on is not done
                    status = self._bury(worker)
                    failures[key] += 1
                    in_a_row += 1
                    doing = f"block {key} of {store.path}" if key else "beginning"
                    if failures[key] == FAILURES or in_a_row == IN_A_ROW:
                        raise BlockFailedError(
                            f"{in_a_row} workers in a row have ended without finishing a block, "
                            f"{failures[key]} of them at {doing}, the last one with status {status} "
                            "(-9 is often too little memory); take smaller blocks or fewer "
                            "processes and go on with --resume"
                        )
                    say(f"a worker ended with status {status}, {doing}; another one takes over")
                    if key:  # last, so that what kills workers does not keep the others waiting
                        waiting.append(key)
                elif answer["error"]:
                    raise BlockFailedError(answer["error"])
                elif key is not None:
                    in_a_row = 0
                    left.discard(key)
                    pace.add(key)
        return True

    def close(self) -> None:
        """End all processes."""
        while self._workers:
            self._bury(self._workers[0])

    def _deal(self, waiting: deque[BlockKey]) -> None:
        """Give every free worker a block; those that died are replaced while there is work."""
        busy = sum(worker.key is not None for worker in self._workers)
        while len(self._workers) < min(self._count, len(waiting) + busy):
            self._workers.append(_Worker(self._job, self._gpu()))
        for worker in self._workers:
            if worker.ready and worker.key is None and waiting:
                worker.begin(waiting.popleft())

    def _gpu(self) -> int:
        """The number of the GPU that the fewest workers use; 0 where there is none."""
        torch = sys.modules.get("torch")  # toys and tests do without
        used = Counter(worker.gpu for worker in self._workers)
        gpus = torch.cuda.device_count() if torch else 0
        return min(range(max(1, gpus)), key=lambda gpu: used[gpu])

    def _busy(self) -> bool:
        return any(worker.key is not None for worker in self._workers)

    def _heard(self) -> list[_Worker]:
        """Workers that have something to say or are gone, within a moment."""
        by_pipe = {worker.hears: worker for worker in self._workers}
        readable, _, _ = select.select(list(by_pipe), [], [], POLL_SECONDS)
        return [by_pipe[pipe] for pipe in readable]

    def _bury(self, worker: _Worker) -> int:
        """Forget a worker; how it ended."""
        self._workers.remove(worker)
        return worker.end()


class _Worker:
    """A process that writes the blocks that it is told, and says so."""

    def __init__(self, job: BlockJob, gpu: int) -> None:
        told, tell = os.pipe()
        self.hears, said = os.pipe()
        self._tell = os.fdopen(tell, "wb", buffering=0)
        self.gpu = gpu
        environment = os.environ | dict.fromkeys(THREADS, str(job.threads))
        environment["LOCAL_RANK"] = str(gpu)  # as `engine.device` reads it
        command = [
            sys.executable,
            "-m",
            "em_train.engine.crew",
            str(told),
            str(said),
            str(os.getpid()),
        ]
        # Its own session: Ctrl-C reaches the process that deals out blocks, and it alone.
        self.process = subprocess.Popen(
            command, pass_fds=(told, said), env=environment, start_new_session=True
        )
        os.close(told)
        os.close(said)
        self.key: BlockKey | None = None
        self.ready = False
        self._buffer = b""
        self._send(asdict(job))

    def begin(self, key: BlockKey) -> None:
        """Have it write a block."""
        self.key = key
        self._send(str(key))

    def _send(self, message: Any) -> None:
        with suppress(BrokenPipeError):  # it is gone, which is heard next
            self._tell.write(_line(message))

    def answer(self) -> Any:
        """What it has to say, None when it is gone; afterwards it is free."""
        while b"\n" not in self._buffer:
            part = os.read(self.hears, 65536)
            if not part:
                return None
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        self.key, self.ready = None, True
        return json.loads(line)

    def end(self) -> int:
        """Kill it, whatever it does: a block without a marker is written again."""
        self.process.kill()
        self._tell.close()
        os.close(self.hears)
        return self.process.wait()


def _line(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _work(told: int, said: int, parent: int) -> None:
    """A worker's life: its job, then a block at a time, until nobody tells it anything."""
    if sys.platform == "linux":  # elsewhere it ends after the block under way, when the pipe closes
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
    for number in StopRequest.SIGNALS:  # it is for the parent to stop, and to end its workers
        signal.signal(number, signal.SIG_IGN)
    tasks, answers = os.fdopen(told, "rb"), os.fdopen(said, "wb", buffering=0)
    error = None
    with suppress(BrokenPipeError):
        try:
            writer = BlockWriter(BlockJob(**json.loads(tasks.readline())))
            answers.write(_line({"error": None}))
            for line in tasks:
                writer.write(BlockKey.parse(json.loads(line)))
                answers.write(_line({"error": None}))
        except BrokenPipeError:
            raise
        except EXPECTED as raised:  # a person can mend it, and another worker would not do better
            error = str(raised) or type(raised).__name__
        if error:
            answers.write(_line({"error": error}))


if __name__ == "__main__":
    _work(*map(int, sys.argv[1:]))
