"""Leave a run in order: a signal asks, the loop saves and goes.

The first Ctrl-C, SIGTERM, SIGHUP (a lost connection) or SIGUSR1 (what schedulers send before they take a machine away) lets the
current step end; a second Ctrl-C leaves at once. A signal to one of several processes is for all.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

SAVED = 75  # exit code EX_TEMPFAIL: run again with --resume
INTERRUPTED = 130  # exit code of a shell command that Ctrl-C ended
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class StopRequest:
    """A context in which signals set `name` instead of ending the process."""

    SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            # What is ignored stays ignored: nohup, for instance, means that a hang-up shall not end it.
            heard = [s for s in self.SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
            self._before = {s: signal.signal(s, self._asked) for s in heard}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether any process was asked to stop; all must call it at the same step."""
        from em_train.engine import distributed

        number = getattr(signal, self.name) if self.name else 0
        asked = distributed.largest(int(number))
        if asked and self.name is None:
            self.name = signal.Signals(asked).name
        return asked > 0

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        # Not imported here: torch comes with it, and a process without it is alone.
        distributed = sys.modules.get("em_train.engine.distributed")
        if distributed is None or distributed.leads():
            # Written past all buffers: a handler may interrupt any of them.
            os.write(2, f"\n{self.name}: saving after this step; Ctrl-C leaves at once\n".encode())
