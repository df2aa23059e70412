"""An error as one line for the person who reads it: what happened, to what, and what to do.

Most errors of this program say so themselves. Those of the system, of torch and of numpy do not: a
number, a file, or that memory is out.
"""

from __future__ import annotations

import errno
import os
import re
import sys

# What a person can mend.
MENDABLE = (OSError, ValueError, ImportError, FloatingPointError, MemoryError)
REMEDIES = {
    errno.ENOENT: "there is nothing; check the path",
    errno.ENOTDIR: "a part of the path is a file; check the path",
    errno.EISDIR: "it is a folder; name a file",
    errno.EEXIST: "it exists already; choose another name",
    errno.EACCES: "it may not be read or written; change its permissions, or choose another place",
    errno.EPERM: "it may not be changed; choose another place",
    errno.ELOOP: "its links lead in a circle; remove them",
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the quota is used up; make room",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.EMFILE: "too many files are open; raise the limit with ulimit -n",
}
LOWER = (
    "lower what is held at once: the batch (data.batch_size, --set) or the crop when learning, --block "
    "or --processes when predicting, memory_gib and threads when reading"
)
NO_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc"),
    # Sizes that torch cannot even count.
    *("Overflow when unpacking long", "size calculation overflowed"),
)
LONG_WORD = re.compile(r"\S{400,}")


def is_mendable(error: BaseException) -> bool:
    """Whether a person can do something about an error; all others are bugs."""
    return isinstance(error, MENDABLE) or is_out_of_memory(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is out: of this machine, or of the GPU, which torch calls a RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    counted = isinstance(error, RuntimeError | TypeError | OverflowError)
    return counted and any(one in str(error) for one in NO_MEMORY)


def one_line(error: BaseException) -> str:
    """What is told of an error that a person can mend; of names without end the two ends."""
    return LONG_WORD.sub(lambda word: f"{word[0][:100]}…{word[0][-100:]}", _told(error))


def _told(error: BaseException) -> str:
    text = str(error)
    if is_out_of_memory(error):
        # What was refused by a check of this program says itself what to lower.
        if type(error) is MemoryError and text:
            return text
        reason = " ".join(text.partition("\n")[0].split())
        return f"out of memory{f' ({reason[:200]})' if reason else ''}; {LOWER}"
    if isinstance(error, OSError) and error.errno and text.startswith("[Errno"):
        what = " and ".join(os.fsdecode(f) for f in (error.filename, error.filename2) if f)
        remedy = REMEDIES.get(error.errno, "check the path, the disk and the network")
        return f"{what or 'a file'}: {error.strerror} ({remedy})"
    return text or type(error).__name__
