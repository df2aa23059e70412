"""Optional packages, imported when a format needs them, named with the command when missing."""

from __future__ import annotations

import importlib
import os
from typing import Any

from em_data.errors import ExtraMissingError, ForkError


def import_extra(module: str, extra: str, purpose: str) -> Any:
    """A module of an extra of em-data.

    >>> import_extra("no_such_module", "tiff", "TIFF files")
    Traceback (most recent call last):
    ...
    em_data.errors.ExtraMissingError: TIFF files need no_such_module, which cannot be imported \
(No module named 'no_such_module'); install it: pip install 'em-data[tiff]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExtraMissingError(
            f"{purpose} need {module}, which cannot be imported ({error}); "
            f"install it: pip install 'em-data[{extra}]'"
        ) from error


class ForkGuard:
    """Refuses a library in a process that was forked from one that has used it.

    Such libraries keep threads of their own, which a fork does not copy: the child waits for them
    for ever, or aborts. Nothing but the process id can be asked without touching the library.
    """

    def __init__(self, library: str) -> None:
        self.library = library
        self._user: int | None = None

    def enter(self) -> None:
        """Call before every use of the library."""
        if self._user not in (None, os.getpid()):
            raise ForkError(
                f"process {os.getpid()} was forked from {self._user}, which had used {self.library} "
                "already, and that library does not survive a fork; read in threads, or start "
                "processes with multiprocessing.get_context('spawn')"
            )
        self._user = os.getpid()
