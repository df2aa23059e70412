"""One command at one door: run in a process of its own, then judged.

The process is forked from one that has imported torch, which saves seconds; it has its own working
and temporary folder, and limits of time and memory. The rule, whatever the door: an exit code, one
message that names the thing and a remedy, no traceback, nothing written, ended within seconds.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SECONDS = 60.0  # of the clock, on a machine that does other things too
CPU_SECONDS = 40
LONG, END = 400, 100  # letters of a name of which messages hold the two ends, and of an end
MEMORY = 3 << 30  # bytes of addresses beside those that torch takes when it is imported
LOST = 255  # what multiprocessing says where the process that forks was lost
FORKED_FROM = (
    *("em_train.cli", "em_data", "em_data.loader", "em_models", "em_losses", "h5py", "tifffile"),
    *("em_train.recipes.dense_ssl", "em_train.recipes.segment", "em_train.recipes.mae"),
    "em_train.recipes.restore",
    *("torch._dynamo", "PIL.PngImagePlugin", "zarr", "rich.table"),
)
# What a person can do, in the words of the messages.
REMEDY = re.compile(
    r"\b(wanted|give|choose|check|repair|restore|take|leave|lower|raise|name|install|use|delete|open|"
    r"copy|write|move|remove|start|make|set|convert|resume|begin|train|free|mend|save|replace|log in|"
    r"correct|enlarge|should be|did you mean|there (are|is)|it (has|holds)|download|rename|look|go on|wait|stop|run|train|put|keep)\b"
    r"|--[a-z]",
    re.IGNORECASE,
)
LEAKS = {  # what no message of ours holds
    "a traceback": "Traceback (most recent call last)",
    "called a bug": "this is a bug",
    "advice to load unsafely": "weights_only",
    "a bare errno": "error: [Errno",
}
ERROR = re.compile(r"^error: ", re.MULTILINE)
WARNING = re.compile(r"\b[A-Z]\w*Warning: .*")

Expected = Literal["refused", "fine", "either"]


@dataclass(frozen=True)
class Case:
    """A command at a door."""

    command: str
    door: str
    group: str
    """Doors that are counted together."""
    arguments: tuple[str, ...]
    """Of `emtrain`; @door, @in, @good, @out, @dense and the like stand for paths."""
    prepare: Callable[[Path], str]
    """Makes the door in an empty folder and gives what @door stands for."""
    expected: Expected
    names: tuple[str, ...] = ()
    """One of these stands in the message; without any, the door's path."""
    writes: tuple[str, ...] = ()
    """What exit code 0 leaves."""
    may_change: tuple[str, ...] = ()
    """What exit code 0 may write beside it, as glob patterns below the trial's folder."""
    notes: tuple[str, ...] = ()
    """What any exit may write: the log of a run says why it stopped."""
    done: tuple[int, ...] = (0,)
    """Exit codes that are no refusal, as long as nothing is called an error."""
    until: str = ""
    """Of a command that stays: what it says when it is ready, and is asked to end."""

    @property
    def id(self) -> str:
        """What a list of known defects names it by."""
        return f"{self.command} × {self.door}"


@dataclass(frozen=True)
class Verdict:
    """What came of a case: clean is a refusal in good order, fine is a result."""

    case: Case
    outcome: Literal["clean", "fine", "defect"]
    why: str
    typed: str
    said: str
    seconds: float


class Bench:
    """Where cases are tried, one after the other or some at once."""

    def __init__(self, folder: Path, fixed: dict[str, str]) -> None:
        self.folder = folder
        self.fixed = fixed  # what @good, @dense and the like stand for
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*FORKED_FROM])
        self._numbers = itertools.count()

    def try_case(self, case: Case, *, keep: bool = False) -> Verdict:
        """Run a case and judge it; its folder is removed."""
        at = self.folder / f"trial-{next(self._numbers)}"
        inputs, here = at / "in", at / "here"
        for folder in (inputs, here, at / "tmp"):
            folder.mkdir(parents=True)
        door = case.prepare(inputs)
        stands_for = {"@door": door, "@in": str(inputs), "@out": str(here), **self.fixed}
        arguments = [_filled(one, stands_for) for one in case.arguments]
        before = tree(at)
        began = time.monotonic()
        code, slow = self.run(arguments, at, case.until)
        if code == LOST:
            code, slow = self.run(arguments, at, case.until)
        took = time.monotonic() - began
        said = (at / "err").read_text(errors="replace")
        after = {k: v for k, v in tree(at).items() if k not in ("err", "out")}
        names = [_filled(name, stands_for) for name in case.names] or [door, str(inputs)]
        why = judge(case, code, slow, said, before, after, names)
        if not why and ended_well(case, code, said):
            why = not_finite(here)
        done = ended_well(case, code, said)
        outcome: Any = "defect" if why else "fine" if done else "clean"
        if not keep:
            shutil.rmtree(at, ignore_errors=True)
        return Verdict(case, outcome, why, "emtrain " + " ".join(arguments), said[-3000:], took)

    def run(self, arguments: Sequence[str], at: Path, until: str = "") -> tuple[int, bool]:
        """Exit code of a command in a folder, and whether it had to be ended."""
        for log in ("out", "err"):
            (at / log).write_text("")
        process = self._context.Process(target=play, args=([*arguments], str(at)))
        process.start()
        ends = time.monotonic() + SECONDS
        asked = not until
        while time.monotonic() < ends:
            process.join(0.05 if not asked else max(0.0, ends - time.monotonic()))
            if process.exitcode is not None:
                return process.exitcode, False
            if not asked and until in (at / "err").read_text(errors="replace"):
                asked = True
                os.kill(process.pid or 0, signal.SIGINT)
        _end(process.pid or 0)
        process.join()
        return -signal.SIGKILL, True


