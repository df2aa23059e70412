"""Start a run: in this process, on several of this machine, or by a Slurm script.

Several processes are workers of torch elastic, each a fresh interpreter with the command that the
person typed. When one dies, all are started again from the last checkpoint.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_train.engine.slurm import script
from em_train.engine.stop import INTERRUPTED, NAMES, SAVED
from em_train.engine.worker import WorkerError, is_worker, work

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from em_train.catalogue import Recipe

RESTARTS = 3  # without a new checkpoint in between


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where the processes of a run are wanted; nothing: in this one."""

    gpus: str | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        if self.gpus not in (None, "auto") and not str(self.gpus).isdecimal():
            raise ValueError(f"--gpus is {self.gpus!r}; wanted a number or auto")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"--processes is {self.processes}; wanted at least 1")
        if self.processes is not None and self.gpus not in (None, "auto", "0"):
            raise ValueError(
                f"--gpus {self.gpus} starts one process per GPU, --processes {self.processes} starts "
                "processes on the CPU; choose one of them"
            )

    def count(self) -> int | None:
        """Processes to start, None to work in this one; more GPUs than there are is refused."""
        if self.processes is not None:
            return self.processes
        if self.gpus is None:
            return None
        import torch

        there = torch.cuda.device_count()
        wanted = there if self.gpus == "auto" else int(self.gpus)
        if wanted > there:
            raise ValueError(
                f"--gpus {wanted}, but this machine has {there}; give at most {there}, or "
                f"--processes {wanted} to compute on the CPU"
            )
        return wanted or None

    def device(self) -> str | None:
        """The device that the choice implies."""
        if self.processes is not None or self.gpus == "0":
            return "cpu"
        if self.gpus == "auto":
            return "cuda" if self.count() else None
        return "cuda" if self.gpus else None


def train(
    recipe: Recipe,
    command: str,
    config: Any,
    path: Path,
    *,
    resume: bool,
    workers: Workers,
    again: str | None = None,
) -> int:
    """Train a resolved configuration in the run folder `path`; the exit code.

    `again` is the command that goes on with it, where that is more than this run.
    """
    processes = None if is_worker() else workers.count()
    if processes is None:
        done = work(recipe, command, config, path, resume=resume)
        code = 0 if done else SAVED
    else:
        recipe.check(config)
        code = supervise([*sys.argv[1:], "--out", str(path)], path, processes)
    if not is_worker():
        if again is None:
            again = f"emtrain {command} --out {shlex.quote(str(path))} --resume"
            if workers.processes is not None:
                again += f" --processes {workers.processes}"
            elif processes is not None:
                again += f" --gpus {workers.gpus}"
        if code == SAVED:
            print(f"saved; go on with: {again}", file=sys.stderr)
        elif code == 0:
            print(f"look at {path / 'report.html'}")
    return code


def supervise(arguments: Sequence[str], path: Path, processes: int) -> int:
    """Run workers with the arguments of `emtrain` until they are done; the exit code.

    Workers that die are started again, until `RESTARTS` starts brought no new checkpoint.
    """
    import torch  # noqa: F401  # torch.distributed.elastic alone does not import
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from em_train.engine import checkpoint
    from em_train.engine.progress import say

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # Workers of a new start that share the store of the old one meet addresses of the dead.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is said below
    launch, restarts, newest = uuid.uuid4().hex, 0, checkpoint.newest(path / "checkpoints")
    while True:
        with tempfile.TemporaryDirectory(prefix="emtrain-") as logs:
            settings = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                run_id=launch,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                max_restarts=0,  # counted here, where progress is known
                logs_specs=DefaultLogsSpecs(log_dir=logs),
                signals_to_handle="SIGQUIT",  # the others are ours
            )
            _raise_on_signals(SignalException, logs)
            try:
                elastic_launch(settings, sys.executable)("-u", "-m", "em_train.cli", *arguments)
                return 0
            except SignalException:
                return SAVED  # the workers were told, and have ended
            except ChildFailedError as failed:
                failures = list(failed.failures.items())
        if all(failure.exitcode == SAVED for _, failure in failures):
            return SAVED  # the signal went to the workers
        rank, failure = _cause(failures)
        told = _told(failure)
        reached = checkpoint.newest(path / "checkpoints")
        restarts = 0 if reached > newest else restarts
        newest = max(newest, reached)
        # An error before the first checkpoint would come again; later a disk may have hung.
        mends = told.get("transient") or not told.get("mendable")
        lasting = bool(told) and not told["echo"] and (reached < 0 or not mends)
        if lasting or restarts == RESTARTS:
            tries = f", {restarts + 1} times without a new checkpoint" if restarts else ""
            raise _worker_error(rank, failure, told, tries)
        restarts += 1
        since = f"from step {reached}" if reached >= 0 else "from the beginning"
        why = told.get("text", failure.message)
        say(f"rank {rank}: {why}; starting again {since} (restart {restarts} of {RESTARTS})")


