"""What can go wrong around a run, as builtin subclasses, each saying who raises it."""


class ConfigError(ValueError):
    """Keys or values of a configuration are wrong; all of them are named. Raised by `config`."""


class RunFolderError(FileExistsError):
    """The run folder cannot be used for what was asked. Raised by `run_folder`."""


class CheckpointError(ValueError):
    """A checkpoint is damaged or not of this run. Raised by `checkpoint`."""


class BlockFailedError(ChildProcessError):
    """A block cannot be computed, or takes its worker down each time. Raised by `crew`."""
