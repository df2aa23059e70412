"""What can go wrong with a volume, as builtin subclasses, each saying who raises it.

Every message says what was wanted, what came, and what to do.
"""


class VolumeNotFoundError(FileNotFoundError):
    """Nothing at the address. Raised by `open_volume`."""


class VolumeFormatError(ValueError):
    """Something is there, but not a volume that can be understood. Raised by `open_volume`."""


class VolumeReadError(OSError):
    """A chunk exists and cannot be decoded. Raised when voxels are read."""


class BoxError(ValueError):
    """A box of voxels does not lie inside its volume. Raised by readers, writers and samplers."""


class StoreExistsError(FileExistsError):
    """The place to write to is taken. Raised before the first byte is written."""
