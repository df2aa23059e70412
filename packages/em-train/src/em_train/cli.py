"""The command `emtrain`.

Nothing heavy is imported before a command runs, so that `--help` answers at once. Errors that a
person can mend are one message on stderr and exit code 1; `--debug` shows the traceback as well.
"""

from __future__ import annotations

import os
import sys

import typer

# Commands register themselves, in the order in which --help lists them.
from em_train.commands import learn  # noqa: F401

# isort: split
from em_train.commands import judge, use  # noqa: F401

# isort: split
from em_train.commands import make  # noqa: F401
from em_train.commands.options import app
from em_train.engine import worker
from em_train.engine.wording import is_mendable, one_line


def main() -> None:
    """Run `emtrain`, turning errors that a person can mend into one message."""
    # Set before torch is imported: threads that wait by spinning take the time of those that work.
    # On two cores that other processes want as well, training is 1.3 to 3 times faster like this; on
    # idle ones it is equal within the noise.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    worker.die_with_parent()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if worker.ERROR_FILE in os.environ:  # who started this worker says it, once
            worker.record(error)
            sys.exit(1)
        mendable = is_mendable(error)
        if mendable and "--debug" in sys.argv:
            raise
        if not (mendable or isinstance(error, worker.WorkerError)):
            typer.echo("this is a bug in emtrain; please report what follows", err=True)
            raise
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(worker.place() + one_line(error), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