def _raise_on_signals(error: Any, logs: str) -> None:
    """Let the first signal raise what torch elastic passes on to the workers, and waits for.

    A second Ctrl-C does not wait: when this process ends, the kernel ends the workers.
    """

    def leave(number: int, frame: object) -> None:
        if number == signal.SIGINT:
            shutil.rmtree(logs, ignore_errors=True)
            os._exit(INTERRUPTED)

    def hear(number: int, frame: object) -> None:
        for other in heard:
            signal.signal(other, leave)
        raise error(f"got signal {number}", sigval=signal.Signals(number))

    found = [getattr(signal, name) for name in (*NAMES, "SIGUSR2") if hasattr(signal, name)]
    # What is ignored stays ignored: nohup, for instance, means that a hang-up shall not end it.
    heard = [number for number in found if signal.getsignal(number) != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, hear)


def _cause(failures: Sequence[tuple[int, ProcessFailure]]) -> tuple[int, ProcessFailure]:
    """The failure that the others are echoes of."""

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, int]:
        told = _told(item[1])
        ended = item[1].exitcode in (
            -signal.SIGTERM,
            SAVED,
        )  # by the agent, after the first failure
        return (bool(told.get("echo")), ended, item[1].timestamp)

    return min(failures, key=order)


def _told(failure: ProcessFailure) -> dict[str, Any]:
    """What a worker said about its failure; nothing if a signal ended it."""
    message = failure.error_file_data.get("message", {})
    told = message.get("extraInfo", {}) if isinstance(message, dict) else {}
    return dict(told)


def _worker_error(
    rank: int, failure: ProcessFailure, told: dict[str, Any], tries: str
) -> Exception:
    """One message with the rank; the traceback where the reason is nobody's to mend."""
    where = f"rank {rank}{tries}: "
    if told.get("mendable") and "--debug" not in sys.argv:
        return ValueError(where + told["text"])
    if "py_callstack" in told:
        return WorkerError(f"{where}\n{told['py_callstack'].rstrip()}")
    return WorkerError(f"{where}{failure.message}")


def slurm_script(path: Path, workers: Workers, options: Sequence[str]) -> str:
    """The sbatch script for the command that was typed."""
    if workers.gpus == "auto" or (workers.processes is None and workers.gpus in (None, "0")):
        raise ValueError("--slurm needs the processes per node: give --gpus N or --processes N")
    arguments, rest = [], iter(sys.argv[1:])
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if name not in ("--slurm", "--sbatch", "--resume", "--out"):
            arguments.append(argument)
        elif not equals and name != "--resume":
            next(rest)
    gpus = int(workers.gpus) if workers.gpus and workers.processes is None else None
    return script(
        arguments, path, gpus=gpus, processes=workers.processes or gpus or 1, options=options
    )


def submit(text: str) -> str:
    """Hand a script to sbatch; what it answers."""
    try:
        result = subprocess.run(["sbatch"], input=text, text=True, capture_output=True, check=False)
    except FileNotFoundError:
        raise FileNotFoundError(
            "there is no sbatch here; run this where jobs are submitted, or keep the script: "
            "--slurm print > job.sh"
        ) from None
    if result.returncode:
        raise OSError(f"sbatch refused the script: {result.stderr.strip()}")
    return result.stdout.strip()
