"""Who writes blocks on this machine: this process, or several that may be killed at any time.

Run as a module it is one of them.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from em_data.writer.blockwise import BlockKey, BlockStore

from em_train.engine.errors import BlockFailedError
from em_train.engine.progress import say
from em_train.engine.stop import StopRequest
from em_train.predict.block_job import (
    EXPECTED,
    FAILURES,
    GRACE_SECONDS,
    IN_A_ROW,
    POLL_SECONDS,
    BlockJob,
    BlockWriter,
    Pace,
)

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


PR_SET_PDEATHSIG = 1


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
            "em_train.predict.processes",
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


def work(told: int, said: int, parent: int) -> None:
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
    work(*map(int, sys.argv[1:]))
