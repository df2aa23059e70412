"""One process of a run: joins the others, opens the run folder with them, trains.

The same for a run of one process, for the workers that `emtrain --gpus N` starts, and for those of
torchrun or Slurm: every worker gets the command that the person typed, and `RANK` and its kin in the
environment.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from em_train.catalogue import Recipe

# By the person who reads it.
MENDABLE = (OSError, ValueError, ImportError, FloatingPointError, MemoryError)
PR_SET_PDEATHSIG = 1
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torch elastic reads why a worker failed


class WorkerError(RuntimeError):
    """A worker failed for a reason that starting it again does not mend. Raised by `launch`."""


def place() -> str:
    """Which of several processes speaks, before its message."""
    return f"rank {os.environ['RANK']}: " if is_worker() else ""


def is_worker() -> bool:
    """Whether this process is one of several, started by emtrain, torchrun or Slurm."""
    return "RANK" in os.environ


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it is gone: no orphans."""
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent == 1 or os.getppid() != parent:  # it was gone before the kernel knew
        os._exit(1)


def work(recipe: Recipe, command: str, config: Any, path: Path, *, resume: bool) -> bool:
    """Train as one of the processes; True when all steps are done, False when asked to stop."""
    from em_train.engine import checkpoint, distributed, tensorboard
    from em_train.engine.device import choose_device
    from em_train.engine.run_folder import RunFolder, discard, new_run, resumed_run

    if config.run.tensorboard:
        tensorboard.require()
    recipe.check(config)  # whoever cannot read the data fails here, before anything is written
    cuda = choose_device(config.run.device).type == "cuda"
    with distributed.joined(cuda):
        restarts = distributed.largest(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
        begun = False  # a run that ended before its first checkpoint begins, also with --init
        if distributed.leads():
            resume = resume or _again(path, restarts)
            folder = (resumed_run if resume else new_run)(path, config, command)
            if not resume:
                _sign(path)
            begun = checkpoint.exists(folder.checkpoints)
        # Who leads may have failed: then the others end here, in the middle of this exchange.
        begun = distributed.largest(int(begun)) > 0
        if not distributed.leads():
            folder = RunFolder(path, leads=False)
        folder.mirrored = config.run.tensorboard
        try:
            done: bool = recipe.run(config, folder, resume=begun)
        except Exception as error:
            if folder.begun:  # what is refused leaves a folder as it was
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                folder.log(
                    "another process was lost" if _is_echo(error) else f"stopped by {reason}"
                )
            elif folder.leads and not resume:
                discard(folder)
            raise
        finally:
            folder.close()
    return done


def record(error: BaseException) -> None:
    """Leave the reason of a failure where torch elastic, and through it the launcher, reads it."""
    told = {
        "message": f"{type(error).__name__}: {error}",
        "extraInfo": {
            "py_callstack": traceback.format_exc(),
            "timestamp": str(int(time.time())),
            "text": str(error) or type(error).__name__,
            "mendable": isinstance(error, MENDABLE),
            "transient": isinstance(error, OSError),
            "echo": _is_echo(error),
        },
    }
    Path(os.environ[ERROR_FILE]).write_text(json.dumps({"message": told}))


def _is_echo(error: BaseException) -> bool:
    """Whether it is what the others see when a process dies: an error of communication."""
    lost = isinstance(error, ConnectionError) or type(error).__name__.startswith("Dist")
    return lost or "/gloo/" in str(error)


def _again(path: Path, restarts: int) -> bool:
    """Whether this launch has worked on the run before: then workers go on, unasked."""
    launch = _launch()
    signed = (path / ".launch").read_text() if (path / ".launch").exists() else None
    return (path / "config.json").exists() and (
        restarts > 0 or (launch is not None and signed == launch)
    )


def _sign(path: Path) -> None:
    """Note which launch began the run."""
    launch = _launch()
    if launch is not None:
        (path / ".launch").write_text(launch)


def _launch() -> str | None:
    """The name that torch elastic gave this launch, the same after every restart."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name