def play(arguments: list[str], at: str) -> None:
    """Be `emtrain` with these arguments, in the folder of a trial; in a process of its own."""
    os.setsid()
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{at}/{name}", os.O_WRONLY | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ |= {"TMPDIR": f"{at}/tmp", "COLUMNS": "2000", "NO_COLOR": "1", "TERM": "dumb"}
    os.environ.pop("DISPLAY", None)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(f"{at}/here")
    sys.argv = ["emtrain", *arguments]
    from em_train.cli import main

    main()


def judge(
    case: Case,
    code: int,
    slow: bool,
    said: str,
    before: dict[str, str],
    after: dict[str, str],
    names: Sequence[str],
) -> str:
    """What is wrong with how a case ended; nothing, where all is well."""
    if slow or code == -signal.SIGXCPU:
        return f"did not end within {SECONDS:.0f} s"
    if code < 0:
        return f"died of signal {-code}"
    problems = [what for what, text in LEAKS.items() if text in said]
    if warned := WARNING.search(said):
        problems.append(f"a warning passed on ({warned.group()[:80]})")
    done = ended_well(case, code, said)
    if done:
        if case.expected == "refused":
            problems.append("exit code 0 where a refusal was due")
        problems += [f"no {path} was written" for path in case.writes if path not in after]
    else:
        if case.expected == "fine":
            problems.append(f"refused what is sound (exit code {code})")
        if code not in (1, 2):
            problems.append(f"exit code {code}")
        if not problems:
            problems += complaints(said, code, names)
    free = [*case.notes, *((*case.writes, *case.may_change) if done else ())]
    problems += changes(*(kept(side, free) for side in (before, after)))
    return "; ".join(problems)


def ended_well(case: Case, code: int, said: str) -> bool:
    """Whether a command did what it was asked."""
    stayed = bool(case.until) and code == 130
    return (code in case.done or stayed) and not ERROR.search(said)


def complaints(said: str, code: int, names: Sequence[str]) -> list[str]:
    """What a refusal lacks."""
    if code == 2:  # typer's box of a usage error
        return [] if "Error" in said else ["exit code 2 without a message"]
    found = list(ERROR.finditer(said))
    if len(found) != 1:
        return [f"{len(found)} messages" if found else "no message"]
    message = said[found[0].start() :]
    problems = []
    if names and not any(_in(name, message) for name in names if name):
        problems.append("the message does not name the thing")
    if not REMEDY.search(message):
        problems.append("the message has no remedy")
    if len(message) > 4000:
        problems.append(f"a message of {len(message)} letters")
    return problems


def _in(name: str, message: str) -> bool:
    """Whether a message holds a name: as it is, as Python writes it, without its scheme, or its ends."""
    bare = re.sub(r"^(precomputed|n5)://", "", name)
    if len(name) >= LONG:
        bare = name[-END:]
    return any(form in message for form in (name, repr(name)[1:-1], bare) if form)


def kept(side: dict[str, str], free: Sequence[str]) -> dict[str, str]:
    """What of a tree must stay as it is."""
    patterns = [re.compile(pattern) for pattern in free]
    return {path: what for path, what in side.items() if not any(p.match(path) for p in patterns)}


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is there that was not, is gone, or is another."""
    new, gone = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    other = sorted(k for k in before.keys() & after.keys() if before[k] != after[k])
    found = (("left", new), ("removed", gone), ("changed", other))
    return [f"{what} {', '.join(paths[:4])}" for what, paths in found if paths]


def not_finite(folder: Path) -> str:
    """Weights that were written although they are not finite."""
    from safetensors.torch import load_file

    for path in folder.rglob("*.safetensors"):
        if not all(t.isfinite().all() for t in load_file(path).values() if t.is_floating_point()):
            return f"weights that are not finite in {path.relative_to(folder)}"
    return ""


def tree(folder: Path) -> dict[str, str]:
    """What lies in a folder, with a checksum of each thing."""
    found = {}
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            one = Path(path) / name
            if one.is_symlink():
                what = f"link {one.readlink()}"
            elif one.is_dir():
                what = "folder"
            elif one.is_file():
                what = hashlib.sha256(one.read_bytes()).hexdigest()
            else:
                what = "special"
            found[str(one.relative_to(folder))] = what
    return found


def _filled(text: str, stands_for: dict[str, str]) -> str:
    return re.sub(r"@[a-z_]+", lambda m: stands_for.get(m.group(), m.group()), text)


def _end(process: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
