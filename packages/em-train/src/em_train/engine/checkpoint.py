"""Checkpoints that survive a kill at any instant, that need no pickle to load, and are verified.

At every moment the newest name points to a whole file. A file that rotted since is found by its
checksums, which torch itself does not look at, and passed over for the one before it.
"""

from __future__ import annotations

import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from em_train.engine import distributed
from em_train.engine.atomic import point, replacing
from em_train.engine.errors import CheckpointError, DamagedCheckpointError
from em_train.engine.progress import say

FORMAT = 2
HEAD = {"format": int, "step": int, "world": int}  # what is in each, beside the states of the parts
# What states that were changed by hand, or are of another class, make `load_state_dict` raise.
MISSHAPEN = (
    *(AttributeError, AssertionError, IndexError, KeyError),
    *(OverflowError, RuntimeError, TypeError, ValueError),
)


def save(
    folder: Path, step: int, state: dict[str, Any], *, keep: int = 2, best: bool = False
) -> Path:
    """Write `step-<step>.pt` and point `last` to it; the newest `keep` and the best stay.

    With `best`, `best` is pointed to it too. Checkpoints of later steps go: they are damaged, for
    `load` passed over them, and will be written again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    head = {"format": FORMAT, "step": step, "world": distributed.size()}
    try:
        with replacing(path) as temporary:
            torch.save(head | state, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        free = shutil.disk_usage(folder).free / 2**20
        raise OSError(
            f"cannot write {path} ({str(error).splitlines()[0]}; {free:.0f} MiB free); the "
            "checkpoint before it is untouched: mend this, then go on with --resume"
        ) from error
    if best:
        point(folder / "best", path.name)
    point(folder / "last", path.name)
    kept = (folder / "best").resolve()
    paths = _steps(folder)
    end = paths.index(path) + 1
    for later in paths[end:]:
        later.unlink()
    for old in paths[:end][:-keep]:
        if old.resolve() != kept:
            old.unlink()
    return path


def load(folder: Path, *, world: str = "any", best: bool = False) -> dict[str, Any]:
    """The newest checkpoint that is whole, with `best` rather the best where there is one.

    With `world="same"`, one of as many processes as now.
    """
    problems, paths = [], _steps(folder)[::-1]
    if best and (folder / "best").exists():
        paths.insert(0, (folder / "best").resolve())
    for path in paths:
        try:
            state = read(path)
        except DamagedCheckpointError as error:
            problems.append(str(error).partition(";")[0].replace(f"{path.parent}/", ""))
            continue
        if world == "same" and state["world"] != distributed.size():
            raise CheckpointError(
                f"{path} was written by {state['world']} processes, now there are "
                f"{distributed.size()}; go on with as many (--gpus or --processes "
                f"{state['world']}), or accept other rounding with --set run.world=any"
            )
        for problem in problems:
            say(f"{problem}; going on from {path.name} instead")
        return state
    raise CheckpointError(
        f"nothing to resume in {folder}: " + ("; ".join(problems) or "it holds no checkpoint")
    )


def read(path: Path) -> dict[str, Any]:
    """One checkpoint, verified; another format is refused."""
    state = _whole(path)
    if isinstance(state, dict) and state.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {state['format']!r}, this version reads {FORMAT}; "
            "use the version that wrote it"
        )
    if not isinstance(state, dict) or any(type(state.get(k)) is not t for k, t in HEAD.items()):
        raise _damaged(path, "it holds no states of a run")
    return state


def _whole(path: Path) -> Any:
    """What a file holds, if its checksums are right; nothing but tensors and plain values is made."""
    if not path.is_file():
        raise _damaged(path, "it is no plain file")
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
        if wrong is not None:
            raise _damaged(path, f"checksum of {wrong} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:  # torch would advise to load it all the same
        raise _damaged(path, "it holds more than tensors and plain values") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive can make its readers raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise _damaged(path, reason) from error


def _damaged(path: Path, reason: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{path} is damaged ({reason}); put back a copy of it, or remove it to go on from the one before"
    )


def initialise(networks: nn.Module, run: str | Path) -> None:
    """Give networks the averaged weights of the best checkpoint of a run, else of the newest."""
    folder = Path(run) / "checkpoints"
    if not exists(folder):
        raise CheckpointError(f"no checkpoint in {folder}; give --init the folder of a run")
    state = load(folder, best=True)
    average = state.get("average") or {}
    if isinstance(average, dict):
        average = {str(k).removeprefix("module."): v for k, v in average.items()}
        average.pop("n_averaged", None)
    weights = average or state.get("networks", {})
    _refuse_other_weights(networks, weights, folder)
    networks.load_state_dict(weights)


def take_over(network: nn.Module, loaded: nn.Module, run: Path) -> None:
    """Give a network the weights of one that was loaded from a run."""
    _refuse_other_weights(network, loaded.state_dict(), run)
    network.load_state_dict(loaded.state_dict())


def restore(parts: dict[str, Any], state: dict[str, Any], folder: Path) -> None:
    """Load every part's state; weights of another model are refused before anything is loaded."""
    for name, part in parts.items():
        if name not in state:
            raise CheckpointError(
                f"{folder} holds no {name}, only {', '.join(sorted(state))}; it is of another recipe"
            )
        if isinstance(part, nn.Module):
            _refuse_other_weights(part, state[name], folder)
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except MISSHAPEN as error:
            raise CheckpointError(
                f"{folder} holds a state of {name} that is not what a run writes "
                f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); put back a copy of the "
                "checkpoint, or remove it to go on from the one before"
            ) from error


def _refuse_other_weights(model: nn.Module, weights: Any, folder: Path) -> None:
    own = model.state_dict()
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise CheckpointError(f"{folder} holds no weights; put back a copy of its checkpoints")
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is unknown" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, wanted {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{folder} holds the weights of another model: {'; '.join(problems[:3])}{more}; "
            "choose the same model, or other weights"
        )


def exists(folder: Path) -> bool:
    """Whether there is anything to resume from."""
    return bool(_steps(folder))


def newest(folder: Path) -> int:
    """The step of the newest checkpoint, −1 without any; nothing is read."""
    steps = _steps(folder)
    return int(steps[-1].stem.removeprefix("step-")) if steps else -1


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", p.name))
