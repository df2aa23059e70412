"""What can go wrong with a volume, as builtin subclasses, each saying who raises it.

Every message says what was wanted, what came, and what to do.
"""


class VolumeNotFoundError(FileNotFoundError):
    """Nothing at the address. Raised by `open_volume`."""


class VolumeFormatError(ValueError):
    """Something is there, but not a volume that can be understood. Raised by `open_volume`."""


class NotFiniteError(ValueError):
    """Voxels are NaN or infinite where numbers are needed. Raised when voxels are read, by a volume
    that refuses them and by `Loader`."""


class VolumeReadError(OSError):
    """What is there cannot be fetched or decoded. Raised by `open_volume` for metadata on a server
    that cannot be reached or refuses, and when voxels are read."""


class ForkError(RuntimeError):
    """A library that does not survive a fork would be used after one. Raised before it is touched,
    by `open_volume` and when voxels are read."""


class ExtraMissingError(ImportError):
    """A format needs an optional package that is not installed. Raised by `open_volume`."""


class BoxError(ValueError):
    """A box of voxels does not lie inside its volume. Raised by readers, writers and samplers."""


class BudgetError(BoxError):
    """A budget of memory holds no blocks for the crops that are asked for. Raised by `choose_sampler`."""


class StoreExistsError(FileExistsError):
    """The place to write to is taken. Raised before the first byte is written."""


class BlockMissingError(FileNotFoundError):
    """A block of a store that is written block by block is not there. Raised by `blockwise`."""


class BlockDamagedError(OSError):
    """A block is not what was written. Raised by `blockwise` when the next level is made of it."""


class DiskFullError(OSError):
    """The disk is full, or a quota is used up; what was finished stays. Raised by `blockwise`."""
